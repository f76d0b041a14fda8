"""What ``geomprobe/capture/README.md`` promises, and the tests that hold it: a row of its table is registered by its test.

A test of a row runs once as it is, and once for each guard of the row with that guard taken out of the package. It must fail
then; otherwise nobody would notice if the guard were gone.
"""

import functools
import inspect
import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from types import FunctionType
from typing import Any

import pytest
import torch.distributed as dist

from geomprobe import GeomprobeError
from tests.readme_block import ROOT, ReadmeBlock, markdown_table
from tests.recording.test_all_reduce import RANKS, meet

__all__ = ["BLOCK", "ROWS", "Guard", "guarantee", "run_on_ranks", "table", "work"]

BLOCK = ReadmeBlock(ROOT / "geomprobe" / "capture" / "README.md", "guarantees")
KINDS = ("Exact", "Approximate", "Left out with a note", "Refused")
FAILURES = (AssertionError, GeomprobeError, pytest.fail.Exception)
"""How a test fails when a guard is missing. Any other exception is a mistake in the test or in what replaces the guard."""


@dataclass(frozen=True)
class Guard:
    """A part of the package that makes a row true, and what to put in its place to take it out.

    Attributes:
        owner: the module or the class that the part belongs to.
        name: its name there.
        replacement: what stands in for it when it is taken out: a function, a property, a class method or a value.
    """

    owner: Any
    name: str
    replacement: Any

    def __str__(self) -> str:
        return f"{getattr(self.owner, '__name__', self.owner)}.{self.name}".removeprefix("geomprobe.")

    @contextmanager
    def taken_out(self) -> Iterator["_Use"]:
        """A context without this guard, which tells how the replacement was used.

        Raises:
            RuntimeError: if the replacement raised an exception that no failing test raises.
        """
        use = _Use()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.owner, self.name, use.watching(self.replacement))
            yield use
        if use.mistakes:
            raise RuntimeError(f"what replaces {self} does not work") from use.mistakes[0]


@dataclass
class _Use:
    """Whether a replacement was called, and what went wrong in it."""

    watched: bool = False
    calls: int = 0
    mistakes: list[Exception] = field(default_factory=list)

    def watching(self, replacement: Any) -> Any:
        """Return the replacement, wrapped if it is a function of some kind."""
        if isinstance(replacement, property):
            return property(self.watching(replacement.fget))
        if isinstance(replacement, staticmethod | classmethod):
            return type(replacement)(self.watching(replacement.__func__))
        if not isinstance(replacement, FunctionType):
            return replacement
        self.watched = True

        @functools.wraps(replacement)
        def counted(*arguments: Any, **named: Any) -> Any:
            self.calls += 1
            try:
                return replacement(*arguments, **named)
            except FAILURES:
                raise
            except Exception as error:
                self.mistakes.append(error)
                raise

        return counted


@dataclass(frozen=True)
class Row:
    """A row of the table: the case and the result in its words, the guards, the test, and whether two processes run it."""

    case: str
    result: str
    guards: tuple[Guard, ...]
    test: Callable[..., None]
    ranks: bool

    def failure(self, without: Guard | None, **fixtures: Any) -> str:
        """Run the test without a guard, or as it is. Return how it failed, or an empty text.

        Raises:
            RuntimeError: if the test failed, but not for want of the guard, because the replacement was not called.
        """
        with nullcontext() if without is None else without.taken_out() as use:
            try:
                self.test(**fixtures)
            except FAILURES as failure:
                if use is not None and use.watched and not use.calls:
                    raise RuntimeError(f"the test fails without {without}, which it never reaches") from failure
                return "".join(traceback.format_exception(failure))
        return ""

    def failure_on_ranks(self, without: Guard | None, results: Path) -> str:
        """Return how the test failed in two processes, which wrote it in ``results``."""
        name = self.name(without)
        return "".join(json.loads((results / f"{rank}.json").read_text())[name] for rank in range(RANKS))

    def name(self, without: Guard | None) -> str:
        """Return a name of the test without a guard."""
        return f"{self.test.__name__} {0 if without is None else 1 + self.guards.index(without)}"


ROWS: list[Row] = []
"""All rows, in the order of the file that holds their tests."""


def guarantee(
    case: str, result: str, *guards: Guard, ranks: bool = False
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a row of the table, which the decorated test holds.

    Args:
        case: the case, as it stands in the table.
        result: what holds there. It begins with one of :data:`KINDS`.
        guards: what makes it true. Without any one of them the test must fail.
        ranks: whether the test runs in each of two processes, which form a process group.
    """
    assert result.startswith(KINDS), f"{result!r} begins with none of {KINDS}"
    assert guards, f"{case!r} names no guard"
    assert case not in [row.case for row in ROWS], f"two rows for {case!r}"

    def register(test: Callable[..., None]) -> Callable[..., None]:
        ROWS.append(row := Row(case, result, guards, test, ranks))

        @pytest.mark.parametrize("without", [None, *guards], ids=lambda guard: f"without {guard}" if guard else "held")
        @functools.wraps(test)
        def held(*, without: Guard | None, **fixtures: Any) -> None:
            if ranks:
                failure = row.failure_on_ranks(without, fixtures["on_ranks"])
                assert without is not None or not failure, failure
            elif without is None:
                test(**fixtures)
                return
            else:
                failure = row.failure(without, **fixtures)
            if without is not None and not failure:
                pytest.fail(f"{without} can be taken out, and nobody notices: {case}")

        names = ["without", "on_ranks"] if ranks else ["without", *inspect.signature(test).parameters]
        parameters = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in names]
        held.__dict__["__signature__"] = inspect.Signature(parameters)
        run: Callable[..., None] = held
        return run

    return register


def table() -> str:
    """The table in Markdown."""
    return markdown_table(("Case", "Result"), [(row.case, row.result) for row in ROWS])


def run_on_ranks(module: str, results: Path) -> None:
    """Run ``python -m module results RANK`` in two processes, which call :func:`work`."""
    command, environment = [sys.executable, "-m", module, str(results)], os.environ | {"OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen([*command, str(rank)], stderr=subprocess.PIPE, text=True, env=environment) for rank in range(RANKS)
    ]
    try:
        told = [process.communicate(timeout=300)[1] for process in ranks]
    finally:
        for process in ranks:
            process.kill()
    assert all(process.returncode == 0 for process in ranks), told


def work(results: str, rank: str) -> None:
    """One of two processes: run every row of several processes, as it is and without each guard, and write how it failed."""
    failures = {}
    for row in ROWS:
        for without in (None, *row.guards) if row.ranks else ():
            meet(results, row.name(without), int(rank), seconds=60)
            failures[row.name(without)] = row.failure(without)
            dist.destroy_process_group()
    Path(results, f"{rank}.json").write_text(json.dumps(failures))
