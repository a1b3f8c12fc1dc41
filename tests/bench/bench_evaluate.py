"""Cue alignment against the authors' loop, in sentences per second: `python tests/bench/bench_evaluate.py`.

Both give Value Zeroing's row of [MASK], normalised, for BLiMP-like sentences on all-MiniLM-L6-v2, the clean run
included. The authors' loop computes every layer's whole map, one layer and one position at a time, and takes the row.
Repetitions alternate within one process, so that a busy machine slows both. The share of the clean run is the limit:
no engine that needs it can be faster than it.
"""

import argparse
import statistics
import sys
import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from bench_hooks import minilm, seconds  # noqa: E402
from support.references import authors_loop, row_normalized  # noqa: E402

from tl_vzero.clean import CleanBlock, visit_clean_blocks  # noqa: E402
from tl_vzero.data.agreement_mini import agreement_examples  # noqa: E402
from tl_vzero.evaluate.cue_alignment import alignment_of  # noqa: E402
from tl_vzero.evaluate.rows import padded, target_rows  # noqa: E402
from tl_vzero.evaluate.sentences import (  # noqa: E402
    TokenizedSet,
    keep_one_piece_targets,
    tokenize_examples,
)
from tl_vzero.models.contracts import check_contracts  # noqa: E402
from tl_vzero.models.facts import facts_of  # noqa: E402
from tl_vzero.models.run import quiet  # noqa: E402


def loop_rows(hf_model: Any, tokenized: TokenizedSet) -> list[Tensor]:
    """The target's rows by the authors' loop."""
    return [
        row_normalized(authors_loop(hf_model, sentence.encoding.ids))[:, sentence.dest]
        for sentence in tokenized.examples
    ]


def clean_runs(model: Any, tokenized: TokenizedSet) -> None:
    """The clean runs alone, sentences of one length together, to the last block's output."""
    sites = check_contracts(model)

    def nothing(_: int, __: CleanBlock) -> None: ...

    by_length: dict[int, list[Any]] = {}
    for sentence in tokenized.examples:
        by_length.setdefault(len(sentence), []).append(sentence)
    with quiet(model):
        for alike in by_length.values():
            visit_clean_blocks(model, sites, padded(alike)[0], range(sites.n_layers), nothing)


def main() -> None:
    parser = argparse.ArgumentParser(description="Cue alignment against the authors' loop.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--sentences", type=int, default=200)
    parser.add_argument("--looped", type=int, default=25, help="how many of them the authors' loop is timed on")
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    subject = minilm()
    examples = keep_one_piece_targets(agreement_examples(), facts_of(subject.model).tokenizer)[: options.sentences]
    tokenized = tokenize_examples(subject.model, examples)
    # Evenly spaced, so that the loop's part has the lengths of all.
    part = TokenizedSet(tokenized.examples[:: max(1, len(tokenized.examples) // options.looped)], "masked")

    rows = target_rows(subject.model, part, ["value_zeroing"]).rows["value_zeroing"]
    by_loop = loop_rows(subject.hf_model, part)
    difference = max((ours - theirs).abs().max().item() for ours, theirs in zip(rows, by_loop, strict=True))

    times: dict[str, list[float]] = {"loop": [], "rows": [], "cue alignment": [], "clean run": []}
    for _ in range(options.repeat):
        times["loop"].append(seconds(lambda: loop_rows(subject.hf_model, part)) / len(part.examples))
        row_sets: list[Any] = []
        of_rows = seconds(lambda: row_sets.append(target_rows(subject.model, tokenized, ["value_zeroing"])))  # noqa: B023
        of_statistics = seconds(lambda: alignment_of(row_sets[0]))  # noqa: B023
        times["rows"].append(of_rows / len(examples))
        times["cue alignment"].append((of_rows + of_statistics) / len(examples))
        times["clean run"].append(seconds(lambda: clean_runs(subject.model, tokenized)) / len(examples))
    medians = {name: statistics.median(of_what) for name, of_what in times.items()}
    lengths = [len(sentence) for sentence in tokenized.examples]
    print(
        f"{options.threads} threads, torch {version('torch')}, TransformerLens {version('transformer-lens')}, float32, "
        f"{subject.name}, {len(examples)} sentences of {min(lengths)} to {max(lengths)} tokens, "
        f"medians of {options.repeat} alternating repetitions\n"
    )
    print("| what | sentences a second | authors' loop / this |")
    print("|---|---|---|")
    names = {
        "loop": "authors' loop",
        "rows": "target rows by value_zeroing",
        "cue alignment": "cue alignment, its intervals included",
        "clean run": "clean runs alone: the limit",
    }
    for key, name in names.items():
        print(f"| {name} | {1 / medians[key]:.1f} | {medians['loop'] / medians[key]:.1f} |")
    print(
        f"\nThe clean run is {100 * medians['clean run'] / medians['cue alignment']:.0f} % of cue alignment. "
        f"The rows differ from the loop's by at most {difference:.0e} (the loop's float32 1 - cos)."
    )


if __name__ == "__main__":
    main()
