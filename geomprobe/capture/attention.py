"""The attention tap: a function around each of Transformers' attention functions that looks at what goes in.

Every decoder of Transformers asks a registry for its attention function. While a tap is on, the entries of that registry call
what they called before, and then hand queries, keys, mask and options on. What the model gets is what the original returned;
which implementation it uses, its config and its masks are not touched.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from geomprobe.capture.sight import sight_of
from geomprobe.core.attention import AttentionRows, Layout, from_scores, from_weights
from geomprobe.errors import GeomprobeError

__all__ = ["AttentionCall", "Look", "look_at", "look_at_output", "look_away", "own_attention"]

_MARK = "_geomprobe_attention"
"""Attribute of a watched layer's modules, while they are watched: whom to tell."""

_EAGER = "eager_attention_forward"
"""What each file of Transformers calls its own attention function, used when the registry has no entry ``eager``."""


@dataclass(frozen=True)
class AttentionCall:
    """One call of an attention function.

    Attributes:
        module: the module that called.
        name: the implementation: ``sdpa``, ``eager`` …
        query: ``(batch, heads, length, width)``, positions rotated in.
        key: ``(batch, groups, columns, width)``, cached ones included.
        mask: as the implementation takes it.
        weights: the weights ``(batch, heads, length, columns)``, if the implementation returned them.
        options: the other arguments by name.
    """

    module: nn.Module
    name: str
    query: Tensor
    key: Tensor
    mask: Any
    weights: Tensor | None
    options: dict[str, Any]

    @property
    def batch(self) -> int:
        return self.query.shape[0]

    @property
    def length(self) -> int:
        return self.query.shape[2]

    @property
    def device(self) -> torch.device:
        return self.query.device

    def rows(self, layout: Layout, starts: Tensor | None, *, keep: bool) -> AttentionRows:
        """Summaries of what each row attends to; ``layout`` and ``starts`` as of the forward it belongs to.

        Raises:
            GeomprobeError: this rank has only some of the heads, keys are kept in pages, or the mask is of an unknown kind.
        """
        heads = getattr(getattr(self.module, "config", None), "num_attention_heads", None)
        if isinstance(heads, int) and self.query.shape[1] < heads and torch.distributed.is_initialized():
            raise GeomprobeError(
                f"this rank holds {self.query.shape[1]} of {heads} attention heads (tensor parallelism), and attention is "
                "measured over all: load without tensor parallelism, or leave AttentionProfile and ContextLasso(attention=True) out"
            )
        if self.options.get("cache") is not None:
            raise GeomprobeError(
                "attention cannot be measured during continuous batching, whose keys are kept in pages: use generate()"
            )
        columns = self.key.shape[2]
        dropout = self.options.get("dropout") if self.module.training else 0  # the weights are wanted as they are before it
        if self.weights is not None and not dropout:
            summaries = from_weights(self.weights, layout.moved(columns), keep=keep)
        else:
            causal = self.options.get("is_causal")
            causal = getattr(self.module, "is_causal", True) if causal is None else causal
            starts = None if starts is None else starts.to(self.device)
            summaries = from_scores(
                self.query,
                self.key,
                layout.moved(columns),
                sight_of(self.name, self.mask, self.length, columns, self.options | {"is_causal": causal}, starts),
                scale=self.options.get("scaling") or self.query.shape[-1] ** -0.5,
                softcap=self.options.get("softcap"),
                bias=self.options.get("position_bias"),
                sinks=self.options.get("s_aux"),
                keep=keep,
            )
        return summaries.map(lambda name, value: _whole(value, layout) if name == "mean" else value)


def _whole(mean: Tensor, layout: Layout) -> Tensor:
    """Head means with a column for every token there has been, also those that a window has forgotten."""
    columns = layout.position.shape[1]
    return torch.nn.functional.pad(mean, (columns - mean.shape[-1], 0)) if mean.shape[-1] < columns else mean[..., :columns]


Look = Callable[[AttentionCall], None]


