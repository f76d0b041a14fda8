"""The browser of the tests of pages, which opens the tables for notebooks too."""

from tests.report.conftest import browser, viewer

__all__ = ["browser", "viewer"]
