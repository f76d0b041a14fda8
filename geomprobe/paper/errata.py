"""Where the paper's print is wrong: each statement beside what is right, in numbers, on random rows and on a model's own."""

from decimal import Decimal, localcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from geomprobe.core import spectrum
from geomprobe.core.cholesky import exact_increment, gains, posterior_variance, scaled_factor, theorem_4_1_as_printed
from geomprobe.core.lasso import literal_penalty, sklearn_penalty, solve_lasso
from geomprobe.inspection.inspect import visible
from geomprobe.models.loading import Loaded, tokenize
from geomprobe.paper.context_texts import final_rows
from geomprobe.paper.experiment import Experiment, Numbers, Request, Table, Verdict
from geomprobe.paper.models import load_readers
from geomprobe.paper.sec4_tokens import PRINTED, SENTENCE
from geomprobe.paper.style import COLOURS, MUTED, canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ERRATA"]

_SIGMA = 0.01
_RANDOM = (40, 128)
"""Rows and width of the random ones."""
_DIGITS = 50
_IN_DIGITS = 24
"""Rows whose determinants are also worked out in fifty digits."""
_AGREES, _AGREES_FLOAT64 = 1e-12, 1e-9

_TOKEN = "China"
_ALPHA = 1e-4
_PICKED = 0.01
_SHOWN = 16
"""Picks that the picture has room for."""

_RANKS = ("stable rank", "participation ratio", "effective rank", "rank")
"""Each at most the next."""


def _measure(request: Request) -> Numbers:
    draw = torch.Generator().manual_seed(request.seed)
    random = torch.randn(*_RANDOM, generator=draw, dtype=torch.float64)
    cases = [_case("random rows", random / random.norm(dim=1, keepdim=True))]
    picks = []
    for name, loaded in load_readers(request):
        ids = tokenize(loaded, SENTENCE)
        (rows,) = final_rows(name, loaded, [ids])
        cases.append(_case(name, rows))
        picks.append({"model": name, **_picks(loaded, ids[0].tolist(), rows)})
    return {"cases": cases, "picks": picks}


def _case(name: str, rows: Tensor) -> dict[str, Any]:
    """Information gain and ranks of one set of unit rows, each computed in every way the paper has for it."""
    gram = rows @ rows.mT
    factor = scaled_factor(gram, _SIGMA)[0]
    variance = posterior_variance(factor, _SIGMA)
    exact, printed = exact_increment(variance, _SIGMA), theorem_4_1_as_printed(variance, gram.diagonal(), _SIGMA)
    by_determinant, by_form = _in_fifty_digits(rows[:_IN_DIGITS].numpy())
    first = exact[: len(by_determinant)].tolist()
    eigenvalues = torch.linalg.eigvalsh(rows.mT @ rows / len(rows)).clamp_min(0)
    without_half = torch.log1p(torch.linalg.eigvalsh(gram).clamp_min(0) / _SIGMA**2).sum()
    ranks = [getattr(spectrum, rank.replace(" ", "_"))(eigenvalues) for rank in _RANKS[:-1]]
    return {
        "name": name,
        "rows": len(rows),
        "width": rows.shape[1],
        "determinant": _determinant_increments(gram),
        "exact": exact,
        "printed": printed,
        "error": max(_apart(a, b) for a, b in zip(by_form, by_determinant, strict=True)),
        "float64_error": max(_apart(Decimal(a), b) for a, b in zip(first, by_determinant, strict=True)),
        "without_half": without_half,
        "gain": gains(factor).sum(),
        "ranks": [*map(float, ranks), int(torch.linalg.matrix_rank(rows))],
    }


def _determinant_increments(gram: Tensor) -> Tensor:
    """``½ logdet(I + σ⁻²K_{t+1}) − ½ logdet(I + σ⁻²K_t)`` from the determinant of every leading block, in float64."""
    whole = torch.eye(len(gram), dtype=gram.dtype) + gram / _SIGMA**2
    halves = torch.stack([torch.linalg.slogdet(whole[:t, :t]).logabsdet / 2 for t in range(1, len(gram) + 1)])
    return torch.diff(halves, prepend=halves.new_zeros(1))


