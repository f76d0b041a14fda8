"""A reading: the numbers that a probe measured, which can be printed, drawn, compared, saved and loaded."""

from geomprobe.reading.compute import compute_reading
from geomprobe.reading.data import Cost
from geomprobe.reading.reading import Reading

__all__ = ["Cost", "Reading", "compute_reading"]
