"""Figures to files, pages that work offline and pictures for a paper, and to notebooks."""

import os
import shutil
import sys
from base64 import b64encode
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import plotly.io as pio
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tl_vzero.choices import integer
from tl_vzero.effects.measure import Effect
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ScoresError, install_command
from tl_vzero.evaluate.averages import MeanScores
from tl_vzero.files import check_writable, write_atomically, write_text
from tl_vzero.plot.long_rows import is_long, long_row
from tl_vzero.plot.maps import effect_map, heatmap, mean_map
from tl_vzero.plot.pages import rendered
from tl_vzero.plot.parts import SLIDER_ABOVE, plotly_text, short, visible
from tl_vzero.plot.sentence_view import Snippet
from tl_vzero.plot.small_maps import head_grid
from tl_vzero.scores import Drawn, Scores

PICTURES = (".png", ".svg", ".pdf")
SHARED = "plotly.min.js"
CHROMIUMS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "microsoft-edge")
USUAL_WIDTH, USUAL_HEIGHT = 1100, 600  # of a picture, where the figure says nothing
_loaded_for: set[int] = set()  # notebooks, by the ids of their shells, that have plotly.js


def save_figure(figure: go.Figure | Snippet, path: str | Path, *, shared_plotly: bool = False, scale: int = 2) -> Path:
    """Write a figure as a page (.html) or a picture (.png, .svg, .pdf), whole or not at all; returns the path.

    A page works offline: it holds plotly itself (4.8 MB), or with `shared_plotly` reads a file plotly.min.js beside
    it, which many pages share and which is written where it is missing or of another version. A picture is drawn by
    kaleido (the extra `images`) in a Chromium or Chrome, which is looked for at BROWSER_PATH, at CHROMIUM and on the
    PATH; `scale` is the pixels of a .png for each of the figure's own. Of the text view, a .svg needs neither, and
    there is .tex (for `xcolor`).
    Raises DependencyError where kaleido or a browser is missing, OutputPathError for a path that cannot be written,
    InputError for another ending.

    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> save_figure(go.Figure(), folder / "map.html", shared_plotly=True).name
    'map.html'
    >>> sorted(path.name for path in folder.iterdir())
    ['map.html', 'plotly.min.js']
    """
    if not isinstance(figure, go.Figure | Snippet):
        raise InputTypeError(f"figure is {type(figure).__name__}: expected what a function of tl_vzero.plot returns")
    ending = Path(path).suffix.lower()
    texts = (
        {".html": figure.to_page, ".svg": figure.to_svg, ".tex": figure.to_latex} if isinstance(figure, Snippet) else {}
    )
    endings = dict.fromkeys((".html", *PICTURES, *texts))
    if ending not in endings:
        raise InputError(f"cannot write {path}: expected a name that ends in {', '.join(endings)}")
    target = check_writable(path)
    if ending in texts:
        write_text(target, texts[ending]())
    elif ending in PICTURES:
        _write_picture(_of_picture(figure) if isinstance(figure, Snippet) else figure, target, ending, scale)
    else:
        if shared_plotly:
            share_plotly(target.parent)
        write_text(target, page_of(figure, SHARED if shared_plotly else True))
    return target


def page_of(figure: go.Figure, plotly: str | bool) -> str:
    """A figure as a whole page, with plotly inside (True) or read from an address."""
    background = figure.layout.template.layout.paper_bgcolor or "#ffffff"
    body = Markup(_html_of(figure, plotly))
    return rendered("plot/page.html", title="tl_vzero", body=body, margin=0, background=background)


def _html_of(figure: go.Figure, plotly: str | bool) -> str:
    html: str = figure.to_html(
        full_html=False, include_plotlyjs=plotly, include_mathjax=False, config={"displaylogo": False}
    )
    return html


def share_plotly(folder: Path) -> None:
    """Put plotly.min.js into a page's folder, once; that of another plotly would not draw the page as it was made."""
    script, path = get_plotlyjs(), folder / SHARED
    if not path.is_file() or path.stat().st_size != len(script.encode()) or path.read_bytes() != script.encode():
        write_text(path, script)


def _write_picture(figure: go.Figure, target: Path, ending: str, scale: int) -> None:
    if not 1 <= integer("scale", scale, "a whole number") <= 10:
        raise InputError(f"scale is {scale}: expected 1 to 10")
    try:
        draw = import_module("kaleido").calc_fig_sync
    except (ImportError, AttributeError) as error:
        raise DependencyError(
            f"pictures are drawn by kaleido 1 or newer, which is not installed: {install_command('images')}, or save "
            "as .html"
        ) from error
    plain = _without_controls(figure)
    options = {
        "format": ending[1:],
        "width": plain["layout"].get("width", USUAL_WIDTH),
        "height": plain["layout"].get("height", USUAL_HEIGHT),
        "scale": scale if ending == ".png" else 1,
    }
    drawn = draw(plain, opts=options, kopts={"path": _browser(), "n": 1})
    write_atomically(target, lambda partial: partial.write_bytes(drawn))


