"""One row of a long input, exact: `python tests/bench/bench_long.py`, with `--quick` for short lengths.

A random model of SmolLM-135M's shape. The time is set against that of the clean run by Hugging Face with fused
attention plus the row's floor, layers x T products of d_mlp x d_model at the rate of a 4096-row product; all are
measured in turn, in one process. The peak is above what the loaded model takes, in a process of its own. The same row
by the hook engine, at some sources and layers of T=1,024, is what it must equal.
"""

import argparse
import ctypes
import gc
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from transformers import LlamaConfig, LlamaForCausalLM

import tl_vzero

LAYERS, D_MODEL, D_MLP, PRODUCT_ROWS = 30, 576, 1536, 4096
COMPARED, SOURCES, SOME_LAYERS = 1024, 16, [0, 9, 19, 29]
MOST_RATIO, MOST_PEAK_GB, MOST_OFF = 1.5, 2.0, 1e-5


def hf_model(layers: int) -> Any:
    torch.manual_seed(0)
    heads: dict[str, Any] = {"num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 40_000}
    shape: dict[str, Any] = {"hidden_size": D_MODEL, "intermediate_size": D_MLP, "num_hidden_layers": layers}
    config = LlamaConfig(vocab_size=49_152, tie_word_embeddings=True, attn_implementation="sdpa", **heads, **shape)
    return LlamaForCausalLM(config).eval()


def ids_of(length: int) -> Tensor:
    return torch.randint(10, 49_000, (length,), generator=torch.Generator().manual_seed(1))


def row(model: Any, length: int, **options: Any) -> Any:
    scores = tl_vzero.value_zeroing(model, ids_of(length), destinations=-1, **options)
    assert options or scores.metadata["attention"] == "fused"
    return scores


def seconds(call: Callable[[], object]) -> tuple[float, float]:
    """On the clock, and of the processor: the second is of use where other programs run beside."""
    start = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start[0], time.process_time() - start[1]


def print_peak(length: int, layers: int) -> None:
    """How much more memory a row takes than the model that is loaded, and its time; in a fresh process."""
    model = tl_vzero.load_model(hf_model(layers))
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)  # what loading has freed would hide what the run takes
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize()
    taken, of_processor = seconds(lambda: row(model, length))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before) / 1e9
    print(
        f"T={length}, {layers} layers: {taken:.1f} s ({of_processor:.1f} of the processor), "
        f"peak {peak:.2f} GB above the model (at most {MOST_PEAK_GB} at 8,192)",
        flush=True,
    )


def print_ratio(length: int, layers: int, repeat: int) -> None:
    model, plain = tl_vzero.load_model(hf_model(layers)), hf_model(layers)
    rows, w_out = torch.randn(PRODUCT_ROWS, D_MLP), torch.randn(D_MLP, D_MODEL)
    row(model, 64, memory_mb=1e-2)  # the probe of a model is made once
    times: dict[str, list[tuple[float, float]]] = {"row": [], "clean": [], "product": []}
    with torch.no_grad():
        for _ in range(repeat):
            times["product"] += [seconds(lambda: rows @ w_out) for _ in range(9)]
            times["clean"].append(seconds(lambda: plain.model(ids_of(length).unsqueeze(0), use_cache=False)))
            times["row"].append(seconds(lambda: row(model, length)))
    for index, of in enumerate(("on the clock", "of the processor")):
        medians = {name: statistics.median(taken[index] for taken in every) for name, every in times.items()}
        floor = layers * length / PRODUCT_ROWS * medians["product"]
        ratio = medians["row"] / (medians["clean"] + floor)
        print(
            f"T={length}, seconds {of}: a row {medians['row']:.2f}, clean run {medians['clean']:.2f}, "
            f"floor {floor:.2f}: {ratio:.2f} x their sum (at most {MOST_RATIO} at 8,192)",
            flush=True,
        )


def print_difference(length: int) -> None:
    model = tl_vzero.load_model(hf_model(LAYERS))
    sources = torch.linspace(0, length - 1, SOURCES).long().tolist()
    options: dict[str, Any] = {"sources": sources, "layers": SOME_LAYERS}
    fused = row(model, length, memory_mb=2.0, **options)
    assert fused.metadata["attention"] == "fused"
    hooked = row(model, length, engine="hooks", **options)
    off = float((fused.normalized().values - hooked.normalized().values).abs().max())
    print(f"T={length}: {off:.1e} from the hook engine, normalised (at most {MOST_OFF:.0e})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time, memory and accuracy of one row of a long input.")
    parser.add_argument("--quick", action="store_true", help="short lengths")
    parser.add_argument("--length", type=int, default=8192, help="positions (default 8192)")
    parser.add_argument("--layers", type=int, default=LAYERS, help="blocks (default 30); one is held at a time")
    parser.add_argument("--repeat", type=int, default=1, help="repetitions of the times (default 1)")
    parser.add_argument("--only", choices=("peak", "ratio", "difference"), help="one of the three")
    options = parser.parse_args()
    torch.set_num_threads(2)
    length = 3072 if options.quick and options.only is None else options.length
    if options.only == "peak":
        print_peak(length, options.layers)
        return
    if options.only is None:
        of_peak = ["--only", "peak", "--length", str(length), "--layers", str(options.layers)]
        subprocess.run([sys.executable, __file__, *of_peak], check=True)
    if options.only in (None, "ratio"):
        print_ratio(length, options.layers, options.repeat)
    if options.only in (None, "difference"):
        print_difference(256 if options.quick else COMPARED)


if __name__ == "__main__":
    main()
