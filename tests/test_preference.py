"""Attention preference: exact on attention made by hand, equal to plain passes on models, and readers that explain."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import xarray as xr
from commands import command
from PIL import Image

import qkjax
from qkjax.activations.attention import region_attention
from qkjax.analyses.preference import compute
from qkjax.analyses.preference.compute import anisotropy
from qkjax.analyses.preference.tables import by_head, links, preference_by_head, preference_table
from qkjax.images.generated import patterns
from qkjax.images.o3 import open_o3
from qkjax.images.preprocess import PRESETS, Preprocess, normalise
from qkjax.images.scenes import Scene, crop_to_model
from qkjax.passes import engine
from qkjax.vit.model import forward
from qkjax.weights.checkpoint import write_checkpoint

SIDE = 32
PRESET = Preprocess("squash", "pil-bilinear", SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
SMALL = qkjax.ViTConfig(
    width=24, depth=3, heads=4, head_dim=6, mlp_dim=48, patch_size=(8, 8), grid=(4, 4), pool="tok", class_token=True
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    rng = np.random.default_rng(0)
    tree = qkjax.ViT(SMALL).init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3)))["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), tree)
    path = tmp_path_factory.mktemp("model") / "small.npz"
    write_checkpoint(path, SMALL, params, PRESET)
    return qkjax.load(path)


@pytest.mark.gpu
def test_hand_made_attention():
    """Nine patches and a class token: target two patches, distractors three and a half, background the rest."""
    target, distractors = np.zeros(9), np.zeros(9)
    target[:2], distractors[2:5], distractors[5] = 1, 1, 0.5
    regions = np.stack([target, distractors, 1 - target - distractors])
    uniform = np.full((2, 10), 0.1)
    itself = np.eye(10)[[1, 3]]
    only_distractors = np.concatenate([[0.5], 0.5 * distractors / 3.5])[None].repeat(2, 0)
    attention = jnp.asarray(np.stack([uniform, itself, only_distractors]), jnp.float32)
    found = region_attention(attention, jnp.asarray(regions, jnp.float32), jnp.array([0, 2]))
    np.testing.assert_allclose(found.mass[0], [[2 / 9, 3.5 / 9, 3.5 / 9]] * 2, atol=1e-6)
    np.testing.assert_allclose(found.own[0], 1 / 9, atol=1e-6)
    np.testing.assert_allclose(found.special, [[0.1] * 2, [0] * 2, [0.5] * 2], atol=1e-6)
    np.testing.assert_allclose(found.mass[1], [[1, 0, 0], [0, 1, 0]], atol=1e-6)
    np.testing.assert_allclose(found.own[1], 1, atol=1e-6)
    np.testing.assert_allclose(found.mass[2], [[0, (3 + 0.25) / 3.5, 0.25 / 3.5]] * 2, atol=1e-6)


def test_tables_of_hand_made_attention():
    """Uniform attention is 1 times uniform; attention to the own kind alone is 1, 0, 0."""
    regions = np.array([0.1, 0.3, 0.6])
    mass = np.zeros((4, 2, 1, 2, 3))
    mass[:, 0, 0] = regions
    mass[:, 1, 0] = [[1, 0, 0], [0, 1, 0]]
    dataset = xr.Dataset(
        {
            "mass": (("image", "layer", "head", "query", "region"), mass),
            "own": (("image", "layer", "head", "query"), np.full((4, 2, 1, 2), 0.25)),
            "special": (("image", "layer", "head", "query"), np.zeros((4, 2, 1, 2))),
            "similarity": (("image", "layer", "head"), np.zeros((4, 2, 1))),
            "area": (("image", "region"), np.tile(regions, (4, 1))),
            "covered": (("image", "query"), np.full((4, 2), 0.5)),
            "anisotropy": (("stream", "layer"), np.zeros((2, 2))),
            "weighted_cosine": (("layer", "head"), np.array([[0.5], [0.25]])),
        },
        coords={"stream": ["residual", "norm"]},
    )
    uniform, own = preference_table(dataset)
    for kind, share in {"same": 0.2, "different": 0.2, "background": 0.6}.items():
        assert uniform[kind] == pytest.approx(share)
        assert uniform[f"{kind}_times_uniform_low"] == pytest.approx(1)
    assert (own["same"], own["different"], own["background"]) == (1, 0, 0)
    assert own["same_times_uniform"] == pytest.approx((10 + 1 / 0.3) / 2)
    assert own["same_without_own"] == pytest.approx((1 - 0.125) / 0.75)
    np.testing.assert_allclose(by_head(dataset)["same_over_different"], [[0], [np.inf]])


@pytest.mark.gpu
def test_measures_are_those_of_plain_passes(checkpoint):
    """Against float64 arithmetic on attention of single passes, in batches that are not full."""
    scenes = patterns(5, seed=1)
    result = qkjax.attention_preference(checkpoint, scenes, options=qkjax.PassOptions(batch=2))
    assert result.image.values.tolist() == list(scenes.names)
    centres = []
    for index in range(5):
        pixels, regions = crop_to_model(scenes.read(index), "", PRESET, None, (8, 8))
        _, out = forward(
            qkjax.ViT(SMALL), checkpoint.params, normalise(pixels, PRESET)[None],
            capture=("attention", "norm", "residual"),
        )  # fmt: skip
        attention = np.asarray(out["attention"], np.float64)[:, 0]
        flat = regions.reshape(3, 16)
        place = flat[:2].argmax(1)
        share = attention[:, :, 1 + place, 1:]
        share = share / share.sum(-1, keepdims=True)
        row = result.isel(image=index)
        np.testing.assert_array_equal(row.place, place)
        np.testing.assert_allclose(row.mass, share @ flat.T, atol=1e-5)
        np.testing.assert_allclose(row.own, [[[h[0, place[0]], h[1, place[1]]] for h in layer] for layer in share],
                                   atol=1e-5)  # fmt: skip
        np.testing.assert_allclose(row.special, attention[:, :, 1 + place, 0], atol=1e-5)
        np.testing.assert_allclose(row.area, flat.mean(1), atol=1e-6)
        y = np.asarray(out["norm"], np.float64)[:, 0, 1:]
        unit, others = y / np.linalg.norm(y, axis=-1, keepdims=True), 1 - np.eye(16)
        given = attention[:, :, 1:, 1:] * others
        cosine = unit @ np.swapaxes(unit, -1, -2)
        weighted = (given * cosine[:, None]).sum(-1) / given.sum(-1) - ((cosine * others).sum(-1) / 15)[:, None]
        np.testing.assert_allclose(row.similarity, weighted.mean(-1), atol=1e-5)
        assert row.target_patches == pytest.approx(flat[0].sum(), abs=1e-5)
        centre = np.stack([np.asarray(out[name][:, 0, 1 + 2 * 4 + 2], np.float64) for name in ("residual", "norm")])
        centres.append(centre / np.linalg.norm(centre, axis=-1, keepdims=True))
    pairs = [(a * b).sum(-1) for i, a in enumerate(centres) for j, b in enumerate(centres) if i != j]
    np.testing.assert_allclose(result.anisotropy, np.mean(pairs, axis=0), atol=1e-5)
    assert np.isnan(anisotropy(np.ones((2, 3, 24)), 1)).all()


def test_the_frame_of_the_cosine(checkpoint):
    """The attention is the same in both frames; the weighted cosine is that of modes in the frame."""
    scenes = patterns(3, seed=1)
    plain, folded = (qkjax.attention_preference(checkpoint, scenes, frame=frame) for frame in ("plain", "folded"))
    np.testing.assert_array_equal(plain.mass, folded.mass)
    for result, fold_scale in ((plain, False), (folded, True)):
        own = qkjax.measure(qkjax.decompose(checkpoint, fold_scale=fold_scale)).weighted_cosine
        np.testing.assert_array_equal(result.weighted_cosine, own)
    assert (plain.attrs["frame"], folded.attrs["frame"]) == ("plain frame", "folded frame")
    assert not np.allclose(plain.weighted_cosine, folded.weighted_cosine)
    axes = qkjax.describe(folded).figures["links"]().axes[0]
    assert axes.get_xlabel().endswith("(folded frame)")
    with pytest.raises(qkjax.QkjaxError, match="frame='tokens': expected 'plain' or 'folded'"):
        qkjax.attention_preference(checkpoint, scenes, frame="tokens")


def test_a_pass_that_was_stopped_goes_on_to_the_same_bits(checkpoint, tmp_path, monkeypatch):
    scenes, part = patterns(9, seed=0), tmp_path / "part.npz"
    options = {"options": qkjax.PassOptions(batch=2), "partial": part}
    whole = qkjax.attention_preference(checkpoint, scenes, options=qkjax.PassOptions(batch=2))
    calls, step = [], compute._step

    def stopped(*arguments):
        calls.append(1)
        if len(calls) == 3:
            raise SystemExit
        return step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(engine, "SAVE_SECONDS", -1.0)
        patched.setattr(compute, "_step", stopped)
        with pytest.raises(SystemExit):
            qkjax.attention_preference(checkpoint, scenes, **options)
    monkeypatch.setattr(compute, "_step", lambda *a: (calls.append(1), step(*a))[1])
    again = qkjax.attention_preference(checkpoint, scenes, **options)
    assert len(calls) == 3 + 3, "two of five batches were done"
    xr.testing.assert_identical(again, whole)
    with pytest.raises(qkjax.QkjaxError, match=r"interrupted pass with different settings \(images\)"):
        qkjax.attention_preference(checkpoint, patterns(9, seed=1), **options)


def test_attention_is_that_of_transformers(tmp_path):
    """Of a random ViT with large biases, layer by layer, to 1e-5."""
    torch = pytest.importorskip("torch", reason="needs the parity extra: pip install 'qkjax[parity]'")
    transformers = pytest.importorskip("transformers", reason="needs the parity extra: pip install 'qkjax[parity]'")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48, image_size=32, patch_size=8,
        initializer_range=0.3, attn_implementation="eager",
    )  # fmt: skip
    theirs = transformers.ViTModel(config, add_pooling_layer=False).eval()
    for name, parameter in theirs.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    with torch.no_grad():
        wanted = theirs(torch.tensor(images.transpose(0, 3, 1, 2)), output_attentions=True).attentions
    theirs.save_pretrained(tmp_path)
    checkpoint = qkjax.load(tmp_path, heads=4)
    _, out = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images, capture=("attention",))
    np.testing.assert_allclose(out["attention"], np.stack([w.numpy() for w in wanted]), atol=1e-5)


def write_o3(folder, names=("b", "a"), size=(48, 40)):
    """A copy of O3's layout, with JPEG masks: target on the left, distractors on the right."""
    for part in ("images", "targ_labels", "dist_labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        Image.fromarray(rng.integers(0, 256, (*size[::-1], 3), dtype=np.uint8)).save(folder / "images" / f"{name}.jpg")
        for part, box in {"targ_labels": np.s_[8:32, 4:20], "dist_labels": np.s_[8:32, 28:44]}.items():
            mask = np.zeros(size[::-1], np.uint8)
            mask[box] = 255
            Image.fromarray(mask).save(folder / part / f"{name}.jpg")


def test_o3_in_its_published_layout(tmp_path):
    root = tmp_path / "zip" / "O3"
    write_o3(root)
    (root / "image_properties.csv").write_text("image_name,num_distractors\na.jpg,1\ngone.jpg,2\n")
    (root / "images" / "alone.jpg").write_bytes((root / "images" / "a.jpg").read_bytes())
    scenes = open_o3(tmp_path / "zip")
    assert scenes.names == ("a.jpg", "b.jpg")
    assert dict(scenes.left_out) == {
        "alone.jpg": "no mask of the target and distractors in targ_labels",
        "gone.jpg": "the table lists this image, but there is no such file",
    }
    scene = scenes.read(0)
    assert set(np.unique(scene.target)) == {0, 255}, "the noise of JPEG is gone"
    assert (scene.target > 0).sum() == 24 * 16
    pixels, regions = crop_to_model(scene, "a", PRESET, None, (8, 8))
    assert pixels.shape == (32, 32, 3)
    np.testing.assert_allclose(regions.sum(0), 1, atol=1e-9)
    assert regions[0].mean() == pytest.approx(24 * 16 / (48 * 40), abs=0.01), "areas are kept"
    assert open_o3(root).fingerprint == scenes.fingerprint
    p3 = tmp_path / "P3"
    for part in ("colors", "sizes"):
        write_o3(p3 / part, names=("x",))
        (p3 / part / "targ_labels").rename(p3 / part / "targ_images")
    assert open_o3(p3).names == ("colors/x.jpg", "sizes/x.jpg")


def test_o3_that_is_not_as_published(tmp_path, capsys, monkeypatch):
    """Two images of one name, an image that is to be turned, a table of other bytes; masks that change are seen."""
    write_o3(tmp_path, names=("a", "b"), size=(48, 48))
    Image.new("RGB", (48, 48)).save(tmp_path / "images" / "a.png")
    (tmp_path / "image_properties.csv").write_bytes("image_name,by\na.jpg,René\ngone.jpg,x\n".encode("latin-1"))
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (48, 48)).save(tmp_path / "images" / "b.jpg", exif=exif)
    done = command(monkeypatch, capsys, "preference", "any", "--o3", tmp_path, "--count", 3)
    assert done.code == 2
    assert "--count applies only to generated scenes, but --o3 is given: remove one" in done.err
    scenes = open_o3(tmp_path)
    assert scenes.names == ("a.jpg", "b.jpg")
    assert dict(scenes.left_out) == {
        "a.png": "a.jpg has the same name without suffix",
        "gone.jpg": "the table lists this image, but there is no such file",
    }  # fmt: skip
    with pytest.raises(qkjax.QkjaxError, match=r"b\.jpg: the EXIF orientation rotates the image"):
        scenes.read(1)
    mask = tmp_path / "targ_labels" / "a.jpg"
    data = bytearray(mask.read_bytes())
    data[-3] ^= 1
    mask.write_bytes(data)
    assert open_o3(tmp_path).fingerprint != scenes.fingerprint


