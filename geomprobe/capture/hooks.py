"""The hooks of a capture: one before the decoder runs, one at each site, and one after the decoder returns or raises."""

import inspect
import sys
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from types import FrameType
from typing import Any, Protocol, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import CheckpointFunction
from torch.utils.hooks import RemovableHandle

from geomprobe.capture import attention_tap, dynamo_ops
from geomprobe.capture.clock import Clock
from geomprobe.capture.decoder import Decoder
from geomprobe.capture.forward_context import Call, ForwardContext, carries_cache
from geomprobe.capture.generation import MODES, REARRANGED, CachedSequence, GenerateCall, Mode, StopTokens, mode_of
from geomprobe.capture.padding_check import PaddingCheck
from geomprobe.capture.router_tap import RouterTap, find_routers
from geomprobe.core.attention_summary import AttentionRequest, AttentionRows
from geomprobe.core.layer_rows import LayerRows
from geomprobe.core.rows import full_precision
from geomprobe.errors import GeomprobeError

__all__ = ["CALLED_DIRECTLY", "Capture", "Listener"]


class Listener(Protocol):
    """The object that a capture reports to. Exceptions that its methods raise reach the caller of the model."""

    def wants(self, continues: bool) -> bool:
        """Return whether to capture the forward that is about to run. ``continues`` is true if it continues texts that are
        being captured."""
        ...

    def captured(self, context: ForwardContext, site: str, hidden: Tensor, beside: LayerRows) -> None:
        """Receive the hidden states ``(batch, length, width)`` of one site, and what its layer computed beside them, while the
        forward runs."""
        ...

    def ended(self, sequence: CachedSequence) -> None:
        """Called when no further tokens can arrive in ``sequence``."""
        ...

    def closed(self, context: ForwardContext | None, completed: bool) -> None:
        """Called after every forward, when the decoder returned (``completed``) or raised. ``context`` is given only for
        captured forwards. If it is given and the forward completed, every site was passed once."""
        ...

    def noted(self, remark: str) -> None:
        """Called with a remark that a reader of the numbers must know."""
        ...

    def drop(self) -> None:
        """Discard what was captured of the present forward, at all sites."""
        ...

    def left_out(self, why: str) -> None:
        """Called when a forward was left out of every number, because of something that the capture does not understand."""
        ...

    def failed(self, error: Exception) -> None:
        """Called when an error occurred inside the capture. It can raise the error, or return to let the model continue."""
        ...


