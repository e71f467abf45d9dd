"""Effects of ablations are what plain float64 arithmetic on single forward passes says; plans go on and can grow."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
import scipy.spatial.distance
import scipy.stats
import xarray as xr
from commands import command
from PIL import Image
from tqdm import tqdm

import qkjax
from qkjax.activations.attention import similarity_preference
from qkjax.analyses.ablate import outputs
from qkjax.analyses.ablate.ablator import Ablator
from qkjax.analyses.ablate.command import AblationArguments, write_ablations
from qkjax.analyses.ablate.plan import expand, read_plan
from qkjax.analyses.ablate.readout import Readout
from qkjax.analyses.edit import Edit, edit_with_notes
from qkjax.figures.ablations import _one_layer, dose_response
from qkjax.images.labels import head_classes
from qkjax.images.preprocess import Preprocess, normalise, picture
from qkjax.images.sources import open_images
from qkjax.interaction.edit import edit
from qkjax.vit.model import forward
from qkjax.vit.patches import query_places
from qkjax.weights.checkpoint import Checkpoint, write_checkpoint

SIDE, CLASSES = 32, ("first", "other", "third")
PRESET = Preprocess("squash", "pil-bilinear", SIDE, SIDE, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Checkpoint:
    """A small ViT with a class token, a register and a head, with large biases; as a file."""
    config = qkjax.ViTConfig(
        width=24, depth=3, heads=4, head_dim=6, mlp_dim=48, patch_size=(8, 8), grid=(4, 4), pool="tok",
        class_token=True, registers=1, classes=len(CLASSES),
    )  # fmt: skip
    rng = np.random.default_rng(0)
    tree = qkjax.ViT(config).init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3)))["params"]
    params = jax.tree.map(lambda x: np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32), tree)
    path = tmp_path_factory.mktemp("model") / "small.npz"
    write_checkpoint(path, config, params, PRESET)
    return qkjax.load(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten small pictures in a folder for each class, and one file that is no picture."""
    path, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for index in range(10):
        name = path / CLASSES[index % 3] / f"{index}.png"
        name.parent.mkdir(exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(name)
    (path / "other" / "broken.png").write_bytes(b"no picture")
    return path


def passes(checkpoint, images):
    """A forward pass of each image by itself."""
    for index in range(len(images)):
        pixels = normalise(picture(images.read(index), checkpoint.preprocess), checkpoint.preprocess)[None]
        logits, out = forward(qkjax.ViT(checkpoint.config), checkpoint.params, pixels, capture=("attention", "norm"))
        yield np.asarray(logits[0], np.float64), {k: np.asarray(v, np.float64) for k, v in out.items()}


@pytest.mark.gpu
@pytest.mark.parametrize(("kind", "exact"), [("drop", False), ("symmetric", True)])
def test_effects_are_those_of_plain_passes(checkpoint, folder, kind, exact):
    images = open_images(folder)
    readable = [i for i, name in enumerate(images.names) if "broken" not in name]
    ablator = Ablator(checkpoint, images, 4, exact, qkjax.PassOptions(batch=4), {}, tqdm(disable=True))
    assert ablator.index.tolist() == readable
    assert "broken" in ablator.unreadable[0][1]
    parts = qkjax.query_key(checkpoint.params)
    modes = qkjax.decompose(*parts[:2])
    weights = np.where(np.asarray(qkjax.measure(modes).cosine) > 0, 1, 0).astype(np.float32)
    rows = ablator.ablate(edit(parts, modes, kind, weights, ablator.columns), None, {})
    fields = outputs.Effects._fields
    other, _ = edit_with_notes(checkpoint, kind, "cosine>0" if kind == "drop" else "all", exact=exact)
    places = query_places((4, 4), 4)
    assert places.tolist() == [5, 7, 13, 15]
    chosen = open_images(folder)
    pairs = list(zip(*(passes(c, _only(chosen, readable)) for c in (checkpoint, other)), strict=True))
    for row, ((logits, was), (edited_logits, now)) in enumerate(pairs):
        effects = outputs.Effects(*(rows[name][row] for name in fields))
        both = was["encoded"][0], now["encoded"][0]
        cosines = [1 - scipy.spatial.distance.cosine(a, b) for a, b in zip(*both, strict=True)]
        assert effects.representation_cosine == pytest.approx(cosines[0], abs=1e-5)
        assert effects.token_cosine == pytest.approx(np.mean(np.array(cosines)[places + 2]), abs=1e-5)
        probabilities = [scipy.special.softmax(x) for x in (logits, edited_logits)]
        assert effects.logits_kl == pytest.approx(scipy.stats.entropy(*probabilities, base=2), abs=1e-4)
        np.testing.assert_allclose(rows["logits"][row], edited_logits, atol=1e-4)
        for layer, head in np.ndindex(3, 4):
            a, b = (out["attention"][layer, 0, head] for out in (was, now))
            js = scipy.spatial.distance.jensenshannon(a, b, base=2, axis=1) ** 2
            assert effects.attention_js[layer, head] == pytest.approx(js[places + 2].mean(), abs=1e-5)
            assert effects.class_attention_js[layer, head] == pytest.approx(js[0], abs=1e-5)
            entropy = scipy.stats.entropy(b[places + 2], base=2, axis=1).mean()
            assert effects.attention_entropy[layer, head] == pytest.approx(entropy, abs=1e-4)
            preference = _preference(b[2:, 2:], now["norm"][layer, 0, 2:], places)
            assert effects.preference[layer, head] == pytest.approx(preference, abs=1e-5)
    np.testing.assert_allclose(ablator.original["representation_cosine"], 1, atol=1e-6)
    np.testing.assert_array_equal(ablator.original["attention_js"], 0)


def _only(images, chosen):
    names = tuple(images.names[i] for i in chosen)
    return type(images)(images.name, names, lambda i: images.read(chosen[i]), "")


def _preference(attention, tokens, places):
    found = []
    for i in places:
        others = [j for j in range(len(tokens)) if j != i]
        cosines = np.array([1 - scipy.spatial.distance.cosine(tokens[i], tokens[j]) for j in others])
        found.append(np.average(cosines, weights=attention[i, others]) - cosines.mean())
    return np.mean(found)


def test_preference_of_hand_made_attention():
    """Two kinds of tokens, at right angles: towards all 0, towards its own kind and the other as counted."""
    tokens = np.array([[1, 0], [2, 0], [3, 0], [0, 1], [0, 2]], np.float32)
    alike = (tokens @ tokens.T > 0).astype(np.float32)
    attention = np.stack([np.ones((5, 5)), alike, 1 - alike, np.eye(5)]).astype(np.float32)
    found = jax.jit(similarity_preference)(attention, tokens, np.arange(5))
    uniform = (3 * 2 / 4 + 2 * 1 / 4) / 5
    np.testing.assert_allclose(found, [0, 1 - uniform, -uniform, 0], atol=1e-6)


def test_plans_say_what_they_hold(tmp_path):
    path = tmp_path / "plan.toml"
    path.write_text(
        '[[grid]]\nedit = ["drop", "flip"]\nselect = ["grouping={dose} layers={layers}", "all"]\n'
        'dose = [0.1, 0.5]\nlayers = ["0-1", 2]\ncontrols = 1\n[[grid]]\nedit = "drop"\n'
    )
    lines = read_plan(path)
    assert len(lines) == 2 * (2 * 2 + 1) * 2, "the second grid says what the first holds"
    assert lines[1].edit == Edit("drop", "grouping=0.1 layers=0-1", True, 0, "logits")
    assert lines[1][1:] == ("grouping", "0-1", 0.1)
    (ranged,) = expand([{"edit": "keep", "select": "modes=0-{dose} cosine>0", "dose": 3}])
    assert ranged[1:] == ("modes=0-* cosine>0", "", 3.0)
    for text, says in {
        "grid": "is not valid TOML",
        "edit = 1": r"is not a plan: expected only \[\[grid\]\] tables",
        "[[grid]]\nselect = 'all'": "a grid has no edit",
        "[[grid]]\nedit = 'drop'\nselect = '{layer}'": r"placeholder \{layer\}, but its grid has no field layer: add",
        "[[grid]]\nedit = 'drop'\ndose = 1": "the field dose of a grid is not used",
        "[[grid]]\nedit = 'drop'\ncontrols = true": "controls is True: expected a whole number",
        "[[grid]]\nedit = 'drop'\nselect = 'cosine>{dose}'\ndose = 'x'": "dose is 'x': expected a number",
        "[[grid]]\nedit = 'drop'\nmatch = 'norm'": 'match is \'norm\': expected "logits" or "strength"',
        "[[grid]]\nedit = 'drop'\nselect = []": r"\[\] is not a valid list: expected one or more strings or numbers",
    }.items():
        path.write_text(text)
        with pytest.raises(qkjax.QkjaxError, match=says):
            read_plan(path)
    with pytest.raises(qkjax.QkjaxError, match="cannot read"):
        read_plan(tmp_path / "none.toml")


GRID = {"edit": "drop", "select": ["strongest={dose} layers={layer}"], "dose": [0.3, 0.9], "layer": [0, 2]}
LINES = expand([{**GRID, "controls": 1}])


@pytest.fixture(scope="module")
def run(checkpoint, folder, tmp_path_factory):
    """Makes the ablations of some lines in a folder of that name; its path and what is in its file."""
    base = tmp_path_factory.mktemp("ablations")

    def run_plan(out, lines):
        arguments = AblationArguments(folder, labels=True, queries=4, options=qkjax.PassOptions(batch=4))
        write_ablations(checkpoint, lines, arguments, base / out, {})
        with xr.open_dataset(base / out / "ablations.nc", engine="h5netcdf") as data:
            return base / out, data.load()

    return run_plan


@pytest.fixture(scope="module")
def whole(run):
    outputs.edited_outputs.clear_cache()  # of other tests in this process
    result = run("whole", LINES)
    assert outputs.edited_outputs._cache_size() == 1, "one program for all edits"
    return result


@pytest.mark.slow
def test_a_plan_that_was_stopped_goes_on_to_the_same_bits_and_can_grow(run, whole, folder, monkeypatch):
    path, whole = whole
    right, done = Ablator.ablate, path.parent / "stopped" / "done"

    def stopped(self, *arguments):
        if len(list(done.iterdir())) == 3:
            raise KeyboardInterrupt
        return right(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Ablator, "ablate", stopped)
        with pytest.raises(KeyboardInterrupt):
            run("stopped", LINES)
    _, again = run("stopped", LINES)
    for name in whole.variables:
        np.testing.assert_array_equal(again[name].values, whole[name].values)
    times = {path: path.stat().st_mtime_ns for path in done.iterdir()}
    next(iter(times)).write_bytes(b"damaged")
    _, more = run("stopped", [*LINES, *expand([{"edit": "unbias"}])])
    assert more.sizes["ablation"] == len(LINES) + 2
    assert sum(path.stat().st_mtime_ns != t for path, t in times.items()) == 1, "only the damaged one is made again"
    np.testing.assert_array_equal(more.attention_js.values[: len(LINES) + 1], whole.attention_js.values)
    # One is no picture any more: what was done with it is not of the same images. A large set is known by sizes and
    # times only, which may be the same; then it is made again.
    spoilt = folder / "first" / "0.png"
    kept, before = spoilt.read_bytes(), open_images(folder).fingerprint
    spoilt.write_bytes(b"x" * len(kept))
    assert open_images(folder).fingerprint != before
    monkeypatch.setattr("qkjax.images.sources.digest_of", lambda items: before)
    _, fewer = run("stopped", [*LINES, *expand([{"edit": "flip"}])])
    _, fresh = run("fewer", [*LINES, *expand([{"edit": "flip"}])])
    spoilt.write_bytes(kept)
    assert fewer.sizes["image"] == whole.sizes["image"] - 1
    for name in fresh.variables:  # doses in the logits, too, are those of the other images
        np.testing.assert_array_equal(fewer[name].values, fresh[name].values)
    assert (fewer.strength_share[: len(LINES) + 1] != whole.strength_share).any()


def test_images_that_change_under_their_names_are_seen(checkpoint, folder, tmp_path, capsys, monkeypatch):
    """A plan does not grow over other images of the same names and sizes.

    In a large set, whose files may have the same times, the pixels are compared, and all of the plan is done again.
    """
    images, rng = tmp_path / "images", np.random.default_rng(5)
    images.mkdir()

    def draw():
        for index in range(4):
            Image.fromarray(rng.integers(0, 256, (40, 36, 3), dtype=np.uint8)).save(images / f"{index}.bmp")

    def run(doses, out):
        lines = expand([{"edit": "drop", "select": "grouping={dose}", "dose": doses}])
        return write_ablations(checkpoint, lines, AblationArguments(images), tmp_path / out, {}).dataset

    draw()
    run([0.3], "grown")
    draw()
    with pytest.raises(qkjax.QkjaxError, match=r"different settings \(images\)"):
        run([0.3, 0.6], "grown")
    monkeypatch.setattr("qkjax.images.sources.digest_of", lambda items: "the same")
    shutil.rmtree(tmp_path / "grown")
    run([0.3], "grown")
    draw()
    grown, fresh = run([0.3, 0.6], "grown"), run([0.3, 0.6], "fresh")
    assert "the images have changed, so all ablations are computed again" in capsys.readouterr().err
    for name in fresh.data_vars:
        np.testing.assert_array_equal(grown[name], fresh[name])


def test_the_figure_of_doses_has_every_curve():
    """Controls that only some layers have, and conditions that only the second column has."""

    def row(condition, layers, modes, share):
        effects = {f"representation{end}": share for end in ("", "_low", "_high")}
        return {"edit": "drop", "condition": condition, "layers": layers, "modes": modes, "dose": share, "key_bias": 1,
                "share": share, "match": "logits", "groups": 15, "interval_unit": "photograph", **effects}  # fmt: skip

    rows = [row(c, layers, modes, share) for c, layers in (("early", "0"), ("heads=0", ""))
            for modes in ("targeted", "random") for share in (0.2, 0.4)]  # fmt: skip
    figure = dose_response(rows)
    assert [len(axes.get_lines()) for axes in figure.axes] == [3, 3]  # two curves, and the unedited model
    said = {text.get_text() for text in figure.legends[0].get_texts()}
    assert {"drop early", "drop heads=0", "random, of matched size"} <= said
    assert "95% intervals over 15 photographs and random draws" in figure._supxlabel.get_text()
    both = dose_response([*rows, *(row("early", "0", "targeted", x) | {"match": "strength"} for x in (0.2, 0.4))])
    labels = [axes.get_xlabel() for axes in both.axes if axes.get_xlabel()]
    assert labels == ["share of the variance of\nthe attention logits"] * 2 + ["share of the squared\nstrength"]


def test_a_cut_of_several_doses_shows_the_largest_share_by_layer():
    base = {
        "edit": "drop",
        "condition": "cosine>",
        "layers": "3",
        "modes": "targeted",
        "key_bias": 1,
        "match": "logits",
    }
    rows = [base | {"dose": dose, "share": share} for dose, share in ((0.2, 0.8), (0.7, 0.05))]
    assert [row["share"] for row in _one_layer(rows)] == [0.8]
    assert [row["share"] for row in _one_layer([*rows, rows[0] | {"match": "strength", "share": 0.9}])] == [0.8]


def test_the_files_say_what_was_found(checkpoint, folder, whole):
    """Accuracies through the head against one pass at a time; shares; the table's intervals against scipy's."""
    path, data = whole
    logits = np.array([logits for logits, _ in passes(checkpoint, _only(open_images(folder), [0, 1, 2, 3]))])
    classes = [CLASSES.index(name.split("/")[0]) for name in data.image.values[:4]]
    np.testing.assert_array_equal(data.right_head.values[0, :4], logits.argmax(-1) == classes)
    np.testing.assert_allclose(data.share.values[1:].max((1, 2)), [0.3] * 4 + [0.9] * 4, atol=1e-5)
    assert (data.share.values[1:] > 0).any(2).sum(1).tolist() == [1] * 8
    assert "other/broken.png" in (path / "unreadable.csv").read_text()
    table = (path / "ablations.csv").read_text().splitlines()
    assert len(table) == 1 + 1 + 2 * 4
    first = dict(zip(table[0].split(","), table[2].split(","), strict=True))
    assert (first["modes"], first["dose"], first["layers"]) == ("targeted", "0.3", "0")
    effect = 1 - data.representation_cosine.values.astype(np.float64)
    over = effect[1] - effect[2]  # itself, and its one control
    assert float(first["representation"]) == pytest.approx(effect[1].mean())
    assert float(first["representation_over_random"]) == pytest.approx(over.mean())
    theirs = scipy.stats.bootstrap((over,), np.mean, method="percentile", rng=np.random.default_rng(0))
    ends = [float(first[f"representation_over_random_{end}"]) for end in ("low", "high")]
    np.testing.assert_allclose(ends, theirs.confidence_interval, atol=0.2 * np.ptp(ends))
    figures = {file.name for file in path.glob("*.p[nd][gf]")}
    names = ("dose_response", "layer_map", "attention_by_layer")
    assert figures == {name + ending for name in names for ending in (".png", ".pdf")}
    other = AblationArguments(folder, labels=True, queries=5, options=qkjax.PassOptions(batch=4))
    with pytest.raises(qkjax.QkjaxError, match=r"has different settings \(queries\): pass another folder"):
        write_ablations(checkpoint, LINES, other, path, {})
    assert re.fullmatch("[0-9a-f]{24}", json.loads(data.attrs["settings"])["labels"]), "a digest of the classes"


def test_readouts_know_what_is_told_apart():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 10)
    clear = 10 * np.eye(3)[labels] + rng.standard_normal((30, 3))
    readout = Readout(labels.tolist(), ["0", "4", "2"], clear, 5)
    logits = np.eye(5)[np.array([0, 4, 2])[labels]]
    assert {name: correct.mean() for name, correct in readout.correct(clear, logits).items()} == {
        "probe": 1, "neighbours": 1, "head": 1,
    }  # fmt: skip
    turned = clear[:, [1, 2, 0]]  # what the probe learned is gone, what neighbours learn anew is there
    found = readout.correct(turned, logits[:, ::-1])
    assert found["probe"].mean() < 0.1
    assert found["neighbours"].mean() == 1
    assert found["head"].mean() == pytest.approx(1 / 3)
    assert head_classes(["b", "a"], 2) == [0, 1]
    assert head_classes(["b", "a"], 3) is None
    with pytest.raises(qkjax.QkjaxError, match="class b has 1 of the images"):
        Readout([0, 0, 1], ["a", "b"], clear[:3], None)


