"""Finds the decoder and its layers in a model of Transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from geomprobe.errors import GeomprobeError

__all__ = ["Decoder", "find_decoder"]


@dataclass(frozen=True)
class Decoder:
    """The decoder of a model and its layers: found by :func:`find_decoder`, or given by the user for other models.

    Attributes:
        base: the decoder. One call of it is one forward, and its output is the site ``final_norm`` (``last_hidden_state`` in
            Transformers), which is usually the output of a norm after the last layer.
        layers: the decoder layers in order. The input of the first one is the site ``embed`` (``hidden_states[0]`` in
            Transformers).
    """

    base: nn.Module
    layers: Sequence[nn.Module]

    def __post_init__(self) -> None:
        if not isinstance(self.base, nn.Module) or not all(isinstance(layer, nn.Module) for layer in self.layers):
            raise GeomprobeError(
                f"Decoder(base={type(self.base).__name__}, layers={type(self.layers).__name__}): expected a module, and a list "
                "of modules"
            )
        object.__setattr__(self, "layers", tuple(self.layers))

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
            is_index = isinstance(site, int) and not isinstance(site, bool)
            if is_index and -len(self.layers) <= int(site) < len(self.layers):
                chosen.add(f"layer_{int(site) % len(self.layers):02d}")
            elif site in self.sites:
                chosen.add(str(site))
            else:
                raise GeomprobeError(
                    f"unknown site {site!r}: this {type(self.base).__name__} has layers 0 to {len(self.layers) - 1} "
                    f"(or 'layer_00' to {self.sites[-2]!r}), and the sites 'embed' and 'final_norm'"
                )
        return tuple(site for site in self.sites if site in chosen)


def find_decoder(model: nn.Module) -> Decoder:
    """Find the decoder in ``model``, inside any wrapper (a language-model head, PEFT, DDP, a compiled module).

    It is found by ``_can_record_outputs``, in which Transformers names the class of the decoder layers of most architectures,
    or else as the only ``ModuleList`` of ``config.num_hidden_layers`` modules. Encoders, such as the vision tower of a
    vision-language model, are passed over.

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
            f"it contains {_lists(model)}. Give a Hugging Face decoder or a model that contains one, or name the layers with "
            "Probe(decoder=Decoder(base=…, layers=…))"
        )
    encoders = [base for base, layers in found if _is_encoder(layers)]
    found = [(base, layers) for base, layers in found if base not in encoders]
    if not found:
        raise GeomprobeError(
            f"{type(encoders[0]).__name__} is an encoder, whose tokens attend to later ones too, and a probe measures "
            "decoders, in which each token adds to those before it: give a decoder such as GPT-NeoX or Llama"
        )
    if len(found) > 1:
        names = ", ".join(type(base).__name__ for base, _ in found)
        raise GeomprobeError(
            f"{type(model).__name__} contains {len(found)} stacks of layers ({names}), and a probe measures one: "
            "give the one to measure, for example Probe(model.get_decoder())"
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


def _lists(model: nn.Module) -> str:
    """The ``ModuleList`` modules of a model, for an error message."""
    lists = [f"{name} ({len(child)})" for name, child in model.named_modules() if isinstance(child, nn.ModuleList)]
    return "the ModuleLists " + ", ".join(lists[:5]) if lists else "no ModuleList at all"
