"""Differences between transformers' image model types: keys, names of parameters, and the layout of arrays."""

from collections.abc import Mapping

from qkjax.errors import QkjaxError
from qkjax.weights.families.layout import Layout, renumbered

OTHER_KEYS = {
    "idefics_vision": {"embed_dim": "hidden_size"},
    "mllama_vision_model": {"attention_heads": "num_attention_heads", "norm_eps": "layer_norm_eps"},
    "glm_image_vision": {"num_heads": "num_attention_heads", "depth": "num_hidden_layers",
                         "in_channels": "num_channels"},
    "hunyuan_vl_vision": {"max_image_size": "image_size"},
    "hy_v4_vl_vision": {"max_image_size": "image_size"},
    "radio": {"max_img_size": "image_size"},
    "sam3_vit_model": {"pretrain_image_size": "image_size", "image_size": "run_image_size"},
    "molmo2_vision": {"image_default_input_size": "image_size", "image_patch_size": "patch_size"},
}  # fmt: skip
"""For each model type, pairs of a key of this type and the name that other types use for the same key."""
VIDEO_OF_PATCHES = {"spatial_merge_size", "temporal_patch_size", "num_key_value_heads", "interpolate_mode"}
OWN_KEYS = {
    "dinov3_vit": {"rope_parameters", "rope_theta", "query_bias", "key_bias", "value_bias", "proj_bias",
                   "use_gated_mlp", "pos_embed_shift", "pos_embed_jitter", "pos_embed_rescale"},
    "mlcd_vision_model": {"rope_parameters", "rope_theta", "num_key_value_groups"},
    "sam3_vit_model": {"rope_parameters", "rope_theta", "window_size", "global_attn_indexes", "run_image_size"},
    "flava_image_model": {"mask_token"},
    "janus_vision_model": {"depth", "num_image_tokens"},
    "pixio": {"n_cls_tokens"},
    "radio": {"num_cls_tokens", "num_registers", "patch_dim", "video_patch_dim", "video_temporal_patch_size",
              "norm_mean", "norm_std"},
    "molmo2_vision": {"head_dim", "num_key_value_heads", "num_position_embeddings", "image_num_pos"},
    "ovis2_vision": {"hidden_stride", "num_visual_indicator_tokens", "tokenize_function"},
    "phi4_multimodal_vision": {"crop_size", "feature_layer"},
    "granite_docling_vision": {"scale_factor", "deepstack_visual_indexes", "use_fine_route"},
    "hunyuan_vl_vision": VIDEO_OF_PATCHES | {"img_max_token_num"},
    "hy_v4_vl_vision": VIDEO_OF_PATCHES,
    "cosmos3_edge_vision": {"spatial_merge_size"},
    "glm_image_vision": {"spatial_merge_size"},
}  # fmt: skip
"""Keys of one model type that are used here, whose effect the parameters determine, or that affect only parts after the
layers."""
RESAMPLE = {
    "siglip2_vision_model": "bilinear_antialias",  # NaFlex
    "cosmos3_edge_vision": "bilinear_antialias",
    "idefics_vision": "bicubic_offset",
    "idefics2_vision": "nearest",
    "idefics3_vision": "nearest",
    "smolvlm_vision": "nearest",
    "phi4_multimodal_vision": "nearest",
    "glm_image_vision": "bilinear",
    "radio": "bilinear_crop",
    "sam3_vit_model": "tile",
}
STATED_RESAMPLE = {
    "hunyuan_vl_vision": {"bilinear": "bilinear", "bicubic": "bicubic"},
    "hy_v4_vl_vision": {"bilinear": "bilinear_offset"},
}
"""For model types whose configuration states the resampling of positions: the method for each value of
`interpolate_mode`."""
NO_FINAL_NORM = {"molmo2_vision", "radio", "hunyuan_vl_vision", "hy_v4_vl_vision", "glm_image_vision", "mgp-str",
                 "sam3_vit_model"}  # fmt: skip