def _in_fifty_digits(rows: NDArray[np.float64]) -> tuple[list[Decimal], list[Decimal]]:
    """Increments as differences of determinants, and as ``½ log(1 + σ⁻²σ_T²)`` with the variance as it is defined, by solving
    with ``K + σ²I``: two ways that share nothing but the rows. σ⁻² = 1e4 leaves float64 too few digits to tell 1e-12.
    """
    with localcontext(prec=_DIGITS):
        noise = Decimal(str(_SIGMA)) ** 2
        numbers = np.array([[Decimal(value) for value in row] for row in rows.tolist()], dtype=object)
        gram = numbers @ numbers.T
        identity = np.array([[Decimal(i == j) for j in range(len(rows))] for i in range(len(rows))], dtype=object)
        determinants, by_form = [Decimal(1)], []
        for t in range(len(rows)):
            block = _eliminated(identity[: t + 1, : t + 1] + gram[: t + 1, : t + 1] / noise)
            determinants.append(np.prod(block.diagonal()))
            weights = _solved(gram[:t, :t] + noise * identity[:t, :t], gram[:t, t])
            variance = gram[t, t] - sum(gram[t, j] * weights[j] for j in range(t))
            by_form.append((1 + variance / noise).ln() / 2)
        pairs = zip(determinants[1:], determinants[:-1], strict=True)
        return [(after / before).ln() / 2 for after, before in pairs], by_form


def _eliminated(matrix: NDArray[Any]) -> NDArray[Any]:
    """A copy with zeros below the diagonal, by Gauss; the left square of it is positive definite, so pivots need no search."""
    matrix = matrix.copy()
    for i in range(len(matrix) - 1):
        matrix[i + 1 :] -= np.outer(matrix[i + 1 :, i] / matrix[i, i], matrix[i])
    return matrix


def _solved(matrix: NDArray[Any], right: NDArray[Any]) -> list[Decimal]:
    upper = _eliminated(np.column_stack([matrix, right]))
    weights = [Decimal(0)] * len(upper)
    for i in reversed(range(len(upper))):
        known = sum(upper[i, j] * weights[j] for j in range(i + 1, len(upper)))
        weights[i] = (upper[i, -1] - known) / upper[i, i]
    return weights


def _apart(value: Decimal, right: Decimal) -> float:
    """How far ``value`` is from ``right``, as a share of it."""
    with localcontext(prec=_DIGITS):
        return float(abs(value - right) / right) if right else float(abs(value))


def _picks(loaded: Loaded, ids: list[int], rows: Tensor) -> dict[str, Any]:
    """What the Lasso makes the token of under both conventions, weights above 0.01, the heaviest first; ``None`` where this
    vocabulary does not have the token."""
    tokens = [str(loaded.tokenizer.decode([token])) for token in ids]
    places = [t for t, token in enumerate(tokens) if token.strip() == _TOKEN]
    if not places:
        return {"scikit-learn": None, "literal": None}
    t = places[-1]
    which = torch.arange(len(rows)) == t
    found: dict[str, Any] = {}
    for convention, penalty in (
        ("scikit-learn", sklearn_penalty(_ALPHA, rows.shape[1])),
        ("literal", literal_penalty(_ALPHA)),
    ):
        weights = solve_lasso(rows @ rows.mT, penalty, tol=1e-9, which=which).coefficients[t]
        heaviest = weights.argsort(descending=True).tolist()
        found[convention] = [[tokens[j], j, float(weights[j])] for j in heaviest if weights[j] > _PICKED]
    return found


# -- the picture ------------------------------------------------------------------------------------------------------------


def _draw(numbers: Numbers) -> "Figure":
    figure, (gain, ranks, picks) = canvas(1, 3, height=3.5, width=3.7)
    case = numbers["cases"][-1]
    _draw_increments(gain, case)
    _draw_ranks(ranks, case)
    _draw_picks(picks, numbers["picks"][-1])
    figure.supxlabel(
        f"{case['name']}, the paper's sentence, at final_norm", fontsize=8, color=MUTED, x=0.01, ha="left", parse_math=False
    )
    return figure


def _draw_increments(axes: "Axes", case: Numbers) -> None:
    position = np.arange(1, case["rows"] + 1)
    axes.plot(position, case["printed"], color=COLOURS[1], linestyle=(0, (4, 2)), label="Theorem 4.1 as printed")
    axes.plot(position, case["exact"], color=COLOURS[0], label="with σ⁻² restored")
    axes.plot(position, case["determinant"], "o", color=COLOURS[0], markersize=3, label="from determinants")
    axes.set(xlabel="tokens so far", ylabel="nats that one more adds", ylim=(0, 1.35 * max(case["printed"])))
    axes.set_title("Theorem 4.1: information gain")
    axes.legend(loc="upper left", ncols=1, labelspacing=0.25)


