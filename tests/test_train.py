"""Training: one step against a plain reference, resuming to the same bits, and what comes out of it."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from flax.traverse_util import flatten_dict
from PIL import Image
from tensorboardX.proto.event_pb2 import Event

import qkjax
from conftest import UNCACHED, dense_svd
from qkjax.analyses.targets import by_name
from qkjax.cli.training import training_commands
from qkjax.images.memory import PIXELS
from qkjax.images.preprocess import PRESETS
from qkjax.passes.inputs import for_photographs
from qkjax.runtime.lock import exclusive
from qkjax.train.checkpoints import open_checkpoints, restore_state, save_state
from qkjax.train.config import TrainConfig, from_dict, vit_config
from qkjax.train.data import held_out_batches, training_batches
from qkjax.train.devices import distribute
from qkjax.train.findings import run_summary, sweep_summary
from qkjax.train.folder import identify
from qkjax.train.model import count, initial, matched, plain
from qkjax.train.optimizer import optimizer
from qkjax.train.presets import PRESETS as PRESET_RUNS
from qkjax.train.presets import load_preset
from qkjax.train.run import DivergedError, train
from qkjax.train.start import starting_tree
from qkjax.train.step import State
from qkjax.train.step import program as make_program
from qkjax.train.sweep import sweep
from qkjax.train.tasks import load_task
from qkjax.vit.model import forward
from qkjax.vit.tree import query_key_kernels
from qkjax.weights.checkpoint import write_checkpoint

SMALL = TrainConfig(
    constraint="0:tied 1:orthogonal 2:flat 3:antisymmetric", width=32, depth=4, heads=2, mlp_dim=48, steps=12, batch=32,
    warmup=3, every=4,
)  # fmt: skip

TINY = replace(SMALL, constraint="0:tied 1:flat", depth=2, width=16, warmup=0)


@pytest.fixture(scope="module")
def task():
    return load_task(TrainConfig())


@pytest.mark.gpu
def test_step_equals_a_plain_reference(task):
    """AdamW, clipping, schedule and loss written out in numpy and jax.grad of a plain loss, three steps."""
    config = TrainConfig(width=16, depth=2, heads=2, mlp_dim=24, batch=8, warmup=2, steps=10, clip=0.5)
    vit, names = vit_config(config, (8, 8, 1), 10), ("free", "free")
    program = make_program(config, vit)
    state = program.begin(initial(jax.random.key(0), vit, names))
    ours = {name: np.array(value) for name, value in flatten_dict(state.params, sep="/").items()}  # a step donates them
    first, second = ({k: np.zeros(v.shape) for k, v in ours.items()} for _ in range(2))
    model = qkjax.ViT(vit)

    def plain_loss(params, images, labels):
        found, targets = model.apply({"params": plain(params, vit, names)}, images)[0], np.eye(10)[labels]
        return -((0.9 * targets + 0.1 / 10) * jax.nn.log_softmax(found)).sum(-1).mean()

    for number in range(3):
        batch = next(training_batches(task, config, number))
        gradient = flatten_dict(jax.grad(plain_loss)(state.params, *batch), sep="/")
        state, _ = program.step(state, *distribute(batch))
        norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in gradient.values()))
        schedule = number / 2 if number < 2 else (1 + np.cos(np.pi * (number - 2) / 8)) / 2
        for name, raw in gradient.items():
            g = np.asarray(raw, np.float64) * min(1, config.clip / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            mean, square = first[name] / (1 - 0.9 ** (number + 1)), second[name] / (1 - 0.95 ** (number + 1))
            decays = name.endswith("kernel") or name.endswith(("interaction/query", "interaction/key"))
            decay = config.weight_decay * np.asarray(ours[name]) if decays else 0
            change = config.learning_rate * mean / (np.sqrt(square) + 1e-8) + decay
            ours[name] = np.asarray(ours[name]) - schedule * change
        # A gradient near 0 has a sign of rounding, which Adam makes a whole step: hence not all to 1e-6.
        for name, value in flatten_dict(state.params, sep="/").items():
            assert np.mean(np.abs(value - ours[name]) > 2e-6) < 0.01, name
            np.testing.assert_allclose(value, ours[name], atol=1e-3)
            ours[name] = np.asarray(value, np.float64)


@pytest.mark.gpu
def test_adafactor_equals_a_plain_reference():
    """Two steps of a matrix large enough to be factored and of a vector, written out in numpy."""
    config = TrainConfig(optimizer="adafactor", warmup=0, steps=4, clip=1e9)
    rng = np.random.default_rng(0)
    params = {"kernel": rng.standard_normal((40, 48)), "bias": rng.standard_normal(48)}
    transform = optimizer(config)
    ours = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), params)
    state = transform.init(ours)
    rows, columns, plain_square = np.zeros(40), np.zeros(48), np.zeros(48)
    momentum = {name: np.zeros(value.shape) for name, value in params.items()}
    for number in range(2):
        slope = {name: rng.standard_normal(value.shape) for name, value in params.items()}
        updates, state = transform.update(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), slope), state, ours)
        ours = jax.tree.map(jnp.add, ours, updates)
        keep = min(0.999, 1 - (number + 1.0) ** -0.8)
        square = slope["kernel"] ** 2
        rows, columns = (keep * old + (1 - keep) * square.mean(axis) for old, axis in ((rows, 1), (columns, 0)))
        plain_square = keep * plain_square + (1 - keep) * slope["bias"] ** 2
        scaled = {
            "kernel": slope["kernel"] * np.sqrt(rows.mean() / (rows[:, None] * columns[None])),
            "bias": slope["bias"] / np.sqrt(plain_square),
        }
        schedule = (1 + np.cos(np.pi * number / 4)) / 2
        for name, value in params.items():
            momentum[name] = 0.9 * momentum[name] + 0.1 * scaled[name]
            decay = config.weight_decay * value if name == "kernel" else 0
            params[name] = value - schedule * (config.learning_rate * momentum[name] + decay)
    for name, value in ours.items():  # the first moment is kept in bfloat16: 8 bits of a step of about 2e-3
        np.testing.assert_allclose(value, params[name], atol=2e-5)


def one_step(config: TrainConfig, task, start=None):
    vit = vit_config(config, task.pixels, task.classes)
    program = make_program(config, vit)
    state = program.begin(initial(jax.random.key(0), vit, config.constraints()))
    return program.step(state, *distribute(next(training_batches(task, config))))


@pytest.mark.gpu
def test_accumulated_parts_make_the_step_of_the_whole_batch(task):
    """To float32 rounding; a gradient near 0 may change its sign, which Adam makes a whole step."""
    whole, parts = (one_step(replace(TINY, accumulate=n), task) for n in (1, 4))
    np.testing.assert_allclose(whole[1], parts[1], rtol=1e-6)
    for a, b in zip(jax.tree.leaves(whole[0].optimizer), jax.tree.leaves(parts[0].optimizer), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-6)


@pytest.mark.gpu
def test_average_is_the_one_that_it_says(task):
    config = replace(TINY, average=0.75)
    vit = vit_config(config, task.pixels, task.classes)
    program = make_program(config, vit)
    state = program.begin(initial(jax.random.key(0), vit, config.constraints()))
    wanted = jax.tree.map(np.array, state.params)  # a step donates them
    for number in range(2):
        state, _ = program.step(state, *distribute(next(training_batches(task, config, number))))
        wanted = jax.tree.map(lambda a, p: 0.75 * a + 0.25 * p, wanted, state.params)
    assert state.evaluated is state.average
    for a, b in zip(jax.tree.leaves(state.average), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.gpu
def test_bfloat16_computes_but_does_not_keep(task):
    (low, _), (full, _) = (one_step(replace(TINY, dtype=dtype), task) for dtype in ("bfloat16", "float32"))
    assert {leaf.dtype for leaf in jax.tree.leaves(low.params)} == {jnp.dtype("float32")}
    moments = [np.concatenate([np.ravel(x) for x in jax.tree.leaves(s.optimizer)]) for s in (low, full)]
    assert 0 < np.linalg.norm(moments[0] - moments[1]) < 0.02 * np.linalg.norm(moments[1]), "8 bits are 0.4%"


def shapes(vit, names):
    return jax.eval_shape(lambda: initial(jax.random.key(1), vit, names))


def test_plain_trees_are_those_of_any_vit():
    """Names and shapes of the model's own; and without biases of queries and keys there are zeros."""
    vit = vit_config(SMALL, (8, 8, 1), 10)
    wanted = qkjax.ViT(vit).init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    for bias in (False, True):
        params = initial(jax.random.key(1), vit, SMALL.constraints(), bias=bias)
        tree = plain(params, vit, SMALL.constraints())
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, wanted)
    layers = {name: (name,) * 4 for name in ("free", "tied", "frozen")}
    sizes = {name: count(shapes(vit, names), names) for name, names in layers.items()}
    assert sizes["free"] - sizes["tied"] == 4 * 32 * 32
    assert sizes["free"] - sizes["frozen"] == 2 * 4 * 32 * 32
    for names in layers.values():
        wide = matched(vit, names, bias=False)
        learned = count(shapes(wide, names), names)
        assert abs(learned - sizes["free"]) <= 4 * (2 * 32 + 1) / 2, "within half a unit of each MLP"


