"""Every family of torch models: a small random one, saved by its own library, against that library.

Each parameter is moved away from its initial value, so that biases, norms and scales matter.
Hidden states agree to 1e-5 of their range and attention to 1e-5: float32 in another order.
"""

import json
import shutil
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import qkjax
from conftest import moved
from qkjax.images.preprocess import PRESETS, Preprocess
from qkjax.vit.model import forward
from qkjax.vit.posemb import resample
from qkjax.vit.tree import query_key_kernels
from qkjax.weights import preprocessing
from qkjax.weights.families import huggingface_kinds, timm
from qkjax.weights.families.facts import height_and_width
from qkjax.weights.formats.npz import write_npz

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import survey_transformers
import transformers_models

SMALL = {"hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 80, "image_size": 28,
         "patch_size": 7}  # fmt: skip
FAMILIES = {
    "ViT": ("ViTConfig", "ViTModel", {}),
    "ViT classifier": ("ViTConfig", "ViTForImageClassification", {"num_labels": 7}),
    "DINO": ("ViTConfig", "ViTModel", {"layer_norm_eps": 1e-3}),
    "DeiT": ("DeiTConfig", "DeiTModel", {}),
    "DeiT distilled": ("DeiTConfig", "DeiTForImageClassificationWithTeacher", {"num_labels": 7}),
    "DINOv2": ("Dinov2Config", "Dinov2Model", {"layerscale_value": 0.5}),
    "DINOv2 giant": ("Dinov2Config", "Dinov2Model", {"use_swiglu_ffn": True}),
    "DINOv2 with registers": ("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", {"num_register_tokens": 3}),
    "CLIP": ("CLIPVisionConfig", "CLIPVisionModel", {"hidden_act": "quick_gelu"}),
    "SigLIP": ("SiglipVisionConfig", "SiglipVisionModel", {}),
    "I-JEPA": ("IJepaConfig", "IJepaModel", {}),
    "BEiT": ("BeitConfig", "BeitModel", {"use_relative_position_bias": True, "layer_scale_init_value": 0.3}),
    "BEiT shared": ("BeitConfig", "BeitModel", {"use_shared_relative_position_bias": True, "use_mean_pooling": False}),
}
RADIO = {"intermediate_size": None, "max_img_size": 28, "layerscale_value": 0.5, "num_cls_tokens": 2,
         "num_registers": 3}  # fmt: skip
RECTANGLE = {"image_size": [28, 28], "patch_size": [7, 7]}
MORE = {
    "ViTMSN": ("vit_msn", "ViTMSNConfig", "ViTMSNModel", {}, "encoded"),
    "Data2Vec": ("data2vec_vision", "Data2VecVisionConfig", "Data2VecVisionModel", {"use_relative_position_bias": True},
                 "encoded"),
    "MetaCLIP 2": ("metaclip_2", "MetaClip2VisionConfig", "MetaClip2VisionModel", {}, "pooled"),
    "CLIPSeg": ("clipseg", "CLIPSegVisionConfig", "CLIPSegVisionModel", {}, "pooled"),
    "Chinese CLIP": ("chinese_clip", "ChineseCLIPVisionConfig", "ChineseCLIPVisionModel", {}, "pooled"),
    "AltCLIP": ("altclip", "AltCLIPVisionConfig", "AltCLIPVisionModel", {}, "pooled"),
    "GIT": ("git", "GitVisionConfig", "GitVisionModel", {}, "encoded"),
    "DPT": ("dpt", "DPTConfig", "DPTModel", {"backbone_out_indices": [0, 1], "neck_hidden_sizes": [8, 8, 8, 8]},
            "encoded"),
    "BLIP": ("blip", "BlipVisionConfig", "BlipVisionModel", {}, "encoded"),
    "BLIP-2": ("blip_2", "Blip2VisionConfig", "Blip2VisionModel", {}, "encoded"),
    "InstructBLIP": ("instructblip", "InstructBlipVisionConfig", "InstructBlipVisionModel", {}, "encoded"),
    "OWL-ViT": ("owlvit", "OwlViTVisionConfig", "OwlViTVisionModel", {}, "pooled"),
    "OWLv2": ("owlv2", "Owlv2VisionConfig", "Owlv2VisionModel", {}, "pooled"),
    "AIMv2": ("aimv2", "Aimv2VisionConfig", "Aimv2VisionModel", {}, "encoded"),
    "InternViT": ("internvl", "InternVLVisionConfig", "InternVLVisionModel", RECTANGLE, "encoded"),
    "TIPSv2": ("tipsv2", "Tipsv2VisionConfig", "Tipsv2VisionModel", {"intermediate_size": None}, "both"),
    "SigLIP 2 NaFlex": ("siglip2", "Siglip2VisionConfig", "Siglip2VisionModel", {"image_size": None, "num_patches": 16},
                        "both"),
    "Idefics2": ("idefics2", "Idefics2VisionConfig", "Idefics2VisionTransformer", {}, "encoded"),
    "Idefics3": ("idefics3", "Idefics3VisionConfig", "Idefics3VisionTransformer", {}, "encoded"),
    "Idefics": ("idefics", "IdeficsVisionConfig", "IdeficsVisionTransformer", {"hidden_size": None, "embed_dim": 48},
                "pooled"),
    "SmolVLM": ("smolvlm", "SmolVLMVisionConfig", "SmolVLMVisionTransformer", {}, "encoded"),
    "Kosmos-2": ("kosmos2", "Kosmos2VisionConfig", "Kosmos2VisionModel", {}, "pooled"),
    "InstructBLIP for videos": ("instructblipvideo", "InstructBlipVideoVisionConfig", "InstructBlipVideoVisionModel",
                                {}, "encoded"),
    "FLAVA": ("flava", "FlavaImageConfig", "FlavaImageModel", {}, "encoded"),
    "Janus": ("janus", "JanusVisionConfig", "JanusVisionModel", {"intermediate_size": None, "depth": 3}, "encoded"),
    "Pixio": ("pixio", "PixioConfig", "PixioModel", {"intermediate_size": None, "n_cls_tokens": 5}, "encoded"),
    "C-RADIO": ("radio", "RadioConfig", "RadioModel", RADIO, "encoded"),
    "C-RADIO with a gated MLP": ("radio", "RadioConfig", "RadioModel", RADIO | {"use_swiglu_ffn": True}, "encoded"),
    "Qianfan-OCR": ("qianfan_ocr", "QianfanOCRVisionConfig", "QianfanOCRVisionModel", RECTANGLE, "encoded"),
    "Qianfan-OCR with a last norm": ("qianfan_ocr", "QianfanOCRVisionConfig", "QianfanOCRVisionModel",
                                     RECTANGLE | {"use_mean_pooling": False}, "encoded"),
    "Ovis2": ("ovis2", "Ovis2VisionConfig", "Ovis2VisionModel", {"vocab_size": 30}, "encoded"),
    "Phi-4": ("phi4_multimodal", "Phi4MultimodalVisionConfig", "Phi4MultimodalVisionModel", {}, "both"),
    "Granite Docling": ("granite_docling", "GraniteDoclingVisionConfig", "GraniteDoclingVisionModel",
                        {"deepstack_visual_indexes": [0, 1], "scale_factor": 2}, "encoded"),
    "Molmo 2": ("molmo2", "Molmo2VisionConfig", "Molmo2VisionModel",
                {"image_size": [28, 28], "head_dim": 16, "num_key_value_heads": 4}, "both"),
    "Cosmos 3 Edge": ("cosmos3_edge", "Cosmos3EdgeVisionConfig", "Cosmos3EdgeVisionModel",
                      {"image_size": None, "num_patches": 16}, "encoded"),
    "HunYuan-VL": ("hunyuan_vl", "HunYuanVLVisionConfig", "HunYuanVLVisionTransformer",
                   {"image_size": None, "max_image_size": 28, "text_hidden_size": 16}, "encoded"),
    "HY-V4-VL": ("hy_v4_vl", "HYV4VLVisionConfig", "HYV4VLVisionModel",
                 {"image_size": None, "max_image_size": 28, "out_hidden_size": 16}, "encoded"),
    "GLM-Image": ("glm_image", "GlmImageVisionConfig", "GlmImageVisionModel", {}, "encoded"),
    "MGP-STR": ("mgp_str", "MgpstrConfig", "MgpstrModel", {"intermediate_size": None, "image_size": [28, 28]},
                "encoded"),
}  # fmt: skip
"""Module, classes and options; and which of the model's outputs is compared, besides tokens and attention."""
SAM = {"intermediate_size": None, "output_channels": 8, "window_size": 2, "global_attn_indexes": [1], "mlp_dim": 80}
WEIGHTS_ONLY = {
    "YOLOS": ("yolos", "YolosConfig", "YolosModel", {"image_size": [28, 28]}, "detection tokens"),
    "EoMT": ("eomt", "EomtConfig", "EomtForUniversalSegmentation",
             {"num_blocks": 1, "num_queries": 3, "intermediate_size": None}, "query tokens"),
    "EoMT on DINOv3": ("eomt_dinov3", "EomtDinov3Config", "EomtDinov3ForUniversalSegmentation",
                       {"num_blocks": 1, "num_queries": 3}, "query tokens, and it has rotary positions"),
    "SAM": ("sam", "SamVisionConfig", "SamVisionModel",
            {"output_channels": 8, "window_size": 2, "global_attn_indexes": [1]}, "windows"),
    "ViTDet": ("vitdet", "VitDetConfig", "VitDetModel",
               {"intermediate_size": None, "window_size": 2, "window_block_indices": [0],
                "use_relative_position_embeddings": True}, "windows"),
    "SegGPT": ("seggpt", "SegGptConfig", "SegGptModel",
               {"intermediate_size": None, "image_size": [56, 28], "pretrain_image_size": 28, "merge_index": 0,
                "intermediate_hidden_state_indices": [0, 1]}, "decomposed relative positions"),
    "AST": ("audio_spectrogram_transformer", "ASTConfig", "ASTModel",
            {"image_size": None, "max_length": 32, "num_mel_bins": 32}, "overlap"),
    "ViViT": ("vivit", "VivitConfig", "VivitModel", {"tubelet_size": [2, 7, 7], "num_frames": 4}, "video"),
    "VideoMAE": ("videomae", "VideoMAEConfig", "VideoMAEModel", {"num_frames": 4}, "video"),
    "VidEoMT": ("videomt", "VideomtConfig", "VideomtForUniversalSegmentation",
                {"num_blocks": 1, "num_queries": 3, "intermediate_size": None}, "query tokens"),
    "TimeSformer": ("timesformer", "TimesformerConfig", "TimesformerModel", {"num_frames": 2}, "attention over time"),
    "X-CLIP": ("x_clip", "XCLIPVisionConfig", "XCLIPVisionModel", {"num_frames": 2}, "message tokens"),
    "ViLT": ("vilt", "ViltConfig", "ViltModel", {}, "words"),
    "GroupViT": ("groupvit", "GroupViTVisionConfig", "GroupViTVisionModel",
                 {"depths": [1, 1], "num_group_tokens": [4, 0], "num_output_groups": [4, 4]}, "group tokens"),
    "ViTPose": ("vitpose_backbone", "VitPoseBackboneConfig", "VitPoseBackbone",
                {"image_size": [28, 28], "intermediate_size": None}, "pads"),
    "ViTPose+": ("vitpose_backbone", "VitPoseBackboneConfig", "VitPoseBackbone",
                 {"image_size": [28, 28], "intermediate_size": None, "num_experts": 2, "part_features": 8}, "pads"),
    "Llama 3.2 Vision": ("mllama", "MllamaVisionConfig", "MllamaVisionModel",
                         {"num_hidden_layers": 1, "num_attention_heads": None, "attention_heads": 4,
                          "num_global_layers": 1, "intermediate_layers_indices": [0]}, "tiles"),
    "MiniCPM-OCR": ("minicpm_ocr", "MiniCPMOcrVisionConfig", "MiniCPMOcrVisionModel", {"insert_layer_id": 0}, "merges"),
    "MiniCPM-V 4.6": ("minicpmv4_6", "MiniCPMV4_6VisionConfig", "MiniCPMV4_6VisionModel", {"insert_layer_id": 0},
                      "merges"),
    "MiniCPM-V 4.7": ("minicpmv4_7", "MiniCPMV4_7VisionConfig", "MiniCPMV4_7VisionModel", {"insert_layer_id": 0},
                      "merges"),
    "SAM-HQ": ("sam_hq", "SamHQVisionConfig", "SamHQVisionModel", SAM, "windows"),
    "GOT-OCR2": ("got_ocr2", "GotOcr2VisionConfig", "GotOcr2VisionEncoder", SAM, "windows"),
    "SLANeXt": ("slanext", "SLANeXtVisionConfig", "SLANeXtVisionEncoder", SAM, "windows"),
    "PP-FormulaNet": ("pp_formulanet", "PPFormulaNetVisionConfig", "PPFormulaNetVisionModel",
                      SAM | {"post_conv_in_channels": 8}, "windows"),
    "SAM of DeepSeek-OCR 2": ("deepseek_ocr2", "DeepseekOcr2SamVisionConfig", "DeepseekOcr2SamVisionEncoder",
                              SAM | {"downsample_channels": [8, 8]}, "windows"),
    "SAM of Unlimited-OCR": ("unlimited_ocr", "UnlimitedOcrSamVisionConfig", "UnlimitedOcrSamVisionEncoder",
                             SAM | {"downsample_channels": [8, 8]}, "windows"),
    "Unlimited-OCR": ("unlimited_ocr", "UnlimitedOcrVisionEncoderConfig", "UnlimitedOcrVisionEncoder", {},
                      "another image encoder"),
    "LW-DETR": ("lw_detr", "LwDetrViTConfig", "LwDetrViTBackbone",
                {"image_size": 56, "pretrain_image_size": 28, "num_windows": 4, "window_block_indices": [0],
                 "intermediate_size": None}, "windows"),
    "RF-DETR": ("rf_detr", "RfDetrDinov2Config", "RfDetrDinov2Backbone",
                {"num_windows": 2, "out_indices": [1, 2], "intermediate_size": None}, "windows"),
}  # fmt: skip
"""Module, classes and options; and a part of the reason."""
MAE = ("ViTMAEConfig", "ViTMAEForPreTraining", {"decoder_num_hidden_layers": 1, "mask_ratio": 0.0})


