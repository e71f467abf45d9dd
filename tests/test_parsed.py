"""Numbers in JSON and TOML that no setting has: one line, where the file is read."""

import json

import h5netcdf
import numpy as np
import pytest

import qkjax
from qkjax.analyses.ablate import plan as plans
from qkjax.analyses.ablate.plan import read_plan
from qkjax.passes.partial_file import read_partial
from qkjax.results.store import read_result
from qkjax.runtime.parsed import from_json, from_toml
from qkjax.train.config import TrainConfig, from_dict
from qkjax.train.presets import load_preset
from qkjax.train.records import read_config, read_facts

HUGE = 10**400


@pytest.mark.parametrize("parse", [lambda v: from_json(json.dumps(v)), lambda v: from_toml(f"a = [{v['a'][0]}]")])
def test_numbers(parse):
    assert parse({"a": [10**29]}) == {"a": [10**29]}
    with pytest.raises(ValueError, match="digits"):
        parse({"a": [10**31]})
    with pytest.raises(ValueError, match="digits"):
        parse({"a": [-HUGE]})


def test_depth():
    with pytest.raises(ValueError, match="nested too deeply"):
        from_json("[" * 100_000)
    with pytest.raises(ValueError, match="nested too deeply"):
        from_toml("a = " + "[" * 100_000)


@pytest.mark.parametrize("name", ["clip", "depth", "steps", "seed", "rand_augment"])
@pytest.mark.parametrize("suffix", ["json", "toml"])
def test_training_configurations(name, suffix, tmp_path):
    path = tmp_path / f"config.{suffix}"
    path.write_text(json.dumps({name: HUGE}) if suffix == "json" else f"{name} = {HUGE}")
    for read in (load_preset, *([read_config] if suffix == "json" else [])):
        with pytest.raises(qkjax.QkjaxError, match="digits") as error:
            read(str(path) if read is load_preset else path)
        assert len(str(error.value)) < 500


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"depth": 1001}, "at most 1000 layers"),
        ({"width": 10**10}, "at most one billion"),
        ({"steps": 10**9, "every": 1}, "at most 100,000 evaluations"),
        ({"rand_augment": 10**6}, "at most 1000"),
        ({"clip": 10**29}, ""),
    ],
)
def test_values_that_are_too_large(values, words):
    if not words:
        assert from_dict(values).clip == 1e29
        return
    with pytest.raises(qkjax.QkjaxError, match=words):
        TrainConfig(**values).checked()


def test_facts_of_a_task(tmp_path):
    (tmp_path / "task.json").write_text(
        json.dumps({"classes": HUGE, "held_out": 1, "parameters": 1, "largest_class": None})
    )
    with pytest.raises(qkjax.QkjaxError, match="not a valid description of a task"):
        read_facts(tmp_path / "task.json")


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (f'edit = "drop"\ncontrols = {HUGE}', "digits"),
        ('edit = "drop"\ncontrols = 1000000000', "more than 100000 controls"),
        (f'edit = "drop"\nselect = "grouping={{dose}}"\ndose = [{HUGE}]', "digits"),
        ('edit = "drop"\nselect = "grouping={dose}"\ndose = [1e300]', "dose is 1e"),
    ],
)
def test_plans(plan, words, tmp_path):
    (tmp_path / "plan.toml").write_text(f"[[grid]]\n{plan}\n")
    with pytest.raises(qkjax.QkjaxError, match=words) as error:
        read_plan(tmp_path / "plan.toml")
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value)) < 500


def test_a_plan_of_many_grids(tmp_path, monkeypatch):
    """The limit holds for the plan, not for each of its grids."""
    monkeypatch.setattr(plans, "MOST_SPECS", 100)
    grids = [f'[[grid]]\nedit = "drop"\nselect = "cosine>0.{i}"\ncontrols = 30\n' for i in range(4)]
    (tmp_path / "plan.toml").write_text("".join(grids[:3]))
    assert len(read_plan(tmp_path / "plan.toml")) == 93
    (tmp_path / "plan.toml").write_text("".join(grids))
    with pytest.raises(qkjax.QkjaxError, match="the plan has more than 100 ablations"):
        read_plan(tmp_path / "plan.toml")


@pytest.mark.parametrize("text", ["null", "[1]", "3"])
def test_a_configuration_that_is_no_object(text, tmp_path):
    (tmp_path / "c.json").write_text(text)
    with pytest.raises(qkjax.QkjaxError, match="expected an object with the settings of a run"):
        load_preset(str(tmp_path / "c.json"))


def test_compressed_progress(tmp_path):
    """We write arrays as they are; what unpacks to more than the file would fill the memory."""
    np.savez_compressed(tmp_path / "x.npz", done=np.zeros(1_000_000))
    with pytest.raises(qkjax.QkjaxError, match="it is compressed"):
        read_partial(tmp_path / "x.npz", {})


def test_a_result_that_is_larger_than_its_file(tmp_path):
    """HDF5 does not store what was never written: a file of some kilobytes claims 80 GB."""
    with h5netcdf.File(tmp_path / "modes.nc", "w") as file:
        file.dimensions = {"x": 10_000_000_000}
        file.create_variable("u", ("x",), "f8", chunks=(1_000_000,))
    with pytest.raises(qkjax.QkjaxError, match="many more than the file"):
        read_result(tmp_path / "modes.nc")
