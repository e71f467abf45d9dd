"""Changes of named arrays: types, shapes, values and names."""

import numpy as np
from hypothesis import strategies as st

from .files import INDEX, NAMES
from .kind import NotApplicableError, change, pick

Arrays = dict[str, np.ndarray]
DTYPES = ("float16", "float64", ">f4", "int8", "int64", "uint8", "bool", "complex64")
VALUES = (float("nan"), float("inf"), float("-inf"), 3e38, -3e38, 1e30, 1e-45, 0.0, 1e6)
SHAPES = ("flat", "first", "last", "scalar", "transposed", "shorter", "longer", "none", "doubled", "one")
CHANGES = st.one_of(
    change("dtype", INDEX, st.sampled_from(DTYPES)),
    change("shape", INDEX, st.sampled_from(SHAPES)),
    change("shape", INDEX, st.sampled_from(SHAPES)),
    change("value", INDEX, st.integers(0, 1 << 20), st.sampled_from(VALUES)),
    change("all values", INDEX, st.sampled_from(VALUES)),
    change("scaled", INDEX, st.sampled_from([-1.0, 2.0, 0.5, 1e15, 1e-20])),
    change("removed", INDEX),
    change("renamed", INDEX, st.sampled_from([*NAMES, "upper", "prefix", "suffix", "next"])),
    change("added", INDEX, st.sampled_from([*NAMES, "upper", "prefix", "suffix", "next"])),
    change("exchanged", INDEX, INDEX),
)
NAMES_OF_CHANGES = frozenset(
    ["dtype", "shape", "value", "all values", "scaled", "removed", "renamed", "added", "exchanged"]
)


def changed(arrays: Arrays, changes: list) -> Arrays:
    """Copies of arrays with those of the changes that concern arrays."""
    arrays = {name: array.copy() for name, array in arrays.items()}
    for name, *arguments in changes:
        if name in NAMES_OF_CHANGES:
            with np.errstate(all="ignore"):
                _apply(arrays, name, pick(arguments[0], sorted(arrays)), *arguments[1:])
    return arrays


def _apply(arrays: Arrays, what: str, name: str, *arguments) -> None:
    array = arrays[name]
    if what == "dtype":
        arrays[name] = array.astype(arguments[0])
    elif what == "shape":
        arrays[name] = reshaped(array, arguments[0])
    elif what == "value":
        if array.size:
            array.flat[arguments[0] % array.size] = arguments[1]
    elif what == "all values":
        array[...] = arguments[0]
    elif what == "scaled":
        arrays[name] = (array * arguments[0]).astype(array.dtype)
    elif what == "removed":
        del arrays[name]
    elif what in ("renamed", "added"):
        other = _other_name(name, arguments[0])
        if other in arrays:
            raise NotApplicableError(f"{other} exists")
        arrays[other] = arrays.pop(name) if what == "renamed" else array.copy()
    else:
        other = pick(arguments[0], sorted(arrays))
        arrays[name], arrays[other] = arrays[other], arrays[name]


def reshaped(array: np.ndarray, how: str) -> np.ndarray:
    """The array in another shape, one of `SHAPES`."""
    if how in ("shorter", "longer", "none", "doubled") and not array.ndim:
        raise NotApplicableError("no axis")
    return {
        "flat": lambda: array.reshape(-1),
        "first": lambda: array[None],
        "last": lambda: array[..., None],
        "scalar": lambda: array.reshape(-1)[:1].reshape(()),
        "one": lambda: array.reshape(-1)[:1],
        "transposed": lambda: np.ascontiguousarray(array.T),
        "shorter": lambda: array[:-1],
        "longer": lambda: np.concatenate([array, array[:1]]),
        "none": lambda: array[:0],
        "doubled": lambda: np.concatenate([array, array], axis=-1),
    }[how]()


def _other_name(name: str, how: str) -> str:
    digit = next((i for i, c in enumerate(name) if c.isdigit()), None)
    following = name if digit is None else f"{name[:digit]}{int(name[digit]) + 1}{name[digit + 1 :]}"
    return {"upper": name.upper(), "prefix": f"model.{name}", "suffix": f"{name}.x", "next": following}.get(how, how)
