"""Computes the missing ablations of a plan: first the original model, then each edit."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import jax
import numpy as np
from tqdm import tqdm

from qkjax.activations.representation import linear_cka
from qkjax.analyses.ablate.ablator import Ablator
from qkjax.analyses.ablate.outputs import Directions
from qkjax.analyses.ablate.plan import AblationSpec
from qkjax.analyses.ablate.readout import Labels, Readout
from qkjax.analyses.ablate.store import Store, same_images
from qkjax.analyses.edit import IDLE_CONTROL, ResolvedEdit, is_idle_control, realised, resolve, strength_of
from qkjax.errors import QkjaxError, ShardFinished
from qkjax.images.sets import ImageSet
from qkjax.interaction.bias import bias_terms
from qkjax.interaction.dose import Match, Sizes
from qkjax.interaction.metrics import Metrics
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.passes.options import PassOptions
from qkjax.runtime.interrupt import deferred_interrupt
from qkjax.weights.checkpoint import Checkpoint

Arrays = dict[str, np.ndarray]
SIZES = "size_of_"
"""Prefix of the names under which the sizes in the measure "logits" are saved with the original model."""


class Model(NamedTuple):
    """A model, its modes, and the images on which the effects of ablations are measured."""

    checkpoint: Checkpoint
    parts: QueryKey
    modes: Modes
    metrics: Metrics
    images: ImageSet
    labels: Labels


class Ablations(NamedTuple):
    """The ablations of a plan, without controls that would equal their edit.

    Attributes:
      specs, edits: the ablations, and their resolved edits.
      sizes: sizes in each measure, by the name of the measure.
      arrays: the arrays of the original model, then those of each ablation.
    """

    specs: list[AblationSpec]
    edits: list[ResolvedEdit]
    sizes: Mapping[Match, Sizes]
    arrays: list[Arrays]


class Resolver:
    """Resolves the edits of a plan for a model, given the sizes that the pass of the original model measured."""

    def __init__(self, specs: Sequence[AblationSpec], model: Model):
        """Prepares the measure "strength", which needs no images."""
        self._specs, self._metrics = specs, model.metrics
        self._strength = strength_of(model.parts, model.metrics)

    def __call__(self, original: Arrays) -> Ablations:
        """Resolves all edits. A control that would equal the edit itself is left out, and a note says so."""
        stored = {name.removeprefix(SIZES): x for name, x in original.items() if name.startswith(SIZES)}
        sizes = {"strength": self._strength} | ({"logits": Sizes(**stored)} if stored else {})
        specs, edits, notes, wanted = [], [], [], {}
        for spec in self._specs:
            edit, own = resolve(spec.edit, self._metrics, sizes), replace(spec.edit, control=None)
            if spec.edit.control is None:
                wanted[own] = edit.share
            if is_idle_control(spec.edit, edit):
                notes += [f"{own.kind} {own.selection}: {IDLE_CONTROL} and is left out"]
                continue
            specs.append(spec)
            edits.append(edit)
            short = edit.share < 0.99 * wanted.get(own, 0)
            if spec.edit.control is not None and short.any():
                least = (edit.share[short] / wanted[own][short]).min()
                notes += [
                    f"{own.kind} {own.selection}: in {short.sum()} heads, a control changes less than the edit "
                    f"({least:.2f} of its size or more), because all modes together do not change more"
                ]
        for note in dict.fromkeys(notes):
            print(f"note: {note}", file=sys.stderr)
        return Ablations(specs, edits, sizes, [original])


def check_specs(model: Model, specs: Sequence[AblationSpec]) -> None:
    """Checks, before any long computation, that the edits and selections fit the model.

    Raises:
      QkjaxError: an edit is unknown, a selection is invalid, or the model has rotary positions and a dose or a control
        is measured in the logits.
    """
    strength = strength_of(model.parts, model.metrics)
    for spec in specs:
        resolve(spec.edit, model.metrics, dict.fromkeys(("strength", "logits"), strength))
    if model.parts.rotation is not None and any(spec.edit.match == "logits" for spec in specs):
        raise QkjaxError(
            "match='logits' received a model with rotary positions, in whose logits the variance of a mode depends on "
            "the positions of query and key: pass match='strength'"
        )


def run(specs: Sequence[AblationSpec], model: Model, store: Store, choices: tuple[int, bool, PassOptions]) -> Ablations:
    """Reads the finished ablations of a plan, and computes the missing ones.

    Args:
      specs: the ablations of the plan.
      model: the model, its modes, and the images.
      store: the store in which ablations are saved.
      choices: the arguments queries, exact and options of `ablate`.

    Raises:
      ShardFinished: the ablations of this share are finished and saved, but those of another share are not.
    """
    resolver, original = Resolver(specs, model), store.read(None)
    if original is not None:
        plan = resolver(original)
        done = [store.read(edit) for edit in plan.edits]
        if all(same_images(arrays, original) for arrays in done):
            return plan._replace(arrays=[original, *done])
    with deferred_interrupt() as check_interrupt:
        return _compute(resolver, original, model, store, choices, check_interrupt)


def _compute(
    resolver: Resolver,
    stored: Arrays | None,
    model: Model,
    store: Store,
    choices: tuple[int, bool, PassOptions],
    check_interrupt: Callable[[], None],
) -> Ablations:
    """Runs the original model, and computes and saves the missing ablations."""
    own = -(-len(model.images) // jax.process_count())
    with tqdm(total=own, unit="img", smoothing=0.05) as bar:
        ablator = Ablator(model.checkpoint, model.images, *choices, store.settings, bar, _directions(model))
        check_interrupt()
        finish = _finisher(ablator, model)
        original = _original(ablator, finish, model)
        if not same_images(stored, original):
            if stored is not None:
                bar.write("note: the images have changed, so all ablations are computed again", sys.stderr)
            store.write(None, original)
        else:
            original = stored  # its sizes, to the bit, with which the finished ablations were resolved
        plan = resolver(original)
        return _fill(plan, model, store, choices[-1].shard or (0, 1), ablator, finish, check_interrupt, bar)


def _fill(plan: Ablations, model: Model, store: Store, shard, ablator: Ablator, finish, check_interrupt, bar: tqdm):
    """Computes and saves the missing ablations of a share."""
    original, (index, count) = plan.arrays[0], shard
    keys = [store.key(edit) for edit in plan.edits]
    shares = {key: place % count for place, key in enumerate(dict.fromkeys(keys))}  # ablations are assigned in turn
    done = {key: store.read(edit) for key, edit in zip(keys, plan.edits, strict=True)}
    results = {key: arrays for key, arrays in done.items() if same_images(arrays, original)}
    missing = {
        key: (spec, edit)
        for key, spec, edit in zip(keys, plan.specs, plan.edits, strict=True)
        if key not in results and shares[key] == index
    }
    images = model.images
    bar.write(f"{model.checkpoint.name}: {len(missing)} ablations on {len(images)} images of {images.name}", sys.stderr)
    bar.total += len(missing) * bar.total
    notes: set[str] = set()
    for key, (spec, edit) in missing.items():
        results[key] = _one(spec, edit, model, ablator, store, finish, notes)
        check_interrupt()
    others = {key: store.read(edit) for key, edit in zip(keys, plan.edits, strict=True) if key not in results}
    results |= {key: arrays for key, arrays in others.items() if same_images(arrays, original)}
    if unfinished := sorted({shares[key] for key in others if key not in results}):
        raise ShardFinished(index, count, unfinished, store.folder)
    return plan._replace(arrays=[original, *(results[key] for key in keys)])


def _directions(model: Model) -> Directions | None:
    """The directions from which sizes in the logits are computed; None for a model with rotary positions."""
    if model.parts.rotation is not None:
        return None
    return Directions(*model.modes, bias_terms(model.parts).key_direction)


def _original(ablator: Ablator, finish, model: Model) -> Arrays:
    """The arrays of the original model: its effects compared with itself, and the sizes in the logits."""
    heads = model.checkpoint.config.depth, model.checkpoint.config.heads
    nothing = {"kept": np.ones(heads)}
    if model.parts.rotation is not None:
        nothing |= {"out_of_reach": np.zeros(heads), "place_change": np.full(heads, np.nan)}
    if ablator.sizes is not None:
        nothing |= {f"{SIZES}{name}": x for name, x in ablator.sizes._asdict().items()}
    return finish(ablator.original) | nothing | {"unreadable": np.array(json.dumps(ablator.unreadable))}


def _one(spec, edit: ResolvedEdit, model: Model, ablator: Ablator, store: Store, finish, notes: set[str]) -> Arrays:
    """Computes and saves one ablation."""
    heads, notes_of_edit, left = realised(edit, model.parts, model.modes, ablator.columns)
    for note in notes_of_edit:
        text = f"note: {spec.edit.kind} {spec.edit.selection}: {note}"
        if text not in notes:
            tqdm.write(text, file=sys.stderr)
            notes.add(text)
    settings = store.settings | {"edit": store.key(edit), "pixels": ablator.pixels}
    rows = ablator.ablate(heads, store.partial(edit), settings)
    arrays = finish(rows) | {"kept": np.asarray(heads.retained, np.float64), **left}
    store.write(edit, arrays)
    return arrays


def _finisher(ablator: Ablator, model: Model) -> Callable[[Arrays], Arrays]:
    """A function that converts the rows of a pass to effects, similarity of representations, and accuracy."""
    own, readout = ablator.original["representation"], None
    if model.labels.names:
        labels = [model.labels.classes_of_images[i] for i in ablator.index]
        readout = Readout(labels, model.labels.names, own, model.checkpoint.config.classes)

    def finish(rows: Arrays) -> Arrays:
        effects = dict(rows)
        representation, logits = effects.pop("representation"), effects.pop("logits", None)
        cka = np.float64(linear_cka(own, representation)) if len(own) > 1 else np.nan
        correct = readout.correct(representation, logits) if readout else {}
        effects |= {"cka": np.array(cka), "index": np.array(ablator.index), "pixels": np.array(ablator.pixels)}
        return effects | {f"right_{k}": v for k, v in correct.items()}

    return finish
