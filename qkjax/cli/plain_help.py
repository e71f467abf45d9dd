"""Help in plain words: `--heads N`, not `--heads {None}|INT (default: None)`."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import wraps
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from tyro.conf import arg

METAVARS = {int: "N", float: "NUMBER", str: "TEXT", Path: "PATH"}


def with_plain_help(command: Callable[..., None]) -> Callable[..., None]:
    """The command, whose help states types in words and no default that is None, empty, or that of a flag."""
    signature = inspect.signature(command, eval_str=True)
    parameters = [p.replace(annotation=_plain(p)) for p in signature.parameters.values()]

    @wraps(command)
    def run(*arguments, **options) -> None:
        command(*arguments, **options)

    del run.__wrapped__  # else its own annotations would be read
    run.__signature__ = signature.replace(parameters=parameters)
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run


def _plain(parameter: inspect.Parameter) -> Any:
    """The parameter's annotation with a metavar and, if its default says nothing, without it."""
    annotation, metadata = parameter.annotation, []
    if get_origin(annotation) is Annotated:
        annotation, *metadata = get_args(annotation)
    config_type = type(arg())
    config = next((item for item in metadata if isinstance(item, config_type)), arg())
    others = [item for item in metadata if not isinstance(item, config_type)]
    if config.metavar is None and (metavar := _metavar(annotation)):
        config = replace(config, metavar=metavar)
    if parameter.default is inspect.Parameter.empty:
        config = replace(config, help_behavior_hint="(required)")
    elif parameter.default is None or isinstance(parameter.default, bool) or parameter.default == ():
        config = replace(config, help_behavior_hint="")
    return Annotated[(annotation, *others, config)]


def _metavar(annotation: Any) -> str | None:
    """A word for a type, the choices of a literal, None for what tyro shows well."""
    if get_origin(annotation) in (Union, UnionType):
        (annotation,) = (part for part in get_args(annotation) if part is not type(None))
    if get_origin(annotation) is Literal:
        return "{" + ",".join(map(str, get_args(annotation))) + "}"
    if get_origin(annotation) is tuple:
        first, *others = get_args(annotation)
        return f"{METAVARS[first]}..." if others == [...] else " ".join(METAVARS[part] for part in get_args(annotation))
    return METAVARS.get(annotation)
