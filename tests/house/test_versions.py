"""The matrix of versions: what its sets hold, and its table."""

import sys
from pathlib import Path
from typing import Any

import pytest

from tests import versions
from tests.versions import BETWEEN, Outcome, floors, main, pins, table


def numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def test_between_lies_between() -> None:
    lowest, newest = floors(), pins("newest")
    for name, version in BETWEEN.items():
        assert numbers(lowest[name]) < numbers(version) < numbers(newest[name]), name


def test_no_set_asks_for_a_torch() -> None:
    assert all("torch" not in pins(name) for name in ("lowest", "between", "newest", "latest"))
    assert pins("transformers==5.9.0") == {"transformers": "5.9.0"}


def test_a_set_that_is_none_is_told_before_anything_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["versions", "lowest", "highest"])
    with pytest.raises(SystemExit, match="no set is called 'highest': expected lowest, between, newest, latest or PACK"):
        main()


def test_the_table_fits_80_columns() -> None:
    outcomes = [
        Outcome("lowest", floors(), passed=1776, failed=2, skipped=19, seconds=312.4),
        Outcome("transformers==5.10.4", pins("newest"), passed=1, seconds=5),
        Outcome("latest", {}, failed=1, gates=False),
    ]
    lines = table(outcomes).splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["lowest", "5.5", "1.26", "0.23", "1776", "2", "19", "312"]
    assert "  not installed" in lines


@pytest.mark.parametrize(("arguments", "code"), [(["latest"], 1), (["newest", "--latest"], 0), (["newest"], 0)], ids=str)
def test_the_failures_of_the_latest_count_if_it_is_named(
    arguments: list[str], code: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(name: str, folder: Path, options: list[str], **given: Any) -> Outcome:
        return Outcome(name, {}, failed=int(name == "latest"), **given)

    monkeypatch.setattr(versions, "run", run)
    monkeypatch.setattr(sys, "argv", ["versions", *arguments])
    assert main() == code
