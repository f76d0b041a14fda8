"""The hooks of a capture: one before the decoder runs, one at each site, and one after the decoder returns or raises."""

import inspect
import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomprobe.capture import attention_tap, dynamo_ops
from geomprobe.capture.decoder import Decoder
from geomprobe.capture.forward_context import Call, ForwardContext, cache_of
from geomprobe.capture.generation import CachedSequence, StopTokens, still_running
from geomprobe.core.attention_summary import AttentionRows
from geomprobe.core.rows import full_precision
from geomprobe.errors import GeomprobeError

__all__ = ["Capture", "Listener"]


class Listener(Protocol):
    """The object that a capture reports to. Exceptions that its methods raise reach the caller of the model."""

    def wants(self, continues: bool) -> bool:
        """Return whether to capture the forward that is about to run. ``continues`` tells that it continues texts that are
        being captured."""
        ...

    def captured(self, context: ForwardContext, site: str, hidden: Tensor, attention: AttentionRows | None) -> None:
        """Receive the hidden states ``(batch, length, width)`` and attention summaries of one site, while the forward runs."""
        ...

    def ended(self, sequence: CachedSequence) -> None:
        """Called when no further tokens can arrive in ``sequence``."""
        ...

    def closed(self, context: ForwardContext | None, completed: bool) -> None:
        """Called after every forward, when the decoder returned (``completed``) or raised. ``context`` is given only for
        captured forwards."""
        ...

    def failed(self, error: Exception) -> None:
        """Called when an error occurred inside the capture. It can raise the error, or return to let the model continue."""
        ...


@dataclass(frozen=True)
class _Previous:
    """The last forward without a cache in evaluation. The next forward may run the same texts with one more token."""

    ids: Tensor
    mask: Tensor | None
    prompt: int
    measured: bool
    training: bool