@pytest.mark.parametrize(
    ("specs", "arguments", "says"),
    [
        ([], {"limit": 0}, "limit=0: expected a whole number of at least 1"),
        ([], {"queries": 0}, "queries=0: expected a whole number of at least 1"),
        (expand([{"edit": "dro"}]), {}, r"unknown edit 'dro' \(nearest: 'drop'\)"),
        ([], {"labels": True, "path": "first"}, "has no classes: expected at least two subfolders"),
    ],
)
def test_invalid_arguments_are_refused_before_any_work(checkpoint, folder, specs, arguments, says, tmp_path):
    arguments = AblationArguments(**{**arguments, "path": folder / arguments.get("path", "")})
    with pytest.raises(qkjax.QkjaxError, match=says):
        write_ablations(checkpoint, specs, arguments, tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


def test_commands(checkpoint, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plan.toml").write_text('[[grid]]\nedit = "flip"\nselect = "modes=0-1"\n')
    shared = ("--images", folder, "--limit", 4, "--queries", 4, "--batch", 4)
    assert command(monkeypatch, capsys, "ablate", checkpoint.source, "--plan", "plan.toml", *shared).code == 0
    done = command(monkeypatch, capsys, "ablate", checkpoint.source, "--select", "cosine>0", "--controls", 1, *shared)
    assert done.code == 0, done.err
    with xr.open_dataset("results/small/ablations/ablations.nc", engine="h5netcdf") as data:
        assert data.edit.values.tolist() == ["none", "drop", "drop"]
        assert data.control.values.tolist() == [-1, -1, 0]
    for words, says in {
        (): "no modes are selected: pass --select",
        ("--plan", "plan.toml", "--no-key-bias"): "--plan is given together with --edit, --select",
        ("--select", "all", "--batch", -1): "--batch -1: expected a whole number of at least 1",
    }.items():
        done = command(monkeypatch, capsys, "ablate", checkpoint.source, *words)
        assert done.code == 2
        assert f"qkjax: error: {says}" in done.err
    for name, words in {"preference": ("--seed", -1), "objects": ("--count", 0)}.items():
        done = command(monkeypatch, capsys, name, checkpoint.source, *words)
        assert done.code == 2
        assert f"{words[0]} {words[1]}: expected a whole number of at least {1 + min(words[1], 0)}" in done.err
