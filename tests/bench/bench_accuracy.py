"""The closed form in float32 against float64: `python tests/bench/bench_accuracy.py`.

all-MiniLM-L6-v2 as it is, and with its output matrices made faint, so that distances are small. Prints the largest
relative error of the raw distances by their size, and the largest error of the normalised maps.
"""

import sys
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import tl_vzero  # noqa: E402

TEXT = "the pictures of some hat near the old houses of the guests [MASK] scaring marcus."
FACTORS = (1.0, 0.1, 0.03)
SIZES = (1e-6, 1e-8, 1e-9, 1e-10)


def minilm(factor: float, dtype: torch.dtype) -> Any:
    model = tl_vzero.load_model("all-MiniLM-L6-v2", dtype=dtype)
    encoder = getattr(model.original_model, "bert", model.original_model).encoder
    with torch.no_grad():
        for layer in encoder.layer:
            layer.attention.output.dense.weight.mul_(factor)
    return model


def main() -> None:
    warnings.simplefilter("ignore")
    print("| output matrices times | " + " | ".join(f"raw from {size:.0e}" for size in SIZES) + " | normalised |")
    print("|---" * (len(SIZES) + 2) + "|")
    for factor in FACTORS:
        narrow, wide = (
            tl_vzero.value_zeroing(minilm(factor, dtype), TEXT, engine="closed_form")
            for dtype in (torch.float32, torch.float64)
        )
        relative = (narrow.values.double() - wide.values).abs() / wide.values
        largest = [relative[wide.values >= size].max().item() for size in SIZES]
        off = (narrow.normalized().values.double() - wide.normalized().values).abs().max().item()
        print("|", " | ".join([f"{factor:g}", *(f"{error:.0e}" for error in [*largest, off])]), "|", flush=True)


if __name__ == "__main__":
    main()
