"""SAM 3's image encoder, whose attention has windows: random weights against transformers, and float64 loops.

Every parameter is moved from its initial value. Hidden states agree to 1e-5 of their range, and attention to 1e-5.
"""

import itertools
import json
from dataclasses import replace

import numpy as np
import pytest
from test_rotary_eva import SMALL, assert_close

import qkjax
from conftest import moved
from qkjax import figures
from qkjax.analyses import analyze
from qkjax.analyses.image_rotary import rotary_heads
from qkjax.analyses.image_sheets import ImageSheets, write_image
from qkjax.images.generated import patterns
from qkjax.images.segmented import mosaics
from qkjax.passes.options import PassOptions
from qkjax.report.job import ReportOptions, report
from qkjax.vit.model import forward
from qkjax.vit.rotary_config import Rotary
from qkjax.vit.tree import with_query_key
from qkjax.weights.checkpoint import digest_of_parameters

SAM3 = SMALL | {"num_hidden_layers": 3, "image_size": 56, "pretrain_image_size": 28, "window_size": 4,
                "global_attn_indexes": [1], "model_type": "sam3_vit_model"}  # fmt: skip
SIZES = {"one window": (28, 28), "four windows": (56, 56), "not square": (56, 84)}
"""Windows have 4 x 4 patches of 7 pixels, and the position embedding has 4 x 4 patches."""

OTHER = {"pretrain_image_size": 21, "global_attn_indexes": [], "rope_parameters": {"rope_type": "axial",
         "rope_theta": 100.0}, "layer_norm_eps": 1e-3}  # fmt: skip
"""Tiles of 3 x 3 patches, which do not fill the grid, no global layers, another temperature and another epsilon."""


@pytest.fixture
def sam3(torch):
    return pytest.importorskip("transformers.models.sam3.modeling_sam3")


def sam3_model(torch, sam3, **fields):
    torch.manual_seed(0)
    config = sam3.Sam3VisionConfig(
        backbone_config=SAM3 | fields, fpn_hidden_size=16, attn_implementation="eager",
    )  # fmt: skip
    return moved(sam3.Sam3VisionModel(config)).eval()


def at_size(sam3, model, pixels):
    """The same model with the places of another size of image; transformers takes (width, height)."""
    for layer in model.backbone.layers:
        layer.config.image_size = pixels[::-1]
        layer.position_ids = layer.precompute_positions(layer.config, layer.window_size)
    return model


@pytest.fixture
def checkpoint(torch, sam3, tmp_path):
    sam3_model(torch, sam3).save_pretrained(tmp_path)
    return qkjax.load(tmp_path)


def tokens_and_attention(torch, model, images):
    tokens, weights = [], []
    hooks = [layer.register_forward_hook(lambda _, __, out: tokens.append(out)) for layer in model.backbone.layers]
    hooks += [layer.attention.register_forward_hook(lambda _, __, out: weights.append(out[1]))
              for layer in model.backbone.layers]  # fmt: skip
    with torch.no_grad():
        model.backbone(images)
    for hook in hooks:
        hook.remove()
    return tokens, weights


def whole_attention(weights, grid, size: int):
    """Attention (images x windows, heads, keys, keys) as attention between all patches, by loops over windows."""
    rows, columns = grid
    count = rows // size * (columns // size)
    if weights.shape[-1] == rows * columns:
        return weights
    images, heads = len(weights) // count, weights.shape[1]
    result = np.zeros((images, heads, rows * columns, rows * columns), np.float32)
    for number in range(len(weights)):
        image, (row, column) = number // count, divmod(number % count, columns // size)
        patches = [(row * size + r) * columns + column * size + c for r in range(size) for c in range(size)]
        result[image][np.ix_(range(heads), patches, patches)] = weights[number]
    return result