def _draw_ranks(axes: "Axes", case: Numbers) -> None:
    places = range(len(_RANKS))
    axes.barh(places, case["ranks"], height=0.55, color=[COLOURS[1], MUTED, MUTED, COLOURS[0]])
    for place, value in zip(places, case["ranks"], strict=True):
        axes.annotate(f"{value:.3g}", (value, place), (4, 0), textcoords="offset points", va="center", fontsize=8)
    axes.set_yticks(places, [rank.replace(" ", "\n") if " " in rank else rank for rank in _RANKS])
    axes.set(xlim=(0, 1.18 * max(case["ranks"])), xlabel=f"of {case['rows']} rows in {case['width']} dimensions")
    axes.invert_yaxis()
    axes.grid(visible=False, axis="y")
    axes.set_title("Stable rank is below rank")


def _draw_picks(axes: "Axes", picks: Numbers) -> None:
    axes.set_title(f"Two Lassos of [{_TOKEN}]")
    if picks["literal"] is None:
        axes.text(0.5, 0.5, f"no token [{_TOKEN}] in this vocabulary", ha="center", va="center", color=MUTED, fontsize=8)
        axes.axis("off")
        return
    weights = {convention: {(j, token): w for token, j, w in picks[convention]} for convention in ("scikit-learn", "literal")}
    order = sorted(set().union(*weights.values()), key=lambda pick: max(w.get(pick, 0.0) for w in weights.values()))[-_SHOWN:]
    looks = (("literal", "‖·‖² + λ‖β‖₁", COLOURS[1]), ("scikit-learn", "‖·‖²/2d + α‖β‖₁", COLOURS[0]))
    for convention, formula, colour in looks:
        found = [(weights[convention][pick], place) for place, pick in enumerate(order) if pick in weights[convention]]
        label = f"{formula}: {len(picks[convention])} picks"
        axes.plot(*zip(*found, strict=True), "o", color=colour, label=label) if found else None
    labels = [visible(token) for _, token in order]
    axes.set_yticks(range(len(order)), labels, parse_math=False)
    axes.tick_params(axis="y", labelsize=7.5)
    axes.axvline(_PICKED, color=MUTED, linewidth=0.8)
    axes.set(xlabel=f"weight; picked above {_PICKED:g} (line)", xlim=(0, None), ylim=(-0.7, len(order) - 0.3))
    axes.legend(loc="lower right")


# -- the numbers ------------------------------------------------------------------------------------------------------------


def _tables(numbers: Numbers) -> list[Table]:
    cases, picks = numbers["cases"], numbers["picks"]
    gain = [
        [
            case["name"],
            f"{sum(case['determinant']):.2f}",
            f"{sum(case['printed']):.2f}",
            f"{_off(case):.3f}",
            _small(case["float64_error"]),
            _small(case["error"]),
        ]
        for case in cases
    ]
    half = [[case["name"], f"{case['gain']:.4f}", f"{case['without_half']:.4f}", f"{_ratio(case):.10f}"] for case in cases]
    ranks = [[case["name"], *(f"{value:.2f}" for value in case["ranks"][:-1]), str(case["ranks"][-1])] for case in cases]
    title = f"Theorem 4.1: information gain in nats at σ = {_SIGMA:g}; the errors of the exact form"
    tables = [
        Table(title, ["rows", "determinant", "printed", "off a token", "in float64", f"{_DIGITS} digits"], gain),
        Table("After Def. 4.2: the sum without ½", ["rows", "½ logdet", "Σ log(1 + σ⁻²λ)", "ratio"], half),
        Table("Ranks, least first", ["rows", "stable", "particip.", "effective", "rank"], ranks),
    ]
    if found := [pick for pick in picks if pick["literal"] is not None]:
        counts = [[pick["model"], str(len(pick["scikit-learn"])), str(len(pick["literal"]))] for pick in found]
        title = f"Section 4.2: picks of [{_TOKEN}] at α = λ = {_ALPHA:g}, by what is minimised"
        tables.append(Table(title, ["model", "‖·‖²/2d + α‖β‖₁", "‖·‖² + λ‖β‖₁"], counts))
    elsewhere = [["Figure 1: entropy over log d, which falls as d grows", "geomprobe paper fig1"]]
    return [*tables, Table("Elsewhere", ["what", "shown by"], elsewhere)]


