"""The other methods against one Value Zeroing map: `python tests/bench/bench_methods.py`.

Each is called as a user calls it, clean run included; "together" is one `compare` of attention, rollout, the norm
family, GlobEnc and ALTI, which share a clean run. Methods of a logit are beside one map of a GPT-2 of that size.
Repetitions of everything compared alternate within one process, so that a busy machine slows all; figures are medians.
Flow and hidden token attribution, whose cost grows with a higher power of the length, are run once each on the
shortest sentence.
"""

import argparse
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

from transformers import BertConfig, BertForMaskedLM, GPT2Config, GPT2LMHeadModel  # noqa: E402

import tl_vzero  # noqa: E402

LAYERS, VOCABULARY = 2, 1000
REPEATS = {12: 15, 32: 9, 128: 3}
TOGETHER = (
    "attention",
    "attention_rollout",
    "attention_norm",
    "attention_norm_res",
    "attention_norm_res_ln",
    "globenc",
    "alti",
)
OF_LOGITS = ("value_zeroing", "logit_contributions", "alti_logit", "decompx_logit")
OF_GPT2 = ", GPT-2"
SLOW = ("attention_flow", "hta")

Call = Callable[[], object]


def bert() -> Any:
    torch.manual_seed(0)
    config = BertConfig(num_hidden_layers=LAYERS, vocab_size=VOCABULARY, attn_implementation="eager")
    return tl_vzero.load_model(BertForMaskedLM(config).eval())


def gpt2() -> Any:
    torch.manual_seed(0)
    config = GPT2Config(
        n_layer=LAYERS, vocab_size=VOCABULARY, bos_token_id=0, eos_token_id=0, attn_implementation="eager"
    )
    return tl_vzero.load_model(GPT2LMHeadModel(config).eval())


def sentence(length: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (length,), generator=torch.Generator().manual_seed(0))


def calls_on(model: Any, causal: Any, ids: Tensor) -> dict[str, Call]:
    def scored(method: str, on: Any = model, **options: Any) -> Call:
        return lambda: tl_vzero.score(on, ids, method=method, **options)

    return {
        "value_zeroing": scored("value_zeroing"),
        f"together: {', '.join(TOGETHER)}": lambda: tl_vzero.compare(model, ids, TOGETHER),
        **{f"{name} alone": scored(name) for name in TOGETHER},
        "information_flow": scored("information_flow"),
        "contribution_weights": scored("contribution_weights"),
        "decompx": scored("decompx"),
        "decompx, propagate=True": scored("decompx", propagate=True),
        **{f"{name}{OF_GPT2}": scored(name, causal) for name in OF_LOGITS},
    }


def seconds(call: Call) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def medians(calls: Mapping[str, Call], repeat: int) -> dict[str, float]:
    """The median time of each call, in seconds; the calls take turns."""
    for call in calls.values():
        call()
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeat):
        for name, call in calls.items():
            taken[name].append(seconds(call))
    return {name: statistics.median(times) for name, times in taken.items()}


def one_length(model: Any, causal: Any, length: int, *, slow: bool) -> None:
    ids = sentence(length)
    times = medians(calls_on(model, causal, ids), REPEATS[length])
    if slow:
        times |= {name: seconds(lambda name=name: tl_vzero.score(model, ids, method=name)) for name in SLOW}
    for name, taken in times.items():
        whole = times["value_zeroing" + (OF_GPT2 if name.endswith(OF_GPT2) else "")]
        aim = "below 1" if name.startswith("together") else ""
        print(f"| {length} | {name} | {1000 * taken:.1f} | {taken / whole:.2f} | {aim} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="The cost of every method against one Value Zeroing map.")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="the shortest sentence only, without what takes minutes")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    versions = f"torch {version('torch')}, TransformerLens {version('transformer-lens')}"
    print(f"{options.threads} threads, {versions}, float32, BERT-base width, {LAYERS} layers, medians\n")
    print("| tokens | what | ms | times value_zeroing | aim |\n|---|---|---|---|---|")
    model, causal = bert(), gpt2()
    for length in REPEATS:
        if length == min(REPEATS) or not options.quick:
            one_length(model, causal, length, slow=length == min(REPEATS) and not options.quick)


if __name__ == "__main__":
    main()
