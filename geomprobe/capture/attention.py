"""The attention tap: a function around each of Transformers' attention functions that looks at what goes in.

Every decoder of Transformers asks a registry for its attention function. While a tap is on, the entries of that registry call
what they called before, and then hand queries, keys, mask and options on. What the model gets is what the original returned;
which implementation it uses, its config and its masks are not touched.
"""

import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import partial
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
    """One call of an attention function: what its weights are made of.

    Attributes:
        name: the implementation: ``sdpa``, ``eager`` …
        query: ``(batch, heads, length, width)``, positions rotated in.
        key: ``(batch, groups, columns, width)``, cached ones included.
        mask: as the implementation takes it.
        weights: the weights before dropout ``(batch, heads, length, columns)``, if the implementation returned them.
        causal: whether a row sees nothing after it, where the mask does not say.
        scale: of the scores.
        softcap: c of ``c · tanh(score / c)``.
        window: how many columns a row sees, where the mask does not say.
        bias: added to the scores.
        sinks: a score per head that no token gets the weight of.
        heads: how many there are; ``query`` has fewer where ranks share them.
        paged: whether keys are kept in pages, and ``key`` is only a part.
    """

    name: str
    query: Tensor
    key: Tensor
    mask: Any = None
    weights: Tensor | None = None
    causal: bool = True
    scale: float = 1.0
    softcap: float | None = None
    window: int | None = None
    bias: Tensor | None = None
    sinks: Tensor | None = None
    heads: int | None = None
    paged: bool = False

    @classmethod
    def of(
        cls, module: nn.Module, name: str, result: Any, given: tuple[Any, ...], options: Mapping[str, Any]
    ) -> "AttentionCall":
        """From what an attention function was given and returned."""
        options = dict(zip(("query", "key", "value", "attention_mask"), given, strict=False)) | dict(options)
        query, key, mask = options["query"], options["key"], options.get("attention_mask")
        dropped = module.training and options.get("dropout")
        causal, scale = options.get("is_causal"), options.get("scaling")
        heads = getattr(getattr(module, "config", None), "num_attention_heads", None)
        bias, sinks = options.get("position_bias"), options.get("s_aux")
        return cls(
            name=name,
            query=query.detach(),
            key=key.detach(),
            mask=mask.detach() if isinstance(mask, Tensor) else mask,
            weights=None if dropped else _weights(result),
            causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            softcap=options.get("softcap"),
            window=options.get("sliding_window"),
            bias=None if bias is None else bias.detach(),
            sinks=None if sinks is None else sinks.detach(),
            heads=heads if isinstance(heads, int) else None,
            paged=options.get("cache") is not None,
        )

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
        if self.heads is not None and self.query.shape[1] < self.heads and torch.distributed.is_initialized():
            raise GeomprobeError(
                f"this rank holds {self.query.shape[1]} of {self.heads} attention heads (tensor parallelism), and attention is "
                "measured over all: load without tensor parallelism, or leave AttentionProfile and "
                "ContextLasso(attention=True) out"
            )
        if self.paged:
            raise GeomprobeError(
                "attention cannot be measured during continuous batching, whose keys are kept in pages: use generate()"
            )
        columns = self.key.shape[2]
        if self.weights is not None:
            summaries = from_weights(self.weights, layout.moved(columns), keep=keep)
        else:
            starts = None if starts is None else starts.to(self.device)
            summaries = from_scores(
                self.query,
                self.key,
                layout.moved(columns),
                sight_of(self.name, self.mask, self.length, columns, self.causal, self.window, starts),
                scale=self.scale,
                softcap=self.softcap,
                bias=self.bias,
                sinks=self.sinks,
                keep=keep,
            )
        return summaries.map(lambda name, value: _whole(value, layout) if name == "mean" else value)


def _weights(result: Any) -> Tensor | None:
    """The weights that an attention module or function returned, if it did."""
    weights = result[1] if isinstance(result, tuple) and len(result) > 1 else None
    return weights.detach() if isinstance(weights, Tensor) and weights.dim() == 4 else None


def _whole(mean: Tensor, layout: Layout) -> Tensor:
    """Head means with a column for every token there has been, also those that a window has forgotten."""
    columns = layout.position.shape[1]
    return torch.nn.functional.pad(mean, (columns - mean.shape[-1], 0)) if mean.shape[-1] < columns else mean[..., :columns]


Look = Callable[[Callable[[], AttentionCall]], None]
"""Is told of a call by what makes it, so that a fault in the making is its own to handle."""


def look_at_output(look: Look, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """A forward hook for attention that asks no registry, and returns its weights."""
    if (weights := _weights(output)) is not None:  # of q and k only the sizes are needed
        look(partial(AttentionCall, "own", weights, weights.mT, weights=weights))


class _Entry:
    """What stands in a registry while anything is watched."""

    def __init__(self, name: str, original: Callable[..., Any] | None) -> None:
        self.name = name
        self.original = original

    def __call__(self, module: nn.Module, *given: Any, **options: Any) -> Any:
        original = self.original or next(_of_files(module, _EAGER))
        result = original(module, *given, **options)
        look: Look | None = module.__dict__.get(_MARK)
        if look is not None:
            look(partial(AttentionCall.of, module, self.name, result, given, options))
        return result


def _of_files(module: nn.Module, name: str) -> Iterator[Any]:
    """What is called ``name`` in the files that define the classes of ``module``."""
    for kind in type(module).__mro__:
        if (found := getattr(sys.modules.get(kind.__module__), name, None)) is not None:
            yield found


_watching: "weakref.WeakSet[Any]" = weakref.WeakSet()
_registries: list[MutableMapping[str, Any]] = []


def look_at(who: Any, layers: Sequence[tuple[nn.Module, Look]]) -> None:
    """Have each look told of every attention call of its layer, until ``who`` looks away or is gone."""
    for layer, look in layers:
        for module in layer.modules():
            module.__dict__[_MARK] = look
    for registry in _registries_of([layer for layer, _ in layers]):
        for name in {*registry, "eager"}:
            if not isinstance(original := registry.get(name), _Entry):
                registry[name] = _Entry(name, original)
        if all(registry is not known for known in _registries):
            _registries.append(registry)
    _watching.add(who)
    weakref.finalize(who, _restore).atexit = False


def _registries_of(layers: Sequence[nn.Module]) -> list[Any]:
    """The registries that the files of these layers' modules know: nearly always one, of all Transformers."""
    modules = (module for layer in layers for module in layer.modules())
    found = {id(registry): registry for module in modules for registry in _of_files(module, "ALL_ATTENTION_FUNCTIONS")}
    return list(found.values())


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
    if _registries_of(layers):
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
