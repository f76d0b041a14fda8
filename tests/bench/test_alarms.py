"""The benchmark of alarms: its trainings, its faults, and its counts."""

from dataclasses import asdict, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from geomprobe.bench import alarms, induced
from geomprobe.bench.alarms import bench_alarms, calibrate, plans, rings, score, table
from geomprobe.bench.induced import EVENTS, FAULTS, GRADUAL, TRIED, Plan, Row, train
from geomprobe.capture.decoder import find_decoder
from geomprobe.monitoring.rules import DEFAULT_RULES, Rule
from geomprobe.reading import Reading

QUIET = Plan("neox", 0)
ONSET = QUIET.onset


def rows(held_out: list[float], *, entropy: list[float] | None = None, loss: list[float] | None = None) -> list[Row]:
    """Rows from step 42 on, of which only the numbers given differ from a quiet training."""
    read = []
    for i, value in enumerate(held_out):
        reading = Reading("train", ["layer_00"], {"entropy/layer_00": 1.0 if entropy is None else entropy[i]})
        numbers = {"loss": 2.0 if loss is None else loss[i], "gradient_norm": 1.0}
        read += [Row(42 + 2 * i, "train", numbers, reading), Row(42 + 2 * i, "fixed", {"loss": value}, reading)]
    return read


def after(step: int, before: float, then: float, many: int = 60) -> list[float]:
    return [before if 42 + 2 * i < step else then for i in range(many)]


def test_the_numbers_of_trainings_are_those_that_the_issue_of_a_claim_needs() -> None:
    chosen = plans(0, 20)
    assert len(set(chosen)) == len(chosen)
    assert sum(plan.what == "quiet" for plan in chosen) == 40
    assert sum(plan.what in EVENTS for plan in chosen) == 60
    assert {Plan(plan.architecture, plan.seed) for plan in chosen} <= set(chosen)  # each has its quiet pair
    assert not {plan.seed for plan in chosen} & {plan.seed for plan in plans(alarms.REPORTED, 20)}


def test_damage_and_leads_are_counted_by_hand() -> None:
    gradual = Plan("neox", 0, next(iter(GRADUAL)))
    runs = {
        QUIET: rows([2.0] * 60),
        # The entropy halves at step 110 and rings at 112, the loss rises at 130 and rings at 132, the damage is at 140.
        gradual: rows(after(140, 2.0, 2.2), entropy=after(110, 1.0, 0.5), loss=after(130, 2.0, 3.0)),
        Plan("neox", 0, "stuck batch"): rows(after(140, 2.0, 2.05), entropy=after(110, 1.0, 0.5)),
        Plan("neox", 0, "new optimizer"): rows([2.0] * 60, loss=after(120, 2.0, 3.0)),
    }
    found = score(runs)
    assert (found["damaged"], found["caught"], found["caught_by_geometry"]) == (1, 1, 1)
    assert found["gradual"] == {
        "damaged": 1,
        "caught": 1,
        "caught_before_damage": 1,
        "caught_before_first_touch": 1,
        "median_lead": 28.0,
    }
    assert found["rivals"]["loss and gradient norm"]["gradual"]["median_lead"] == 8.0
    assert found["rivals"]["kurtosis"]["caught"] == 0
    assert found["by_fault"][gradual.what]["lead_before_loss_and_gradient_norm"] == 20.0
    assert found["harmless"] == {"runs": 1, "alarms": 1}
    assert found["quiet"] == {"runs": 1, "false_alarms": 0}
    assert found["events"] == {"runs": 1, "false_alarms": 1}
    assert [(alarm["step"], alarm["rule"]) for alarm in found["false_alarms"]] == [(122, "loss_up")]
    assert max(map(len, table(found).splitlines())) <= 80


@pytest.mark.parametrize("end", [2.0999, float("nan"), 2.1001])
def test_a_training_is_damaged_by_what_it_ends_with(end: float) -> None:
    plan = Plan("neox", 0, "stuck batch")
    held_out = after(100, 2.0, 3.0)
    runs = {QUIET: rows([2.0] * 60), plan: rows([*held_out[:-1], end])}
    assert score(runs)["damaged"] == (end != 2.0999)


def test_damage_is_what_stays() -> None:
    plan = Plan("neox", 0, next(iter(GRADUAL)))
    held_out = after(140, 2.0, 3.0)
    held_out[31] = 3.0  # step 104, from which it recovers
    runs = {QUIET: rows([2.0] * 60), plan: rows(held_out, entropy=after(120, 1.0, 0.5))}
    found = score(runs)["gradual_by_geometry"]
    assert found == {"damaged": 1, "caught": 1, "caught_before_damage": 1, "caught_before_first_touch": 0, "median_lead": 18.0}


def test_alarms_before_the_onset_do_not_catch_the_fault() -> None:
    plan = Plan("neox", 0, "stuck batch")
    early = [1.0 if 42 + 2 * i < 64 or 42 + 2 * i > 70 else 0.5 for i in range(60)]
    assert rings(rows([2.0] * 60, entropy=early), DEFAULT_RULES)
    assert ONSET > 72
    runs = {QUIET: rows([2.0] * 60), plan: rows(after(140, 2.0, 3.0), entropy=early)}
    assert score(runs)["caught_by_geometry"] == 0


