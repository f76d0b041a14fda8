"""The decoder of a model and its layers, and how they are found in a model of Transformers."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from geomprobe.errors import GeomprobeError, is_whole

__all__ = ["Decoder", "find_decoder", "input_of"]


@dataclass(frozen=True)
class Decoder:
    """The decoder of a model and its parts. A probe finds them (:func:`find_decoder`), or you give them for a model that
    Transformers does not know:

        Probe(gpt, decoder=Decoder(base=gpt, layers=gpt.transformer.h, final_norm=gpt.transformer.ln_f))

    Attributes:
        base: the module that is called once in each forward. Its token ids are the argument ``input_ids``, or else the first
            argument that is a tensor of integers with two dimensions, including one inside a dict. Its mask, if any, is the
            argument ``attention_mask``. It may be called with embeddings ``(batch, length, width)`` instead of token ids.
        layers: the decoder layers in order, in any container, such as ``nn.ModuleList`` or ``nn.Sequential``. Each layer gets
            the hidden states as its first argument, and returns them as its output or as the first of its outputs.
        embed: the module whose output is the site ``embed``. Default: the input of the first layer (``hidden_states[0]`` in
            Transformers).
        final_norm: the module whose output is the site ``final_norm``, such as the norm before the head. Default: the output of
            ``base`` (``last_hidden_state`` in Transformers). It is needed if ``base`` returns logits.
        routers: the routers of a mixture of experts, at most one in each layer. Each returns (logits, weights, numbers of the
            chosen experts), or has a sibling module ``experts`` that is called with these numbers. Default: those that are
            found automatically.

    Raises:
        GeomprobeError: if one of these is not a module, there are no layers, or a part is not inside ``base``.
    """

    base: nn.Module
    layers: Sequence[nn.Module] | nn.ModuleList | nn.Sequential
    embed: nn.Module | None = None
    final_norm: nn.Module | None = None
    routers: Sequence[nn.Module] | None = None

    def __post_init__(self) -> None:
        layers = tuple(self.layers) if isinstance(self.layers, Iterable) else ()
        if not (isinstance(self.base, nn.Module) and layers and all(isinstance(layer, nn.Module) for layer in layers)):
            raise GeomprobeError(
                f"Decoder(base={type(self.base).__name__}, layers={type(self.layers).__name__}): expected a module, and a list "
                "of modules"
            )
        object.__setattr__(self, "layers", layers)
        inside = set(self.base.modules())
        if self.routers is not None:
            in_layers = {module for layer in layers for module in layer.modules()}
            if isinstance(self.routers, nn.Module) or not all(router in in_layers for router in self.routers):
                raise GeomprobeError("Decoder(routers=…): expected a list of modules inside the layers, such as layer.mlp.gate")
            object.__setattr__(self, "routers", tuple(self.routers))
        parts = (*(("layers", layer) for layer in layers), ("embed", self.embed), ("final_norm", self.final_norm))
        for name, part in parts:
            if part is not None and part not in inside:
                raise GeomprobeError(
                    f"Decoder({name}={type(part).__name__}): expected a module inside base, which is a "
                    f"{type(self.base).__name__}, so that it runs when base is called"
                )

    @property
    def sites(self) -> tuple[str, ...]:
        """The names of all sites: ``embed``, ``layer_00`` …, ``final_norm``."""
        return ("embed", *(f"layer_{i:02d}" for i in range(len(self.layers))), "final_norm")

    def select(self, sites: Sequence[int | str] | None) -> tuple[str, ...]:
        """Return the names of the chosen ``sites`` in the order of the model, or all names for ``None``.

        Raises:
            GeomprobeError: if a site does not exist in this model, or if ``sites`` is empty.
        """
        if sites is None:
            return self.sites
        if isinstance(sites, str | int):
            raise GeomprobeError(f"sites={sites!r}: expected a list, such as [{sites!r}]")
        if not sites:
            raise GeomprobeError("sites=[] measures nothing: name a site, or leave the argument out to measure all sites")
        chosen = set()
        for site in sites:
            if is_whole(site) and -len(self.layers) <= int(site) < len(self.layers):
                chosen.add(f"layer_{int(site) % len(self.layers):02d}")
            elif site in self.sites:
                chosen.add(str(site))
            else:
                raise GeomprobeError(
                    f"unknown site {site!r}: this {type(self.base).__name__} has layers 0 to {len(self.layers) - 1} "
                    f"(or 'layer_00' to {self.sites[-2]!r}), and the sites 'embed' and 'final_norm'"
                )
        return tuple(site for site in self.sites if site in chosen)


def input_of(site: str) -> str | None:
    """Return the name of the site at the input of a decoder layer, and ``None`` for a site that is not a layer.

    >>> input_of("layer_05"), input_of("layer_00"), input_of("final_norm")
    ('layer_04', 'embed', None)
    """
    kind, _, number = site.partition("_")
    if kind != "layer":
        return None
    return f"layer_{int(number) - 1:02d}" if int(number) else "embed"


def find_decoder(model: nn.Module) -> Decoder:
    """Find the decoder in ``model``, inside any wrapper (a language-model head, PEFT, DDP, a compiled module).

    Most architectures of Transformers name the class of their decoder layers in ``_can_record_outputs``, which is used if it
    exists. Otherwise the layers are the only ``ModuleList`` of ``config.num_hidden_layers`` modules. Encoders, such as the
    vision tower of a vision-language model, are ignored.

    Raises:
        GeomprobeError: if there is no such list, if there are several, if the model is an encoder, or if some layers are in
            other processes.
    """
    if not isinstance(model, nn.Module):
        raise GeomprobeError(f"expected a model that is a torch.nn.Module, and got {type(model).__name__}")
    found = _recorded(model) or _counted(model)
    if not found:
        raise GeomprobeError(
            f"found no decoder layers in {type(model).__name__}: it has neither layers of a class named in "
            f"_can_record_outputs['hidden_states'], nor a ModuleList of config.num_hidden_layers modules; "
            f"it contains {_lists(model)}. Give a Hugging Face decoder or a model that contains one, or name the layers (in a "
            f"callback with decoder=lambda model: Decoder(…)): Probe(model, decoder={_line(model)})"
        )
    encoders = [base for base, layers in found if _is_encoder(layers)]
    found = [(base, layers) for base, layers in found if base not in encoders]
    if not found:
        raise GeomprobeError(
            f"{type(encoders[0]).__name__} is an encoder, whose tokens attend to later ones too, and a probe measures "
            "decoders, in which each token adds to those before it: give a decoder such as GPT-NeoX or Llama"
        )
    if len(found) > 1:
        own = _own_decoder(model, {base for base, _ in found})
        found = [(base, layers) for base, layers in found if base in own] or found
    if len(found) > 1:
        names = ", ".join(type(base).__name__ for base, _ in found)
        paths = {module: _path(name) for name, module in model.named_modules()}
        one = ", ".join(f"{name}={paths[part]}" for name, part in zip(("base", "layers"), found[0], strict=True))
        raise GeomprobeError(
            f"{type(model).__name__} contains {len(found)} stacks of layers ({names}), and a probe measures one: name one "
            f"(in a callback with decoder=lambda model: Decoder(…)): Probe(model, decoder=Decoder({one}))"
        )
    base, layers = found[0]
    if any(type(layer).__name__ == "PipelineIdentityLayer" for layer in layers):
        raise GeomprobeError(
            f"this rank holds only a part of the layers of {type(base).__name__} (pipeline parallelism), and a probe needs "
            "all of them: load the model without pp_size, for example with fsdp_size or tp_size"
        )
    return Decoder(base=base, layers=tuple(layers))


def _is_encoder(layers: nn.ModuleList) -> bool:
    """Whether all attention modules of Transformers in these layers say that they are not causal."""
    said = [getattr(module, "is_causal", None) for layer in layers for module in layer.modules()]
    return False in said and True not in said


def _recorded(model: nn.Module) -> list[tuple[nn.Module, nn.ModuleList]]:
    """Every (owner, list) where the owner's ``_can_record_outputs`` names the class of all modules in the list."""
    found = []
    for owner in model.modules():
        recorded = (getattr(owner, "_can_record_outputs", None) or {}).get("hidden_states")
        classes = tuple(_recorded_class(entry) for entry in (recorded if isinstance(recorded, list) else [recorded]) if entry)
        if not classes:
            continue
        found += [(owner, stack) for stack in _stacks(owner) if all(isinstance(layer, classes) for layer in stack)]
    return found


