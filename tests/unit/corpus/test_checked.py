"""Hashes of files and of their pieces, by slices of the whole."""

import hashlib
import random
from itertools import pairwise
from pathlib import Path

import pytest

from tl_vzero.corpus.checked import PIECES_END, Pieces, hashes_of


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def sliced(content: bytes) -> list[str]:
    """Of bytes 0 to 64, then of as many again as came before, as far as there are any."""
    limits = [0, 64]
    while limits[-1] < PIECES_END:
        limits.append(2 * limits[-1])
    parts = [content[start:end] for start, end in pairwise(limits)]
    return [sha256(part) for part in parts if part]


@pytest.mark.parametrize("size", [0, 1, 63, 64, 65, 127, 128, 129, 1000, PIECES_END - 1, PIECES_END, PIECES_END + 70])
def test_pieces_do_not_depend_on_how_the_bytes_come(tmp_path: Path, size: int) -> None:
    draw = random.Random(size)
    content = draw.randbytes(size)
    hashed, rest = Pieces(), memoryview(content)
    while rest:
        part = draw.choice([1, 5, 64, 200, 100_000, 3_000_000])
        hashed.update(rest[:part])
        rest = rest[part:]
    (tmp_path / "file").write_bytes(content)
    with (tmp_path / "file").open("rb") as file:
        read = hashes_of(file)
    for written in (hashed.written, read):
        assert (written.sha256, written.n_bytes, written.pieces) == (sha256(content), size, sliced(content))
