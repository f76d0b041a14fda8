"""Pages in a browser: each is opened from a file, and must neither ask for anything nor complain."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Dialog, Page, Request, sync_playwright

_ARGUMENTS = (
    "--no-sandbox",  # tests run as root in containers
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    "--disable-quic",
)


@contextmanager
def chromium() -> Iterator[Browser]:
    """The Chromium on the PATH; skips without one."""
    if not (found := shutil.which("chromium")):
        pytest.skip("there is no chromium on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=_ARGUMENTS)
        yield browser
        browser.close()


@dataclass
class Viewer:
    """Opens documents, and keeps what they should not have done."""

    browser: Browser
    folder: Path
    faults: list[str] = field(default_factory=list)

    def open(
        self,
        document: str,
        *,
        width: int = 1100,
        height: int = 900,
        dark: bool = False,
        touch: bool = False,
        script: bool = True,
    ) -> Page:
        """The document, written to a file and loaded from it."""
        file = self.folder / f"page-{len(list(self.folder.iterdir()))}.html"
        file.write_text(document, "utf-8")
        page = self.browser.new_page(
            viewport={"width": width, "height": height},
            color_scheme="dark" if dark else "light",
            has_touch=touch,
            java_script_enabled=script,
        )

        def asked(request: Request) -> None:
            if request.url != file.as_uri():
                self.faults.append(f"request: {request.url}")

        def dialog(opened: Dialog) -> None:
            self.faults.append(f"dialog: {opened.message}")
            opened.dismiss()

        page.on("console", lambda message: self.faults.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        page.on("request", asked)
        page.on("dialog", dialog)
        page.goto(file.as_uri())
        return page

    def close(self) -> None:
        for context in self.browser.contexts:
            context.close()