def test_small_targets_have_their_area_whatever_the_filter():
    """Nine pixels of 512 x 512, where bicubic would have lobes around them."""
    target, distractors = (np.zeros((512, 512), np.uint8) for _ in range(2))
    target[200:203, 200:203], distractors[300:400, 300:400] = 255, 255
    _, regions = crop_to_model(
        Scene(Image.new("RGB", (512, 512)), target, distractors), "x", PRESETS["hf-dinov2"], 224, (14, 14)
    )
    assert regions[0].sum() == pytest.approx(9 * (256 / 512) ** 2 / 14**2, rel=0.02)


def test_scenes_that_are_not_whole_are_explained(tmp_path):
    image = Image.new("RGB", (40, 40))
    one, none, all_over = (np.zeros((40, 40), np.uint8) for _ in range(3))
    one[10:20, 10:20], all_over[:] = 255, 255
    corner = np.zeros((40, 40), np.uint8)
    corner[:2, :2] = 255
    cut = PRESETS["bigvision-small-crop"]
    for scene, says, preset in (
        (Scene(image, one, none), "x: the mask of the distractors is empty", PRESET),
        (
            Scene(image, one, one[:30]),
            "x: the mask of the distractors has 40 x 30 pixels: expected the size of the image, 40 x 40",
            PRESET,
        ),
        (Scene(image, one, all_over), "x: the masks of target and distractors overlap in 100 pixels", PRESET),
        (Scene(image, corner, one), "x: in the crop that the model sees, the target", cut),
    ):
        with pytest.raises(qkjax.QkjaxError, match=says):
            crop_to_model(scene, "x", preset, None, (8, 8))
    for path, says in {
        "none": "there is no folder .*none: pass the folder of the unpacked O3 data set",
        ".": "is not the O3 data set: the O3 data set has the folders images, targ_labels and dist_labels",
    }.items():
        with pytest.raises(qkjax.QkjaxError, match=says):
            open_o3(tmp_path / path)
    write_o3(tmp_path / "O3")
    for file in (tmp_path / "O3" / "dist_labels").iterdir():
        file.unlink()
    with pytest.raises(qkjax.QkjaxError, match="none of 2 images has both masks"):
        open_o3(tmp_path)