def random_model(torch, transformers, family: str):
    torch.manual_seed(0)
    config, model, options = {**FAMILIES, "MAE": MAE}[family]
    config = getattr(transformers, config)(**SMALL, **options, attn_implementation="eager")
    return moved(getattr(transformers, model)(config))


def assert_close(ours, theirs, tolerance=1e-5):
    theirs = theirs.detach().numpy()
    np.testing.assert_allclose(ours, theirs, atol=tolerance * max(np.abs(theirs).max(), 1))


@pytest.mark.parametrize("family", FAMILIES)
def test_family_agrees_with_transformers(torch, transformers, family, tmp_path):
    model = random_model(torch, transformers, family)
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    wanted = model(images, output_hidden_states=True, output_attentions=True)
    output, seen = forward(
        qkjax.ViT(checkpoint.config), checkpoint.params, images.numpy().transpose(0, 2, 3, 1), ("residual", "attention")
    )
    for layer in range(3):
        assert_close(seen["residual"][layer], wanted.hidden_states[layer])
        assert_close(seen["attention"][layer], wanted.attentions[layer])
    if "logits" in wanted:
        assert_close(output, wanted.logits)
    elif family == "CLIP":
        assert_close(output, wanted.pooler_output)
    elif family == "SigLIP":
        assert_close(seen["encoded"], wanted.last_hidden_state)
        assert_close(output, wanted.pooler_output)
    else:
        assert_close(seen["encoded"], wanted.last_hidden_state)


def more_random(torch, module: str, config: str, model: str, options: dict, **changed):
    """A small random model of transformers by the names of its module and classes; skips one that is not installed."""
    folder = f"transformers.models.{module.removesuffix('_vision')}"
    file = "vision" if module == "idefics" else f"modeling_{module}"
    try:
        kinds = [
            getattr(import_module(f"{folder}.{file}"), name)
            for file, name in ((f"configuration_{module}", config), (file, model))
        ]
    except (ImportError, AttributeError):
        pytest.skip(f"this transformers has no {model}")
    sizes = {k: v for k, v in {**SMALL, "num_hidden_layers": 2, **options, **changed}.items() if v is not None}
    torch.manual_seed(0)
    settings = kinds[0](**sizes)
    settings._attn_implementation = "eager"
    result = kinds[1](settings).eval()
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            large = name.endswith("_proj.weight") and parameter.std() > 0.5  # scores of hundreds: Phi-4
            parameter.copy_(parameter.nan_to_num() * (0.2 if large else 1) + 0.1 * torch.randn_like(parameter))
    return result


def outputs_of(torch, model, images):
    """The outputs of a model of `MORE`, patches row by row. Some take patches, and some more than one image."""
    kind, (rows, columns) = model.config.model_type, (side // 7 for side in images.shape[2:])
    given = transformers_models.inputs(kind, images, (7, 7))
    if kind not in ("idefics_vision", *transformers_models.PACKED):
        given |= {"output_hidden_states": True, "output_attentions": True}
    with survey_transformers.entering(model) as states:
        outputs = model(**given)

    def ordered(tokens):
        rows_first = transformers_models.by_rows(kind, tokens, len(images), (rows, columns))
        return torch.from_numpy(np.ascontiguousarray(rows_first))

    return SimpleNamespace(
        hidden_states=[ordered(state) for state in states],
        attentions=outputs.get("attentions"),
        last_hidden_state=ordered(outputs["last_hidden_state"]),
        pooler_output=outputs.get("pooler_output"),
    )


@pytest.mark.parametrize("pixels", [(28, 28), (21, 35), (56, 42)], ids=str)
def test_naflex_at_other_sizes_and_in_googles_layout(torch, transformers, pixels, tmp_path):
    """Google's npz has a dense patch embedding and a table of n x n positions; its other names are big_vision's."""
    model = more_random(torch, *MORE["SigLIP 2 NaFlex"][:-1])
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    flat = {name: np.asarray(value) for name, value in flatten_dict(checkpoint.params, sep="/").items()}
    width = checkpoint.config.width
    flat |= {
        "embedding/kernel": flat["embedding/kernel"].reshape(-1, width),
        "pos_embedding": flat["pos_embedding"].reshape(4, 4, width),
    }
    np.savez(tmp_path / "google.npz", **{f"params/img/{name}": array for name, array in flat.items()})
    google = qkjax.load(f"{tmp_path / 'google.npz'}:img")
    assert google.config == checkpoint.config
    images = torch.randn(2, 3, *pixels)
    with torch.no_grad():
        wanted = outputs_of(torch, model, images)
    output, seen = qkjax.forward(google, images.numpy().transpose(0, 2, 3, 1), ("residual",))
    assert_close(seen["residual"][1], wanted.hidden_states[1])
    assert_close(output, wanted.pooler_output)


@pytest.mark.parametrize("family", MORE)
def test_more_families_agree_with_transformers(torch, transformers, family, tmp_path):
    *names, compared = MORE[family]
    model = more_random(torch, *names)
    transformers_models.save(model, str(tmp_path))
    checkpoint = qkjax.load(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    with torch.no_grad():
        wanted = outputs_of(torch, model, images)
    output, seen = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1), ("residual", "attention"))
    for layer in range(2):
        assert_close(seen["residual"][layer], wanted.hidden_states[layer])
        if wanted.attentions:
            assert_close(seen["attention"][layer], wanted.attentions[layer])
    if compared in ("encoded", "both"):
        assert_close(seen["encoded"], wanted.last_hidden_state)
    if compared in ("pooled", "both"):
        assert_close(output, wanted.pooler_output)


