"""``geomprobe bench alarms``: how often and how early alarms ring in small trainings with a fault, and how often they ring
without one."""

import json
import math
import os
import statistics
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from geomprobe.bench.induced import ARCHITECTURES, EVENTS, FAULTS, GRADUAL, TRIED, Plan, Row, train
from geomprobe.errors import GeomprobeError
from geomprobe.files import Format, check_shape, read_json, write_whole
from geomprobe.monitoring.alarm import Alarm
from geomprobe.monitoring.monitor import Monitor
from geomprobe.monitoring.rules import DEFAULT_RULES, Rule
from geomprobe.reading import Reading

__all__ = [
    "REPORTED",
    "bench_alarms",
    "bench_calibration",
    "calibrate",
    "calibration_table",
    "plans",
    "rings",
    "runs_of",
    "score",
    "table",
]

REPORTED = 2000
"""The first seed of the trainings that are reported. Limits were set from trainings with smaller seeds."""

FORMAT = 1
"""Number of the format of the files that are kept. It is raised when the trainings change, so that they are run again."""

_ROW = {"step": int, "mode": str, "numbers": {str: float | None}, "reading": {str: object}}
_SHAPE = {"format": Format(FORMAT), "plan": {"architecture": str, "seed": int, "what": str}, "rows": [_ROW]}

DAMAGE = 0.1
"""A training is damaged if the loss of the fixed texts ends at least this many nats above that of the quiet training with the
same seed."""

_LOSS = {"loss", "gradient_norm"}
_DATA = {"repeated_batch", "token_entropy"}
_KURTOSIS = Rule(signal="kurtosis", direction="up", ratio=1.27, over="max")
_GROUPS: dict[str, tuple[Rule, ...]] = {
    "all": DEFAULT_RULES,
    "geometry": tuple(rule for rule in DEFAULT_RULES if rule.signal not in _LOSS | _DATA),
    "loss and gradient norm": tuple(rule for rule in DEFAULT_RULES if rule.signal in _LOSS),
    "loss": tuple(rule for rule in DEFAULT_RULES if rule.signal == "loss"),
    "gradient norm": tuple(rule for rule in DEFAULT_RULES if rule.signal == "gradient_norm"),
    "kurtosis": (_KURTOSIS,),
}
"""The groups of rules that are compared: all default rules, those that are not on the loss, the gradient norm or the batches,
and their rivals."""


