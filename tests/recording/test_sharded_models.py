"""Models that are sharded, replicated or offloaded give the numbers of the plain model, and compute what they did without."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import accelerate
import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from torch import Tensor, nn
from transformers.distributed import DistributedConfig

from geomprobe import AttentionProfile, GeomprobeError, Probe, Reading
from tests import reference
from tests.recording.test_all_reduce import RANKS, torchrun
from tests.tiny_models import HandMade, snapshot, tiny, token_batch

pytestmark = pytest.mark.slow  # it starts processes

TEXTS = [token_batch(1, length, seed=length) for length in (9, 30, 14, 50)]  # longer than d = 32, too; uneven over ranks


Hidden = dict[str, Tensor]
"""Hidden states ``(length, width)`` of one text, by site."""


class Run(NamedTuple):
    """What a probe read, and the hidden states of those very forwards, text by text, from hooks that are not geomprobe's."""

    reading: Reading
    texts: list[Hidden]


@contextmanager
def hidden_states(model: Any) -> Iterator[list[Hidden]]:
    """Collect the hidden states of every forward of a Llama."""
    forwards: list[Hidden] = []
    base = getattr(model, "module", model)
    base = getattr(base, "model", base)
    modules = {"embed": base.embed_tokens} | {f"layer_{i:02d}": layer for i, layer in enumerate(base.layers)}

    def keep(site: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: object, output: Tensor) -> None:
            if site == "embed":
                forwards.append({})
            forwards[-1][site] = output.detach()[0].clone()

        return hook

    handles = [module.register_forward_hook(keep(site)) for site, module in (modules | {"final_norm": base.norm}).items()]
    try:
        yield forwards
    finally:
        for handle in handles:
            handle.remove()


def measure(model: nn.Module, texts: Sequence[Tensor]) -> Run:
    with torch.no_grad(), Probe(model, on_error="raise") as probe, hidden_states(model) as hidden:
        for text in texts:
            model(input_ids=text, use_cache=False)
    return Run(probe.read(), hidden)


def train(model: nn.Module, texts: Sequence[Tensor], probe: Probe | None = None) -> tuple[list[float], list[Run]]:
    """Two optimizer steps over all ``texts`` each: the losses, and what the probe read after each."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses, runs = [], []
    for _ in range(2):
        with hidden_states(model) as hidden:
            for text in texts:
                loss = model(input_ids=text, labels=text, use_cache=False).loss
                (loss / len(texts)).backward()
                losses.append(loss.item())
        optimizer.step()
        optimizer.zero_grad()
        if probe is not None:
            runs.append(Run(probe.read("train", reset=True), hidden))
    return losses, runs


def train_watched(make: Callable[[], Any], texts: Sequence[Tensor]) -> dict[str, Run]:
    """What the probe read after each step of a training that gives the losses of the same one without a probe."""
    plain, _ = train(make().train(), texts)
    model = make().train()
    with Probe(model, on_error="raise") as probe:
        losses, runs = train(model, texts, probe)
    assert losses == plain
    return {f"train/{step}": run for step, run in enumerate(runs)}


# -- what each rank runs ----------------------------------------------------------------------------------------------------


def mine() -> list[Tensor]:
    """This rank's texts: as many on every rank, since under FSDP all run equally many forwards."""
    return TEXTS[dist.get_rank() :: RANKS]


def fsdp2(path: str) -> dict[str, Run]:
    from torch.distributed.fsdp import fully_shard

    def shard(model: Any) -> Any:
        for layer in model.model.layers:
            fully_shard(layer)
        return fully_shard(model)

    model = shard(tiny())
    with torch.no_grad():
        plain = [model(text).logits for text in mine()]  # FSDP sets itself up in the first forward
    before = snapshot(model)
    runs = {"eval": measure(model, mine())}
    assert snapshot(model) == before

    model = tiny()
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        shard(model)
        with hidden_states(model) as hidden:
            assert all(torch.equal(model(text).logits, logits) for text, logits in zip(mine(), plain, strict=True))
    return runs | {"eval/attached before": Run(probe.read(), hidden)} | train_watched(lambda: shard(tiny()), mine())