def test_starting_from_a_plain_tree_that_satisfies_the_constraints_changes_nothing():
    vit, names = vit_config(SMALL, (8, 8, 1), 10), SMALL.constraints()
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    tree = plain(initial(jax.random.key(2), vit, names, bias=True), vit, names)
    again = plain(initial(jax.random.key(3), vit, names, start=tree, bias=True), vit, names)
    outputs = [qkjax.ViT(vit).apply({"params": t}, images)[0] for t in (tree, again)]
    np.testing.assert_allclose(*outputs, atol=2e-5)


def test_batches_depend_on_the_step_alone_and_use_every_image_once(task):
    still = replace(SMALL, shift=0, seed=5, steps=50)
    made = list(training_batches(task, still))
    assert len(made) == 50
    for rows, other in zip(training_batches(task, still, 47), made[47:], strict=True):
        np.testing.assert_array_equal(rows[0], other[0])
    epoch = len(task.train) // 32
    seen = np.concatenate([made[i][0] for i in range(epoch)]).reshape(epoch * 32, -1)
    assert len(np.unique(seen, axis=0)) >= epoch * 32 - 2, "scikit-learn has next to no image twice"
    assert len(task.train) + len(task.held_out) == 1797
    halves = [next(training_batches(task, still, 7, host, 2)) for host in range(2)]
    for whole, *parts in zip(made[7], *halves, strict=True):
        np.testing.assert_array_equal(whole, np.concatenate(parts))
    mixed, again = (next(training_batches(task, replace(still, mixup=0.2), start)) for start in (7, 7))
    for first, second in zip(mixed, again, strict=True):
        np.testing.assert_array_equal(first, second)
    for same, other in zip(mixed[:2], made[7], strict=True):  # the step mixes, see `test_tasks`
        np.testing.assert_array_equal(same, other)
    assert 0.5 <= mixed[2].min() == mixed[2].max() <= 1


