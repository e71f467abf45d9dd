"""Training on several devices and hosts is training on one: the same step, whatever the parameters are split over."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compilations import counted_compilations
from hosts import run_hosts

import qkjax
from qkjax.train.config import TrainConfig, vit_config
from qkjax.train.data import training_batches
from qkjax.train.devices import distribute
from qkjax.train.model import initial
from qkjax.train.step import program as make_program
from qkjax.train.tasks import load_task

CONFIG = TrainConfig(
    constraint="0:flat 1:orthogonal 2:pull(0.5)", width=64, depth=3, heads=4, mlp_dim=96, steps=6, batch=32, warmup=0,
    accumulate=2, every=3,
)  # fmt: skip
STEPS = 3
HOSTS = replace(CONFIG, constraint="free", accumulate=1, steps=2, every=2)


def kernels() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((2, 11, 48, 3, 8)).astype(np.float32)


def leaves(config: TrainConfig) -> list[np.ndarray]:
    """Losses, parameters and moments after some steps on the devices that there are."""
    task = load_task(config)
    vit = vit_config(config, task.pixels, task.classes)
    program = make_program(config, vit)
    state, losses = program.begin(initial(jax.random.key(0), vit, config.constraints())), []
    for batch in islice(training_batches(task, config), STEPS):
        state, loss = program.step(state, *distribute(batch))
        losses.append(float(loss))
    split = [leaf for leaf in jax.tree.leaves(state.params) if not leaf.sharding.is_fully_replicated]
    large = [leaf for leaf in jax.tree.leaves(state.params) if leaf.size >= 4096]
    assert len(split) == (len(large) if config.parallel == "fsdp" and jax.device_count() > 1 else 0)
    return [np.array(losses), *(np.asarray(leaf) for leaf in jax.tree.leaves((state.params, state.optimizer)))]


if __name__ == "__main__":  # on eight devices, see below
    assert jax.device_count() == 8
    for parallel in ("data", "fsdp"):
        np.savez(Path(sys.argv[1]) / f"{parallel}.npz", *leaves(replace(CONFIG, parallel=parallel)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("qkjax.interaction.modes.by_lapack", lambda: False)
        scale = np.linspace(0.5, 2, 11 * 48, dtype=np.float32).reshape(11, 48)
        with counted_compilations() as counts:
            found = qkjax.decompose(*map(jnp.asarray, kernels()), norm_scale=jnp.asarray(scale))
    np.savez(Path(sys.argv[1]) / "modes.npz", *found)
    np.savez(Path(sys.argv[1]) / "compilations.npz", counts["decompose_share"], counts["_decompose"])


@pytest.fixture(scope="module")
def eight(tmp_path_factory) -> dict[str, list[np.ndarray]]:
    """By kind, on eight virtual devices of this CPU."""
    folder = tmp_path_factory.mktemp("eight")
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=8", "PJRT_NPROC": "16"}
    subprocess.run([sys.executable, __file__, folder], env=os.environ | flags, timeout=250, check=True)
    read = {name: np.load(folder / f"{name}.npz") for name in ("data", "fsdp", "modes", "compilations")}
    return {parallel: list(file.values()) for parallel, file in read.items()}


def assert_same(ours: list[np.ndarray], theirs: list[np.ndarray]) -> None:
    """To 1e-5. What Adam divides by is the gradient itself, so that one of the size of its rounding, some 1e-9, may
    step either way: one entry of a thousand is let off."""
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        assert np.mean(np.abs(a - b) > 1e-5) <= 1e-3, np.abs(a - b).max()


def test_eight_devices_decompose_as_one_does(eight):
    """Eleven layers on eight devices, by the way of accelerators, against one device and LAPACK."""
    scale = np.linspace(0.5, 2, 11 * 48, dtype=np.float32).reshape(11, 48)
    (u, s, v), wanted = eight["modes"], qkjax.decompose(*kernels(), norm_scale=scale)
    np.testing.assert_allclose(s, wanted.s, atol=3e-6 * wanted.s.max())
    ours, theirs = (np.einsum("lhdn,lhn,lhen->lhde", *x) for x in ((u, s, v), wanted))
    np.testing.assert_allclose(ours, theirs, atol=1e-5 * wanted.s.max())


def test_eight_devices_run_one_program(eight):
    """The decomposition is compiled once for all devices, not once per device."""
    assert list(map(int, eight["compilations"])) == [1, 0]


def test_eight_devices_do_what_one_does(eight):
    assert_same(eight["data"], leaves(CONFIG))


def test_split_parameters_do_what_copied_ones_do(eight):
    assert_same(eight["fsdp"], eight["data"])


@pytest.mark.slow
def test_two_hosts_do_what_one_does(tmp_path):
    """Two processes of two devices each, parameters split over all four, through the command line; they go on from
    each other's checkpoint, and the folder is that of one run."""
    (tmp_path / "config.json").write_text(json.dumps(replace(HOSTS, parallel="fsdp").to_dict()))
    command = [sys.executable, "-m", "qkjax", "train", "--config", tmp_path / "config.json", "--distributed"]
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "PJRT_NPROC": "8"}
    for done in run_hosts(*[[*command, tmp_path / "two"]] * 2, **flags):
        assert done.returncode == 0, done.stderr
    from qkjax.train.run import train

    train(HOSTS, tmp_path / "one")
    lines = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    ]
    for one, two in zip(*lines, strict=True):
        for name, value in one.items():
            np.testing.assert_allclose(two[name], value, atol=1e-5, err_msg=name)
    one, two = (jax.tree.leaves(qkjax.load(tmp_path / name).params) for name in ("one", "two"))
    assert_same([np.asarray(x) for x in two], [np.asarray(x) for x in one])


def test_virtual_devices_that_would_lock_each_other_up_are_refused(tmp_path):
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    command = [sys.executable, "-m", "qkjax", "train", tmp_path, "--constraint", "flat"]
    done = subprocess.run(command, env=os.environ | flags, stderr=subprocess.PIPE, text=True, timeout=100, check=False)
    assert done.returncode == 2
    assert "set the environment variable PJRT_NPROC to twice the number of devices" in done.stderr
