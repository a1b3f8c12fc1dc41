"""How a Scores shows itself in a notebook."""

import sys
from typing import Any

import plotly.io as pio

from tl_vzero.plot.maps import heatmap
from tl_vzero.plot.small_maps import head_grid
from tl_vzero.scores import Scores

_loaded_for: set[int] = set()


def notebook_bundle(scores: Scores) -> dict[str, Any]:
    """The mimebundle of a Scores: `repr` as text, its map for plotly's own renderer and as HTML.

    In a Jupyter kernel the first bundle puts plotly.js into the notebook once, as plotly's "notebook"
    renderer does, and the HTML of every bundle uses it; nothing is fetched from a network. In a terminal
    only the text is made, and outside IPython the HTML carries plotly.js itself. Scores per head show all heads
    of a layer.
    """
    bundle: dict[str, Any] = {"text/plain": repr(scores)}
    shell = _ipython_shell()
    in_kernel = shell is not None and getattr(shell, "kernel", None) is not None
    if shell is not None and not in_kernel:
        return bundle
    figure = heatmap(scores) if scores.heads is None else head_grid(scores)
    if in_kernel:
        _load_plotly_once(id(shell))
    bundle |= pio.renderers["plotly_mimetype"].to_mimebundle(figure.to_dict())
    bundle["text/html"] = figure.to_html(
        full_html=False, include_plotlyjs=not in_kernel, include_mathjax=False, config={"displaylogo": False}
    )
    return bundle


def _ipython_shell() -> Any:
    # IPython is there if it runs us; importing it to find out would slow every other program.
    ipython = sys.modules.get("IPython")
    return None if ipython is None else ipython.get_ipython()


def _load_plotly_once(shell_id: int) -> None:
    if shell_id not in _loaded_for:
        pio.renderers["notebook"].activate()
        _loaded_for.add(shell_id)
