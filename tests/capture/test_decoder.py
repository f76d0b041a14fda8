"""Finding the decoder and its layers, in every family and through every wrapper."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from geomprobe import Decoder, GeomprobeError, Probe, RepresentationEntropy
from geomprobe.capture.decoder import find_decoder
from tests import reference
from tests.tiny_models import FAMILIES, HandMade, tiny, token_batch


@pytest.mark.parametrize("family", FAMILIES)
def test_sites_hold_what_transformers_calls_hidden_states(family: str) -> None:
    model = tiny(family)
    decoder = find_decoder(model)
    assert decoder.sites == ("embed", "layer_00", "layer_01", "layer_02", "final_norm")
    assert decoder.base is model.get_decoder()
    batch = token_batch(1)
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(batch)
    reading = probe.read()
    for site, hidden in reference.hidden_states(model, {"input_ids": batch}).items():
        expected = reference.entropies(reference.unit(hidden[0]))
        assert reading[f"matrix_entropy/{site}"] == pytest.approx(expected["matrix_entropy"], rel=1e-5), site


def test_a_projection_after_the_last_layer_belongs_to_final_norm() -> None:
    model = tiny("opt", width=32, word_embed_proj_dim=16, do_layer_norm_before=False)
    batch = token_batch(1)
    with Probe(model, on_error="raise") as probe, torch.no_grad():
        model(batch)
    hidden = reference.hidden_states(model, {"input_ids": batch})
    assert (hidden["layer_02"].shape[2], hidden["final_norm"].shape[2]) == (32, 16)
    expected = reference.entropies(reference.unit(hidden["final_norm"][0]))
    assert probe.read()["rank_ratio/final_norm"] == pytest.approx(expected["rank_ratio"], rel=1e-5)


class Wrapper(nn.Module):
    def __init__(self, *inside: nn.Module) -> None:
        super().__init__()
        self.inside = nn.ModuleList(inside)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inside[0](*args, **kwargs)


@pytest.mark.parametrize(
    "wrap",
    [Wrapper, torch.compile, lambda model: Wrapper(Wrapper(model)), lambda model: model.base_model],
    ids=["wrapper", "compile", "nested", "decoder"],
)
def test_the_decoder_is_found_through_wrappers(wrap: Any) -> None:
    model = tiny("gpt_neox")
    assert find_decoder(wrap(model)).base is model.gpt_neox


def test_the_decoder_is_found_through_adapters() -> None:
    peft = pytest.importorskip("peft")
    model = tiny("gpt_neox")
    adapted = peft.get_peft_model(model, peft.LoraConfig(target_modules=["query_key_value"], r=2))
    assert find_decoder(adapted).base is model.gpt_neox


def test_a_model_unknown_to_transformers_is_found_by_counting() -> None:
    model = HandMade(layers=2, claimed=2)
    assert find_decoder(model).sites == ("embed", "layer_00", "layer_01", "final_norm")
    with Probe(model, on_error="raise") as probe:
        model(token_batch())
    reading = probe.read("train")
    assert reading["tokens/embed"] == reading["tokens/layer_01"] == 24
    hidden = model.blocks[0](model.embedding(token_batch()))[0].detach().double().flatten(0, 1).numpy()
    expected = reference.entropies(reference.unit(hidden))
    assert reading["anisotropy/layer_00"] == pytest.approx(expected["anisotropy"], rel=1e-5)
    assert reading["entropy/layer_01"] == reading["entropy/final_norm"]


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (nn.Linear(2, 2), "no ModuleList at all"),
        (HandMade(layers=3, claimed=12), r"the ModuleLists blocks \(3\)"),
        (nn.Sequential(nn.ModuleList()), r"the ModuleLists 0 \(0\)"),
    ],
)
def test_a_model_without_decoder_layers(model: nn.Module, found: str) -> None:
    with pytest.raises(
        GeomprobeError, match=rf"found no decoder layers in {type(model).__name__}.*_can_record_outputs.*{found}"
    ):
        Probe(model)


def test_several_stacks() -> None:
    model = tiny()
    two = Wrapper(model, copy.deepcopy(model))
    with pytest.raises(GeomprobeError, match=r"Wrapper contains 2 stacks of layers \(LlamaModel, LlamaModel\)") as caught:
        Probe(two)
    line = str(caught.value).rpartition(": ")[2]
    assert line == "Probe(model, decoder=Decoder(base=model.inside[0].model, layers=model.inside[0].model.layers))"
    assert eval(line, {"Probe": Probe, "Decoder": Decoder, "model": two}).sites[-1] == "final_norm"
    assert find_decoder(two.inside[1]).base is two.inside[1].get_submodule("model")


@pytest.mark.parametrize("thing", ["gpt2", None, {"model": 1}])
def test_not_a_module(thing: Any) -> None:
    with pytest.raises(GeomprobeError, match=rf"expected a model that is a torch.nn.Module, and got {type(thing).__name__}"):
        Probe(thing)


@pytest.mark.parametrize(
    ("layers", "sites"),
    [
        (None, ("embed", "layer_00", "layer_01", "layer_02", "final_norm")),
        ([0], ("layer_00",)),
        ([-1, 0], ("layer_00", "layer_02")),
        ([2, -1, "layer_02"], ("layer_02",)),
        (["final_norm", "embed", 1], ("embed", "layer_01", "final_norm")),
    ],
)
def test_selected_layers_in_model_order(layers: list[int | str] | None, sites: tuple[str, ...]) -> None:
    model = tiny()
    with Probe(model, sites=layers) as probe, torch.no_grad():
        model(token_batch())
    reading = probe.read()
    assert probe.sites == reading.sites == sites
    assert {key.split("/")[1] for key in reading} == set(sites)


@pytest.mark.parametrize("layer", [3, -4, "layer_03", "layer_1", "head", True, 1.0, None])
def test_unknown_layer(layer: Any) -> None:
    with pytest.raises(
        GeomprobeError, match=rf"unknown site {layer!r}: this LlamaModel has layers 0 to 2.*'embed' and 'final_norm'"
    ):
        Probe(tiny(), sites=[0, layer])


def test_no_layer() -> None:
    with pytest.raises(GeomprobeError, match="measures nothing"):
        Probe(tiny(), sites=[])


@pytest.mark.parametrize("site", ["final_norm", 2])
def test_one_site_is_given_in_a_list(site: Any) -> None:
    with pytest.raises(GeomprobeError, match=rf"sites={site!r}: expected a list, such as \[{site!r}\]"):
        Probe(tiny(), sites=site)


def test_one_metric_is_given_in_a_list() -> None:
    with pytest.raises(GeomprobeError, match="expected a list of metrics, such as"):
        Probe(tiny(), RepresentationEntropy())  # type: ignore[arg-type]
