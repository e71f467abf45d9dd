"""Small random vision transformers of transformers, and how each is called."""

from importlib import import_module
from typing import Any

import numpy as np
from survey import moved

SMALL = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 80, "image_size": 28,
         "patch_size": 7, "num_patches": 16}  # fmt: skip
SAM = {"output_channels": 8, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 80}
SWIN = {"depths": [1, 1], "num_heads": [2, 2], "embed_dim": 16, "window_size": 2, "patch_size": 7}
SPECIAL = {
    "audio-spectrogram-transformer": {"max_length": 32, "num_mel_bins": 32},
    "beit": {"use_relative_position_bias": True},
    "data2vec-vision": {"use_relative_position_bias": True},
    "deepseek_ocr2_sam_vision_model": {**SAM, "downsample_channels": [8, 8]},
    "donut-swin": SWIN,
    "dpt": {"backbone_out_indices": [0, 1], "neck_hidden_sizes": [8, 8, 8, 8]},
    "dots3_note_vision_encoder": {"pyramid_num_routed": [-1, 2], "adapter_in_dim": 48, "adapter_out_dim": 48},
    "eomt": {"num_blocks": 1, "num_queries": 3},
    "eomt_dinov3": {"num_blocks": 1, "num_queries": 3},
    "got_ocr2_vision": SAM,
    "granite_docling_vision": {"deepstack_visual_indexes": [0, 1], "scale_factor": 2},
    "groupvit_vision_model": {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]},
    "hunyuan_vl_vision": {"max_image_size": 28, "text_hidden_size": 16},
    "hy_v4_vl_vision": {"max_image_size": 28, "out_hidden_size": 16},
    "lw_detr_vit": {"image_size": 56, "pretrain_image_size": 28, "num_windows": 4, "window_block_indices": [0]},
    "mgp-str": {"num_bpe_labels": 20, "num_wordpiece_labels": 20},
    "minicpm_ocr_vision": {"insert_layer_id": 0},
    "minicpmv4_6_vision": {"insert_layer_id": 0},
    "minicpmv4_7_vision": {"insert_layer_id": 0},
    "mllama_vision_model": {"attention_heads": 4, "num_global_layers": 1, "intermediate_layers_indices": [0, 1]},
    "molmo2_vision": {"image_size": [28, 28], "head_dim": 16, "num_key_value_heads": 4},
    "ovis2_vision": {"vocab_size": 30},
    "pp_formulanet_vision": {**SAM, "post_conv_in_channels": 8, "post_conv_mid_channels": 8,
                             "post_conv_out_channels": 8},
    "radio": {"max_img_size": 28, "layerscale_value": 0.5},
    "rf_detr_dinov2": {"num_windows": 2, "out_indices": [1, 2]},
    "sam3_vit_model": {"pretrain_image_size": 28, "window_size": 2, "global_attn_indexes": [1]},
    "sam_hq_vision_model": SAM,
    "sam_vision_model": SAM,
    "seggpt": {"image_size": [56, 28], "pretrain_image_size": 28, "merge_index": 0,
               "intermediate_hidden_state_indices": [0, 1]},
    "slanext_vision": SAM,
    "swin": SWIN,
    "swin2sr": SWIN,
    "swinv2": {**SWIN, "pretrained_window_sizes": [0, 0]},
    "timesformer": {"num_frames": 2},
    "udop": {"d_model": 48, "d_kv": 12, "d_ff": 80, "vocab_size": 30},
    "unlimited_ocr_sam_vision_model": {**SAM, "downsample_channels": [8, 8]},
    "videomae": {"num_frames": 4},
    "videomt": {"num_blocks": 1, "num_queries": 3},
    "vit_mae": {"mask_ratio": 0.0, "decoder_num_hidden_layers": 1, "decoder_hidden_size": 16,
                "decoder_num_attention_heads": 2, "decoder_intermediate_size": 16},
    "vitdet": {"window_size": 2, "window_block_indices": [0], "use_relative_position_embeddings": True},
    "vivit": {"tubelet_size": [2, 7, 7], "num_frames": 4},
    "xclip_vision_model": {"num_frames": 2},
}  # fmt: skip
"""What some model types need besides small sizes."""
CLASSES = {
    "idefics_vision": ("transformers.models.idefics.vision", "IdeficsVisionTransformer"),
    "mgp-str": ("transformers.models.mgp_str.modeling_mgp_str", "MgpstrModel"),
    "pp_chart2table_vision": ("transformers.models.got_ocr2.modeling_got_ocr2", "GotOcr2VisionEncoder"),
}
"""Classes that cannot be found by their configuration."""
BY_BLOCKS = {"cosmos3_edge_vision": 2}
"""Model types that take the patches of blocks of n x n one after the other, and n."""
PACKED = ("cosmos3_edge_vision", "hunyuan_vl_vision", "hy_v4_vl_vision", "glm_image_vision")
"""Model types that take the patches of all images in one sequence, with their grids."""