def accelerate_fsdp2(path: str) -> dict[str, Run]:
    """As accelerate's FSDP2 plugin shards. ``Accelerator`` itself applies the plugin on GPUs only, so it is called by hand."""
    from accelerate.utils.fsdp_utils import fsdp2_prepare_model

    plugin = accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    state = SimpleNamespace(fsdp_plugin=plugin)
    prepared = SimpleNamespace(state=state, mixed_precision="no", is_main_process=True, device=torch.device("cpu"))

    def shard() -> Any:
        model = fsdp2_prepare_model(prepared, tiny())
        names = [type(module).__name__ for module in (model, model.model.layers[0], model.model.norm)]
        assert names == ["FSDPLlamaForCausalLM", "FSDPLlamaDecoderLayer", "FSDPLlamaRMSNorm"]
        return model

    return {"eval": measure(shard(), mine())} | train_watched(shard, mine())


def transformers_fsdp2(path: str) -> dict[str, Run]:
    def load() -> Any:
        config = DistributedConfig(fsdp_size=RANKS)
        return transformers.AutoModelForCausalLM.from_pretrained(path, distributed_config=config)

    return {"eval": measure(load(), mine())} | train_watched(load, mine())


def accelerate_ddp(path: str) -> dict[str, Run]:
    prepared = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=len(mine()))

    def run(watch: bool) -> tuple[list[float], list[Run]]:
        bare = tiny().train()
        model, optimizer = prepared.prepare(bare, torch.optim.SGD(bare.parameters(), lr=0.1))
        assert type(model).__name__ == "DistributedDataParallel"
        probe = Probe(model, on_error="raise")
        if watch:
            probe.attach()
        losses, runs = [], []
        for _ in range(2):
            with hidden_states(model) as hidden:
                for text in mine():
                    with prepared.accumulate(model):
                        loss = model(input_ids=text, labels=text, use_cache=False).loss
                        prepared.backward(loss)
                        optimizer.step()
                        optimizer.zero_grad()
                    losses.append(loss.item())
            if watch:
                runs.append(Run(probe.read("train", reset=True), hidden))
        probe.close()
        return losses, runs

    plain, _ = run(watch=False)
    losses, runs = run(watch=True)
    assert losses == plain
    return {f"train/{step}": run for step, run in enumerate(runs)}


def transformers_tp(path: str) -> dict[str, Run]:
    def load() -> Any:
        model = transformers.AutoModelForCausalLM.from_pretrained(path, distributed_config=DistributedConfig(tp_size=RANKS))
        assert model.model.layers[0].mlp.up_proj.weight.to_local().shape == (64 // RANKS, 32)
        return model

    model = load()
    with torch.no_grad():
        plain = [model(text).logits for text in TEXTS]
        with Probe(model, on_error="raise") as probe, hidden_states(model) as hidden:
            assert all(torch.equal(model(text).logits, logits) for text, logits in zip(TEXTS, plain, strict=True))
    refuses_attention(model)
    return {"eval": Run(probe.read(), hidden), "eval/base": measure(model.model, TEXTS)} | train_watched(load, TEXTS)


def refuses_attention(model: Any) -> None:
    """Each rank has some of the heads, and their mean is not the mean over all."""
    refused = pytest.raises(GeomprobeError, match=r"this rank holds 2 of 4 attention heads \(tensor parallelism\)")
    with torch.no_grad(), Probe(model, [AttentionProfile()], on_error="raise"), refused:
        model(TEXTS[0])


def torch_tp(path: str) -> dict[str, Run]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor.parallel import ColwiseParallel, ParallelStyle, RowwiseParallel, parallelize_module

    columns = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "mlp.gate_proj", "mlp.up_proj")
    rows = ("self_attn.o_proj", "mlp.down_proj")

    def parallelize(model: Any) -> Any:
        for layer in model.model.layers:
            plan: dict[str, ParallelStyle] = {name: ColwiseParallel() for name in columns}
            plan |= {name: RowwiseParallel() for name in rows}
            parallelize_module(layer, init_device_mesh("cpu", (RANKS,)), plan)
        return model

    refuses_attention(parallelize(tiny()))
    model = tiny()
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        parallelize(model)
        with hidden_states(model) as hidden:
            for text in TEXTS:
                model(text)
    return {"eval": measure(parallelize(tiny()), TEXTS), "eval/attached before": Run(probe.read(), hidden)}


