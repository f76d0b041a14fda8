"""Options that several commands have, and those that are made from the arguments of a sweep."""

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING
from enum import Enum, StrEnum
from functools import wraps
from typing import Annotated, Any, Literal, Optional, get_args, get_origin

import typer

from geomprobe.sweeps.config import Argument, SweepConfig, arguments

__all__ = ["Device", "Dtype", "arguments_as_options"]


class Dtype(StrEnum):
    """The dtypes in which models are loaded."""

    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"
    auto = "auto"


Device = Annotated[
    str | None, typer.Option(help="Device, such as cpu, cuda or cuda:1. Default: CUDA if available, else the CPU.")
]


def arguments_as_options(
    kinds: Mapping[str, Any], *, without: Collection[str] = (), before: str
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for a command with ``**arguments``, which gives it an option for each argument of a sweep, of the same name
    and with the same description. The first argument of a sweep becomes the argument of the command.

    Args:
        kinds: the types of options that have another type than the argument.
        without: the arguments that are no options.
        before: the option before which the command's own options stand.
    """
    listed = [argument for argument in arguments(SweepConfig) if argument.name not in without]
    parameters = [_parameter(argument, kinds.get(argument.name, argument.kind)) for argument in listed]
    parameters[0] = parameters[0].replace(annotation=Annotated[kinds[listed[0].name], typer.Argument(help=listed[0].says.text)])
    place = next(number for number, argument in enumerate(listed) if argument.name == before)

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @wraps(command)
        def call(**given: Any) -> None:
            command(**{name: value.value if isinstance(value, Enum) else value for name, value in given.items()})

        own = [p for p in inspect.signature(command).parameters.values() if p.kind is not inspect.Parameter.VAR_KEYWORD]
        call.__signature__ = inspect.Signature([*parameters[:place], *own, *parameters[place:]])  # type: ignore[attr-defined]
        return call

    return decorate


def _parameter(argument: Argument, kind: Any) -> inspect.Parameter:
    """An argument as an option of a command."""
    flag = f"--{argument.name.replace('_', '-')}"
    switch = (flag,) if argument.default is False else ()  # without a --no-…
    choices = [choice for part in (kind, *get_args(kind)) if get_origin(part) is Literal for choice in get_args(part)]
    if choices:  # as an enumeration, because Typer has understood Literal for a short time only
        names: Any = Enum("Choices", dict(zip(choices, choices, strict=True)))  # type: ignore[misc]
        kind = Optional[names] if argument.default is None else names  # noqa: UP045
    metavar = "<name>" if len("|".join(choices)) > 60 else None  # longer ones do not fit on a line of help
    option = typer.Option(*switch, help=argument.says.text, min=argument.says.least, metavar=metavar)
    default = {MISSING: inspect.Parameter.empty, (): ""}.get(argument.default, argument.default)
    return inspect.Parameter(argument.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, option])
