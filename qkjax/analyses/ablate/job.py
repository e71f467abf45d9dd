"""The job of `qkjax ablate`: what edits of a model's modes do to a set of images."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from hashlib import blake2b
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import xarray as xr
from tqdm import tqdm

from qkjax import figures
from qkjax.activations.representation import linear_cka
from qkjax.analyses.ablate.ablator import AblationOptions, Ablator, Found
from qkjax.analyses.ablate.plan import Line
from qkjax.analyses.ablate.readout import Readout, check_labels
from qkjax.analyses.ablate.tables import ablation_table, ablations_dataset
from qkjax.analyses.edit import NO_CONTROL, Planned, is_no_control, notes_on, planned
from qkjax.errors import QkjaxError
from qkjax.images.labels import by_folder
from qkjax.images.photographs import photographs, subjects
from qkjax.images.sources import ImageSet, open_images
from qkjax.interaction.edit import edit
from qkjax.interaction.metrics import measure
from qkjax.interaction.modes import Modes, decompose
from qkjax.interaction.query_key import QueryKey
from qkjax.passes.inputs import for_photographs, photograph_grid
from qkjax.passes.settings import settings_of
from qkjax.results.labels import in_words
from qkjax.results.rows import format_rows, list_unreadable, write_csv
from qkjax.results.store import read_earlier, write_dataset
from qkjax.runtime.files import atomic_path, make_folder, remove
from qkjax.runtime.interrupt import held
from qkjax.vit.patches import query_places
from qkjax.vit.tree import query_key
from qkjax.weights.load import Checkpoint, load

SHOWN = ("edit", "select", "modes", "seeds", "share", "kept", "representation", "attention", "preference", "logits",
         "head", "probe", "neighbours")  # fmt: skip
Arrays = dict[str, np.ndarray]


class ImagesWanted(NamedTuple):
    """Which images an ablation is measured on.

    Attributes:
      path: a folder or archive; None for the default photographs.
      limit: so many of them, evenly spaced; None for all.
      labels: the folders that they lie in (or the photographs that they are crops of) are classes.
    """

    path: Path | None = None
    limit: int | None = None
    labels: bool = False


class _Subject(NamedTuple):
    """A model, its modes, and the images that it is shown; their labels are empty where none are asked for."""

    checkpoint: Checkpoint
    parts: QueryKey
    modes: Modes
    images: ImageSet
    labels: list[int]
    classes: list[str]


def ablate_model(
    model: str,
    lines: Sequence[Line],
    wanted: ImagesWanted,
    out: Path | None,
    options: AblationOptions,
    settings: Mapping,
) -> xr.Dataset:
    """Makes the ablations of a plan, and writes ablations.nc, ablations.csv and figures; prints a table.

    Each ablation is kept in a file of its own in the folder's `done`, so that a plan that was stopped goes on, and one
    that has grown asks only for what is new. Ablations that come to the same are made once.

    Returns:
      What is in ablations.nc, see `ablations_dataset`.

    Raises:
      QkjaxError: bad input, or a result cannot be written; what was done is kept.
    """
    checkpoint = for_photographs(load(model, **settings))
    query_places(photograph_grid(checkpoint, options.resolution), options.queries)  # or say at once why not
    parts = query_key(checkpoint.params)
    subject = _Subject(checkpoint, parts, decompose(*parts[:2]), *_images(wanted))
    metrics = measure(subject.modes)
    plans = [planned(line.edit, parts, subject.modes, metrics) for line in lines]
    lines, plans = _without_idle_controls(lines, plans)
    folder = out or Path("results") / checkpoint.name / "ablations"
    make_folder(folder)
    images = subject.images
    how = settings_of(checkpoint, images, options) | {"labels": json.dumps(wanted.labels)}
    read_earlier(folder / "ablations.nc", how)
    if subject.labels:
        check_labels(subject.labels, subject.classes)
    paths = [folder / "done" / f"{_digest(how, plan)}.npz" for plan in (None, *plans)]
    done = {path: _read(path) for path in paths}
    if any(not _is_of(arrays, done[paths[0]]) for arrays in done.values()):
        _fill(done, dict(zip(paths[1:], zip(lines, plans, strict=True), strict=True)), paths[0], subject, options)
    found = [dict(done[path]) for path in paths]
    names = [images.names[i] for i in found[0]["index"]]
    left_out = [(images.names[i], reason) for i, reason in json.loads(str(found[0].pop("unreadable")))]
    for arrays in found:
        del arrays["index"], arrays["seen"]
    attrs = {"model": checkpoint.name, "images": images.name, "settings": json.dumps(how)}
    dataset = ablations_dataset(lines, found, names, left_out, attrs)
    write_dataset(dataset, folder / "ablations.nc")
    list_unreadable(dataset, folder / "unreadable.csv")
    rows = ablation_table(dataset)
    write_csv(rows, folder / "ablations.csv")
    all_kept = min(row["kept"] for row in rows) > 0.9999
    columns = [name for name in SHOWN if name in rows[0] and not (name == "kept" and all_kept)]
    shown = [{name: row[name] for name in columns} | {"edit": in_words(row["edit"], row["key_bias"])} for row in rows]
    print(f"{checkpoint.name}, {len(names)} images\n{format_rows(shown, dict.fromkeys(SHOWN[:3], ''))}")
    drawn = figures.ablation_figures(dataset, rows)
    for stem, ending in product(figures.ABLATIONS, (".png", ".pdf")):
        remove(folder / (stem + ending))  # of another plan
    for stem, figure in drawn.items():
        figures.save(figure, folder / stem)
    print(f"wrote ablations.nc, ablations.csv and {len(drawn)} figures (png, pdf) to {folder}", file=sys.stderr)
    return dataset


def _without_idle_controls(lines: Sequence[Line], plans: Sequence[Planned]) -> tuple[list[Line], list[Planned]]:
    """Without controls that are the edits themselves, which is said."""
    kept = []
    for line, plan in zip(lines, plans, strict=True):
        if not is_no_control(line.edit, plan):
            kept.append((line, plan))
        elif line.edit.control == 0:
            print(f"note: {line.edit.kind} {line.edit.selection}: {NO_CONTROL}, and left out", file=sys.stderr)
    return [line for line, _ in kept], [plan for _, plan in kept]


def _images(wanted: ImagesWanted) -> tuple[ImageSet, list[int], list[str]]:
    """The images, and their classes where these are asked for."""
    images = open_images(wanted.path) if wanted.path else photographs()
    labels, classes = [], []
    if wanted.labels:
        labels, classes = by_folder(wanted.path, images) if wanted.path else subjects(images)
    if wanted.limit is None or wanted.limit >= len(images):
        return images, labels, classes
    if wanted.limit < 1:
        raise QkjaxError("--limit is a whole number from 1 up")
    chosen = (np.arange(wanted.limit) + 0.5) * len(images) / wanted.limit
    chosen = [int(i) for i in chosen]
    read = images.read
    few = replace(
        images,
        names=tuple(images.names[i] for i in chosen),
        read=lambda index: read(chosen[index]),
        fingerprint=f"{wanted.limit} of {images.fingerprint}",
    )
    return few, [labels[i] for i in chosen] if labels else [], classes


def _digest(how: Mapping[str, str], plan: Planned | None) -> str:
    """Of what is done to what: edits that come to the same, such as controls of equal shares, are made once."""
    digest = blake2b(json.dumps(how, sort_keys=True).encode(), digest_size=12)
    if plan:
        digest.update(f"{plan.kind} {plan.key_bias}".encode())
        for array in (np.asarray(plan.weights, np.float32), plan.heads):
            digest.update(np.ascontiguousarray(array).view(np.uint8))
    return digest.hexdigest()


def _is_of(arrays: Arrays | None, unedited: Arrays | None) -> bool:
    """Whether an ablation is there, and of the images that the unedited model saw: others may be readable by now, or
    have taken their place."""
    if arrays is None or unedited is None:
        return False
    return all(name in arrays and np.array_equal(arrays[name], unedited[name]) for name in ("index", "seen"))


def _fill(
    done: dict[Path, Arrays | None],
    plans: Mapping[Path, tuple[Line, Planned]],
    unedited: Path,
    subject: _Subject,
    options: AblationOptions,
) -> None:
    """Makes and keeps what is not there yet."""
    checkpoint, images = subject.checkpoint, subject.images
    wanted = sum(done[path] is None for path in plans)
    print(f"{checkpoint.name}: {wanted} ablations on {len(images)} images of {images.name}", file=sys.stderr)
    bar = tqdm(total=(1 + wanted) * len(images), unit="img", smoothing=0.05)
    with bar, held() as interrupted:

        def tick(count: int) -> None:
            bar.update(count)
            interrupted()

        def tell(notes: Sequence[str]) -> None:
            for note in notes:
                if note not in told:
                    told.add(note)
                    bar.write(f"note: {note}", file=sys.stderr)

        told = set()
        ablator = Ablator(checkpoint, images, options, tick)
        finish = _finisher(ablator, subject)
        heads = checkpoint.config.depth, checkpoint.config.heads
        nothing = {"share": np.zeros(heads), "kept": np.ones(heads)}
        nothing |= {"unreadable": np.array(json.dumps(ablator.unreadable))}
        own = finish(ablator.unedited) | nothing
        if not _is_of(done[unedited], own):
            if done[unedited] is not None:
                tell(["the images are others than before under these names: what was done on those is done anew"])
            done[unedited] = _kept(unedited, own)
        todo = {path: plan for path, plan in plans.items() if not _is_of(done[path], own)}
        bar.total = bar.n + len(todo) * len(images)
        for path, (line, plan) in todo.items():
            what = plan.kind, plan.weights, ablator.columns, plan.key_bias, plan.heads
            made = edit(subject.parts, subject.modes, *what)
            notes = notes_on(plan, made, checkpoint.config.head_dim)
            tell([f"{line.edit.kind} {line.edit.selection}: {note}" for note in notes])
            edited = {"share": plan.share, "kept": np.asarray(made.kept, np.float64)}
            done[path] = _kept(path, finish(ablator.ablate(made)) | edited)


def _finisher(ablator: Ablator, subject: _Subject) -> Callable[[Found], Arrays]:
    """Makes, of what a pass found, what is kept of it."""
    own, readout = ablator.unedited.representation, None
    if subject.labels:
        labels = [subject.labels[i] for i in ablator.index]
        readout = Readout(labels, subject.classes, own, subject.checkpoint.config.classes)

    def finish(found: Found) -> Arrays:
        cka = np.float64(linear_cka(own, found.representation)) if len(own) > 1 else np.nan
        right = readout.right(found.representation, found.logits) if readout else {}
        rest = {"cka": np.array(cka), "index": np.array(ablator.index), "seen": np.array(ablator.seen)}
        rest |= {f"right_{k}": v for k, v in right.items()}
        return found.effects._asdict() | rest

    return finish


def _kept(path: Path, arrays: Arrays) -> Arrays:
    """The same, written to its file."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays)
    return arrays


def _read(path: Path) -> Arrays | None:
    """An ablation that was made; None where it was not, or its file is damaged: then it is made again."""
    with suppress(Exception), open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
        return {name: file[name] for name in file}
    return None