def _of_picture(view: Snippet) -> go.Figure:
    """A figure that is nothing but the picture of a sentence, as kaleido draws figures only."""
    source = f"data:image/svg+xml;base64,{b64encode(view.to_svg().encode()).decode()}"
    image = {"source": source, "xref": "paper", "yref": "paper", "x": 0, "y": 1, "sizex": 1, "sizey": 1}
    size = {"width": view.still["width"], "height": view.placed()["height"], "margin": dict.fromkeys("lrtb", 0)}
    return go.Figure(layout={"images": [image], "xaxis_visible": False, "yaxis_visible": False, **size})


def _without_controls(figure: go.Figure) -> dict[str, Any]:
    """The figure as it stands, without sliders: nobody moves one in a paper. What is shown names its layer instead."""
    plain: dict[str, Any] = figure.to_dict()
    layout = plain["layout"]
    for slider in layout.pop("sliders", ()):
        if layout.get("title", {}).get("subtitle"):
            step = slider["steps"][slider.get("active") or 0]
            place = f"{slider['currentvalue']['prefix']}{step['label']}"
            layout["title"]["subtitle"]["text"] = f"{place} · {layout['title']['subtitle']['text']}"
        if slider.get("yanchor") == "bottom":  # it stands above the maps, where plotly would leave its room empty
            layout["height"] -= SLIDER_ABOVE
            layout["margin"]["t"] -= SLIDER_ABOVE
    return plain


def _browser() -> str:
    named = [os.environ.get(name) for name in ("BROWSER_PATH", "CHROMIUM")]
    for path in (*named, *(shutil.which(name) for name in CHROMIUMS)):
        if path and Path(path).is_file():
            return path
    raise DependencyError(
        "pictures are drawn in a Chromium or Chrome, and none was found: install one (apt-get install chromium), or "
        "set BROWSER_PATH to its path, or save as .html"
    )


def figure_of(result: Drawn) -> go.Figure:
    """The figure of a result by itself: a Scores shows shares where it can, and opens on its most telling layer.

    Of few rows over very many sources it is one row, as text.
    """
    if isinstance(result, Effect):
        return effect_map(result)
    if isinstance(result, MeanScores):
        return mean_map(result)
    if not isinstance(result, Scores):
        raise InputTypeError(f"{type(result).__name__} has no figure: expected Scores, MeanScores or an Effect")
    layer = None
    with suppress(ScoresError, LookupError):  # as in the text: signed scores are drawn as they are
        result, layer = result.normalized(), result.telling_layer(result.shown_dest)
    if is_long(result):
        figure = long_row(result, result.shown_dest, layer=layer)
    else:
        figure = heatmap(result, layer=layer) if result.heads is None else head_grid(result, layer=layer)
    if "model" in result.metadata:
        figure.layout.title.text += f", {plotly_text(short(visible(str(result.metadata['model'])), 60))}"
    return figure


def notebook_bundle(result: Drawn) -> dict[str, Any]:
    """The mimebundle of a result: `repr` as text, its figure for plotly's own renderer and as HTML.

    In a Jupyter kernel the first bundle puts plotly.js into the notebook once, as plotly's "notebook"
    renderer does, and the HTML of every bundle uses it; nothing is fetched from a network. In a terminal
    only the text is made, and outside IPython the HTML carries plotly.js itself. Scores per head show all heads
    of a layer, an effect per head a table.
    """
    bundle: dict[str, Any] = {"text/plain": repr(result)}
    shell = _ipython_shell()
    in_kernel = shell is not None and getattr(shell, "kernel", None) is not None
    if shell is not None and not in_kernel:
        return bundle
    if isinstance(result, Effect | MeanScores) and result.heads is not None:
        return bundle | {"text/html": result.to_frame().to_html(index=False)}
    figure = figure_of(result)
    if in_kernel and id(shell) not in _loaded_for:
        pio.renderers["notebook"].activate()
        _loaded_for.add(id(shell))
    bundle |= pio.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict())
    bundle["text/html"] = _html_of(figure, not in_kernel)
    return bundle


def _ipython_shell() -> Any:
    # IPython is there if it runs us; importing it to find out would slow every other program.
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()
