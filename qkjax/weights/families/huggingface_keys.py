"""Classifies the keys in configurations of transformers' image models."""

import re
from typing import Any, NamedTuple

EMPTY = (None, False, 0, "", [], {})

USED = {"model_type", "num_attention_heads", "hidden_act", "layer_norm_eps", "rms_norm_eps", "image_size", "patch_size",
        "num_patches", "use_swiglu_ffn", "pruned_heads", "norm_type", "architectures", "vision_config",
        "vision_config_dict"}  # fmt: skip
VISIBLE = {"hidden_size", "num_hidden_layers", "intermediate_size", "mlp_ratio", "num_channels", "qkv_bias", "qv_bias",
           "mlp_bias", "attention_bias", "num_register_tokens", "use_absolute_position_embeddings",
           "use_relative_position_bias", "use_shared_relative_position_bias", "use_mask_token", "use_mean_pooling",
           "layer_scale_init_value", "layerscale_value", "vision_use_head", "use_head", "projection_dim", "vocab_size",
           "mlp_dim", "apply_layernorm", "is_native"}  # fmt: skip
"""Keys whose effect is visible in the parameters."""
HARMLESS = re.compile(
    r"^_|drop|init|label|^(tf_|text_|decoder_|out_|output_|stage_|pooler|auxiliary|semantic|return_|is_(?:de|en)coder|"
    r"num_(?:beam|return)|forced_|min_|max_|top_|bad_|begin_|suppress|exponential|remove_|encoder_|loss|neck_|fusion_|"
    r"qformer|vision_feature|logit_scale|image_text|image_token|query_tokens|.*_token_id$|torch|dtype|transformers_|"
    r"problem_type|finetuning|tokenizer|task_|tie_|cross_attention|add_|chunk_size|do_sample|early|temperature|typical|"
    r"repetition|length|no_repeat|diversity|prefix|return|use_bfloat16|use_cache|gradient_checkpointing|attn_impl|"
    r"use_text|use_vision|use_itm|reshape_hidden|pool_scales|norm_pix|mask_ratio|backbone_|readout|reassemble|head_in|"
    r"use_batch_norm|use_bias_in|use_auxiliary|ignore|max_logit|alpha|label_smoothing|hidden_size_|summary_|"
    r"id2|freeze|processor|auto_map|pad_)"
)
"""Keys that affect training, heads, text or generation, but not the image model."""
KNOWN = USED | VISIBLE


class Stop(NamedTuple):
    """A key that changes the image model in an unsupported way, unless the value of the key is `harmless`."""

    harmless: Any
    reason: str


STOP = {
    "use_qk_norm": Stop(False, "the model normalises queries and keys, so a head has no single matrix Wq Wk^T"),
    "is_hybrid": Stop(False, "a convolutional network computes its tokens"),
    "num_experts": Stop(1, "its MLP is a mixture of experts"),
    "num_key_value_groups": Stop(1, "several query heads share a key head"),
}
IN_MLP = {"num_experts"}
"""Keys in `STOP` that do not affect queries and keys."""
