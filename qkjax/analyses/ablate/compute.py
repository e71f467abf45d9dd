"""Measures, on a set of images, the effects of editing a model's modes. (Ablations are not in the paper.)"""

import json
import sys
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
import xarray as xr
from tqdm import tqdm

from qkjax.activations.representation import linear_cka
from qkjax.analyses.ablate.ablator import WHOLE, Ablator
from qkjax.analyses.ablate.plan import AblationSpec, Plan, specs_of
from qkjax.analyses.ablate.readout import Labels, Readout, check_labels, labels_of
from qkjax.analyses.ablate.store import Store, same_images
from qkjax.analyses.ablate.tables import ablations_dataset
from qkjax.analyses.decomposition import decompose, frame_attrs, query_key
from qkjax.analyses.edit import IDLE_CONTROL, ResolvedEdit, is_idle_control, realised, resolve
from qkjax.analyses.edit_rotary import require_own_width
from qkjax.errors import ShardFinished
from qkjax.images.default_set import photographs
from qkjax.images.sets import ImageSet
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import Modes
from qkjax.interaction.query_key import QueryKey
from qkjax.passes.inputs import for_photographs, whole_grid
from qkjax.passes.options import PassOptions
from qkjax.passes.settings import settings_of
from qkjax.passes.shares import check_shard
from qkjax.runtime.interrupt import deferred_interrupt
from qkjax.vit.patches import query_places
from qkjax.weights.checkpoint import Checkpoint, origin_of

Arrays = dict[str, np.ndarray]


class _Model(NamedTuple):
    """A model, its modes, and the images on which the effects of ablations are measured."""

    checkpoint: Checkpoint
    parts: QueryKey
    modes: Modes
    images: ImageSet
    labels: Labels


def ablate(
    checkpoint: Checkpoint,
    plan: Plan,
    images: ImageSet | None = None,
    *,
    labels: bool | Labels = False,
    queries: int = 16,
    exact: bool = False,
    options: PassOptions | None = None,
    partial: str | Path | None = None,
    fresh: bool = False,
) -> xr.Dataset:
    """Measures how each edit in a plan changes attention, representations and accuracy.

    For a model with rotary positions, the edits act on the modes of the mean over places; see `ablations_dataset`.

    Each finished ablation is saved in its own file in the folder `partial`. After an interruption, or if the plan has
    grown, the next call therefore computes only the missing ablations. Equivalent ablations are computed once.

    Args:
      checkpoint: any checkpoint; `for_photographs` first converts a checkpoint for grey images.
      plan: the path of a TOML file, or a list of grids such as [{"edit": "drop", "select": "cosine>0.5"}]; see
        `qkjax.analyses.ablate.plan`.
      images: the image set; by default the photographs of scikit-image and scikit-learn, and crops of these
        photographs.
      labels: the class of each image, or True. With True, the classes are the outermost folders of the image set, or
        the subjects of the default photographs. If there are labels, accuracy is also measured.
      queries: number of evenly spaced query patches per image. For these queries, attention over all keys is compared.
      exact: whether to widen all heads to 2 head_dim + 1 columns, which suffice for any edit. The kernels then
        represent symmetric parts and rotated modes exactly, but the passes take longer. Not for models with rotary
        positions.
      options: batch size, resolution, floating-point format and share. If there are several shares, they divide the
        ablations among themselves, and each share also runs the original model.
      partial: folder in which finished ablations are saved; the caller removes the folder. If None, nothing is saved.
      fresh: discard the finished ablations in `partial`.

    Returns:
      A dataset with dimensions ablation (0 is the original model), image, layer and head; see `ablations_dataset`.

    Raises:
      QkjaxError: the plan is invalid, no image is readable, a class has too few images, or a file cannot be written.
      ShardFinished: the ablations of this share are finished and saved, but those of another share are not.

    Example:
      >>> import qkjax
      >>> checkpoint = qkjax.load("dinov2-vits14-focus")
      >>> few, _ = qkjax.images.photographs().spread(4)
      >>> result = qkjax.ablate(checkpoint, [{"edit": "drop", "select": "cosine>0.5 layers=0-3"}], few)
      >>> result.sizes["ablation"], result.attention_js.dims
      (2, ('ablation', 'image', 'layer', 'head'))
    """
    options, partial = options or PassOptions(), Path(partial) if partial else None
    check_shard(partial, options.shard)
    checkpoint = for_photographs(checkpoint)
    require_own_width(checkpoint.config, exact)
    query_places(whole_grid(checkpoint, options.resolution, WHOLE), queries)  # raises before any computation
    images = photographs() if images is None else images
    labels = labels_of(images) if labels is True else labels or Labels([], [])
    if labels.names:
        check_labels(*labels)
    model = _Model(checkpoint, query_key(checkpoint), decompose(checkpoint), images, labels)
    specs, edits = _resolved(specs_of(plan), model)
    settings = ablation_settings(checkpoint, images, labels, queries, exact, options)
    store = Store(partial, settings, fresh=fresh)
    done = [store.read(edit) for edit in (None, *edits)]
    if not all(same_images(arrays, done[0]) for arrays in done):
        with deferred_interrupt() as check_interrupt:
            done = _fill(done, specs, edits, model, store, (queries, exact, options), check_interrupt)
    unreadable = json.loads(str(done[0]["unreadable"]))
    left_out = [(images.names[i], reason) for i, reason in unreadable]
    names = [images.names[i] for i in done[0]["index"]]
    hidden = ("unreadable", "index", "pixels")
    effects = [{k: v for k, v in arrays.items() if k not in hidden} for arrays in done]
    attrs = {**origin_of(checkpoint), "images": images.name, "settings": json.dumps(settings)}
    attrs |= frame_attrs(model.modes)
    return ablations_dataset(specs, effects, names, left_out, attrs)


