"""Run notebooks again and keep their outputs small: python demos/refresh.py demos/2_*.ipynb

A figure is kept as plotly's JSON, for what can draw it, with a picture beside it, for what cannot; the 5 MB of
plotly.js that it would bring along by itself are not kept. Warnings are shown here, and are not kept either.
Needs the extras `notebook` and `images`, and a Chromium.
"""

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient
from PIL import Image

from tl_vzero import plot

PLOTLY = "application/vnd.plotly.v1+json"
WIDTH = 900  # of a picture, in pixels, where a figure does not say
COLOURS = 256  # figures have few, and their files become five times smaller


def refresh(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook, timeout=600, record_timing=False, resources={"metadata": {"path": str(path.parent)}}
    ).execute()
    for cell in notebook.cells:
        if cell.cell_type != "code":
            continue
        for warning in (output for output in cell.outputs if output.get("name") == "stderr"):
            sys.stderr.write(warning.text)
        cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        for output in cell.outputs:
            if PLOTLY in output.get("data", {}):
                output.data = {PLOTLY: output.data[PLOTLY], "image/png": picture(output.data[PLOTLY])}
    nbformat.write(notebook, path)


def picture(bundle: dict[str, Any]) -> str:
    """A figure's PNG, as notebooks hold one."""
    figure = go.Figure(data=bundle["data"], layout=bundle["layout"])
    figure.update_layout(width=figure.layout.width or WIDTH)
    with tempfile.TemporaryDirectory() as folder:
        path = plot.save_figure(figure, Path(folder) / "figure.png", scale=1)
        drawn = Image.open(path).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    drawn.save(kept := io.BytesIO(), "PNG", optimize=True)
    return base64.b64encode(kept.getvalue()).decode()


if __name__ == "__main__":
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    for name in sys.argv[1:]:
        refresh(Path(name))
