"""Every fault in the table gives the one error or note that the table says."""

from pathlib import Path

import pytest

from tests.faults.table import BLOCK, Fault, faults, told

FAULTS = faults()


@pytest.mark.parametrize("fault", [pytest.param(f, id=f.id, marks=[pytest.mark.slow] * f.slow) for f in FAULTS])
def test_a_fault(fault: Fault, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.check(fault.run(tmp_path, monkeypatch))


def test_the_readme_has_the_table() -> None:
    assert BLOCK.told() == told(), "the README differs: python -m tests.faults.table writes the table"


def test_no_line_stands_twice() -> None:
    cases = [line.case for line in FAULTS]
    assert len(set(cases)) == len(cases)