def _recorded_class(entry: Any) -> type:
    """The class that an entry names, directly or through an ``OutputRecorder``."""
    return entry if isinstance(entry, type) else entry.target_class


def _counted(model: nn.Module) -> list[tuple[nn.Module, nn.ModuleList]]:
    """Every (owner, list) where the list has as many modules as the owner's configuration has layers."""
    found = []
    for owner in model.modules():
        count = getattr(getattr(owner, "config", None), "num_hidden_layers", None)
        found += [(owner, stack) for stack in _stacks(owner) if len(stack) == count]
    return found


def _stacks(owner: nn.Module) -> list[nn.ModuleList]:
    return [child for child in owner.children() if isinstance(child, nn.ModuleList) and len(child) > 0]


def _own_decoder(model: nn.Module, bases: set[nn.Module]) -> set[nn.Module]:
    """The modules of the decoder that a model of Transformers names, among the stacks ``bases`` inside it. No vision tower is
    one of them."""
    for module in model.modules():
        if callable(get := getattr(module, "get_decoder", None)) and bases <= set(module.modules()):
            decoder = get()
            return set(decoder.modules()) if isinstance(decoder, nn.Module) else set()
    return set()


def _line(model: nn.Module) -> str:
    """The ``Decoder(…)`` to write for a model: with the longest list of modules that is in no other list, the module around it
    that is called with token ids, and a norm after it."""
    names = {name: module for name, module in model.named_modules() if name}
    lists = {name: len(module) for name, module in names.items() if isinstance(module, nn.ModuleList | nn.Sequential)}
    outer = {name: length for name, length in lists.items() if not _inside(name, lists)}
    longest = [name for name in outer if outer[name] == max(outer.values()) > 1]
    if len(longest) != 1:
        return "Decoder(base=…, layers=…)"
    stack = base = longest[0]
    while base and (base == stack or not _takes_ids(names[base])):
        base = base.rpartition(".")[0]
    norms = [name for name, module in names.items() if "norm" in type(module).__name__.lower() and not _inside(name, outer)]
    norms = [name for name in norms if _inside(name, [base])]
    order = list(names)
    after = [name for name in norms if order.index(name) > order.index(stack)]
    final = (after or [name for name in norms if _FINAL.search(name)])[:1]
    return f"Decoder(base={_path(base)}, layers={_path(stack)}{''.join(f', final_norm={_path(name)}' for name in final)})"


_FINAL = re.compile(r"(^|[._])(f|final|out|last)(_[^.]*)?$")
"""Names of norms at the end of a model, which may be registered before its layers."""


def _inside(name: str, others: Iterable[str]) -> bool:
    """Whether a submodule is inside one of others."""
    return any(not other or name.startswith(f"{other}.") for other in others)


def _takes_ids(module: nn.Module) -> bool:
    """Whether a module embeds tokens, and is no container, whose forward is never called."""
    return not isinstance(module, nn.ModuleDict) and any(isinstance(part, nn.Embedding) for part in module.modules())


def _path(name: str) -> str:
    """A submodule as an expression: ``model.blocks[0].norm``."""
    return "model" + "".join(f"[{part}]" if part.isdecimal() else f".{part}" for part in name.split(".") if part)


def _lists(model: nn.Module) -> str:
    """The ``ModuleList`` modules of a model, for an error message."""
    lists = [f"{name} ({len(child)})" for name, child in model.named_modules() if isinstance(child, nn.ModuleList)]
    return "the ModuleLists " + ", ".join(lists[:5]) if lists else "no ModuleList at all"
