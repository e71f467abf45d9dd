"""The catalogue: every entry well formed, and every name that means one."""

import re
from collections import Counter
from pathlib import Path

import pytest

import qkjax
from conftest import DEFAULT
from qkjax.images.preprocess import PRESETS
from qkjax.weights import catalogue, preprocessing
from qkjax.weights.catalogue import augreg_names
from qkjax.weights.download.fetch import fetch

ENTRIES = catalogue.entries()
GOOGLE_FAMILIES = {"ViT", "AugReg", "SAM", "GSAM", "LiT", "DeiT-3", "SigLIP", "SigLIP 2", "FlexiViT", "CLIPPO", "UViM",
                   "TIPS", "TIPSv2"}  # fmt: skip
OTHER_FAMILIES = {"PaliGemma", "DINO", "DINOv2", "DINOv3", "CLIP", "DeiT", "SimMIM", "I-JEPA", "MAE", "EUPE",
                  "Perception Encoder", "EVA-02"}  # fmt: skip
SOURCES = {
    "gs": r"(vit_models|big_vision|tips_data)/[\w./+-]+\.npz",
    "hf": r"(google|facebook|openai|timm)/[\w.-]+",
    "https": r"https://[\w./-]+",
    "hand": r"https://[\w./-]+",
    "pypi": r"[\w-]+",
}
UPSTREAM = "B_16-i21k-300ep-lr_0.001-aug_medium2-wd_0.03-do_0.1-sd_0.1"
ADAPTED = f"{UPSTREAM}--cifar100-steps_0k-lr_0.003-res_384"


@pytest.mark.parametrize("name", ENTRIES)
def test_entry_is_well_formed(name):
    entry = ENTRIES[name]
    assert re.fullmatch(r"[a-z0-9.-]+", name)
    assert entry.family in GOOGLE_FAMILIES | OTHER_FAMILIES
    assert entry.objective in catalogue.OBJECTIVES or (entry.objective == "other" and entry.unsupported)
    assert entry.preprocess in PRESETS or (entry.preprocess == "not stated" and entry.unsupported)
    assert entry.pool in ("tok", "gap", "map", "none")
    assert entry.resolution in (224, 240, 256, 336, 384, 448, 512) or (entry.resolution == 0 and entry.unsupported)
    assert entry.title and entry.licence and entry.facts and entry.bytes >= 0
    source = {"gs": entry.path, "hf": entry.repo, "https": entry.url, "hand": entry.url, "pypi": entry.package}
    assert re.fullmatch(SOURCES[entry.kind], source[entry.kind])
    assert not any(text for kind, text in source.items() if text != source[entry.kind])
    assert (entry.kind == "hf") == bool(entry.revision)
    needs_heads = entry.kind in ("https", "hand") and not entry.unsupported  # files without config.json
    assert type(entry.heads) is int and (entry.heads > 0) == needs_heads


def test_images_are_prepared_at_the_resolution_of_the_entry():
    for name, wanted in {
        DEFAULT: ("small side", 256, 224),
        "vit-b16-i21k-i1k-384": ("squash", 384, 384),
        ADAPTED: ("small side", 448, 384),
        "siglip-b16-256-i18n": ("squash", 256, 256),
    }.items():
        preset = preprocessing.from_entry(catalogue.entry(name))
        assert (preset.resize, preset.resize_to, preset.crop) == wanted
    assert preprocessing.from_entry(catalogue.entry("me/mine")) is None
    for entry in ENTRIES.values():
        preset = preprocessing.from_entry(entry)
        assert bool(entry.unsupported) or (preset.crop == entry.resolution <= preset.resize_to), entry.name


