"""The documentation site: `sphinx-build -W --keep-going docs build/docs`, offline, in half a minute.

Why Sphinx with MyST and Furo: all three are maintained and have a stable release, pages are Markdown as on GitHub, the
reference is read from the docstrings that doctest runs, a link that leads nowhere is a warning, and the built site
fetches nothing (no fonts, no scripts from elsewhere). MkDocs 1 has had no release since August 2024 and
mkdocs-material is maintained for security only; Zensical, its successor, is at version 0.1, and reads docstrings by
mkdocstrings, which needs MkDocs.
"""

import re
from typing import Any

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx
from typer import rich_utils
from typer.testing import CliRunner

import tl_vzero
from tl_vzero.cli import app as command_line

project = "tl_vzero"
author = "the tl_vzero authors"
release = version = tl_vzero.__version__
extensions = ["myst_parser", "sphinx.ext.autodoc"]
exclude_patterns: list[str] = []
nitpick_ignore_regex = [("py:.*", ".*")]  # types of other packages; links in pages are checked all the same

html_theme = "furo"
html_title = f"tl_vzero {version}"
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
templates_path: list[str] = []

myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3  # links to headings, as GitHub makes them
default_role = "code"  # docstrings write `names` in single backticks
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True, "show-inheritance": False}
autodoc_typehints = "none"  # the text says what each argument takes; a signature of annotations fills a screen
python_maximum_signature_line_length = 80
add_module_names = False

# Outside of code, | and * in a docstring are signs, not markup.
MARKUP = re.compile(r"(`[^`]*`)|([|*])")


def plain_docstring(_app: Sphinx, _what: str, _name: str, _object: Any, _options: Any, lines: list[str]) -> None:
    """Read a docstring as text with `code`, lists and examples."""
    lines[:] = [
        line
        if line.lstrip().startswith((">>>", "..."))
        else MARKUP.sub(lambda match: match[1] or "\\" + match[2], line)
        for line in lines
    ]


rich_utils.MAX_WIDTH = 96  # of the help below, in characters


def no_class_signature(_app: Sphinx, what: str, *_: Any) -> tuple[str, str] | None:
    """Results are made by the functions, never by hand."""
    return ("", "") if what == "class" else None


class Help(Directive):
    """`{help} map`: what `tl-vzero map --help` prints."""

    required_arguments, optional_arguments, final_argument_whitespace = 1, 0, True

    def run(self) -> list[nodes.Node]:
        words = self.arguments[0].split()
        result = CliRunner().invoke(command_line, [*words, "--help"], prog_name="tl-vzero", env={"NO_COLOR": "1"})
        if result.exit_code:
            raise self.error(f"tl-vzero {' '.join(words)} --help failed: {result.output}")
        lines = [line.rstrip() for line in result.output.strip("\n").splitlines()]
        return [nodes.literal_block("\n".join(lines), "\n".join(lines), language="text", classes=["help"])]


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", plain_docstring)
    app.connect("autodoc-process-signature", no_class_signature)
    app.add_directive("help", Help)
