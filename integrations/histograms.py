"""Histograms of the eigenvalue spectrum, for trackers that have histograms."""

import math

from geomprobe import Reading
from geomprobe.integrations.names import overview_sites, prefix

__all__ = ["keep_overview", "spectra"]

_CURVE = "spectrum"
_ROUNDING = 1e-6
"""Size of rounding errors as a share of the largest eigenvalue."""


def spectra(reading: Reading) -> dict[str, list[float]]:
    """Return the decimal logarithms of the eigenvalues of Σ at the first, middle and last measured layer and at ``final_norm``,
    by the names of their histograms: ``geomprobe/spectrum_log10/<site>``, with the mode as for :func:`flat`.

    Eigenvalues below a millionth of the largest one are left out, because rounding errors are as large.
    """
    found = {}
    for site in overview_sites(reading):
        curve = reading.curves.get(f"{_CURVE}/{site}")
        values = [value for value in curve.mean if math.isfinite(value)] if curve else []
        if values and (largest := max(values)) > 0:
            logs = [math.log10(value) for value in values if value > _ROUNDING * largest]
            found[f"{prefix(reading.mode)}/spectrum_log10/{site}"] = logs
    return found


def keep_overview(reading: Reading) -> None:
    """Drop the spectra of all other sites from the reading: one of d numbers for every site would double the size of a file."""
    kept = {f"{_CURVE}/{site}" for site in overview_sites(reading)}
    reading.curves = {key: curve for key, curve in reading.curves.items() if not key.startswith(f"{_CURVE}/") or key in kept}
