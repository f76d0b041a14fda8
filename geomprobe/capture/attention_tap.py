"""The attention tap: it observes the arguments of the attention functions of Transformers.

Every decoder of Transformers gets its attention function from a registry. While a tap is installed, the function that the
registry returns is wrapped. The wrapper calls the original function with the same arguments, passes queries, keys, mask and
options to the observer, and returns the original result. The entries of the registry, the implementation that a model uses, its
configuration and its masks are not changed.
"""

import sys
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from geomprobe.capture.attention_mask import attention_mask_of
from geomprobe.core.attention_summary import AttentionRequest, AttentionRows, Layout, from_scores, from_weights
from geomprobe.errors import GeomprobeError

__all__ = ["AttentionCall", "Observer", "custom_attention", "install", "install_on_output", "is_cross_attention", "remove"]

_MARK = "_geomprobe_attention"
"""Name of the attribute that holds the observer on each module of an observed layer."""

_GET = "get_interface"
"""The method of the registry that models call. It is replaced on the registry instance, because its arguments include the
model's own eager function."""


@dataclass(frozen=True)
class AttentionCall:
    """The arguments of one call of an attention function, from which its weights can be computed.

    Attributes:
        name: name of the implementation, such as ``sdpa`` or ``eager``.
        query: queries ``(batch, heads, length, width)``, after rotary embeddings.
        key: keys ``(batch, groups, columns, width)``, including cached ones.
        mask: the mask in the form of the implementation.
        weights: the weights before dropout ``(batch, heads, length, columns)``, if the implementation returned them.
        causal: whether attention is causal, if the mask does not show it.
        scale: multiplier of the attention scores.
        softcap: the constant c of ``c · tanh(score / c)``, if scores are capped.
        window: size of the sliding window, if the mask does not show it.
        bias: bias added to the scores.
        sinks: one additional score per head, whose share of the weight goes to no token.
        unread: why this call cannot be read; empty if it can.
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
        """Return the call of an attention function with these arguments and this result."""
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

    def rows(self, layout: Layout, starts: Tensor | None, request: AttentionRequest) -> AttentionRows:
        """Return summaries of the attention weights of each row. ``layout`` and ``starts`` are those of the forward.

        Raises:
            GeomprobeError: if the call cannot be read (``unread``), or if its mask is of an unknown kind.
        """
        if self.unread:
            raise GeomprobeError(self.unread)
        if self.weights is None:
            summaries = self._from_scores(layout, starts, request)
        else:
            summaries = from_weights(self.weights, layout.moved(self.key.shape[2]), request=request)
            if request.logits:
                summaries = replace(summaries, top=self._from_scores(layout, starts, request).top)
        return summaries.map(lambda name, value: _whole(value, layout) if name == "mean" else value)

    def _from_scores(self, layout: Layout, starts: Tensor | None, request: AttentionRequest) -> AttentionRows:
        columns, starts = self.key.shape[2], None if starts is None else starts.to(self.device)
        return from_scores(
            self.query,
            self.key,
            layout.moved(columns),
            attention_mask_of(self.name, self.mask, self.length, columns, self.causal, self.window, starts),
            scale=self.scale,
            softcap=self.softcap,
            bias=self.bias,
            sinks=self.sinks,
            request=request,
        )


def _why_unread(module: nn.Module, query: Tensor, options: Mapping[str, Any]) -> str:
    """Why the weights cannot be computed from the arguments of a call; empty if they can."""
    heads = getattr(getattr(module, "config", None), "num_attention_heads", None)
    sharded = torch.distributed.is_initialized() and any(hasattr(weight, "placements") for weight in module.parameters())
    if sharded and isinstance(heads, int) and query.shape[1] < heads:
        return (
            f"this rank holds {query.shape[1]} of {heads} attention heads (tensor parallelism), and attention is measured over "
            "all heads: load without tensor parallelism, or leave AttentionProfile and ContextLasso(attention=True) out"
        )
    if options.get("cache") is not None:
        return "attention cannot be measured during continuous batching, where keys are stored in pages: use generate()"
    return ""


def _weights(result: Any, shape: tuple[int, ...] | None = None) -> Tensor | None:
    """The weights that an attention module or function returned, or ``None`` if it returned none of the expected ``shape``."""
    weights = result[1] if isinstance(result, tuple | list) and len(result) > 1 else None
    if not isinstance(weights, Tensor) or weights.dim() != 4 or (shape is not None and weights.shape != shape):
        return None
    return weights.detach()


def _whole(mean: Tensor, layout: Layout) -> Tensor:
    """Means over heads with one column for every token, including tokens that a sliding window has dropped."""
    columns = layout.position.shape[1]
    return torch.nn.functional.pad(mean, (columns - mean.shape[-1], 0)) if mean.shape[-1] < columns else mean[..., :columns]


Observer = Callable[[Callable[[], AttentionCall]], None]
"""An observer of attention calls. It receives a function that makes the call, so that it can handle errors in making it."""


def install_on_output(observe: Observer, module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
    """A forward hook for attention modules that do not use the registry, and return their weights."""
    if (weights := _weights(output)) is not None:  # only the shapes of query and key are needed
        observe(partial(AttentionCall, "own", weights, weights.mT, weights=weights))


def _interface(original: Callable[..., Any], name: str, *default: Any, **named: Any) -> Callable[..., Any]:
    """The replacement of ``get_interface`` while a tap is installed: it returns the original function in a wrapper."""
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
    """Report every attention call of each module to its observer, until :func:`remove` is called or ``who`` is garbage
    collected.

    Raises:
        GeomprobeError: if one of the modules is observed already, as with models that share layers.
    """
    if any(_MARK in module.__dict__ for module in modules):
        raise GeomprobeError(
            "another probe already observes the attention of layers that this model shares with another model: close that "
            "probe first"
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
    """Undo :func:`install`. Calling this twice is safe."""
    if who in _watching:
        for module in modules:
            module.__dict__.pop(_MARK, None)
        _watching.discard(who)
        _restore()


def _restore() -> None:
    """Restore every registry, if no tap is installed any more."""
    if any(True for _ in _watching):  # len() would count objects that are being garbage collected
        return
    for registry in _shadowed:
        delattr(registry, _GET)
    _shadowed.clear()


def _registries_of(modules: Iterable[nn.Module]) -> list[Any]:
    """The registries in the Python modules that define these classes: nearly always the single one of Transformers."""
    kinds = {kind for module in modules for kind in type(module).__mro__}
    found = (getattr(sys.modules.get(kind.__module__), "ALL_ATTENTION_FUNCTIONS", None) for kind in kinds)
    return list({id(registry): registry for registry in found if hasattr(registry, _GET)}.values())


def is_cross_attention(module: nn.Module) -> bool:
    """Return whether ``module`` is cross-attention, which attends to another text such as an encoder's."""
    return "CrossAttention" in type(module).__name__ or bool(getattr(module, "is_cross_attention", False))


def custom_attention(base: nn.Module, layers: Iterable[nn.Module]) -> list[list[nn.Module]]:
    """Return the attention modules of each layer, for a decoder whose attention does not use the registry but may return its
    weights. Return an empty list for a decoder that uses the registry.

    Raises:
        GeomprobeError: if the decoder has no attention, or does not return weights in the way it was loaded.
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
    if getattr(getattr(base, "config", None), "_attn_implementation", None) != "eager":
        raise GeomprobeError(
            f"the attention of {name} does not use the attention functions of Transformers, so its queries and keys cannot be "
            "observed: load the model with attn_implementation='eager', which returns its weights, or leave AttentionProfile "
            "and ContextLasso(attention=True) out"
        )
    return found
