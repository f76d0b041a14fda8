"""A model that Transformers does not know: nanoGPT's GPT, in which ``forward`` does everything and returns logits and loss."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Trainer, TrainingArguments

from geomprobe import Decoder, GeomprobeError, Probe
from geomprobe.capture.decoder import find_decoder
from geomprobe.integrations import ProbeCallback
from tests import reference
from tests.tiny_models import VOCABULARY, hooks, tiny, token_batch

WIDTH, LENGTH = 16, 12


@dataclass
class Config:
    block_size: int = LENGTH
    vocab_size: int = VOCABULARY
    n_layer: int = 3
    n_embd: int = WIDTH

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Block(nn.Module):
    """Attention and MLP, one after the other, or side by side."""

    def __init__(self, width: int, parallel: bool) -> None:
        super().__init__()
        self.parallel = parallel
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.c_attn, self.c_proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def attend(self, x: Tensor) -> Tensor:
        q, k, v = self.c_attn(x).chunk(3, -1)
        return self.c_proj(F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None], is_causal=True)[:, 0])  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        if self.parallel:
            return x + self.attend(self.ln_1(x)) + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]
        x = x + self.attend(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class GPT(nn.Module):
    def __init__(self, *, parallel: bool = False, checkpointing: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config, self.checkpointing = config, checkpointing = Config(), checkpointing
        self.transformer = nn.ModuleDict(
            {
                "wte": nn.Embedding(config.vocab_size, config.n_embd),
                "wpe": nn.Embedding(config.block_size, config.n_embd),
                "drop": nn.Dropout(0.0),
                "h": nn.ModuleList([Block(config.n_embd, parallel) for _ in range(config.n_layer)]),
                "ln_f": nn.LayerNorm(config.n_embd),
            }
        )
        self.lm_head = nn.Linear(config.n_embd, config.vocab_size, bias=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        part: Any = self.transformer
        x = part.drop(part.wte(idx) + part.wpe(torch.arange(idx.shape[1], device=idx.device)))
        for block in part.h:
            x = checkpoint(block, x, use_reentrant=False) if self.checkpointing else block(x)
        x = part.ln_f(x)
        if targets is None:
            return self.lm_head(x[:, [-1], :]), None
        logits = self.lm_head(x)
        return logits, F.cross_entropy(logits.view(-1, logits.size(-1)), targets.reshape(-1))


def named(model: Any, **options: Any) -> Decoder:
    return Decoder(base=model, layers=model.transformer.h, final_norm=model.transformer.ln_f, **options)


def states(model: Any, ids: Tensor) -> dict[str, Tensor]:
    """The hidden states at each site, from hooks of PyTorch on the same model."""
    part, found = model.transformer, {}
    modules = {"embed": part.drop, **{f"layer_{i:02d}": layer for i, layer in enumerate(part.h)}, "final_norm": part.ln_f}

    def keep(name: str) -> Callable[..., None]:
        return lambda module, args, output: found.update({name: output.detach()})

    handles = [module.register_forward_hook(keep(name)) for name, module in modules.items()]
    with torch.no_grad():
        model(ids)
    for handle in handles:
        handle.remove()
    return found


def train(model: Any, steps: int = 2, call: Any = None) -> list[float]:
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1), []
    for step in range(steps):
        ids = token_batch(2, LENGTH, seed=step)
        _, loss = (model if call is None else call)(ids, ids)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize("parallel", [False, True], ids=["sequential", "parallel"])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointed"])
def test_in_training_every_site_holds_its_hidden_states(parallel: bool, checkpointing: bool) -> None:
    options = {"parallel": parallel, "checkpointing": checkpointing}
    bare, model = GPT(**options), GPT(**options)
    expected = states(model, token_batch(2, LENGTH, seed=0))
    with Probe(model, decoder=named(model), when=lambda forward: forward == 0, on_error="raise") as probe:
        losses = train(model)
    assert losses == train(bare)
    assert not hooks(model)
    reading = probe.read("train")
    assert reading.sites == ("embed", "layer_00", "layer_01", "layer_02", "final_norm")
    assert reading.notes == []
    for site, hidden in expected.items():
        assert reading[f"tokens/{site}"] == 2 * LENGTH
        twin = reference.entropies(reference.unit(hidden.double().flatten(0, 1).numpy()))
        for metric in ("anisotropy", "matrix_entropy", "effective_rank"):
            assert reading[f"{metric}/{site}"] == pytest.approx(twin[metric], rel=1e-5), (metric, site)


@pytest.mark.slow
def test_compiled_it_gives_the_numbers_of_eager() -> None:
    eager, compiled = GPT(), GPT()
    with Probe(eager, decoder=named(eager), on_error="raise") as one:
        losses = train(eager)
    with Probe(compiled, decoder=named(compiled), on_error="raise") as other:
        call = torch.compile(compiled, backend="aot_eager", fullgraph=True)
        assert train(compiled, call=call) == pytest.approx(losses, rel=1e-6)
    expected = one.read("train")
    assert {name: other.read("train")[name] for name in expected} == pytest.approx(
        {name: expected[name] for name in expected}, rel=1e-4, abs=1e-6
    )


def test_the_embeddings_can_be_a_modules_output() -> None:
    model = GPT()
    with Probe(model, decoder=named(model, embed=model.transformer["wte"]), on_error="raise") as probe:
        model(token_batch(2, LENGTH), token_batch(2, LENGTH))
    reading, tokens = probe.read("train"), model.transformer["wte"](token_batch(2, LENGTH)).detach()
    twin = reference.entropies(reference.unit(tokens.double().flatten(0, 1).numpy()))
    assert reading["anisotropy/embed"] == pytest.approx(twin["anisotropy"], rel=1e-5)
    assert reading["tokens/layer_00"] == 2 * LENGTH


def test_the_error_says_the_line_to_write_and_the_line_works() -> None:
    model = GPT()
    with pytest.raises(GeomprobeError, match=r"the ModuleLists transformer\.h \(3\)") as caught:
        Probe(model)
    line = str(caught.value).rpartition(": ")[2]
    assert line == "Probe(model, decoder=Decoder(base=model, layers=model.transformer.h, final_norm=model.transformer.ln_f))"
    assert eval(line, {"Probe": Probe, "Decoder": Decoder, "model": model}).sites[-1] == "final_norm"


def test_without_the_norm_logits_are_told_from_hidden_states() -> None:
    model = GPT()
    with (
        Probe(model, decoder=Decoder(base=model, layers=model.transformer["h"])) as probe,  # type: ignore[arg-type]
        pytest.warns(RuntimeWarning, match="may be logits"),
    ):
        model(token_batch(2, LENGTH), token_batch(2, LENGTH))
    reading = probe.read("train")
    assert [note for note in reading.notes if "may be logits" in note and "final_norm=…" in note]
    assert "entropy/final_norm" not in reading
    assert reading["tokens/layer_02"] == 2 * LENGTH


def test_a_part_outside_the_base_is_refused() -> None:
    with pytest.raises(GeomprobeError, match=r"Decoder\(final_norm=LayerNorm\): expected a module inside base, which is a GPT"):
        Decoder(base=(model := GPT()), layers=model.transformer["h"], final_norm=nn.LayerNorm(4))  # type: ignore[arg-type]


def test_the_token_ids_come_first_among_the_parameters_in_whatever_order_they_are_given() -> None:
    model, ids, targets = GPT(), token_batch(2, LENGTH), token_batch(2, LENGTH)
    targets[:, 5:] = 0
    with Probe(model, decoder=named(model), pad_token_id=0, on_error="raise") as probe:
        model(targets=targets, idx=ids)
    assert probe.read("train")["tokens/embed"] == 2 * LENGTH


class Cached(GPT):
    """Keeps a cache of its own, as models for inference do."""

    def forward(self, idx: Tensor, input_pos: Tensor | None = None, kv_cache: Any = None) -> Any:
        return super().forward(idx, idx)


@pytest.mark.parametrize("options", [{"input_pos": torch.tensor([3])}, {"kv_cache": [(torch.ones(1), torch.ones(1))]}])
def test_a_cache_that_cannot_be_followed_is_left_out(options: Any) -> None:
    model = Cached()
    with Probe(model, decoder=named(model)) as probe:
        model(token_batch(2, LENGTH))
        with pytest.warns(RuntimeWarning, match=f"a forward with {next(iter(options))}.* was left out, because"):
            model(token_batch(2, 1), **options)
    reading = probe.read("train")
    assert reading["tokens/embed"] == 2 * LENGTH
    assert any(next(iter(options)) in note for note in reading.notes)


def test_probe_on_finds_it() -> None:
    model = GPT()
    with Probe(model, decoder=named(model)) as probe:
        assert Probe.on(model) is probe
    assert Probe.on(model) is None


class ForTrainer(GPT):
    """Takes and returns what Trainer expects."""

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:  # type: ignore[override]
        logits, loss = super().forward(input_ids, labels)
        return {"loss": loss, "logits": logits}


@pytest.mark.slow
def test_in_trainer(tmp_path: Path) -> None:
    data = [{"input_ids": row, "labels": row} for row in token_batch(8, LENGTH)]
    args = TrainingArguments(
        str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=4,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
    )
    callback = ProbeCallback(decoder=named, on_error="raise")
    Trainer(ForTrainer(), args, train_dataset=data, callbacks=[callback]).train()
    assert [(step, reading["tokens/final_norm"]) for step, reading in callback.history] == [(1, 4 * LENGTH), (2, 4 * LENGTH)]
    assert all(math.isfinite(reading["effective_rank/layer_02"]) for _, reading in callback.history)


class Several(nn.Module):
    """A model of several stacks that names its decoder."""

    def __init__(self) -> None:
        super().__init__()
        self.vision, self.language = tiny().model, tiny().model

    def get_decoder(self) -> nn.Module:
        return self.language  # type: ignore[no-any-return]


def test_of_several_stacks_the_one_the_model_names_is_meant() -> None:
    model = Several()
    assert find_decoder(model).base is model.language
