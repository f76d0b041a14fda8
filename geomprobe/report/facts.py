"""What the runs of a report measured: facts, failures, and remarks for the reader."""

from collections.abc import Sequence
from pathlib import Path

from geomprobe.protocols import PROTOCOLS, Protocol
from geomprobe.report.theme import shorten, si_format
from geomprobe.sweeps.records import Run

__all__ = ["facts", "failures", "protocols", "remarks"]


def protocols(runs: Sequence[Run]) -> dict[str, Protocol]:
    """Return the published protocols that were measured, by their names."""
    names = dict.fromkeys(run.manifest["arguments"].get("protocol") for run in runs)
    return {name: PROTOCOLS[name] for name in names if name in PROTOCOLS}


def facts(runs: Sequence[Run]) -> list[tuple[str, list[str]]]:
    """Return what was measured: names and their values."""
    found: dict[str, dict[str, None]] = {}  # the distinct values of all runs, by name

    def say(name: str, *values: str) -> None:
        found.setdefault(name, {}).update(dict.fromkeys(value for value in values if value))

    for run in runs:
        data = run.manifest["data"]
        counts = {"texts": "texts", "tokens": "tokens", "sample_tokens": "tokens in the sample for expensive metrics"}
        nulls = [
            name
            for name, kind in (("untrained", "untrained"), ("Gaussian", "gaussian"))
            if any(r.kind == kind for r in run.records)
        ]
        for name, protocol in protocols([run]).items():
            say("Protocol", f"{name}: {protocol.title} ({protocol.source})")
        versions = run.manifest["versions"]
        say("Data", shorten(data["name"], most=80))
        say("Tokens", ", ".join(f"{data[key]:,} {name}" for key, name in counts.items() if isinstance(data.get(key), int)))
        say("Hash", shorten(data["hash"], most=80))
        read = f"{len(run.checkpoints)} measured" + f", {len(run.failed)} failed" * bool(run.failed)
        say("Checkpoints", f"{shorten(run.name)}: {read}" if len(runs) > 1 else read)
        say("Baselines", ", ".join(nulls))
        say(
            "Versions",
            ", ".join(f"{shorten(str(name))}\u00a0{shorten(str(version))}" for name, version in versions.items()),
        )
        folders = {str(Path(r.model).parent) for r in run.checkpoints}
        together = len(folders) == 1 < len(run.checkpoints) and all(
            Path(r.model).name == r.name != r.model for r in run.checkpoints
        )
        for r in run.checkpoints:
            size = f"{si_format(r.parameters)} parameters" if r.parameters else ""
            shape = ", ".join(part for part in (size, f"d\u00a0=\u00a0{r.width}" * bool(r.width)) if part)
            where = folders.copy().pop() if together else r.model or r.name  # checkpoints of one training are in one folder
            say("Models", shorten(where, most=80) + f" ({shape})" * bool(shape))
    return [(name, list(values)) for name, values in found.items() if values]


def failures(runs: Sequence[Run]) -> list[tuple[str, str, str]]:
    """Return what failed: its name, that of its run if there are several, and its error."""
    return [
        (shorten(record.name, most=80), shorten(run.name) * (len(runs) > 1), shorten(record.error or "", most=400))
        for run in runs
        for record in run.failed
    ]


def remarks(runs: Sequence[Run]) -> list[str]:
    """Return what a reader must know before comparing numbers."""
    read = [record for run in runs for record in run.checkpoints]
    notes = []
    if len({record.tokens for record in read}) > 1:
        notes.append("These checkpoints were measured on different tokens, so compare their numbers with care.")
    counts = {
        record.reading.get(f"tokens/{record.reading.sites[-1]}") for record in read if record.reading and record.reading.sites
    }
    if len(counts) > 1:
        notes.append(
            "These checkpoints were measured on different numbers of tokens. Entropies and ranks grow with that number."
        )
    said = dict.fromkeys(note for record in read if record.reading for note in record.reading.notes)
    return notes + [shorten(note, most=300) for note in list(said)[:8]]
