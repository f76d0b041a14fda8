"""The router tap: it finds the routers of mixtures of experts, and reads which experts each token was sent to.

A router is read where its module returns: it gives logits, and often the numbers of the experts it chose and their weights. If
the experts themselves are a module that is called with these numbers, as in Transformers, they are read there, because that is
what the model uses. If neither of them shows the numbers, the router is refused, except for a few classes whose rule is known.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from geomprobe.capture.decoder import Decoder
from geomprobe.core.layer_rows import RouterRows
from geomprobe.errors import GeomprobeError

__all__ = ["EXPERTS", "ROUTER", "Router", "RouterTap", "find_routers"]

ROUTER, EXPERTS = 0, 1
"""The module that shows a choice: the router in what it returns, or the experts in what they are called with."""

_COUNTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts")
"""The names of the number of experts in configurations."""

_LARGEST: dict[str, Callable[[Tensor], Tensor]] = {
    "Llama4Router": torch.sigmoid,
    "Llama4TextMoe": torch.sigmoid,
    "JetMoeTopKGating": partial(torch.softmax, dim=-1),
}
"""Classes of Transformers that do not return which experts they chose. They choose those with the ``top_k`` largest logits, and
these functions give their weights."""

_WAY_OUT = "or leave RouterProfile() out"


@dataclass(frozen=True)
class Router:
    """The router of one layer.

    Attributes:
        module: the module that returns the logits.
        index: the position of the logits, if the module returns several tensors.
        experts: the module that may be called with the numbers of the chosen experts.
    """

    module: nn.Module
    index: int = 0
    experts: nn.Module | None = None

    def rows(self, own: Sequence[Tensor], used: Sequence[Tensor], batch: int, length: int) -> RouterRows:
        """Return the choice for every row, from the tensors that the router returned, logits first, and those that the experts
        were called with.

        Raises:
            GeomprobeError: if these tensors do not show the choice.
        """
        name = type(self.module).__name__
        logits, *others = own
        chosen, weights = _choice(used) or _choice(others) or self._largest(logits)
        count = getattr(self.experts, "num_experts", logits.shape[-1])
        if count != logits.shape[-1]:
            raise GeomprobeError(
                f"the router {name} chooses among {logits.shape[-1]}, but there are {count} experts, so it is not known which "
                f"of its choices are experts: leave RouterProfile() out"
            )
        if weights is None:
            weights = torch.full_like(chosen, torch.nan, dtype=torch.float32)
        values = (logits, chosen.long(), weights)
        if any(value.shape[:-1].numel() != batch * length or hasattr(value, "placements") for value in values):
            raise GeomprobeError(
                f"the router {name} returned {tuple(logits.shape)} for {batch} × {length} tokens, so it is not known which "
                f"token each row belongs to: run all tokens of a layer through one router, without sharding, {_WAY_OUT}"
            )
        return RouterRows(*(value.reshape(batch, length, -1) for value in values))

    def _largest(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        name, top_k = type(self.module).__name__, getattr(self.module, "top_k", None)
        if name not in _LARGEST or not isinstance(top_k, int):
            raise GeomprobeError(
                f"neither the router {name} nor its experts tell which experts were chosen: name routers that return (logits, "
                "weights, numbers of the chosen experts), as those of Transformers do, with Decoder(base=…, layers=…, "
                f"routers=[…]), {_WAY_OUT}"
            )
        largest = logits.topk(top_k, -1)
        return largest.indices, _LARGEST[name](largest.values.float())


def _choice(values: Sequence[Tensor]) -> tuple[Tensor, Tensor | None] | None:
    """The numbers of the chosen experts and their weights, among the tensors of a call; ``None`` if there are no numbers."""
    whole = [value for value in values if value.dtype in (torch.int64, torch.int32) and value.dim() > 1]
    if len(whole) != 1:
        return None
    weights = [value for value in values if value.is_floating_point() and value.shape == whole[0].shape]
    return whole[0], weights[0] if len(weights) == 1 else None


class RouterTap:
    """The routers that are read, and the tensors that they and their experts showed in the present forward.

    Args:
        routers: the routers by the number of their layer.
    """

    def __init__(self, routers: dict[int, Router]) -> None:
        self._routers = routers
        self._told: dict[tuple[int, int], list[Tensor]] = {}  # by layer, and by ROUTER or EXPERTS

    def attach(self, tell: Callable[[Tensor, int, list[Tensor]], None]) -> Iterator[RemovableHandle]:
        """Register hooks that call ``tell`` with the layers that share a router, as a tensor of their numbers, with
        :data:`ROUTER` or :data:`EXPERTS`, and with the tensors."""
        layers: dict[nn.Module, list[int]] = {}
        for layer, router in self._routers.items():  # several layers may share one module
            layers.setdefault(router.module, []).append(layer)
        for router in {router.module: router for router in self._routers.values()}.values():
            told = partial(tell, torch.tensor(layers[router.module]))
            yield router.module.register_forward_hook(partial(_returned, told, router.index))
            if router.experts is not None:
                yield router.experts.register_forward_pre_hook(partial(_called, told), with_kwargs=True)

    def put(self, layers: Iterable[int], who: int, values: Sequence[Tensor]) -> None:
        """Keep a copy of the tensors ``values`` for the first of ``layers`` that has none yet from ``who``.

        Raises:
            GeomprobeError: if all of these layers have some.
        """
        layer = next((layer for layer in layers if (layer, who) not in self._told), None)
        if layer is None:
            raise GeomprobeError(
                "a router ran more often in one forward than there are layers, so it is not known which rows it was given: "
                f"run each router once, {_WAY_OUT}"
            )
        self._told[layer, who] = [value.detach().clone() for value in values]  # the model may change them in place

    def rows(self, layer: int, batch: int, length: int) -> RouterRows | None:
        """Return the choice of the router of a layer, or ``None`` if it has no router.

        Raises:
            GeomprobeError: if the router did not run, or did not show its choice.
        """
        if layer not in self._routers:
            return None
        if not (own := self._told.get((layer, ROUTER))):
            raise GeomprobeError(
                f"the router {type(self._routers[layer].module).__name__} of layer {layer} was not called, or returned no "
                f"logits. Kernels that replace it may be the cause: load the model without them, {_WAY_OUT}"
            )
        return self._routers[layer].rows(own, self._told.get((layer, EXPERTS), ()), batch, length)

    def taken(self, layer: int) -> None:
        """Drop the tensors of a layer, from which no more are expected in the present forward."""
        self._told.update({key: [] for key in self._told if key[0] == layer})

    def forget(self) -> None:
        """Forget the tensors of the present forward."""
        self._told = {}


def _returned(
    tell: Callable[[int, list[Tensor]], None], index: int, module: nn.Module, args: tuple[Any, ...], output: Any
) -> None:
    """A forward hook that passes on the tensors that a router returned, the logits at ``index`` first, if these are not hidden
    states."""
    values = list(output) if isinstance(output, tuple | list) else [output]
    logits = values.pop(min(index, len(values) - 1))
    hidden = args[0] if args and isinstance(args[0], Tensor) else None
    if isinstance(logits, Tensor) and (hidden is None or logits.shape[-1] != hidden.shape[-1]):
        tell(ROUTER, [value for value in (logits, *values) if isinstance(value, Tensor)])


def _called(
    tell: Callable[[int, list[Tensor]], None], module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """A forward pre-hook that passes on what the experts are called with besides the hidden states."""
    tell(EXPERTS, [value for value in (*args, *kwargs.values())[1:] if isinstance(value, Tensor)])


def find_routers(decoder: Decoder, wanted: Iterable[int]) -> dict[int, Router]:
    """Return the routers of the layers ``wanted`` that have one: those that ``Decoder(routers=…)`` names, or that Transformers
    can record (``_can_record_outputs["router_logits"]``), or else the linear map to the number of experts beside ``experts`` in
    a layer.

    Raises:
        GeomprobeError: if there are none, if one layer has several, or if a rank has only some of the experts.
    """
    base = type(decoder.base).__name__
    recorded = _recorded(decoder.base)
    found: dict[int, Router] = {}
    for i in sorted(set(wanted)):
        layer = decoder.layers[i]
        if decoder.routers is not None:
            inside = set(layer.modules())
            routers = [(module, _place(module, recorded)) for module in decoder.routers if module in inside]
        else:
            routers = [
                (module, index)
                for kind, part, index in recorded
                for name, module in layer.named_modules()
                if isinstance(module, kind) and (not part or f".{part}." in f".{name}.")
            ] or [(module, 0) for module in _by_form(decoder.base, layer)]
        if len(routers) > 1:
            names = ", ".join(name for name, module in layer.named_modules() if any(module is router for router, _ in routers))
            raise GeomprobeError(
                f"layer {i} of {base} has {len(routers)} routers ({names}): name the one to measure in each layer with "
                f"Decoder(base=…, layers=…, routers=[…]), {_WAY_OUT}"
            )
        for module, index in routers:
            found[i] = Router(module, index, _experts(layer, module))
            if any(map(_is_split, layer.modules())):
                raise GeomprobeError(
                    f"this rank has only some of the experts of {base} (expert parallelism), and a router is measured over all "
                    "of them: load without it, or leave RouterProfile() out"
                )
    if not found:
        raise GeomprobeError(
            f"found no router of a mixture of experts in the measured layers of {base}: it has neither a module of a class "
            "named in _can_record_outputs['router_logits'], nor a linear map to the number of experts beside a module "
            f"'experts'. Name them with Decoder(base=…, layers=…, routers=[layer.mlp.gate for layer in …]), {_WAY_OUT}"
        )
    return found


def _recorded(base: nn.Module) -> list[tuple[type[nn.Module], str, int]]:
    """The classes that Transformers names as those that return router logits, each with the part that the name of the module
    must contain, and with the position of the logits in the output."""
    entries = (getattr(base, "_can_record_outputs", None) or {}).get("router_logits", [])
    found = []
    for entry in entries if isinstance(entries, list) else [entries]:
        if isinstance(entry, type):
            found.append((entry, "", 1))  # the position that Transformers assumes for a bare class
        elif isinstance(kind := getattr(entry, "target_class", None), type):
            found.append((kind, (entry.layer_name or "").strip("."), entry.index))
    return found


def _place(module: nn.Module, recorded: list[tuple[type[nn.Module], str, int]]) -> int:
    return next((index for kind, _, index in recorded if isinstance(module, kind)), 0)


def _by_form(base: nn.Module, layer: nn.Module) -> list[nn.Module]:
    """The modules beside ``experts`` that are, or contain, a linear map from the width to the number of experts."""
    config = getattr(base, "config", None)
    found = []
    for owner in layer.modules():
        if not isinstance(experts := getattr(owner, "experts", None), nn.Module):
            continue
        counts = {getattr(config, name, None) for name in _COUNTS} | {getattr(experts, "num_experts", None)}
        counts |= {len(experts)} if isinstance(experts, nn.ModuleList) else set()
        found += [
            child
            for child in owner.children()
            if child is not experts and any(_maps_to(module, counts, config) for module in child.modules())
        ]
    return found


def _maps_to(module: nn.Module, counts: set[Any], config: Any) -> bool:
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or isinstance(module, nn.Embedding):
        return False
    return weight.shape[0] in counts and weight.shape[1] == getattr(config, "hidden_size", weight.shape[1])


def _experts(layer: nn.Module, router: nn.Module) -> nn.Module | None:
    """The module ``experts`` inside a router, or else beside it."""
    owners = [router, *(module for module in layer.modules() if any(child is router for child in module.children()))]
    experts = (getattr(owner, "experts", None) for owner in owners)
    return next((each for each in experts if isinstance(each, nn.Module) and not isinstance(each, nn.ModuleList)), None)


def _is_split(module: nn.Module) -> bool:
    """Whether Transformers has divided experts among ranks, as version 5.21 and later mark it, or as earlier ones do."""
    return bool(getattr(module, "_is_expert_parallel", False)) or getattr(module, "_hf_tp_plan", None) == "ep_router"
