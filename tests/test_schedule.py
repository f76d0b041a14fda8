"""Schedules."""

import pickle
import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geomprobe import GeomprobeError, budget, every
from geomprobe.schedule import Budget, as_schedule


@pytest.mark.parametrize(("n", "steps"), [(1, [0, 1, 2, 3, 4, 5, 6, 7]), (3, [0, 3, 6]), (100, [0])])
def test_every_names_the_steps_n_divides(n: int, steps: list[int]) -> None:
    assert [step for step in range(8) if every(n)(step)] == steps


def test_a_schedule_can_be_pickled_as_callbacks_are_for_spawned_processes() -> None:
    assert [step for step in range(7) if pickle.loads(pickle.dumps(every(3)))(step)] == [0, 3, 6]


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", None, True, False])
def test_every_wants_a_whole_number_of_steps(wrong: Any) -> None:
    with pytest.raises(GeomprobeError, match=rf"every\({wrong!r}\): expected a whole number of steps, 1 or more"):
        every(wrong)


def test_a_number_means_every_so_many_steps_and_a_schedule_stays_itself() -> None:
    schedule = as_schedule(3)
    assert schedule is not None
    assert [step for step in range(8) if schedule(step)] == [0, 3, 6]
    chosen = {1, 4}.__contains__
    assert as_schedule(chosen) is chosen
    assert as_schedule(None) is None


@pytest.mark.parametrize("wrong", [0, -1, 1.5, "3", True, False, [50], {1, 10}])
def test_what_is_no_schedule_is_refused(wrong: Any) -> None:
    with pytest.raises(GeomprobeError, match=re.escape(f"when={wrong!r}: expected a whole number of steps, 1 or more, or a")):
        as_schedule(wrong)


# -- budgets ----------------------------------------------------------------------------------------------------------------


class Run:
    """A training in which time passes as it is told."""

    def __init__(self, when: Budget, monkeypatch: pytest.MonkeyPatch, *, waits: bool = False) -> None:
        self.now, self.spent, self.waits = 1.0, 0.0, waits
        self.budget = when.bound(lambda: self.spent, waits=waits)
        monkeypatch.setattr("geomprobe.schedule.perf_counter", lambda: self.now)

    def step(self, number: int, seconds: float, cost: float) -> bool:
        measured = self.budget(number)
        if measured:
            self.now, self.spent = self.now + cost, self.spent + cost
            if self.waits:
                self.budget.update()
        self.now += seconds
        return measured

    def steps(self, steps: range, seconds: Callable[[int], float], cost: Callable[[int], float]) -> list[float]:
        """What each step cost."""
        return [cost(number) * self.step(number, seconds(number), cost(number)) for number in steps]


@pytest.mark.parametrize("waits", [False, True])
@given(
    ratio=st.floats(0.001, 1.8),
    share=st.sampled_from([0.01, 0.02, 0.1]),
    noise=st.lists(st.floats(0.97, 1.03), min_size=7, max_size=7),
    warm=st.floats(1, 20),
)
def test_a_budget_holds_over_every_window(waits: bool, ratio: float, share: float, noise: list[float], warm: float) -> None:
    with pytest.MonkeyPatch.context() as patched:
        run = Run(budget(share), patched, waits=waits)
        costs = run.steps(
            range(1, 1500),
            lambda step: noise[step % 7] * (warm if step < 2 else 1),
            lambda step: ratio * noise[step % 5] * (warm if step < 2 else 1),
        )
    for start in range(50, len(costs) - 200):
        assert sum(costs[start : start + 200]) <= 1.2 * share * 200
    wanted = ratio / share  # steps between two measurements, if the budget were spent whole
    assert sum(cost > 0 for cost in costs[-1024:]) >= 1024 / max(wanted, 1) / 3.5 - 1


def test_a_budget_measures_powers_of_two_which_nest(monkeypatch: pytest.MonkeyPatch) -> None:
    measured = []
    for cost in (0.03, 0.3, 0.5):
        run = Run(budget(0.01), monkeypatch)
        measured.append({step for step in range(2000) if run.step(step, 1.0, cost) and step > 2})
        assert run.budget.interval & (run.budget.interval - 1) == 0
    assert measured[0] > measured[1] >= measured[2] > set()


def test_a_budget_shrinks_when_it_is_clear_only(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(budget(0.01), monkeypatch)
    run.steps(range(100), lambda step: 1.0, lambda step: 0.25)
    assert run.budget.interval == 32
    run.steps(range(100, 400), lambda step: 1.0, lambda step: 0.13)  # 16 would do, but barely
    assert run.budget.interval == 32
    run.steps(range(400, 800), lambda step: 1.0, lambda step: 0.11)
    assert run.budget.interval == 16
    run.steps(range(800, 1000), lambda step: 1.0, lambda step: 1.0)
    assert run.budget.interval == 128


def test_pauses_between_steps_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(budget(0.01), monkeypatch)
    run.steps(range(500), lambda step: 100.0 if step % 10 == 0 else 1.0, lambda step: 0.25)
    assert run.budget.interval == 32


def test_a_device_that_lags_behind_does_not_end_the_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host hands out the first steps in no time, so that more time of the device is told than has passed since."""
    run = Run(budget(0.1), monkeypatch)
    for step in range(5):
        run.now, run.spent = run.now + 0.01, run.spent + 0.5
        run.budget(step)
    assert run.budget.interval == 1
    run.steps(range(5, 500), lambda step: 1.0, lambda step: 0.5)
    assert run.budget.interval == 8


def test_a_budget_that_waits_changes_in_updates_only_and_to_what_all_agree_on(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(budget(0.01), monkeypatch, waits=True)
    run.budget.update = lambda agreed=None: None  # type: ignore[method-assign]
    run.steps(range(50), lambda step: 1.0, lambda step: 0.25)
    assert run.budget.interval == 1
    del run.budget.update
    run.budget(50)
    run.budget.update(lambda needed: max(needed, 100.0))  # another process needs more
    assert run.budget.interval == 128


def test_a_budget_goes_on_with_an_interval(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(budget(0.01, interval=16), monkeypatch)
    assert [step for step in range(5, 40) if run.step(step, 1.0, 0.1)] == [16, 32]


@pytest.mark.parametrize("share", [0, 1, -0.1, 5, "1%", True, None])
def test_a_budget_wants_a_share(share: Any) -> None:
    with pytest.raises(GeomprobeError, match=re.escape(f"budget({share!r}): expected a share of the time of the run")):
        budget(share)


@pytest.mark.parametrize("interval", [0, 3, -2, 1.0, "4", True])
def test_a_budget_wants_a_power_of_two(interval: Any) -> None:
    with pytest.raises(GeomprobeError, match="expected a power of two, such as 1 or 64"):
        budget(0.01, interval=interval)


def test_a_budget_alone_has_no_clock() -> None:
    with pytest.raises(GeomprobeError, match=re.escape("pass it as when=budget(…)")):
        budget(0.01)(0)
    assert isinstance(as_schedule(budget(0.02)), Budget)
