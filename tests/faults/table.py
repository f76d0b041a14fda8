"""The table of faults: what goes wrong, the one error or note that it gives, and what is kept.

A fault is a function in a ``test_*.py`` of this folder::

    @fault("the weights are cut off", says="cannot load …/checkpoint-4: …", kept="the other checkpoints")
    def weights_cut_off(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
        ...                       # do it in the empty folder, check what is kept, and return the whole error or note
        return refused(lambda: sweep(...))

``test_table.py`` runs each of them, compares what it returned with ``says``, and compares the table of all with
``geomprobe/sweeps/README.md``. ``python -m tests.faults.table`` writes the table.
"""

import importlib
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from geomprobe.errors import GeomprobeError
from tests.readme_block import ROOT, ReadmeBlock, markdown_table

__all__ = ["BLOCK", "Fault", "fault", "faults", "refused", "told", "warned"]

BLOCK = ReadmeBlock(ROOT / "geomprobe" / "sweeps" / "README.md", "faults")
COLUMNS = ("Fault", "What is said", "What is kept")

Run = Callable[[Path, pytest.MonkeyPatch], str]


@dataclass(frozen=True)
class Fault:
    """A line of the table.

    Attributes:
        case: what goes wrong.
        says: the whole error or note, in which ``…`` stands for any text: a path, a number, or words of another library. It is
            empty if the fault is repaired without one.
        kept: what is kept, or what happens next.
        run: does it in an empty folder, checks what is kept, and returns the whole error or note.
        slow: whether it takes seconds.
    """

    case: str
    says: str
    kept: str
    run: Run
    slow: bool

    @property
    def id(self) -> str:
        """``test_files.manifest_deleted``."""
        return f"{self.run.__module__.rsplit('.', 1)[-1]}.{self.run.__name__}"

    def check(self, said: str) -> None:
        """Compare what it said with the table, and fail if a traceback was shown."""
        assert "Traceback" not in said
        pattern = ".*".join(map(re.escape, self.says.split("…")))
        assert re.fullmatch(pattern, said.strip(), re.DOTALL), f"expected: {self.says}\nsaid:     {said}"


_found: dict[str, Fault] = {}


def fault(case: str, *, says: str, kept: str, slow: bool = False) -> Callable[[Run], Run]:
    """A decorator that adds a line to the table."""

    def add(run: Run) -> Run:
        line = Fault(case, says, kept, run, slow)
        _found[line.id] = line  # by name, because pytest may import a file a second time
        return run

    return add


def faults() -> list[Fault]:
    """The faults of all files in this folder."""
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        if path.stem != "test_table":
            importlib.import_module(f"tests.faults.{path.stem}")
    return [_found[name] for name in sorted(_found, key=lambda name: name.split(".")[0])]  # within a file as it stands there


def told() -> str:
    """The table in Markdown."""
    return markdown_table(COLUMNS, [(line.case, line.says or "nothing", line.kept) for line in faults()])


def refused(action: Callable[[], object]) -> str:
    """The message of the :class:`GeomprobeError` that ``action`` raises. Any other exception fails."""
    with pytest.raises(GeomprobeError) as caught:
        action()
    return str(caught.value)


def warned(action: Callable[[], object]) -> str:
    """The one warning of geomprobe that ``action`` issues."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        action()
    ours = [str(w.message) for w in caught if issubclass(w.category, (RuntimeWarning, UserWarning))]
    (said,) = dict.fromkeys(text for text in ours if "geomprobe" in text or "W&B" in text)
    return said


if __name__ == "__main__":
    # Started as __main__, this file is another module than the one that the faults register with.
    from tests.faults import table

    table.BLOCK.write(table.told())
