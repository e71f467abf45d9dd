"""Converts the names of parameters in state dicts of torch models to big_vision's names.

Each family has a few lines in the tables. All families share the same tables, because their names do not conflict.
"""

import re
from collections.abc import Iterable

from qkjax.errors import QkjaxError, nearest
from qkjax.weights.families.big_vision_names import BLOCK

WRAPPED = ("module.", "_orig_mod.", "_forward_module.", "_fsdp_wrapped_module.", "model.", "net.", "backbone.",
           "teacher.", "student.", "ema.", "ema_model.", "module_ema.", "base_encoder.",
           "momentum_encoder.")  # fmt: skip
"""Prefixes that training code adds to the names of a model's parameters."""
PREFIXES = (*WRAPPED, "encoder.", "vit.", "deit.", "dinov2.", "dinov2_with_registers.", "ijepa.", "beit.",
            "data2vec_vision.", "vision_model.", "vision_tower.", "vision_encoder.", "image_encoder.", "blip.",
            "owlvit.", "owlv2.", "clip.", "siglip.", "dpt.", "aimv2.", "tipsv2.", "git.", "target_encoder.",
            "visual.trunk.", "visual.", "transformer.")  # fmt: skip
ATTENTION = "MultiHeadDotProductAttention_0"

TOP = {
    # Hugging Face: ViT, DINO, DeiT, MAE, DINOv2, I-JEPA, BEiT
    "embeddings.cls_token": "cls",
    "embeddings.distillation_token": "distillation",
    "embeddings.register_tokens": "registers",
    "embeddings.position_embeddings": "positions",
    "embeddings.patch_embeddings.projection": "embedding",
    "embeddings.patch_embeddings": "embedding",  # DINOv3
    "layernorm": "Transformer/encoder_norm",
    "pooler.layernorm": "pool_norm",
    "classifier": "head",
    "cls_classifier": "head",
    "distillation_classifier": "head_dist",
    # Hugging Face: CLIP, SigLIP
    "embeddings.class_embedding": "cls",
    "embeddings.position_embedding": "positions",
    "embeddings.patch_embedding": "embedding",
    "pre_layrnorm": "pre_norm",
    "post_layernorm": "Transformer/encoder_norm",
    "head.probe": "MAPHead_0/probe",
    "head.attention.in_proj": f"MAPHead_0/{ATTENTION}/qkv",
    "head.attention.out_proj": f"MAPHead_0/{ATTENTION}/out",
    "head.layernorm": "MAPHead_0/LayerNorm_0",
    "head.mlp.fc1": "MAPHead_0/MlpBlock_0/Dense_0",
    "head.mlp.fc2": "MAPHead_0/MlpBlock_0/Dense_1",
    # Hugging Face: OWL-ViT, AIMv2, InternViT
    "pre_layernorm": "pre_norm",
    "embeddings.patch_embed": "embedding",
    "embeddings.rms_norm": "patch_norm",
    "rms_norm": "Transformer/encoder_norm",
    "class_pos_emb": "class_angles",  # MLCD
    "layer_norm": "pre_norm",  # SAM 3
    # open_clip
    "class_embedding": "cls",
    "positional_embedding": "positions",
    "conv1": "embedding",
    "ln_pre": "pre_norm",
    "ln_post": "Transformer/encoder_norm",
    # timm's attention pooling
    "attn_pool.latent": "MAPHead_0/probe",
    "attn_pool.q": f"MAPHead_0/{ATTENTION}/query",
    "attn_pool.kv": f"MAPHead_0/{ATTENTION}/kv",
    "attn_pool.proj": f"MAPHead_0/{ATTENTION}/out",
    "attn_pool.norm": "MAPHead_0/LayerNorm_0",
    "attn_pool.mlp.fc1": "MAPHead_0/MlpBlock_0/Dense_0",
    "attn_pool.mlp.fc2": "MAPHead_0/MlpBlock_0/Dense_1",
    # timm, SimMIM, Meta's I-JEPA
    "cls_token": "cls",
    "dist_token": "distillation",
    "reg_token": "registers",
    "register_tokens": "registers",
    "storage_tokens": "registers",  # Meta's DINOv3
    "pos_embed": "positions",
    "patch_embed.proj": "embedding",
    "patch_embed.norm": "patch_norm",
    "embeds.cls_token": "cls",
    "embeds.reg_token": "registers",
    "embeds.pos_embed": "positions",
    "embeds.proj": "embedding",
    "norm_pre": "pre_norm",
    "norm": "Transformer/encoder_norm",
    "fc_norm": "pool_norm",
    "head": "head",
    "head_dist": "head_dist",
    "encoder.relative_position_bias.relative_position_bias_table": "relative_position_bias",
    "shared_position_bias.relative_position_bias_table": "relative_position_bias",
    "rel_pos_bias.relative_position_bias_table": "relative_position_bias",
    # C-RADIO: the model itself normalises the pixels
    "input_conditioner.norm_mean": "pixel_mean",
    "input_conditioner.norm_std": "pixel_std",
    # Meta's I-JEPA predictor: its inputs are the encoder's tokens, so its patch embedding is a 1 x 1 convolution
    "predictor_embed": "embedding",
    "predictor_pos_embed": "positions",
    "predictor_norm": "Transformer/encoder_norm",
}
IN_BLOCK = {
    # Hugging Face: ViT, DINO, DeiT, MAE, I-JEPA, BEiT (files), and the names of transformers 5
    "layernorm_before": "LayerNorm_0",
    "attention.attention.query": f"{ATTENTION}/query",
    "attention.attention.key": f"{ATTENTION}/key",
    "attention.attention.value": f"{ATTENTION}/value",
    "attention.output.dense": f"{ATTENTION}/out",
    "layernorm_after": "LayerNorm_1",
    "intermediate.dense": "MlpBlock_0/Dense_0",
    "output.dense": "MlpBlock_0/Dense_1",
    "attention.q_proj": f"{ATTENTION}/query",
    "attention.k_proj": f"{ATTENTION}/key",
    "attention.v_proj": f"{ATTENTION}/value",
    "attention.o_proj": f"{ATTENTION}/out",
    # DINOv2 (including the gated MLP of giant), BEiT; some names exist only in transformers 5
    "norm1": "LayerNorm_0",
    "norm2": "LayerNorm_1",
    "layer_scale1.lambda1": "LayerScale_0/scale",
    "layer_scale2.lambda1": "LayerScale_1/scale",
    "mlp.fc1": "MlpBlock_0/Dense_0",
    "mlp.fc2": "MlpBlock_0/Dense_1",
    "mlp.weights_in": "MlpBlock_0/Dense_0",
    "mlp.weights_out": "MlpBlock_0/Dense_1",
    "mlp.gate_proj": "MlpBlock_0/gate",
    "mlp.up_proj": "MlpBlock_0/value",
    "mlp.down_proj": "MlpBlock_0/Dense_1",
    "lambda_1": "LayerScale_0/scale",
    "lambda_2": "LayerScale_1/scale",
    "attention.attention.relative_position_bias.relative_position_bias_table": f"{ATTENTION}/relative_position_bias",
    "relative_position_bias.relative_position_bias_table": f"{ATTENTION}/relative_position_bias",
    # CLIP, SigLIP
    "layer_norm1": "LayerNorm_0",
    "layer_norm2": "LayerNorm_1",
    "self_attn.q_proj": f"{ATTENTION}/query",
    "self_attn.k_proj": f"{ATTENTION}/key",
    "self_attn.v_proj": f"{ATTENTION}/value",
    "self_attn.out_proj": f"{ATTENTION}/out",
    "self_attn.qkv": f"{ATTENTION}/qkv",  # BLIP
    "self_attn.projection": f"{ATTENTION}/out",
    "attention.projection_layer": f"{ATTENTION}/out",  # InternViT
    "rms_norm1": "LayerNorm_0",  # AIMv2
    "rms_norm2": "LayerNorm_1",
    "attention.out_proj": f"{ATTENTION}/out",
    "ffn.gate_proj": "MlpBlock_0/gate",
    "ffn.up_proj": "MlpBlock_0/value",
    "ffn.down_proj": "MlpBlock_0/Dense_1",
    "attention.qkv": f"{ATTENTION}/qkv",  # ViTDet, SegGPT
    # open_clip
    "ln_1": "LayerNorm_0",
    "ln_2": "LayerNorm_1",
    "attn.in_proj": f"{ATTENTION}/qkv",
    "attn.out_proj": f"{ATTENTION}/out",
    "mlp.c_fc": "MlpBlock_0/Dense_0",
    "mlp.c_proj": "MlpBlock_0/Dense_1",
    "ls_1.gamma": "LayerScale_0/scale",
    "ls_2.gamma": "LayerScale_1/scale",
    # timm, SimMIM, Meta's I-JEPA
    "attn.qkv": f"{ATTENTION}/qkv",
    "attn.q_proj": f"{ATTENTION}/query",
    "attn.k_proj": f"{ATTENTION}/key",
    "attn.v_proj": f"{ATTENTION}/value",
    "attn.norm": "attention_norm",
    "mlp.norm": "mlp_norm",
    "mlp.fc1_g": "MlpBlock_0/gate",
    "mlp.fc1_x": "MlpBlock_0/value",
    "attn.qkv.bias_mask": f"{ATTENTION}/qkv/bias_mask",  # Meta's DINOv3
    "mlp.w1": "MlpBlock_0/gate",
    "mlp.w2": "MlpBlock_0/value",
    "mlp.w12": "MlpBlock_0/Dense_0",  # Meta's DINOv2 giant
    "mlp.w3": "MlpBlock_0/Dense_1",
    "attn.q_bias": f"{ATTENTION}/query/bias",
    "attn.v_bias": f"{ATTENTION}/value/bias",
    "attn.proj": f"{ATTENTION}/out",
    "attn.relative_position_bias_table": f"{ATTENTION}/relative_position_bias",
    "ls1.gamma": "LayerScale_0/scale",
    "ls2.gamma": "LayerScale_1/scale",
    "gamma_1": "LayerScale_0/scale",
    "gamma_2": "LayerScale_1/scale",
}
BLOCKS = re.compile(r"(?:layers?|blocks(?:\.\d{1,3})?|resblocks|predictor_blocks)\.(\d{1,4})\.(.+)")
MODES_ONLY = re.compile(rf"{BLOCK}_\d+/(?:LayerNorm_0|{ATTENTION}/(?:query|key|qkv))/")
"""The parameters that determine the modes of a model: queries, keys and the norms before them."""
QUERY_PART = re.compile(r"[._](?:q|k|query|key)_?(?:norm|layernorm|ln)\b|[._](?:q|query)_bias\b")
"""Parameters of queries and keys. If such a parameter has no canonical name, loading fails."""
# Parts that the image encoder does not use: text towers, decoders, projections, buffers, mask tokens.
IGNORED = re.compile(
    r"(?:text_model|text_projection|visual_projection|logit_scale|logit_bias|decoder|pooler|predictor|lm_head|"
    r"cls\.predictions|decoder_\w+|text|token_embedding|ln_final|proj)\b|"
    r"head\.(?:cls_token|[kv]_proj|output_proj)\b|"  # AIMv2's pooling
    r"(?:rope_embed\.periods|local_cls_norm|projectors)\b|"  # DINOv3; the norm is for training, projectors are EUPE's
    r".*(?:mask_token|position_ids|relative_position_index|predictor_proj|k_bias).*"
)