@pytest.mark.parametrize("kind", ["patterns", "pasted"])
def test_generated_scenes_are_the_same_for_everyone_and_their_masks_exact(kind):
    scenes, again = patterns(6, 3, kind), patterns(6, 3, kind)
    for index in range(6):
        scene = scenes.read(index)
        assert all(np.array_equal(a, b) for a, b in zip(scene, again.read(index), strict=True))
        assert not ((scene.target > 127) & (scene.distractors > 127)).any()
        share = [(mask > 127).mean() for mask in (scene.target, scene.distractors)]
        assert 0.0005 < share[0] < share[1] < 0.4
        for preset in (PRESETS["hf-dinov2"], PRESET):
            crop_to_model(scene, scenes.names[index], preset, 224, (14, 14))  # within what any model sees
    if kind == "patterns":
        scene = scenes.read(0)  # an odd colour: within each mask the bars are of one colour, and the two differ
        pixels = np.asarray(scene.image, float)
        colours = [pixels[mask == 255] for mask in (scene.target, scene.distractors)]
        assert max(c.std(axis=0).max() for c in colours) < 1
        assert np.abs(colours[0].mean(0) - colours[1].mean(0)).max() > 50
    assert not np.array_equal(patterns(6, 4, kind).read(0).target, scenes.read(0).target)


