"""How the output of a norm changes when its input loses a vector: two scalars a pair."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_vzero.distance import LITTLE_LEFT, wide_dtype
from tl_vzero.zeroing.chunks import Chunk
from tl_vzero.zeroing.forms import NormState


@dataclass(frozen=True, eq=False)
class NormChange:
    """A norm's change: own * c(clean row) + scale * (change - mean), times the norm's weight.

    `shrinks` is own times the clean deviation: the share by which what the norm puts out shrinks by itself.
    `mean` is None where the change has none or the norm does not centre. `vanishing` marks the rows of which too
    little is left for a difference to tell what.
    """

    state: NormState
    chunk: Chunk
    centred: Float[Tensor, "*pairs feature"]
    own: Float[Tensor, "row"]
    shrinks: Float[Tensor, "row"]
    scale: Float[Tensor, "row"]
    mean: Float[Tensor, "row"] | None
    vanishing: Bool[Tensor, "row"]

    @classmethod
    def of(
        cls, state: NormState, change: Float[Tensor, "row feature"], chunk: Chunk, *, centred: bool = False
    ) -> "NormChange":
        """Compute the scalars, in float64, as they are few. `centred` says that the change is centred already."""
        features = change.shape[-1]
        rows = chunk.clean_rows("norm rows", state.centred)
        product = chunk.workspace.rows("scratch", len(change), change)
        torch.mul(chunk.grid(change), rows, out=chunk.grid(product))
        along = product.sum(dim=-1)
        wide = wide_dtype(change.device)
        square = torch.linalg.vector_norm(change, dim=-1).to(wide).square()
        mean = change.mean(dim=-1) if state.norm.centred and not centred else None
        if mean is not None:
            square = square - features * mean.to(wide).square()
        deviation = state.deviation.to(wide)[chunk.clean]
        step = (square - 2.0 * along.to(wide)) / features
        # The variance cannot fall below eps; rounding may say so.
        changed = (deviation.square() + step).clamp(min=max(state.norm.eps, torch.finfo(torch.float32).tiny)).sqrt()
        own = step / (deviation * changed * (deviation + changed))
        dtype = change.dtype
        scale = (1.0 / changed).to(dtype)
        vanishing = changed < LITTLE_LEFT * deviation
        return cls(state, chunk, rows, own.to(dtype), (own * deviation).to(dtype), scale, mean, vanishing)

    def apply(self, change: Float[Tensor, "row feature"]) -> Float[Tensor, "row feature"]:
        """Turn the change of the norm's input into that of its output, in place."""
        if self.mean is not None:
            change.sub_(self.mean.unsqueeze(-1))
        change.mul_(self.scale.unsqueeze(-1))
        self.chunk.grid(change).addcmul_(self.centred, self.chunk.grid(self.own.unsqueeze(-1)))
        return change.mul_(self.state.norm.weight)