def wrappers(names: Iterable[str]) -> str:
    """The prefix that training code has added to the names of all parameters, or "" if there is none."""
    pattern = re.compile(f"(?:{'|'.join(map(re.escape, WRAPPED))})*")
    prefixes = {pattern.match(name)[0] for name in names}
    return prefixes.pop() if len(prefixes) == 1 else ""


def canonical_name(name: str, *, strict: bool = True) -> str | None:
    """The canonical name of a parameter, which ends in kernel or bias; None if qkjax ignores the parameter.

    Args:
      name: the name in the torch model.
      strict: whether an unknown name raises an error; if False, unknown names are ignored.

    Raises:
      QkjaxError: no family has this name; the message suggests the nearest known name.
    """
    bare, shorter = name, True
    while shorter and bare not in TOP:
        cut = next((p for p in PREFIXES if bare.startswith(p)), "")
        shorter, bare = bool(cut), bare.removeprefix(cut)
    stem, _, leaf = bare.rpartition(".")
    stem, leaf = (stem, leaf) if leaf in ("weight", "bias") else (bare, "")
    if bare.endswith(("in_proj_weight", "in_proj_bias")):  # torch's nn.MultiheadAttention has no dot before the leaf
        stem, _, leaf = bare.rpartition("_")
    if block := BLOCKS.fullmatch(stem):
        ours, known = IN_BLOCK.get(block[2]), IN_BLOCK
        ours = ours and f"{BLOCK}_{block[1]}/{ours}"
    else:
        ours, known = TOP.get(stem), TOP
    if ours is None:
        if not strict or IGNORED.match(bare):
            return None
        raise QkjaxError(f"unknown parameter {name!r}, expected one of a known ViT family{nearest(stem, known)}")
    if not leaf:
        return ours
    normed = leaf == "weight" and ("norm" in ours.lower().rsplit("/", 1)[-1])
    return f"{ours}/{'scale' if normed else 'kernel' if leaf == 'weight' else 'bias'}"