def test_held_out_batches_hold_every_image_once(task):
    whole = list(held_out_batches(task, 64))
    labels = np.concatenate([labels for _, labels in whole])
    assert (labels[: len(task.held_out)] == [label for _, label in task.held_out]).all()
    assert (labels[len(task.held_out) :] == -1).all()
    halves = [list(held_out_batches(task, 64, host, 2)) for host in range(2)]
    for (_, all_of_it), (_, one), (_, other) in zip(whole, *halves, strict=True):
        np.testing.assert_array_equal(all_of_it, np.concatenate([one, other]))


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.npz", "metrics.jsonl", "config.json")}


def command(out: Path) -> list[str]:
    shape = ["--width", "32", "--depth", "4", "--heads", "2", "--mlp-dim", "48", "--batch", "32", "--every", "20"]
    names = "0:tied 1:orthogonal 2:flat 3:antisymmetric"
    return [sys.executable, "-m", "qkjax", "train", out, "--constraint", names, "--steps", "200", *shape]


@pytest.mark.slow
def test_killed_and_interrupted_runs_end_with_the_same_bits(tmp_path):
    """And what they end with is a checkpoint like any other, whose modes show the constraints."""
    whole = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True, timeout=280, check=False)
    assert whole.returncode == 0, whole.stderr
    assert "held-out images (95% interval over images) after 200 steps" in " ".join(whole.stdout.split())
    assert re.search(r"device idle \d+%", whole.stderr)
    out = tmp_path / "stopped"
    for stop in (signal.SIGKILL, signal.SIGINT):
        before = len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0
        with subprocess.Popen(command(out), stderr=subprocess.DEVNULL, env=os.environ | UNCACHED) as process:
            until = time.time() + 120
            while time.time() < until and process.poll() is None:
                lines = (out / "metrics.jsonl").read_text().splitlines() if (out / "metrics.jsonl").exists() else []
                if len(lines) > before:
                    break
                time.sleep(0.02)
            time.sleep(0.1 * os.urandom(1)[0] / 255)
            process.send_signal(stop)
            assert process.wait(timeout=60) in (-signal.SIGKILL, 130, 0)
    done = subprocess.run(command(out), capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert files(out) == files(tmp_path / "whole")
    wanted = {"model.npz", "metrics.jsonl", "config.json", "checkpoints", "data.txt", "task.json", "environment.json"}
    assert {p.name for p in out.iterdir()} == wanted
    assert len(list((tmp_path / "whole" / "checkpoints").iterdir())) <= 3, "the last two and the best"

    checkpoint = qkjax.load(out)
    kernels = query_key_kernels(checkpoint.params)
    _, s, _ = dense_svd(*kernels)
    metrics = qkjax.measure(qkjax.decompose(*kernels))
    strong = np.asarray(metrics.singular_value) > 1e-3 * np.asarray(metrics.singular_value)[..., :1]
    for layer, wanted in {0: 1, 1: 0, 3: 0}.items():
        np.testing.assert_allclose(np.asarray(metrics.cosine)[layer][strong[layer]], wanted, atol=1e-4)
    np.testing.assert_allclose(s[2, :, :16], s[2, :, :1] * np.ones(16), rtol=1e-4)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(20, 201, 20))
    assert lines[-1]["weighted_cosine"][0] == pytest.approx(1, abs=1e-4)
    assert lines[-1]["accuracy"] > 0.3
    task = load_task(TrainConfig())
    images, labels = (np.stack(x) for x in zip(*task.held_out, strict=True))
    logits, _ = forward(qkjax.ViT(checkpoint.config), checkpoint.params, images)
    assert (logits.argmax(-1) == labels).mean() == pytest.approx(lines[-1]["accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 0}, "steps=0: expected a whole number of at least 1"),
        ({"heads": 3}, "width=64, heads=3: expected a width that is a multiple of heads"),
        ({"constraint": "tide"}, "unknown constraint 'tide'"),
        ({"constraint": "0-2:tied"}, "names no constraint for layer 3"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0: expected a number above 0"),
        ({"warmup": 1200}, "warmup=1200: expected 0 or more, and less than steps=1200"),
        ({"constraint": "low_rank(17)"}, "the rank of low_rank.r. is 17: expected a whole number from 1 to 16"),
        ({"width": 6, "heads": 2, "posemb": "sincos2d"}, "width=6: expected a multiple of 4"),
        (
            {"start": "x.npz", "match": True},
            "start='x.npz' determines the architecture and the initial values: do not set match",
        ),
        ({"seed": 2**32}, "seed=4294967296: expected below"),
        ({"layers": 3}, "unknown setting 'layers'; expected one of constraint"),
        ({"width": "64"}, "width='64': expected int"),
    ],
)
def test_configurations_that_cannot_be(values, says):
    with pytest.raises(qkjax.QkjaxError, match=says):
        from_dict(values)


def test_runs_that_cannot_be(tmp_path):
    with pytest.raises(qkjax.QkjaxError, match="data='mnist' is not a known task: expected digits, odd-one-out"):
        train(TrainConfig(data="mnist"), tmp_path)
    with pytest.raises(qkjax.QkjaxError, match="patch=3: expected a divisor of the images' height 8 and width 8"):
        train(TrainConfig(patch=3), tmp_path)
    with pytest.raises(qkjax.QkjaxError, match="shift=8: expected less than 8"):
        train(TrainConfig(shift=8), tmp_path)
    assert not list(tmp_path.iterdir()), "what cannot be claims no folder"
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    with pytest.raises(qkjax.QkjaxError, match=r"contains a run with constraint=.*, width=32"):
        train(TrainConfig(), tmp_path)
    (tmp_path / "metrics.jsonl").write_text("[1]")
    with pytest.raises(qkjax.QkjaxError, match="is not a valid file of metrics"):
        train(SMALL, tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(qkjax.QkjaxError, match="is not a valid configuration of a run"):
        train(SMALL, tmp_path)


def test_a_folder_is_one_process_s_and_one_data_set_s(tmp_path):
    with exclusive(tmp_path), pytest.raises(qkjax.QkjaxError, match="another process is using"):
        train(TINY, tmp_path)
    assert not (tmp_path / "config.json").exists()
    (tmp_path / "checkpoints" / "4").mkdir(parents=True)
    (tmp_path / "data.txt").write_text("as it was")
    identify(tmp_path, TINY, "as it was", "")
    with pytest.raises(qkjax.QkjaxError, match="data='digits' has changed since"):
        identify(tmp_path, TINY, "with one file more", "")


def test_a_run_that_diverges_says_so_and_stops_no_sweep(tmp_path):
    config = replace(TINY, constraint="pull(-1)", init="mimetic", pull=3e38, steps=2, every=2)  # beyond float32
    with pytest.raises(DivergedError, match="the loss is not finite at step 2: choose a smaller learning_rate"):
        train(config, tmp_path / "one")
    dataset = sweep(config, ("pull(-1)",), 1, tmp_path / "sweep")
    assert np.isnan(dataset.accuracy).all()
    assert dataset.attrs["summary"] == "All runs diverged."


def test_optimizer_leaves_frozen_kernels_alone(task):
    """No gradient, and no decay either: what is frozen stays as it was drawn, bit for bit."""
    config = replace(TINY, constraint="0:frozen 1:free", weight_decay=0.1)
    vit = vit_config(config, task.pixels, task.classes)
    before = initial(jax.random.key(0), vit, config.constraints())
    state, _ = one_step(config, task)
    for layer, same in ((0, True), (1, False)):
        kernels = (
            p["Transformer"][f"encoderblock_{layer}"]["MultiHeadDotProductAttention_0"]["interaction"]["query"]
            for p in (before, state.params)
        )
        assert bool(np.equal(*kernels).all()) == same


def test_start_from_a_checkpoint_is_the_checkpoint(tmp_path, photograph):
    """Photographs in -1..1 instead of as it wants them, a class token and layer scale kept, positions on another grid,
    kernels as they were where nothing constrains them: the tokens before the head are the same."""
    was = qkjax.ViTConfig(
        width=32, depth=2, heads=2, head_dim=16, mlp_dim=48, patch_size=(8, 8), grid=(4, 4), pool="tok",
        class_token=True, layer_scale=True, classes=7,
    )  # fmt: skip
    tree = qkjax.ViT(was).init(jax.random.key(0), np.zeros((1, 32, 32, 3)))["params"]
    preset = PRESETS["hf-dinov2"]
    write_checkpoint(tmp_path / "was.npz", was, jax.tree.map(np.asarray, tree), preset)
    config = replace(
        SMALL,
        constraint="free",
        bias=True,
        start=str(tmp_path / "was.npz"),
        width=32,
        depth=2,
        heads=2,
        mlp_dim=48,
        patch=8,
    )
    vit, start = starting_tree(config, vit_config(config, (48, 48, 3), 5))
    assert (vit.grid, vit.classes, vit.class_token, vit.layer_scale) == ((6, 6), 5, True, True)
    params = initial(jax.random.key(1), vit, ("free", "free"), start, bias=True)
    ours = plain(params, vit, ("free", "free"))
    pixels = (photograph[0, :48, :48] * np.array(preset.std)[None, None] + np.array(preset.mean)[None, None])[None]
    _, found = forward(qkjax.ViT(vit), ours, (2 * pixels - 1).astype(np.float32))
    _, wanted = forward(qkjax.ViT(was), tree, photograph[:, :48, :48])
    np.testing.assert_allclose(found["encoded"], wanted["encoded"], atol=2e-5)
    with pytest.raises(
        qkjax.QkjaxError,
        match="was has mlp_dim 48, but the run has mlp_dim 64: set the values of the run to those of the checkpoint",
    ):
        starting_tree(config, vit_config(replace(config, mlp_dim=64), (48, 48, 3), 5))


def tensorboard_scalars(folder: Path) -> dict[tuple[str, int], float]:
    """By name and step, out of the records of an event file: length, checksum, event, checksum."""
    (path,) = folder.iterdir()
    data, at, found = path.read_bytes(), 0, {}
    while at < len(data):
        length = int.from_bytes(data[at : at + 8], "little")
        event = Event.FromString(data[at + 12 : at + 12 + length])
        found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
        at += length + 16
    return found


@pytest.mark.slow
def test_sweep_says_what_its_runs_say(tmp_path, capsys):
    """Accuracies, intervals and differences against numpy and scipy; a second call trains nothing; runs serve as
    models, also for photographs, though digits are gray."""
    config = replace(TINY, steps=8, every=4, match=True, constraint="free", tensorboard=True)
    found = sweep(config, ("free", "0:tied 1:repulsive"), 3, tmp_path)
    assert found.sizes == {"constraint": 2, "seed": 3, "step": 2, "layer": 2}
    folders = [tmp_path / name / f"seed{seed}" for name in ("free", "0_tied_1_repulsive") for seed in range(3)]
    last = [json.loads((f / "metrics.jsonl").read_text().splitlines()[-1]) for f in folders]
    accuracy = 100 * np.array([line["accuracy"] for line in last]).reshape(2, 3)
    with open(tmp_path / "sweep.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    wanted = scipy.stats.ttest_rel(accuracy[1], accuracy[0]).confidence_interval()
    assert float(rows[1]["to_free"]) == pytest.approx((accuracy[1] - accuracy[0]).mean())
    assert [float(rows[1][f"to_free_{end}"]) for end in ("low", "high")] == pytest.approx([wanted.low, wanted.high])
    wanted = scipy.stats.t.interval(0.95, 2, accuracy[0].mean(), scipy.stats.sem(accuracy[0]))
    assert [float(rows[0][end]) for end in ("low", "high")] == pytest.approx(wanted)
    assert [float(rows[1][f"cosine_{layer}"]) for layer in (0, 1)] == pytest.approx([1, -1], abs=1e-4)
    assert {p.name for p in tmp_path.glob("*.*")} >= {"sweep.nc", "accuracy.png", "curves.pdf", "cosines.png"}
    told = tensorboard_scalars(folders[0] / "tensorboard")
    assert told["accuracy", 8] == pytest.approx(last[0]["accuracy"])
    assert told["weighted_cosine/layer_1", 8] == pytest.approx(last[0]["weighted_cosine"][1])
    times = [(f / "model.npz").stat().st_mtime_ns for f in folders]
    assert capsys.readouterr().out == "", "a function prints nothing"
    command = training_commands(["sweep"])["sweep"]
    command(tmp_path, ("free", "0:tied 1:repulsive"), seeds=3, run=config)
    assert [(f / "model.npz").stat().st_mtime_ns for f in folders] == times
    printed = capsys.readouterr()
    assert max(map(len, printed.out.splitlines())) <= 80
    assert "next: qkjax analyze " in printed.err
    assert found.attrs["summary"] in " ".join(printed.out.split())
    assert "chance is 10.0% (10 classes)" in found.attrs["summary"]
    assert found.attrs["chance"] == 0.1
    command(tmp_path, ("free", "0:tied 1:repulsive"), seeds=3, run=config, json=True)
    printed = json.loads(capsys.readouterr().out)
    assert printed["summary"] == found.attrs["summary"]
    assert [row["accuracy"] for row in printed["rows"]] == pytest.approx(accuracy.mean(1))
    assert printed["rows"][0]["to_free"] is None
    for name in found.variables:
        assert set(found[name].attrs) == {"long_name", "units", "description"}, name
    with pytest.raises(qkjax.QkjaxError, match=r"--learning-rate -1\.0: expected a number above 0"):
        command(tmp_path, ("free",), run=replace(config, learning_rate=-1.0))
    with pytest.raises(qkjax.QkjaxError, match="expected one or more constraints without repetitions"):
        sweep(config, ("free", "free"), 3, tmp_path)

    assert set(by_name([qkjax.load(folders[0]), qkjax.load(folders[3])])) == {"free-seed0", "0_tied_1_repulsive-seed0"}
    gray = qkjax.load(folders[0])
    colour = for_photographs(gray)
    images = np.random.default_rng(0).uniform(-1, 1, (2, 8, 8, 3)).astype(np.float32)
    outputs = [
        forward(qkjax.ViT(c.config), c.params, x)[0]
        for c, x in ((gray, images.mean(-1, keepdims=True)), (colour, images))
    ]
    np.testing.assert_allclose(*outputs, atol=1e-5)


def test_presets_and_files_of_configurations(tmp_path):
    for name in PRESET_RUNS:
        assert load_preset(name).checked() == PRESET_RUNS[name]
    assert vit_config(load_preset("imagenet-s16"), (224, 224, 3), 1000).rep_size == 384
    (tmp_path / "run.toml").write_text('steps = 9\nwarmup = 3\nconstraint = "tied"\nlearning_rate = 1')
    assert load_preset(str(tmp_path / "run.toml")) == TrainConfig(
        steps=9, warmup=3, constraint="tied", learning_rate=1.0
    )
    (tmp_path / "run.json").write_text(json.dumps(SMALL.to_dict()))
    assert load_preset(str(tmp_path / "run.json")) == SMALL
    (tmp_path / "other.toml").write_text("stepps = 9")
    (tmp_path / "broken.toml").write_text("steps = ")
    for name, says in {
        "digit": "unknown preset 'digit' \\(nearest: 'digits'\\)",
        tmp_path / "none.json": "cannot read .*No such file",
        tmp_path / "other.toml": "unknown setting 'stepps' .nearest: 'steps'.",
        tmp_path / "broken.toml": "cannot read .*Invalid value",
    }.items():
        with pytest.raises(qkjax.QkjaxError, match=says):
            load_preset(str(name))


def test_the_last_two_and_the_best_checkpoint_stay_and_no_others(tmp_path):
    """Over several sessions, and with one that a killed run did not come to remove."""

    def session(accuracies: dict[int, float]) -> set[str]:
        with open_checkpoints(tmp_path) as opened:
            for step, accuracy in accuracies.items():
                state = State(jnp.asarray(step, jnp.int32), {"kernel": jnp.ones(3) * step}, {"count": jnp.zeros(2)}, {})
                save_state(opened, state, {"accuracy": accuracy})
        return {path.name for path in tmp_path.iterdir()}

    assert session({10: 0.1, 20: 0.9, 30: 0.3, 35: 0.2}) == {"20", "30", "35"}
    shutil.copytree(tmp_path / "30", tmp_path / "15")
    assert session({40: 0.5, 50: 0.2}) == {"20", "40", "50"}
    with open_checkpoints(tmp_path) as opened:
        place = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # without it, orbax 0.11 warns
        arrays = [((), jnp.int32), ((3,), jnp.float32), ((2,), jnp.float32)]
        step, kernel, count = (jax.ShapeDtypeStruct(shape, dtype, sharding=place) for shape, dtype in arrays)
        shapes = State(step, {"kernel": kernel}, {"count": count}, {})
        assert int(restore_state(opened, shapes)[0].step) == 50


def test_summaries_state_numbers_with_chance_and_interval():
    rows = [
        {"constraint": name, "seeds": seeds, "accuracy": mean, "low": mean - 1, "high": mean + 1,
         "to_free": mean - 98, "to_free_low": mean - 98 - 0.5, "to_free_high": mean - 98 + 0.5}
        for name, mean, seeds in (("free", 98.0, 5), ("tied", 53.5, 5), ("flat", 98.25, 4), ("repulsive", 99.0, 5))
    ]  # fmt: skip
    text = sweep_summary(rows, {"classes": 17, "largest_class": 0.5})
    assert text == (
        "The accuracy of free is 98.0% [97.0, 99.0] over 5 seeds (95% interval); chance is 5.9% (17 classes), and "
        "always answering the most frequent class has an accuracy of 50.0%. Less accurate than free (percentage "
        "points, 95% interval over seeds, not corrected for 3 comparisons): tied -44.5 [-45.0, -44.0]. More "
        "accurate than free (percentage points, 95% interval over seeds, not corrected for 3 comparisons): "
        "repulsive +1.0 [+0.5, +1.5]. Not distinguishable from free (percentage points, 95% interval over seeds, "
        "not corrected for 3 comparisons): flat +0.2 [-0.2, +0.8]. Runs with flat diverged and are left out."
    )
    assert "The accuracy of tied is the lowest: 53.5 [52.5, 54.5] (in %)." in sweep_summary(rows[1:], {})
    last = {"accuracy": 0.9, "step": 300, "weighted_cosine": [0.5, None, -0.25], "held_out": 359, "classes": 10}
    low, high = (100 * x for x in scipy.stats.binomtest(323, 359).proportion_ci(method="wilson"))
    text = run_summary(last | {"accuracy": 323 / 359})
    assert f"Accuracy is 90.0% [{low:.1f}, {high:.1f}] on 359 held-out images" in text
    assert "highest in layer 0 (0.50) and lowest in layer 2 (-0.25)" in text
    assert run_summary({"accuracy": 0.5, "step": 4, "weighted_cosine": [None]}) == (
        "Accuracy is 50.0% on held-out images after 4 steps."
    ), "a run of version 0.1.0"


def test_the_package_is_called_as_its_main_function(tmp_path):
    with pytest.raises(qkjax.QkjaxError, match="data='mnist' is not a known task"):
        qkjax.train(TrainConfig(data="mnist"), tmp_path)
    assert qkjax.train.run.train is train


def test_images_in_preparation_share_the_memory(tmp_path, monkeypatch):
    """However many threads prepare batches: with a budget of one image, one is prepared at a time."""
    monkeypatch.setattr(PIXELS, "total", 1)
    for label in "ab":
        (tmp_path / label).mkdir()
        for i in range(4):
            Image.new("RGB", (40, 30), (60 * i, 0, 0)).save(tmp_path / label / f"{i}.png")
    config = replace(TINY, data=str(tmp_path), resolution=16, patch=8, batch=4, steps=3)
    task, most = load_task(config), []
    augment, fit = task.augment, task.fit

    def watched(function):
        return lambda *arguments: (most.append(PIXELS.taken), time.sleep(0.01), function(*arguments))[-1]

    task = task._replace(augment=watched(augment), fit=watched(fit))
    for _ in (*training_batches(task, config), *held_out_batches(task, 4)):
        pass
    assert set(most) == {40 * 30}
    assert PIXELS.taken == 0
