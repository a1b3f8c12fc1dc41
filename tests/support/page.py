"""A report's page taken apart, and its JSON read strictly."""

import base64
import gzip
import json
from html.parser import HTMLParser
from typing import Any

from tl_vzero.report import Report


class Page(HTMLParser):
    """A page as a browser takes it apart: tags with their attributes, and the text of each script and of the rest."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self.open: str | None = None
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self.open = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        if tag in ("script", "style"):
            self.open = None

    def handle_data(self, data: str) -> None:
        if self.open is None:
            self.text += data
        else:
            self.scripts[self.open] = self.scripts.get(self.open, "") + data

    def data(self) -> Any:
        return json.loads(self.scripts["report-data"])


def no_constant(name: str) -> Any:
    raise AssertionError(f"the JSON holds {name}")


def as_json(report: Report) -> Any:
    return json.loads(json.dumps(report.to_dict()), parse_constant=no_constant)


def unpacked(page: Page, script: str) -> bytes:
    return gzip.decompress(base64.b64decode(page.scripts[script]))


def page_numbers(page: Page) -> list[float]:
    codes = memoryview(unpacked(page, "report-maps")).cast("h").tolist()
    half = len(codes) // 2
    return [float(f"{m}e{e}") for m, e in zip(codes[:half], codes[half:], strict=True)]


def flat(values: Any) -> list[float]:
    return [value for item in values for value in flat(item)] if isinstance(values, list) else [values]
