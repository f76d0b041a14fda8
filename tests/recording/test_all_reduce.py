"""Several processes give the numbers of one, however the texts are spread over them; and what is left when one fails."""

import json
import os
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from transformers import Trainer, TrainerCallback, TrainingArguments

from geomprobe import GeomprobeError, Probe, Reading, budget
from geomprobe.accumulators.state import Key
from geomprobe.integrations import ProbeCallback
from geomprobe.recording import all_reduce
from geomprobe.recording.all_reduce import sum_over_ranks
from geomprobe.recording.recorder import Recorder
from tests import reference
from tests.tiny_models import snapshot, tiny, token_batch

pytestmark = pytest.mark.slow  # it starts processes

RANKS = 2
SPREADS = {"even": [0, 1, 0, 1], "uneven": [0, 0, 0, 1], "empty": [0, 0, 0, 0]}
LENGTHS = (9, 30, 14, 50)  # longer than d = 32, too
SUMS: list[dict[str, Any]] = [
    {"curve": [1, 2], "count": 4, "mine": [7]},
    {"count": 5, "theirs": [[8, 9]], "curve": [10, 20, 30]},
]


def torchrun(module: str, *arguments: str) -> None:
    """Run ``python -m module arguments`` in two processes that can reach each other."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={RANKS}", "--rdzv-backend=c10d"]
    command += ["--rdzv-endpoint=localhost:0", "-m", module, *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    run = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert run.returncode == 0, run.stderr


def read(texts: list[torch.Tensor], *, distributed: bool = False) -> Reading:
    model = tiny()
    if distributed:
        from accelerate import Accelerator

        prepared = Accelerator(cpu=True).prepare(model)
        assert type(prepared).__name__ == "DistributedDataParallel"
        model = prepared.module  # a rank with no text must not wait for the others' forwards
    with torch.no_grad(), Probe(model, on_error="raise") as probe:
        for text in texts:
            model(input_ids=text, use_cache=False)
    return probe.read()


def worker(out: str) -> None:
    """One rank: measure its texts, read together with the others, write what it got."""
    rank = int(os.environ["RANK"])
    for spread, owners in SPREADS.items():
        mine = [token_batch(1, n, seed=n) for n, owner in zip(LENGTHS, owners, strict=True) if owner == rank]
        Path(out, f"{spread}.{rank}.json").write_text(read(mine, distributed=True).to_json())
    sums = {Key("eval", "embed", "own.1", name): torch.tensor(value).double() for name, value in SUMS[rank].items()}
    both = [sum_over_ranks(sums, replicas=replicas) for replicas in (1, 2)]
    told = [{key.sum: value.tolist() for key, value in sorted(each.items())} for each in both]
    Path(out, f"sums.{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def spread_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two ranks wrote."""
    path = tmp_path_factory.mktemp("ranks")
    torchrun("tests.recording.test_all_reduce", "worker", str(path))
    return path


@pytest.mark.parametrize("spread", SPREADS)
def test_two_ranks_give_the_numbers_of_one(spread: str, spread_out: Path) -> None:
    texts = [token_batch(1, n, seed=n) for n in LENGTHS]
    one, model = read(texts), tiny()
    hidden = [reference.hidden_states(model, {"input_ids": text}) for text in texts]
    rows = [{site: states[0] for site, states in each.items()} for each in hidden]
    reference.hold_to_twin(one, rows)
    for rank in range(RANKS):
        both = Reading.from_json((spread_out / f"{spread}.{rank}.json").read_text())
        assert json.loads(both.to_json()).keys() == json.loads(one.to_json()).keys()
        # The forwards of the ranks round otherwise where this process has another number of threads.
        reference.hold_to_run(both, one, rows)


def test_ranks_may_have_other_sums_in_another_order(spread_out: Path) -> None:
    expected = {"count": 9, "curve": [11, 22, 30], "mine": [7], "theirs": [[8, 9]]}
    half = {"count": 4.5, "curve": [5.5, 11, 15], "mine": [3.5], "theirs": [[4, 4.5]]}  # of two ranks that measured the same
    for rank in range(RANKS):
        assert json.loads((spread_out / f"sums.{rank}.json").read_text()) == [expected, half]


# -- a rank that fails ------------------------------------------------------------------------------------------------------


