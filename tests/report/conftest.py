"""The browser is started once for all pages, and not kept longer: its event loop would stand in the way of other tests'."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from tests.browser import Viewer, chromium


@pytest.fixture(scope="package")
def browser() -> Iterator[Browser]:
    with chromium() as started:
        yield started


@pytest.fixture
def viewer(browser: Browser, tmp_path: Path) -> Iterator[Viewer]:
    """Opens pages for one test; afterwards none may have logged, failed, asked for anything, or opened a dialog."""
    opened = Viewer(browser, tmp_path)
    yield opened
    opened.close()
    assert opened.faults == []
