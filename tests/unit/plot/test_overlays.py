"""Pictures and sounds: patches where they belong, frames at their times."""

import base64
import re
import struct
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import TypeCheckError
from support.made_up import PIECES, made_up_scores
from support.pictures import plain

from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.plot import patch_overlay, time_map

PATCHES = ("[CLS]", *(f"r{row}c{column}" for row in range(2) for column in range(3)))
FRAMES = ("0.00 s", "0.02 s", "0.04 s", "0.06 s")
PICTURE = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)


def pixels_of(png: bytes) -> np.ndarray:
    """Read back a PNG of our own kind: 8 bits, three channels, no filter."""
    chunks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        kind, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size]) == (zlib.crc32(kind + body),)
        chunks[kind] = body
        at += 12 + size
    width, height = struct.unpack(">II", chunks[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, 1 + width * 3)
    assert not lines[:, 0].any()
    return lines[:, 1:].reshape(height, width, 3)


def test_each_patch_lies_where_it_was_cut() -> None:
    scores = made_up_scores(PATCHES).normalized()
    figure = plain(patch_overlay(scores, PICTURE, "r1c2", layer=1))
    trace = figure["data"][0]
    torch.testing.assert_close(torch.tensor(trace["z"]), scores.row("r1c2")[1, 1:].view(2, 3), rtol=5e-4, atol=0)
    assert (trace["x0"], trace["dx"], trace["y0"], trace["dy"]) == (2, 4, 2, 4)
    assert trace["customdata"] == [["r0c0", "r0c1", "r0c2"], ["r1c0", "r1c1", "r1c2"]]
    frame = figure["layout"]["shapes"][0]
    assert [frame[side] for side in ("x0", "x1", "y0", "y1")] == [8, 12, 4, 8]
    assert figure["layout"]["sliders"][0]["active"] == 1


@pytest.mark.parametrize(
    "picture", [PICTURE, PICTURE / 255, torch.from_numpy(PICTURE.copy())], ids=["bytes", "floats", "tensor"]
)
def test_the_picture_is_shown_as_it_was(picture: Any) -> None:
    layout = plain(patch_overlay(made_up_scores(PATCHES), picture))["layout"]
    image = layout["images"][0]
    assert "shapes" not in layout
    png = base64.b64decode(image["source"].removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(pixels_of(png), PICTURE)
    assert (image["sizex"], image["sizey"]) == (12, 8)


@pytest.mark.parametrize(
    ("picture", "error", "match"),
    [
        (PICTURE.transpose(2, 0, 1), InputError, r"permute\(1, 2, 0\)"),
        (PICTURE[..., 0], InputError, r"\[height, width, 3\]"),
        (PICTURE / 100.0, InputError, "floats from 0 to 1"),
        (np.full((4, 6, 3), np.nan), InputError, "floats from 0 to 1"),
        (PICTURE.astype(int), InputTypeError, "uint8"),
        ("cat.png", InputTypeError, "expected an array"),
    ],
)
def test_what_is_no_picture_is_refused(picture: Any, error: type[Exception], match: str) -> None:
    with pytest.raises((error, TypeCheckError)) as raised:
        patch_overlay(made_up_scores(PATCHES), picture)
    if not isinstance(raised.value, TypeCheckError):  # the tests' own check of annotations, which users do not have
        assert re.search(match, str(raised.value))


def test_scores_of_text_have_neither_patches_nor_times() -> None:
    with pytest.raises(ScoresError, match="no source is a patch"):
        patch_overlay(made_up_scores(), PICTURE)
    with pytest.raises(ScoresError, match="no frames of a sound"):
        time_map(made_up_scores())
    heads = made_up_scores(values=torch.rand(3, 2, len(PIECES), len(PIECES)), heads=(0, 1))
    with pytest.raises(ScoresError, match="per head"):
        time_map(heads)


def test_frames_stand_at_their_times() -> None:
    scores = made_up_scores(FRAMES).normalized()
    figure = plain(time_map(scores, layer=2))
    trace = figure["data"][0]
    assert trace["x"] == trace["y"] == [0.01, 0.03, 0.05, 0.07]
    assert trace["customdata"][1][3] == ["0.02 s", "0.06 s"]
    torch.testing.assert_close(torch.tensor(trace["z"]), scores.values[2], rtol=5e-4, atol=0)
    with pytest.raises(InputError, match="layer 7"):
        time_map(scores, layer=7)


WITH_TEXT = ("a", "r0c0", "r0c1", "hat", "r0c2", "r9c9")  # the last is what somebody wrote
KINDS = ["text", "image", "image", "text", "image", "text"]


def test_text_stands_beside_its_picture_in_the_same_colours() -> None:
    scores = made_up_scores(WITH_TEXT, metadata={"signal": {"kinds": KINDS}})
    figure = plain(patch_overlay(scores, PICTURE, "hat", layer=1))
    picture, text = figure["data"]
    row = scores.row("hat")
    torch.testing.assert_close(torch.tensor(picture["z"]), row[1, [1, 2, 4]].view(1, 3), rtol=5e-4, atol=0)
    torch.testing.assert_close(torch.tensor(text["z"]), row[1, [0, 3, 5]].view(3, 1), rtol=5e-4, atol=0)
    assert [line[0] for line in text["text"]] == ["a", "hat", "r9c9"]
    assert picture["coloraxis"] == text["coloraxis"] == "coloraxis"
    assert figure["layout"]["coloraxis"]["cmax"] == pytest.approx(row[1].max().item(), rel=1e-3)
    (frame,) = figure["layout"]["shapes"]
    assert frame["yref"] == "y2" and (frame["y0"], frame["y1"]) == (0.5, 1.5)
    for layer, step in enumerate(figure["layout"]["sliders"][0]["steps"]):
        on_picture, on_text = step["args"][0]["z"]
        assert on_picture[0][1] == pytest.approx(row[layer, 2].item(), rel=1e-3)
        assert on_text[2][0] == pytest.approx(row[layer, 5].item(), rel=1e-3) and step["args"][2] == [0, 1]


def test_one_of_several_pictures_is_drawn_by_its_name() -> None:
    kinds = ["text", "image 1", "image 1", "text", "image 2", "text"]
    scores = made_up_scores(WITH_TEXT, metadata={"signal": {"kinds": kinds}})
    figure = plain(patch_overlay(scores, PICTURE, "hat", part="image 1"))
    assert figure["data"][0]["customdata"] == [["r0c0", "r0c1"]]
    with pytest.raises(InputError, match="unknown part 'image': expected one of image 1, image 2"):
        patch_overlay(scores, PICTURE)
