"""Every pass compiles its step once, whatever the number of batches; a second pass compiles nothing."""

from collections.abc import Callable
from pathlib import Path

import jax
import pytest
from compilations import counted_compilations

import qkjax
from conftest import DATA
from qkjax.images.generated import patterns
from qkjax.images.segmented import mosaics
from qkjax.passes.options import PassOptions
from qkjax.report.map_tiles import map_tiles

OPTIONS = PassOptions(batch=2)
PLAN = [{"edit": "drop", "select": ["cosine>0.1", "cosine>0.2"]}]


def photographs():
    return qkjax.images.photographs().spread(5)[0]


def top_images(model, _: Path, maps: int | None = None):
    return qkjax.top_images(model, photographs(), top=2, maps=maps, options=OPTIONS)


def maps(model, folder: Path):
    """The maps of a report on a scan without maps, which needs a second pass."""
    without_maps = top_images(model, folder, maps=0)
    return map_tiles(model, qkjax.decompose(model), photographs(), without_maps, (2, 2), folder)


PASSES: dict[str, tuple[Callable, tuple[str, ...]]] = {
    "top_images": (top_images, ("_step", "_measure")),
    "preference": (
        lambda model, _: qkjax.attention_preference(model, patterns(count=5, seed=0), options=OPTIONS),
        ("_step", "_measure"),
    ),
    "objects": (
        lambda model, _: qkjax.same_object(model, mosaics(count=5, seed=0), top=2, options=OPTIONS),
        ("_step", "_measure"),
    ),
    "tokens": (
        lambda model, _: qkjax.token_statistics(model, photographs(), options=OPTIONS),
        ("_moments_step", "_parts_step"),
    ),
    "ablate": (
        lambda model, _: qkjax.ablate(model, PLAN, photographs(), options=OPTIONS),
        ("original_outputs", "edited_outputs", "edit", "_measure"),
    ),
    "maps": (maps, ("_step", "_maps", "_measure")),
}
"""Each pass, with the programs that it compiles."""


@pytest.mark.parametrize("name", PASSES)
def test_a_pass_compiles_its_step_once(name, tmp_path):
    """With five images in batches of two, the last batch is not full."""
    run, programs = PASSES[name]
    model = qkjax.load(DATA / "a.npz")
    jax.clear_caches()  # other tests may have compiled the same programs
    with counted_compilations() as counts:
        run(model, tmp_path / "first")
    assert {program: counts[program] for program in programs} == dict.fromkeys(programs, 1)
    with counted_compilations() as counts:
        run(model, tmp_path / "second")
    assert not counts