def sequence_parallel(path: str) -> dict[str, Run]:
    """A residual stream cut along the text is refused, as DTensors and as each rank's own part."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard, distribute_module
    from torch.distributed.tensor.parallel import RowwiseParallel, parallelize_module

    for local in (False, True):
        model, mesh = HandMade(), init_device_mesh("cpu", (RANKS,))
        cut = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1), use_local_output=local)
        parallelize_module(model, mesh, {"embedding": cut})
        if not local:
            distribute_module(model.blocks, mesh)
        ids, before = token_batch(), snapshot(model)
        with torch.no_grad(), Probe(model) as probe, pytest.warns(RuntimeWarning, match="geomprobe: embed is a"):
            model(ids)
        assert probe.fault is None
        assert snapshot(model) == before
        what = r"\w+Tensor of \(2, 6, 8\)" if local else r"DTensor of \(2, 12, 8\)"
        told = rf"embed is a {what}, but the model was called with \(2, 12\) tokens.*run without sequence parallelism"
        with pytest.raises(GeomprobeError, match=told):
            probe.read()
    return {}


def pipeline_parallel(path: str) -> dict[str, Run]:
    """A model whose layers are spread over ranks is refused: stand-ins for the absent ones would be counted."""
    config = DistributedConfig(pp_size=RANKS)
    model = transformers.AutoModelForCausalLM.from_pretrained(path, distributed_config=config)
    for part in (model, model.model):
        with pytest.raises(GeomprobeError, match=r"only a part of the layers of LlamaModel .* without pp_size"):
            Probe(part)
    return {}


CHECKS = (fsdp2, accelerate_fsdp2, transformers_fsdp2, accelerate_ddp, transformers_tp, torch_tp)
REFUSALS = (sequence_parallel, pipeline_parallel)


def worker(path: str, *names: str) -> None:
    """One rank: run the checks one after another, write what each read."""
    dist.init_process_group("gloo")
    if dist.get_rank() == 0:
        tiny().save_pretrained(path)
    dist.barrier()
    for check in (*CHECKS, *REFUSALS):
        if names and check.__name__ not in names:
            continue
        torch.manual_seed(0)
        runs = {name: (run.reading.to_dict(), run.texts) for name, run in check(path).items()}
        torch.save(runs, Path(path, f"{check.__name__}.{dist.get_rank()}.pt"))
    dist.destroy_process_group()


# -- what is held -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote, and that nothing they asserted failed."""
    path = tmp_path_factory.mktemp("ranks")
    torchrun("tests.recording.test_sharded_models", str(path))
    return path


@pytest.fixture(scope="module")
def one() -> dict[str, Run]:
    """What one process reads of the same texts."""
    return {"eval": measure(tiny(), TEXTS)} | train_watched(tiny, TEXTS)


