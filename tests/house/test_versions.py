"""The matrix of versions: what its sets hold, and its table."""

import sys

import pytest

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
    with pytest.raises(SystemExit, match="no set is called 'highest': expected lowest, between, newest or PACKAGE==VERSION"):
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
