"""The closed form in float32 against float64: `python tests/bench/bench_accuracy.py`.

all-MiniLM-L6-v2 as it is, and with its output matrices made faint, so that distances are small. Prints the largest
relative error of the raw distances by their size, and the largest error of the normalised maps; the last also where the
products of pairs read 10 bits of each number, as TF32 has it on a GPU and is imitated here.
"""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import tl_vzero  # noqa: E402
from tl_vzero.zeroing.closed_form import _Layer  # noqa: E402

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


def of_ten_bits(numbers: Tensor) -> Tensor:
    """float32 rounded to the nearest number with 10 bits behind the first."""
    bits = numbers.view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class TF32(TorchDispatchMode):
    """Rounds what matrix products read, and not what they add to."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__.rstrip("_")
        if name in ("mm", "bmm", "addmm", "baddbmm"):
            first = int("add" in name)
            args = (*args[:first], *(of_ten_bits(x) if x.dtype == torch.float32 else x for x in args[first:]))
        return func(*args, **(kwargs or {}))


@contextmanager
def imitated_tf32() -> Iterator[None]:
    """Within, pairs are measured as `precision="tf32"` measures them on a GPU."""
    walk = _Layer._measure_changes

    def rounded(*args: Any) -> None:
        with TF32():
            walk(*args)

    _Layer._measure_changes = rounded  # type: ignore[method-assign]
    try:
        yield
    finally:
        _Layer._measure_changes = walk  # type: ignore[method-assign]


def main() -> None:
    warnings.simplefilter("ignore")
    print(
        "| output matrices times | " + " | ".join(f"raw from {size:.0e}" for size in SIZES) + " | normalised | TF32 |"
    )
    print("|---" * (len(SIZES) + 3) + "|")
    for factor in FACTORS:
        narrow, wide = (
            tl_vzero.value_zeroing(minilm(factor, dtype), TEXT, engine="closed_form")
            for dtype in (torch.float32, torch.float64)
        )
        relative = (narrow.values.double() - wide.values).abs() / wide.values
        largest = [relative[wide.values >= size].max().item() for size in SIZES]
        with imitated_tf32():
            tf32 = tl_vzero.value_zeroing(minilm(factor, torch.float32), TEXT, engine="closed_form")
        off = [
            (one.normalized().values.double() - wide.normalized().values).abs().max().item() for one in (narrow, tf32)
        ]
        print("|", " | ".join([f"{factor:g}", *(f"{error:.0e}" for error in [*largest, *off])]), "|", flush=True)


if __name__ == "__main__":
    main()
