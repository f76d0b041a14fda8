"""What a command writes: its results, and nothing else, on stdout; its own messages on stderr; one line when it is stopped."""

import logging
import os
import signal
import sys
import warnings
from _thread import interrupt_main
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout, suppress
from threading import Timer
from typing import Any, TextIO

import typer
from typer.core import TyperCommand

from geomprobe.errors import GeomprobeError

__all__ = ["VERBOSE", "Command", "keeps", "say", "show", "without_loading_bars"]

VERBOSE = "GEOMPROBE_VERBOSE"
"""Environment variable that, if it is set, shows the warnings, log messages and progress bars of other libraries."""

_NOTHING_KEPT = "Nothing was written; run the same command to start again"

_results: TextIO | None = None
"""The stdout of the process while a command runs. ``sys.stdout`` is stderr then."""

_kept = _NOTHING_KEPT


def show(result: object) -> None:
    """Write a part of the results of a command to stdout.

    Raises:
        GeomprobeError: if stdout cannot be written.
    """
    try:
        print(result, file=_results or sys.stdout, flush=True)
    except BrokenPipeError:  # the reader has seen enough, as in ``| head``
        raise
    except OSError as error:
        raise GeomprobeError(f"cannot write the results to stdout: {error}") from error


def say(message: str) -> None:
    """Write a message that is no result to stderr."""
    print(message, file=sys.stderr, flush=True)


def keeps(what: str) -> None:
    """Set what is said if the command is stopped from now on: what is kept, and how to go on."""
    global _kept
    _kept = what


class Command(TyperCommand):
    """A command that keeps stdout for its results, hides what other libraries say, and says what is kept when it is stopped."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        keeps(_NOTHING_KEPT)
        try:
            with _interrupts_arrive(), _quiet_libraries(), _stdout_for_results():
                return super().invoke(ctx)
        except KeyboardInterrupt as error:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a second Ctrl-C ends the process at once
            if os.environ.get("RANK", "0") == "0":
                say(f"geomprobe: stopped. {_kept}")
            raise typer.Exit(130) from error


@contextmanager
def _interrupts_arrive() -> Iterator[None]:
    """A context in which Ctrl-C is not lost. Python ignores a ``KeyboardInterrupt`` that is raised while an object is
    finalized, as it ignores any exception there, so the signal is sent once more, a moment later."""
    before = sys.unraisablehook

    def hook(unraisable: "sys.UnraisableHookArgs") -> None:
        if not isinstance(unraisable.exc_value, KeyboardInterrupt):
            before(unraisable)
            return
        again = Timer(0.01, interrupt_main)
        again.daemon = True
        again.start()

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


@contextmanager
def _stdout_for_results() -> Iterator[None]:
    """A context in which only :func:`show` writes to stdout. Whatever else is printed, also by other processes and by code that
    is not Python, goes to stderr."""
    global _results
    before, number = _results, None
    if sys.stdout is sys.__stdout__ and sys.stdout is not None:
        with suppress(OSError, ValueError):  # a stream that is closed
            sys.stdout.flush()
            number = os.dup(1)
            os.dup2(2, 1)
    out = sys.stdout  # if it has no number, it is a stream of Python's, as in a test
    _results = out if number is None else open(number, "w", encoding=out.encoding, errors=out.errors)  # noqa: SIM115
    try:
        with redirect_stdout(sys.stderr):
            yield
    finally:
        if number is not None:
            os.dup2(number, 1)
            with suppress(OSError):  # what could not be written has been reported by show()
                _results.close()
        _results = before


@contextmanager
def _quiet_libraries() -> Iterator[None]:
    """A context that hides log messages below errors, and all warnings but those of geomprobe, unless ``VERBOSE`` is set."""
    if os.environ.get(VERBOSE):
        yield
        return
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_ours
            yield
    finally:
        logging.disable(before)


def _show_ours(message: Warning | str, *_: object, **__: object) -> None:
    text = str(message)
    if text.startswith(("geomprobe", "W&B")):
        say(text if text.startswith("geomprobe:") else f"geomprobe: {text}")


@contextmanager
def without_loading_bars() -> Iterator[None]:
    """A context without progress bars for reading and writing weights, unless ``VERBOSE`` is set. Those of downloads remain."""
    from huggingface_hub.utils.tqdm import enable_progress_bars
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils.logging import disable_progress_bar, enable_progress_bar, is_progress_bar_enabled, tqdm

    if os.environ.get(VERBOSE) or not is_progress_bar_enabled():
        yield
        return
    disable_progress_bar()
    enable_progress_bars()
    bar = getattr(gguf, "tqdm", None)
    gguf.tqdm = tqdm  # the bar of reading GGUF is not among those that Transformers can disable
    try:
        yield
    finally:
        enable_progress_bar()
        gguf.tqdm = bar
