"""Attention knockout against a plain loop of `run_with_hooks`: `python tests/bench/bench_knockout.py`.

A random BERT-base, the target's attention to each source cut in each layer. The loop runs the model once per layer and
source, with a hook on z that takes the source away, as the clean run has it. It is timed on a few places of each layer,
in turns with the whole map, and counted up; the same places are compared. --cpu takes the processor's time in place of
the clock's: the ratio on one thread, on a busy machine.
"""

import argparse
import sys
import time
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from transformers import BertConfig, BertForMaskedLM  # noqa: E402

import tl_vzero  # noqa: E402
from tl_vzero.models.run import eager_attention  # noqa: E402

LAYERS, TARGET, TOKEN = 12, 3, 7
SOURCES = (1, 5)  # that the loop is timed on, in every layer
AIM, SAME = 4.0, 1e-5


def bert() -> Any:
    torch.manual_seed(0)
    return tl_vzero.load_model(BertForMaskedLM(BertConfig(attn_implementation="eager")).eval())


@torch.no_grad()
def loop(model: Any, ids: Tensor, clean: Any) -> Tensor:
    """The effects of SOURCES in each layer, `[layer, source]`."""
    before = model(ids)[0, TARGET, TOKEN]
    effects = torch.empty(LAYERS, len(SOURCES))
    for layer in range(LAYERS):
        name = f"blocks.{layer}.attn"
        for column, source in enumerate(SOURCES):
            weight, value = clean[f"{name}.hook_pattern"][0, :, TARGET, source], clean[f"{name}.hook_v"][0, source]

            def cut(z: Tensor, hook: Any, gone: Tensor = weight[:, None] * value) -> Tensor:
                z = z.clone()
                z[0, TARGET] -= gone
                return z

            logits = model.run_with_hooks(ids, fwd_hooks=[(f"{name}.hook_z", cut)])
            effects[layer, column] = logits[0, TARGET, TOKEN] - before
    return effects


def compared(model: Any, length: int, repeat: int, clock: Callable[[], float]) -> None:
    ids = torch.randint(1000, 30000, (length,), generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), eager_attention(model):
        clean = model.run_with_cache(ids[None])[1]
    ours, plain = [], []
    for _ in range(repeat):
        start = clock()
        effect = tl_vzero.attention_knockout(model, ids, target=TARGET, target_ids=TOKEN)
        middle = clock()
        expected = loop(model, ids[None], clean)
        ours.append(middle - start)
        plain.append((clock() - middle) * (LAYERS * length) / (LAYERS * len(SOURCES) + 1))
    apart = (effect.values[:, list(SOURCES)] - expected).abs().max().item()
    ratio = min(plain) / min(ours)
    met = "met" if ratio >= AIM and apart <= SAME else "NOT MET"
    row = f"| {length} | {min(ours):.2f} | {min(plain):.2f} | {ratio:.2f} | {apart:.1e} |"
    print(f"{row} at least {AIM:g}, {SAME:g}: {met} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Attention knockout against a plain loop.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--lengths", type=int, nargs="+", default=[16, 32])
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--cpu", action="store_true", help="the processor's time, not the clock's")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    versions = f"torch {version('torch')}, TransformerLens {version('transformer-lens')}"
    print(f"{options.threads} threads, {versions}, float32, random BERT-base, least of {options.repeat}\n")
    print("| tokens | attention_knockout, s | loop, s | ratio | apart | aim |\n|---|---|---|---|---|---|")
    model = bert()
    for length in options.lengths:
        compared(model, length, options.repeat, time.process_time if options.cpu else time.perf_counter)


if __name__ == "__main__":
    main()