def arrays(texts: list[Hidden]) -> list[dict[str, reference.Array]]:
    return [{site: hidden.double().numpy() for site, hidden in text.items()} for text in texts]


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_two_ranks_give_the_numbers_of_one(check: str, results: Path, one: dict[str, Run]) -> None:
    """The hidden states are those of one process but for rounding, and every number is that of the run's own hidden states.

    Rounding of a forward differs where a product is spread over ranks, and after an optimizer step: FSDP sums the gradients of
    every backward pass over ranks, ``(g₀ + g₁)/2 + (g₂ + g₃)/2``, where one process adds them up in turn.
    """
    ranks = [torch.load(results / f"{check}.{rank}.pt") for rank in range(RANKS)]
    for name in ranks[0]:
        expected = one[name if name in one else "eval"]
        plain = arrays(expected.texts)
        hidden = [arrays(rank[name][1]) for rank in ranks]
        for rank in range(RANKS):
            whole = hidden[rank] if check.endswith("_tp") else [hidden[i % RANKS][i // RANKS] for i in range(len(TEXTS))]
            assert len(whole) == len(plain)
            for text, other in zip(whole, plain, strict=True):
                for site, rows in other.items():
                    apart = np.linalg.norm(text[site] - rows, axis=1) / np.linalg.norm(rows, axis=1)
                    assert apart == pytest.approx(0, abs=reference.ROUNDED), (rank, name, site)
            reading = Reading.from_dict(ranks[rank][name][0])
            reference.hold_to_twin(reading, whole)
            reference.hold_to_run(reading, expected.reading, plain)


def test_hidden_states_or_layers_in_parts_are_refused_on_every_rank(results: Path) -> None:
    assert all((results / f"{check.__name__}.{rank}.pt").exists() for check in REFUSALS for rank in range(RANKS))


# -- offloading, in one process ---------------------------------------------------------------------------------------------


def on_disk(model: Any, path: Path) -> Any:
    return accelerate.disk_offload(model, str(path), execution_device=torch.device("cpu"))


def on_cpu(model: Any, path: Path) -> Any:
    return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))


def dispatched(model: Any, path: Path) -> Any:
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "disk", "model.layers.1": "cpu"}
    places |= {"model.layers.2": "disk", "model.norm": "disk", "lm_head": "cpu"}
    return accelerate.dispatch_model(model, places, offload_dir=str(path), main_device="cpu")


@pytest.mark.parametrize("offload", [on_disk, on_cpu, dispatched])
@pytest.mark.parametrize("attached", ["before", "after"])
def test_offloading_changes_nothing(offload: Callable[[Any, Path], Any], attached: str, tmp_path: Path) -> None:
    plain, expected = tiny(), measure(tiny(), TEXTS).reading
    model = tiny()
    if attached == "after":
        model = offload(model, tmp_path)
    before = snapshot(model)
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        if attached == "before":
            model = offload(model, tmp_path)
        for text in TEXTS:
            assert torch.equal(model(text).logits, plain(text).logits)
    reading = probe.read()
    assert dict(reading) == dict(expected)
    assert all(reading.curve("gain", site) == expected.curve("gain", site) for site in expected.sites)
    if attached == "after":
        assert snapshot(model) == before
    if offload is not on_cpu:
        assert model.model.layers[0].mlp.up_proj.weight.device.type == "meta", "it is on disk between forwards"


def test_a_model_loaded_partly_onto_disk(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path / "model")
    places = {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "model.layers.0": "cpu", "model.layers.1": "disk"}
    places |= {"model.layers.2": "disk", "model.norm": "cpu", "lm_head": "cpu"}
    load = transformers.AutoModelForCausalLM.from_pretrained
    model = load(tmp_path / "model", device_map=places, offload_folder=str(tmp_path / "offloaded"))
    assert model.model.layers[1].mlp.up_proj.weight.device.type == "meta"
    assert dict(measure(model, TEXTS).reading) == dict(measure(tiny(), TEXTS).reading)
    prompt, plain = token_batch(1, 6), tiny()
    with torch.no_grad(), Probe(model, on_error="raise") as probe, Probe(plain, on_error="raise") as expected:
        text = model.generate(prompt, max_new_tokens=5, do_sample=False)
        assert torch.equal(text, plain.generate(prompt, max_new_tokens=5, do_sample=False))
    assert dict(probe.read()) == dict(expected.read())


if __name__ == "__main__":
    worker(*sys.argv[1:])
