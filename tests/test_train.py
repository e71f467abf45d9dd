"""Training: one step against a plain reference, resuming to the same bits, and what comes out of it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import qkjax
from conftest import dense_svd
from qkjax.train.config import TrainConfig, from_dict, vit_config
from qkjax.train.data import load_task, training_batches
from qkjax.train.model import count, initial, plain
from qkjax.train.run import train
from qkjax.train.step import State, evaluate, make_step, optimizer

SMALL = TrainConfig(
    constraint="0:tied 1:orthogonal 2:flat 3:antisymmetric", width=32, depth=4, heads=2, mlp_dim=48, steps=12, batch=32,
    warmup=3, every=4,
)  # fmt: skip


@pytest.fixture(scope="module")
def task():
    return load_task("digits", 0)


def test_step_equals_a_plain_reference(task):
    """AdamW, clipping, schedule and loss written out in numpy and jax.grad of a plain loss, three steps."""
    config = TrainConfig(width=16, depth=2, heads=2, mlp_dim=24, batch=8, warmup=2, steps=10, clip=0.5)
    vit, names = vit_config(config, (8, 8, 1), 10), ("free", "free")
    params = initial(jax.random.key(0), vit, names)
    state, step = State(jnp.zeros((), jnp.int32), params, optimizer(config).init(params)), make_step(config, vit)
    ours = flatten_dict(params, sep="/")
    first, second = ({k: np.zeros(v.shape) for k, v in ours.items()} for _ in range(2))
    model = qkjax.ViT(vit)

    def plain_loss(params, images, labels):
        found = model.apply({"params": plain(params, vit, names)}, images)[0]
        targets = 0.9 * jnp.eye(10)[labels] + 0.1 / 10
        return -(targets * jax.nn.log_softmax(found)).sum(-1).mean()

    for number in range(3):
        images, labels = training_batches(task.train, config.batch, 1, 0)[number]
        gradient = flatten_dict(jax.grad(plain_loss)(state.params, images, labels), sep="/")
        state, _ = step(state, images, labels)
        norm = np.sqrt(sum((np.asarray(g, np.float64) ** 2).sum() for g in gradient.values()))
        rate = 2e-3 * number / 2 if number < 2 else 2e-3 * (1 + np.cos(np.pi * (number - 2) / 8)) / 2
        for name, raw in gradient.items():
            g = np.asarray(raw, np.float64) * min(1, config.clip / norm)
            first[name] = 0.9 * first[name] + 0.1 * g
            second[name] = 0.95 * second[name] + 0.05 * g**2
            mean, square = first[name] / (1 - 0.9 ** (number + 1)), second[name] / (1 - 0.95 ** (number + 1))
            decay = config.weight_decay * np.asarray(ours[name]) if g.ndim > 1 else 0
            ours[name] = np.asarray(ours[name]) - rate * (mean / (np.sqrt(square) + 1e-8) + decay)
        # A gradient near 0 has a sign of rounding, which Adam makes a whole step: hence not all to 1e-6.
        for name, value in flatten_dict(state.params, sep="/").items():
            assert np.mean(np.abs(value - ours[name]) > 2e-6) < 0.01, name
            np.testing.assert_allclose(value, ours[name], atol=1e-3)
            ours[name] = np.asarray(value, np.float64)


def test_plain_trees_are_those_of_any_vit():
    """Names and shapes of the model's own; and without biases of queries and keys there are zeros."""
    vit = vit_config(SMALL, (8, 8, 1), 10)
    wanted = qkjax.ViT(vit).init(jax.random.key(0), np.zeros((1, 8, 8, 1), np.float32))["params"]
    for bias in (False, True):
        params = initial(jax.random.key(1), vit, SMALL.constraints(), bias=bias)
        tree = plain(params, vit, SMALL.constraints())
        assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, wanted)
    free = initial(jax.random.key(1), vit, ("free",) * 4)
    tied = initial(jax.random.key(1), vit, ("tied",) * 4)
    assert count(free) - count(tied) == 4 * 32 * 32


def test_starting_from_a_plain_tree_that_satisfies_the_constraints_changes_nothing():
    vit, names = vit_config(SMALL, (8, 8, 1), 10), SMALL.constraints()
    images = np.random.default_rng(0).standard_normal((2, 8, 8, 1)).astype(np.float32)
    tree = plain(initial(jax.random.key(2), vit, names, bias=True), vit, names)
    again = plain(initial(jax.random.key(3), vit, names, start=tree, bias=True), vit, names)
    outputs = [qkjax.ViT(vit).apply({"params": t}, images)[0] for t in (tree, again)]
    np.testing.assert_allclose(*outputs, atol=2e-5)