@pytest.mark.parametrize("family", ["BLIP", "BLIP-2", "InstructBLIP", "AIMv2", "Janus", "Pixio", "C-RADIO"])
def test_outputs_that_differ_from_transformers_are_noted(torch, transformers, family, tmp_path):
    """The tokens agree, but the pooled output of these models is not ours."""
    more_random(torch, *MORE[family][:-1]).save_pretrained(tmp_path)
    assert any(note.startswith("the output is the ") for note in qkjax.load(tmp_path).notes)


SIZES = ("SmolVLM", "Idefics2", "Idefics3", "Phi-4", "Pixio", "C-RADIO", "Cosmos 3 Edge", "HunYuan-VL", "HY-V4-VL",
         "GLM-Image", "FLAVA", "Janus", "Granite Docling", "Idefics")  # fmt: skip


@pytest.mark.parametrize("family", SIZES)
def test_more_families_at_other_sizes(torch, transformers, family, tmp_path):
    """Positions on a larger grid that is not square, and on a smaller one."""
    model = more_random(torch, *MORE[family][:-1])
    transformers_models.save(model, str(tmp_path))
    checkpoint = qkjax.load(tmp_path)
    embeddings = getattr(model, "embeddings", None)
    for pixels in ((56, 42), (28, 70), (14, 14)):
        images = torch.randn(2, 3, *pixels)
        _, seen = qkjax.forward(checkpoint, images.numpy().transpose(0, 2, 3, 1), ("residual",))
        with torch.no_grad():
            if family in ("FLAVA", "Janus", "Granite Docling", "Idefics"):
                wanted = embeddings(images, interpolate_pos_encoding=True)
                wanted = model.pre_layrnorm(wanted) if family == "Idefics" else wanted
            else:
                wanted = outputs_of(torch, model, images).hidden_states[0]
        assert_close(seen["residual"][0], wanted)


@pytest.mark.parametrize("old", [26, 32, 70])
def test_nearest_positions_of_real_grids(torch, old):
    """Idefics 2 rounds in float32; the grids of the released models keep their own order."""
    table = np.arange(old, dtype=np.float32).reshape(1, old, 1)
    for new in (old, 7, 49, 82, 98):
        boundaries = torch.arange(1 / old, 1.0, 1 / old)
        fractions = torch.clamp(torch.arange(new, dtype=torch.float32) * (1.0 / torch.tensor(new)), max=1 - 1e-6)
        wanted = torch.bucketize(fractions, boundaries, right=True)
        np.testing.assert_array_equal(resample(table, (old, 1), (new, 1), "nearest")[0, :, 0], wanted)


def test_radio_normalises_its_pixels_itself(torch, transformers, tmp_path):
    """Its preset has pixels in 0..1; a number of class tokens that differs from config.json is an error."""
    more_random(torch, *MORE["C-RADIO"][:-1]).save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    assert (checkpoint.preprocess.mean, checkpoint.preprocess.std) == ((0, 0, 0), (1, 1, 1))
    assert (checkpoint.config.class_token, checkpoint.config.registers, checkpoint.config.final_norm) == (
        True,
        4,
        False,
    )
    config = tmp_path / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"num_registers": 4}))
    with pytest.raises(qkjax.QkjaxError, match="the parameters have 5 class tokens, expected 6"):
        qkjax.load(tmp_path)


def test_stated_resampling(torch, transformers, tmp_path):
    """Torch's bicubic with a shifted scale changes positions even at their own size; it is not supported."""
    *names, options, _ = MORE["HunYuan-VL"]
    more_random(torch, *names, options | {"interpolate_mode": "bicubic"}).save_pretrained(tmp_path / "hunyuan")
    assert qkjax.load(tmp_path / "hunyuan").config.posemb_resample == "bicubic"
    *names, options, _ = MORE["HY-V4-VL"]
    more_random(torch, *names, options | {"interpolate_mode": "bicubic"}).save_pretrained(tmp_path / "hy")
    with pytest.raises(qkjax.QkjaxError, match=r"config\.json has interpolate_mode='bicubic', expected bilinear"):
        qkjax.load(tmp_path / "hy")


def test_parts_after_the_layers_are_noted(torch, transformers, tmp_path):
    """Connectors of language models, and heads of a whole model."""
    for family in ("Ovis2", "Granite Docling", "HunYuan-VL"):
        more_random(torch, *MORE[family][:-1]).save_pretrained(tmp_path / family)
        assert any(note.startswith("left out, because they are") for note in qkjax.load(tmp_path / family).notes)
    options = {"intermediate_size": None, "image_size": [28, 28], "num_bpe_labels": 20, "num_wordpiece_labels": 20}
    whole = more_random(torch, "mgp_str", "MgpstrConfig", "MgpstrForSceneTextRecognition", options)
    whole.save_pretrained(tmp_path / "whole")
    whole.mgp_str.save_pretrained(tmp_path / "part")
    first, second = (qkjax.load(tmp_path / name) for name in ("whole", "part"))
    np.testing.assert_array_equal(first.params["pos_embedding"], second.params["pos_embedding"])
    assert "left out" in first.notes[0] and not second.notes[:-1]


def test_image_model_of_a_whole_flava_and_an_older_name_of_a_type(torch, transformers, tmp_path):
    """FLAVA's configuration has `image_config`; in older files, the type of an image tower is that of the whole."""
    from safetensors.torch import load_file, save_file

    wholes = {
        "FLAVA": ("flava.image_model.", lambda own: {"model_type": "flava", "image_config": own}),
        "Idefics2": ("model.vision_model.",
                     lambda own: {"model_type": "idefics2", "vision_config": own | {"model_type": "idefics2"}}),
    }  # fmt: skip
    for family, (prefix, config) in wholes.items():
        part, whole = tmp_path / family, tmp_path / f"whole {family}"
        more_random(torch, *MORE[family][:-1]).save_pretrained(part)
        whole.mkdir()
        state = {f"{prefix}{name}": value for name, value in load_file(part / "model.safetensors").items()}
        state["flava.text_model.encoder.layer.0.attention.attention.query.weight"] = torch.zeros(8, 8)
        save_file(state, whole / "model.safetensors")
        (whole / "config.json").write_text(json.dumps(config(json.loads((part / "config.json").read_text()))))
        first, second = (qkjax.load(path) for path in (part, whole))
        assert first.config == second.config
        assert not any("is unknown" in note for note in second.notes)
        np.testing.assert_array_equal(first.params["pos_embedding"], second.params["pos_embedding"])