def test_every_name_means_one_entry():
    texts = [t for e in ENTRIES.values() for t in (e.name, *e.aliases, e.repo, e.path) if t]
    texts += [(e.url, e.sub) for e in ENTRIES.values() if e.url]
    assert [t for t, count in Counter(texts).items() if count > 1] == []
    for entry in ENTRIES.values():
        for text in filter(None, (entry.name, *entry.aliases, entry.repo)):
            assert catalogue.is_name(text)
            assert catalogue.entry(text) is entry


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("howto-i21k-B/16", "vit-b16-augreg-i21k"),
        ("i1k-s16-90ep", "vit-s16-i1k-90ep"),
        ("deit3_L_384_21k", "deit3-l16-384-i21k"),
        ("SigLIP B/16-i18n 256", "siglip-b16-256-i18n"),
        ("SigLIP2 g-opt/16 384", "siglip2-gopt16-384"),
        ("SigLIP2 So400m/16 NaFlex", "siglip2-so400m16-naflex"),
        ("gs://big_vision/siglip/webli_en_b16_224_63724782.npz:img", "siglip-b16-224"),
        ("gs://big_vision/siglip/webli_en_b16_224_63724782.npz", "siglip-b16-224"),
        ("https://storage.googleapis.com/vit_models/sam/ViT-B_16.npz", "vit-b16-sam-i1k"),
        ("https://huggingface.co/facebook/dinov2-small", "dinov2-small"),
        ("facebook/dino-vitb16", "dino-vitb16"),
        ("openai/clip-vit-base-patch16", "clip-vit-b16"),
        ("B_16-i21k-300ep-lr_0.001-aug_medium1-wd_0.1-do_0.0-sd_0.0", "vit-b16-augreg-i21k"),
    ],
)
def test_other_names_of_an_entry(text, name):
    assert catalogue.is_name(text)
    assert catalogue.entry(text).name == name


def test_models_of_the_paper_are_there():
    hub = {e.repo for e in ENTRIES.values()}
    vit = ("base-patch16-224", "base-patch32-384", "large-patch16-224", "large-patch32-384", "huge-patch14-224-in21k")
    assert {f"google/vit-{x}" for x in vit} <= hub
    assert {f"openai/clip-vit-{x}" for x in ("base-patch16", "base-patch32", "large-patch14")} <= hub
    assert {f"facebook/deit-{x}-distilled-patch16-224" for x in ("tiny", "small", "base")} <= hub
    assert {"facebook/dino-vits16", "facebook/dino-vitb16", "facebook/ijepa_vith14_1k"} <= hub
    assert {"simmim-vitb16-pretrain", "simmim-vitb16-finetune", "ijepa-vith14-1k-predictor"} <= set(ENTRIES)


@pytest.mark.parametrize("wrap", ["{}", "{}.npz", "gs://vit_models/augreg/{}.npz", "vit_models/augreg/{}.npz"])
@pytest.mark.parametrize(("stem", "pixels"), [(UPSTREAM, 224), (ADAPTED, 384)])
def test_augreg_file_by_its_name(wrap, stem, pixels):
    text = wrap.format(stem)
    assert catalogue.is_name(text)
    entry = catalogue.entry(text)
    assert (entry.name, entry.path) == (stem, f"vit_models/augreg/{stem}.npz")
    assert (entry.family, entry.objective, entry.resolution) == ("AugReg", "classification", pixels)
    assert entry.preprocess in PRESETS and not entry.unsupported
    assert ("cifar100" in entry.title) == (pixels == 384)


def test_augreg_names_that_are_none():
    for text in (
        UPSTREAM.replace("medium2", "huge1"),
        f"{UPSTREAM}--mnist-steps_0k-lr_0.003-res_384",
        "Ti_16-i21k.npz",
    ):
        with pytest.raises(qkjax.QkjaxError, match="is not the name of a file in gs://vit_models/augreg/"):
            catalogue.entry(text)
    assert augreg_names.stem("B_16-mine.npz") is None  # a file of the user's own


@pytest.mark.parametrize("variant", augreg_names.HYBRIDS)
def test_hybrids_are_refused(variant):
    with pytest.raises(qkjax.QkjaxError, match="cannot be loaded: it is a hybrid of a ResNet"):
        qkjax.load(UPSTREAM.replace("B_16", variant))


@pytest.mark.parametrize("name", [n for n, e in ENTRIES.items() if e.unsupported])
def test_unsupported_entries_are_refused_with_their_reason(name, tmp_path, monkeypatch):
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path))
    for refuse in (fetch, qkjax.load):
        with pytest.raises(qkjax.QkjaxError, match=re.escape(f"{name} cannot be loaded: {ENTRIES[name].unsupported}")):
            refuse(name)
    assert list(tmp_path.iterdir()) == []


