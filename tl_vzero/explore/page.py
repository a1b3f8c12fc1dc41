"""The live page: the report's own page, with a form where the sentence is written."""

from collections.abc import Sequence
from html import escape

from tl_vzero.plot.export import SHARED
from tl_vzero.report.packed import script_json
from tl_vzero.report.page import filled_page, page_asset

SCRIPT = "explorer.js"


def explorer_page(models: Sequence[str], first_text: str) -> str:
    """The page before any answer; `first_text` is the sentence of an address that names none."""
    options = "".join(f"<option>{escape(name)}</option>" for name in models)
    asked = page_asset("asked.html").replace("{{models}}", options)
    return filled_page(
        {
            "title": "tl_vzero explorer",
            "brand": "tl_vzero explorer",
            "asked": asked,
            "data": script_json({"model": models[0], "text": first_text}),
            "plotly": f'<script src="{SHARED}"></script>',
            "program": f'<script src="{SCRIPT}"></script>',
        }
    )