def meet(out: str, name: str, rank: int, seconds: float = 3) -> None:
    """Join the two ranks, at one time: the timeout of ``seconds`` is for collectives."""
    store = dist.FileStore(str(Path(out, f"{name}.store")), RANKS)  # type: ignore[attr-defined]
    for step in ("came", "met"):
        store.set(f"{step} {rank}", "")
        store.wait([f"{step} {other}" for other in range(RANKS)], timedelta(seconds=120))
        if step == "came":
            dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=timedelta(seconds=seconds))


def failing(out: str, rank: str) -> None:
    """One rank of two. Rank 1 fails in a forward and does not read; met again, it dies. Rank 0 reads each time."""
    model, failures, seconds = tiny(), [], []
    before = snapshot(model)
    for event in ("fails", "dies"):
        meet(out, event, int(rank))
        if rank == "1":
            if event == "dies":
                os._exit(1)
            with Probe(model, on_error="raise"), pytest.raises(IndexError):
                model(token_batch() + 64)  # no such tokens
            assert snapshot(model) == before
            while not Path(out, "has failed").exists():
                time.sleep(0.1)
        else:
            start = time.monotonic()
            with torch.no_grad(), Probe(model, on_error="raise") as probe:
                model(token_batch())
                with pytest.raises(GeomprobeError) as caught:
                    probe.read()
            seconds.append(time.monotonic() - start)
            failures.append(str(caught.value))
            assert isinstance(caught.value.__cause__, RuntimeError)
            assert snapshot(model) == before
            assert float(probe.state_dict()["eval/embed/token_count.1/tokens"]) == 24
            Path(out, "has failed").touch()
        dist.destroy_process_group()
    report = {"failures": failures, "seconds": seconds, "reading": probe.read().to_dict()}
    Path(out, "report.json").write_text(json.dumps(report))


def test_a_rank_that_fails_leaves_the_others_with_what_they_saw(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.recording.test_all_reduce", "failing", str(tmp_path)]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).resolve().parents[2])}
    ranks = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=environment) for rank in range(RANKS)
    ]
    try:
        stderr = ranks[0].communicate(timeout=200)[1]
    finally:
        ranks[1].kill()
        ranks[1].communicate()
    assert ranks[0].returncode == 0, stderr
    report = json.loads((tmp_path / "report.json").read_text())
    for failure in report["failures"]:
        assert failure.startswith("rank 0 could not sum over 2 ranks: another rank has ended, or does not call read() (")
        assert "state_dict() returns them" in failure
    assert max(report["seconds"]) < 60
    alone = Reading.from_dict(report["reading"])
    assert dict(alone) == pytest.approx(dict(read([token_batch()])), rel=1e-6)


# -- Trainer ----------------------------------------------------------------------------------------------------------------


class BrokenReport(ProbeCallback):  # type: ignore[misc]
    """The main process fails after a reading in training (step 2) or in evaluation (step 4)."""

    def __init__(self, kind: str | None, step: int) -> None:
        super().__init__(when=lambda step: True)
        self.broken = (kind, step)

    def _read_and_log(self, probe: Probe, mode: Any, name: str, state: Any, *more: Any) -> None:
        super()._read_and_log(probe, mode, name, state, *more)
        if (mode, state.global_step) == self.broken and dist.get_rank() == 0:
            raise OSError("disk full")