def ablation_settings(
    checkpoint: Checkpoint, images: ImageSet, labels: Labels, queries: int, exact: bool, options: PassOptions
) -> dict[str, str]:
    """The settings that all ablations share. The result of an ablation depends only on these and on its edit."""
    classes = blake2b(json.dumps(labels).encode(), digest_size=12).hexdigest() if labels.names else False
    return settings_of(checkpoint, images, options, queries=queries, exact=exact, labels=classes)


def check_specs(checkpoint: Checkpoint, specs: Sequence[AblationSpec]) -> None:
    """Checks, before any long computation, that the edits and selections fit the checkpoint.

    Raises:
      QkjaxError: an edit is unknown, or a selection is invalid.
    """
    modes = decompose(checkpoint)
    arguments = query_key(checkpoint), modes, measure(modes)
    for spec in specs:
        resolve(spec.edit, *arguments)


def _resolved(specs: Sequence[AblationSpec], model: _Model) -> tuple[list[AblationSpec], list[ResolvedEdit]]:
    """Resolves the edits of ablations. A control that would equal the edit itself is left out, and a note says so."""
    metrics, retained = measure(model.modes), []
    for spec in specs:
        edit = resolve(spec.edit, model.parts, model.modes, metrics)
        if not is_idle_control(spec.edit, edit):
            retained.append((spec, edit))
        elif spec.edit.control == 0:
            print(f"note: {spec.edit.kind} {spec.edit.selection}: {IDLE_CONTROL} and is left out", file=sys.stderr)
    return [spec for spec, _ in retained], [edit for _, edit in retained]


def _fill(
    done: list[Arrays | None],
    specs: Sequence[AblationSpec],
    edits: Sequence[ResolvedEdit],
    model: _Model,
    store: Store,
    choices: tuple[int, bool, PassOptions],
    check_interrupt: Callable[[], None],
) -> list[Arrays]:
    """Computes and saves the missing ablations: first the original model, then each edit.

    Args:
      done: finished ablations, where None marks a missing ablation; the first entry is the original model.
      specs: the ablations of the plan.
      edits: the resolved edit of each ablation.
      model: the model, its modes, and the images.
      store: the store in which ablations are saved.
      choices: the arguments queries, exact and options of `ablate`.
      check_interrupt: function that raises KeyboardInterrupt if the user has interrupted the program.
    """
    checkpoint, own = model.checkpoint, -(-len(model.images) // jax.process_count())
    index, count = choices[-1].shard or (0, 1)
    keys = [store.key(edit) for edit in edits]
    shares = {key: place % count for place, key in enumerate(dict.fromkeys(keys))}  # ablations are assigned in turn
    missing = sum(shares[key] == index for key in {key for key, one in zip(keys, done[1:], strict=True) if one is None})
    print(
        f"{checkpoint.name}: {missing} ablations on {len(model.images)} images of {model.images.name}", file=sys.stderr
    )
    with tqdm(total=(1 + missing) * own, unit="img", smoothing=0.05) as bar:
        ablator = Ablator(checkpoint, model.images, *choices, store.settings, bar)
        check_interrupt()
        finish = _finisher(ablator, model)
        heads = checkpoint.config.depth, checkpoint.config.heads
        nothing = {"share": np.zeros(heads), "kept": np.ones(heads)}
        if model.parts.rotation is not None:
            nothing |= {"out_of_reach": np.zeros(heads), "place_change": np.full(heads, np.nan)}
        original = finish(ablator.original) | nothing | {"unreadable": np.array(json.dumps(ablator.unreadable))}
        if not same_images(done[0], original):
            if done[0] is not None:
                bar.write("note: the images have changed, so all ablations are computed again", sys.stderr)
            store.write(None, original)
        results: dict[str, Arrays] = {}
        notes: set[str] = set()
        for key, spec, edit, finished in zip(keys, specs, edits, done[1:], strict=True):
            if key not in results and same_images(finished, original):
                results[key] = finished
            if key not in results and shares[key] == index:
                results[key] = _one(spec, edit, model, ablator, store, finish, notes)
                check_interrupt()
    others = {key: store.read(edit) for key, edit in zip(keys, edits, strict=True) if key not in results}
    results |= {key: arrays for key, arrays in others.items() if same_images(arrays, original)}
    if unfinished := sorted({shares[key] for key in others if key not in results}):
        raise ShardFinished(index, count, unfinished, store.folder)
    return [original, *(results[key] for key in keys)]


def _one(spec, edit: ResolvedEdit, model: _Model, ablator: Ablator, store: Store, finish, notes: set[str]) -> Arrays:
    """Computes and saves one ablation."""
    heads, notes_of_edit, left = realised(edit, model.parts, model.modes, ablator.columns)
    for note in notes_of_edit:
        text = f"note: {spec.edit.kind} {spec.edit.selection}: {note}"
        if text not in notes:
            tqdm.write(text, file=sys.stderr)
            notes.add(text)
    settings = store.settings | {"edit": store.key(edit), "pixels": ablator.pixels}
    rows = ablator.ablate(heads, store.partial(edit), settings)
    arrays = finish(rows) | {"share": edit.share, "kept": np.asarray(heads.retained, np.float64), **left}
    store.write(edit, arrays)
    return arrays


def _finisher(ablator: Ablator, model: _Model) -> Callable[[Arrays], Arrays]:
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
