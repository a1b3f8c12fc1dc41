"""What torch.compile would bring to the closed form's element-wise passes, and what its start-up costs.

The passes between the MLP's two products are all that a compiler could fuse: the products themselves are a library's.
"""

import os
import statistics
import time
from collections.abc import Callable

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
import torch.nn.functional as F
from torch import Tensor

ROWS, D_MLP, REPETITIONS = 1536, 3072, 21


def passes(entering: Tensor, clean_hidden: Tensor) -> Tensor:
    """Clean minus changed activations, as the closed form computes them."""
    return clean_hidden - F.gelu(entering)


def in_place(entering: Tensor, clean_hidden: Tensor) -> Tensor:
    """The same in the buffer that the closed form reuses."""
    hidden = torch.ops.aten.gelu_(entering)
    return torch.sub(clean_hidden, hidden, out=hidden)


def seconds(function: Callable[[Tensor, Tensor], Tensor], entering: Tensor, clean_hidden: Tensor) -> float:
    started = time.perf_counter()
    function(entering, clean_hidden)
    return time.perf_counter() - started


def main() -> None:
    entering, clean_hidden = torch.randn(ROWS, D_MLP), torch.randn(ROWS, D_MLP)
    weights = torch.randn(D_MLP, D_MLP // 4)
    compiled = torch.compile(passes)
    start_up = seconds(compiled, entering, clean_hidden)
    product: Callable[[Tensor, Tensor], Tensor] = lambda rows, _: rows @ weights  # noqa: E731
    times: dict[str, list[float]] = {"product": [], "eager, in place": [], "compiled": []}
    for _ in range(REPETITIONS):
        times["product"].append(seconds(product, entering, clean_hidden))
        times["eager, in place"].append(seconds(in_place, entering.clone(), clean_hidden))
        times["compiled"].append(seconds(compiled, entering, clean_hidden))
    medians = {name: statistics.median(durations) for name, durations in times.items()}
    print(f"{torch.get_num_threads()} threads, torch {torch.__version__}, {ROWS} x {D_MLP}, float32, medians\n")
    print("| what | ms |\n|---|---|")
    for name, median in medians.items():
        print(f"| {name} | {1e3 * median:.2f} |")
    saved = medians["eager, in place"] - medians["compiled"]
    chunk = medians["product"] + medians["eager, in place"]
    print(f"\nStart-up of the first compiled call: {start_up:.1f} s.")
    if saved > 0:
        print(f"Saves {100 * saved / chunk:.1f} % of product and passes: pays after {start_up / saved:.0f} chunks.")
    else:
        print("Saves nothing.")


if __name__ == "__main__":
    main()