def bench_alarms(
    *, seeds: int = 20, quick: bool = False, keep: Path | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Run trainings with and without faults, and count alarms.

    Args:
        seeds: number of seeds.
        quick: whether to run only a few of them, to try the benchmark.
        keep: as for :func:`runs_of`.
        workers: as for :func:`runs_of`.
    """
    return score(runs_of(_some(plans(REPORTED, seeds), quick), keep=keep, workers=workers))


def bench_calibration(
    *, seeds: int = 20, quick: bool = False, keep: Path | None = None, workers: int | None = None
) -> dict[str, Any]:
    """Run healthy trainings with other seeds than :func:`bench_alarms`, and return for each rule and mode its limit and the
    largest changes that lasted in quiet trainings and in those with an event."""
    chosen = [plan for plan in plans(0, seeds) if plan.what not in FAULTS | TRIED]
    found = calibrate(runs_of(_some(chosen, quick), keep=keep, workers=workers), [*DEFAULT_RULES, _KURTOSIS])
    limits = {rule.name: rule.limit for rule in (*DEFAULT_RULES, _KURTOSIS)}
    return {
        name: {
            "limit": limits[name.split(" ")[0]],
            "quiet": max((change for plan, change in of_rule.items() if plan.what == "quiet"), default=None),
            "events": max((change for plan, change in of_rule.items() if plan.what != "quiet"), default=None),
        }
        for name, of_rule in found.items()
    }


def calibration_table(results: Mapping[str, Any]) -> str:
    """Return the results of :func:`bench_calibration` as a table for the terminal."""
    form = "{:<50}{:>8}{:>10}{:>10}"
    rows = [
        form.format(name, f"{row['limit']:.3g}", *("–" if row[k] is None else f"{row[k]:.3g}" for k in ("quiet", "events")))
        for name, row in results.items()
    ]
    return "\n".join([form.format("largest change that lasted for two readings", "limit", "quiet", "events"), *rows])


def _some(chosen: Sequence[Plan], quick: bool) -> Sequence[Plan]:
    """All trainings, or four of them."""
    few = ("quiet", "queries and keys +6% a step", "learning rate ×30", "learning rate ÷10")
    quickest = [plan for plan in chosen if plan.seed == chosen[0].seed and plan.what in few and plan.architecture == "neox"]
    return quickest if quick else chosen


def plans(first: int, seeds: int) -> list[Plan]:
    """Return the trainings of ``seeds`` seeds: quiet ones for all seeds, those with an event for three tenths of the seeds, and
    those with a fault for three twentieths."""

    def some(share: float) -> range:
        return range(first, first + math.ceil(share * seeds))

    return [
        Plan(architecture, seed, what)
        for share, kinds in ((1.0, ["quiet"]), (0.3, list(EVENTS)), (0.15, [*FAULTS, *TRIED]))
        for what in kinds
        for seed in some(share)
        for architecture in ARCHITECTURES
    ]


@dataclass(frozen=True)
class _Fault:
    """What became of one training with a fault.

    Attributes:
        plan: the training.
        damage: the step from which on the loss of the fixed texts stays too high to the end; ``None`` if it does not end so.
        touched: the first step from the onset on at which it is too high, even if it recovers.
        first: the step of the first alarm of each group from the onset on, or ``None``.
    """

    plan: Plan
    damage: int | None
    touched: int | None
    first: dict[str, int | None]

    def caught(self, group: str) -> bool:
        return self.first[group] is not None

    def lead(self, group: str, until: str | None = None) -> float | None:
        """Steps from the first alarm of a group to the damage, or to the first alarm of another group."""
        end, start = (self.damage if until is None else self.first[until]), self.first[group]
        return None if end is None or start is None else float(end - start)


def rings(rows: Iterable[Row], rules: Sequence[Rule]) -> list[tuple[int, str, str]]:
    """Return the step, rule and mode of each alarm."""
    monitor = Monitor(rules)
    return [(alarm.step, alarm.name, alarm.mode) for row in rows for alarm in update(monitor, row)]


def update(monitor: Monitor, row: Row) -> list[Alarm]:
    """Check the numbers of a step against the rules, and return the alarms that ring."""
    return monitor.update(row.step, row.reading, mode=row.mode, numbers=row.numbers)


def score(runs: Mapping[Plan, list[Row]], groups: Mapping[str, Sequence[Rule]] = _GROUPS) -> dict[str, Any]:
    """Return how many faults were caught, how early, and how many alarms were false."""
    every = [_fault(plan, runs, groups) for plan in runs if plan.what in FAULTS | TRIED]
    faults = [fault for fault in every if fault.plan.what in FAULTS]
    damaged = [fault for fault in faults if fault.damage is not None]
    gradual = [fault for fault in damaged if fault.plan.what in GRADUAL]
    healthy = {
        kind: {plan: rings(rows, groups["all"]) for plan, rows in runs.items() if plan.what in whats}
        for kind, whats in (("quiet", {"quiet"}), ("events", EVENTS))
    }
    return {
        "damaged": len(damaged),
        "caught": sum(fault.caught("all") for fault in damaged),
        "caught_by_geometry": sum(fault.caught("geometry") for fault in damaged),
        "gradual": _early(gradual, "all"),
        "gradual_by_geometry": _early(gradual, "geometry"),
        "harmless": {
            "runs": len(faults) - len(damaged),
            "alarms": sum(fault.caught("all") for fault in faults if fault.damage is None),
        },
        **{kind: {"runs": len(found), "false_alarms": sum(map(bool, found.values()))} for kind, found in healthy.items()},
        "rivals": {
            name: {"caught": sum(fault.caught(name) for fault in damaged), "gradual": _early(gradual, name)}
            for name in groups
            if name not in ("all", "geometry")
        },
        "by_fault": {what: _row([fault for fault in every if fault.plan.what == what]) for what in FAULTS},
        "tried": {what: _row([fault for fault in every if fault.plan.what == what]) for what in TRIED},
        "false_alarms": [
            {**asdict(plan), "step": step, "rule": name, "mode": mode}
            for found in healthy.values()
            for plan, alarms in found.items()
            for step, name, mode in alarms
        ],
    }


def _fault(plan: Plan, runs: Mapping[Plan, list[Row]], groups: Mapping[str, Sequence[Rule]]) -> _Fault:
    pair = {row.step: row.numbers["loss"] for row in runs[Plan(plan.architecture, plan.seed)] if row.mode == "fixed"}
    above = [(row.step, row.numbers["loss"] - pair[row.step]) for row in runs[plan] if row.mode == "fixed"]
    harmed = [step for step, excess in above if step >= plan.onset and not excess < DAMAGE]  # NaN is damage
    healed = max((step for step, excess in above if excess < DAMAGE), default=0)
    lasting = [step for step in harmed if step > healed]
    first = {
        name: min((step for step, *_ in rings(runs[plan], rules) if step >= plan.onset), default=None)
        for name, rules in groups.items()
    }
    return _Fault(plan, min(lasting, default=None), min(harmed, default=None), first)


def table(results: Mapping[str, Any]) -> str:
    """Return the results as a table for the terminal, at most 80 columns wide."""
    head = f"{'caught by':>56}{'median lead before':>24}"
    titles = ("fault", "runs", "damaged", "all", "geometry", "damage", "loss*", "kurtosis")
    form = "{:<29}{:>4}{:>8}{:>6}{:>9}{:>8}{:>7}{:>9}"
    lines = [head, form.format(*titles)]
    for what, row in (results["by_fault"] | results["tried"]).items():
        if what in TRIED and what == next(iter(TRIED)):
            lines.append("counted apart, because the rules were not made for them:")
        leads = (row[f"lead_before_{name}"] for name in ("damage", "loss_and_gradient_norm", "kurtosis"))
        cells = ("–" if lead is None else f"{lead:+.0f}" for lead in leads)
        lines.append(form.format(what, row["runs"], row["damaged"], row["caught"], row["caught_by_geometry"], *cells))
    lines.append("* the first of the rules on loss and on gradient norm")
    lines.append("")
    damaged = results["damaged"]
    lines.append(f"{'damaged trainings':<33}{'caught':>8}{'gradual: caught before damage':>32}")
    groups = {"all": results["gradual"], "geometry": results["gradual_by_geometry"]}
    caught = {"all": results["caught"], "geometry": results["caught_by_geometry"]}
    groups |= {name: rival["gradual"] for name, rival in results["rivals"].items()}
    caught |= {name: rival["caught"] for name, rival in results["rivals"].items()}
    for name, early in groups.items():
        lead = "" if early["median_lead"] is None else f", lead {early['median_lead']:+.0f}"
        before = f"{early['caught_before_damage']} of {early['damaged']}{lead}"
        lines.append(f"{name + ' rules':<33}{caught[name]:>3} of {damaged}{before:>27}")
    lines.append("")
    for kind, title in (("quiet", "quiet trainings"), ("events", "trainings with a healthy event")):
        lines.append(f"{title:<33}{results[kind]['false_alarms']:>3} of {results[kind]['runs']} rang")
    harmless = results["harmless"]
    lines.append(f"{'trainings with a harmless fault':<33}{harmless['alarms']:>3} of {harmless['runs']} rang")
    return "\n".join(lines)


def _early(faults: Sequence[_Fault], group: str) -> dict[str, Any]:
    """How many faults were caught, how many of them before the damage, and the median lead of those that were caught."""
    leads = [lead for fault in faults if (lead := fault.lead(group)) is not None]
    return {
        "damaged": len(faults),
        "caught": len(leads),
        "caught_before_damage": sum(lead > 0 for lead in leads),
        "caught_before_first_touch": sum(
            rang < touched for f in faults if (rang := f.first[group]) is not None and (touched := f.touched) is not None
        ),
        "median_lead": _median(leads),
    }


def _row(faults: Sequence[_Fault]) -> dict[str, Any]:
    """The row of one kind of fault, from all its trainings."""
    damaged = [fault for fault in faults if fault.damage is not None]
    return {
        "runs": len(faults),
        "damaged": len(damaged),
        "caught": sum(fault.caught("all") for fault in damaged),
        "caught_by_geometry": sum(fault.caught("geometry") for fault in damaged),
        "harmless_alarms": sum(fault.caught("all") for fault in faults if fault.damage is None),
        "lead_before_damage": _median(fault.lead("geometry") for fault in damaged),
        "lead_before_loss_and_gradient_norm": _median(fault.lead("geometry", "loss and gradient norm") for fault in damaged),
        "lead_before_kurtosis": _median(fault.lead("geometry", "kurtosis") for fault in damaged),
    }


def _median(values: Iterable[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.median(there) if there else None


def calibrate(runs: Mapping[Plan, list[Row]], rules: Sequence[Rule] = DEFAULT_RULES) -> dict[str, dict[Plan, float]]:
    """Return for each rule and mode the largest limit at which each of these trainings would have rung, by training: the
    largest change that lasted for as many readings as the rule has hits. A rule with a limit above all of these is silent."""
    found: dict[str, dict[Plan, float]] = {}
    for plan, rows in runs.items():
        monitor = Monitor(rules)
        latest: dict[tuple[str, str], list[float]] = {}
        for row in rows:
            update(monitor, row)
            for rule in rules:
                changes = latest.setdefault((rule.name, row.mode), [])
                changes.append(monitor.changes.get(rule.name, -math.inf))
                if len(changes) >= rule.hits and (lasting := min(changes[-rule.hits :])) > -math.inf:
                    of_rule = found.setdefault(f"{rule.name} ({row.mode})", {})
                    of_rule[plan] = max(lasting, of_rule.get(plan, -math.inf))
    return found


def runs_of(plans: Sequence[Plan], *, keep: Path | None = None, workers: int | None = None) -> dict[Plan, list[Row]]:
    """Run trainings in parallel processes of one thread each, and return what was read.

    Args:
        plans: the trainings.
        keep: a folder for what was read, with one file for each training. Trainings that have a file are not run again.
        workers: number of processes. Default: the number of processors.
    """
    from tqdm import tqdm

    found = {plan: _load(file, plan) for plan in plans if keep is not None and (file := keep / _name(plan)).exists()}
    missing = [plan for plan in plans if plan not in found]
    pool = ProcessPoolExecutor(
        min(workers or len(os.sched_getaffinity(0)), max(1, len(missing))), get_context("spawn"), _one_thread
    )
    with pool, tqdm(total=len(plans), initial=len(found), unit="training", disable=None) as bar:
        waits = {pool.submit(train, plan): plan for plan in missing}
        for done in as_completed(waits):
            plan = waits[done]
            found[plan] = done.result()
            if keep is not None:
                kept = {"format": FORMAT, "plan": asdict(plan), "rows": list(map(_plain, found[plan]))}
                write_whole(keep / _name(plan), json.dumps(kept, allow_nan=False))
            bar.update()
    return {plan: found[plan] for plan in plans}


def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


def _name(plan: Plan) -> str:
    words = "-".join("".join(c if c.isalnum() else " " for c in plan.what).split())
    return f"{plan.architecture}-{plan.seed}-{words}.json"


def _plain(row: Row) -> dict[str, object]:
    numbers = {name: value if math.isfinite(value) else None for name, value in row.numbers.items()}
    return {"step": row.step, "mode": row.mode, "numbers": numbers, "reading": row.reading.to_dict()}


def _load(path: Path, plan: Plan) -> list[Row]:
    """What was read in a training that was run before.

    Raises:
        GeomprobeError: if the file is damaged, or belongs to another training.
    """
    advice = "remove it, and the training is run again"
    kept = read_json(path, advice=advice)
    check_shape(kept, _SHAPE, str(path), advice=advice)
    if kept["plan"] != asdict(plan):
        raise GeomprobeError(f"{path} belongs to another training than {plan}: {advice}")
    return [
        Row(
            row["step"],
            row["mode"],
            {name: math.nan if value is None else value for name, value in row["numbers"].items()},
            Reading.from_dict(row["reading"], what=str(path), advice=advice),
        )
        for row in kept["rows"]
    ]