def test_batches_depend_on_the_step_alone_and_use_every_image_once(task):
    made = training_batches(task.train, 32, 0, 5)
    again = training_batches(task.train, 32, 0, 5)
    np.testing.assert_array_equal(made[40][0], again[40][0])
    epoch = len(task.train.labels) // 32
    seen = np.concatenate([made[i][0] for i in range(epoch)]).reshape(epoch * 32, -1)
    assert len(np.unique(seen, axis=0)) >= epoch * 32 - 2, "scikit-learn has next to no image twice"
    moved = training_batches(task.train, 32, 1, 5)[0][0]
    assert moved.shape == (32, 8, 8, 1)
    assert (moved != made[0][0]).any()
    assert len(task.train.labels) + len(task.validation.labels) == 1797


def files(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in ("model.npz", "metrics.jsonl", "config.json")}


def command(out: Path) -> list[str]:
    shape = ["--width", "32", "--depth", "4", "--heads", "2", "--mlp-dim", "48", "--batch", "32", "--every", "20"]
    names = "0:tied 1:orthogonal 2:flat 3:antisymmetric"
    return [sys.executable, "-m", "qkjax", "train", out, "--constraint", names, "--steps", "200", *shape]


def test_killed_and_interrupted_runs_end_with_the_same_bits(tmp_path):
    """And what they end with is a checkpoint like any other, whose modes show the constraints."""
    whole = subprocess.run(command(tmp_path / "whole"), capture_output=True, text=True, timeout=280, check=False)
    assert whole.returncode == 0, whole.stderr
    assert "on held-out images after 200 steps" in whole.stdout
    out = tmp_path / "stopped"
    for stop in (signal.SIGKILL, signal.SIGINT):
        before = len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0
        with subprocess.Popen(command(out), stderr=subprocess.DEVNULL) as process:
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
    assert {p.name for p in out.iterdir()} == {"model.npz", "metrics.jsonl", "config.json", "checkpoints"}
    assert len(list((tmp_path / "whole" / "checkpoints").iterdir())) <= 2, "the last and the best"

    checkpoint = qkjax.load(out)
    kernels = qkjax.query_key_kernels(checkpoint.params)
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
    task, vit = load_task("digits", 0), checkpoint.config
    names = ("free",) * 4
    params = initial(jax.random.key(0), vit, names, start=checkpoint.params)
    found = evaluate(params, vit, names, *task.validation)
    assert float(found["accuracy"]) == pytest.approx(lines[-1]["accuracy"], abs=1e-6)


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 0}, "steps is 0, wanted a whole number from 1 up"),
        ({"heads": 3}, "3 heads do not divide the width 64"),
        ({"constraint": "tide"}, "no constraint 'tide'"),
        ({"constraint": "0-2:tied"}, "leaves layer 3 without a constraint"),
        ({"learning_rate": -1.0}, "learning_rate is -1.0, wanted a number above 0"),
        ({"warmup": 5000}, "warmup is 5000 of 1200 steps"),
        ({"layers": 3}, "a training run has no 'layers'; it has constraint"),
        ({"width": "64"}, "width is '64', wanted int"),
    ],
)
def test_configurations_that_cannot_be(values, says):
    with pytest.raises(qkjax.QkjaxError, match=says):
        from_dict(values)


def test_runs_that_cannot_be(tmp_path):
    with pytest.raises(qkjax.QkjaxError, match="there is no task 'mnist'; there is digits"):
        train(TrainConfig(data="mnist"), tmp_path)
    with pytest.raises(qkjax.QkjaxError, match="patches of 3 pixels do not fill images of 8 x 8"):
        train(TrainConfig(patch=3), tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(SMALL.to_dict()))
    with pytest.raises(qkjax.QkjaxError, match="holds a run with another constraint, width"):
        train(TrainConfig(), tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(qkjax.QkjaxError, match="is no configuration of a run"):
        train(SMALL, tmp_path)


def test_optimizer_leaves_frozen_kernels_alone(task):
    """No gradient, and no decay either: what is frozen stays as it was drawn, bit for bit."""
    config = TrainConfig(
        constraint="0:frozen 1:free", width=16, depth=2, heads=2, mlp_dim=24, batch=8, weight_decay=0.1
    )
    vit = vit_config(config, (8, 8, 1), 10)
    params = initial(jax.random.key(0), vit, config.constraints())
    state, step = State(jnp.zeros((), jnp.int32), params, optimizer(config).init(params)), make_step(config, vit)
    for number in range(3):
        state, _ = step(state, *training_batches(task.train, 8, 1, 0)[number])
    for layer, same in ((0, True), (1, False)):
        before, after = (
            p["Transformer"][f"encoderblock_{layer}"]["MultiHeadDotProductAttention_0"]["interaction"]["query"]
            for p in (params, state.params)
        )
        assert bool((before == after).all()) == same
