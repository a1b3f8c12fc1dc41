"""What a decoder's cross-attention makes of a value that its self-attention loses.

Its keys and values come from the encoder and stay as they are; its query moves, at each pair by a product with W_Q, and
with it the pattern p. Where scores move by t, softmax gives p exp(t) / sum p exp(t). On differences, and with the mean
of t under p taken away, so that the sum is at least 1 whatever t is, p loses

    p (m - e) / (1 + m)        with e = exp(t) - 1 and m = sum p e.

Where a score moves farther than exp can say, all are shifted: softmax is the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_vzero.clean import CleanBlock
from tl_vzero.distance import relative_difference
from tl_vzero.models.blocks import BlockWeights, OtherAttention
from tl_vzero.zeroing.chunks import Chunk
from tl_vzero.zeroing.forms import CleanForm, NormState, Rows, wider_product
from tl_vzero.zeroing.pairs import NormChange

MOST_MOVED = 80.0  # what float32 can exponentiate


@dataclass(frozen=True, eq=False)
class Crossing:
    """A decoder's cross-attention on the clean run, between what its self-attention writes and a recognised form.

    `stream` is the block's input and `sentence` whose it is, row by row; `sentences` says that to the host. `reader` is
    the norm whose output queries are formed of; in a post-norm block the stream goes on from there.
    """

    weights: OtherAttention
    scale: float
    form: CleanForm
    reader: NormState
    stream: Float[Tensor, "row feature"]
    sentence: Int[Tensor, "row"]
    sentences: Sequence[int]
    pattern: Float[Tensor, "row head_source"]
    key: Float[Tensor, "sentence head d_head source"]
    value: Float[Tensor, "sentence head source d_head"]

    @property
    def row_width(self) -> int:
        """How many numbers a pair takes."""
        return 4 * self.pattern.shape[1] + 3 * self.stream.shape[1]

    def change(
        self, chunk: Chunk, delta: Float[Tensor, "row feature"], vanishing: Bool[Tensor, "row"]
    ) -> Float[Tensor, "row feature"]:
        """Turn what self-attention loses into what the stream has lost after cross-attention, in place."""
        norm = NormChange.of(self.reader, delta, chunk)
        vanishing |= norm.vanishing
        rows, weights, heads = chunk.workspace.rows, self.weights, len(self.weights.w_q)
        read = delta if self.form.before else rows("read", len(delta), delta).copy_(delta)
        read = norm.apply(read)
        query = rows("query", len(delta), delta, heads * weights.w_q.shape[2])
        torch.mm(read, rearrange(weights.w_q, "head feature d_head -> feature (head d_head)"), out=query)
        mixed = rows("mixed", len(delta), query)
        for place in chunk.places:
            first = self.sentences[place.clean.start]
            sentences = slice(first, first + place.n_sentences)
            by_head = rearrange(place.grid(query), "s column dest (head d) -> s head (column dest) d", head=heads)
            moved = (by_head @ self.key[sentences]).mul_(-self.scale)
            pattern = rearrange(place.clean_grid(self.pattern), "s 1 dest (head src) -> s head 1 dest src", head=heads)
            grid = moved.view(*moved.shape[:2], -1, pattern.shape[3], pattern.shape[4])
            lost = _lost_by(pattern, grid).view_as(moved) @ self.value[sentences]
            into = place.grid(mixed)
            into.copy_(rearrange(lost, "s head (column dest) d -> s column dest (head d)", column=into.shape[1]))
        return delta.addmm_(mixed, weights.w_o.flatten(0, 1))

    def output_from(self, rows: Int[Tensor, "row"], attention_output: Rows) -> Rows:
        """The block's output at some rows, in the dtype of what self-attention is to have written there."""
        assert self.form.output_from is not None
        middle = self.stream[rows].to(attention_output.dtype) + attention_output
        pattern = self._pattern_from(rows, NormState.of(self.reader.norm, middle).output())
        value = self.value.to(pattern.dtype)[self.sentence[rows]]
        mixed = torch.einsum("rhs,rhsk->rhk", pattern, value).flatten(1)
        written = wider_product(mixed, self.weights.w_o.flatten(0, 1)) + self.weights.b_o
        return self.form.output_from(rows, written, middle)

    def explains_pattern(self, tolerance: float) -> bool:
        """Whether the weights give the pattern that the clean run showed."""
        rows = torch.arange(len(self.stream), device=self.stream.device)
        pattern = self._pattern_from(rows, self.reader.output()).flatten(1)
        return relative_difference(pattern, self.pattern) <= tolerance

    def _pattern_from(self, rows: Int[Tensor, "row"], read: Rows) -> Float[Tensor, "row head source"]:
        """The pattern at some rows by what their queries are formed of; what is masked stays so."""
        query = torch.einsum("rf,hfk->rhk", read, self.weights.w_q.to(read.dtype)) + self.weights.b_q
        scores = self.scale * torch.einsum("rhk,rhks->rhs", query, self.key.to(read.dtype)[self.sentence[rows]])
        return scores.masked_fill(self.pattern[rows].view_as(scores) == 0, -torch.inf).softmax(-1)


def _lost_by(
    pattern: Float[Tensor, "*#pairs source"], moved: Float[Tensor, "*pairs source"]
) -> Float[Tensor, "*pairs source"]:
    """What a pattern loses where its scores move, in place of these."""
    moved.sub_((pattern * moved).sum(-1, keepdim=True))
    moved.sub_(moved.masked_fill(pattern == 0, 0.0).amax(-1, keepdim=True).sub_(MOST_MOVED).clamp_(min=0.0))
    gained = moved.clamp_(max=MOST_MOVED).expm1_()
    mean = (pattern * gained).sum(-1, keepdim=True)
    return gained.sub_(mean).mul_(pattern).div_(-1.0 - mean)


def crossing_of(
    weights: BlockWeights,
    form: CleanForm,
    block: CleanBlock,
    stream: Float[Tensor, "row feature"],
    middle: Float[Tensor, "row feature"],
    sentence: Int[Tensor, "row"],
    pattern: Float[Tensor, "row head_source"],
    tolerance: float,
) -> Crossing | None:
    """The cross-attention of a decoder's block in a form; None if its weights do not explain its pattern.

    `middle` is the stream and what self-attention writes, `pattern` the clean cross-attention's, row by row.
    """
    key, value, other, dtype = block.other_key, block.other_value, weights.other, stream.dtype
    reader = form.before
    if reader is None and form.name == "pre_norm" and weights.norm1 is not None:
        reader = NormState.of(weights.norm1, middle)
    if key is None or value is None or other is None or reader is None:
        return None
    heads, _, d_head = other.w_q.shape
    if key.shape[2:] != (heads, d_head) or value.shape[2:] != other.w_o.shape[:2]:
        return None
    key = rearrange(key.to(dtype), "s src head d_head -> s head d_head src").contiguous()
    value = rearrange(value.to(dtype), "s src head d_head -> s head src d_head").contiguous()
    scales: Sequence[float] = (d_head**-0.5, 1.0)  # T5 does not scale
    rows = stream, sentence, sentence.tolist(), pattern, key, value
    crossings = (Crossing(other, scale, form, reader, *rows) for scale in scales)
    return next((crossing for crossing in crossings if crossing.explains_pattern(tolerance)), None)
