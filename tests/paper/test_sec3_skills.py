"""Figure 2 and section 3 as experiments: numbers that must come out, and formulas that must not pass."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.special import entr

from geomprobe.paper import fig2_skill_graph as graph
from geomprobe.paper import sec3_errata as errata
from geomprobe.paper import sec3_lemmas as lemmas
from geomprobe.paper import sec3_scaling_laws as laws
from geomprobe.paper.experiment import Outcome, Request
from geomprobe.paper.fig2_skill_graph import FIG2, Figure2
from geomprobe.paper.run import run_experiment
from geomprobe.paper.sec3_scaling_laws import THEORY, Theory
from geomprobe.theory import dataset_size, information, prompting
from geomprobe.theory.skills import SkillModel

pytestmark = pytest.mark.slow  # it draws figures


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("paper")


@pytest.fixture(scope="module")
def fig2(out: Path) -> Outcome[Figure2]:
    return run_experiment(FIG2, Request(out=out))


@pytest.fixture(scope="module")
def theory(out: Path) -> Outcome[Theory]:
    return run_experiment(THEORY, Request(out=out))


def verdict(outcome: Outcome[Any], start: str) -> bool | None:
    return next(v.holds for v in outcome.verdicts if v.claim.startswith(start))


# -- Figure 2 ---------------------------------------------------------------------------------------------------------------


def test_degrees_fall_as_the_definition_says(fig2: Outcome[Figure2]) -> None:
    assert [v.holds for v in fig2.verdicts] == [True]
    for case in fig2.numbers.large:
        assert case.fitted == pytest.approx(case.alpha, abs=0.02)
        assert sum(case.degrees) == pytest.approx(sum(case.expected))
        assert np.ptp(case.interval) < 0.03


def test_the_drawn_graph_has_an_edge_for_every_text(fig2: Outcome[Figure2]) -> None:
    edges = fig2.numbers.edges
    assert {text for text, _ in edges} == set(range(16))
    assert len(edges) == len({tuple(edge) for edge in edges}) <= 32


def test_graphs_of_a_steeper_law_do_not_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def steeper(model: SkillModel, *args: Any, **kwargs: Any) -> Any:
        return sample(replace(model, alpha=model.alpha + 0.05), *args, **kwargs)

    sample = SkillModel.sample_graph
    monkeypatch.setattr(SkillModel, "sample_graph", steeper)
    assert not FIG2.judge(FIG2.measure(Request(out=tmp_path)))[0].holds


def test_means_over_ranks_keep_the_skills_nobody_uses() -> None:
    ranks, uses = graph._binned(np.array([4, 2, 0, 1, 0, 0, 0, 0, 1, 0]))
    assert ranks[:2] == pytest.approx([1, 2])
    assert uses[:2] == pytest.approx([4, 2])
    assert np.isnan(uses[2])  # nobody uses skill 3: no place among logarithms
    assert uses[-1] == pytest.approx(1 / 3)  # of skills 8 to 10


# -- section 3 --------------------------------------------------------------------------------------------------------------


def test_exponents_of_h_minus_c_are_within_2_percent(theory: Outcome[Theory]) -> None:
    exponents: dict[str, Callable[[float], float]] = {
        "skills": lambda a: -a,
        "parameters": lambda a: -a,
        "flops": lambda a: -a / (a + 2),
        "data": lambda g: 1 - 2 * g,
    }
    assert {case.law for case in theory.numbers.laws} == set(exponents)
    for case in theory.numbers.laws:
        assert case.printed == exponents[case.law](case.of)
        assert case.measured == pytest.approx(case.printed, rel=0.02)
        assert case.exact[-1] == pytest.approx(case.power[-1], rel=0.05)


def test_every_statement_holds_on_every_draw(theory: Outcome[Theory]) -> None:
    found = theory.numbers.lemmas
    assert all(lemma.holds for lemma in found)
    assert {lemma.group for lemma in found} == set(lemmas.GROUPS)
    assert all(lemma.draws == 1000 for lemma in found)
    assert all(lemma.worst == pytest.approx(0, abs=1e-12) for lemma in found if lemma.needs == "= 0")
    assert all(lemma.worst > 0 for lemma in found if lemma.needs == "> 0")
    assert all(verdict(theory, claim) for claim in lemmas.GROUPS.values())


def test_every_number_of_section_3_is_on_its_statement(theory: Outcome[Theory]) -> None:
    """What goes beyond the paper stands last, and under no number of the paper."""
    shown = [(each.place, each.group) for each in theory.numbers.lemmas]
    places = " ".join(place for place, group in shown if group != lemmas.BEYOND)
    for number in ("2.1", "2.2", "2.3", *(f"3.{n}" for n in range(2, 18) if n != 3), "3.3", "3.18", "Section 3.1"):
        assert number in places
    assert {place for place, group in shown if group == lemmas.BEYOND} == {"ours"}
    assert [v.claim.startswith("Beyond the paper") for v in theory.verdicts] == [False] * (len(theory.verdicts) - 1) + [True]


def test_tables_fit_a_terminal(theory: Outcome[Theory], fig2: Outcome[Figure2]) -> None:
    assert max(map(len, f"{theory}\n{fig2}".splitlines())) <= 80


# -- errata -----------------------------------------------------------------------------------------------------------------


def test_errata_have_their_numbers_and_figures(theory: Outcome[Theory]) -> None:
    found = {v.claim.partition(":")[0]: v for v in theory.verdicts if v.holds is False}
    assert list(found) == [
        "Lemma 3.6, Theorems 3.7 and 3.8, Section 3.1",
        "After Def. 3.3",
        "Lemma 3.14",
        "Theorem 3.15",
        "Theorem 3.15, its proof",
        "Section 3.1",
    ]
    assert sum(v.claim.startswith("Section 3.1") for v in theory.verdicts if v.holds is False) == 3
    numbers = theory.numbers.errata
    assert [law.place for law in numbers.constant] == ["Lemma 3.6", "Theorem 3.7", "Theorem 3.8", "Section 3.1"]
    for law in numbers.constant:
        assert abs(law.entropy) < abs(law.printed) / 5  # the entropy hardly falls at all
        assert law.fitted_constant == pytest.approx(1, abs=0.01)  # section 2.2's form finds C
    assert vars(numbers.code) == pytest.approx({"length": 1.75, "bits": 1.75, "nats": 1.75 * np.log(2)})
    assert vars(numbers.lemma_3_14) == pytest.approx({"skill": np.log(4), "mean": np.log(4) / 2})
    assert numbers.squares == pytest.approx({"1": 1.2, "1e-06": np.pi**2 / 6}, rel=1e-5)
    assert vars(numbers.fisher) == pytest.approx({"forward": 0.5, "backward": 0.5, "squared": 1.0}, rel=5e-3)
    assert numbers.area.area == pytest.approx(24.7, abs=0.05)


def test_theorem_3_15s_errata_are_those_of_a_good_context(theory: Outcome[Theory]) -> None:
    context = theory.numbers.errata.context
    assert context.irrelevant == context.impossible == 0
    assert context.p_skill < -0.1 < 0.1 < context.p_given_context


def test_an_erratum_that_is_none_is_not_claimed(theory: Outcome[Theory]) -> None:
    """Without the constant, and with the bits, factors and areas that the paper prints, each statement holds."""
    found = theory.numbers.errata
    numbers = replace(
        found,
        constant=[replace(law, entropy=law.printed) for law in found.constant],
        code=replace(found.code, length=found.code.length + 0.1),
        lemma_3_14=replace(found.lemma_3_14, mean=found.lemma_3_14.skill),
        context=errata.Context(irrelevant=-0.1, impossible=-0.1, p_skill=-0.2, p_given_context=-0.2),
        squares=dict.fromkeys(found.squares, 1.0),
        fisher=replace(found.fisher, squared=0.5),
        area=replace(found.area, area=100.0),
    )
    assert [v.holds for v in errata.judge_errata(numbers)] == [True] * 8


# -- formulas that must not pass --------------------------------------------------------------------------------------------


def _half(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: 0.5 * function(*args, **kwargs)


def _off_by_one(function: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: function(*args, **kwargs) + 1


WRONG: list[tuple[Any, str, Any, str]] = [
    (information, "conditional_entropy", _half(information.conditional_entropy), "entropy"),
    (information, "entropies_given", _half(information.entropies_given), "entropy"),
    (information, "kl_divergence", _half(information.kl_divergence), "entropy"),
    (information, "is_instantaneous", lambda code: len(set(code)) == len(code), "codes"),
    (information, "expected_code_length", _half(information.expected_code_length), "codes"),
    (information, "huffman_code", lambda p: [f"{i:b}" for i in range(len(p))], "codes"),
    (information, "awgn_capacity", lambda w: np.log1p(1 / w), "codes"),
    (SkillModel, "conditional_entropy", _half(SkillModel.conditional_entropy), "skills"),
    (SkillModel, "conditional_entropy_integral", _half(SkillModel.conditional_entropy_integral), "skills"),
    (SkillModel, "p_skill", lambda model: np.full(model.M, 1 / model.M), "skills"),
    (SkillModel, "skill_entropies", lambda model, n: np.where(np.arange(model.M) < n, model.B, model.C), "skills"),
    (SkillModel, "learned_from_parameters", _off_by_one(SkillModel.learned_from_parameters), "skills"),
    (SkillModel, "learned_from_flops", _off_by_one(SkillModel.learned_from_flops), "skills"),
    (SkillModel, "flops_to_learn", lambda model, n, delta: n * model.area / delta, "skills"),
    (prompting, "prompted_entropy", lambda p, prompt: information.entropy(p.sum(1)), "prompts"),
    (prompting, "prompted_entropies", lambda p, prompt: information.entropies_given(p)[::-1], "prompts"),
    (prompting, "is_perfect_prompt", lambda p, prompt, **options: True, "prompts"),
    (prompting, "context_change", _half(prompting.context_change), "contexts"),
    (prompting, "context_kinds", lambda before, after, **options: ["good"] * before.shape[1], "contexts"),
    (prompting, "context_kind", lambda p_skill, before, after: "good", "contexts"),
    (information, "entropies_given", lambda p: entr(p).sum(0), "contexts"),
    (information, "divergences", _half(information.divergences), "invariance"),
    (information, "divergences", lambda p: information.entropies_given(p), "invariance"),
    (information, "conditional_entropy", _half(information.conditional_entropy), "invariance"),
    (dataset_size, "fisher_information", lambda p, scores: 9 * scores.T @ scores / len(p), "fisher"),
    (prompting, "prompted_entropy", lambda p, prompt: information.conditional_entropy(p), "beyond"),
    (dataset_size, "fisher_information", _half(dataset_size.fisher_information), "beyond"),
]


@pytest.mark.parametrize(("where", "name", "wrong", "group"), WRONG, ids=[f"{name}-{group}" for _, name, _, group in WRONG])
def test_a_wrong_formula_does_not_pass(where: Any, name: str, wrong: Any, group: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lemmas, "_DRAWS", 100)
    monkeypatch.setattr(where, name, wrong)
    draw = np.random.default_rng(0)
    found = [check.run(draw) for check in lemmas._CHECKS if check.group == group]
    assert found
    assert not all(lemma.holds for lemma in found)


def test_a_law_with_a_wrong_exponent_does_not_pass(theory: Outcome[Theory], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SkillModel, "learned_from_flops", lambda model, S: np.floor(S ** (1 / (model.alpha + 1))))
    cases = [case for case in theory.numbers.laws if case.law != "flops"]
    cases += [laws._skill_law("flops", SkillModel(alpha, 10**12, B=5.0, C=1.0)) for alpha in (0.5, 1.0)]
    verdicts = THEORY.judge(replace(theory.numbers, laws=cases))[:4]
    assert [v.claim.split(":")[0] for v in verdicts if not v.holds] == ["Theorem 3.8"]


def test_laws_of_h_itself_do_not_pass(theory: Outcome[Theory], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the constant is not taken off, as the O(·) suggests."""
    monkeypatch.setattr(SkillModel, "conditional_entropy", _off_by_one(SkillModel.conditional_entropy))
    case = laws._skill_law("parameters", SkillModel(0.5, 10**12, B=5.0, C=1.0))
    verdicts = THEORY.judge(replace(theory.numbers, laws=[*theory.numbers.laws, case]))[:4]
    assert [v.claim.split(":")[0] for v in verdicts if not v.holds] == ["Theorem 3.7"]


def test_what_is_not_a_number_does_not_pass() -> None:
    for needs in ("= 0", "≤ 1", "≥ 0", "> 0"):
        assert lemmas.Lemma("entropy", "", "", needs, 1, {"> 0": 1.0}.get(needs, 0.0)).holds
        for worst in (np.nan, np.inf, -np.inf):
            assert not lemmas.Lemma("entropy", "", "", needs, 1, worst).holds


@pytest.mark.parametrize("experiment", [FIG2, THEORY], ids=lambda experiment: str(experiment.name))
def test_kept_numbers_draw_the_same_files(experiment: Any, out: Path, fig2: Outcome[Figure2], theory: Outcome[Theory]) -> None:
    first = {form: (out / f"{experiment.name}.{form}").read_bytes() for form in ("json", "png", "html")}
    again = run_experiment(experiment, Request(out=out))
    assert again.kept
    assert {form: (out / f"{experiment.name}.{form}").read_bytes() for form in first} == first
