"""What a method reads of one layer of the clean run, and the vectors that attention carries from token to token."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from tl_vzero.clean import CleanBlock
from tl_vzero.distance import relative_difference
from tl_vzero.errors import ModelError
from tl_vzero.models.blocks import SAME_BLOCK, BlockWeights, Norm

Order = Literal["post_norm", "pre_norm", "other"]

NUMBERS_AT_A_TIME = 2**24  # of the vectors from source to destination


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the clean run with its weights, for sentences of one length; `dtype` is what is computed in.

    Source and destination of what attention writes are told apart: F[i, j] = sum_h A[h, i, j] v[j, h] W_O[h].
    """

    number: int
    block: CleanBlock
    dtype: torch.dtype
    known: BlockWeights | None

    @property
    def weights(self) -> BlockWeights:
        """The block's weights; raises ModelError where they do not say what the block does."""
        if self.known is None:
            raise ModelError(
                f"this method reads the weights of block {self.number}, and they cannot be read in TransformerLens's "
                "layout or hooks of yours act on the model: take the hooks away, or use attention or value_zeroing"
            )
        return self.known

    @cached_property
    def input(self) -> Float[Tensor, "sentence position feature"]:
        """x: what the block reads."""
        return self.block.input.to(self.dtype)

    @cached_property
    def pattern(self) -> Float[Tensor, "sentence head dest src"]:
        """A: the attention pattern of every query head."""
        return self.block.pattern.to(self.dtype)

    @cached_property
    def written(self) -> Float[Tensor, "sentence head src feature"]:
        """v[j, h] W_O[h]: what each query head writes of a source into whoever attends to it alone."""
        members = self.pattern.shape[1] // self.block.value.shape[2]
        value = self.block.value.to(self.dtype).repeat_interleave(members, dim=2)
        return torch.einsum("sjhk,hkd->shjd", value, self.weights.w_o)

    @cached_property
    def middle(self) -> Float[Tensor, "sentence position feature"]:
        """The residual stream between attention and MLP: x + o, with b_O."""
        mixed = torch.einsum("shij,shjd->sid", self.pattern, self.written)
        return self.input + mixed + self.weights.b_o

    @property
    def order(self) -> Order:
        """Where the block's norms stand, by what gives the block's own output."""
        return self._explained[0]

    @cached_property
    def _explained(self) -> tuple[Order, Float[Tensor, "sentence position feature"]]:
        """The order, and what its last norm read."""
        output, norm1, norm2 = self.block.output.to(self.dtype), self.weights.norm1, self.weights.norm2
        tolerance = SAME_BLOCK.get(self.block.output.dtype, 0.0)
        if norm1 is not None and norm2 is not None:
            read = norm1(self.middle)
            for mlp_output in self._mlp_outputs(read):
                if relative_difference(norm2(read + mlp_output), output) <= tolerance:
                    return "post_norm", read + mlp_output
        if norm2 is not None:
            for mlp_output in self._mlp_outputs(norm2(self.middle)):
                if relative_difference(self.middle + mlp_output, output) <= tolerance:
                    return "pre_norm", self.middle
        return "other", self.middle

    @property
    def last_norm_input(self) -> Float[Tensor, "sentence position feature"]:
        """What the norm at the end of a post-norm block read."""
        return self._explained[1]

    def _mlp_outputs(self, read: Tensor) -> Iterator[Float[Tensor, "sentence position feature"]]:
        """What the MLP gave: as the clean run showed it, then as the weights give it."""
        if self.block.mlp_output is not None and self.block.mlp_output.shape == self.input.shape:
            yield self.block.mlp_output.to(self.dtype)
        w = self.weights
        if w.w_in is None or w.w_out is None or w.activation is None:
            return
        linear = F.linear(read, w.w_in.T, w.b_in)
        hidden = (
            w.activation(linear) if w.w_gate is None else w.activation(F.linear(read, w.w_gate.T, w.b_gate)) * linear
        )
        yield F.linear(hidden, w.w_out.T, w.b_out)

    def norm(self, name: Literal["norm1", "norm2"], method: str) -> Norm:
        """A norm of a post-norm block; raises ModelError where the block is of another order."""
        norm: Norm | None = getattr(self.weights, name)
        if self.order != "post_norm" or norm is None:
            raise ModelError(
                f"{method} is undefined for this model: it is published for blocks that end in a norm (BERT and its "
                f"kin), and block {self.number} does not; attention_norm and value_zeroing have no such limit"
            )
        return norm

    def check_sums(self, method: str) -> None:
        """Raise ModelError where what attention writes is not added to the residual stream as it is."""
        if self.order == "other":
            raise ModelError(
                f"{method} is undefined for this model: in block {self.number} attention's output is not added to the "
                "residual stream as it is (a norm stands between, or the block is of an unknown kind)"
            )

    def over_vectors(
        self,
        measure: Callable[[Float[Tensor, "sentence dest src feature"], slice], Float[Tensor, "sentence dest src"]],
        *,
        residual: bool,
    ) -> Float[Tensor, "sentence dest src"]:
        """Measure F[i, j], or with `residual` U[i, j] = F[i, j] + [i = j] x[i], some destinations at a time."""
        by_source = rearrange(self.pattern, "sentence head dest src -> sentence src dest head")
        written = rearrange(self.written, "sentence head src feature -> sentence src head feature")
        length = by_source.shape[2]
        step = max(1, NUMBERS_AT_A_TIME // (len(written) * length * written.shape[-1]))
        parts = []
        for start in range(0, length, step):
            dest = slice(start, min(start + step, length))
            vectors = (by_source[:, :, dest] @ written).transpose(1, 2)
            if residual:
                own = torch.arange(dest.start, dest.stop, device=vectors.device)
                vectors[:, own - dest.start, own] += self.input[:, dest]
            parts.append(measure(vectors, dest))
        return torch.cat(parts, dim=1)
