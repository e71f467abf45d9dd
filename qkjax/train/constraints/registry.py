"""Finds constraints by name, and parses schedules that give each layer a constraint."""

import re
from collections.abc import Mapping

from qkjax.errors import QkjaxError, nearest
from qkjax.train.constraints import coordinates, spectrum, symmetry, unconstrained
from qkjax.train.constraints.record import Constraint


def _merge(*families: Mapping[str, Constraint]) -> dict[str, Constraint]:
    names = [name for family in families for name in family]
    if repeated := {name for name in names if names.count(name) > 1}:
        raise TypeError(f"two constraints have the name {', '.join(sorted(repeated))}")
    return {name: entry for family in families for name, entry in family.items()}


CONSTRAINTS = _merge(unconstrained.CONSTRAINTS, symmetry.CONSTRAINTS, spectrum.CONSTRAINTS, coordinates.CONSTRAINTS)
"""A dict from the names of constraints, without arguments, to all constraints. For example, "low_rank(8)" has the key
"low_rank"."""


def example_name(name: str) -> str:
    """A complete name of a constraint in `CONSTRAINTS`: "tied", or "low_rank(8)" with an example of the argument."""
    argument = CONSTRAINTS[name].argument
    return name if argument is None else f"{name}({argument.example:g})"


def constraint(name: str, head_dim: int | None = None) -> Constraint:
    """Returns the constraint with the given name. If the name has an argument, the value of the argument is fixed.

    Args:
      name: a name such as "tied" or "low_rank(8)".
      head_dim: dimension of a head. If it is given, arguments whose upper limit is head_dim are checked.

    Raises:
      QkjaxError: the name is unknown (the message suggests the nearest name), or the argument is out of range.

    Example:
      query, key = constraint("low_rank(8)").kernels(parameters, (embed, heads, head_dim))
    """
    match = re.fullmatch(r"(\w+)(?:\(([^()]*)\))?", name)
    entry = CONSTRAINTS.get(match[1]) if match else None
    if entry is None or (entry.argument is None) != (match[2] is None):
        known = [example_name(known) for known in CONSTRAINTS]
        raise QkjaxError(f"unknown constraint {name!r}{nearest(name, known)}; expected one of {', '.join(known)}")
    return entry if entry.argument is None else entry.bind(entry.argument.parse(match[2], head_dim))


def schedule(text: str, depth: int) -> tuple[str, ...]:
    """Parses a schedule; returns the name of each layer's constraint.

    Args:
      text: one name for all layers, or parts such as "0-3:tied 4-7:free" that cover every layer once.
      depth: number of layers.

    Raises:
      QkjaxError: the text is not a valid schedule, a constraint is unknown, a layer does not exist, or a layer does not
        have exactly one constraint.

    Example:
      schedule("0-1:tied 2:free", 3)  # ("tied", "tied", "free")
    """
    if ":" not in text:
        constraint(text)
        return (text,) * depth
    names: dict[int, str] = {}
    for part in text.split():
        match = re.fullmatch(r"(\d+)(?:-(\d+))?:(\S+)", part)
        if not match:
            raise QkjaxError(f"{part!r} is not a valid part of a schedule: expected parts such as 0-3:tied or 4:free")
        constraint(match[3])
        for layer in range(int(match[1]), int(match[2] or match[1]) + 1):
            if layer >= depth:
                raise QkjaxError(
                    f"the schedule {text!r} names layer {layer}: expected layers from 0 to {depth - 1}, because the "
                    f"model has {depth} layers"
                )
            if layer in names:
                raise QkjaxError(f"the schedule {text!r} assigns two constraints to layer {layer}: expected one")
            names[layer] = match[3]
    if missing := sorted(set(range(depth)) - set(names)):
        raise QkjaxError(
            f"the schedule {text!r} names no constraint for layer {missing[0]}: for an unconstrained layer, add "
            f"{missing[0]}:free"
        )
    return tuple(names[layer] for layer in range(depth))
