"""Made-up broken inputs: no crash, and every record is either scored or refused with a reason."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import errors_of, sentences, table_of

import tl_vzero
from tl_vzero.corpus import run_corpus
from tl_vzero.corpus.source import open_source
from tl_vzero.errors import FileFormatError

Draw = random.Random
FAST, SLOW = 12, 200


def broken_bytes(draw: Draw, content: bytes) -> bytes:
    """Bytes changed, left out, doubled, cut off, or of another encoding."""
    damaged = bytearray(content)
    for _ in range(draw.randint(1, 6)):
        at = draw.randrange(len(damaged) + 1)
        kind = draw.randrange(6)
        if kind == 0:
            damaged[at:at] = bytes(draw.randrange(256) for _ in range(draw.randint(1, 8)))
        elif kind == 1:
            del damaged[at : at + draw.randint(1, 40)]
        elif kind == 2:
            damaged[at:at] = b"\0" * draw.randint(1, 4)
        elif kind == 3:
            damaged[at:at] = "née größer 東京 😀".encode(draw.choice(["latin-1", "utf-16", "utf-8"]), "replace")
        elif kind == 4:
            damaged[at:at] = draw.choice(
                [b'"', b"{", b"\r", b"\n\n", b"\xef\xbb\xbf", b"\\ud800", b"\x85", b"\xe2\x80\xa8"]
            )
        else:
            damaged[at:at] = b"very long " * draw.choice([20, 2000, 120_000])
    return bytes(damaged) if draw.random() < 0.95 else b""


def text(draw: Draw, lines: list[str]) -> bytes:
    return broken_bytes(draw, "\n".join(lines).encode())


def jsonl(draw: Draw, lines: list[str]) -> bytes:
    return broken_bytes(
        draw, "\n".join(json.dumps({"id": str(n), "text": line}) for n, line in enumerate(lines)).encode()
    )


def csv(draw: Draw, lines: list[str]) -> bytes:
    return broken_bytes(draw, ("id,text\n" + "\n".join(f'{n},"{line}"' for n, line in enumerate(lines))).encode())


def parquet(draw: Draw, lines: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    odd = [draw.choice([line, None, "", line + "\0", "long " * 3000]) for line in lines]
    pq.write_table(pa.table({"id": list(range(len(odd))), "text": pa.array(odd, pa.string())}), sink)
    content = sink.getvalue().to_pybytes()
    return broken_bytes(draw, content) if draw.random() < 0.3 else content


MAKERS: dict[str, Callable[[Draw, list[str]], bytes]] = {"txt": text, "jsonl": jsonl, "csv": csv, "parquet": parquet}


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


def check(model: Any, folder: Path, seed: int) -> str:
    draw = Draw(seed)
    suffix = list(MAKERS)[seed % len(MAKERS)]
    source = folder / f"{seed}.{suffix}"
    source.write_bytes(MAKERS[suffix](draw, sentences(draw.randint(1, 8), seed)))
    try:
        opened = open_source(source)
        count = sum(1 for _ in opened.raws())
    except FileFormatError:
        return "refused"
    run = run_corpus(model, source, folder / f"out{seed}", rows="summary", shard_size=3, layers=[0])
    scored = table_of(run.folder)["position"].to_pylist() if run.shards else []
    failed = errors_of(run.folder)
    assert sorted(scored + [failure["position"] for failure in failed]) == list(range(count))
    assert all(failure["reason"] and failure["id"] for failure in failed)
    assert (len(scored), len(failed)) == (run.sentences, run.failed)
    return "run"


@pytest.mark.parametrize("seed", range(FAST))
def test_a_broken_input_loses_nothing(model: Any, tmp_path: Path, seed: int) -> None:
    check(model, tmp_path, seed)


@pytest.mark.slow
def test_two_hundred_broken_inputs_lose_nothing(model: Any, tmp_path: Path) -> None:
    outcomes = [check(model, tmp_path, 1000 + seed) for seed in range(SLOW)]
    assert outcomes.count("run") > SLOW / 2
