"""HTML from the templates in assets/, filled by Jinja2, which escapes: whatever a token, a name or a model holds is
text. The colours of the pages and the JSON that a script element holds are written here too."""

from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from tl_vzero.files import to_plain
from tl_vzero.plot.parts import visible
from tl_vzero.plot.theme import DARK, FONT, LIGHT, MONO

SHOWN_DIGITS = 4  # significant ones of the numbers in a page


def rendered(template: str, **parts: Any) -> str:
    """A template of assets/ with its parts; a part that is missing is an error, and so are misspelt ones."""
    return _template(template).render(**parts)


def rendered_blocks(template: str, **parts: Any) -> dict[str, str]:
    """The blocks of a template, by name, without what is around them."""
    page = _template(template)
    return {name: "".join(block(page.new_context(parts))) for name, block in page.blocks.items()}


def asset(path: str) -> Markup:
    """A file of assets/ as it stands: a style or a script."""
    return Markup(files("tl_vzero").joinpath("assets", *path.split("/")).read_text(encoding="utf-8"))


def in_percent(share: float) -> str:
    """A share as a percentage of at most two digits."""
    return "< 0.01 %" if 0 < share < 1e-4 else f"{float(f'{100 * share:.2g}'):g} %"


def script_json(data: Any) -> Markup:
    r"""JSON that no HTML parser can take for anything else, whatever a token holds; ASCII only."""
    return htmlsafe_json_dumps(to_plain(data), separators=(",", ":"), allow_nan=False)


@cache
def _template(path: str) -> Template:
    return _environment().get_template(path)


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("tl_vzero", "assets"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {
        "visible": visible,
        "digits": lambda value: f"{value:.{SHOWN_DIGITS}g}",
        "script_json": script_json,
        "in_percent": in_percent,
        "percent": lambda value: f"{100 * value:.0f} %" if value == value else "–",
        # NaN, which is not equal to itself, is undefined.
        "rank": lambda value: f"{value:.2f}" if value == value else "–",
    }
    environment.globals |= {"asset": asset, "LIGHT": LIGHT, "DARK": DARK, "FONT": Markup(FONT), "MONO": Markup(MONO)}
    return environment
