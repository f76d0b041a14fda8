"""What ``geomprobe inspect`` prints of a text, whatever its tokens are."""

import math
import unicodedata
from pathlib import Path

import pytest
import torch

from geomprobe import GeomprobeError
from geomprobe.core.lasso import sklearn_penalty, solve_lasso
from geomprobe.inspection.inspect import Inspection, inspect_text
from geomprobe.inspection.token_weights import Picks
from geomprobe.metrics.base import Curve
from geomprobe.models.loading import load, tokenize
from geomprobe.reading import Reading


def inspection(tokens: tuple[str, ...], gain: tuple[float, ...]) -> Inspection:
    values, curves = {"gain_per_token/final_norm": 1.0}, {"gain/final_norm": Curve(gain, None, (1,) * len(gain))}
    measured = any(map(math.isfinite, gain))
    reading = Reading("eval", ("final_norm",), values if measured else None, curves=curves if measured else None)
    return Inspection(reading, tokens)


def columns(line: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in line)


def shown(of: Inspection) -> list[str]:
    """The lines under the title: words and bars in turn."""
    lines = str(of).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("information gain of each token"))
    return lines[start + 3 :]


def test_every_token_stands_over_its_bar() -> None:
    tokens = (" the", "\n", "模型", "<script>", "\t", "🙂", "", "\x00", "x" * 79) * 6
    gain = tuple(float(i % 9) for i in range(len(tokens)))
    lines = shown(inspection(tokens, gain))
    assert all(columns(line) <= 80 for line in lines)
    words, bars = lines[0::2], lines[1::2]
    for above, below in zip(words, bars, strict=True):
        assert [columns(word) for word in above.split()] == [len(bar) for bar in below.split()]
    assert " ".join(words).split()[:5] == ["the", "⏎", "模型", "<script>", "⇥"]
    assert bars[0].startswith("···")  # the first gains the same in any text
    assert "▁▁▁" in " ".join(bars)  # a later one of the same gain is the least
    assert "█" * 79 in bars  # the last most


@pytest.mark.parametrize("gain", [(math.nan, 1.0, 2.0), (1.0, math.nan, 2.0), (1.0, 2.0)])
def test_a_token_whose_row_is_not_finite_has_no_bar(gain: tuple[float, ...]) -> None:
    bars = shown(inspection(("a", "b", "c"), gain))[1].split()
    finite = [*map(math.isfinite, gain), *[False] * (3 - len(gain))]
    assert [bar != "?" for bar in bars] == finite
    assert bars[finite.index(True)] == "·"


def test_no_finite_row_at_all_is_said() -> None:
    assert "no token has a finite row at final_norm" in str(inspection(("a",), (math.nan,)))


def test_equal_gains_are_drawn() -> None:
    assert shown(inspection(("a", "b", "c"), (4.6, 1.0, 1.0)))[1].split() == ["·", "▁", "▁"]


def test_the_first_token_does_not_hide_the_differences_of_the_others() -> None:
    lines = str(inspection(("a", "b", "c"), (4.605, 1.0, 1.1))).splitlines()
    assert lines[-1].split() == ["·", "▁", "█"]
    assert "information gain of each token at final_norm, 1.00 (▁) to 1.10 nats (█)" in lines
    assert "the first token (·) has no token before it: its gain is 4.61 nats in any text" in lines
    assert "▁" not in str(inspection(("a",), (4.605,)))


def test_picks_carry_positions_so_that_equal_tokens_are_told_apart() -> None:
    tokens = ("Yes", ".", "Yes", ".")
    weights = ((), (), ((0, 0.5),), ((1, 0.75), (0, 0.25)))
    picks = Picks("final_norm", weights, weights, None, (math.nan, 0.1, 0.2, 0.3))
    made = Inspection(inspection(tokens, (1.0,) * 4).reading, tokens, (picks,), "final_norm")
    assert str(made).splitlines()[-1].endswith(".#1 .75 Yes#0 .25")
    assert made.made_of(picks, 3)[1].endswith(".#1 .75 Yes#0 .25")


@pytest.mark.slow
def test_what_tokens_are_made_of_is_the_lasso_of_the_site(smollm2_model: Path) -> None:
    text = "Is Moscow the capital of Russia? Yes. Is Paris the capital of France? Yes. Is Beijing the capital of China?"
    loaded = load(str(smollm2_model))
    made = inspect_text(loaded, text, site="final_norm")
    (picked,) = made.picks
    ids = tokenize(loaded, text)
    with torch.no_grad():
        z = torch.nn.functional.normalize(loaded.model.base_model(ids, use_cache=False).last_hidden_state[0], dim=-1).double()
    weights = solve_lasso(z @ z.mT, sklearn_penalty(1e-4, z.shape[1])).coefficients
    rest = (z - weights @ z).square().sum(-1)
    for t, (picks, share) in enumerate(zip(picked.lasso, picked.r2, strict=True)):
        assert {j for j, _ in picks} == set((weights[t] > 0.01).nonzero().flatten().tolist())
        assert [weight for _, weight in picks] == pytest.approx(sorted((float(weights[t, j]) for j, _ in picks), reverse=True))
        assert math.isnan(share) if t == 0 else share == pytest.approx(1 - float(rest[t]), abs=1e-5)
    assert made.to_dict()["picks"][0]["r2"][0] is None
    lines = str(made).splitlines()
    start = next(
        i for i, line in enumerate(lines) if line.startswith("Lasso of each token on the earlier tokens at final_norm")
    )
    assert len(lines[start + 2 :]) == len(made.tokens)
    assert max(map(columns, lines)) <= 80
    assert " France#" in lines[start + 2 + made.tokens.index(" China")]
    with pytest.raises(GeomprobeError, match="unknown site 'layer_99'"):
        inspect_text(loaded, text, site="layer_99")


def test_picks_of_strange_tokens_fit_the_terminal() -> None:
    tokens = ("模型" * 20, "\n", "<script>", "🙂", "x" * 40)
    weights = tuple(tuple((j, 0.5) for j in range(t)) for t in range(5))
    reading = inspection(tokens, (1.0,) * 5).reading
    picks = Picks("final_norm", weights, weights, None, (math.nan, 0.1, 0.2, 0.3, 1.0))
    lines = str(Inspection(reading, tokens, (picks,), "final_norm")).splitlines()
    assert all(columns(line) <= 80 for line in lines[-5:])
    assert lines[-5].split()[0] == "0"
    assert lines[-1].endswith("…")