class Capture:
    """The hooks on one decoder. Nothing but the hooks is added to the model.

    A context is open only between the call of the decoder and its return. Activation checkpointing runs layers again during
    backward, when no context is open, so these repetitions are ignored without further code.

    Args:
        model: the model that contains the decoder, to find compiled graphs of it.
        decoder: the decoder and its layers.
        sites: the sites to report.
        listener: the object to report to.
        stop_tokens: how ``generate`` ends a row of a batch.
        attention: whether to observe attention too: ``"rows"`` for summaries of each row, ``"maps"`` for the weights averaged
            over heads as well. The site of a layer is reported with the attention of that layer, ``final_norm`` with that of
            the last layer.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: Decoder,
        sites: tuple[str, ...],
        listener: Listener,
        stop_tokens: StopTokens,
        attention: Literal["rows", "maps"] | None = None,
    ) -> None:
        self._model = model
        self._decoder = decoder
        self._sites = sites
        self._listener = listener
        self._stop_tokens = stop_tokens
        self._attention = attention
        self._attended: dict[int, AttentionRows | None] = {}
        self._context: ForwardContext | None = None
        self._shape: tuple[int, int] | None = None
        self._handles: list[RemovableHandle] = []
        self._sequences: list[CachedSequence] = []
        self._passed: weakref.WeakSet[Any] = weakref.WeakSet()  # caches whose texts are not to be measured
        self._previous: _Previous | None = None
        self._parameters = tuple(inspect.signature(type(decoder.base).forward).parameters)[1:]
        self._order = torch.zeros(0)
        self._id = -1
        # Cached sequences are identified by their cache object, which a graph cannot pass to an operator.
        self._begin_outside = torch.compiler.disable(self.begin, reason="geomprobe reads the KV cache")  # type: ignore[no-untyped-call]

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy of the model (``copy.deepcopy``, ``torch.save``) gets hooks that do nothing, because it is not measured."""
        return _inert_capture, ()

    @property
    def is_open(self) -> bool:
        """Whether a captured forward has started and not ended. After Ctrl-C this stays true until the next forward."""
        return self._context is not None

    @property
    def sequences(self) -> Iterable[CachedSequence]:
        """The cached sequences whose texts may still continue."""
        return tuple(self._sequences)

    def attach(self) -> None:
        """Register the hooks. In a forward that is not measured, each hook costs one attribute look-up."""
        try:
            if self._attention is not None:  # first: it may refuse
                self._attach_attention()
            self._attach_hooks()
        except BaseException:
            self.detach()
            raise

    def _attach_hooks(self) -> None:
        base, layers = self._decoder.base, self._decoder.layers
        dynamo_ops.forget_graphs(self._model, base)
        self._id = dynamo_ops.register(self)
        add = self._handles.append
        add(base.register_forward_pre_hook(self._open, with_kwargs=True))
        if "embed" in self._sites:
            add(layers[0].register_forward_pre_hook(self._before_layers, with_kwargs=True))
        for i, layer in enumerate(layers):
            if self._decoder.sites[i + 1] in self._sites:
                add(layer.register_forward_hook(partial(self._after_layer, i + 1)))
        add(base.register_forward_hook(self._close, always_call=True))

    def _attach_attention(self) -> None:
        base, layers = self._decoder.base, self._decoder.layers
        if not self._attention_layers:
            raise GeomprobeError(
                "the site 'embed' comes before any attention: measure a layer too, or leave AttentionProfile and "
                "ContextLasso(attention=True) out"
            )
        if own := attention_tap.custom_attention(base, layers):
            for i, modules in enumerate(own):
                hook = partial(attention_tap.install_on_output, partial(self._observe, torch.tensor([i])))
                self._handles += [module.register_forward_hook(hook) for module in modules]
            return
        places: dict[nn.Module, list[int]] = {}
        for i, layer in enumerate(layers):
            for module in layer.modules():
                if not attention_tap.is_cross_attention(module):
                    places.setdefault(module, []).append(i)  # several layers may share one module
        attention_tap.install(
            self, {module: partial(self._observe, torch.tensor(indices)) for module, indices in places.items()}
        )

    @cached_property
    def _attention_layers(self) -> set[int]:
        """The layers whose attention is reported with a site."""
        last = len(self._decoder.layers) - 1
        places = [self._decoder.sites.index(site) - 1 for site in self._sites]
        return {min(place, last) for place in places if place >= 0}

    def _observe(self, layers: Tensor, make: Callable[[], attention_tap.AttentionCall]) -> None:
        """``layers`` is a tensor on the CPU, because Dynamo would compile a graph for every value of an integer."""
        if torch.compiler.is_compiling():
            dynamo_ops.attended(self._order, self._id, layers, make())
        else:
            self.attended(layers.tolist(), make)

    def attended(self, layers: list[int], make: Callable[[], attention_tap.AttentionCall]) -> None:
        """Record the call of an attention function, for the first of ``layers`` that has none yet. A second call of a layer is
        ignored, because it attends to another text."""
        layer = next((layer for layer in layers if layer not in self._attended), None)
        if (context := self._context) is None or layer is None:
            return
        try:
            call = make()
            if (call.batch, call.length) != self._shape:
                return
            self._attended[layer] = None
            if layer in self._attention_layers:
                with full_precision(call.device.type):
                    layout = context.layout(call.batch, call.length, call.device)
                    self._attended[layer] = call.rows(layout, context.starts, keep=self._attention == "maps")
        except Exception as error:
            self._context = None  # report nothing more of this forward
            self._listener.failed(error)

    def detach(self) -> None:
        """Remove every hook and end every sequence. It can be called twice, and inside a hook of a forward that did not
        raise."""
        self._context = self._previous = None
        dynamo_ops.forget(self._id)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._attention is not None:
            attention_tap.remove(self, (module for layer in self._decoder.layers for module in layer.modules()))
        self._end(self._sequences)

    def _open(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = dict(zip(self._parameters, args, strict=False)) | kwargs
        if not torch.compiler.is_compiling():
            self.begin(arguments, base.training)
        elif cache_of(arguments) is not None:
            self._begin_outside(arguments, base.training)
        else:
            dynamo_ops.begin(self._order, self._id, base.training, arguments)

    def begin(self, arguments: dict[str, Any], training: bool) -> None:
        """Open a context when the decoder is called."""
        try:
            if self._context is not None:  # left open by a BaseException (Ctrl-C), after which always_call hooks do not run
                context = self._context
                self._abandon(context)
                self._listener.closed(context, completed=False)
            self.end_dead_sequences()
            call = Call(arguments, training)
            self._attended = {}
            self._context = self._on_cache(call) if call.cache is not None else self._without_cache(call)
            self._shape = None if self._context is None else call.shape
        except Exception as error:
            self._listener.failed(error)

    def _on_cache(self, call: Call) -> ForwardContext | None:
        """A context that extends the sequence of the cache. A sequence is created when the cache is empty."""
        cache = call.cache
        sequence = next((sequence for sequence in self._sequences if sequence.cache is cache), None)
        call = call if sequence is None else replace(call, seen=sequence.columns)
        past = call.past
        if sequence is not None and past == 0:  # the cache was emptied for new texts
            self._end([sequence])
            sequence = None
        if sequence is not None and past > sequence.columns:  # the cache was filled in forwards that were not observed
            self._end([sequence])
            self._passed.add(cache)
        if cache in self._passed and past:
            return None
        if not self._listener.wants(continues=sequence is not None):
            self._passed.add(cache)
            self._end([] if sequence is None else [sequence])
            return None
        if sequence is None:
            if past:
                raise GeomprobeError(
                    f"this forward continues from {past} tokens of a KV cache that the probe has not seen, so their hidden "
                    "states are unknown: attach the probe before the cache is filled, and start with an empty cache of your "
                    "own (past_key_values=DynamicCache(config=model.config)), as generate() does"
                )
            starts, mask = call.starts(), call.mask
            if starts is not None and bool(((starts if mask is None else starts & mask).sum(1) > 1).any()):
                raise GeomprobeError(
                    "packed documents were run on a KV cache, where the next token belongs to the last document only: run "
                    "packed documents without past_key_values, or give each document its own batch row"
                )
            self._passed.discard(cache)
            sequence = CachedSequence(cache, self._stop_tokens, call.training)
            self._sequences.append(sequence)
        mask = call.mask
        if mask is None:
            ids_or_rows = call.ids if call.ids is not None else call.arguments["inputs_embeds"]
            mask = torch.ones(call.shape, dtype=torch.bool, device=ids_or_rows.device)
        sequence.extend(call.ids, mask, past, call.whole_mask())
        return ForwardContext(sequence.training, sequence=sequence)

    def _without_cache(self, call: Call) -> ForwardContext | None:
        """A context of whole texts. In evaluation they may be the texts of the forward before with one more token."""
        ids, previous, self._previous = call.ids, self._previous, None
        if ids is None or (call.training and torch.is_grad_enabled()):
            return ForwardContext(call.training, call.mask, call.starts()) if self._listener.wants(continues=False) else None
        refeeds = call.arguments.get("use_cache") is False  # as generate() passes it; other calls have texts of their own
        same = previous is not None and previous.training == call.training
        grown = previous if refeeds and same and previous is not None and _grew(previous.ids, ids) else None
        if grown is not None:  # the same texts again: measured if they were measured before
            wanted = grown.measured and self._listener.wants(continues=True)
        else:
            wanted = self._listener.wants(continues=False)
        mask = call.mask if wanted else None
        prompt = ids.shape[1] if grown is None else grown.prompt
        texts = _Previous(ids.clone(), mask, prompt, wanted, call.training) if refeeds else None
        self._previous = texts
        if not wanted:
            return None
        if grown is None or texts is None:
            return ForwardContext(call.training, mask, call.starts())
        return ForwardContext(call.training, self._running(texts), refed=self._running(grown))

    def _running(self, texts: _Previous) -> Tensor:
        mask = texts.mask if texts.mask is not None else torch.ones_like(texts.ids, dtype=torch.bool)
        return still_running(texts.ids, mask, texts.prompt, self._stop_tokens)

    def _before_layers(self, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._pass(0, args[0] if args else kwargs["hidden_states"])

    def _after_layer(self, site: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._pass(site, output)

    def _pass(self, number: int, output: Any) -> None:
        hidden = output if isinstance(output, Tensor) else output[0]
        if torch.compiler.is_compiling():
            dynamo_ops.hidden(self._order, self._id, number, hidden)
        else:
            self.hidden(number, hidden)

    def hidden(self, number: int, hidden: Tensor) -> None:
        """Report the hidden states of a site, given by its number among all sites of the model, because the graph of a layer
        can receive a number and not a name."""
        if (context := self._context) is None:
            return
        site = self._decoder.sites[number]
        if hidden.shape[:2] == self._shape and not hasattr(hidden, "placements"):
            self._listener.captured(context, site, hidden, self._take_attention(number))
            return
        self._context = None  # report nothing more of this forward
        self._listener.failed(
            GeomprobeError(
                f"{site} is a {type(hidden).__name__} of {tuple(hidden.shape)}, but the model was called with {self._shape} "
                "tokens: each rank holds a part of it (sequence parallelism). A probe needs whole texts: run without sequence "
                "parallelism (with parallelize_module, use a plan in which the outputs of layers are not sharded)"
            )
        )

    def _take_attention(self, number: int) -> AttentionRows | None:
        """The attention that is reported with a site. It is dropped afterwards, unless ``final_norm`` needs it too."""
        layer = min(number, len(self._decoder.layers)) - 1
        rows = self._attended.get(layer)
        if number == len(self._decoder.layers) and "final_norm" in self._sites:
            return rows
        if rows is not None:
            self._attended[layer] = None
        return rows

    def _close(self, base: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        completed = output is not None  # the hook is called with always_call, and after an exception there is no output
        if completed and "final_norm" in self._sites:
            self._pass(len(self._decoder.layers) + 1, output)
        if torch.compiler.is_compiling():
            dynamo_ops.end(self._order, self._id)
        else:
            self.end(completed)

    def end(self, completed: bool = True) -> None:
        """Close the context after the decoder returned or raised."""
        context, self._context = self._context, None
        attended, self._attended = self._attended, {}
        if context is not None and completed and self._attention is not None and not attended:
            self._listener.failed(
                GeomprobeError(
                    f"the attention of {type(self._decoder.base).__name__} cannot be read: it neither gets its attention "
                    "function from Transformers (get_interface) nor returns weights. Leave AttentionProfile and "
                    "ContextLasso(attention=True) out"
                )
            )
        if not completed:
            self._previous = None
        if context is not None and not completed:
            self._abandon(context)
        elif context is not None and context.sequence is not None:
            context.sequence.remember_keys()
        self._listener.closed(context, completed)

    def end_dead_sequences(self) -> None:
        """End the sequences whose caches were garbage collected, to which no tokens can be added."""
        if self._sequences:
            self._end([sequence for sequence in self._sequences if sequence.cache is None])

    def _abandon(self, context: ForwardContext) -> None:
        """Abandon a forward that raised. Its sequence ends, because the cache and the stored hidden states may differ."""
        self._context = None
        if context.sequence is not None:
            if (cache := context.sequence.cache) is not None:
                self._passed.add(cache)
            self._end([context.sequence])

    def _end(self, sequences: list[CachedSequence]) -> None:
        self._sequences, sequences = [sequence for sequence in self._sequences if sequence not in sequences], list(sequences)
        for sequence in sequences:
            self._listener.ended(sequence)


def _grew(before: Tensor, now: Tensor) -> bool:
    """Whether ``now`` is ``before`` with one more column. It waits for the device only if the shapes allow it."""
    return now.shape == (before.shape[0], before.shape[1] + 1) and torch.equal(now[:, :-1], before.to(now.device))


class _NoListener:
    """A listener that captures nothing."""

    def wants(self, continues: bool) -> bool:
        return False

    def captured(self, context: ForwardContext, site: str, hidden: Tensor, attention: AttentionRows | None) -> None: ...

    def ended(self, sequence: CachedSequence) -> None: ...

    def closed(self, context: ForwardContext | None, completed: bool) -> None: ...

    def failed(self, error: Exception) -> None: ...


def _inert_capture() -> Capture:
    return Capture(nothing := nn.Identity(), Decoder(nothing, ()), (), _NoListener(), StopTokens())