def small_model(name: str, kind: type) -> Any:
    """A small random model of a configuration class."""
    import torch

    default = kind()
    sizes = {key: _alike(value, getattr(default, key)) for key, value in SMALL.items() if hasattr(default, key)}
    config = kind(**{**sizes, **SPECIAL.get(name, {})})
    config._attn_implementation = "eager"
    torch.manual_seed(0)
    return moved(_model_class(name, kind)(config))


def _model_class(name: str, kind: type) -> type:
    """The class of a configuration's base model."""
    from transformers import MODEL_MAPPING, PreTrainedModel

    if name in CLASSES:
        return getattr(import_module(CLASSES[name][0]), CLASSES[name][1])
    if kind in MODEL_MAPPING:
        return MODEL_MAPPING[kind]
    module = import_module(kind.__module__.replace(".configuration_", ".modeling_"))
    classes = [
        value for value in vars(module).values() if isinstance(value, type) and issubclass(value, PreTrainedModel)
    ]
    own = [model for model in classes if model.config_class is kind and not model.__name__.endswith("PreTrainedModel")]
    return max(own, key=lambda model: model.__name__.endswith(("Model", "Transformer", "Encoder", "Backbone")))


def _alike(value: int, default: Any) -> Any:
    """The value as a list if the default is one."""
    return [value] * len(default) if isinstance(default, list | tuple) else value


def save(model: Any, folder: str) -> None:
    """Writes the parameters and config.json, also of a module without `save_pretrained`."""
    from safetensors.torch import save_file

    if hasattr(model, "save_pretrained"):
        model.save_pretrained(folder)
        return
    model.config.save_pretrained(folder)
    save_file({name: value.contiguous() for name, value in model.state_dict().items()}, f"{folder}/model.safetensors")


def inputs(name: str, images: Any, patch_size: tuple[int, int]) -> dict:
    """The arguments of a model: pixels or patches; for MAE, also an order of patches that keeps them all."""
    import torch

    (batch, _, *pixels), (height, width) = images.shape, patch_size
    rows, columns = pixels[0] // height, pixels[1] // width
    if name == "vit_mae":
        return {"pixel_values": images, "noise": torch.arange(rows * columns, dtype=torch.float32).repeat(batch, 1)}
    patches = images.unfold(2, height, height).unfold(3, width, width)  # batch, channels, rows, columns, pixels
    if name in ("siglip2_vision_model", "molmo2_vision"):
        flat = patches.permute(0, 2, 3, 4, 5, 1).reshape(batch, rows * columns, -1)
        mask = torch.ones(batch, rows * columns, dtype=torch.int32)
        shapes = torch.tensor([[rows, columns]] * batch)
        more = {"pixel_attention_mask": mask, "spatial_shapes": shapes} if name == "siglip2_vision_model" else {}
        return {"pixel_values": flat, **more}
    if name not in PACKED:
        return {"pixel_values": images}
    last = (4, 5, 1) if name == "cosmos3_edge_vision" else (1, 4, 5)
    flat = patches.permute(0, 2, 3, *last).reshape(batch, rows * columns, -1)[:, block_order(name, rows, columns)]
    return {"pixel_values": flat.reshape(batch * rows * columns, -1),
            "grid_thw": torch.tensor([[1, rows, columns]] * batch)}  # fmt: skip


def block_order(name: str, rows: int, columns: int) -> np.ndarray:
    """The indices of patches, counted row by row, in the order in which a model takes them."""
    n = BY_BLOCKS.get(name, 1)
    index = np.arange(rows * columns).reshape(rows // n, n, columns // n, n)
    return index.transpose(0, 2, 1, 3).reshape(-1)


def by_rows(name: str, tokens: Any, batch: int, grid: tuple[int, int]) -> np.ndarray:
    """The tokens of a model as (batch, tokens, width), patches row by row."""
    array = tokens.detach().numpy()
    if array.ndim == 4:  # SAM 3's tokens are (batch, rows, columns, width)
        return array.reshape(batch, grid[0] * grid[1], -1)
    if name not in PACKED:
        return array
    array = array.reshape(batch, grid[0] * grid[1], -1)
    return array[:, np.argsort(block_order(name, *grid))]
