"""Ablation plans, and the options and arguments of every command."""

import json
import sys
import warnings
from contextlib import chdir, redirect_stderr, redirect_stdout
from functools import cache
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
from hypothesis import strategies as st

from qkjax import figures
from qkjax.analyses.ablate.compute import model_of
from qkjax.analyses.ablate.plan import read_plan
from qkjax.analyses.ablate.readout import Labels
from qkjax.analyses.ablate.run import check_specs
from qkjax.cli import run_command
from qkjax.errors import QkjaxError
from qkjax.images.default_set import photographs

from . import files, json_values
from .files import INDEX
from .image_sets import make_images
from .kind import Kind, change, pick
from .oracle import LENGTH, ViolationError
from .progress import home, model

PLAN = {"grid": [{"edit": ["drop", "flip"], "select": ["grouping={dose} layers={layers}", "cosine>0.5"],
                  "dose": [0.1, 0.5], "layers": ["0", "0-1"], "controls": 2, "key_bias": True},
                 {"edit": "symmetric", "select": "modes=0-2"}]}  # fmt: skip
SELECTIONS = ("", " ", "all", "all all", "cosine>", "cosine>nan", "cosine>1e400", "cosine>>1", "layers=0-99999999999",
              "layers=1-0", "layers=-1", "layers=1,", "heads=0 heads=1", "grouping=2", "grouping=-1", "grouping=0",
              "grouping=0.1 weakest=0.1", "strongest=1e-300", "modes=0-", "modes=-0", "modes=" + "9" * 5000, "{x}",
              "{dose}", "{" * 1000, "\x1b[31m", "\u202e", "L0 H0 M0", "x" * 3000, "cosine>" + "0" * 3000,
              "singular_value<0", "cumulative_strength>=1", "١", "layers=١", "cosine>0.5;", "-1", "1e99")  # fmt: skip
TEXTS = ("", "grid = 1", "[[grid]]", "[[grid]]\nedit = 1", "[grid]\nedit='drop'", "[[grid]]\nedit='drop'\nx=1979-05-27",
         "[[grid]]\nedit='drop'\ncontrols=" + "9" * 30, "x=" + "[" * 3000, "[[grid]]\nedit=" + "[" * 2000 + "]" * 2000,
         "[[grid]]\nedit='drop'\nselect='cosine>{x}'\nx=[nan, inf, -inf]", "[" * 100_000, "\0", "\ufeff[[grid]]",
         "[[grid]]\nedit='drop'\ncontrols=99999999999", "[[grid]]\n" + "edit='drop'\n" * 2,
         "[[grid]]\nedit='drop'\nselect='{a}{b}{c}{d}{e}{f}{g}{h}'\n"
         + "".join(f"{c}=[{','.join('0123456789')}]\n" for c in "abcdefgh"))  # fmt: skip
PLANS = st.one_of(
    change("json", st.just(0), INDEX, st.sampled_from(json_values.HOW), st.integers(0, len(json_values.VALUES) - 1)),
    change("select", st.integers(0, len(SELECTIONS) - 1)),
    change("plan", st.integers(0, len(TEXTS) - 1)),
    files.CHANGES,
)


def make_plan(root: Path, changes: list) -> Path:
    """A plan in TOML."""
    document = json.dumps(PLAN)
    for what, *arguments in changes:
        if what == "json":
            document = json_values.changed(document, *arguments[1:])
        elif what == "select":
            document = json.dumps(_with_selection(json.loads(document), SELECTIONS[arguments[0]]))
    path = root / "plan.toml"
    path.write_text("".join(f"{key} = {_toml(value)}\n" for key, value in json.loads(document).items()))
    for what, *arguments in changes:
        if what == "plan":
            path.write_text(TEXTS[arguments[0]])
    files.apply_all(root, changes)
    return path


def _with_selection(document: dict, text: str) -> dict:
    document["grid"][0]["select"] = text
    return document


