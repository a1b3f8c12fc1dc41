"""How a block is put together, as far as the closed form needs it, recognised by what the block does.

x is the block's input, o its attention's output, delta what o loses when a value is zeroed:

    post_norm   t = norm1(x + o)               y = norm2(t + mlp(t))                 BERT
    pre_norm    m = x + o                      y = m + mlp(norm2(m))                 GPT-2, Llama, Qwen
    sandwich    m = x + norm1_post(o)          y = m + norm2_post(mlp(norm2(m)))     Gemma
    parallel    y = x + o + mlp(norm(x))       the MLP never sees the change         NeoX

A block is of a form if that form, computed from its weights, gives the output that the block really gave.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.models.blocks import BlockWeights, Norm

FormName = Literal["post_norm", "pre_norm", "sandwich", "parallel"]


@dataclass(frozen=True, eq=False)
class NormState:
    """A norm at work on the clean run: the centred rows it saw, and what it divided them by."""

    norm: Norm
    centred: Float[Tensor, "token feature"]
    deviation: Float[Tensor, "token"]

    @classmethod
    def of(cls, norm: Norm, rows: Float[Tensor, "token feature"]) -> "NormState":
        centred = norm.centre(rows)
        return cls(norm, centred, norm.deviation(centred))

    def output(self) -> Float[Tensor, "token feature"]:
        scaled = self.norm.weight * (self.centred / self.deviation.unsqueeze(-1))
        return scaled if self.norm.bias is None else scaled + self.norm.bias


@dataclass(frozen=True, eq=False)
class MlpState:
    """The MLP at work on the clean run: what enters its activation, and what leaves it."""

    pre: Float[Tensor, "token d_mlp"]
    pre_linear: Float[Tensor, "token d_mlp"] | None
    hidden: Float[Tensor, "token d_mlp"]
    output: Float[Tensor, "token feature"]


@dataclass(frozen=True, eq=False)
class CleanForm:
    """A recognised block on its clean run, all sentences' tokens in one row axis.

    `first` is the norm that reads what loses delta; `between` (sandwich) the norm before the MLP;
    `last` the norm at the end. Norms and MLP are None where the form has none that sees the change.
    """

    name: FormName
    output: Float[Tensor, "token feature"]
    first: NormState | None = None
    between: NormState | None = None
    mlp: MlpState | None = None
    last: NormState | None = None


def recognise(
    weights: BlockWeights,
    block_input: Float[Tensor, "token feature"],
    attention_output: Float[Tensor, "token feature"],
    block_output: Float[Tensor, "token feature"],
    tolerance: float,
) -> CleanForm | None:
    """The form whose output is the block's own, to a relative tolerance of its mean square; None if none is."""
    scale = block_output.square().mean().sqrt()
    for form in _candidates(weights, block_input, attention_output):
        if (form.output - block_output).square().mean().sqrt() <= tolerance * scale:
            return form
    return None


def _candidates(w: BlockWeights, x: Tensor, o: Tensor) -> Iterator[CleanForm]:
    """Every form that the weights allow, likeliest first."""
    middle = x + o
    if w.norm1_post is not None and w.norm2_post is not None and w.norm2 is not None:
        yield from _sandwich(w, x, o, w.norm1_post, w.norm2, w.norm2_post)
        return
    if w.norm1 is not None and w.norm2 is not None:
        yield from _pre_norm(w, middle, w.norm2)
        yield from _post_norm(w, middle, w.norm1, w.norm2)
    for norm in (w.norm2, w.norm1):
        if norm is not None:
            yield from _parallel(w, x, middle, norm)


def _mlp(w: BlockWeights, read: Tensor) -> MlpState | None:
    if w.w_in is None or w.w_out is None or w.activation is None:
        return None
    linear = _affine(read, w.w_in, w.b_in)
    pre = linear if w.w_gate is None else _affine(read, w.w_gate, w.b_gate)
    hidden = w.activation(pre.clone())
    if w.w_gate is not None:
        hidden = hidden * linear
    return MlpState(pre, None if w.w_gate is None else linear, hidden, _affine(hidden, w.w_out, w.b_out))


def _affine(rows: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
    return rows @ matrix if bias is None else torch.addmm(bias, rows, matrix)


def _pre_norm(w: BlockWeights, middle: Tensor, norm2: Norm) -> Iterator[CleanForm]:
    first = NormState.of(norm2, middle)
    mlp = _mlp(w, first.output())
    if mlp is not None:
        yield CleanForm("pre_norm", middle + mlp.output, first=first, mlp=mlp)


def _post_norm(w: BlockWeights, middle: Tensor, norm1: Norm, norm2: Norm) -> Iterator[CleanForm]:
    first = NormState.of(norm1, middle)
    read = first.output()
    mlp = _mlp(w, read)
    if mlp is not None:
        last = NormState.of(norm2, read + mlp.output)
        yield CleanForm("post_norm", last.output(), first=first, mlp=mlp, last=last)


def _sandwich(
    w: BlockWeights, x: Tensor, o: Tensor, norm1_post: Norm, norm2: Norm, norm2_post: Norm
) -> Iterator[CleanForm]:
    first = NormState.of(norm1_post, o)
    middle = x + first.output()
    between = NormState.of(norm2, middle)
    mlp = _mlp(w, between.output())
    if mlp is not None:
        last = NormState.of(norm2_post, mlp.output)
        yield CleanForm("sandwich", middle + last.output(), first, between, mlp, last)


def _parallel(w: BlockWeights, x: Tensor, middle: Tensor, norm: Norm) -> Iterator[CleanForm]:
    mlp = _mlp(w, NormState.of(norm, x).output())
    if mlp is not None:
        yield CleanForm("parallel", middle + mlp.output)
