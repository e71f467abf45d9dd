"""What it costs to look into a forward pass: with intermediates captured against without, ours and transformers'.

    python benchmarks/capture.py        # DINOv2 ViT-S/14, a batch of 8, or of 64 on an accelerator; a minute on a CPU

Captured are the LayerNorm's outputs, attention and the residual stream of all layers; transformers is asked for hidden
states and attentions, with the attention that can give them, and without for the one it would take. Random weights of
the same shapes there: speed does not depend on them. The floor is the bare pass.
"""

import jax
import jax.numpy as jnp
import numpy as np
from decompose import best
from table import Line, markdown

import qkjax
from qkjax.passes.options import batch_size
from qkjax.vit.model import forward

MODEL = "dinov2-vits14-focus"


def transformers_seconds(config: qkjax.ViTConfig, pixels: jax.Array, look: bool) -> float:
    """Of a forward pass of transformers' Dinov2Model, with or without what it can return."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    shapes = {"hidden_size": config.width, "num_hidden_layers": config.depth, "num_attention_heads": config.heads}
    given = Dinov2Config(**shapes, image_size=pixels.shape[1], patch_size=config.patch_size[0])
    given._attn_implementation = "eager" if look else "sdpa"
    model, device = Dinov2Model(given).eval(), "cuda" if torch.cuda.is_available() else "cpu"
    images = torch.from_numpy(np.array(pixels).transpose(0, 3, 1, 2).copy()).to(device)
    model.to(device)

    def forward() -> None:
        with torch.no_grad():
            model(images, output_hidden_states=look, output_attentions=look)
        if device == "cuda":
            torch.cuda.synchronize()

    return best(forward)


def main() -> list[Line]:
    """Prints the table."""
    checkpoint = qkjax.load(MODEL)
    model, params = qkjax.ViT(checkpoint.config), jax.device_put(checkpoint.params)
    side, size = checkpoint.preprocess.crop, batch_size(None)
    pixels = jnp.asarray(np.random.default_rng(0).standard_normal((size, side, side, 3), dtype=np.float32))
    seconds = {
        look: best(lambda look=look: forward(model, params, pixels, look))
        for look in ((), ("norm", "attention", "residual"))
    }
    bare, captured = seconds.values()
    what = f"ViT-S/14, {size} images, norm, attention and residual captured"
    lines = [Line(what, captured, "our bare pass (floor)", bare)]
    try:
        plain, looked = (transformers_seconds(checkpoint.config, pixels, look) for look in (False, True))
    except ImportError:
        print("torch or transformers is not installed (bench extra): left out")
    else:
        lines.append(Line(what, captured, "transformers, hidden states and attentions", looked))
        lines.append(Line(f"ViT-S/14, {size} images, bare pass", bare, "transformers, bare pass", plain))
    print(markdown(lines))
    return lines


if __name__ == "__main__":
    main()
