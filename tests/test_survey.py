"""Both surveys on a sample, one model per form: what `load` does with models of timm and of transformers."""

import json
import sys
import warnings
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import survey
import survey_transformers

from qkjax.weights.families.timm import architectures
from qkjax.weights.families.timm_module import facts_of

timm = pytest.importorskip("timm", reason="needs the parity extra: pip install -e '.[parity]'")
pytest.importorskip("torch", reason="needs the parity extra: pip install -e '.[parity]'")

EXACT = (
    "test_vit", "test_vit2", "test_vit3", "test_vit4",  # pooling: token, avg, map, and one per norm
    "vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224", "beit_base_patch16_224", "beit3_base_patch16_224",
    "aimv2_large_patch14_224", "naflexvit_base_patch16_gap", "naflexvit_base_patch16_map",
    "vit_small_patch16_dinov3", "vit_base_patch16_siglip_224", "vit_base_patch16_clip_quickgelu_224",
)  # fmt: skip
WEIGHTS_ONLY = {
    "samvit_base_patch16_224": "windows and decomposed relative positions",
    "vit_relpos_small_patch16_224": "relative position bias is computed by a part of timm",
    "naflexvit_base_patch16_parfac_gap": "the sum of one for rows and one for columns",
    "vit_tiny_r_s16_p8_224": "a convolutional network computes its tokens",
}
REFUSED = {
    "vit_base_patch16_sapiens2": "normalises queries and keys",
    "vit_base_patch16_rpn_224": "residual post-norm",
    "vit_pwee_patch16_reg1_gap_256": "run in parallel",
    "vit_dwee_patch16_reg1_gap_256": "subtracts two attention maps",
    "vit_small_patch16_18x2_224": "several attentions in parallel",
}


@pytest.fixture(autouse=True)
def quiet():
    """timm warns of its own deprecations."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def build(name: str):
    """A module without memory for its parameters."""
    import torch

    if name not in timm.list_models():
        pytest.skip(f"this timm has no {name}")
    with torch.device("meta"):
        return timm.create_model(name)


@pytest.mark.parametrize("name", EXACT)
def test_tokens_and_output_agree_with_timm(name):
    build(name)
    assert survey.survey_timm(name).verdict == "exact"


@pytest.mark.parametrize("name", WEIGHTS_ONLY)
def test_modes_agree_with_timm(name):
    build(name)
    verdict = survey.survey_timm(name)
    assert verdict.verdict == "weights only"
    assert WEIGHTS_ONLY[name] in verdict.detail


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_name(name):
    verdict = survey.survey_timm(name)
    assert verdict.verdict == "refused"
    assert REFUSED[name] in verdict.detail


@pytest.mark.parametrize("name", [*EXACT, *WEIGHTS_ONLY, *REFUSED])
def test_table_of_architectures_is_that_of_timm(name):
    """timm_architectures.json, which `load` reads without timm, against the modules of the installed timm."""
    assert json.loads(json.dumps(facts_of(build(name)))) == architectures()[name]


def test_survey_prints_its_counts(capsys):
    survey.main(["vit_base_patch16_sapiens2"])
    assert "Counter({'refused': " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "verdict", "detail"),
    [("pixio", "exact", "tokens and last hidden state"), ("sam3_vit_model", "exact", "tokens and last hidden state"),
     ("timesformer", "weights only", "patches of a video"),
     ("pp_chart2table_vision", "weights only", "windows and decomposed relative positions"),
     ("swin", "refused", "merges patches between stages"), ("pixtral", "refused", "rotary position embeddings")],
)  # fmt: skip
def test_sample_of_transformers(kind, verdict, detail):
    transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install -e '.[parity]'")
    if kind not in transformers.CONFIG_MAPPING:
        pytest.skip(f"this transformers has no {kind}")
    result = survey_transformers.survey(kind, transformers.CONFIG_MAPPING[kind])
    assert result.verdict == verdict
    assert detail in result.detail
