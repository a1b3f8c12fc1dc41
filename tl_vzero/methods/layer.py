"""What a method reads of one layer of the clean run, and the vectors that attention carries from token to token."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Float, Int
from torch import Tensor

from tl_vzero.clean import CleanBlock
from tl_vzero.distance import relative_difference
from tl_vzero.errors import ModelError
from tl_vzero.models.blocks import SAME_BLOCK, BlockWeights, Norm
from tl_vzero.models.sites import Stack

Order = Literal["post_norm", "pre_norm", "other"]

NUMBERS_AT_A_TIME = 2**20  # of the vectors from source to destination; so few stay in a processor's cache


@dataclass(frozen=True, eq=False)
class Layer:
    """One layer of the clean run with its weights, for sentences of one length; `dtype` is what is computed in.

    Source and destination of what attention writes are told apart: F[i, j] = sum_h A[h, i, j] v[j, h] W_O[h].
    What is read off it is computed once and never written to, so that several methods can share a Layer.

    A decoder's block beside an encoder has two attentions, and a Layer is one of them: x is what its attention is added
    to. A cross-attention has the self-attention `before` it, a self-attention the rest of the block `behind` it.
    """

    index: int
    block: CleanBlock
    dtype: torch.dtype
    readable: BlockWeights | None
    before: "Layer | None" = None
    behind: "Layer | None" = None
    of_block: Order | None = None

    @property
    def weights(self) -> BlockWeights:
        """The block's weights; raises ModelError where they do not say what the block does."""
        if self.readable is None:
            raise ModelError(
                f"this method reads the weights of block {self.index}, and they cannot be read in TransformerLens's "
                "layout, the cache lacks one attention of a decoder's block, or hooks of yours act on it: take the "
                "hooks away, give the whole cache, or use attention or value_zeroing"
            )
        return self.readable

    @cached_property
    def itself(self) -> Int[Tensor, "sentence dest"]:
        """Where each destination stands among the sources; of a cross-attention it stands among none."""
        n_sentences, n_dest = self.block.input.shape[:2]
        every = torch.arange(n_dest, device=self.block.input.device).expand(n_sentences, -1)
        return every if self.block.destinations is None else self.block.destinations

    def at_itself(self, dest: slice | list[int] = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
        """The sentence, the destination and the source of each destination's own entry, of some destinations."""
        itself = self.itself[:, dest]
        sentence, dests = (torch.arange(size, device=itself.device) for size in itself.shape)
        return sentence.unsqueeze(1), dests, itself

    @cached_property
    def input(self) -> Float[Tensor, "sentence position feature"]:
        """x: what the block reads."""
        return self.block.input.to(self.dtype)

    @cached_property
    def pattern(self) -> Float[Tensor, "sentence head dest src"]:
        """A: the attention pattern of every query head."""
        return self.block.pattern.to(self.dtype)

    @cached_property
    def value(self) -> Float[Tensor, "sentence src head d_head"]:
        """v: the value that each query head reads, its bias included."""
        members = self.pattern.shape[1] // self.block.value.shape[2]
        return self.block.value.to(self.dtype).repeat_interleave(members, dim=2)

    @cached_property
    def written(self) -> Float[Tensor, "sentence head src feature"]:
        """v[j, h] W_O[h]: what each query head writes of a source into whoever attends to it alone."""
        return torch.einsum("sjhk,hkd->shjd", self.value, self.weights.w_o)

    @cached_property
    def attended(self) -> Float[Tensor, "sentence position feature"]:
        """o: what attention writes, with b_O."""
        mixed = torch.einsum("shij,sjhk->sihk", self.pattern, self.value)
        return torch.einsum("sihk,hkd->sid", mixed, self.weights.w_o) + self.weights.b_o

    @cached_property
    def middle(self) -> Float[Tensor, "sentence position feature"]:
        """The residual stream between attention and MLP: x + o."""
        return self.input + self.attended

    @property
    def order(self) -> Order:
        """Where the block's norms stand, by what gives the block's own output."""
        return self.of_block or self._explained[0]

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
        # With a norm behind attention the stream holds other vectors, which a sum would not show where it is large.
        if norm2 is not None and self.weights.norm2_post is None:
            for mlp_output in self._mlp_outputs(norm2(self.middle)):
                if relative_difference(self.middle + mlp_output, output) <= tolerance:
                    return "pre_norm", self.middle
        return "other", self.middle

    def norms_behind(self, method: str) -> list[tuple[Norm, Float[Tensor, "sentence position feature"]]]:
        """Of a post-norm block the norms from its attention to its end, each with what it read."""
        first = self.norm("norm1", method), self.middle
        if self.behind is not None:
            return [first, *self.behind.norms_behind(method)]
        return [first, (self.norm("norm2", method), self._explained[1])]

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
                f"kin), and block {self.index} does not; attention_norm and value_zeroing have no such limit"
            )
        return norm

    def check_sums(self, method: str) -> None:
        """Raise ModelError where what attention writes is not added to the residual stream as it is."""
        if self.order == "other":
            raise ModelError(
                f"{method} is undefined for this model: in block {self.index} attention's output is not added to the "
                "residual stream as it is (a norm stands between, or the block is of an unknown kind)"
            )

    def vectors(
        self,
        through: Callable[[Tensor], Tensor] = lambda vectors: vectors,
        *,
        residual: bool,
        width: int | None = None,
        chosen: Sequence[int] | None = None,
    ) -> Iterator[tuple[slice, Float[Tensor, "sentence dest src feature"]]]:
        """F[i, j], or with `residual` U[i, j] = F[i, j] + [i = j] x[i], some destinations at a time, to overwrite.

        Of a cross-attention no source is the destination: there x[i] is the last vector, behind those of the sources.
        `through` is a linear map of vectors, applied to the few that the many are sums of; `width` is the largest
        feature axis that is then made of a vector.
        """
        by_source = rearrange(self.pattern, "sentence head dest src -> sentence src dest head")
        written = rearrange(through(self.written), "sentence head src feature -> sentence src head feature")
        block_input = through(self.input) if residual else None
        for dest in self.destinations(width, chosen):
            vectors = (by_source[:, :, dest] @ written).transpose(1, 2)
            if block_input is not None and self.before is not None:
                vectors = torch.cat([vectors, block_input[:, dest].unsqueeze(2)], dim=2)
            elif block_input is not None:
                vectors[self.at_itself(dest)] += block_input[:, dest]
            yield dest, vectors

    def destinations(self, width: int | None = None, chosen: Sequence[int] | None = None) -> Iterator[slice]:
        """Slices of destinations whose vectors of `width` features, from every source, are few enough to be held."""
        n_sentences, length, features = self.block.input.shape
        n_sources = self.pattern.shape[-1]
        step = max(1, NUMBERS_AT_A_TIME // (n_sentences * n_sources * (width or features)))
        if chosen is not None:
            yield from (slice(dest, dest + 1) for dest in chosen)
            return
        for start in range(0, length, step):
            yield slice(start, min(start + step, length))


def layer_of(
    index: int,
    block: CleanBlock,
    dtype: torch.dtype,
    weights: BlockWeights | None,
    other: BlockWeights | None,
    stack: Stack | None,
) -> Layer:
    """The Layer of a block; `other` are the weights that go with the other attention of a decoder's block.

    Whether that block's norms stand behind its three sublayers or before them is told by what gives its output.
    """
    if stack not in ("decoder", "cross"):
        return Layer(index, block, dtype, weights)
    if block.other_value is None or block.other_pattern is None or weights is None or other is None:
        return Layer(index, block, dtype, None)
    parts = (block, weights), (replace(block, value=block.other_value, pattern=block.other_pattern), other)
    (itself, its_weights), (cross, cross_weights) = parts if stack == "decoder" else parts[::-1]

    def both(order: Order, norm: Callable[[Tensor], Tensor]) -> tuple[Layer, Layer]:
        before = Layer(index, itself, dtype, its_weights, of_block=order)
        behind = Layer(index, replace(cross, input=norm(before.middle)), dtype, cross_weights, before)
        return replace(before, behind=behind), behind

    norm1 = its_weights.norm1
    candidates = [both("pre_norm", lambda stream: stream)] + ([both("post_norm", norm1)] if norm1 else [])
    fitting = (pair for pair in candidates if pair[1].order == pair[0].order)
    before, behind = next(fitting, tuple(replace(layer, of_block="other") for layer in candidates[0]))
    return behind if stack == "cross" else before