@pytest.mark.parametrize(("kind", "reason"), huggingface_kinds.REFUSED.items())
def test_types_that_are_refused_by_name(kind, reason, tmp_path):
    from safetensors.numpy import save_file

    save_file(timm_state(), tmp_path / "model.safetensors")
    for config in ({"model_type": kind}, {"model_type": "any", "vision_config": {"model_type": kind}}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(qkjax.QkjaxError) as caught:
            qkjax.load(tmp_path)
        assert f"config.json is for {kind}: {reason}" in str(caught.value)


def test_unknown_type_with_an_unknown_key(tmp_path):
    from safetensors.numpy import save_file

    save_file(timm_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "new_vit", "depth": 3, "num_attention_heads": 4}')
    with pytest.raises(qkjax.QkjaxError, match="new_vit, an unknown model type, and has depth=3, an unknown key"):
        qkjax.load(tmp_path)


@pytest.mark.parametrize("kind", [*huggingface_kinds.KINDS, *huggingface_kinds.WEIGHTS_ONLY])
def test_defaults_are_those_of_transformers(torch, transformers, kind):
    """For values that a file omits."""
    mapping = import_module("transformers.models.auto.configuration_auto").CONFIG_MAPPING
    if kind not in mapping:
        pytest.skip(f"this transformers has no {kind}")
    theirs = mapping[kind]()

    def stated(*names: str):
        return next((getattr(theirs, name) for name in names if getattr(theirs, name, None) is not None), None)

    is_run = kind in huggingface_kinds.KINDS
    table = huggingface_kinds.KINDS if is_run else huggingface_kinds.WEIGHTS_ONLY_KINDS
    ours = table.get(kind, huggingface_kinds.Kind())
    assert ours.heads == stated("num_attention_heads")
    assert ours.norm_eps == stated("layer_norm_eps", "rms_norm_eps", "norm_eps")
    if is_run:
        assert ours.activation == stated("hidden_act") or kind == "mgp-str"
        if size := stated("pretrain_image_size", "max_img_size", "max_image_size", "image_size"):
            assert height_and_width(ours.image) == height_and_width(size)
        assert height_and_width(ours.patch) == height_and_width(stated("patch_size"))


def query_and_key_weights(model) -> list[tuple[np.ndarray, np.ndarray]]:
    """Float64 query and key weights (out, in) of each layer, from separate or fused parameters."""
    state = {
        name: value.detach().double().numpy()
        for name, value in model.state_dict().items()
        if not survey_transformers.OTHER_ATTENTION.search(name)
    }
    fused = [value for name, value in state.items() if name.endswith(".qkv.weight")]
    if fused:
        return [tuple(np.split(value, 3)[:2]) for value in fused]
    ends = ((".query.weight", ".q_proj.weight"), (".key.weight", ".k_proj.weight"))
    query, key = ([value for name, value in state.items() if name.endswith(end)] for end in ends)
    return list(zip(query, key, strict=True))


def query_biases(model) -> list[np.ndarray]:
    """The query biases of each layer, from separate or fused parameters; none if there are none."""
    state = {
        name: value.detach().numpy()
        for name, value in model.state_dict().items()
        if not survey_transformers.OTHER_ATTENTION.search(name)
    }
    fused = [np.split(value, 3)[0] for name, value in state.items() if name.endswith(".qkv.bias")]
    return fused or [value for name, value in state.items() if name.endswith((".query.bias", ".q_proj.bias"))]


def test_query_parameters_that_weights_only_would_drop_are_refused(torch, transformers, tmp_path):
    """A norm of the queries is an error, and so are two models in one file."""
    from safetensors.torch import load_file, save_file

    more_random(torch, *WEIGHTS_ONLY["ViTDet"][:-1]).save_pretrained(tmp_path)
    state = load_file(tmp_path / "model.safetensors")
    name = next(name for name in state if name.endswith("qkv.weight"))
    for added, match in (
        (
            name.replace("qkv.weight", "q_norm.weight"),
            r"unknown parameter '.*q_norm.weight', expected queries and keys",
        ),
        (
            f"encoder.{name}" if not name.startswith("encoder.") else f"net.{name}",
            "two parameters have the same name",
        ),
    ):
        save_file(state | {added: state[name].clone()}, tmp_path / "model.safetensors")
        with pytest.raises(qkjax.QkjaxError, match=match):
            qkjax.load(tmp_path)


@pytest.mark.parametrize("family", WEIGHTS_ONLY)
def test_modes_of_models_that_cannot_be_run(torch, transformers, family, tmp_path):
    """Singular values and reconstruction of Wq Wk^T of every head, against a dense SVD in float64."""
    *names, reason = WEIGHTS_ONLY[family]
    model = more_random(torch, *names)
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    assert reason in checkpoint.config.weights_only
    assert f"qkjax reads only queries and keys: {checkpoint.config.weights_only}" in checkpoint.notes
    modes, pairs = qkjax.decompose(checkpoint), query_and_key_weights(model)
    assert (checkpoint.config.depth, checkpoint.config.heads, len(pairs)) == (2, 4, 2)
    for layer, (query, key) in enumerate(pairs):
        for head in range(4):
            m = query[12 * head :][:12].T @ key[12 * head :][:12]
            u, s, v = (np.asarray(x[layer, head], np.float64) for x in modes)
            np.testing.assert_allclose(s, np.linalg.svd(m, compute_uv=False)[:12], atol=1e-6 * s[0])
            np.testing.assert_allclose((u * s) @ v.T, m, atol=1e-6 * s[0])
    for layer, bias in enumerate(query_biases(model)):
        block = checkpoint.params["Transformer"][f"encoderblock_{layer}"]["MultiHeadDotProductAttention_0"]
        np.testing.assert_allclose(np.asarray(block["query"]["bias"]).reshape(-1), bias, rtol=1e-6)
    with pytest.raises(qkjax.QkjaxError, match="this model cannot be run on images"):
        qkjax.forward(checkpoint, np.zeros((1, 28, 28, 3), np.float32))


@pytest.mark.parametrize("family", [*FAMILIES, "MAE"])
def test_names_in_files_and_in_memory(torch, transformers, family, tmp_path):
    """`save_pretrained` keeps the names that the hub's files have; a `state_dict` of transformers 5 has others."""
    import jax
    from safetensors.torch import save_file

    model = random_model(torch, transformers, family)
    model.save_pretrained(tmp_path / "files")
    (tmp_path / "memory").mkdir()
    save_file({n: v.contiguous() for n, v in model.state_dict().items()}, tmp_path / "memory" / "model.safetensors")
    shutil.copy(tmp_path / "files" / "config.json", tmp_path / "memory")
    files, memory = (qkjax.load(tmp_path / name) for name in ("files", "memory"))
    assert files.config == memory.config
    jax.tree.map(np.testing.assert_array_equal, files.params, memory.params)
    (tmp_path / "memory" / "config.json").unlink()
    alone = qkjax.load(tmp_path / "memory", heads=4)
    assert (alone.config.activation, alone.config.mlp_dim) == (files.config.activation, files.config.mlp_dim)


@pytest.mark.parametrize("family", ["ViT", "DeiT", "CLIP", "SigLIP", "I-JEPA", "DINOv2", "DINOv2 with registers"])
def test_other_sizes_agree_with_transformers(torch, transformers, family, tmp_path):
    """Position embeddings resampled to a larger grid that is not square, and to a smaller one."""
    model = random_model(torch, transformers, family)
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    for pixels in ((56, 42), (21, 21)):
        images = torch.randn(1, 3, *pixels)
        wanted = model(images) if "DINOv2" in family else model(images, interpolate_pos_encoding=True)
        output, seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images.numpy().transpose(0, 2, 3, 1))
        if family == "CLIP":
            assert_close(output, wanted.pooler_output)
        else:
            assert_close(seen["encoded"], wanted.last_hidden_state)


def test_image_that_is_not_square(torch, transformers, tmp_path):
    """16 tokens of 2 x 8 patches, as config.json says, not of 4 x 4."""
    torch.manual_seed(0)
    model = transformers.ViTModel(transformers.ViTConfig(**(SMALL | {"image_size": [14, 56]}))).eval()
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    assert checkpoint.config.grid == (2, 8)
    images = torch.randn(1, 3, 14, 56)
    _, seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images.numpy().transpose(0, 2, 3, 1))
    assert_close(seen["encoded"], model(images).last_hidden_state)


def test_rotary_models_of_transformers_are_refused(torch, transformers, tmp_path):
    transformers.PixtralVisionModel(transformers.PixtralVisionConfig(**SMALL)).save_pretrained(tmp_path)
    with pytest.raises(qkjax.QkjaxError, match="rotary position embeddings: a head has no single matrix"):
        qkjax.load(tmp_path)


def test_masked_autoencoder_without_mask(torch, transformers, tmp_path):
    """The pre-training file, decoder and all; unmasked tokens kept in their order."""
    model = random_model(torch, transformers, "MAE")
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    wanted = model.vit(images, noise=torch.arange(16.0).repeat(2, 1)).last_hidden_state
    checkpoint = qkjax.load(tmp_path)
    _, seen = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images.numpy().transpose(0, 2, 3, 1))
    assert_close(seen["encoded"], wanted)


@pytest.mark.parametrize("kind", ["CLIP", "Siglip"])
def test_image_tower_of_a_whole_model(torch, transformers, kind, tmp_path):
    """Hub files hold the text tower too, and config.json holds both."""
    torch.manual_seed(0)
    text = {
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 99,
    }
    config = getattr(transformers, f"{kind}Config")(vision_config=SMALL, text_config=text)
    model = getattr(transformers, f"{kind}Model")(config).eval()
    model.save_pretrained(tmp_path)
    images = torch.randn(2, 3, 28, 28)
    checkpoint = qkjax.load(tmp_path)
    output, _ = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images.numpy().transpose(0, 2, 3, 1))
    assert_close(output, model.vision_model(images).pooler_output)


def test_rotary_positions_are_refused(tmp_path):
    from safetensors.numpy import save_file

    save_file({n: v for n, v in timm_state().items() if n != "pos_embed"}, tmp_path / "x.safetensors")
    with pytest.raises(qkjax.QkjaxError, match="the parameters have no position embedding"):
        qkjax.load(tmp_path / "x.safetensors", heads=4)


@pytest.mark.parametrize("family", [*FAMILIES, "MAE"])
def test_interaction_is_that_of_the_torch_weights(torch, transformers, family, tmp_path):
    model = random_model(torch, transformers, family)
    model.save_pretrained(tmp_path)
    state = {n: v.double().numpy() for n, v in model.state_dict().items() if not n.startswith("decoder")}
    names = {
        end: sorted(n for n in state if n.endswith(f"{end}.weight")) for end in ("q_proj", "k_proj", "query", "key")
    }
    query, key = (names[a] or names[b] for a, b in (("q_proj", "query"), ("k_proj", "key")))
    modes = qkjax.decompose(qkjax.load(tmp_path))
    for layer in range(3):
        for head in range(4):
            rows = slice(12 * head, 12 * head + 12)
            m = state[query[layer]][rows].T @ state[key[layer]][rows]
            u, s, v = (np.asarray(x[layer, head], np.float64) for x in modes)
            np.testing.assert_allclose((u * s) @ v.T, m, atol=1e-6 * s[0])


def timm_state(layers: int = 2, width: int = 48, prefix: int = 1) -> dict[str, np.ndarray]:
    """Names and shapes of timm's VisionTransformer."""
    rng = np.random.default_rng(0)
    block = {
        "norm1.weight": (width,), "norm1.bias": (width,), "attn.qkv.weight": (3 * width, width),
        "attn.qkv.bias": (3 * width,), "attn.proj.weight": (width, width), "attn.proj.bias": (width,),
        "ls1.gamma": (width,), "norm2.weight": (width,), "norm2.bias": (width,), "mlp.fc1.weight": (80, width),
        "mlp.fc1.bias": (80,), "mlp.fc2.weight": (width, 80), "mlp.fc2.bias": (width,), "ls2.gamma": (width,),
    }  # fmt: skip
    shapes = {
        "cls_token": (1, 1, width), "pos_embed": (1, 16 + prefix, width), "patch_embed.proj.weight": (width, 3, 7, 7),
        "patch_embed.proj.bias": (width,), "norm.weight": (width,), "norm.bias": (width,), "head.weight": (5, width),
        "head.bias": (5,), **{f"blocks.{i}.{n}": s for i in range(layers) for n, s in block.items()},
    }  # fmt: skip
    return {name: rng.standard_normal(shape).astype(np.float32) * 0.2 for name, shape in shapes.items()}


