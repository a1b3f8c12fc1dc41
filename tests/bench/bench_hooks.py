"""The hook engine against the authors' loop: `python tests/bench/bench_hooks.py`.

The authors' loop: for each layer and each position, run that one Hugging Face layer on its clean input, batch 1,
eager, with the value projection's output zeroed at the position, then the cosine distance of every row.
Both include the clean run. Repetitions alternate within one process, so that a busy machine slows both.
Prints a markdown table of medians; the ratio is loop / engine, more than 1 where the engine is faster.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from support import golden  # noqa: E402
from support.references import authors_loop  # noqa: E402
from transformers import BertConfig, BertForMaskedLM  # noqa: E402

import tl_vzero  # noqa: E402

LENGTHS = [6, 12, 32, 64, 128]


@dataclass
class Subject:
    """One model in both forms."""

    name: str
    hf_model: Any
    model: Any
    vocabulary: int


def bert_base_width() -> Subject:
    """Two layers of BERT-base's width with random weights."""
    torch.manual_seed(0)
    hf_model = BertForMaskedLM(BertConfig(num_hidden_layers=2, vocab_size=1000, attn_implementation="eager")).eval()
    return Subject("BERT-base width, 2 layers", hf_model, tl_vzero.load_model(hf_model), 1000)


def minilm() -> Subject:
    hf_model = golden.hf_bert_with_fresh_head(golden.minilm_folder(), torch.float32)
    hf_model.set_attn_implementation("eager")
    return Subject("all-MiniLM-L6-v2, 6 layers", hf_model, tl_vzero.load_model("all-MiniLM-L6-v2"), 30522)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def repetitions(length: int, fixed: int | None) -> int:
    return fixed or max(5, 120 // length)


def measure(subject: Subject, length: int, engine: str, fixed: int | None) -> tuple[float, float, float]:
    """(median of the loop, median of the engine, largest difference of the raw maps), after one warm-up each."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(1, subject.vocabulary, (length,), generator=generator)

    def loop() -> Tensor:
        return authors_loop(subject.hf_model, ids)

    def fast() -> Tensor:
        return tl_vzero.value_zeroing(subject.model, ids, engine=engine).values

    difference = (loop().double() - fast().double()).abs().max().item()
    pairs = [(seconds(loop), seconds(fast)) for _ in range(repetitions(length, fixed))]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), difference


def main() -> None:
    parser = argparse.ArgumentParser(description="Hook engine against the authors' loop.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--engine", default="hooks")
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--repeat", type=int, default=None, help="repetitions; by default more for short sentences")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    print(
        f"{options.threads} threads, torch {version('torch')}, TransformerLens {version('transformer-lens')}, "
        f"float32, medians of alternating repetitions\n"
    )
    print(f"| model | tokens | authors' loop, ms | engine={options.engine}, ms | loop / engine | raw maps differ by |")
    print("|---|---|---|---|---|---|")
    for subject in (bert_base_width(), minilm()):
        for length in options.lengths:
            loop, fast, difference = measure(subject, length, options.engine, options.repeat)
            row = [subject.name, length, f"{1000 * loop:.1f}", f"{1000 * fast:.1f}", f"{loop / fast:.2f}"]
            print("|", " | ".join(map(str, [*row, f"{difference:.0e}"])), "|", flush=True)


if __name__ == "__main__":
    main()
