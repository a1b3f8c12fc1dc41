"""How a block is put together, as far as the closed form needs it, recognised by what the block does.

x is the block's input, o its attention's output, delta what o loses when a value is zeroed:

    post_norm   t = norm1(x + o)               y = norm2(t + mlp(t))                 BERT
    pre_norm    m = x + o                      y = m + mlp(norm2(m))                 GPT-2, Llama, Qwen
    sandwich    m = x + norm1_post(o)          y = m + norm2_post(mlp(norm2(m)))     Gemma
    parallel    y = x + o + mlp(norm(x))       the MLP never sees the change         NeoX

A block is of a form if that form, computed from its weights, gives the output that the block really gave.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.models.blocks import BlockWeights, Norm

PROBE_ROWS = 4

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


FormBuilder = Callable[[BlockWeights, Tensor, Tensor], CleanForm | None]


def recognise(
    weights: BlockWeights,
    block_input: Float[Tensor, "token feature"],
    attention_output: Float[Tensor, "token feature"],
    block_output: Float[Tensor, "token feature"],
    tolerance: float,
) -> CleanForm | None:
    """The form whose output is the block's own, to a relative tolerance of its mean square; None if none is."""
    whole = (block_input, attention_output, block_output)
    # A few rows tell the forms apart; the one that fits them must then fit all.
    few = [rows[:PROBE_ROWS] for rows in whole]
    for build in _BUILDERS:
        if _fits(build(weights, *few[:2]), few[2], tolerance):
            form = build(weights, *whole[:2])
            return form if _fits(form, whole[2], tolerance) else None
    return None


def _fits(form: CleanForm | None, block_output: Tensor, tolerance: float) -> bool:
    if form is None:
        return False
    scale = block_output.square().mean().sqrt()
    return bool((form.output - block_output).square().mean().sqrt() <= tolerance * scale)


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


def _pre_norm(w: BlockWeights, x: Tensor, o: Tensor) -> CleanForm | None:
    if w.norm2 is None or w.norm2_post is not None:
        return None
    first = NormState.of(w.norm2, x + o)
    mlp = _mlp(w, first.output())
    return None if mlp is None else CleanForm("pre_norm", x + o + mlp.output, first=first, mlp=mlp)


def _post_norm(w: BlockWeights, x: Tensor, o: Tensor) -> CleanForm | None:
    if w.norm1 is None or w.norm2 is None:
        return None
    first = NormState.of(w.norm1, x + o)
    read = first.output()
    mlp = _mlp(w, read)
    if mlp is None:
        return None
    last = NormState.of(w.norm2, read + mlp.output)
    return CleanForm("post_norm", last.output(), first=first, mlp=mlp, last=last)


def _sandwich(w: BlockWeights, x: Tensor, o: Tensor) -> CleanForm | None:
    if w.norm1_post is None or w.norm2 is None or w.norm2_post is None:
        return None
    first = NormState.of(w.norm1_post, o)
    middle = x + first.output()
    between = NormState.of(w.norm2, middle)
    mlp = _mlp(w, between.output())
    if mlp is None:
        return None
    last = NormState.of(w.norm2_post, mlp.output)
    return CleanForm("sandwich", middle + last.output(), first, between, mlp, last)


def _parallel(norm_name: str) -> FormBuilder:
    def build(w: BlockWeights, x: Tensor, o: Tensor) -> CleanForm | None:
        norm: Norm | None = getattr(w, norm_name)
        mlp = None if norm is None else _mlp(w, NormState.of(norm, x).output())
        return None if mlp is None else CleanForm("parallel", x + o + mlp.output)

    return build


# A parallel MLP may read a norm of its own or attention's.
_BUILDERS: tuple[FormBuilder, ...] = (_sandwich, _pre_norm, _post_norm, _parallel("norm2"), _parallel("norm1"))