def test_unknown_names_say_the_nearest():
    for text, near in (("dinov2-vits14", DEFAULT), ("vit-b16-augreg-i12k", "vit-b16-augreg-i21k")):
        with pytest.raises(qkjax.QkjaxError, match=f"no model '{text}'.*nearest: '{near}'"):
            catalogue.entry(text)
        with pytest.raises(qkjax.QkjaxError, match="no model"):
            catalogue.is_name(text)


def test_paths_are_no_names(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for text in (
        "x.npz",
        "a/b.npz",
        "./dinov2-small",
        "/a/b",
        "a/b/c",
        "a/x.npz-000012345",
        "gs://bucket/x.npz",
        "x.npz:img",
    ):
        assert not catalogue.is_name(text), text
    Path("facebook").mkdir()
    assert not catalogue.is_name("facebook/mine"), "a path in a folder that is here"
    assert catalogue.is_name("facebook/dinov2-small")
    Path("facebook/dinov2-small").mkdir()
    assert not catalogue.is_name("facebook/dinov2-small"), "what is here comes before the hub"


def test_any_repository_of_the_hub_by_its_id():
    assert catalogue.is_name("timm/vit_base_patch16_224.augreg_in21k")
    entry = catalogue.entry("timm/vit_base_patch16_224.augreg_in21k")
    assert (entry.kind, entry.repo, entry.revision) == ("hf", "timm/vit_base_patch16_224.augreg_in21k", "main")


def test_paths_of_checkpoints(tmp_path, monkeypatch):
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path))
    assert catalogue.path_of(DEFAULT) == tmp_path / f"{DEFAULT}.npz"
    assert catalogue.path_of("vit-b16-i21k") == tmp_path / "gs/vit_models/imagenet21k/ViT-B_16.npz"
    assert not catalogue.path_of("dinov2-small").exists()
    assert catalogue.path_of("simmim-vitb16-pretrain") == tmp_path / "simmim-vitb16-pretrain.pth"
    predictor, encoder = (f"ijepa-vith14-1k-{part}" for part in ("predictor", "target-encoder"))
    assert catalogue.path_of(predictor) == catalogue.path_of(encoder), "one download for both"
    assert catalogue.path_of(encoder) == tmp_path / "https/dl.fbaipublicfiles.com/ijepa/IN1K-vit.h.14-300e.pth.tar"
    paths = [catalogue.path_of(name) for name, entry in ENTRIES.items() if entry.kind != "hf" and name != predictor]
    assert len(set(paths)) == len(paths)


def test_hub_snapshot_counts_only_when_whole(tmp_path, monkeypatch):
    monkeypatch.setenv("QKJAX_CHECKPOINTS", str(tmp_path))
    root = tmp_path / "hf" / "models--facebook--dinov2-small"
    commit = root / "snapshots" / "abc"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / "main").write_text("abc")
    commit.mkdir(parents=True)
    index, shards = commit / "model.safetensors.index.json", [commit / f"model-{i}.safetensors" for i in (1, 2)]
    index.write_text('{"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}')
    for file in (commit / "config.json", *shards):
        assert not catalogue.path_of("dinov2-small").exists()
        file.write_text("{}")
    assert catalogue.path_of("facebook/dinov2-small") == commit
    assert fetch("dinov2-small") == commit, "no connection is needed"


def test_search():
    assert catalogue.search() == ENTRIES
    assert list(catalogue.search("HOWTO-i21k-b/16")) == ["vit-b16-augreg-i21k"], "by an alias, whatever the case"
    assert list(catalogue.search("facebook/dino-vitb*")) == ["dino-vitb16", "dino-vitb8"]
    assert list(catalogue.search("dino-vitb")) == ["dino-vitb16", "dino-vitb8"], "a part needs no star"
    chosen = catalogue.search("384", "SIGLIP 2", "contrastive")
    assert chosen == {n: e for n, e in ENTRIES.items() if e.family == "SigLIP 2" and "384" in n}
    with pytest.raises(qkjax.QkjaxError, match=r"matches pattern 'dino', family 'MAE'.*`qkjax models` lists all"):
        catalogue.search("dino", family="mae")
    with pytest.raises(qkjax.QkjaxError, match="unknown family 'dino3'; the catalogue has AugReg, CLIP"):
        catalogue.search(family="dino3")
