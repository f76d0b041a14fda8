"""Numbers that compare a checkpoint with another one, and the Gram matrices that are kept for them."""

from collections.abc import Callable, Collection
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from itertools import pairwise
from pathlib import Path

from torch import Tensor

from geomprobe.core.similarity import debiased_cka, effective_rank_difference
from geomprobe.errors import GeomprobeError
from geomprobe.files import write_whole
from geomprobe.reading import Reading
from geomprobe.sweeps.checkpoints import Checkpoint
from geomprobe.sweeps.records import FORMAT, Kind, Place, Record

__all__ = ["COMPARISONS", "Comparisons"]

COMPARISONS = ("diff_erank", "cka_first", "cka_previous")
"""Numbers that compare a checkpoint with another one: with the untrained model, with the first checkpoint, and with the
previous checkpoint."""

_ANCHORS = "anchor-*.safetensors"
"""The files of Gram matrices, by a hash of the name of the checkpoint."""


class Comparisons:
    """What the checkpoints of a run are compared with.

    A checkpoint is compared with the untrained model, and with the first and the previous checkpoint of the run's list that
    were measured. These partners do not depend on when the checkpoints were measured, or on where their files are now.

    Args:
        folder: the folder of the run, in which Gram matrices are kept.
        records: the records of the run by kind and name, which grow while it is measured.
        place: what the checkpoints of the run are sorted by.
        measured_again: returns the Gram matrices of a checkpoint whose file is lost; raises any error if it cannot.
    """

    def __init__(
        self,
        folder: Path,
        records: dict[tuple[Kind, str], Record],
        place: Callable[[Record | Checkpoint], Place],
        measured_again: Callable[[Record], dict[str, Tensor]],
    ) -> None:
        self._folder, self._records, self._place, self._measured_again = folder, records, place, measured_again

    def keep(self, record: Record, grams: dict[str, Tensor]) -> Record:
        """Keep the Gram matrices of a checkpoint that was just measured, and return its record with its comparisons."""
        record = self.compared(record, grams)
        _write(self._anchor(record.name), record, grams)
        return record

    def compared(self, record: Record, grams: dict[str, Tensor] | None = None) -> Record:
        """Return the record with the comparisons that it should have. ``grams`` are its Gram matrices, if they are in
        memory."""
        assert record.reading is not None
        old, partners = record.reading, dict[str, str]()
        values = {key: value for key, value in old.items() if key.split("/")[0] not in COMPARISONS}
        notes = [note for note in old.notes if note.split(" ")[0] not in COMPARISONS]
        name = "centered_text_matrix_entropy/final_norm"
        for what, other in self._partners(record).items():
            assert other.reading is not None
            if what == "diff_erank":
                values[f"{what}/final_norm"] = float(effective_rank_difference(other.reading[name], old[name]))
                partners[what] = other.name
                continue
            try:
                grams = self._grams(record) if grams is None else grams
                theirs = self._grams(other)
            except GeomprobeError as error:
                notes.append(f"{what} was not measured: {error}")
                continue
            for site in old.sites:
                values[f"{what}/{site}"] = float(debiased_cka(grams[site].double(), theirs[site].double()))
            partners[what] = other.name
        return replace(record, reading=Reading(old.mode, old.sites, values, notes, old.curves, old.widths), partners=partners)

    def outdated(self) -> list[Record]:
        """Return the records whose partners have changed, because an earlier checkpoint was measured later than they were."""
        return [
            record
            for record in self._measured()
            if record.partners != {what: other.name for what, other in self._partners(record).items()}
        ]

    def anchors(self) -> set[Path]:
        """Return the files of Gram matrices that are there."""
        return set(self._folder.glob(_ANCHORS))

    def remove_anchors(self, keep: Collection[Path] = ()) -> None:
        """Remove the Gram matrices that no later comparison needs: those of all but the first and the last checkpoint that were
        measured and the neighbours of those that failed."""
        measured = self._measured()
        failed = [self._place(r) for r in self._records.values() if r.kind == "checkpoint" and r.reading is None]
        wanted = [*measured[:1], *measured[-1:]]
        for before, after in pairwise(measured):
            if any(self._place(before) < place < self._place(after) for place in failed):
                wanted += [before, after]
        for path in self.anchors() - {self._anchor(record.name) for record in wanted} - set(keep):
            path.unlink(missing_ok=True)

    def _partners(self, of: Record) -> dict[str, Record]:
        start = self._records.get(("untrained", str(of.config)))
        found = {} if start is None or start.reading is None else {"diff_erank": start}
        same = [r for r in self._measured() if (r.config, r.tokens) == (of.config, of.tokens)]
        before = [r for r in same if self._place(r) < self._place(of)]
        return found | ({"cka_first": before[0], "cka_previous": before[-1]} if before else {})

    def _measured(self) -> list[Record]:
        """The records of the checkpoints that were measured, in the order of the run's list."""
        found = [r for r in self._records.values() if r.kind == "checkpoint" and r.reading is not None]
        return sorted(found, key=self._place)

    def _anchor(self, name: str) -> Path:
        """The file of the Gram matrices of a checkpoint."""
        return self._folder / _ANCHORS.replace("*", sha256(name.encode("utf-8", "surrogatepass")).hexdigest()[:12])

    def _grams(self, record: Record) -> dict[str, Tensor]:
        """The Gram matrices of a checkpoint: those that were kept, or else measured again.

        Raises:
            GeomprobeError: if there are none and the checkpoint cannot be read.
        """
        path = self._anchor(record.name)
        if (kept := _read(path, record)) is not None:
            return kept
        try:
            grams = self._measured_again(record)
        except Exception as error:  # memory, or code of the model
            raise GeomprobeError(
                f"the file {path.name} is missing or damaged, and {record.name} cannot be measured again ({error})"
            ) from error
        with suppress(GeomprobeError):  # a full disk is reported when the record is written
            _write(path, record, grams)
        return grams


def _metadata(record: Record) -> dict[str, str]:
    """What the file of Gram matrices says about itself."""
    return {"format": str(FORMAT), "of": f"{record.config} {record.tokens} {record.weights}"}


def _write(path: Path, record: Record, grams: dict[str, Tensor]) -> None:
    from safetensors.torch import save

    write_whole(path, save({site: gram.contiguous() for site, gram in grams.items()}, _metadata(record)))


def _read(path: Path, record: Record) -> dict[str, Tensor] | None:
    """The Gram matrices in a file, or ``None`` if they are not those of ``record``, or not whole."""
    from safetensors import SafetensorError, safe_open

    assert record.reading is not None
    try:
        with safe_open(path, "pt") as file:
            grams = {site: file.get_tensor(site) for site in file.keys()}  # noqa: SIM118
            same = file.metadata() == _metadata(record) and grams.keys() == set(record.reading.sites)
            return grams if same else None
    except (OSError, SafetensorError):
        return None
