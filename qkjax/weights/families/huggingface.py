"""What the config.json of a Hugging Face repository specifies beyond the shapes of its parameters."""

from collections.abc import Mapping

from qkjax.errors import QkjaxError
from qkjax.vit.config import check_settings
from qkjax.weights.families import timm

ACTIVATIONS = {
    "gelu": "gelu",
    "quick_gelu": "quick_gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu_fast": "gelu_tanh",
}


def settings_of(config: Mapping) -> dict:
    """Settings of a ViT from the config.json of Hugging Face or timm, as far as shapes do not determine them.

    Raises:
      QkjaxError: rotary position embeddings, an unknown activation, or a value of the wrong type.
    """
    inner = config.get("vision_config")
    config = inner if isinstance(inner, dict) and inner else config
    kind = f"{config.get('model_type')} {config.get('architecture')}"
    if "dinov3" in kind or "rope" in kind or "eva" in kind:
        raise QkjaxError(
            f"config.json is for {kind}, with rotary position embeddings, which are not supported: a head then has no "
            "single matrix Wq Wk^T"
        )
    if "architecture" in config:
        return timm.settings_of(config)
    settings = {}
    size, patch = config.get("image_size"), config.get("patch_size")
    if isinstance(size, list) and len(size) == 2 and isinstance(patch, int) and patch > 0:
        settings["grid"] = tuple(n // patch for n in size if isinstance(n, int))
    if "hidden_act" in config:
        act = "swiglu" if config.get("use_swiglu_ffn") else ACTIVATIONS.get(str(config["hidden_act"]))
        if act is None:
            act, known = config["hidden_act"], ", ".join(ACTIVATIONS)
            raise QkjaxError(f"config.json has activation {act!r}, expected one of {known}")
        settings["activation"] = act
    if "layer_norm_eps" in config:
        settings["norm_eps"] = config["layer_norm_eps"]
    if "num_attention_heads" in config:
        settings["heads"] = config["num_attention_heads"]
    return check_settings(settings)