@pytest.mark.parametrize(("name", "fields"), [*((name, {}) for name in SIZES), ("not square", OTHER)])
def test_transformers(torch, sam3, tmp_path, name, fields):
    model = sam3_model(torch, sam3, **fields)
    model.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path)
    assert checkpoint.config.window == 4
    assert checkpoint.config.global_layers == tuple(fields.get("global_attn_indexes", (1,)))
    pixels, grid = SIZES[name], tuple(n // 7 for n in SIZES[name])
    images = torch.randn(2, 3, *pixels, generator=torch.Generator().manual_seed(1))
    tokens, weights = tokens_and_attention(torch, at_size(sam3, model, pixels), images)
    inputs = images.numpy().transpose(0, 2, 3, 1)
    output, ours = qkjax.forward(checkpoint, inputs, ("residual", "attention", "attention_logits"))
    for layer, weight in enumerate(weights):
        expected = whole_attention(weight.numpy(), grid, 4)
        np.testing.assert_allclose(ours["attention"][layer], expected, atol=1e-5, rtol=0)
        assert (np.isneginf(ours["attention_logits"][layer]) == (expected == 0)).all()
    for layer, token in enumerate(tokens[:-1]):
        assert_close(ours["residual"][layer + 1], token.flatten(1, 2))
    assert_close(ours["encoded"], tokens[-1].flatten(1, 2))
    assert_close(output, tokens[-1].flatten(1, 2).mean(1))
    _, uncaptured = qkjax.forward(checkpoint, inputs)  # windows are computed by themselves
    assert_close(uncaptured["encoded"], tokens[-1].flatten(1, 2))


def test_attention_of_some_queries(checkpoint):
    images = np.random.default_rng(0).normal(size=(1, 56, 84, 3)).astype(np.float32)
    model, names = qkjax.ViT(checkpoint.config), ("attention", "attention_logits")
    every = model.apply({"params": checkpoint.params}, images, capture=names)[1]["encoder"]
    some = model.apply({"params": checkpoint.params}, images, capture=names, queries=np.array([0, 17, 95]))[1][
        "encoder"
    ]
    for layer, name in itertools.product(("block00", "block01"), names):
        np.testing.assert_allclose(some[layer][name], every[layer][name][:, :, [0, 17, 95]], atol=1e-6)


@pytest.mark.parametrize("pixels", [(28, 35), (21, 28), (42, 56)])
def test_incomplete_windows_are_refused(checkpoint, pixels):
    with pytest.raises(qkjax.QkjaxError, match=r"resolution=.*whole windows of 4 x 4 patches.*28 pixels") as caught:
        qkjax.forward(checkpoint, np.zeros((1, *pixels, 3), np.float32))
    assert "\n" not in str(caught.value)


def test_saved_file_keeps_the_windows(checkpoint, tmp_path):
    qkjax.save(checkpoint, tmp_path / "own.npz")
    assert qkjax.load(tmp_path / "own.npz").config == checkpoint.config


@pytest.mark.parametrize(("field", "value"), [("window", 2), ("global_layers", (1, 2)), ("posemb_resample", "bicubic")])
def test_every_field_of_the_windows_decides_the_tokens(checkpoint, field, value):
    images = np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32)
    configs = checkpoint.config, replace(checkpoint.config, **{field: value})
    ours, other = (np.asarray(forward(qkjax.ViT(config), checkpoint.params, images)[0]) for config in configs)
    assert np.abs(ours - other).max() > 1e-4 * np.ptp(ours)


def rotations(sam3, torch, model, layer: int):
    """R(p) of all places of a layer, from the code of transformers: (places, head_dim, head_dim)."""
    block = model.backbone.layers[layer]
    cosine, sine = (x[0].double() for x in block.rotary_emb(torch.zeros(1), block.position_ids))
    eye = torch.eye(cosine.shape[-1], dtype=torch.float64).expand(len(cosine), -1, -1)
    return (eye * cosine[:, None] + sam3.rotate_pairwise(eye.contiguous()) * sine[:, None]).numpy()


def kernels(model, layer: int):
    """Wq and Wk of all heads in float64: (heads, embed, head_dim)."""
    attention = model.backbone.layers[layer].attention
    both = (x.weight.detach().double().numpy() for x in (attention.q_proj, attention.k_proj))
    return [x.reshape(4, -1, x.shape[1]).swapaxes(1, 2) for x in both]


@pytest.mark.parametrize("grid", [None, (8, 8), (8, 12)])
def test_modes_are_those_of_the_mean_over_places_of_each_layer(torch, sam3, tmp_path, grid):
    """Within windows, for any grid; and in the global layer, over the whole grid, by default that of one window."""
    model = sam3_model(torch, sam3)
    model.save_pretrained(tmp_path)
    rows, columns = grid or (4, 4)
    at_size(sam3, model, (7 * rows, 7 * columns))
    modes = qkjax.decompose(qkjax.load(tmp_path), grid=grid)
    assert ("windows of 4 x 4" in str(modes.frame)) == (grid is not None)
    for layer in range(3):
        mean = rotations(sam3, torch, model, layer).mean(0)
        for head, (q, k) in enumerate(zip(*kernels(model, layer), strict=True)):
            u, s, v = (np.asarray(x[layer, head], np.float64) for x in (modes.u, modes.s, modes.v))
            np.testing.assert_allclose((u * s) @ v.T, q @ mean @ mean.T @ k.T, atol=1e-5 * s[0])


