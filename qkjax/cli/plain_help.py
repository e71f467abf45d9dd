"""Simplifies the help of commands, for example to `--heads N` instead of `--heads {None}|INT (default: None)`."""

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict, field, is_dataclass, make_dataclass, replace
from functools import partial, wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from tyro.conf import arg

METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def with_plain_help(command: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """Wraps a command so that its help states types in words, and shows no default that is None, False or empty.

    If a parameter is a dataclass, its fields are options, and the help of each field is simplified too. The wrapped
    command returns a function that runs the command, so that no error of the command is taken for one of its options.
    """
    signature = inspect.signature(command, eval_str=True)
    parameters = [_plain_parameter(parameter) for parameter in signature.parameters.values()]

    @wraps(command)
    def run(*arguments, **options) -> Callable[[], None]:
        return partial(command, *arguments, **{name: _original(value) for name, value in options.items()})

    del run.__wrapped__  # otherwise tyro would read the annotations of the command
    run.__doc__ = _joined_lines(command.__doc__)
    run.__signature__ = signature.replace(parameters=parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _plain_parameter(parameter: inspect.Parameter) -> inspect.Parameter:
    annotation, default = parameter.annotation, parameter.default
    if is_dataclass(default):
        default = _plain_dataclass(default)
        annotation = Annotated[(type(default), *_parts(annotation)[1:], arg())]
    return parameter.replace(annotation=_plain(annotation, default), default=default)


def _plain_dataclass(instance: Any) -> Any:
    """A copy of a dataclass instance, as an instance of a new class whose fields have plain help."""
    original, values = type(instance), asdict(instance)
    hints = get_type_hints(original, include_extras=True)
    members = [(name, _plain(hints[name], value), field(default=value)) for name, value in values.items()]
    copy = make_dataclass(original.__name__, members, frozen=True, namespace={"_original": original})
    copy.__doc__ = _joined_lines(original.__doc__)
    return copy()


def _original(value: Any) -> Any:
    """Converts an instance of a class made by `_plain_dataclass` back to the original class.

    A value of any other class is returned unchanged.
    """
    return value._original(**asdict(value)) if hasattr(value, "_original") else value


def _joined_lines(docstring: str | None) -> str:
    """Returns the docstring with the description of each argument on one line, so that tyro can wrap it."""
    return re.sub(r"\n {4,}(?=\S)", " ", inspect.cleandoc(docstring or ""))


def _parts(annotation: Any) -> tuple:
    """A type, followed by its metadata if the type is `Annotated`."""
    return get_args(annotation) if get_origin(annotation) is Annotated else (annotation,)


def _plain(annotation: Any, default: Any) -> Any:
    """Adds a metavar to an annotation, and hides a default that is None, False or empty from the help."""
    annotation, *metadata = _parts(annotation)
    config_type = type(arg())
    config = next((item for item in metadata if isinstance(item, config_type)), arg())
    others = [item for item in metadata if not isinstance(item, config_type)]
    if config.metavar is None and (metavar := _metavar(annotation)):
        config = replace(config, metavar=metavar)
    if default is inspect.Parameter.empty:
        config = replace(config, help_behavior_hint="(required)")
    elif default is None or default is False or default in ((), ""):
        config = replace(config, help_behavior_hint="")
    elif default is True and config.help_behavior_hint is None:
        config = replace(config, help_behavior_hint="(on by default; this option turns it off)")
    return Annotated[(annotation, *others, config)]


def _metavar(annotation: Any) -> str | None:
    """The word for a type in the help, or the choices of a `Literal`; None for types that tyro describes itself."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is tuple:
        first, *others = get_args(annotation)
        return f"{METAVARS[first]}..." if others == [...] else " ".join(METAVARS[part] for part in get_args(annotation))
    return METAVARS.get(annotation)
