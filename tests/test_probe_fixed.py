"""Probe.fixed: texts that run again and again in a training, counted apart, and without a trace in the training."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from geomprobe import GeomprobeError, Probe, every
from tests.recording.test_all_reduce import RANKS, torchrun
from tests.tiny_models import hooks, tiny, token_batch

TEXTS = token_batch(2, 9, seed=7)


def training(fixed: bool, *, autocast: bool = False, **options: Any) -> tuple[list[float], list[dict[str, float]]]:
    """Losses of four steps with dropout, and the readings of the fixed texts after each."""
    model = tiny("llama", attention_dropout=0.1, **options).train()
    model.model.layers[1].eval()  # as somebody freezes a part of a model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    torch.manual_seed(1)
    losses, readings = [], []
    with Probe(model, when=every(2), on_error="raise") as probe:
        for step in range(4):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                ids = token_batch(2, seed=step)
                if fixed:
                    with probe.fixed():
                        model(input_ids=TEXTS)
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            if fixed:
                readings.append(dict(probe.read("fixed", reset=True)))
        assert probe.read("train")["tokens/final_norm"] == 2 * 24  # the schedule counts only those of the training
        assert [module.training for module in (model, model.model.layers[0], model.model.layers[1])] == [True, True, False]
    assert not hooks(model)
    return losses, readings


@pytest.mark.parametrize("autocast", [False, True])
def test_a_training_goes_on_as_without_them(autocast: bool) -> None:
    losses, readings = training(True, autocast=autocast)
    assert losses == training(False, autocast=autocast)[0]
    assert [reading["tokens/final_norm"] for reading in readings] == [18] * 4
    assert len({reading["entropy/final_norm"] for reading in readings}) == 4  # the model has changed


def test_the_numbers_are_those_of_evaluation_mode() -> None:
    model = tiny("llama", attention_dropout=0.5)
    with Probe(model) as probe:
        model(input_ids=TEXTS)
        model.train()
        probe.paused = True
        with probe.fixed():
            assert not torch.is_grad_enabled()
            model(input_ids=TEXTS)
        assert torch.is_grad_enabled()
        assert probe.paused
    assert dict(probe.read("fixed")) == dict(probe.read("eval"))
    assert probe.read("fixed").mode == "fixed"


def test_they_are_told_from_evaluations_in_a_compiled_model() -> None:
    model = tiny("llama", layers=2)
    compiled: Any = torch.compile(model, backend="eager")
    with Probe(model) as probe, torch.no_grad():
        for _ in range(2):
            compiled(input_ids=TEXTS)
            with probe.fixed():
                compiled(input_ids=TEXTS[:1])
    assert (probe.read("eval")["tokens/embed"], probe.read("fixed")["tokens/embed"]) == (36, 18)


class _Draws(torch.nn.Module):
    """Draws random numbers in evaluation mode, too."""

    def forward(self, x: Any) -> Any:
        return x + 0 * torch.rand(())


def run(model: Any) -> None:
    model(input_ids=TEXTS)
    model.lm_head(TEXTS, nothing=True)


def test_random_numbers_and_flags_are_restored_after_an_exception() -> None:
    model = tiny("llama").train()
    model.model.embed_tokens = torch.nn.Sequential(model.model.embed_tokens, _Draws())
    with Probe(model) as probe:
        before = torch.get_rng_state()
        with pytest.raises(TypeError, match="unexpected keyword"), probe.fixed():
            run(model)
        assert torch.equal(before, torch.get_rng_state())
        assert all(module.training for module in model.modules())
        model(input_ids=TEXTS)
    assert probe.read("train")["tokens/embed"] == 18


class _Keeps(torch.nn.Module):
    """Keeps what it was called with, as rotary embeddings of a dynamic base keep frequencies for the longest text so far."""

    counts: torch.Tensor
    table: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(1), persistent=False)
        self.register_buffer("counts", torch.zeros(2))
        self.longest = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.longest = x.shape[1]
        self.register_buffer("table", torch.ones(x.shape[1]), persistent=False)
        self.counts[0] += 1
        return x


def test_what_a_model_keeps_of_a_forward_is_restored() -> None:
    model = tiny("llama").train()
    keeps = _Keeps()
    model.model.embed_tokens = torch.nn.Sequential(model.model.embed_tokens, keeps)
    with Probe(model) as probe:
        model(input_ids=token_batch(2, 5))
        table = keeps.table
        with probe.fixed():
            model(input_ids=TEXTS)
            assert keeps.longest == 9
        assert keeps.longest == 5
        assert keeps.table is table
        assert keeps.counts.tolist() == [1, 0]
        assert [name for name, _ in keeps.named_buffers()] == ["table", "counts"]


def test_a_rotary_embedding_that_grows_with_the_texts_does_not_shrink() -> None:
    """After texts that are longer than the model was made for, its frequencies stay those of the longest one."""
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    found = []
    for fixed in (False, True):
        model = tiny("llama", max_position_embeddings=16, rope_parameters=rope).train()
        with Probe(model) as probe:
            model(input_ids=token_batch(1, 40))
            if fixed:
                with probe.fixed():
                    model(input_ids=TEXTS)
            ids = token_batch(1, 20)
            found.append(model(input_ids=ids, labels=ids).loss.item())
    assert found[0] == found[1]


def test_a_probe_without_the_mode_says_so() -> None:
    probe = Probe(tiny(), modes=["train"])
    with pytest.raises(GeomprobeError, match=r"measures the modes train: make it with 'fixed' among its modes"), probe.fixed():
        pass


@contextmanager
def process_group() -> Iterator[None]:
    dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def on_two_ranks(folder: str) -> None:
    with process_group():
        torch.manual_seed(0)
        model = tiny()
        with Probe(model.train()) as probe:
            with probe.fixed():
                model(input_ids=TEXTS)
            torch.save(dict(probe.read("fixed")), Path(folder) / f"{dist.get_rank()}.pt")


@pytest.mark.slow
def test_two_ranks_count_them_once(tmp_path: Path) -> None:
    torchrun("tests.test_probe_fixed", str(tmp_path))
    model = tiny()
    with Probe(model) as probe:
        model(input_ids=TEXTS)
    found = [torch.load(tmp_path / f"{rank}.pt") for rank in range(RANKS)]
    assert found[0] == found[1] == dict(probe.read("eval"))


if __name__ == "__main__":
    import sys

    on_two_ranks(*sys.argv[1:])