SEVERAL_STACKS = {"mllama_vision_model", "groupvit_vision_model"}
"""Model types that store their layers in several lists."""
RADIO = (
    (r"^(?:radio_model\.model\.patch_generator\.embedder|embeddings\.patch_projection)\.", "patch_embed.proj."),
    (r"^(?:radio_model\.model\.patch_generator\.pos_embed|embeddings\.position_embedding)$", "pos_embed"),
    (r"^(?:radio_model\.model\.patch_generator\.cls_token\.token|embeddings\.cls_register_token)$", "cls_token"),
    (r"^radio_model\.", ""),
)
OUT = (r"\.self_attn\.o_proj\.", ".self_attn.out_proj.")
HUNYUAN = Layout((OUT,), left_out=r"(?:^|\.)(?:patch_merger|perceive)\.", unused_positions=1)
LAYOUTS = {
    "vjepa2": Layout(
        ((r"\.attention\.(query|key|value)\.", r".attention.attention.\1."),), r"(?:^|\.)(?:predictor|pooler)\."
    ),
    "sam3_vit_model": Layout(((r"^detector_model\.", ""),), r"(?:^|\.)neck\."),
    "flava_image_model": Layout(renamed=((r"^(?:flava\.)?image_model\.", ""),)),
    "ovis2_vision": Layout(left_out=r"(?:^|\.)head_(?:linear|norm)\."),
    "granite_docling_vision": Layout(left_out=r"(?:^|\.)connector\."),
    "hunyuan_vl_vision": HUNYUAN,
    "hy_v4_vl_vision": HUNYUAN,
    "molmo2_vision": Layout((OUT, (r"(^|\.)patch_embedding\.", r"\1patch_embed.proj."))),
    "mgp-str": Layout(
        renamed=((r"^mgp_str\.", ""), (r"^embeddings\.(proj|pos_embed)\b", r"embeds.\1")),
        left_out=r"^(?:char|bpe|wp)_(?:a3_module|head)\.",
    ),
    "janus_vision_model": Layout(((r"\.self_attn\.projection_layer\.", ".self_attn.out_proj."),)),
    "videomae": Layout(((r"\.attention\.attention\.q_bias$", ".attn.q_bias"),)),
    "timesformer": Layout(((r"\.attention\.attention\.qkv\.", ".attention.qkv."),)),
    "unlimited_ocr_vision_encoder": Layout(renamed=((r"\.qkv_proj\.", ".qkv."),)),
    "radio": Layout(RADIO, r"(?:^|\.)(?:summary_idxs$|video_embedder\.|video_patch_projection\.)", channels_first=True),
}


def resampling(kind: str, values: Mapping) -> str | None:
    """How a model type resamples its position embedding, if this differs from most other types.

    Raises:
      QkjaxError: config.json states a method that qkjax does not support for this type.
    """
    methods = STATED_RESAMPLE.get(kind)
    if methods is None:
        return RESAMPLE.get(kind)
    mode = values.get("interpolate_mode", "bilinear")
    if mode not in methods:
        raise QkjaxError(f"config.json has interpolate_mode={mode!r}, expected {' or '.join(methods)}")
    return methods[mode]


def layout_of(kind: str, values: Mapping) -> Layout:
    """The layout in which a model type stores its parameters."""
    layout = LAYOUTS.get(kind, Layout())
    if kind == "pixio":
        return layout._replace(class_tokens=int(values.get("n_cls_tokens", 8)))
    if kind == "radio":
        return layout._replace(class_tokens=int(values.get("num_cls_tokens", 3)) + int(values.get("num_registers", 7)))
    if kind == "groupvit_vision_model":
        depths = values.get("depths", (6, 3, 3))
        layers = (f"stages.{stage}.layers.{layer}." for stage, depth in enumerate(depths) for layer in range(depth))
        return Layout(renumbered(layers, "layers."))
    if kind == "mllama_vision_model":
        own, last = int(values.get("num_hidden_layers", 32)), int(values.get("num_global_layers", 8))
        layers = [f"transformer.layers.{n}." for n in range(own)]
        layers += [f"global_transformer.layers.{n}." for n in range(last)]
        return Layout(((r"\.input_layernorm\.", ".layer_norm1."), *renumbered(layers, "encoder.layers.")))
    return layout


def usual_keys(kind: str, values: Mapping) -> dict:
    """Renames the keys of a configuration to those of other model types."""
    other = OTHER_KEYS.get(kind, {})
    kept = {name: value for name, value in values.items() if name not in other}
    return kept | {other[name]: value for name, value in values.items() if name in other}
