"""Maps of what is no text: what a vision model draws on, laid over its picture, and what a speech encoder draws on,
over time in seconds."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, Unpack

import numpy as np
import plotly.express as px
import plotly.graph_objects as go
from jaxtyping import Shaped
from torch import Tensor

from tl_vzero.errors import InputError, InputTypeError, ScoresError, unknown_name
from tl_vzero.plot import parts
from tl_vzero.plot.theme import COLOUR_BAR_HEIGHT, LIGHT, RAMP_POWER, Theme
from tl_vzero.scores import Scores

DIGITS = 4
PICTURE_HEIGHT = 420
PICTURE_SHARE = 0.66  # of the width, where text stands beside
LINE_HEIGHT = 18
SLIDER_ROOM = 100
AROUND = 88 + COLOUR_BAR_HEIGHT + SLIDER_ROOM  # title, colour bar and slider, in pixels
STRONGEST = 0.85  # how much of the picture the largest value covers
RAMP_STEPS = 9
TIME_HEIGHT = 560
_PATCH = re.compile(r"r(\d+)c(\d+)")
_SECONDS = re.compile(r"(\d+(?:\.\d+)?) s")
Picture = Shaped[np.ndarray, "height width 3"] | Shaped[Tensor, "height width 3"]


def patch_overlay(
    scores: Scores,
    image: Picture,
    dest: int | str = 0,
    *,
    part: str = "image",
    layer: int | None = None,
    theme: Theme = LIGHT,
    **look: Unpack[parts.Look],
) -> go.Figure:
    """Lay what a destination draws on over the picture, one square per patch, with a layer slider.

    `image` is `[height, width, 3]`, bytes from 0 to 255 or floats from 0 to 1; sources are patches labelled by row and
    column ("r2c5"), from which the grid is read, and others such as [CLS] are left out. The colour is clear at 0 and
    strongest at the largest value in the layer shown. The destination has a frame. Of a text with an image in it the
    text stands beside the picture, a token a line, in the same colours; `part` is the kind of its patches
    (`Scores.kinds`), such as "image 2" of several. Raises ScoresError for scores per head, signed scores or no patches,
    InputError and InputTypeError for what is no such image, and for a destination or layer that is not there.

    >>> import numpy as np, torch
    >>> from tl_vzero.scores import Scores
    >>> tokens = ("[CLS]", "r0c0", "r0c1")
    >>> scores = Scores(torch.eye(3)[None], "attention", (0,), tokens, tokens, (0, 1, 2), (0, 1, 2), 1, 3)
    >>> figure = patch_overlay(scores, np.zeros((8, 16, 3)), "r0c1")
    >>> [list(row) for row in figure.data[0].z]
    [[0.0, 1.0]]
    """
    parts.refuse_heads(scores)
    parts.refuse_signed(scores)
    start, row = parts.layer_index(scores, layer), scores.dest_index(dest)
    pixels = _pixels(image)
    patches, text = _patches(scores, part), _text(scores)
    rows, columns = (1 + max(place[axis] for place in patches.values()) for axis in (0, 1))
    height, width = pixels.shape[0] / rows, pixels.shape[1] / columns
    drawn = parts.rounded(scores.values[:, row], DIGITS)
    grids = [_grid(values, patches, rows, columns) for values in drawn]
    target = scores.dest_tokens[row].strip()
    name = parts.plotly_text(parts.visible(target))
    beside = [[values[index] for index in text] for values in drawn]
    both = [[*grid, line] for grid, line in zip(grids, beside, strict=True)]  # one scale of colours for the two
    trace, layout = parts.layered(
        scores, both, lambda index: parts.hover_box(f"layer {index}", name, "%{customdata}"), start, theme
    )
    trace |= {
        "z": grids[start],
        "x0": width / 2,
        "dx": width,
        "y0": height / 2,
        "dy": height,
        "customdata": [[f"r{r}c{c}" for c in range(columns)] for r in range(rows)],
        "hoverongaps": False,
    }
    title = parts.titled(f"{parts.method_text(scores)}: what {name} draws on", "laid over the picture")
    layout["coloraxis"]["colorscale"] = _see_through(theme)
    layout |= {
        # A title that makes its own room moves the picture, and plotly leaves the patches where they were.
        "title": title | {"automargin": False, "yanchor": "top", "pad": {"l": 16, "t": 14}},
        "margin": {"l": 24, "r": 24, "t": 88, "b": COLOUR_BAR_HEIGHT + SLIDER_ROOM},
        "images": [_below(pixels)],
        "height": max(PICTURE_HEIGHT, LINE_HEIGHT * len(text)) + AROUND,
        "xaxis": {"range": [0, pixels.shape[1]], "visible": False, "constrain": "domain"},
        "yaxis": {"range": [pixels.shape[0], 0], "visible": False, "scaleanchor": "x", "constrain": "domain"},
    }
    for step, grid, line in zip(layout["sliders"][0]["steps"], grids, beside, strict=True):
        step["args"][0]["z"] = [grid, [[value] for value in line]][: 1 + bool(text)]
        step["args"][2] = [0, 1][: 1 + bool(text)]
    column = [trace]
    if text:
        layout["xaxis"]["domain"] = [0, PICTURE_SHARE]
        layout["xaxis2"] = {"domain": [PICTURE_SHARE + 0.03, 1], "visible": False}
        layout["yaxis2"] = {"autorange": "reversed", "visible": False, "anchor": "x2"}
        column.append(_lines(scores, text, beside[start], trace))
    figure = parts.drawn([go.Heatmap(part) for part in column], layout, **look)
    place = {scores.src_positions[index]: cell for index, cell in patches.items()}.get(scores.dest_positions[row])
    lines = [scores.src_positions[index] for index in text]
    frame: dict[str, Any] | None = None
    if place is not None:
        frame = {"x0": place[1] * width, "x1": (place[1] + 1) * width, "y0": place[0] * height}
        frame["y1"] = frame["y0"] + height
    elif scores.dest_positions[row] in lines:
        at = lines.index(scores.dest_positions[row])
        frame = {"xref": "x2 domain", "yref": "y2", "x0": 0, "x1": 1, "y0": at - 0.5, "y1": at + 0.5}
    if frame is not None:
        figure.add_shape(type="rect", line={"color": theme.accent, "width": 3}, **frame)
    return figure


def _text(scores: Scores) -> list[int]:
    """The sources that are text, where they are told apart from what is none."""
    if "kinds" not in scores.metadata.get("signal", {}):
        return []
    return [index for index, position in enumerate(scores.src_positions) if scores.kinds[position] == "text"]


def _lines(scores: Scores, text: list[int], values: list[float], trace: dict[str, Any]) -> dict[str, Any]:
    """The text beside the picture, a token a line, coloured as the patches are."""
    tokens = [scores.src_tokens[index] for index in text]
    return {
        "z": [[value] for value in values],
        "text": [[parts.tick_text(token)] for token in tokens],
        "texttemplate": "%{text}",
        "customdata": [[parts.hover_text(scores.src_tokens[index], scores.src_positions[index])] for index in text],
        "hovertemplate": trace["hovertemplate"],
        "coloraxis": "coloraxis",
        "xaxis": "x2",
        "yaxis": "y2",
    }


def _pixels(image: Any) -> np.ndarray:
    array = image.detach().cpu().numpy() if isinstance(image, Tensor) else image
    if not isinstance(array, np.ndarray):
        raise InputTypeError(f"image is {type(image).__name__}: expected an array [height, width, 3]")
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        hint = "; call .permute(1, 2, 0) on it" if array.ndim == 3 and array.shape[0] == 3 else ""
        raise InputError(f"image has shape {list(array.shape)}: expected [height, width, 3]{hint}")
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputTypeError(f"image is of {array.dtype}: expected bytes (uint8), or floats from 0 to 1")
    if not (array.min() >= 0 and array.max() <= 1):
        raise InputError(
            f"image goes from {array.min():.3g} to {array.max():.3g}: expected floats from 0 to 1; undo the image "
            "processor's normalisation, or give the picture as it was"
        )
    bytes_: np.ndarray = np.rint(array * 255).astype(np.uint8)
    return bytes_


def _patches(scores: Scores, part: str) -> dict[int, tuple[int, int]]:
    """The row and column of each source that is a patch of that part of a text, or of a model of images alone."""
    tokens, kinds = scores.src_tokens, scores.kinds if "signal" in scores.metadata else None
    of_part = [kinds is None or kinds[position] == part for position in scores.src_positions]
    if not any(of_part) and kinds is not None:
        raise unknown_name("part", part, sorted({kind for kind in kinds if kind != "text"}))
    matches = {n: _PATCH.fullmatch(token.strip()) for n, token in enumerate(tokens) if of_part[n]}
    patches = {index: (int(match[1]), int(match[2])) for index, match in matches.items() if match}
    if not patches:
        raise ScoresError(
            f"no source is a patch: expected labels of row and column such as r2c5, and found {list(tokens[:4])}; "
            "compute the scores of a vision model on an image"
        )
    return patches


def _grid(
    row: Sequence[float], patches: dict[int, tuple[int, int]], rows: int, columns: int
) -> list[list[float | None]]:
    """A row's values where the patches are; None where a source was left out."""
    at = {place: row[index] for index, place in patches.items()}
    return [[at.get((r, c)) for c in range(columns)] for r in range(rows)]


