"""How a block is put together, as far as the closed form needs it, recognised by what the block does.

x is the block's input, o its attention's output, delta what o loses when a value is zeroed:

    post_norm   t = norm1(x + o)               y = norm2(t + mlp(t))                 BERT
    pre_norm    m = x + o                      y = m + mlp(norm2(m))                 GPT-2, Llama, Qwen
    sandwich    m = x + norm1_post(o)          y = m + norm2_post(mlp(norm2(m)))     Gemma
    parallel    y = x + o + mlp(norm(x))       the MLP never sees the change         NeoX

A block is of a form if that form, computed from its weights, gives the output that the block really gave.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from jaxtyping import Float
from torch import Tensor

from tl_vzero.distance import relative_difference
from tl_vzero.models.blocks import Activation, BlockWeights, Norm
from tl_vzero.zeroing.products import Keep, Product

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

    @property
    def reads_change_itself(self) -> bool:
        """Whether what attention loses also goes past the norm, into the residual stream as it is."""
        return self.first is None or self.name == "pre_norm"


@dataclass(frozen=True, eq=False)
class SeenRows:
    """What the clean run showed of the MLP, if it did."""

    pre: Float[Tensor, "token d_mlp"] | None = None
    pre_linear: Float[Tensor, "token d_mlp"] | None = None
    output: Float[Tensor, "token feature"] | None = None

    def first(self, count: int) -> "SeenRows":
        return SeenRows(*(None if t is None else t[:count] for t in (self.pre, self.pre_linear, self.output)))


@dataclass(frozen=True, eq=False)
class _Reading:
    """Rows of a block on its clean run, from which a form is to be read."""

    weights: BlockWeights
    products: "_MlpProducts | None"
    x: Float[Tensor, "token feature"]
    o: Float[Tensor, "token feature"]
    seen: SeenRows

    def first(self, count: int) -> "_Reading":
        return replace(self, x=self.x[:count], o=self.o[:count], seen=self.seen.first(count))

    def mlp(self, read: Float[Tensor, "token feature"]) -> MlpState | None:
        """The MLP on what it reads; None where its weights are not known."""
        if self.products is None:
            return None
        each, seen = self.products, self.seen
        if each.gate is None:
            pre, linear = each.into.of(read, seen.pre), None
            hidden = each.activation(pre.clone())
        else:
            pre = each.gate.of(read, seen.pre)
            linear = each.into.of(read, seen.pre_linear)
            hidden = each.activation(pre.clone()) * linear
        return MlpState(pre, linear, hidden, each.out.of(hidden, seen.output))


@dataclass(frozen=True, eq=False)
class _MlpProducts:
    activation: Activation
    into: Product
    gate: Product | None
    out: Product

    @classmethod
    def of(cls, w: BlockWeights, keep: Keep) -> "_MlpProducts | None":
        if w.w_in is None or w.w_out is None or w.activation is None:
            return None
        gate = None if w.w_gate is None else Product(w.w_gate, w.b_gate, keep, "W_gate")
        into, out = Product(w.w_in, w.b_in, keep, "W_in"), Product(w.w_out, w.b_out, keep, "W_out")
        return cls(w.activation, into, gate, out)


FormBuilder = Callable[[_Reading], CleanForm | None]


def recognise(
    weights: BlockWeights,
    block_input: Float[Tensor, "token feature"],
    attention_output: Float[Tensor, "token feature"],
    block_output: Float[Tensor, "token feature"],
    seen: SeenRows,
    keep: Keep,
    tolerance: float,
) -> CleanForm | None:
    """The form whose output is the block's own, to a relative tolerance of its mean square; None if none is.

    What was `seen` of the MLP is used where the weights give just that.
    """
    whole = _Reading(weights, _MlpProducts.of(weights, keep), block_input, attention_output, seen)
    # A few rows tell the forms apart; the one that fits them must then fit all.
    few = whole.first(PROBE_ROWS)
    for build in _BUILDERS:
        if _fits(build(few), block_output[:PROBE_ROWS], tolerance):
            form = build(whole)
            return form if _fits(form, block_output, tolerance) else None
    return None


def _fits(form: CleanForm | None, block_output: Tensor, tolerance: float) -> bool:
    return form is not None and relative_difference(form.output, block_output) <= tolerance


def _pre_norm(r: _Reading) -> CleanForm | None:
    if r.weights.norm2 is None or r.weights.norm2_post is not None:
        return None
    middle = r.x + r.o
    first = NormState.of(r.weights.norm2, middle)
    mlp = r.mlp(first.output())
    return None if mlp is None else CleanForm("pre_norm", middle + mlp.output, first=first, mlp=mlp)


def _post_norm(r: _Reading) -> CleanForm | None:
    if r.weights.norm1 is None or r.weights.norm2 is None:
        return None
    first = NormState.of(r.weights.norm1, r.x + r.o)
    read = first.output()
    mlp = r.mlp(read)
    if mlp is None:
        return None
    last = NormState.of(r.weights.norm2, read + mlp.output)
    return CleanForm("post_norm", last.output(), first=first, mlp=mlp, last=last)


def _sandwich(r: _Reading) -> CleanForm | None:
    w = r.weights
    if w.norm1_post is None or w.norm2 is None or w.norm2_post is None:
        return None
    first = NormState.of(w.norm1_post, r.o)
    middle = r.x + first.output()
    between = NormState.of(w.norm2, middle)
    mlp = r.mlp(between.output())
    if mlp is None:
        return None
    last = NormState.of(w.norm2_post, mlp.output)
    return CleanForm("sandwich", middle + last.output(), first, between, mlp, last)


def _parallel(norm_name: str) -> FormBuilder:
    def build(r: _Reading) -> CleanForm | None:
        norm: Norm | None = getattr(r.weights, norm_name)
        mlp = None if norm is None else r.mlp(NormState.of(norm, r.x).output())
        return None if mlp is None else CleanForm("parallel", r.x + r.o + mlp.output)

    return build


# A parallel MLP may read a norm of its own or attention's.
_BUILDERS: tuple[FormBuilder, ...] = (_sandwich, _pre_norm, _post_norm, _parallel("norm2"), _parallel("norm1"))