class BreakProbe(TrainerCallback):  # type: ignore[misc]
    """Break the probe of the other process in step 3."""

    def __init__(self, broken: ProbeCallback) -> None:
        self.broken = broken

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if state.global_step == 2 and dist.get_rank() == 1:
            assert self.broken.probe is not None
            self.broken.probe._recorder.when = lambda forward: bool(1 // 0)


def train(out: str, *callbacks: TrainerCallback, steps: int = 6) -> Any:
    data = [{"input_ids": text, "labels": text} for text in token_batch(32)]
    options = {"report_to": [], "save_strategy": "no", "eval_strategy": "steps", "eval_steps": 2, "disable_tqdm": True}
    options |= {"max_steps": steps, "per_device_train_batch_size": 2, "use_cpu": True, "logging_steps": 1, "ddp_timeout": 30}
    trainer = Trainer(tiny(), TrainingArguments(out, **options), train_dataset=data, eval_dataset=data, callbacks=[*callbacks])
    trainer.train()
    return trainer.model.state_dict()


def training(out: str) -> None:
    """One rank: what goes wrong with measuring on one rank ends it on all, and leaves training as it is."""
    plain = train(out)
    expected = {
        (None, 0): [(step, kind) for step in range(1, 7) for kind in ("train", "eval") if kind == "train" or step % 2 == 0],
        ("train", 2): [(1, "train"), (2, "train")],
        ("eval", 4): [(1, "train"), (2, "train"), (2, "eval"), (3, "train"), (4, "train"), (4, "eval")],
    }
    for broken, history in expected.items():
        callback = BrokenReport(*broken)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trained = train(out, callback)
        assert [(step, reading.mode) for step, reading in callback.history] == history
        assert all(torch.equal(trained[name], weight) for name, weight in plain.items())
        stopped = OSError if dist.get_rank() == 0 else GeomprobeError
        assert callback.fault is None if broken[0] is None else isinstance(callback.fault, stopped)
        told = [str(warning.message) for warning in caught if "geomprobe stopped" in str(warning.message)]
        assert len(told) == (broken[0] is not None)
        assert all(("disk full" in text) == (dist.get_rank() == 0) for text in told)
        assert dist.get_rank() == 0 or all(
            "measuring stopped on another rank: see the warning on that rank for the cause" in text for text in told
        )
    for place, name in ((Recorder, "with_sequences"), (all_reduce, "pad_to")):
        callback = ProbeCallback(when=budget(0.9))
        with pytest.MonkeyPatch.context() as patch:
            plain_one = getattr(place, name)

            def full(*arguments: Any, plain_one: Any = plain_one, callback: ProbeCallback = callback) -> Any:
                if dist.get_rank() == 1 and len(callback.history) == 2:
                    raise MemoryError
                return plain_one(*arguments)

            patch.setattr(place, name, full)
            trained = train(out, callback)
        assert [(step, reading.mode) for step, reading in callback.history] == [(1, "train"), (2, "train")]
        assert all(torch.equal(trained[name], weight) for name, weight in plain.items())
        assert isinstance(callback.fault, MemoryError if dist.get_rank() == 1 else GeomprobeError)
    callback = ProbeCallback(when=lambda step: True)
    trained = train(out, callback, BreakProbe(callback))
    assert [(step, reading.mode) for step, reading in callback.history] == [(1, "train"), (2, "train"), (2, "eval")]
    assert all(torch.equal(trained[name], weight) for name, weight in plain.items())
    assert isinstance(callback.fault, ZeroDivisionError if dist.get_rank() == 1 else GeomprobeError)
    dist.destroy_process_group()


class Slow(ProbeCallback):  # type: ignore[misc]
    """A callback whose readings take longer on the other rank."""

    def __init__(self, interval: int) -> None:
        super().__init__(when=budget(0.2, interval=interval), evaluate=False, to=lambda numbers, step: None)

    def _read_and_log(self, *arguments: Any) -> None:
        super()._read_and_log(*arguments)
        time.sleep(0.2 * dist.get_rank())


def budgets(out: str) -> None:
    """One rank: the ranks have different costs, and begin with different intervals, and measure the same steps."""
    callback = Slow(interval=1 + int(os.environ["RANK"]))
    train(out, callback, steps=24)
    measured: list[Any] = [None] * RANKS
    dist.all_gather_object(measured, [step for step, _ in callback.history])
    assert measured[0] == measured[1] == [step for step in range(1, 25) if step in measured[0]]
    assert measured[0][0] == 2
    assert len(measured[0]) < 12
    assert callback._steps.schedule.interval >= 4
    dist.destroy_process_group()


def test_ranks_under_a_budget_measure_the_same_steps(tmp_path: Path) -> None:
    torchrun("tests.recording.test_all_reduce", "budgets", str(tmp_path))


def test_a_fault_of_measuring_on_one_rank_ends_it_on_all_and_training_goes_on(tmp_path: Path) -> None:
    torchrun("tests.recording.test_all_reduce", "training", str(tmp_path))


# -- Ctrl-C -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("on_error", ["warn", "raise"])
def test_ctrl_c_in_a_layer_leaves_no_hooks(on_error: Any) -> None:
    model = tiny()
    before = snapshot(model)

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def watch() -> None:
        with Probe(model, on_error=on_error) as probe:
            probes.append(probe)
            model(token_batch())
            handle = model.model.layers[1].register_forward_pre_hook(interrupt)
            try:
                model(token_batch())
            finally:
                handle.remove()

    probes: list[Probe] = []
    with pytest.raises(KeyboardInterrupt):
        watch()
    assert snapshot(model) == before
    reading = probes[0].read()
    assert {reading[f"tokens/{site}"] for site in reading.sites} == {24}


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
