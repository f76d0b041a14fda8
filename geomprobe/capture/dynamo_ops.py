"""Five custom operators through which compiled graphs call a capture, because Dynamo does not trace into custom operators.

A hook that is traced becomes calls of these operators. They run in Python when the graph runs, so schedules, error handling and
arithmetic settings work as they do without a graph, and changing them does not recompile anything. Each operator declares that
it writes to ``order``, an empty tensor of its capture. This keeps the calls in order, and keeps them from being removed as dead
code.
"""

import gc
import inspect
import itertools
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from types import FunctionType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn

from geomprobe.capture.attention_tap import AttentionCall
from geomprobe.capture.forward_context import one_mask
from geomprobe.capture.generation import Mode

__all__ = ["attended", "begin", "end", "forget", "forget_graphs", "hidden", "register", "routed"]

_TENSORS = ("input_ids", "inputs_embeds", "attention_mask", "position_ids", "cu_seq_lens_q")


class _Capture(Protocol):
    def begin(self, arguments: dict[str, Any], mode: Mode) -> None: ...

    def hidden(self, number: int, hidden: Tensor) -> None: ...

    def attended(self, layers: list[int], make: Callable[[], AttentionCall]) -> None: ...

    def routed(self, layers: list[int], who: int, values: Sequence[Tensor]) -> None: ...

    def end(self) -> None: ...


_captures: "weakref.WeakValueDictionary[int, _Capture]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


def register(capture: _Capture) -> int:
    """Return a number by which the operators find ``capture``, until :func:`forget` is called."""
    number = next(_numbers)
    _captures[number] = capture
    return number


def forget(number: int) -> None:
    """Make the operators do nothing in graphs that still call them with ``number``."""
    _captures.pop(number, None)


def forget_graphs(model: nn.Module, base: nn.Module) -> None:
    """Discard the compiled graphs of ``model``. They were traced without hooks, and would never call any; the next call traces
    again.

    Graphs are stored with the code of ``forward``, which all models of a class share, so other models of that class are traced
    again too; and after ``gc.freeze()``, which hides the modules that contain the model, those of all classes. A compiled
    function that calls the model cannot be found.
    """
    dynamo = sys.modules.get("torch._dynamo.convert_frame")
    if dynamo is None or not dynamo.FRAME_COUNTER:
        return
    from torch._C._dynamo.eval_frame import reset_code

    kinds = {type(module) for module in model.modules()}
    for owner in gc.get_objects():  # a module does not know the modules that contain it
        if issubclass(type(owner), nn.Module) and "_modules" in owner.__dict__ and _is_compiled(owner):
            kinds |= {type(module) for module in owner.modules()} if any(part is base for part in owner.modules()) else set()
    if gc.get_freeze_count():
        kinds |= set(_subclasses(nn.Module))
    for kind in kinds:
        forward = inspect.getattr_static(kind, "forward", None)
        if isinstance(forward, FunctionType):
            reset_code(forward.__code__)


def _subclasses(kind: type[nn.Module]) -> Iterator[type[nn.Module]]:
    for each in kind.__subclasses__():
        yield each
        yield from _subclasses(each)


def _is_compiled(module: nn.Module) -> bool:
    forward = module.__dict__.get("forward")
    return module.__dict__.get("_compiled_call_impl") is not None or hasattr(forward, "_torchdynamo_orig_callable")


def begin(order: Tensor, number: int, mode: Mode, arguments: dict[str, Any]) -> None:
    """Report that the decoder was called, with those of its ``arguments`` that tell which rows are tokens."""
    tensors = {name: arguments.get(name) for name in _TENSORS}
    tensors["attention_mask"] = one_mask(tensors["attention_mask"])
    _begin(order, number, mode, *(_detached(tensors[name]) for name in _TENSORS))


def hidden(order: Tensor, number: int, site: int, hidden: Tensor) -> None:
    """Report the hidden states of a site."""
    _hidden(order, number, site, hidden.detach())


def attended(order: Tensor, number: int, layers: Tensor, call: AttentionCall) -> None:
    """Report that one of ``layers`` called its attention function."""
    numbers = (call.scale, call.softcap, call.window)
    if not (isinstance(call.mask, Tensor | None) and all(isinstance(number, int | float | None) for number in numbers)):
        why = (
            "attention was called with a block mask, or with a scale that is a tensor, in a compiled graph: run the model "
            "without torch.compile"
        )
        call = AttentionCall(call.name, call.query, call.key, unread=why)
    options = (call.causal, call.scale, call.softcap, call.window, call.bias, call.sinks, call.unread)
    _attended(order, number, layers, call.name, call.query, call.key, call.mask, call.weights, *options)


def routed(order: Tensor, number: int, layers: Tensor, who: int, values: list[Tensor]) -> None:
    """Report what the router of one of ``layers`` returned, or its experts were called with."""
    _routed(order, number, layers, who, [value.detach() for value in values])


def end(order: Tensor, number: int) -> None:
    """Report that the decoder returned."""
    _end(order, number)


def _detached(value: Any) -> Tensor | None:
    return value.detach() if isinstance(value, Tensor) else None


@torch.library.custom_op("geomprobe::begin", mutates_args=("order",))
def _begin(
    order: Tensor,
    number: int,
    name: str,
    input_ids: Tensor | None,
    inputs_embeds: Tensor | None,
    attention_mask: Tensor | None,
    position_ids: Tensor | None,
    cu_seq_lens_q: Tensor | None,
) -> None:
    if (capture := _captures.get(number)) is not None:
        values = (input_ids, inputs_embeds, attention_mask, position_ids, cu_seq_lens_q)
        capture.begin(dict(zip(_TENSORS, values, strict=True)), cast(Mode, name))


@torch.library.custom_op("geomprobe::hidden", mutates_args=("order",))
def _hidden(order: Tensor, number: int, site: int, hidden: Tensor) -> None:
    if (capture := _captures.get(number)) is not None:
        capture.hidden(site, hidden)


@torch.library.custom_op("geomprobe::attended", mutates_args=("order",))
def _attended(
    order: Tensor,
    number: int,
    layers: Tensor,
    name: str,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    weights: Tensor | None,
    causal: bool,
    scale: float,
    softcap: float | None,
    window: int | None,
    bias: Tensor | None,
    sinks: Tensor | None,
    unread: str,
) -> None:
    if (capture := _captures.get(number)) is not None:
        options = (causal, scale, softcap, window, bias, sinks, unread)
        capture.attended(layers.tolist(), lambda: AttentionCall(name, query, key, mask, weights, *options))


@torch.library.custom_op("geomprobe::routed", mutates_args=("order",))
def _routed(order: Tensor, number: int, layers: Tensor, who: int, values: Sequence[Tensor]) -> None:
    if (capture := _captures.get(number)) is not None:
        capture.routed(layers.tolist(), who, values)


@torch.library.custom_op("geomprobe::end", mutates_args=("order",))
def _end(order: Tensor, number: int) -> None:
    if (capture := _captures.get(number)) is not None:
        capture.end()
