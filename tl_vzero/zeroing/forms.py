"""How a block is put together, as far as the closed form needs it, recognised by what the block does.

x is the block's input, o its attention's output, delta what o loses when a value is zeroed:

    post_norm   t = norm1(x + o)               y = norm2(t + mlp(t))                 BERT
    pre_norm    m = x + o                      y = m + mlp(norm2(m))                 GPT-2, Llama, Qwen
    sandwich    m = x + norm1_post(o)          y = m + norm2_post(mlp(norm2(m)))     Gemma
    parallel    y = x + o + mlp(norm(x))       the MLP never sees the change         NeoX

A block is of a form if that form, computed from its weights, gives the output that the block really gave. Where the
residual stream is large and little is written into it, several forms do, up to rounding: then the nearest one counts.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_vzero.distance import relative_difference, wide_dtype
from tl_vzero.models.blocks import Activation, BlockWeights, Norm

# Products that the clean run has done already: taken from it, once it is known that they are the same.

# Keeps a vector that went through a matrix, under a name: (name, matrix, how to make it).
Keep = Callable[[str, Tensor, Callable[[], Tensor]], Tensor]

# How far a product may be from the clean run's own (root mean square, relative) and still be the same. What is farther
# is computed: Hugging Face's RMSNorm is float32 inside a float64 model.
SAME_PRODUCT = {torch.float64: 1e-12, torch.float32: 5e-6}

NUMBERS_WIDENED = 2**21  # of a matrix at a time, 16 MB


def random_direction(like: Float[Tensor, "*axes feature"]) -> Float[Tensor, "feature"]:
    """The same random vector each time, as wide as `like`.

    Vectors that differ anywhere differ along it, but for a chance of probability zero; so a product of matrices is
    checked at the price of a product with one vector (Freivalds 1979).
    """
    generator = torch.Generator().manual_seed(0)
    return torch.randn(like.shape[-1], generator=generator, dtype=torch.float64).to(like)


def wider_product(
    rows: Float[Tensor, "row feature"], matrix: Float[Tensor, "feature width"]
) -> Float[Tensor, "row width"]:
    """The product in the rows' dtype, some columns of the matrix at a time: it is never widened as a whole."""
    parts = matrix.split(max(1, NUMBERS_WIDENED // len(matrix)), dim=-1)
    return torch.cat([rows @ part.to(rows.dtype) for part in parts], dim=-1)


class Product:
    """rows @ matrix + bias, done once more only where the clean run does not show it."""

    def __init__(
        self, matrix: Float[Tensor, "feature width"], bias: Float[Tensor, "width"] | None, keep: Keep, name: str
    ) -> None:
        self.matrix, self.bias, self.keep, self.name = matrix, bias, keep, name

    def of(self, rows: Float[Tensor, "row feature"], seen: Float[Tensor, "_ _"] | None) -> Float[Tensor, "row width"]:
        """The product of rows; `seen`, if it is that product."""
        if seen is not None and self._gives(rows, seen):
            return seen
        if rows.dtype != self.matrix.dtype:
            product = wider_product(rows, self.matrix)
            return product if self.bias is None else product + self.bias
        return rows @ self.matrix if self.bias is None else torch.addmm(self.bias, rows, self.matrix)

    def _gives(self, rows: Tensor, seen: Tensor) -> bool:
        if seen.shape != (len(rows), self.matrix.shape[-1]):
            return False
        along = rows @ self._through
        if self.bias is not None:
            along = along + self.bias @ self._direction
        return relative_difference(along, seen @ self._direction) <= SAME_PRODUCT[rows.dtype]

    @cached_property
    def _direction(self) -> Float[Tensor, "width"]:
        return random_direction(self.matrix)

    @property
    def _through(self) -> Float[Tensor, "feature"]:
        return self.keep(f"direction through {self.name}", self.matrix, lambda: self.matrix @ self._direction)


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


Again = Callable[[Int[Tensor, "row"], Float[Tensor, "row feature"]], Float[Tensor, "row feature"]]


@dataclass(frozen=True, eq=False)
class CleanForm:
    """A recognised block on its clean run, all sentences' tokens in one row axis.

    `first` is the norm that reads what loses delta; `between` (sandwich) the norm before the MLP;
    `last` the norm at the end. Norms and MLP are None where the form has none that sees the change. `again` computes
    the output of some tokens from another attention output.
    """

    name: FormName
    output: Float[Tensor, "token feature"]
    first: NormState | None = None
    between: NormState | None = None
    mlp: MlpState | None = None
    last: NormState | None = None
    again: Again | None = None

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

    def widened(self) -> "_Reading":
        """The same in the widest dtype, with nothing taken from what was seen."""
        wide = wide_dtype(self.x.device)
        return replace(self, x=self.x.to(wide), o=self.o.to(wide), seen=SeenRows())

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
    chosen: dict[int, str],
    layer: int,
) -> CleanForm | None:
    """The form whose output is nearest the block's own, to a relative tolerance of its mean square; None if none is.

    What was `seen` of the MLP is used where the weights give just that. `chosen` holds the form of each layer, once
    it has been compared with the others.
    """
    whole = _Reading(weights, _MlpProducts.of(weights, keep), block_input, attention_output, seen)
    for name in (chosen.get(layer), None):
        build = _BUILDERS[name] if name is not None else _nearest(whole, block_output, tolerance)
        form = None if build is None else build(whole)
        if build and form and relative_difference(form.output, block_output) <= tolerance:
            chosen[layer] = next(name for name, each in _BUILDERS.items() if each is build)
            return replace(form, again=partial(_again, build, whole))
    return None


def _again(
    build: FormBuilder, whole: _Reading, rows: Int[Tensor, "row"], attention_output: Float[Tensor, "row feature"]
) -> Float[Tensor, "row feature"]:
    """A form's output of some rows, in the dtype of what attention is to have written there."""
    x = whole.x[rows].to(attention_output.dtype)
    form = build(replace(whole, x=x, o=attention_output, seen=SeenRows()))
    assert form is not None
    return form.output


def _nearest(whole: _Reading, block_output: Tensor, tolerance: float) -> FormBuilder | None:
    """Of the forms that fit a few rows, the one that is nearest on all of them."""
    few, expected = whole.first(PROBE_ROWS), block_output[:PROBE_ROWS]
    forms = [(build, build(few)) for build in _BUILDERS.values()]
    fitting = [b for b, form in forms if form is not None and relative_difference(form.output, expected) <= tolerance]
    if len(fitting) < 2:
        return next(iter(fitting), None)
    # What tells them apart may be less than one rounding of the stream: it shows over many rows, in wide numbers.
    wide = whole.widened()
    distances = []
    for build in fitting:
        form = build(wide)
        assert form is not None
        distances.append(float((form.output - block_output).square().sum()))
    return fitting[distances.index(min(distances))]


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
_BUILDERS: dict[str, FormBuilder] = {
    "sandwich": _sandwich,
    "pre_norm": _pre_norm,
    "post_norm": _post_norm,
    "parallel, norm2": _parallel("norm2"),
    "parallel, norm1": _parallel("norm1"),
}
