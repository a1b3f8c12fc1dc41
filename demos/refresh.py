"""Run notebooks again and keep their outputs small: python demos/refresh.py demos/2_*.ipynb

In a notebook a figure is kept as plotly's JSON, for what can draw it, with a picture beside it, for what cannot; the
5 MB of plotly.js that it would bring along by itself are not kept. Warnings are shown here, and are not kept either.

`python demos/refresh.py gallery` draws the pictures of docs/gallery instead, all of the embedded model.
Needs the extras `notebook` and `images`, and a Chromium.
"""

import base64
import io
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import plotly.graph_objects as go
from nbclient import NotebookClient
from PIL import Image

import tl_vzero
from tl_vzero import plot
from tl_vzero.plot.sentence_view import Snippet

PLOTLY = "application/vnd.plotly.v1+json"
WIDTH = 900  # of a picture, in pixels, where a figure does not say
COLOURS = 256  # figures have few, and their files become five times smaller
GALLERY = Path(__file__).parents[1] / "docs" / "gallery"
SENTENCE = "the pictures of some hat [MASK] scaring marcus."
SINGULAR = "the picture of some hat [MASK] scaring marcus."


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
    return base64.b64encode(png(drawn(figure))).decode()


def drawn(figure: go.Figure | Snippet, scale: int = 1) -> Image.Image:
    with tempfile.TemporaryDirectory() as folder:
        return Image.open(plot.save_figure(figure, Path(folder) / "figure.png", scale=scale)).convert("RGB")


def png(image: Image.Image) -> bytes:
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(kept := io.BytesIO(), "PNG", optimize=True)
    return kept.getvalue()


def gallery() -> Iterator[tuple[str, Image.Image]]:
    """Every picture of docs/gallery, by the name of its file."""
    model = tl_vzero.load_model("agreement-mini")
    compared = tl_vzero.compare(model, SENTENCE)
    scores = compared["value_zeroing"]
    shares = scores.normalized()
    yield "sentence", drawn(plot.text_view(shares, "[MASK]", layer=1), scale=2)
    yield "sentence_dark", drawn(plot.text_view(shares, "[MASK]", layer=1, theme=plot.DARK), scale=2)
    named = [compared[name].normalized() for name in ("value_zeroing", "attention", "alti")]
    effect = tl_vzero.zero_ablation(model, SENTENCE, target_ids=("are", "is"))
    patched = tl_vzero.value_patching(model, SENTENCE, SINGULAR, target_ids=("are", "is"))
    figures = {
        "heatmap": plot.heatmap(shares, layer=1),
        "layer_grid": plot.layer_grid(shares),
        "target_row": plot.target_row(shares, "[MASK]"),
        "flow_graph": plot.flow_graph(scores, "[MASK]"),
        "method_comparison": plot.method_comparison(named),
        "head_grid": plot.head_grid(tl_vzero.value_zeroing(model, SENTENCE, per_head=True, layers=[1])),
        "zero_ablation": plot.effect_map(effect),
        "value_patching": plot.effect_map(patched),
    }
    for name, figure in figures.items():
        figure.update_layout(width=figure.layout.width or WIDTH)
        yield name, drawn(figure)


if __name__ == "__main__":
    os.environ["PLOTLY_RENDERER"] = "plotly_mimetype"
    for name in sys.argv[1:]:
        if name == "gallery":
            for title, image in gallery():
                (GALLERY / f"{title}.png").write_bytes(png(image))
        else:
            refresh(Path(name))
