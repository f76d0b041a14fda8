"""The arguments of a sweep, defined once: the Python function, the command line and the manifest of a run use this definition.

This module does not import torch, so that ``geomprobe sweep --help`` does not have to wait for it.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from dataclasses import field as of_field  # "field" is one of the arguments
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from geomprobe.errors import GeomprobeError, is_whole

if TYPE_CHECKING:
    from geomprobe.sweeps.records import Record

__all__ = ["Argument", "DtypeName", "ProtocolName", "Says", "SweepConfig", "arguments"]

DtypeName = Literal["float32", "bfloat16", "float16", "auto"]
ProtocolName = Literal["three-phases", "matrix-entropy", "prompt-entropy", "dataset-entropy", "rankme", "attention-sink"]
"""The names of :data:`geomprobe.protocols.PROTOCOLS`, whose module needs torch."""


class Says(NamedTuple):
    """The description of an argument, and the smallest whole number that is allowed."""

    text: str
    least: int | None = None


@dataclass(frozen=True)
class SweepConfig:
    """The arguments of :func:`~geomprobe.sweep`, checked. ``sweep(**vars(config))`` runs the sweep with these arguments.

    Two configurations are equal if a run that was started with one can be resumed with the other: ``out``, ``device``,
    ``progress`` and ``on_record`` are not compared. All other arguments are written to the manifest of the run.

    Raises:
        GeomprobeError: if an argument is not what is expected.
    """

    models: Annotated[
        Sequence[str | Path] | str | Path,
        Says("A folder that contains checkpoint-* folders; or one or more hub ids or directories of models."),
    ]
    _: KW_ONLY
    data: Annotated[str | Path, Says("A .txt, .jsonl[.gz] or .parquet file, or the id of a dataset on the hub (NAME:CONFIG).")]
    out: Annotated[str | Path, Says("Output folder; an existing run is resumed.")] = of_field(compare=False)
    revisions: Annotated[Sequence[str], Says("Revisions of one model on the hub: step1,step512,…")] = ()
    field: Annotated[str, Says("Field with the text of a document, or with its list of messages.")] = "text"
    split: Annotated[str, Says("Split of a dataset on the hub.")] = "train"
    tokens: Annotated[int, Says("Number of tokens that every checkpoint reads.", least=2)] = 65_536
    length: Annotated[
        int | None, Says("Maximum tokens per text. Default: 256, or what the model allows if that is less.", least=2)
    ] = None
    sample: Annotated[
        int, Says("Number of tokens on which expensive metrics (information gain, Lasso …) are measured.", least=2)
    ] = 1024
    batch_tokens: Annotated[int, Says("Maximum tokens per batch, padding included.", least=2)] = 2048
    texts: Annotated[int | None, Says("Number of texts to read. Default: as many as --tokens allows.", least=1)] = None
    truncate: Annotated[bool, Says("Use only the first --length tokens of each document, and leave out the rest.")] = False
    seed: Annotated[int, Says("Seed of the order of documents and of the null baselines.")] = 0
    sketch: Annotated[int | None, Says("Approximate covariances with this number of random directions.", least=1)] = None
    protocol: Annotated[
        ProtocolName | None,
        Says(f"Also measure the numbers of a published protocol: {', '.join(get_args(ProtocolName))}."),
    ] = None
    rows: Annotated[
        Literal["all", "last", "mean"],
        Says("Also measure entropies and ranks of one row (hidden state) per text: the last one, or the mean."),
    ] = "all"
    cka_rows: Annotated[Literal["unit", "raw"], Says("Rows that CKA compares: scaled to length one, or as they are.")] = "unit"
    baselines: Annotated[
        bool, Says("Also measure null baselines: an untrained model, and Gaussian rows (random numbers as hidden states).")
    ] = True
    dtype: Annotated[DtypeName, Says("Dtype of the weights; auto keeps the dtype of the checkpoint.")] = "float32"
    device: Annotated[str | None, Says("Device, such as cpu, cuda or cuda:1. Default: CUDA if available, else the CPU.")] = (
        of_field(default=None, compare=False)
    )
    device_map: Annotated[str | None, Says("Give auto for models that do not fit on one device.")] = None
    tokenizer: Annotated[str | None, Says("Hub id or directory of the tokenizer, for checkpoints without one.")] = None
    trust_remote_code: Annotated[bool, Says("Run Python code that comes with the models.")] = False
    progress: Annotated[bool, Says("Show a progress bar on stderr, if that is a terminal.")] = of_field(
        default=False, compare=False
    )
    on_record: Annotated[
        "Callable[[Record], object] | None",
        Says("A function that the main process calls with every record, including those of an earlier session."),
    ] = of_field(default=None, compare=False)

    def __post_init__(self) -> None:
        one = isinstance(self.models, str | os.PathLike)
        object.__setattr__(self, "models", _texts("models", [self.models] if one else self.models))
        object.__setattr__(self, "revisions", _texts("revisions", self.revisions))
        object.__setattr__(self, "data", os.fspath(self.data) if isinstance(self.data, os.PathLike) else self.data)
        _expect("out", self.out, isinstance(self.out, str | os.PathLike) and str(self.out) != "", "the path of a folder")
        _expect("device", self.device, _is_device(self.device), "the name of a device, such as 'cpu' or 'cuda:0', or None")
        _expect("on_record", self.on_record, self.on_record is None or callable(self.on_record), "a function or None")
        for argument in arguments(SweepConfig):
            if argument.name not in ("models", "revisions", "out", "device", "on_record"):
                _check(argument, getattr(self, argument.name))

    @property
    def identity(self) -> dict[str, Any]:
        """The arguments that identify a run, as its manifest has them."""
        named = {field.name: getattr(self, field.name) for field in fields(self) if field.compare}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in named.items()}


class Argument(NamedTuple):
    """An argument of a configuration: its name, its type without the description, its description, and its default, which is
    ``dataclasses.MISSING`` if it must be given."""

    name: str
    kind: Any
    says: Says
    default: Any


def arguments(config: type[SweepConfig]) -> list[Argument]:
    """Return the arguments of a configuration in their order."""
    typed = ((field, *get_args(field.type)) for field in fields(config))
    return [Argument(field.name, kind, says, field.default) for field, kind, says in typed]


def _check(argument: Argument, value: object) -> None:
    """Check an argument whose type says what is allowed."""
    kinds = get_args(argument.kind) if get_origin(argument.kind) in (Union, UnionType) else (argument.kind,)
    choices = [choice for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    optional, least = NoneType in kinds, argument.says.least
    if choices:
        holds, expected = value in choices, f"one of {', '.join(choices)}" + ", or None" * optional
    elif bool in kinds:
        holds, expected = isinstance(value, bool), "True or False"
    elif int in kinds:
        holds = is_whole(value, least)
        expected = "a whole number" if least is None else f"a whole number, {least} or more"
    elif optional:
        holds, expected = isinstance(value, str), "a text or None"
    else:
        holds, expected = isinstance(value, str) and value != "", "a text that is not empty"
    _expect(argument.name, value, holds or (optional and value is None), expected)


def _expect(name: str, value: object, holds: bool, expected: str) -> None:
    if not holds:
        raise GeomprobeError(f"sweep({name}={value!r}): expected {expected}")


def _texts(name: str, value: object) -> tuple[str, ...]:
    """An argument that is a sequence of names or paths."""
    expected = "a sequence of names" + (" or paths" if name == "models" else ", such as ['step1', 'step512']")
    _expect(name, value, isinstance(value, Sequence) and not isinstance(value, str | bytes), expected)
    parts = tuple(os.fspath(part) if isinstance(part, os.PathLike) else part for part in value)  # type: ignore[attr-defined]
    _expect(name, value, all(isinstance(part, str) and part for part in parts), expected)
    return parts


def _is_device(name: object) -> bool:
    import torch

    try:
        return name is None or (isinstance(name, str) and torch.device(name) is not None)
    except RuntimeError:  # not the name of a device
        return False