def attention_pooling_state(width: int = 48) -> dict[str, np.ndarray]:
    """Names and shapes of timm's attention pooling."""
    shapes = {"latent": (1, 1, width), "q.weight": (width, width), "kv.weight": (2 * width, width), "q.bias": (width,),
              "kv.bias": (2 * width,), "proj.weight": (width, width), "proj.bias": (width,), "norm.weight": (width,),
              "norm.bias": (width,), "mlp.fc1.weight": (80, width), "mlp.fc1.bias": (80,),
              "mlp.fc2.weight": (width, 80), "mlp.fc2.bias": (width,)}  # fmt: skip
    return {f"attn_pool.{name}": np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}


def test_timm_names(torch, transformers, tmp_path):
    """The same function written by hand in torch, from the fused weights."""
    from safetensors.numpy import save_file

    state = timm_state()
    save_file(state, tmp_path / "vit.safetensors")
    checkpoint = qkjax.load(tmp_path / "vit.safetensors", heads=4)
    images = torch.randn(2, 3, 28, 28)
    t = {name: torch.tensor(value) for name, value in state.items()}
    f = torch.nn.functional
    x = f.conv2d(images, t["patch_embed.proj.weight"], t["patch_embed.proj.bias"], stride=7).flatten(2).transpose(1, 2)
    x = torch.cat([t["cls_token"].expand(2, -1, -1), x], 1) + t["pos_embed"]
    residuals = []
    for i in range(2):
        p = {name.removeprefix(f"blocks.{i}."): value for name, value in t.items()}
        residuals.append(x)
        y = f.layer_norm(x, (48,), p["norm1.weight"], p["norm1.bias"], 1e-6)
        q, k, v = f.linear(y, p["attn.qkv.weight"], p["attn.qkv.bias"]).reshape(2, 17, 3, 4, 12).permute(2, 0, 3, 1, 4)
        y = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(2, 17, 48)
        x = x + p["ls1.gamma"] * f.linear(y, p["attn.proj.weight"], p["attn.proj.bias"])
        y = f.layer_norm(x, (48,), p["norm2.weight"], p["norm2.bias"], 1e-6)
        y = f.gelu(f.linear(y, p["mlp.fc1.weight"], p["mlp.fc1.bias"]))
        x = x + p["ls2.gamma"] * f.linear(y, p["mlp.fc2.weight"], p["mlp.fc2.bias"])
    x = f.layer_norm(x, (48,), t["norm.weight"], t["norm.bias"], 1e-6)
    output, seen = forward(
        qkjax.ViT(checkpoint.config), checkpoint.params, images.numpy().transpose(0, 2, 3, 1), ("residual",)
    )
    for ours, theirs in zip(seen["residual"], residuals, strict=True):
        assert_close(ours, theirs)
    assert_close(output, f.linear(x[:, 0], t["head.weight"], t["head.bias"]))


def test_google_npz_and_transformers_file_have_the_same_modes(torch, transformers, tmp_path):
    """The same weights written as vision_transformer's npz by hand, from the torch tensors."""
    model = random_model(torch, transformers, "ViT")
    model.save_pretrained(tmp_path / "hf")
    from safetensors.numpy import load_file

    s = load_file(tmp_path / "hf" / "model.safetensors")
    old = {
        "cls": s["embeddings.cls_token"],
        "Transformer/posembed_input/pos_embedding": s["embeddings.position_embeddings"],
        "embedding/kernel": s["embeddings.patch_embeddings.projection.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": s["embeddings.patch_embeddings.projection.bias"],
        "Transformer/encoder_norm/scale": s["layernorm.weight"],
        "Transformer/encoder_norm/bias": s["layernorm.bias"],
    }
    for i in range(3):
        ours, theirs = f"Transformer/encoderblock_{i}", f"encoder.layer.{i}"
        for name, norm in (("LayerNorm_0", "layernorm_before"), ("LayerNorm_2", "layernorm_after")):
            old[f"{ours}/{name}/scale"], old[f"{ours}/{name}/bias"] = (
                s[f"{theirs}.{norm}.{x}"] for x in ("weight", "bias")
            )
        for part in ("query", "key", "value"):
            linear = f"{theirs}.attention.attention.{part}"
            old[f"{ours}/MultiHeadDotProductAttention_1/{part}/kernel"] = s[f"{linear}.weight"].T.reshape(48, 4, 12)
            old[f"{ours}/MultiHeadDotProductAttention_1/{part}/bias"] = s[f"{linear}.bias"].reshape(4, 12)
        out = f"{theirs}.attention.output.dense"
        old[f"{ours}/MultiHeadDotProductAttention_1/out/kernel"] = s[f"{out}.weight"].T.reshape(4, 12, 48)
        old[f"{ours}/MultiHeadDotProductAttention_1/out/bias"] = s[f"{out}.bias"]
        for part, linear in (("Dense_0", "intermediate.dense"), ("Dense_1", "output.dense")):
            old[f"{ours}/MlpBlock_3/{part}/kernel"] = s[f"{theirs}.{linear}.weight"].T
            old[f"{ours}/MlpBlock_3/{part}/bias"] = s[f"{theirs}.{linear}.bias"]
    write_npz(tmp_path / "google.npz", old)
    first, second = (qkjax.load(path) for path in (tmp_path / "hf", tmp_path / "google.npz"))
    for a, b in zip(
        qkjax.decompose(first),
        qkjax.decompose(second),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
    np.testing.assert_array_equal(first.params["cls"], second.params["cls"])


def test_shards(torch, transformers, tmp_path):
    model = random_model(torch, transformers, "ViT")
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="50KB")
    shards = sorted((tmp_path / "many").glob("*.safetensors"))
    assert len(shards) > 2
    import jax

    one, many = (qkjax.load(tmp_path / name) for name in ("one", "many"))
    jax.tree.map(np.testing.assert_array_equal, one.params, many.params)
    index = tmp_path / "many" / "model.safetensors.index.json"
    places = json.loads(index.read_text())
    first, second = sorted(set(places["weight_map"].values()))[:2]
    mixed = {n: second if place == first else place for n, place in places["weight_map"].items()}
    index.write_text(json.dumps({"weight_map": mixed}))
    with pytest.raises(qkjax.QkjaxError, match="the shards belong to different models"):
        qkjax.load(tmp_path / "many")
    index.write_text(json.dumps(places))
    shards[0].unlink()
    with pytest.raises(qkjax.QkjaxError, match=f"shard '{shards[0].name}' is missing"):
        qkjax.load(tmp_path / "many")
    index.write_text("[]")
    with pytest.raises(qkjax.QkjaxError, match="contains a list, expected a JSON object"):
        qkjax.load(tmp_path / "many")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision(torch, transformers, dtype, tmp_path):
    model = random_model(torch, transformers, "ViT").to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    kernel = query_key_kernels(qkjax.load(tmp_path).params)[0]
    state = {n: v.float().numpy() for n, v in model.state_dict().items()}
    name = next(
        n for n in state if n.endswith(("layers.0.attention.q_proj.weight", "layer.0.attention.attention.query.weight"))
    )
    np.testing.assert_array_equal(kernel[0].reshape(48, 48), state[name].T)


def test_float8_is_refused(torch, tmp_path):
    from safetensors.torch import save_file

    state = {n: torch.tensor(v) for n, v in timm_state().items()}
    state["blocks.1.attn.proj.weight"] = state["blocks.1.attn.proj.weight"].to(torch.float8_e4m3fn)
    save_file(state, tmp_path / "x.safetensors")
    with pytest.raises(
        qkjax.QkjaxError, match=r"'blocks.1.attn.proj.weight' is stored as F8_E4M3, expected one of F64"
    ):
        qkjax.load(tmp_path / "x.safetensors", heads=4)


@pytest.mark.parametrize("wrap", ["{}", "model", "state_dict"])
def test_pytorch_file(torch, wrap, tmp_path):
    state = {n: torch.tensor(v) for n, v in timm_state().items()}
    torch.save(state if wrap == "{}" else {wrap: state, "epoch": 3}, tmp_path / "x.pth")
    checkpoint = qkjax.load(tmp_path / "x.pth", heads=4)
    np.testing.assert_array_equal(checkpoint.params["head"]["kernel"], state["head.weight"].numpy().T)


def test_pytorch_file_of_the_hub_is_converted_once(torch, transformers, tmp_path, monkeypatch):
    """After the first time neither torch nor the hub is needed."""
    import sys

    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path))
    snapshot = tmp_path / "hf" / "models--me--tiny" / "snapshots" / "abc"
    model = random_model(torch, transformers, "ViT")
    model.save_pretrained(snapshot)
    from safetensors.torch import load_file

    wanted = qkjax.load(snapshot)
    torch.save(load_file(snapshot / "model.safetensors"), snapshot / "pytorch_model.bin")
    (snapshot / "model.safetensors").unlink()
    (snapshot.parents[1] / "refs").mkdir()
    (snapshot.parents[1] / "refs" / "main").write_text("abc")
    first = qkjax.load("me/tiny")
    assert (first.name, first.config) == ("me/tiny", wanted.config)
    monkeypatch.setitem(sys.modules, "torch", None)
    (snapshot / "preprocessor_config.json").write_text('{"image_processor_type": "ViTImageProcessor", "size": 30}')
    assert qkjax.load("me/tiny").preprocess.crop == 30
    (snapshot / "pytorch_model.bin").unlink()
    second = qkjax.load("me/tiny", pool="gap")
    assert second.preprocess.crop == 28
    assert second.config.pool == "gap"
    np.testing.assert_array_equal(second.params["embedding"]["kernel"], wanted.params["embedding"]["kernel"])


