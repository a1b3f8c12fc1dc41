"""Value Zeroing within a tolerance against the exact maps: `python tests/bench/bench_tolerance.py`.

all-MiniLM-L6-v2 reads this repository's own pages, 512 tokens at a time; the models of random weights read random ids.
Repetitions alternate within one process; ratios are of medians. Errors are compared over all rows that were timed.
"""

import argparse
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from bench_closed_form import bert, gpt2, medians, sentences
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT)]

import tl_vzero  # noqa: E402


def pages(model: Any, length: int, count: int) -> list[Tensor]:
    """The first tokens of the longest pages."""
    texts = sorted((page.read_text() for page in ROOT.glob("docs/**/*.md")), key=len, reverse=True)
    return [
        model.tokenizer(text, truncation=True, max_length=length, return_tensors="pt")["input_ids"][0]
        for text in texts[:count]
    ]


def row(name: str, model: Any, texts: Sequence[Tensor], tolerance: float, repeat: int) -> None:
    exact, within = medians(
        [
            lambda: tl_vzero.value_zeroing(model, texts[0], engine="closed_form"),
            lambda: tl_vzero.value_zeroing(model, texts[0], engine="closed_form", tolerance=tolerance),
        ],
        repeat,
    )
    rows = outside = 0
    largest = guessed = 0.0
    for ids in texts:
        true = tl_vzero.value_zeroing(model, ids, engine="closed_form")
        scores = tl_vzero.value_zeroing(model, ids, engine="closed_form", tolerance=tolerance)
        off = (scores.normalized().values.double() - true.normalized().values.double()).abs()
        rows += off[..., 0].numel()
        outside += int((off > scores.error + 1e-6).any(dim=-1).sum())
        largest = max(largest, float(off.max()))
        changed = (scores.values - true.values).abs() > 1e-3 * true.values
        guessed += int(changed.sum()) / int((true.values > 0).sum()) / len(texts)
    figures = f"{1000 * exact:.0f} | {1000 * within:.0f} | {exact / within:.2f} | {guessed:.0%}"
    print(f"| {name} | {tolerance:g} | {figures} | {rows} | {largest:.1e} | {outside} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Value Zeroing within a tolerance against the exact maps.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="128 tokens, one text")
    parser.add_argument("--tolerance", type=float, default=0.01)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    length, texts, repeat = (128, 1, 1) if options.quick else (512, 4, 3)
    print(f"{options.threads} threads, torch {torch.__version__}, T={length}, confidence 1 - 1e-6\n")
    print(
        "| what | tolerance | exact, ms | within, ms | times faster | guessed | rows | largest error | rows outside |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    minilm = tl_vzero.load_model("all-MiniLM-L6-v2")
    models = [
        ("BERT-base width, random weights", tl_vzero.load_model(bert()), sentences([length])),
        ("GPT-2-small width, random weights", tl_vzero.load_model(gpt2()), sentences([length])),
        ("all-MiniLM-L6-v2, real text", minilm, pages(minilm, length, texts)),
    ]
    for name, model, ids in models:
        row(name, model, ids, options.tolerance, repeat)


if __name__ == "__main__":
    main()