def look_at_output(look: Look, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """A forward hook for attention that asks no registry, and returns its weights."""
    weights = output[1] if isinstance(output, tuple) and len(output) > 1 else None
    if isinstance(weights, Tensor) and weights.dim() == 4:
        look(AttentionCall(module, "own", weights, weights.mT, None, weights, {}))  # of q and k only the sizes are needed


class _Entry:
    """What stands in a registry while anything is watched."""

    def __init__(self, name: str, original: Callable[..., Any] | None) -> None:
        self.name = name
        self.original = original

    def __call__(
        self, module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, *args: Any, **options: Any
    ) -> Any:
        original = self.original or _own_eager(module)
        result = original(module, query, key, value, mask, *args, **options)
        look: Look | None = module.__dict__.get(_MARK)
        if look is not None:
            weights = result[1] if isinstance(result[1], Tensor) and result[1].dim() == 4 else None
            look(AttentionCall(module, self.name, query.detach(), key.detach(), mask, weights, options))
        return result


def _own_eager(module: nn.Module) -> Callable[..., Any]:
    found: Callable[..., Any] = next(_of_files(module, _EAGER))
    return found


def _of_files(module: nn.Module, name: str) -> Iterator[Any]:
    """What is called ``name`` in the files that define the classes of ``module``."""
    for kind in type(module).__mro__:
        if (found := getattr(sys.modules.get(kind.__module__), name, None)) is not None:
            yield found


_watching: "weakref.WeakSet[Any]" = weakref.WeakSet()
_registries: list[MutableMapping[str, Any]] = []


def look_at(who: Any, layers: Sequence[tuple[nn.Module, Look]]) -> None:
    """Have each look told of every attention call of its layer, until ``who`` looks away or is gone.

    Raises:
        GeomprobeError: no layer has attention that goes through a registry.
    """
    registries = {
        id(registry): registry
        for layer, _ in layers
        for module in layer.modules()
        for registry in _of_files(module, "ALL_ATTENTION_FUNCTIONS")
    }
    for layer, look in layers:
        for module in layer.modules():
            module.__dict__[_MARK] = look
    for registry in registries.values():
        for name in {*registry, "eager"}:
            if not isinstance(original := registry.get(name), _Entry):
                registry[name] = _Entry(name, original)
        if all(registry is not known for known in _registries):
            _registries.append(registry)
    _watching.add(who)
    weakref.finalize(who, _restore).atexit = False


def look_away(who: Any, layers: Sequence[nn.Module]) -> None:
    """Undo :func:`look_at`. Safe to call twice."""
    for layer in layers:
        for module in layer.modules():
            module.__dict__.pop(_MARK, None)
    _watching.discard(who)
    _restore()


def _restore() -> None:
    """Put every registry back as it was, when nobody is watching. An entry that another has replaced since stays."""
    if any(True for _ in _watching):  # its length counts those that are about to go
        return
    for registry in _registries:
        for name, entry in list(registry.items()):
            if isinstance(entry, _Entry):
                del registry[name]  # which uncovers the entry that all registries share, if there is one
                if entry.original is not None and registry.get(name) is not entry.original:
                    registry[name] = entry.original
    _registries.clear()


def own_attention(base: nn.Module, layers: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """For a decoder whose attention asks no registry: the modules of each layer whose output carries the weights.

    Empty for a decoder that does ask one.

    Raises:
        GeomprobeError: it has no attention, or gives no weights as it was loaded.
    """
    if any(True for layer in layers for module in layer.modules() for _ in _of_files(module, "ALL_ATTENTION_FUNCTIONS")):
        return []
    name = type(base).__name__
    found = [[module for module in layer.modules() if "Attention" in type(module).__name__] for layer in layers]
    if not any(found):
        raise GeomprobeError(f"{name} has no attention to measure: leave AttentionProfile and ContextLasso(attention=True) out")
    if getattr(base.config, "_attn_implementation", None) != "eager":
        raise GeomprobeError(
            f"the attention of {name} is code of its own, which keeps queries and keys to itself: load the model with "
            "attn_implementation='eager', which returns its weights"
        )
    return found