def test_calibration_returns_the_largest_limit_that_rings() -> None:
    values = [1.0 + 0.01 * (i % 3) + (0.3 if 30 <= i < 32 else 0.0) for i in range(60)]
    rule = Rule(signal="entropy", direction="up", ratio=1.2)
    read = rows([2.0] * 60, entropy=values)
    limit = max(calibrate({QUIET: read}, [rule])["entropy_up (train)"].values())
    assert rings(read, [replace(rule, ratio=limit)])
    assert not rings(read, [replace(rule, ratio=limit * 1.0001)])


def begun(plan: Plan) -> Any:
    return induced._begin(plan)[0]


@pytest.mark.parametrize("architecture", induced.ARCHITECTURES)
def test_queries_and_keys_grow_and_nothing_else(architecture: str) -> None:
    training = begun(Plan(architecture, 0))
    before = {name: weight.detach().clone() for name, weight in training.model.named_parameters()}
    FAULTS["queries and keys +6% a step"](training, 0)
    changed = {name for name, weight in training.model.named_parameters() if not torch.equal(weight, before[name])}
    assert len(changed) == (4 if architecture == "neox" else 8)
    ids = torch.arange(64)[None]
    for layer in find_decoder(training.model).layers:
        seen: dict[str, Tensor] = {}
        attention: Any = layer.attention if architecture == "neox" else layer.self_attn
        parts = ["query_key_value"] if architecture == "neox" else ["q_proj", "k_proj", "v_proj"]
        rows = torch.randn(1, 3, 64)
        after = torch.cat([getattr(attention, part)(rows) for part in parts], -1)
        for part in parts:
            module = getattr(attention, part)
            name = next(name for name, weight in training.model.named_parameters() if weight is module.weight)
            seen[part] = torch.nn.functional.linear(rows, before[name], module.bias)
        old = torch.cat(list(seen.values()), -1)
        bias = torch.cat([b if (b := getattr(attention, p).bias) is not None else torch.zeros(64) for p in parts])
        factor = ((after - bias) / (old - bias)).mean((0, 1))
        if architecture == "neox":  # per head: query, key, value
            factor = factor.view(4, 3, 16).transpose(0, 1).flatten()
        torch.testing.assert_close(factor, torch.tensor([1.06] * 128 + [1.0] * 64), rtol=1e-3, atol=1e-3)
    assert training.model(input_ids=ids).logits.isfinite().all()


def test_texts_and_labels_change_as_they_say() -> None:
    ids = begun(QUIET).batch()
    for what in FAULTS | TRIED | EVENTS:
        training = begun(Plan("neox", 0, what))
        (FAULTS | TRIED | EVENTS)[what](training, 0)
        batch, labels = (batch := training.batch()), training.labels(batch)
        if what == "constant texts":
            assert len(batch.unique()) == 1
        elif what == "shuffled texts":
            assert torch.equal(batch.sort().values, ids.sort().values)
            assert not (batch == ids).all(1).any()
        elif what == "a quarter of texts shuffled":
            assert (batch == ids).all(1).sum() == 12
        elif what == "stuck batch":
            assert torch.equal(batch, training.batch())
        elif what == "twice as many texts":
            assert torch.equal(batch[:16], ids)
            assert len(batch) == 32
        elif what == "texts half as long":
            assert torch.equal(batch[:16], ids[:, :32])
            assert len(batch) == 32
        elif what == "other texts":
            assert batch.shape == ids.shape
            assert not torch.equal(batch, ids)
        else:
            assert torch.equal(batch, ids)
        if what == "labels one token late":
            assert torch.equal(labels[:, :-1], batch[:, 1:])
            assert (labels[:, -1] == -100).all()
        else:
            assert torch.equal(labels, batch)


def test_hidden_states_are_clipped_to_a_range_that_shrinks() -> None:
    training = begun(QUIET)
    ids = training.batch()
    for age in range(3):
        FAULTS["range −6% a step"](training, age)
        hidden = training.model(input_ids=ids, output_hidden_states=True).hidden_states
        assert all(layer.abs().max() <= 2 * 0.94**age for layer in hidden[1:-1])
        assert hidden[0].abs().max() < 1  # the embedding is no layer
        assert len(training.handles) == 4


def test_learning_rates_change_as_they_say() -> None:
    for what, rate in (("learning rate ×30", 30.0), ("learning rate ÷10", 0.1), ("learning rate +6% a step", 1.06**2)):
        training = begun(QUIET)
        (FAULTS | EVENTS)[what](training, 2)
        training.step(100, training.batch())
        assert training.optimizer.param_groups[0]["lr"] == pytest.approx(3e-3 * rate)


@pytest.mark.slow
def test_steps_before_the_onset_are_those_of_the_quiet_pair(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(induced, "STEPS", ONSET + 2)
    # As dicts, because NaN, which some sites have, does not equal itself.
    quiet, fault = (
        [asdict(row) | {"reading": row.reading.to_dict()} for row in train(plan)]
        for plan in (QUIET, replace(QUIET, what="shuffled texts"))
    )
    before = [i for i, row in enumerate(quiet) if row["step"] < ONSET]
    assert before
    assert [quiet[i] for i in before] == [fault[i] for i in before]
    assert quiet[-1] != fault[-1]


@pytest.mark.slow
def test_the_quick_benchmark_runs_and_resumes(tmp_path: Any) -> None:
    found = bench_alarms(quick=True, keep=tmp_path)
    assert found["damaged"] == found["caught"] == 2
    assert found["gradual"]["caught_before_damage"] == 1
    assert found["quiet"] == {"runs": 1, "false_alarms": 0}
    assert found["events"] == {"runs": 1, "false_alarms": 0}
    times = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    assert bench_alarms(quick=True, keep=tmp_path) == found
    assert times == {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
