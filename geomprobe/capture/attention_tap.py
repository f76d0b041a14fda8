"""The attention tap: a look at what goes into Transformers' attention functions.

Every decoder of Transformers asks a registry for its attention function. While a tap is on, what the registry answers is
wrapped: it is called as it would have been, and then queries, keys, mask and options are handed on. What the model gets is what
the original returned; the registry's entries, the implementation a model uses, its config and its masks are not touched.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from geomprobe.capture.attention_mask import attention_mask_of
from geomprobe.core.attention_summary import AttentionRows, Layout, from_scores, from_weights
from geomprobe.errors import GeomprobeError

__all__ = ["AttentionCall", "Observer", "custom_attention", "install", "install_on_output", "is_cross_attention", "remove"]

_MARK = "_geomprobe_attention"
"""Attribute of a watched layer's modules, while they are watched: whom to tell."""

_GET = "get_interface"
"""The method by which models ask; it is shadowed on the registry itself, as only it is told of a model's own eager function."""


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
        unread: why this call cannot be read, if it cannot.
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
    unread: str = ""

    @classmethod
    def of(
        cls, module: nn.Module, name: str, result: Any, given: tuple[Any, ...], options: Mapping[str, Any]
    ) -> "AttentionCall":
        """From what an attention function was given and returned."""
        options = dict(zip(("query", "key", "value", "attention_mask"), given, strict=False)) | dict(options)
        query, key, mask = options["query"], options["key"], options.get("attention_mask")
        dropped = module.training and options.get("dropout")
        causal, scale = options.get("is_causal"), options.get("scaling")
        bias, sinks = options.get("position_bias"), options.get("s_aux")
        return cls(
            name=name,
            query=query.detach(),
            key=key.detach(),
            mask=mask.detach() if isinstance(mask, Tensor) else mask,
            weights=None if dropped else _weights(result, (*query.shape[:3], key.shape[2])),
            causal=bool(getattr(module, "is_causal", True) if causal is None else causal),
            scale=query.shape[-1] ** -0.5 if scale is None else scale,
            softcap=options.get("softcap"),
            window=options.get("sliding_window"),
            bias=None if bias is None else bias.detach(),
            sinks=None if sinks is None else sinks.detach(),
            unread=_why_unread(module, query, options),
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
            GeomprobeError: it cannot be read (``unread``), or the mask is of an unknown kind.
        """
        if self.unread:
            raise GeomprobeError(self.unread)
        columns = self.key.shape[2]
        if self.weights is not None:
            summaries = from_weights(self.weights, layout.moved(columns), keep=keep)
        else:
            starts = None if starts is None else starts.to(self.device)
            summaries = from_scores(
                self.query,
                self.key,
                layout.moved(columns),
                attention_mask_of(self.name, self.mask, self.length, columns, self.causal, self.window, starts),
                scale=self.scale,
                softcap=self.softcap,
                bias=self.bias,
                sinks=self.sinks,
                keep=keep,
            )
        return summaries.map(lambda name, value: _whole(value, layout) if name == "mean" else value)


def _why_unread(module: nn.Module, query: Tensor, options: Mapping[str, Any]) -> str:
    """Why there is more to a call than its arguments show; empty when there is not."""
    heads = getattr(getattr(module, "config", None), "num_attention_heads", None)
    sharded = torch.distributed.is_initialized() and any(hasattr(weight, "placements") for weight in module.parameters())
    if sharded and isinstance(heads, int) and query.shape[1] < heads:
        return (
            f"this rank holds {query.shape[1]} of {heads} attention heads (tensor parallelism), and attention is measured over "
            "all: load without tensor parallelism, or leave AttentionProfile and ContextLasso(attention=True) out"
        )
    if options.get("cache") is not None:
        return "attention cannot be measured during continuous batching, whose keys are kept in pages: use generate()"
    return ""


def _weights(result: Any, shape: tuple[int, ...] | None = None) -> Tensor | None:
    """The weights that an attention module or function returned, if it did, of the ``shape`` they must have."""
    weights = result[1] if isinstance(result, tuple | list) and len(result) > 1 else None
    if not isinstance(weights, Tensor) or weights.dim() != 4 or (shape is not None and weights.shape != shape):
        return None
    return weights.detach()


def _whole(mean: Tensor, layout: Layout) -> Tensor:
    """Head means with a column for every token there has been, also those that a window has forgotten."""
    columns = layout.position.shape[1]
    return torch.nn.functional.pad(mean, (columns - mean.shape[-1], 0)) if mean.shape[-1] < columns else mean[..., :columns]


Observer = Callable[[Callable[[], AttentionCall]], None]
"""Is told of a call by what makes it, so that a fault in the making is its own to handle."""


def install_on_output(observe: Observer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """A forward hook for attention that asks no registry, and returns its weights."""
    if (weights := _weights(output)) is not None:  # of q and k only the sizes are needed
        observe(partial(AttentionCall, "own", weights, weights.mT, weights=weights))


def _interface(original: Callable[..., Any], name: str, *default: Any, **named: Any) -> Callable[..., Any]:
    """What a registry's ``get_interface`` is while anything is watched: its answer, looked at when it is called."""
    return partial(_attend, name, original(name, *default, **named))


def _attend(name: str, function: Callable[..., Any], module: nn.Module, *given: Any, **options: Any) -> Any:
    result = function(module, *given, **options)
    observe: Observer | None = module.__dict__.get(_MARK)
    if observe is not None:
        observe(partial(AttentionCall.of, module, name, result, given, options))
    return result


_watching: "weakref.WeakSet[Any]" = weakref.WeakSet()
_shadowed: list[Any] = []


def install(who: Any, modules: Mapping[nn.Module, Observer]) -> None:
    """Have looks told of every attention call of their modules, until ``who`` looks away or is gone.

    Raises:
        GeomprobeError: another is looking at one of them: models that share layers.
    """
    if any(_MARK in module.__dict__ for module in modules):
        raise GeomprobeError(
            "another probe is looking at the attention of layers that this model shares with it: close that one first"
        )
    for module, observe in modules.items():
        module.__dict__[_MARK] = observe
    for registry in _registries_of(modules):
        if _GET not in vars(registry):
            setattr(registry, _GET, partial(_interface, getattr(registry, _GET)))
            _shadowed.append(registry)
    _watching.add(who)
    weakref.finalize(who, _restore).atexit = False


def remove(who: Any, modules: Iterable[nn.Module]) -> None:
    """Undo :func:`install`. Safe to call twice."""
    if who in _watching:
        for module in modules:
            module.__dict__.pop(_MARK, None)
        _watching.discard(who)
        _restore()


def _restore() -> None:
    """Put every registry back as it was, when nobody is watching."""
    if any(True for _ in _watching):  # its length counts those that are about to go
        return
    for registry in _shadowed:
        delattr(registry, _GET)
    _shadowed.clear()


def _registries_of(modules: Iterable[nn.Module]) -> list[Any]:
    """The registries that the files of these modules' classes know: nearly always one, of all Transformers."""
    kinds = {kind for module in modules for kind in type(module).__mro__}
    found = (getattr(sys.modules.get(kind.__module__), "ALL_ATTENTION_FUNCTIONS", None) for kind in kinds)
    return list({id(registry): registry for registry in found if hasattr(registry, _GET)}.values())


def is_cross_attention(module: nn.Module) -> bool:
    """Whether it attends to another text, such as an encoder's."""
    return "CrossAttention" in type(module).__name__ or bool(getattr(module, "is_cross_attention", False))


def custom_attention(base: nn.Module, layers: Sequence[nn.Module]) -> list[list[nn.Module]]:
    """For a decoder whose attention asks no registry: the modules of each layer whose output may carry the weights.

    Empty for a decoder that does ask one.

    Raises:
        GeomprobeError: it has no attention, or gives no weights as it was loaded.
    """
    if _registries_of(module for layer in layers for module in layer.modules()):
        return []
    name = type(base).__name__
    found = [
        [module for module in layer.modules() if "Attention" in type(module).__name__ and not is_cross_attention(module)]
        for layer in layers
    ]
    if not any(found):
        raise GeomprobeError(f"{name} has no attention to measure: leave AttentionProfile and ContextLasso(attention=True) out")
    if getattr(base.config, "_attn_implementation", None) != "eager":
        raise GeomprobeError(
            f"the attention of {name} is code of its own, which keeps queries and keys to itself: load the model with "
            "attn_implementation='eager', which returns its weights"
        )
    return found