def _judge(numbers: Numbers) -> list[Verdict]:
    cases = numbers["cases"]
    case = cases[-1]
    worst, float64 = max(c["error"] for c in cases), max(c["float64_error"] for c in cases)
    off = max(map(_off, cases))
    stable, participation, effective, rank = case["ranks"]
    chain = " ≤ ".join(f"{value:.2f}" for value in (stable, participation, effective)) + f" ≤ {rank}"
    return [
        Verdict(
            "Theorem 4.1 as printed gives the increments of information gain",
            off < 1e-6,
            f"on {case['name']} {sum(case['printed']):.1f} nats in all where determinants give {sum(case['determinant']):.1f}, "
            f"up to {_off(case):.2f} off a token (random rows: {_off(cases[0]):.2f})",
        ),
        Verdict(
            "With its σ⁻² restored it does: ½ log(1 + σ⁻²σ_T²)",
            worst <= _AGREES and float64 <= _AGREES_FLOAT64,
            f"at most {_small(worst)} from the determinants in {_DIGITS} digits, and {_small(float64)} in float64, as a share",
        ),
        Verdict(
            "After Def. 4.2: information gain is Σ log(1 + σ⁻²λ)",
            all(abs(_ratio(c) - 1) < 1e-6 for c in cases),
            f"that is {_ratio(case):.9f} times it: a ½ is missing",
        ),
        Verdict(
            "Stable rank is an upper bound of rank",
            all(c["ranks"][0] >= c["ranks"][-1] for c in cases),
            f"stable rank ≤ participation ratio ≤ effective rank ≤ rank: {chain} on {case['name']}; by hand, "
            "singular values 1 and ½ have stable rank 1.25 and rank 2",
        ),
        _judge_picks(numbers["picks"]),
    ]


def _judge_picks(picks: list[Numbers]) -> Verdict:
    """The paper's list decides, where a model gives it under one convention: else neither is its own."""
    claim = f"Section 4.2: minimising ‖·‖² + λ‖β‖₁ at λ = {_ALPHA:g} gives the picks listed"
    found = [pick for pick in picks if pick["literal"] is not None]
    if not found:
        return Verdict(claim, None, f"no token [{_TOKEN}] in this vocabulary; --models takes one that has it")
    listed = next((p for p in found if any(_is_listed(p[kind]) for kind in ("scikit-learn", "literal"))), None)
    pick = listed or found[-1]
    sparse, literal = pick["scikit-learn"], pick["literal"]
    names = ", ".join(token.strip() for token, _, _ in sparse)
    evidence = (
        f"{pick['model']} picks {len(literal)} for [{_TOKEN}] so, and {len(sparse)} under scikit-learn's ‖·‖²/2d + α‖β‖₁ at "
        f"the same number ({names})"
    )
    if listed is None:
        return Verdict(claim, None, f"{evidence}; neither is the paper's list of Pythia 1.4B")
    return Verdict(claim, _is_listed(literal), f"{evidence}: the paper's list")


def _is_listed(picked: list[Any]) -> bool:
    return {token.strip() for token, _, _ in picked} == set(PRINTED[_TOKEN])


def _off(case: Numbers) -> float:
    """How far the printed increment is from the determinants', at most."""
    return float(np.abs(np.subtract(case["printed"], case["determinant"])).max())


def _ratio(case: Numbers) -> float:
    return float(case["without_half"] / case["gain"]) if case["gain"] else float("nan")


def _small(number: float) -> str:
    return f"{number:.0e}".replace("-", "−")


ERRATA = Experiment(
    name="errata",
    title="Where the paper's print is wrong",
    place="Errata",
    read=(
        "Left what each token adds to the information gain: the printed theorem hardly depends on the context, determinants "
        "do. In the middle four ranks of the same rows. Right the weights of earlier tokens under two objectives that are "
        "called by one number."
    ),
    caveat="They are slips of formulas; the paper's curves may have been computed with the right ones.",
    of="texts",
    measure=_measure,
    draw=_draw,
    tables=_tables,
    judge=_judge,
)