def test_the_command_writes_tables_figures_and_what_is_left_out(checkpoint, tmp_path, monkeypatch, capsys):
    root = tmp_path / "O3"
    write_o3(root, names=("a", "b", "c"))
    Image.fromarray(np.zeros((40, 48), np.uint8)).save(root / "targ_labels" / "c.jpg")

    def run(models, out, *words):
        done = command(monkeypatch, capsys, "preference", *models, "--out", tmp_path / out, "--batch", 2, *words)
        single = tmp_path / out / "preference.nc"
        return done, xr.load_dataset(single) if single.exists() else None

    done, data = run([checkpoint.source], "out", "--o3", root)
    assert done.code == 0, done.err
    assert data.image.values.tolist() == ["a.jpg", "b.jpg"]
    assert "c.jpg: the mask of the target is empty" in (tmp_path / "out" / "left_out.csv").read_text()
    assert "1 images are left out" in done.err
    files = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {f"{n}.{e}" for n in ("preference_by_layer", "anisotropy", "links", "example") for e in ("png", "pdf")}
    assert files == figures | {"preference.nc", "preference.csv", "heads.csv", "links.csv", "left_out.csv"}
    with monkeypatch.context() as patched:
        patched.setattr(compute, "run_pass", None)  # what is there is not measured again
        done, again = run([checkpoint.source], "out", "--o3", root)
    assert done.code == 0, done.err
    xr.testing.assert_identical(again, data)
    heads = by_head(data)
    cosine = data.weighted_cosine.values
    rho = scipy.stats.spearmanr(cosine.ravel(), heads["similarity"].ravel()).statistic
    linked = links(data)[0]
    assert linked["all_heads"] == pytest.approx(rho)
    within = [scipy.stats.spearmanr(*pair).statistic for pair in zip(cosine, heads["similarity"], strict=True)]
    assert linked["within_layers"] == pytest.approx(np.mean(within))
    # Of two images a resample is one of them twice, or both.
    singly = [scipy.stats.spearmanr(cosine.ravel(), data.similarity.values[i].ravel()).statistic for i in (0, 1)]
    assert linked["all_heads_low"] == pytest.approx(min(*singly, rho))
    assert linked["all_heads_high"] == pytest.approx(max(*singly, rho))
    one = preference_by_head(data)[5]
    assert (one["layer"], one["head"]) == (1, 1)
    own = [data.mass.values[:, 1, 1, q, q].astype(np.float64) for q in (0, 1)]
    assert one["same"] == pytest.approx(np.mean(own))
    done, _ = run([checkpoint.source], "out", "--count", 3)
    assert done.code == 2
    assert "different settings" in done.err
    other = tmp_path / "other.npz"
    write_checkpoint(other, SMALL, checkpoint.params, PRESET)
    done, _ = run([checkpoint.source, other], "two", "--count", 2)
    assert done.code == 0, done.err
    assert (tmp_path / "two" / "small" / "preference.nc").exists()
    assert (tmp_path / "two" / "preference_by_layer.pdf").exists()
    assert (tmp_path / "two" / "other" / "preference.nc").exists()


@pytest.mark.parametrize("name", ["timm-imagenet", "simmim", "bigvision-small-crop"])
def test_masks_are_resized_to_the_size_of_their_image(name):
    """Pillow's presets and big_vision's round the longer side differently; the edge of an object must not move."""
    preset = replace(PRESETS[name], crop=32, resize_to=40 if name == "simmim" else 32)
    edges = []
    for width in range(50, 90):
        mask = np.zeros((48, width), np.uint8)
        mask[:, width // 2 + 6 :] = 255
        other = np.zeros_like(mask)
        other[:, : width // 2 - 12] = 255
        scene = Scene(Image.fromarray(np.repeat(mask[..., None], 3, -1)), mask, other)
        pixels, regions = crop_to_model(scene, "a", preset, None, (1, 1))
        edges.append(pixels[16, :, 0].sum() / 255 - regions[0, 16].sum())
    assert np.abs(edges).max() < 0.05
