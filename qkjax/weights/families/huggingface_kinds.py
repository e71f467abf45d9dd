"""The types of image models in transformers: the defaults of their configurations, and what qkjax can read."""

from typing import NamedTuple

from qkjax.weights.families.facts import ROTARY


class Kind(NamedTuple):
    """Default values of a configuration class of transformers, which apply if a file omits a value."""

    heads: int = 12
    activation: str = "gelu"
    norm_eps: float = 1e-12
    image: int | tuple[int, int] = 224
    patch: int = 16


CLIP = Kind(12, "quick_gelu", 1e-5, 224, 32)
SIGLIP = Kind(12, "gelu_pytorch_tanh", 1e-6, 224, 16)
BLIP_2 = Kind(16, "gelu", 1e-6, 224, 14)
INTERN = Kind(16, "gelu", 1e-6, 448, 14)
KINDS = {
    "vit": Kind(),
    "deit": Kind(),
    "ijepa": Kind(),
    "beit": Kind(),
    "data2vec-vision": Kind(),
    "vit_mae": Kind(),
    "vit_msn": Kind(norm_eps=1e-6),
    "flava_image_model": Kind(),
    "dpt": Kind(image=384),
    "dinov2": Kind(norm_eps=1e-6, patch=14),
    "dinov2_with_registers": Kind(norm_eps=1e-6),
    "dinov3_vit": Kind(6, norm_eps=1e-5),
    "pixio": Kind(16, "gelu", 1e-6, 256, 16),
    "radio": Kind(16, "gelu", 1e-6, 2048, 16),
    "tipsv2_vision_model": Kind(norm_eps=1e-6, image=448, patch=14),
    "clip_vision_model": CLIP,
    "metaclip_2_vision_model": CLIP,
    "clipseg_vision_model": CLIP,
    "chinese_clip_vision_model": CLIP,
    "altclip_vision_model": CLIP,
    "git_vision_model": Kind(12, "quick_gelu", 1e-5, 224, 16),
    "owlvit_vision_model": Kind(12, "quick_gelu", 1e-5, 768, 32),
    "owlv2_vision_model": Kind(12, "quick_gelu", 1e-5, 768, 16),
    "siglip_vision_model": SIGLIP,
    "siglip2_vision_model": SIGLIP,
    "cosmos3_edge_vision": Kind(16, "gelu_pytorch_tanh", 1e-6, 256, 16),
    "granite_docling_vision": Kind(12, "gelu_pytorch_tanh", 1e-6, 512, 16),
    "molmo2_vision": Kind(16, "gelu_pytorch_tanh", 1e-6, 378, 14),
    "phi4_multimodal_vision": Kind(16, "gelu_pytorch_tanh", 1e-6, 448, 14),
    "janus_vision_model": Kind(16, "gelu", 1e-6, 384, 16),
    "idefics_vision": Kind(16, "gelu", 1e-5, 224, 14),
    "idefics2_vision": Kind(12, "gelu_pytorch_tanh", 1e-6, 224, 32),
    "idefics3_vision": Kind(16, "gelu_pytorch_tanh", 1e-6, 224, 32),
    "smolvlm_vision": Kind(16, "gelu_pytorch_tanh", 1e-6, 224, 32),
    "blip_vision_model": Kind(12, "gelu", 1e-5, 384, 16),
    "blip_2_vision_model": BLIP_2,
    "instructblip_vision_model": BLIP_2,
    "instructblipvideo_vision_model": BLIP_2,
    "kosmos_2_vision_model": Kind(16, "quick_gelu", 1e-5, 224, 14),
    "aimv2_vision_model": Kind(8, "silu", 1e-5, 224, 14),
    "ovis2_vision": Kind(8, "silu", 1e-5, 224, 14),
    "internvl_vision": INTERN,
    "qianfan_ocr_vision": INTERN,
    "hunyuan_vl_vision": Kind(16, "gelu", 1e-5, 2048, 16),
    "hy_v4_vl_vision": Kind(16, "gelu", 1e-5, 2048, 16),
    "glm_image_vision": Kind(16, "gelu", 1e-6, 2048, 16),
    "mlcd_vision_model": Kind(16, "gelu", 1e-5, 336, 14),
    "mgp-str": Kind(12, "gelu", 1e-5, (32, 128), 4),
    "sam3_vit_model": Kind(16, "gelu", 1e-6, 336, 14),
}
SAM = Kind(12, "gelu", 1e-6, 1024, 16)
DOWNSAMPLED = "it merges patches between layers"
WINDOWS = "its attention has windows"
SAM_WINDOWS = "its attention has windows and decomposed relative positions"
VJEPA2 = (
    "its patches are patches of a video, and its rotation R(p) is not orthogonal, so that logits depend on both places "
    "and not on their offset alone; qkjax's model would need patches with a duration and one angle per column; the "
    "modes are those of Wq Wk^T, for two tokens at the first place (for the mean over places, see "
    "qkjax.interaction.rotary.by_column)"
)
EOMT_DINOV3 = (
    "its last layers also process query tokens, and it has rotary positions; the modes are those of Wq Wk^T, for two "
    "tokens at the same place"
)
WEIGHTS_ONLY = {
    "yolos": "it has detection tokens after the patches, and its middle layers add position embeddings",
    "eomt": "its last layers also process query tokens",
    "eomt_dinov3": EOMT_DINOV3,
    "videomt": "its last layers also process query tokens",
    "sam_vision_model": SAM_WINDOWS,
    "sam_hq_vision_model": SAM_WINDOWS,
    "got_ocr2_vision": SAM_WINDOWS,
    "pp_chart2table_vision": SAM_WINDOWS,
    "pp_formulanet_vision": SAM_WINDOWS,
    "slanext_vision": SAM_WINDOWS,
    "deepseek_ocr2_sam_vision_model": SAM_WINDOWS,
    "unlimited_ocr_sam_vision_model": SAM_WINDOWS,
    "unlimited_ocr_vision_encoder": "another image encoder (SAM) computes its patches",
    "vitdet": WINDOWS,
    "lw_detr_vit": WINDOWS,
    "rf_detr_dinov2": WINDOWS,
    "seggpt": "its attention has decomposed relative positions, and its input is two images",
    "audio-spectrogram-transformer": "its patches overlap",
    "vitpose_backbone": "its patch embedding pads the image",
    "videomae": "its patches are patches of a video",
    "vivit": "its patches are patches of a video",
    "timesformer": "its patches are patches of a video, and qkjax leaves out attention over time",
    "xclip_vision_model": "its layers exchange message tokens between video frames; qkjax leaves out their attention",
    "mllama_vision_model": "its input is several tiles of an image, and it has gates and embeddings for tiles",
    "minicpm_ocr_vision": DOWNSAMPLED,
    "minicpmv4_6_vision": DOWNSAMPLED,
    "minicpmv4_7_vision": DOWNSAMPLED,
    "groupvit_vision_model": "its layers also process group tokens, to which it assigns the patches between layers",
    "vilt": "its sequence contains words as well as patches",
    "vjepa2": VJEPA2,
}
"""Model types that qkjax cannot run, each with the reason. qkjax reads only their queries, keys, and the norms before
queries and keys."""
WEIGHTS_ONLY_KINDS = {
    "sam_vision_model": SAM,
    "sam_hq_vision_model": SAM,
    "got_ocr2_vision": SAM,
    "pp_chart2table_vision": SAM,
    "pp_formulanet_vision": SAM,
    "slanext_vision": SAM,
    "deepseek_ocr2_sam_vision_model": SAM,
    "unlimited_ocr_sam_vision_model": SAM,
    "unlimited_ocr_vision_encoder": Kind(16, "quick_gelu", 1e-5, 224, 14),
    "videomt": Kind(16, "gelu", 1e-6, 640, 16),
    "eomt": Kind(16, "gelu", 1e-6, 640, 16),
    "eomt_dinov3": Kind(16, norm_eps=1e-6),
    "vitdet": Kind(norm_eps=1e-6),
    "lw_detr_vit": Kind(norm_eps=1e-6),
    "rf_detr_dinov2": Kind(norm_eps=1e-6),
    "seggpt": Kind(16, norm_eps=1e-6),
    "timesformer": Kind(norm_eps=1e-6),
    "vivit": Kind(norm_eps=1e-6),
    "xclip_vision_model": CLIP,
    "mllama_vision_model": Kind(16, norm_eps=1e-5),
    "minicpm_ocr_vision": SIGLIP,
    "minicpmv4_6_vision": SIGLIP,
    "minicpmv4_7_vision": SIGLIP,
    "groupvit_vision_model": Kind(6, norm_eps=1e-5),
    "vjepa2": Kind(16, norm_eps=1e-6),
}
"""Defaults of the model types in `WEIGHTS_ONLY`, where they differ from `Kind()`; only heads and epsilon matter."""
STAGES = "it merges patches between stages, so its layers have different widths"
REFUSED = {
    "swin": f"{STAGES} (Swin)",
    "donut-swin": f"{STAGES} (Swin)",
    "clap_audio_model": f"{STAGES} (Swin)",
    "dinat": f"{STAGES} (DiNAT)",
    "swinv2": "it normalises queries and keys (cosine attention), so a head has no single matrix Wq Wk^T",
    "swin2sr": "it normalises queries and keys (cosine attention), so a head has no single matrix Wq Wk^T",
    "layoutlmv3": "its norms follow attention and MLP (post-norm): the input of attention is the residual stream",
    "udop": "its layers also process the text of a document, and it does not scale scores by 1/sqrt(head_dim)",
    "inkling_vision": "it has no attention",
    "sapiens2": "it normalises queries and keys, and several query heads share a key head",
    "dinov3_convnext": "it is a convolutional network, which has no attention",
    "dots3_note_vision_encoder": ROTARY,
    "unlimited_ocr_vision": "it has two image encoders, one after the other: load one of them with its own config.json",
    "deepseek_ocr2_vision": "it has two image encoders: SAM, followed by one with rotary position embeddings",
}
"""Model types that qkjax cannot read, each with the reason."""
TWICE = "the output is the class token after one norm, whereas this model applies its last norm twice"
OUTPUTS = {
    "aimv2_vision_model": "the output is the mean of the patches; qkjax leaves out this model's attention pooling",
    "blip_vision_model": TWICE,
    "blip_2_vision_model": TWICE,
    "instructblip_vision_model": TWICE,
    "instructblipvideo_vision_model": TWICE,
    "janus_vision_model": "the output is the mean of the patches, whereas this model returns the first patch",
    "pixio": "the output is the first class token, whereas this model's pooled output is the mean of all class tokens",
    "radio": "the output is the first class token, whereas this model's summary joins several class tokens",
    "sam3_vit_model": "the output is the mean of the patches, whereas this model returns all patches, for a neck",
    "phi4_multimodal_vision": (
        "attention is over all patches, as in transformers with attn_implementation='eager'; with 'sdpa', "
        "transformers uses causal attention"
    ),
}
"""Notes on models whose own output differs from qkjax's output, although their tokens and attention are the same."""