def _see_through(theme: Theme) -> list[list[float | str]]:
    """One colour from clear to strong, so that the picture is seen where little is drawn on."""
    red, green, blue = (int(theme.mark[i : i + 2], 16) for i in (1, 3, 5))
    steps = [step / (RAMP_STEPS - 1) for step in range(RAMP_STEPS)]
    return [[round(step**RAMP_POWER, 4), f"rgba({red},{green},{blue},{round(step * STRONGEST, 3)})"] for step in steps]


def _below(pixels: np.ndarray) -> dict[str, Any]:
    return {
        "source": px.imshow(pixels, binary_string=True, binary_backend="pypng").data[0].source,
        "xref": "x",
        "yref": "y",
        "x": 0,
        "y": 0,
        "sizex": pixels.shape[1],
        "sizey": pixels.shape[0],
        "sizing": "stretch",
        "layer": "below",
    }


def time_map(
    scores: Scores, *, layer: int | None = None, theme: Theme = LIGHT, **look: Unpack[parts.Look]
) -> go.Figure:
    """Draw a speech encoder's `[layer, dest, src]` over time in seconds, with a layer slider.

    A frame is labelled by when it begins ("0.32 s"), and its cell reaches to the next; time runs down the rows, which
    are destinations, and to the right. `layer` is the one shown first.
    Raises ScoresError for scores per head, of spans or whose labels are no times, InputError for a layer that the
    scores do not have.

    >>> import torch
    >>> from tl_vzero.scores import Scores
    >>> frames = ("0.00 s", "0.02 s")
    >>> scores = Scores(torch.eye(2)[None], "attention", (0,), frames, frames, (0, 1), (0, 1), 1, 2)
    >>> time_map(scores).data[0].x
    (0.01, 0.03)
    """
    parts.refuse_heads(scores)
    if scores.src_spans is not None:
        raise ScoresError("these columns are spans of frames, which have no one length; draw them by heatmap")
    start = parts.layer_index(scores, layer)
    sources, destinations = _times(scores.src_tokens), _times(scores.dest_tokens)
    grids = [parts.rounded(values, DIGITS) for values in scores.values]
    trace, layout = parts.layered(scores, grids, lambda index: parts.hover_box(f"layer {index}"), start, theme)
    trace |= {
        "x": _middles(sources, destinations),
        "y": _middles(destinations, sources),
        "customdata": [[[dest, source] for source in scores.src_tokens] for dest in scores.dest_tokens],
    }
    title = f"{parts.method_text(scores)}: {parts.STAGES[scores.stage]}"
    layout |= {
        "title": parts.titled(title, f"{len(sources)} frames up to {scores.src_tokens[-1]}"),
        "xaxis": _time_axis("source (column)") | {"side": "top", "constrain": "domain"},
        "yaxis": _time_axis("destination (row)") | parts.SQUARE,
        "height": TIME_HEIGHT + COLOUR_BAR_HEIGHT + 150,
    }
    return parts.drawn(go.Heatmap(trace), layout, **look)


def _times(labels: Sequence[str]) -> list[float]:
    times = [float(match[1]) for label in labels if (match := _SECONDS.fullmatch(label.strip()))]
    if not labels or len(times) < len(labels):
        raise ScoresError(
            f"these positions are no frames of a sound: expected labels such as '0.32 s', and found "
            f"{list(labels[:4])}; compute the scores of a speech encoder, or draw them by heatmap"
        )
    return times


def _middles(times: Sequence[float], others: Sequence[float]) -> list[float]:
    """The middles of the frames' cells: half the shortest step after each begins."""
    steps = [after - before for labels in (times, others) for before, after in pairwise(labels)]
    return [round(time + min(steps, default=0.02) / 2, 6) for time in times]


def _time_axis(title: str) -> dict[str, Any]:
    return {"type": "linear", "ticksuffix": " s", "title": {"text": f"{title}, when the frame begins"}}