@dataclass(frozen=True)
class _Previous:
    """The latest forward of a ``generate`` without a cache. The next one runs the same texts with one more token.

    Attributes:
        key: the call of ``generate``.
        ids: the token ids that ``generate`` has.
        mask: which columns are tokens of texts that had not ended.
        measured: whether the forward was measured.
        generated: whether it was not the first step of the generation.
    """

    key: object
    ids: Tensor
    mask: Tensor
    measured: bool
    generated: bool


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
        attention: what to compute of the attention weights; ``None`` if they are not to be observed. The site of a layer is
            reported with the attention of that layer, ``final_norm`` with that of the last layer.
        routing: whether to observe the routers of a mixture of experts. They are reported as attention is.
        pad_token_id: the padding token, for calls without a mask.
        modes: the modes to capture. Forwards of other modes are not looked at.
        clock: adds up the time that captured forwards spend in hooks.

    The hidden states of a layer are taken where the next layer receives them, so that they include what other hooks changed.
    """

    def __init__(
        self,
        model: nn.Module,
        decoder: Decoder,
        sites: tuple[str, ...],
        listener: Listener,
        stop_tokens: StopTokens,
        attention: AttentionRequest | None = None,
        pad_token_id: int | None = None,
        modes: Collection[Mode] = MODES,
        routing: bool = False,
        clock: Clock | None = None,
    ) -> None:
        self._model = model
        self._decoder = decoder
        self._sites = sites
        self._names = decoder.sites  # of all sites of the model, in order
        self._listener = listener
        self._stop_tokens = stop_tokens
        self.attention = attention
        self._modes = frozenset(modes)
        self._clock = clock or Clock()
        self._device: torch.device | None = None  # of the latest hidden state
        self._attended: dict[int, AttentionRows | None] = {}
        self._routing = routing
        self._routers = RouterTap({})
        self._context: ForwardContext | None = None
        self._shape = (0, 0)  # batch and length of the present forward
        self._pad_token_id = pad_token_id
        self.padding = PaddingCheck(stop_tokens, pad_token_id)
        self.called_directly = False
        self.fixed = False  # whether forwards that begin now are those of fixed texts
        self._lock = threading.Lock()
        self._thread: int | None = None  # the thread in which a forward is running
        self._interrupted = False  # whether the present or latest forward began before another one ended
        self._adapter: nn.Module | None = None
        self._adapters: dict[Mode, set[Any]] = {}
        self._width = 0
        self._vocabularies = _vocabularies(decoder.base)
        self._handles: list[RemovableHandle] = []
        self._last: list[tuple[OrderedDict[int, Any], int]] = []  # tables of hooks in which ours is to come last
        self._sequences: list[CachedSequence] = []
        self._passed: weakref.WeakSet[Any] = weakref.WeakSet()  # caches whose texts are not to be measured
        self._previous: _Previous | None = None
        self._parameters = tuple(inspect.signature(type(decoder.base).forward).parameters)[1:]
        self._numbers = tuple(number for number, site in enumerate(decoder.sites) if site in sites)
        self._places: dict[int, tuple[int, ...]] = {}
        self._waiting: dict[int, list[int]] = {}  # numbers of the sites that the present forward has yet to pass
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

    def notes(self, mode: Mode) -> list[str]:
        """Return what a reader of the numbers of ``mode`` must know. This waits for the device."""
        notes = ["a forward has begun and has not ended, so it is not counted"] * self.is_open
        notes += [CALLED_DIRECTLY] * self.called_directly
        if len(self._adapters.get(mode, ())) > 1:
            notes.append(
                "these numbers contain forwards with different adapters, or with and without them, such as those of a policy "
                "and of its reference model"
            )
        return notes + self.padding.notes()

    def forget(self, mode: Mode | None) -> None:
        """Forget what :meth:`notes` returns for ``mode``, or for all modes if it is ``None``."""
        for each in [each for each in self._adapters if mode in (None, each)]:
            del self._adapters[each]

    @property
    def sequences(self) -> Iterable[CachedSequence]:
        """The cached sequences whose texts may still continue."""
        return tuple(self._sequences)

    def attach(self) -> None:
        """Register the hooks. In a forward that is not measured, the hooks of the layers return at once."""
        try:
            if self.attention is not None:  # first: it may refuse
                self._attach_attention()
            if self._routing:
                self._routers = RouterTap(find_routers(self._decoder, self._layers_of_sites))
            self._attach_hooks()
        except BaseException:
            self.detach()
            raise

    def _attach_hooks(self) -> None:
        base, layers = self._decoder.base, self._decoder.layers
        self._handles += self._routers.attach(self._tell_routing)
        adapters = (module for module in base.modules() if isinstance(getattr(module, "disable_adapters", None), bool))
        self._adapter = next(adapters, None)  # a layer of PEFT
        dynamo_ops.forget_graphs(self._model, base)
        self._id = dynamo_ops.register(self)
        self._handles.append(base.register_forward_pre_hook(self._open, with_kwargs=True))
        watched = set(self._numbers) | ({len(layers)} if self._numbers[-1] > len(layers) else set())  # for its width
        # A module that is used at several depths gets one hook, which reports them in turn.
        places: dict[nn.Module, list[int]] = {}
        for number, layer in enumerate(layers):
            # With a module for the embeddings, the first layer's input is no site.
            places.setdefault(layer, []).append(number if number or self._decoder.embed is None else _PASSED)
        places = {layer: numbers for layer, numbers in places.items() if not watched.isdisjoint(numbers)}
        self._places = {max(numbers): tuple(numbers) for numbers in places.values()}
        for layer, numbers in places.items():
            hook = partial(self._before_layer, max(numbers))
            self._keep(layer._forward_pre_hooks, layer.register_forward_pre_hook(hook, with_kwargs=True))
        if (last := len(layers)) in watched:
            # A last layer that is used before too is passed as often as it is used.
            times = sum(layer is layers[-1] for layer in layers)
            self._places[last] = (*[_PASSED] * (times - 1), last)
            hook = partial(self._after_layer, last)
            self._keep(layers[-1]._forward_hooks, layers[-1].register_forward_hook(hook))
        for number, module in ((0, self._decoder.embed), (last + 1, self._decoder.final_norm)):
            if module is not None and number in self._numbers:
                self._places[number] = (number,)
                hook = partial(self._after_layer, number)
                self._keep(module._forward_hooks, module.register_forward_hook(hook))
        if self._numbers[-1] > last:
            self._places[last + 1] = (last + 1,)
        self._keep(base._forward_hooks, base.register_forward_hook(self._close, always_call=True))

    def _keep(self, table: dict[int, Any], handle: RemovableHandle) -> None:
        """Remember a hook that is to be the last one of its table."""
        self._handles.append(handle)
        self._last.append((cast(OrderedDict[int, Any], table), handle.id))

    def _attach_attention(self) -> None:
        base, layers = self._decoder.base, self._decoder.layers
        if not self._layers_of_sites:
            raise GeomprobeError(
                "the site 'embed' comes before any attention: measure a layer too, or leave AttentionProfile and "
                "ContextLasso(attention=True) out"
            )
        if own := attention_tap.custom_attention(base, layers):
            if self.attention is not None and self.attention.logits:
                raise GeomprobeError(
                    f"the attention of {type(base).__name__} does not use the attention functions of Transformers, so its "
                    "logits cannot be observed: leave logits=True of AttentionProfile out"
                )
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
    def _layers_of_sites(self) -> set[int]:
        """The layers whose attention and router are reported with a site."""
        last = len(self._decoder.layers) - 1
        places = [self._names.index(site) - 1 for site in self._sites]
        return {min(place, last) for place in places if place >= 0}

    def _observe(self, layers: Tensor, make: Callable[[], attention_tap.AttentionCall]) -> None:
        """Report the call of an attention function of one of ``layers``, which is a tensor on the CPU, because Dynamo would
        compile a graph for every value of an integer."""
        if torch.compiler.is_compiling():
            dynamo_ops.attended(self._order, self._id, layers, make())
        else:
            self.attended(layers.tolist(), make)

    def attended(self, layers: list[int], make: Callable[[], attention_tap.AttentionCall]) -> None:
        """Record the call of an attention function, for the first of ``layers`` that has none yet. A second call of a layer is
        ignored, because it attends to another text."""
        layer = next((layer for layer in layers if layer not in self._attended), None)
        if (context := self._context) is None or layer is None or self._thread != threading.get_ident():
            return
        try:
            call = make()
            if (call.batch, call.length) != self._shape:
                return
            self._attended[layer] = None
            if layer in self._layers_of_sites:
                with self._clock.span(call.device), full_precision(call.device.type):
                    layout = context.layout(call.batch, call.length, call.device)
                    self._attended[layer] = call.rows(layout, context.starts, self.attention or AttentionRequest())
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """Leave the present forward out of every number, or report an error inside the capture."""
        if isinstance(error, GeomprobeError):
            self._leave_out(str(error))
        else:
            self._context = None  # report nothing more of this forward
            self._listener.failed(error)

    def _tell_routing(self, layers: Tensor, who: int, values: list[Tensor]) -> None:
        if torch.compiler.is_compiling():
            dynamo_ops.routed(self._order, self._id, layers, who, values)
        elif self._context is not None:
            self.routed(layers.tolist(), who, values)

    def routed(self, layers: list[int], who: int, values: Sequence[Tensor]) -> None:
        """Record what the router of one of ``layers`` returned, or what its experts were called with."""
        if self._context is None or self._thread != threading.get_ident():
            return
        try:
            with torch.inference_mode(False), torch.no_grad():
                self._routers.put(layers, who, values)
        except Exception as error:
            self._failed(error)

    def detach(self) -> None:
        """Remove every hook and end every sequence. It can be called twice, and inside a hook of a forward that did not
        raise."""
        self._context = self._previous = self._thread = None
        dynamo_ops.forget(self._id)
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._last.clear()
        if self.attention is not None:
            attention_tap.remove(self, (module for layer in self._decoder.layers for module in layer.modules()))
        self._end(self._sequences)

    def _open(self, base: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        arguments = _with_ids(dict(zip(self._parameters, args, strict=False)) | kwargs, self._parameters)
        mode = mode_of(base.training, torch.is_grad_enabled())
        if not torch.compiler.is_compiling():
            for table, handle in self._last:
                if next(reversed(table)) != handle:  # a hook that was registered later may change what the next layer gets
                    table.move_to_end(handle)
            self.begin(arguments, mode)
        elif carries_cache(arguments):
            self._begin_outside(arguments, mode)
        else:
            dynamo_ops.begin(self._order, self._id, mode, arguments)

    def begin(self, arguments: dict[str, Any], mode: Mode) -> None:
        """Open a context when the decoder is called."""
        if _in_backward():  # a decoder that is checkpointed as a whole runs again
            return
        mark = self._clock.mark()
        if self.fixed:
            mode = "fixed"
        elif mode == "no_grad" and _is_checkpointed():
            mode = "train"
        if not self._claim():
            self._listener.left_out(
                "two threads ran the model at the same time: the forward that began later was left out. Give each thread a "
                "model of its own"
            )
            return
        try:
            self._interrupted = self._context is not None
            if self._context is not None:  # always_call hooks do not run after a BaseException (Ctrl-C)
                self._abandon(self._context)
                self._listener.noted(
                    "a forward was left out, because it had not ended when the next one began: it was interrupted, or a hook "
                    "ran the model inside it"
                )
            self.end_dead_sequences()
            if mode not in self._modes:
                return
            call = Call(arguments, mode, pad=self._pad_token_id, eos=self._stop_tokens.eos)
            self._attended = {}
            self._routers.forget()
            context = self._on_cache(call) if call.cache is not None else self._without_cache(call)
            if context is not None:
                self._shape = call.shape
                self._waiting = {place: list(numbers) for place, numbers in self._places.items()}
                self.padding.look(call)
                if (adapter := self._adapter) is not None:
                    self._adapters.setdefault(context.mode, set()).add((adapter.disable_adapters, str(adapter.active_adapters)))
                self._clock.add_since(mark)
            self._context = context
        except GeomprobeError as error:
            self._leave_out(str(error))
        except Exception as error:
            self._listener.failed(error)

    def _claim(self) -> bool:
        """Whether no other thread is running a forward. Hooks that other threads reach meanwhile do nothing."""
        me = threading.get_ident()
        with self._lock:
            others = self._thread not in (None, me) and any(thread.ident == self._thread for thread in threading.enumerate())
            if not others:
                self._thread = me
            return not others

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
        if sequence is not None and sequence.batch != call.shape[0]:
            self._end([sequence])
            self._passed.add(cache)
            raise GeomprobeError(
                f"the {sequence.batch} texts of a KV cache went on as {call.shape[0]} rows, so it is not known which belong "
                "together: what follows on this cache was left out. Give each text a cache of its own"
            )
        if cache in self._passed and past:
            return None
        if not self._listener.wants(continues=sequence is not None):
            self._passed.add(cache)
            self._end([] if sequence is None else [sequence])
            return None
        mask = call.mask
        if sequence is None:
            starts = call.starts()
            if past or (starts is not None and bool(((starts if mask is None else starts & mask).sum(1) > 1).any())):
                self._passed.add(cache)
                raise GeomprobeError(_UNSEEN_CACHE.format(past) if past else _PACKED_CACHE)
            self._passed.discard(cache)
            sequence = CachedSequence(cache, self._stop_tokens, call.mode)
            self._sequences.append(sequence)
        if mask is None:
            ids_or_rows = call.ids if call.ids is not None else call.arguments["inputs_embeds"]
            mask = torch.ones(call.shape, dtype=torch.bool, device=ids_or_rows.device)
        generate = GenerateCall.current()
        sequence.extend(call.ids, mask, past, call.whole_mask(), None if generate is None else generate.running)
        if generate is not None and generate.moves:
            sequence.mark_rearranged()
        return ForwardContext(sequence.mode, sequence=sequence)

    def _without_cache(self, call: Call) -> ForwardContext | None:
        """A context of whole texts. Inside ``generate`` they are the texts of the previous forward with one more token."""
        previous, generate = self._previous, None if call.mode == "train" else GenerateCall.current()
        if generate is None:
            return ForwardContext(call.mode, call.mask, call.starts()) if self._listener.wants(continues=False) else None
        self._previous = None
        if generate.moves:
            self._listener.noted(REARRANGED)
            return None
        ids = generate.ids  # the decoder may be given embeddings
        if previous is None or previous.key is not generate.key:
            wanted = self._listener.wants(continues=False)
            mask = self._token_mask(call, ids) if wanted else torch.zeros(0)
            self._previous = _Previous(generate.key, ids.clone(), mask, wanted, generated=False)
            return ForwardContext(call.mode, call.mask, call.starts()) if wanted else None
        if ids.shape == previous.ids.shape and torch.equal(ids, previous.ids):
            self._previous = previous  # a process that has ended keeps step with the others
            return None
        if not _grew(previous.ids, ids) or (previous.measured and call.shape[1] != previous.mask.shape[1] + 1):
            raise GeomprobeError(
                "generate() ran the model without a cache on other tokens than those before and one more, so it is not known "
                "which are new: generate with use_cache=True"
            )
        wanted = previous.measured and self._listener.wants(continues=True)
        mask = previous.mask
        if wanted:
            newest = self._token_mask(call, ids)[:, -1:]
            newest = newest if generate.running is None else newest & generate.running.to(newest.device).unsqueeze(1)
            mask = torch.cat([previous.mask.to(newest.device), newest], 1)
        self._previous = _Previous(generate.key, ids.clone(), mask, wanted, generated=True)
        if not wanted:
            return None
        return ForwardContext(call.mode, mask, refed=previous.mask, generated=True, refed_generated=previous.generated)

    @staticmethod
    def _token_mask(call: Call, ids: Tensor) -> Tensor:
        return call.mask if call.mask is not None else torch.ones(call.shape, dtype=torch.bool, device=ids.device)

    def _before_layer(self, place: int, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        named = kwargs.get("hidden_states")
        self._pass(place, args[0] if args else named if named is not None else tuple(kwargs.values()))

    def _after_layer(self, place: int, layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._pass(place, output)

    def _pass(self, place: int, output: Any) -> None:
        """Report hidden states, alone or first in a tuple or a dict. If there are none, the place counts as not passed."""
        if not torch.compiler.is_compiling() and self._context is None and self._thread is not None:
            return  # most forwards are not measured
        several = tuple(output.values()) if isinstance(output, Mapping) else output
        hidden = several[0] if isinstance(several, tuple | list) and several else several
        if not isinstance(hidden, Tensor):
            return
        if torch.compiler.is_compiling():
            dynamo_ops.hidden(self._order, self._id, place, hidden)
        else:
            self.hidden(place, hidden)

    def hidden(self, place: int, hidden: Tensor) -> None:
        """Report the hidden states that passed a place, which is a number, because the graph of a layer cannot receive a name.

        The place is the number of a site among all sites of the model. For a module that is used at several sites, it is the
        largest of their numbers. For an output of the decoder that is not named ``last_hidden_state``, it is the number of
        all sites."""
        if (context := self._context) is None:
            if self._thread is None and not self._interrupted and not _in_backward():  # which runs checkpointed layers again
                self.called_directly = True
            return
        if self._thread != threading.get_ident():
            return
        unnamed, place = place == len(self._names), min(place, len(self._names) - 1)
        waiting = self._waiting[place]
        if not waiting:
            self._leave_out(
                f"{self._names[place]} was passed more often in one forward than there are layers, so it is not "
                "known which rows belong to it: that forward was left out"
            )
            return
        number = waiting.pop(0)
        if number == _PASSED:
            return
        if unnamed and (tuple(hidden.shape) != (*self._shape, self._width) or self._width in self._vocabularies):
            self._listener.noted(
                f"final_norm was not measured: the output of {type(self._decoder.base).__name__} is {tuple(hidden.shape)}, "
                f"and its layers have width {self._width}, so it may be logits. Name the module that returns hidden "
                "states with Decoder(base=…, layers=…, final_norm=…), or choose the other sites with sites=…"
            )
        elif hidden.dim() != 3 or hidden.shape[:2] != self._shape or hasattr(hidden, "placements"):
            self._leave_out(
                f"{self._names[place]} is a {type(hidden).__name__} of {tuple(hidden.shape)}, but the model was "
                f"called with {self._shape} tokens, and a probe needs (batch, length, width). If each rank holds a part of a "
                "text, run without sequence parallelism (with parallelize_module, use a plan in which the outputs of layers "
                "are not sharded)"
            )
        else:
            self._width = hidden.shape[-1]
            self._device = hidden.device
            if number in self._numbers:
                with self._clock.span(hidden.device):
                    try:
                        beside = self._take_beside(number)
                    except Exception as error:
                        self._failed(error)
                    else:
                        self._listener.captured(context, self._names[number], hidden, beside)

    def _take_beside(self, number: int) -> LayerRows:
        """Return what is reported beside the hidden states of a site, and drop it, unless ``final_norm`` needs it too."""
        layer = min(number, len(self._decoder.layers)) - 1
        rows = LayerRows(self._attended.get(layer), self._routers.rows(layer, *self._shape))
        if number == len(self._decoder.layers) and "final_norm" in self._sites:
            return rows
        if rows.attention is not None:
            self._attended[layer] = None
        self._routers.taken(layer)
        return rows

    def _close(self, base: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        completed = output is not None  # the hook is called with always_call, and after an exception there is no output
        if completed and "final_norm" in self._sites and self._decoder.final_norm is None:
            named = getattr(output, "last_hidden_state", None)
            last = len(self._names)
            self._pass(last if named is None else last - 1, output if named is None else named)
        if torch.compiler.is_compiling():
            dynamo_ops.end(self._order, self._id)
        else:
            self.end(completed)

    def end(self, completed: bool = True) -> None:
        """Close the context after the decoder returned or raised."""
        if self._thread != threading.get_ident():
            return
        self._thread = None
        context, self._context = self._context, None
        attended, self._attended = self._attended, {}
        self._routers.forget()
        if not completed:
            self._previous = None
        if context is not None and completed:
            missing = [self._names[numbers[-1]] for numbers in self._waiting.values() if numbers]
            if missing:
                self._abandon(context)
                self._previous = None
                self._listener.left_out(
                    f"a forward was left out of every site, because it did not pass {', '.join(missing)}: layers were skipped, "
                    "as by LayerDrop, or were replaced after the probe was attached. For replaced layers, make a new probe"
                )
                context = None
            elif self.attention is not None and not attended:
                self._listener.failed(
                    GeomprobeError(
                        f"the attention of {type(self._decoder.base).__name__} cannot be read: it neither gets its attention "
                        "function from Transformers (get_interface) nor returns weights. Leave AttentionProfile and "
                        "ContextLasso(attention=True) out"
                    )
                )
                self._abandon(context)
                context = None
        if context is not None and not completed:
            self._abandon(context)
        elif context is not None and context.sequence is not None:
            context.sequence.complete()
        if context is None:
            self._listener.closed(context, completed)
        else:
            with self._clock.span(self._device):
                self._listener.closed(context, completed)

    def end_dead_sequences(self) -> None:
        """End the sequences whose caches were garbage collected, to which no tokens can be added."""
        if self._sequences:
            self._end([sequence for sequence in self._sequences if sequence.cache is None])

    def _leave_out(self, why: str) -> None:
        """Leave the present forward out of every number."""
        if (context := self._context) is not None:
            self._abandon(context)
        self._previous = None
        self._listener.left_out(why)

    def _abandon(self, context: ForwardContext) -> None:
        """Abandon a forward. Its sequence ends with the forward before, because the cache and the stored hidden states may
        differ from now on."""
        self._context = None
        self._listener.drop()
        if context.sequence is not None:
            if (cache := context.sequence.cache) is not None:
                self._passed.add(cache)
            self._end([context.sequence])

    def _end(self, sequences: list[CachedSequence]) -> None:
        self._sequences, sequences = [sequence for sequence in self._sequences if sequence not in sequences], list(sequences)
        for sequence in sequences:
            with self._clock.span(self._device):
                self._listener.ended(sequence)


CALLED_DIRECTLY = (
    "the decoder's forward() was called directly, as SentenceTransformer does, and PyTorch runs no hooks then, so these "
    "forwards are not counted: call the model itself, model(…)"
)

_PASSED = -1
"""Stands in place of a site for a pass that is not reported: its hidden states are read elsewhere, or are not a site."""

_UNSEEN_CACHE = (
    "a forward that continues from {} tokens of a KV cache that the probe has not seen was left out, because their hidden "
    "states are unknown: attach the probe before the cache is filled, and start with an empty cache of your own "
    "(past_key_values=DynamicCache(config=model.config)), as generate() does"
)

_PACKED_CACHE = (
    "packed documents were run on a KV cache, where the next token belongs to the last document only, and were left out: run "
    "packed documents without past_key_values, or give each document its own batch row"
)


def _with_ids(arguments: dict[str, Any], parameters: tuple[str, ...] = ()) -> dict[str, Any]:
    """The arguments of a decoder, in which the token ids are named ``input_ids``, or embeddings ``inputs_embeds``. Models that
    Transformers does not know have other names for them, which come first among the ``parameters`` of ``forward``, or take them
    in a dict. Dynamo traces this."""
    if arguments.get("input_ids") is not None or arguments.get("inputs_embeds") is not None:
        return arguments
    values = [arguments.get(name) for name in (*parameters, *arguments) if name not in _NO_IDS]
    for value in values:
        if isinstance(value, Mapping) and ("input_ids" in (inside := _with_ids(dict(value)))):
            return arguments | inside
        if isinstance(value, Tensor) and value.dim() == 2 and value.dtype in _INTEGERS:
            return {**arguments, "input_ids": value}
    for value in values:
        if isinstance(value, Tensor) and value.dim() == 3 and value.is_floating_point():
            return {**arguments, "inputs_embeds": value}
    return arguments


def _vocabularies(base: nn.Module) -> set[int]:
    """The widths that logits of a decoder may have; none for a model of Transformers that says that it has no head."""
    if getattr(base, "get_output_embeddings", lambda: base)() is None:
        return set()
    return {module.num_embeddings for module in base.modules() if isinstance(module, nn.Embedding)}


_INTEGERS = (torch.int64, torch.int32)
_NO_IDS = ("attention_mask", "position_ids", "labels", "targets")
"""The names of arguments that are integers of the same shape as token ids, and may come before them."""


def _in_backward() -> bool:
    """Whether autograd is running backward in this thread."""
    return torch._C._current_graph_task_id() != -1


def _is_checkpointed() -> bool:
    """Whether this runs in the forward of a reentrant checkpoint, which turns gradients off, and gets them when backward runs
    the forward again."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not CheckpointFunction.forward.__code__:
        frame = frame.f_back
    return frame is not None


def _grew(before: Tensor, now: Tensor) -> bool:
    """Whether ``now`` is ``before`` with one more column. It waits for the device only if the shapes allow it."""
    return now.shape == (before.shape[0], before.shape[1] + 1) and torch.equal(now[:, :-1], before.to(now.device))


class _NoListener(Listener):
    """A listener that captures nothing: the other methods of the protocol do nothing."""

    def wants(self, continues: bool) -> bool:
        return False


def _inert_capture() -> Capture:
    return Capture(nothing := nn.Identity(), Decoder(nothing, (nothing,)), (), _NoListener(), StopTokens())  # type: ignore[abstract]
