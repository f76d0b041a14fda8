"""Figure 2 and section 3 as experiments: numbers that must come out, and formulas that must not pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geomprobe.paper import fig2_skill_graph as graph
from geomprobe.paper import sec3_lemmas as lemmas
from geomprobe.paper import sec3_scaling_laws as laws
from geomprobe.paper.experiment import Outcome, Request, plain
from geomprobe.paper.fig2_skill_graph import FIG2
from geomprobe.paper.run import run_experiment
from geomprobe.paper.sec3_scaling_laws import THEORY
from geomprobe.theory import information, prompting
from geomprobe.theory.skills import SkillModel


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def fig2(out: Path) -> Outcome:
    return run_experiment(FIG2, Request(out=out))


@pytest.fixture(scope="module")
def theory(out: Path) -> Outcome:
    return run_experiment(THEORY, Request(out=out))


def verdict(outcome: Outcome, start: str) -> bool | None:
    return next(v.holds for v in outcome.verdicts if v.claim.startswith(start))


# -- Figure 2 ---------------------------------------------------------------------------------------------------------------


def test_degrees_fall_as_the_definition_says(fig2: Outcome) -> None:
    assert [v.holds for v in fig2.verdicts] == [True]
    for case in fig2.numbers["large"]:
        assert case["fitted"] == pytest.approx(case["alpha"], abs=0.02)
        assert sum(case["degrees"]) == pytest.approx(sum(case["expected"]))
        assert np.ptp(case["interval"]) < 0.03


def test_the_drawn_graph_has_an_edge_for_every_text(fig2: Outcome) -> None:
    edges = fig2.numbers["edges"]
    assert {text for text, _ in edges} == set(range(16))
    assert len(edges) == len({tuple(edge) for edge in edges}) <= 32


def test_graphs_of_a_steeper_law_do_not_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def steeper(model: SkillModel, *args: Any, **kwargs: Any) -> Any:
        return sample(replace(model, alpha=model.alpha + 0.05), *args, **kwargs)

    sample = SkillModel.sample_graph
    monkeypatch.setattr(SkillModel, "sample_graph", steeper)
    assert not FIG2.judge(plain(FIG2.measure(Request(out=tmp_path))))[0].holds


def test_means_over_ranks_keep_the_skills_nobody_uses() -> None:
    ranks, uses = graph._binned(np.array([4, 2, 0, 1, 0, 0, 0, 0, 1, 0]))
    assert ranks[:2] == pytest.approx([1, 2])
    assert uses[:2] == pytest.approx([4, 2])
    assert np.isnan(uses[2])  # nobody uses skill 3: no place among logarithms
    assert uses[-1] == pytest.approx(1 / 3)  # of skills 8 to 10


# -- section 3 --------------------------------------------------------------------------------------------------------------


def test_fitted_exponents_are_within_2_percent(theory: Outcome) -> None:
    exponents: dict[str, Callable[[float], float]] = {
        "skills": lambda a: -a,
        "parameters": lambda a: -a,
        "texts": lambda a: -a / (a + 1),
        "flops": lambda a: -a / (a + 2),
        "data": lambda g: 1 - 2 * g,
    }
    assert {case["law"] for case in theory.numbers["laws"]} == set(exponents)
    for case in theory.numbers["laws"]:
        assert case["fitted"] == pytest.approx(exponents[case["law"]](case["of"]), rel=0.02)
        assert case["best"] == "power"
        assert case["exact"][-1] == pytest.approx(case["limit"][-1], rel=0.05)  # (n/M)^α of the least α


def test_every_statement_holds_on_every_draw(theory: Outcome) -> None:
    assert all(v.holds for v in theory.verdicts)
    found = theory.numbers["lemmas"]
    assert {lemma["group"] for lemma in found} == set(lemmas.GROUPS)
    assert all(lemma["draws"] == 1000 for lemma in found)
    assert all(lemma["worst"] == pytest.approx(0, abs=1e-12) for lemma in found if lemma["needs"] == "= 0")
    assert all(lemma["worst"] > 0 for lemma in found if lemma["needs"] == "> 0")


def test_tables_fit_a_terminal(theory: Outcome, fig2: Outcome) -> None:
    assert max(map(len, f"{theory}\n{fig2}".splitlines())) <= 80


def _half(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: 0.5 * function(*args, **kwargs)


WRONG: list[tuple[Any, str, Any, str]] = [
    (information, "conditional_entropy", _half(information.conditional_entropy), "Defs 2.1"),
    (information, "kl_divergence", _half(information.kl_divergence), "Defs 2.1"),
    (information, "huffman_code", lambda p: [f"{i:04b}" for i in range(len(p))], "Defs 2.1"),
    (SkillModel, "conditional_entropy", _half(SkillModel.conditional_entropy), "Defs 3.4"),
    (SkillModel, "degrees", lambda m: np.full(m.M, 1 / m.M), "Defs 3.4"),
    (SkillModel, "skill_entropy", property(lambda m: np.log(m.M)), "Defs 3.4"),
    (prompting, "prompted_entropy", lambda p, prompt: information.entropy(p.sum(1)), "Def. 3.9"),
    (prompting, "is_perfect_prompt", lambda p, prompt, **options: True, "Def. 3.9"),
    (prompting, "context_change", _half(prompting.context_change), "Defs 3.12"),
    (prompting, "irrelevant_contexts", lambda p, **options: np.ones(p.shape[1:], bool), "Defs 3.12"),
]


@pytest.mark.parametrize(("where", "name", "wrong", "group"), WRONG, ids=[f"{name}" for _, name, _, _ in WRONG])
def test_a_wrong_formula_does_not_pass(
    where: Any, name: str, wrong: Any, group: str, theory: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lemmas, "_DRAWS", 100)
    monkeypatch.setattr(where, name, wrong)
    draw = np.random.default_rng(0)
    found = [check.run(draw) for check in lemmas._CHECKS if lemmas.GROUPS[check.group].startswith(group)]
    assert len(found) >= 4
    assert not all(lemmas.holds(lemma) for lemma in plain(found))


def test_a_law_with_a_wrong_exponent_does_not_pass(theory: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SkillModel, "learned_from_flops", SkillModel.learned_from_texts)
    cases = [case for case in theory.numbers["laws"] if case["law"] != "flops"]
    cases += [plain(laws._skill_law("flops", SkillModel(alpha, 10**12, 1.0, 5.0))) for alpha in (0.5, 1.0)]
    verdicts = THEORY.judge({**theory.numbers, "laws": cases})
    assert {v.claim.split(":")[0] for v in verdicts if not v.holds} == {"Theorem 3.8"}
    assert "33" in next(v.evidence for v in verdicts if not v.holds)  # percent off at least


def test_what_is_not_a_number_does_not_pass() -> None:
    assert not lemmas.holds({"needs": "= 0", "worst": None})


@pytest.mark.parametrize("experiment", [FIG2, THEORY], ids=lambda experiment: str(experiment.name))
def test_kept_numbers_draw_the_same_files(experiment: Any, out: Path, fig2: Outcome, theory: Outcome) -> None:
    first = {form: (out / f"{experiment.name}.{form}").read_bytes() for form in ("json", "png", "html")}
    again = run_experiment(experiment, Request(out=out))
    assert again.kept
    assert {form: (out / f"{experiment.name}.{form}").read_bytes() for form in first} == first
