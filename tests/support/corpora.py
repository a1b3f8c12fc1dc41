"""Small inputs for corpora, and corpora compared number by number."""

import json
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SUBJECTS = ("the pictures of some hat", "the author near the lamps", "the authors", "the guests of the author")
ENDS = ("scaring marcus.", "today.", "near the lamps.")


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of many lengths, each with one mask."""
    draw = random.Random(seed)
    return [
        f"{draw.choice(SUBJECTS)}{' near the author' * draw.randint(0, 2)} [MASK] {draw.choice(ENDS)}"
        for _ in range(count)
    ]


def text_file(folder: Path, count: int, seed: int = 0) -> Path:
    path = folder / "sentences.txt"
    path.write_text("\n".join(sentences(count, seed)) + "\n", encoding="utf-8")
    return path


def shards_of(folder: Path) -> list[Path]:
    return sorted((folder / "shards").glob("*.parquet"))


def table_of(folder: Path) -> Any:
    """All rows of a corpus, in the order of its shards."""
    return pa.concat_tables([pq.read_table(path) for path in shards_of(folder)])


def errors_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "errors.jsonl").read_text(encoding="utf-8").splitlines()]


def assert_same_corpus(folder: Path, expected: Path) -> None:
    """The same rows with the same numbers, to the last bit, and the same failures; nothing left over."""
    assert [path.name for path in shards_of(folder)] == [path.name for path in shards_of(expected)]
    for one, other in zip(shards_of(folder), shards_of(expected), strict=True):
        assert one.read_bytes() == other.read_bytes(), f"{one} differs"
    assert errors_of(folder) == errors_of(expected)
    positions = table_of(folder)["position"].to_pylist()
    assert positions == sorted(set(positions))
    assert left_over(folder) == []


def left_over(folder: Path) -> list[str]:
    """Partial files."""
    return [str(path) for path in folder.rglob("*.partial")]