def test_pytorch_file_without_torch(tmp_path, monkeypatch):
    import sys

    (tmp_path / "x.pth").write_bytes(b"\x80\x02}q\x00.")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(qkjax.QkjaxError, match=r"only torch can read: pip install 'qkjax\[torch\]'"):
        qkjax.load(tmp_path / "x.pth")


def test_simmim(torch, transformers, tmp_path):
    """Microsoft's layout, made from a BEiT of the same parts: fused weights, no key bias, one shared table
    in pre-training; a table per layer, and a norm behind mean pooling, when fine-tuned."""
    from safetensors.torch import load_file

    for family, prefix in (("BEiT shared", "encoder."), ("BEiT", "")):
        random_model(torch, transformers, family).save_pretrained(tmp_path / family)
        theirs = load_file(tmp_path / family / "model.safetensors")
        simmim = {
            f"{prefix}cls_token": theirs["embeddings.cls_token"],
            f"{prefix}mask_token": torch.zeros(1, 1, 48),
            f"{prefix}patch_embed.proj.weight": theirs["embeddings.patch_embeddings.projection.weight"],
            f"{prefix}patch_embed.proj.bias": theirs["embeddings.patch_embeddings.projection.bias"],
        }
        norm = ("layernorm", f"{prefix}norm") if prefix else ("pooler.layernorm", "fc_norm")
        table = "relative_position_bias.relative_position_bias_table"
        if prefix:
            simmim["encoder.rel_pos_bias.relative_position_bias_table"] = theirs[f"encoder.{table}"]
            simmim["decoder.0.weight"] = torch.zeros(3, 48, 1, 1)
        for i in range(3):
            a, b = f"encoder.layer.{i}", f"{prefix}blocks.{i}"
            parts = [theirs[f"{a}.attention.attention.{x}.weight"] for x in ("query", "key", "value")]
            simmim[f"{b}.attn.qkv.weight"] = torch.cat(parts)
            simmim[f"{b}.attn.q_bias"] = theirs[f"{a}.attention.attention.query.bias"]
            simmim[f"{b}.attn.v_bias"] = theirs[f"{a}.attention.attention.value.bias"]
            simmim[f"{b}.attn.relative_position_index"] = torch.zeros(17, 17, dtype=torch.int64)
            if not prefix:
                simmim[f"{b}.attn.relative_position_bias_table"] = theirs[f"{a}.attention.attention.{table}"]
            simmim |= {f"{b}.gamma_{n}": theirs[f"{a}.lambda_{n}"] for n in (1, 2) if f"{a}.lambda_{n}" in theirs}
            for x in ("weight", "bias"):
                simmim[f"{b}.attn.proj.{x}"] = theirs[f"{a}.attention.output.dense.{x}"]
                simmim[f"{b}.norm1.{x}"] = theirs[f"{a}.layernorm_before.{x}"]
                simmim[f"{b}.norm2.{x}"] = theirs[f"{a}.layernorm_after.{x}"]
                simmim[f"{b}.mlp.fc1.{x}"] = theirs[f"{a}.intermediate.dense.{x}"]
                simmim[f"{b}.mlp.fc2.{x}"] = theirs[f"{a}.output.dense.{x}"]
                simmim[f"{norm[1]}.{x}"] = theirs[f"{norm[0]}.{x}"]
        torch.save({"model": simmim, "epoch": 799}, tmp_path / "simmim.pth")
        first = qkjax.load(tmp_path / family, norm_eps=1e-6)
        second = qkjax.load(tmp_path / "simmim.pth", heads=4)
        assert second.config == first.config
        images = np.random.default_rng(0).standard_normal((2, 28, 28, 3)).astype(np.float32)
        outputs = [forward(qkjax.ViT(c.config), c.params, images)[0] for c in (first, second)]
        np.testing.assert_array_equal(*outputs)
        with pytest.raises(qkjax.QkjaxError, match="the relative position biases are for"):
            forward(qkjax.ViT(second.config), second.params, np.zeros((1, 35, 28, 3), np.float32))


def test_pytorch_file_with_code_is_refused(torch, tmp_path):
    class Bomb:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"cls_token": Bomb()}, tmp_path / "x.pth")
    with pytest.raises(
        qkjax.QkjaxError, match=r"torch cannot read .* with weights_only=True \(Unsupported .*io\.open\)"
    ):
        qkjax.load(tmp_path / "x.pth")
    assert not (tmp_path / "ran").exists()


def ijepa_state(torch) -> dict:
    """Meta's file: encoders and predictor side by side, "module." before every name."""
    encoder = {
        f"module.{n}": torch.tensor(v) for n, v in timm_state(prefix=0).items() if not n.startswith(("cls", "head"))
    }
    encoder = {n: v for n, v in encoder.items() if ".ls" not in n}
    narrow = timm_state(width=24)
    inside = {n: torch.tensor(v) for n, v in narrow.items() if n.startswith("blocks") and ".ls" not in n}
    predictor = {n.replace("blocks", "module.predictor_blocks"): v for n, v in inside.items()}
    predictor |= {
        "module.mask_token": torch.zeros(1, 1, 24), "module.predictor_pos_embed": torch.randn(1, 16, 24),
        "module.predictor_embed.weight": torch.randn(24, 48), "module.predictor_embed.bias": torch.randn(24),
        "module.predictor_norm.weight": torch.ones(24), "module.predictor_norm.bias": torch.ones(24),
        "module.predictor_proj.weight": torch.randn(48, 24), "module.predictor_proj.bias": torch.randn(48),
    }  # fmt: skip
    optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    return {"encoder": encoder, "predictor": predictor, "opt": optimizer, "scaler": {"scale": 1.0}, "epoch": 1}


def test_pytorch_file_with_a_configuration(torch, tmp_path, monkeypatch):
    """Microsoft's code saves a yacs configuration along with the model; it is passed over."""
    import sys
    from types import ModuleType

    module = ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        config = module.CfgNode(MODEL=module.CfgNode(TYPE="vit"))
        config.__dict__["__immutable__"] = True
        torch.save(
            {"model": {n: torch.tensor(v) for n, v in timm_state().items()}, "config": config}, tmp_path / "x.pth"
        )
    assert qkjax.load(tmp_path / "x.pth", heads=4).config.depth == 2


def test_ijepa_with_its_predictor(torch, tmp_path):
    state = ijepa_state(torch)
    torch.save(state, tmp_path / "x.pth")
    with pytest.raises(
        qkjax.QkjaxError, match=r"several models: encoder \(29 parameters\), predictor \(32 parameters\); choose one"
    ):
        qkjax.load(tmp_path / "x.pth")
    whole = qkjax.load(f"{tmp_path}/x.pth:encoder", heads=4)
    assert (whole.config.class_token, whole.config.grid, whole.config.pool) == (False, (4, 4), "gap")
    part = qkjax.load(f"{tmp_path}/x.pth:predictor", heads=2)
    assert (part.config.width, part.config.channels, part.config.patch_size, part.config.grid) == (
        24,
        48,
        (1, 1),
        (4, 4),
    )
    modes = qkjax.decompose(part)
    fused = state["predictor"]["module.predictor_blocks.1.attn.qkv.weight"].double().numpy()
    m = fused[12:24].T @ fused[36:48]
    np.testing.assert_allclose(np.asarray(modes.s[1, 1])[:12], np.linalg.svd(m)[1][:12], rtol=1e-5)


def test_bad_state_dicts(tmp_path):
    from safetensors.numpy import save_file

    def refuse(state: dict, match: str, config: dict | None = None, **settings) -> None:
        save_file(state, tmp_path / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(config or {}))
        with pytest.raises(qkjax.QkjaxError, match=match) as caught:
            qkjax.load(tmp_path, **settings)
        assert str(tmp_path) in str(caught.value)

    state = timm_state()
    refuse(state, "the queries have 48 rows, which do not match 7 heads", {"num_attention_heads": 7})
    refuse(state, "heads='four': expected a positive whole number", {"num_attention_heads": "four"})
    refuse(state, "config.json has activation 'mish', expected one of gelu", {"hidden_act": "mish"})
    refuse(
        state | {"blocks.0.attn.q_norm.weight": np.ones(12, np.float32)},
        "unknown parameter 'blocks.0.attn.q_norm.weight', expected one of a known ViT family",
    )
    refuse({k: v for k, v in state.items() if k != "blocks.1.mlp.fc1.bias"}, "Dense_0/bias' is missing", heads=4)
    refuse({k: v for k, v in state.items() if "patch" not in k}, "the parameters have no patch embedding")
    refuse(state | {"blocks.0.norm1.bias": np.full(48, np.nan, np.float32)}, "has NaN", heads=4)
    refuse(
        state | {"blocks.0.attn.qkv.weight": np.ones((100, 48), np.float32)},
        r"the qkv weights of layer 0 have shape \(100, 48\), expected 3 equal parts",
        heads=4,
    )
    refuse(
        state | {"pos_embed": np.ones((1, 12, 48), np.float32)},
        r"12 rows, which fit no square grid \(with cls: 11 patches; without special tokens: 12 patches\)",
        heads=4,
    )
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(qkjax.QkjaxError, match=r"cannot read .*config\.json"):
        qkjax.load(tmp_path)