@pytest.mark.parametrize("grid", [None, (8, 12)])
def test_products_of_the_maps_are_the_logits_within_windows(checkpoint, grid):
    """Without biases; all planes have c > 0, so that the modes give the logits of every pair that attends."""
    params = qkjax.query_key(checkpoint)
    params = with_query_key(checkpoint.params, params._replace(query_bias=0 * params[2], key_bias=0 * params[3]))
    unbiased, size = replace(checkpoint, params=params), (56, 84)
    photograph = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8)
    modes = qkjax.decompose(unbiased, grid=grid)
    maps = qkjax.query_key_maps(unbiased, photograph, modes, resolution=size)
    images = qkjax.preprocess(unbiased, photograph, resolution=size)[None]
    logits = np.asarray(qkjax.forward(unbiased, images, ("attention_logits",))[1]["attention_logits"])[:, 0]
    of_heads = rotary_heads(unbiased, modes).maps
    assert abs(of_heads.rest).max() < 1e-3
    query, key = (x[:, 0].reshape(3, 96, 4, -1).astype(np.float64) for x in (maps.query, maps.key))
    terms = np.einsum("lihn,lhn,ljhn->lhij", query, of_heads.s, key) / np.sqrt(12)
    attends = np.isfinite(logits)
    assert attends[1].all() and attends[0].mean() == 1 / 6
    assert abs(terms - logits)[attends].max() < 1e-4 * np.ptp(logits[attends])


def test_shares_of_the_logits_are_over_the_keys_of_a_window(checkpoint):
    """All terms add up to 1, and the share of the first mode is that of the definition, window by window."""
    photograph, size = np.random.default_rng(1).integers(0, 256, (70, 90, 3), np.uint8), (56, 84)
    shares = qkjax.attribute_logits(checkpoint, photograph, resolution=size)
    assert "windows of 4 x 4 patches, except in layer 1; shares are over the keys" in shares.attrs["summary"]
    names = ("key_bias", "query_bias", "offset_bias", "rest")
    for kind in ("variance", "attention"):
        total = shares[f"{kind}_share"].sum("mode") + sum(shares[f"{name}_{kind}_share"] for name in names)
        np.testing.assert_allclose(total, 1, atol=1e-4)
    maps = qkjax.query_key_maps(checkpoint, photograph, resolution=size)
    images = qkjax.preprocess(checkpoint, photograph, resolution=size)[None]
    captured = qkjax.forward(checkpoint, images, ("attention_logits", "attention"))[1]
    s = rotary_heads(checkpoint, qkjax.decompose(checkpoint)).maps.s
    window = np.arange(8)[:, None] // 4 * 3 + np.arange(12)[None] // 4
    groups = [np.flatnonzero(window.ravel() == number) for number in range(6)]
    for layer, head in itertools.product((0, 2), range(4)):
        logits, weights = (
            np.asarray(captured[name][layer, 0, head], np.float64) for name in ("attention_logits", "attention")
        )
        query, key = (np.asarray(x[layer, 0, :, :, head, 0], np.float64).ravel() for x in (maps.query, maps.key))
        for kind in ("variance", "attention"):
            above = below = 0.0
            for group in groups:
                own, term = logits[np.ix_(group, group)], np.multiply.outer(query[group], key[group])
                term = term * s[layer, head, 0] / np.sqrt(12)
                w = np.full(own.shape, 1 / 16) if kind == "variance" else weights[np.ix_(group, group)]
                own, term = (x - (w * x).sum(1, keepdims=True) for x in (own, term))
                above, below = above + (w * own * term).sum(), below + (w * own**2).sum()
            assert abs(float(shares[f"{kind}_share"][layer, head, 0]) - above / below) < 1e-3


def test_measures_of_positions_are_those_of_one_window(checkpoint):
    one, several = qkjax.analyze(checkpoint), qkjax.analyze(checkpoint, grid=(8, 8))
    assert one.offset_cosine.shape == (3, 4, 7, 7) and "position_share" not in several
    assert "grid is one window" in one.attrs["summary"] and "in layer 1. In larger images" in one.attrs["summary"]
    assert (
        "8 x 8 grid, or of its windows of 4 x 4. How" in several.attrs["summary"]
        and "[8, 8]" in several.attrs["options"]
    )
    assert np.isfinite(several.weighted_cosine).all() and analyze.describe(several).text
    layers = [0, 2]  # the modes of layers with windows are the same in both
    np.testing.assert_allclose(one.singular_value[layers], several.singular_value[layers], rtol=1e-5)
    assert abs(one.singular_value[1] - several.singular_value[1]).max() > 1e-3
    with pytest.raises(qkjax.QkjaxError, match=r"several windows.*pass grid=\(4, 4\)"):
        qkjax.decompose(checkpoint, offset=(0, 1), grid=(8, 8))
    with pytest.raises(qkjax.QkjaxError, match=r"grid=\(6, 8\).*whole windows of 4 x 4"):
        qkjax.decompose(checkpoint, grid=(6, 8))


