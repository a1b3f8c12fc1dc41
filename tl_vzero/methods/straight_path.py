"""Integrated gradients along a straight path, in as many pieces as completeness asks for."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

# What the attributions may miss of the change of the metric, as a share of it, before a piece is cut.
ACCURACY = 1e-3
MOST_PIECES = 16
ROUNDING = 8  # machine epsilons of the metric that no cut can win back
# A norm turns a vector round most sharply where it is near zero, the usual baseline.
FIRST_CUT = 1 / 32


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the path, in shares of the way from the baseline, and what was found on it.

    `error` is what its attributions sum to above the change of the metric.
    """

    start: float
    end: float
    attribution: Float[Tensor, "1 position feature"]
    error: float

    @property
    def cut(self) -> float:
        """Where to cut it in two."""
        return self.end * FIRST_CUT if self.start == 0 else (self.start + self.end) / 2


def integrate(
    integrated_gradients: Any,
    metric: Callable[[Tensor], Tensor],
    output: Float[Tensor, "1 position feature"],
    baseline: Float[Tensor, "1 position feature"],
    *,
    steps: int,
    copies: int,
) -> tuple[Float[Tensor, "1 position feature"], float, int]:
    """Integrated gradients of a metric: the attributions, their error and the number of pieces.

    Captum's Gauss-Legendre rule with `steps` points does each piece. The attributions of the pieces add up, as the path
    does. The piece with the largest error is cut until the errors are small, or there are too many pieces.
    """

    def at(share: float) -> Tensor:
        return torch.lerp(baseline, output, share)

    def on(start: float, end: float) -> Piece:
        attribution = integrated_gradients(metric).attribute(
            at(end), baselines=at(start), n_steps=steps, method="gausslegendre", internal_batch_size=copies
        )
        found = attribution.detach().double()
        return Piece(start, end, found, found.sum().item() - (reached[end] - reached[start]))

    at_output, at_baseline = metric(output).item(), metric(baseline).item()
    # Captum's own check of completeness would compute each end again.
    reached = {0.0: at_baseline, 1.0: at_output}
    rounding = ROUNDING * torch.finfo(output.dtype).eps * max(abs(at_output), abs(at_baseline))
    allowed = max(ACCURACY * abs(at_output - at_baseline), rounding)
    pieces = [on(0.0, 1.0)]
    while sum(abs(piece.error) for piece in pieces) > allowed and len(pieces) < MOST_PIECES:
        worst = max(pieces, key=lambda piece: abs(piece.error))
        pieces.remove(worst)
        reached[worst.cut] = metric(at(worst.cut)).item()
        pieces += [on(worst.start, worst.cut), on(worst.cut, worst.end)]
    attribution = torch.stack([piece.attribution for piece in pieces]).sum(dim=0)
    return attribution, attribution.sum().item() - (at_output - at_baseline), len(pieces)