def test_names_that_leave_a_doubt_are_refused(tmp_path):
    """Never a guess: two models in one file, heads that nothing tells, biases that only some layers have."""
    from safetensors.numpy import save_file

    def refuse(state: dict, match: str, **settings) -> None:
        save_file(state, tmp_path / "x.safetensors")
        with pytest.raises(qkjax.QkjaxError, match=match):
            qkjax.load(tmp_path / "x.safetensors", **settings)

    state = timm_state()
    refuse(state, "the file does not state the number of heads, and 48 query rows do not determine it: pass heads=")
    refuse(state | {f"encoder.{n}": v for n, v in state.items()}, "expected a file with one model", heads=4)
    refuse({n: v for n, v in state.items() if n != "blocks.1.attn.qkv.bias"}, "bias' is missing", heads=4)
    refuse({n: v for n, v in state.items() if n != "patch_embed.proj.bias"}, "'embedding/bias' is missing", heads=4)
    refuse(state | {"head.weight": np.ones((5, 40), np.float32)}, "'head/kernel' has shape", heads=4)
    refuse(state | {"patch_embed.proj.weight": np.array(1, np.float32)}, r"has shape \(\)", heads=4)


@pytest.mark.parametrize(
    "config", [{"hidden_act": ["gelu"]}, {"hidden_act": {}}, {"vision_config": 5, "hidden_act": 3}]
)
def test_odd_config(tmp_path, config):
    from safetensors.numpy import save_file

    save_file(timm_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(qkjax.QkjaxError, match="has activation"):
        qkjax.load(tmp_path)


@pytest.mark.parametrize(("positions", "registers"), [(16, 0), (17, 0), (20, 3), (17, 3), (16, 3)])
def test_timm_positions(tmp_path, positions, registers):
    """Of patches alone (`no_embed_class`), with the class token, with registers too."""
    from safetensors.numpy import save_file

    state = timm_state() | {"pos_embed": np.arange(positions * 48, dtype=np.float32).reshape(1, positions, 48)}
    if registers:
        state["reg_token"] = np.zeros((1, registers, 48), np.float32)
    save_file(state, tmp_path / "x.safetensors")
    checkpoint = qkjax.load(tmp_path / "x.safetensors", heads=4)
    assert (checkpoint.config.grid, checkpoint.config.registers) == ((4, 4), registers)
    np.testing.assert_array_equal(checkpoint.params["pos_embedding"], state["pos_embed"][:, positions - 16 :])
    moved = checkpoint.params["cls"] - state["cls_token"]
    np.testing.assert_allclose(moved, state["pos_embed"][:, :1] if positions > 16 else 0 * moved, atol=1e-5)
    if positions == 20:
        np.testing.assert_array_equal(checkpoint.params["registers"], state["pos_embed"][:, 1:4])


def test_old_and_odd_pytorch_files(torch, tmp_path):
    state = {n: torch.tensor(v) for n, v in timm_state().items()}
    torch.save(state | {3: torch.ones(1)}, tmp_path / "odd.pth")
    with pytest.raises(qkjax.QkjaxError, match="unknown parameter '3', expected one of a known ViT family"):
        qkjax.load(tmp_path / "odd.pth", heads=4)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert qkjax.load(tmp_path / "old.pth", heads=4).config.depth == 2
    for dtype in (torch.float8_e4m3fn, torch.int64, torch.complex64):
        torch.save(state | {"norm.bias": state["norm.bias"].to(dtype)}, tmp_path / "x.pth")
        with pytest.raises(qkjax.QkjaxError, match=f"'norm.bias' is {dtype}"):
            qkjax.load(tmp_path / "x.pth", heads=4)


@pytest.mark.parametrize(
    "header", [b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,4]}}', b"{}", b"{" * 60, b'{"a":1}']
)
def test_safetensors_with_a_lying_header(tmp_path, header):
    (tmp_path / "x.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
    with pytest.raises(qkjax.QkjaxError, match=r"x\.safetensors"):
        qkjax.load(tmp_path / "x.safetensors")


@pytest.mark.parametrize("damage", [lambda x: x[:-1000], lambda x: b"\xff" * 7 + b"\x00" + x[8:], lambda x: x[:40]])
def test_safetensors_cut_off_or_altered(tmp_path, damage):
    from safetensors.numpy import save_file

    save_file(timm_state(), tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes(damage((tmp_path / "x.safetensors").read_bytes()))
    with pytest.raises(qkjax.QkjaxError, match=r"x\.safetensors is damaged"):
        qkjax.load(tmp_path / "x.safetensors", heads=4)


def test_images_are_prepared_as_the_folder_says(tmp_path):
    """By preprocessor_config.json, also of a model that is in the catalogue; what it cannot say, by family."""
    from safetensors.numpy import save_file

    save_file(timm_state(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"num_attention_heads": 4}')
    said = tmp_path / "preprocessor_config.json"
    family = preprocessing.with_resolution(PRESETS["hf-dinov2"], 224)  # by its layer scale
    assert qkjax.load(tmp_path).preprocess == family
    said.write_text('{"image_processor_type": "CLIPImageProcessor", "size": 64, "crop_size": 50}')
    assert qkjax.load(tmp_path).preprocess == replace(PRESETS["hf-clip"], resize_to=64, crop=50)
    assert qkjax.load(tmp_path / "model.safetensors").preprocess.crop == 50
    for odd in ('"image_processor_type": "OfAnotherKind"', '"resample": []', '"image_processor_type": 3', '"size": {}'):
        said.write_text(f"{{{odd}}}")
        checkpoint = qkjax.load(tmp_path)
        assert checkpoint.preprocess == family
        note = checkpoint.notes[-1]
        assert note.startswith("qkjax follows preprocessor_config.json only partly: the file has ")
        assert note.endswith(
            "resize, filter, resize_to, crop, mean, std from the preset 'hf-dinov2', assumed from the architecture"
        )
    said.write_text("{")
    with pytest.raises(qkjax.QkjaxError, match=r"cannot read .*preprocessor_config\.json"):
        qkjax.load(tmp_path)


@pytest.mark.parametrize(
    ("family", "preset"),
    [("ViT", "hf-vit"), ("DeiT", "hf-deit"), ("DeiT distilled", "hf-deit"), ("CLIP", "hf-clip"),
     ("SigLIP", "hf-siglip"), ("BEiT", "simmim"), ("I-JEPA", "hf-vit")],
)  # fmt: skip
def test_images_are_prepared_as_the_family_does(torch, transformers, family, preset, tmp_path):
    random_model(torch, transformers, family).save_pretrained(tmp_path)
    assert qkjax.load(tmp_path).preprocess == preprocessing.with_resolution(PRESETS[preset], 28)


def test_images_that_are_not_square_are_left_to_the_caller(torch, transformers, tmp_path):
    config = transformers.ViTConfig(**(SMALL | {"image_size": [14, 56]}))
    transformers.ViTModel(config).save_pretrained(tmp_path)
    assert qkjax.load(tmp_path).preprocess == PRESETS["hf-vit"]


@pytest.mark.parametrize(
    ("architecture", "activation"),
    [("vit_base_patch16_224", "gelu"), ("vit_base_patch16_clip_quickgelu_224", "quick_gelu"),
     ("vit_base_patch16_clip_224", "gelu"), ("vit_base_patch16_siglip_224", "gelu"),
     ("vit_so400m_patch16_siglip_256", "gelu_tanh"), ("vit_large_patch16_siglip_512", "gelu_tanh"),
     ("vit_large_patch16_siglip_384", "gelu")],
)  # fmt: skip
def test_timm_architecture(architecture, activation, tmp_path):
    from safetensors.numpy import save_file

    state = timm_state()
    if "clip_" in architecture:
        state |= {f"norm_pre.{x}": np.ones(48, np.float32) for x in ("weight", "bias")}
    if "siglip_" in architecture:
        state |= attention_pooling_state()
    save_file(state, tmp_path / "model.safetensors")
    cfg = {"input_size": [3, 28, 28], "crop_pct": 0.9, "interpolation": "bicubic", "mean": [0.1] * 3, "std": [0.2] * 3}
    said = {"architecture": architecture, "pretrained_cfg": cfg}
    (tmp_path / "config.json").write_text(json.dumps(said))
    checkpoint = qkjax.load(tmp_path, heads=4)
    assert checkpoint.config.activation == activation
    assert checkpoint.config.posemb_resample == "bicubic_antialias"
    wanted = Preprocess("small side", "pil-bicubic", 31, 28, (0.1,) * 3, (0.2,) * 3)
    assert checkpoint.preprocess == wanted
    if "clip_224" in architecture:
        cfg["notes"] = ["natively QuickGELU, use quickgelu model variant for original results"]
        (tmp_path / "config.json").write_text(json.dumps(said))
        assert qkjax.load(tmp_path, heads=4).config.activation == "quick_gelu"


def test_timm_images():
    cfg = {
        "input_size": [3, 384, 384],
        "crop_pct": 1.0,
        "interpolation": "bilinear",
        "mean": [0.5] * 3,
        "std": [0.5] * 3,
    }
    squash = Preprocess("squash", "pil-bilinear", 384, 384, (0.5,) * 3, (0.5,) * 3)
    old = timm.preprocess_of({"architecture": "x", **cfg, "crop_mode": "squash"})
    assert old == ("config.json", vars(squash), ()), "as old files have it"
    centre = vars(replace(squash, resize="small side"))
    assert timm.preprocess_of({"pretrained_cfg": cfg}) == ("config.json", centre, ())
    size, scale = {"resize", "resize_to", "crop"}, {"mean", "std"}
    for odd, unknown in (
        ({"crop_mode": "border"}, set()), ({"crop_mode": ["a"]}, set()), ({"crop_pct": "a"}, set()),
        ({"crop_pct": 1.5}, set()), ({"crop_pct": float("nan")}, set()), ({"input_size": 224}, size),
        ({"input_size": [3, 0, 2]}, size), ({"std": [0, 0]}, scale), ({"mean": [1, 2]}, scale),
        ({"interpolation": ["a"]}, {"filter"}), ({"interpolation": "random"}, {"filter"}),
    ):  # fmt: skip
        _, fields, (clause,) = timm.preprocess_of(cfg | odd)
        assert fields == {name: value for name, value in centre.items() if name not in unknown}, odd
        assert next(iter(odd)) in clause or "mean and std" in clause
    for missing in ({"crop_pct": 0}, {"mean": None}, {"crop_mode": ""}):  # timm takes its defaults
        assert timm.preprocess_of(cfg | missing).unfollowed == ()
    assert timm.preprocess_of(cfg | {"mean": None}).fields["mean"] == (0.485, 0.456, 0.406)
    assert timm.preprocess_of({"pretrained_cfg": 3}) is None
    assert timm.preprocess_of({"hidden_size": 48, "model_type": "vit"}) is None


def test_timm_attention_pooling(torch, transformers, tmp_path):
    """A SigLIP under timm's names is the same function."""
    from safetensors.numpy import load_file, save_file

    random_model(torch, transformers, "SigLIP").save_pretrained(tmp_path / "hf")
    theirs = load_file(tmp_path / "hf" / "model.safetensors")
    theirs = {name.removeprefix("vision_model."): value for name, value in theirs.items()}
    top = {"embeddings.patch_embedding": "patch_embed.proj", "post_layernorm": "norm",
           "head.layernorm": "attn_pool.norm", "head.mlp.fc1": "attn_pool.mlp.fc1", "head.mlp.fc2": "attn_pool.mlp.fc2",
           "head.attention.out_proj": "attn_pool.proj"}  # fmt: skip
    block = {"layer_norm1": "norm1", "layer_norm2": "norm2", "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
             "self_attn.out_proj": "attn.proj"}  # fmt: skip
    state = {
        "pos_embed": theirs["embeddings.position_embedding.weight"][None],
        "attn_pool.latent": theirs["head.probe"],
    }
    for x in ("weight", "bias"):
        state |= {f"{b}.{x}": theirs[f"{a}.{x}"] for a, b in top.items()}
        fused = theirs[f"head.attention.in_proj_{x}"]
        state |= {f"attn_pool.q.{x}": fused[:48], f"attn_pool.kv.{x}": fused[48:]}
        for i in range(3):
            layer = f"encoder.layers.{i}"
            state |= {f"blocks.{i}.{b}.{x}": theirs[f"{layer}.{a}.{x}"] for a, b in block.items()}
            qkv = [theirs[f"{layer}.self_attn.{part}_proj.{x}"] for part in "qkv"]
            state[f"blocks.{i}.attn.qkv.{x}"] = np.concatenate(qkv)
    save_file({n: np.ascontiguousarray(v) for n, v in state.items()}, tmp_path / "timm.safetensors")
    import jax

    first, second = qkjax.load(tmp_path / "hf"), qkjax.load(tmp_path / "timm.safetensors", heads=4)
    jax.tree.map(np.testing.assert_array_equal, first.params, second.params)
    assert second.config == first.config


def folder_of_a_vit(folder, size=(28, 28)):
    """A random ViT of transformers for images of this size, with its config.json."""
    transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")
    pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")
    config = transformers.ViTConfig(**(SMALL | {"image_size": list(size)}))
    transformers.ViTModel(config).save_pretrained(folder)
    return folder


PLAIN = {"image_processor_type": "ViTImageProcessor", "image_mean": [0.1, 0.2, 0.3], "size": 28}


def test_the_image_processor_in_processor_config_json(tmp_path):
    """Version 5 of transformers writes this file alone. It takes precedence if it holds an image processor."""
    folder = folder_of_a_vit(tmp_path)
    nested, own = tmp_path / "processor_config.json", tmp_path / "preprocessor_config.json"
    nested.write_text(json.dumps({"image_processor": PLAIN, "processor_class": "CLIPProcessor"}))
    checkpoint = qkjax.load(folder)
    assert (checkpoint.preprocess.mean, checkpoint.preprocess.crop) == ((0.1, 0.2, 0.3), 28)
    assert not any("preprocessing" in note for note in checkpoint.notes)
    own.write_text(json.dumps(PLAIN | {"image_mean": [0.7, 0.8, 0.9]}))
    assert qkjax.load(folder).preprocess.mean == (0.1, 0.2, 0.3)
    nested.write_text('{"processor_class": "CLIPProcessor"}')
    assert qkjax.load(folder).preprocess.mean == (0.7, 0.8, 0.9)
    nested.write_text(json.dumps({"image_processor": PLAIN | {"do_pad": True}}))
    with pytest.warns(qkjax.errors.AssumptionWarning, match="follows processor_config.json only partly"):
        qkjax.load(folder)


def test_what_is_not_followed_is_a_note(tmp_path):
    """It is stored with the model, and what the file states is kept at the resolution of the model."""
    folder = folder_of_a_vit(tmp_path / "model")
    (folder / "preprocessor_config.json").write_text(json.dumps(PLAIN | {"size": {"longest_edge": 9}, "do_pad": True}))
    with pytest.warns(qkjax.errors.AssumptionWarning, match="do_pad=true"):
        checkpoint = qkjax.load(folder)
    family = preprocessing.with_resolution(PRESETS["hf-vit"], 28)
    assert checkpoint.preprocess == replace(family, mean=(0.1, 0.2, 0.3))
    note = checkpoint.notes[-1]
    assert note == (
        "qkjax follows preprocessor_config.json only partly: the file has do_pad=true, which is not "
        "supported, and has size={'longest_edge': 9} (expected a number, a shortest_edge, or a height and a width); "
        "resize, resize_to, crop from the preset 'hf-vit', assumed from the architecture"
    )
    qkjax.save(checkpoint, tmp_path / "x.npz")
    again = qkjax.load(tmp_path / "x.npz")
    assert (again.preprocess, again.notes) == (checkpoint.preprocess, checkpoint.notes)


def test_a_preprocessing_that_is_only_guessed_is_a_note(tmp_path):
    checkpoint = qkjax.load(folder_of_a_vit(tmp_path))
    assert checkpoint.notes[-1] == (
        "no file states the preprocessing, so qkjax uses the preset 'hf-vit', assumed from the architecture"
    )


def test_the_crop_of_a_file_has_the_margin_of_the_family(tmp_path):
    """If only the crop is known, it is at least the size that the model sees."""
    folder = folder_of_a_vit(tmp_path)
    said = {"image_processor_type": "CLIPImageProcessor", "size": {"longest_edge": 9}, "crop_size": 56}
    (folder / "preprocessor_config.json").write_text(json.dumps(said))
    preset = qkjax.load(folder).preprocess
    assert (preset.resize, preset.resize_to, preset.crop) == ("squash", 56, 56)


@pytest.mark.parametrize("grid_too", [True, False])
def test_images_that_are_not_square(tmp_path, grid_too):
    """From a file to the pixels, the best images and their sheets; also of a model with a square grid of positions."""
    from PIL import Image

    from qkjax.analyses.forward import forward, preprocess
    from qkjax.analyses.top_images.sheets import sheet_rows
    from qkjax.images.sources import open_images
    from qkjax.passes.inputs import crop_to_patches, photograph_grid, resolution_of

    folder = folder_of_a_vit(tmp_path / "model", (28, 56) if grid_too else (28, 28))
    size = {"height": 28, "width": 56}
    (folder / "preprocessor_config.json").write_text(json.dumps(PLAIN | {"size": size, "resample": 1}))
    checkpoint = qkjax.load(folder)
    assert (checkpoint.preprocess.crop, checkpoint.preprocess.filter) == ((28, 56), "pil-lanczos")
    assert resolution_of(checkpoint, None) == (28, 56)
    (tmp_path / "images").mkdir()
    rng = np.random.default_rng(0)
    for index in range(3):
        pixels = rng.integers(0, 256, (50 + index, 70, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{index}.png")
    seen = preprocess(checkpoint, pixels)
    assert seen.shape == (28, 56, 3)
    wanted = np.asarray(Image.fromarray(pixels).resize((56, 28), Image.Resampling.LANCZOS)) / 255
    np.testing.assert_allclose(seen, (wanted - [0.1, 0.2, 0.3]) / 0.5, atol=1e-6)
    assert photograph_grid(checkpoint, None) == (4, 8)
    assert forward(checkpoint, seen[None])[1]["encoded"].shape == (1, 1 + 4 * 8, 48)
    assert crop_to_patches(checkpoint, np.zeros((28, 56, 3), np.uint8)).shape == (28, 56, 3)
    images = open_images(tmp_path / "images")
    data = qkjax.top_images(checkpoint, images, top=2)
    (row,) = sheet_rows(checkpoint, images, data, ["L0 H0 M0"])
    assert {tile.picture.shape for tile in row.tiles} == {(28, 56, 3)}
    qkjax.save(checkpoint, tmp_path / "x.npz")
    assert qkjax.load(tmp_path / "x.npz").preprocess == checkpoint.preprocess