def test_analyses_of_the_whole_image_need_one_window(checkpoint, tmp_path):
    several, one = (PassOptions(batch=2, resolution=size) for size in ((56, 56), (28, 28)))
    few, _ = qkjax.images.photographs().spread(2)
    specs = [{"edit": "drop", "select": "modes=0"}]
    analyses = {
        "preference": lambda options: qkjax.attention_preference(
            checkpoint, patterns(count=2, seed=0), options=options
        ),
        "objects": lambda options: qkjax.same_object(checkpoint, mosaics(count=2, seed=0), top=1, options=options),
        "ablate": lambda options: qkjax.ablate(checkpoint, specs, few, match="strength", options=options),
        "sinks": lambda options: qkjax.attention_sinks(checkpoint, few, options=options),
        "tokens": lambda options: qkjax.token_statistics(checkpoint, few, options=options),
        "contrast": lambda options: qkjax.contrastive_covariance(checkpoint, mosaics(count=2, seed=0), options=options),
    }
    for run in analyses.values():
        with pytest.raises(qkjax.QkjaxError, match=r"8 x 8 patches, and .*: pass resolution=\(28, 28\)") as caught:
            run(several)
        assert "\n" not in str(caught.value)
        assert run(one).sizes


def test_folder_of_the_whole_model(torch, sam3, tmp_path):
    """As in SAM 3's published folder: a tracker and a detector, in which the image encoder is one of the parts."""
    from safetensors.torch import save_file

    model = sam3_model(torch, sam3)
    state = {f"detector_model.vision_encoder.{name}": x.contiguous() for name, x in model.state_dict().items()}
    save_file(state | {"tracker_neck.fpn_layers.0.proj1.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    detector = {"model_type": "sam3", "vision_config": model.config.to_dict()}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "sam3_video", "detector_config": detector}))
    ours, alone = qkjax.load(tmp_path), qkjax.load(model)
    assert ours.config == alone.config and ours.preprocess.crop == 1008
    assert digest_of_parameters(ours.params) == digest_of_parameters(alone.params)


def test_windows_of_a_bare_file_are_not_guessed(torch, sam3, tmp_path):
    model = sam3_model(torch, sam3)
    torch.save(model.backbone.state_dict(), tmp_path / "model.pt")
    with pytest.raises(qkjax.QkjaxError, match=r"resemble .*SAM 3.*pass rotary=.*window=") as caught:
        qkjax.load(tmp_path / "model.pt", heads=4)
    assert "\n" not in str(caught.value)
    settings = {"rotary": Rotary(10000.0, first="columns"), "window": 4, "global_layers": (1,), "final_norm": False}
    ours = qkjax.load(tmp_path / "model.pt", heads=4, posemb_resample="tile", norm_eps=1e-6, **settings,
                      activation="gelu")  # fmt: skip
    assert ours.config == qkjax.load(model).config
    for name, value in {"window": -1, "global_layers": (1.5,)}.items():
        with pytest.raises(qkjax.QkjaxError, match=f"{name}=.*expected"):
            qkjax.load(tmp_path / "model.pt", **{name: value})


def test_edits_act_on_the_modes_of_one_window(checkpoint):
    modes = qkjax.decompose(checkpoint)
    with pytest.warns(UserWarning, match="depends on the places of query and key"):
        edited = qkjax.edit(checkpoint, "drop", "modes=0")
    np.testing.assert_allclose(qkjax.decompose(edited).s[..., :-1], modes.s[..., 1:], atol=1e-5 * modes.s.max())
    images = np.random.default_rng(0).normal(size=(1, 56, 56, 3)).astype(np.float32)
    before, after = (np.asarray(qkjax.forward(x, images)[0]) for x in (checkpoint, edited))
    assert np.abs(before - after).max() > 1e-3 * np.ptp(before)
    with pytest.raises(qkjax.QkjaxError, match="big_vision"):
        qkjax.export(checkpoint, "never.npz")


def test_report_needs_one_window(checkpoint, tmp_path):
    qkjax.save(checkpoint, tmp_path / "own.npz")
    with pytest.raises(qkjax.QkjaxError, match=r"144 x 144 patches, and the page .*: pass resolution=\(28, 28\)"):
        report((str(tmp_path / "own.npz"),), None, tmp_path / "report", ReportOptions(), {})
    assert not (tmp_path / "report").exists()


def test_sheets_show_the_windows(checkpoint, tmp_path, monkeypatch):
    """In layers with windows, a title of two lines, and white lines between the windows."""
    drawn = []
    monkeypatch.setattr(figures, "contact_sheet", lambda title, pixels, _: drawn.append((title, pixels)))
    monkeypatch.setattr(figures, "save", lambda *_: None)
    write_image(checkpoint, "chelsea", tmp_path, ImageSheets(resolution=(56, 84)))
    assert [("same window" in title) for title, _ in drawn] == [True, False, True]
    lines = [(pixels[27:29] == 255).all() & (pixels[:, [27, 28, 55, 56]] == 255).all() for _, pixels in drawn]
    assert lines == [True, False, True]