def _toml(value) -> str:
    """A value in TOML, which has no null."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return {"NaN": "nan", "Infinity": "inf", "null": '"null"'}.get(text := json.dumps(value), text)


def run_plan(path: Path, scratch: Path) -> list:
    """The ablations of a plan, checked against a model."""
    specs = read_plan(path)
    try:
        check_specs(model_of(model(), photographs(), Labels([], [])), specs)
    except QkjaxError as error:  # which names a term of the plan
        raise QkjaxError(f"{path}: {error}") from error
    return specs


def check_plan(path: Path, changes: list, specs: list) -> None:
    """There is a limited number of different ablations."""
    assert 0 < len(specs) <= 10_000
    assert len({spec.edit for spec in specs}) == len(specs)
    if not changes:
        assert len(specs) == (2 * 2 * 2 + 2) * 3 + 1


class Command(NamedTuple):
    """Words of a command. In a word, {} stands for the folder of inputs and {out} for that of outputs."""

    words: tuple[str, ...]
    slow: bool = False


COMMANDS = [
    "analyze {}/m.npz --out {out}/o",
    "analyze {}/m.npz --out {out}/o --fold-scale --center --grid 4 4 --json",
    "compare {}/m.npz {}/m.npz --out {out}/o",
    "image {}/m.npz {}/m/a.png --out {out}/o --layer 0 --head 1 --top 2",
    "top-images {}/m.npz --images {}/m --out {out}/o --select L0_H0_M0 --top 2 --batch 4 --resolution 32 32",
    "top-images {}/m.npz --images {}/m --out {out}/o --layer 0 --head 0 --sheet-modes 1 --score product --stream norm",
    "ablate {}/m.npz --edit drop --select cosine>0 --images {}/m --out {out}/o --limit 4 --queries 2 --controls 1",
    "preference {}/m.npz --count 2 --seed 0 --kind patterns --out {out}/o --batch 2 --resolution 32 32",
    "objects {}/m.npz --count 2 --seed 0 --top 1 --out {out}/o --batch 2 --dtype float32",
    "tokens {}/m.npz --images {}/m --out {out}/o --batch 2 --resolution 32 32 --dtype float32",
    "export {}/m.npz {out}/e.npz --edit drop --select cosine>0 --control 0 --pool tok",
    "models --family x --objective y",
    "models dino --json",
]  # fmt: skip
WORDS = ("", " ", "-1", "0", "1", "2", "99999999999999999999", "1e400", "nan", "inf", "-inf", "1.5", "0x10", "٣", "x",
         "None", "True", "[]", "{x}", "\x1b[31mred", "\u202eback", "\udcff", "x" * 3000, "../..", "/", ".", "/dev/null",
         "/dev/zero", "{}", "{}/m", "{}/m/a.png", "{}/nothing", "{}/m.npz", "--out", "--", "-", "--help", "--nothing",
         "--top", "--json", "4", "L0 H0 M0", "L99 H0 M0", "L0 H0 M0-", "all", "cosine>2", "product", "vit", "tok",
         "drop", "{}/m.npz:x", "file:///etc", "https://x.invalid/y.npz", "hf:x", "x/y", "'", '"', "*",
         "$HOME", "%s")  # fmt: skip
OPTIONS = st.one_of(
    change("command", st.integers(0, len(COMMANDS) - 1)),
    change("word", INDEX, st.integers(0, len(WORDS) - 1)),
    change("word", INDEX, st.integers(0, len(WORDS) - 1)),
    change("word", INDEX, st.integers(0, len(WORDS) - 1)),
    change("insert", INDEX, st.integers(0, len(WORDS) - 1)),
    change("without", INDEX),
    change("twice", INDEX),
    change("unknown", INDEX, st.sampled_from(["", "-", "x", "\x1b", "no-"])),
)
OPTION_RECIPES = st.tuples(st.integers(0, len(COMMANDS) - 1), OPTIONS).map(lambda x: ["command", x[0], x[1]])


@cache
def inputs() -> Path:
    """A folder with a model and images."""
    make_images(home(), [])
    return home()


class Done(NamedTuple):
    """Exit code, output and errors of a command."""

    code: int
    out: str
    err: str
    words: list[str]


def make_words(root: Path, changes: list) -> Path:
    """A file with the words of a command, one per line of JSON."""
    words = pick(0, COMMANDS).split(" ")
    for _, number, (what, *arguments) in changes:
        words = COMMANDS[number].split(" ")
        place = arguments[0] % len(words)
        if what == "word":
            words[place] = WORDS[arguments[1]]
        elif what == "insert":
            words.insert(place, WORDS[arguments[1]])
        elif what == "without":
            del words[place]
        elif what == "twice":
            words += words[place : place + 2]
        elif what == "unknown":
            words[place] = words[place] + arguments[1]
    (root / "words.json").write_text(json.dumps([word.replace("_H", " H").replace("_M", " M") for word in words]))
    return root / "words.json"


def run_words(path: Path, scratch: Path) -> Done:
    """Runs the command in this process."""
    words = [word.replace("{out}", str(scratch)).replace("{}", str(inputs())) for word in json.loads(path.read_text())]
    argv, hook, show, save = sys.argv, sys.unraisablehook, warnings.showwarning, figures.save_all
    out, err, code = StringIO(), StringIO(), 0
    sys.argv, figures.save_all = ["qkjax", *words], lambda jobs, *_: []  # drawing takes seconds
    try:
        with chdir(scratch), redirect_stdout(out), redirect_stderr(err):
            run_command()
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv, sys.unraisablehook, warnings.showwarning, figures.save_all = argv, hook, show, save
    return Done(code, out.getvalue(), err.getvalue(), words)


def check_words(path: Path, changes: list, done: Done) -> None:
    """Exit code 0, or 2 with a reason, which is one line unless it is about the syntax."""
    assert done.code in (0, 2), done
    if "Traceback" in done.err:
        raise ViolationError(f"traceback\n{done.err}")
    assert not set("\x1b\u202e\udcff") & set(done.out + done.err), done
    errors = [line for line in done.err.splitlines() if line.startswith("qkjax: error: ")]
    if done.code and errors:
        assert len(errors) == 1
        if len(errors[0]) >= LENGTH:
            raise ViolationError(f"error of more than {LENGTH} characters\n{errors[0]}")
    elif done.code:
        assert done.err.strip(), done
    if not changes:
        assert done.code == 0
        assert np.all([len(line) <= 80 for line in done.out.splitlines()])


KINDS = {
    "plans": Kind(make_plan, PLANS, run_plan, check_plan),
    "options": Kind(make_words, OPTION_RECIPES, run_words, check_words, writes=True),
}
