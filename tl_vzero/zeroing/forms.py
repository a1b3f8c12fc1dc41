"""How a block is put together, as far as the closed form needs it, recognised by what the block does.

x is the block's input, o its attention's output, delta what o loses when a value is zeroed:

    post_norm   t = norm1(x + o)               y = norm2(t + mlp(t))                 BERT
    pre_norm    m = x + o                      y = m + mlp(norm2(m))                 GPT-2, Llama, Qwen
    sandwich    m = x + norm1_post(o)          y = m + norm2_post(mlp(norm2(m)))     Gemma
    parallel    y = x + o + mlp(norm(x))       the MLP never sees the change         NeoX

A decoder's block that reads an encoder is, from its cross-attention on, a block of such a form: x is what its
self-attention leaves in the stream, in a post-norm block behind a norm of its own, norm0.

A block is of a form if that form, computed from its weights, gives the output that the block really gave. Where the
residual stream is large and little is written into it, several forms do, up to rounding: then the nearest one counts.

Products that the clean run or an earlier call has done already are not done again: the last part of this file.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.distance import relative_difference, wide_dtype
from tl_vzero.models.blocks import BlockWeights, Norm

PROBE_ROWS = 4  # tell most forms apart

FormName = Literal["post_norm", "pre_norm", "sandwich", "parallel"]
Rows = Float[Tensor, "row feature"]


@dataclass(frozen=True, eq=False)
class BlockRows:
    """Positions of a block on its clean run: what it reads and writes, and what the run showed of its MLP."""

    input: Float[Tensor, "row feature"]
    attention_output: Float[Tensor, "row feature"]
    output: Float[Tensor, "row feature"]
    mlp_pre: Float[Tensor, "row d_mlp"] | None = None
    mlp_pre_linear: Float[Tensor, "row d_mlp"] | None = None
    mlp_output: Float[Tensor, "row feature"] | None = None

    def first(self, count: int) -> "BlockRows":
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return BlockRows(**{name: rows[:count] for name, rows in parts.items() if rows is not None})


@dataclass(frozen=True, eq=False)
class NormState:
    """A norm at work on the clean run: the centred rows it reads, and what it divides them by."""

    norm: Norm
    centred: Float[Tensor, "row feature"]
    deviation: Float[Tensor, "row"]

    @classmethod
    def of(cls, norm: Norm, rows: Float[Tensor, "row feature"]) -> "NormState":
        centred = norm.centre(rows)
        return cls(norm, centred, norm.deviation(centred))

    def output(self) -> Float[Tensor, "row feature"]:
        scaled = self.norm.weight * (self.centred / self.deviation.unsqueeze(-1))
        return scaled if self.norm.bias is None else scaled + self.norm.bias


@dataclass(frozen=True, eq=False)
class MlpState:
    """The MLP at work on the clean run: what enters its activation, and what leaves it."""

    pre: Float[Tensor, "row d_mlp"]
    pre_linear: Float[Tensor, "row d_mlp"] | None
    hidden: Float[Tensor, "row d_mlp"]
    output: Float[Tensor, "row feature"]


@dataclass(frozen=True, eq=False)
class CleanForm:
    """A recognised block on its clean run, all sentences' positions in one row axis.

    `first` is the norm that reads what loses delta; `between` (sandwich) the norm before the MLP; `last` the norm at
    the end. Norms and MLP are None where the form has none that sees the change. `output_from` computes the output of
    some rows from another attention output, and from another input, where it is not the clean one. `before` is the norm
    between the two attentions of a decoder's block.
    """

    name: FormName
    output: Float[Tensor, "row feature"]
    first: NormState | None = None
    between: NormState | None = None
    mlp: MlpState | None = None
    last: NormState | None = None
    output_from: Callable[..., Rows] | None = None
    before: NormState | None = None

    @property
    def reads_change_itself(self) -> bool:
        """Whether what attention loses also goes past the norm, into the residual stream as it is."""
        return self.first is None or self.name == "pre_norm"


@dataclass(frozen=True, eq=False)
class _Reading:
    """A block's weights and rows, from which each form computes an output."""

    weights: BlockWeights
    rows: BlockRows
    keep: "Keep"

    def mlp(self, read: Float[Tensor, "row feature"]) -> MlpState | None:
        """The MLP on what it reads; None where its weights are not known."""
        w, rows = self.weights, self.rows
        if w.w_in is None or w.w_out is None or w.activation is None:
            return None
        into = Product(w.w_in, w.b_in, self.keep, "W_in")
        if w.w_gate is None:
            pre, linear = into.of(read, rows.mlp_pre), None
            hidden = w.activation(pre.clone())
        else:
            pre = Product(w.w_gate, w.b_gate, self.keep, "W_gate").of(read, rows.mlp_pre)
            linear = into.of(read, rows.mlp_pre_linear)
            hidden = w.activation(pre.clone()) * linear
        output = Product(w.w_out, w.b_out, self.keep, "W_out").of(hidden, rows.mlp_output)
        return MlpState(pre, linear, hidden, output)


FormBuilder = Callable[[_Reading], CleanForm | None]


def recognise(
    weights: BlockWeights, rows: BlockRows, tolerance: float, cache: "WeightCache", block: str
) -> CleanForm | None:
    """The form whose output is nearest the block's, to a relative tolerance of its mean square; None if none is.

    The cache holds the form of each block, once it has been compared with the others.
    """
    reading = _Reading(weights, rows, partial(cache.vector, block))
    for cached in (cache.forms.get(block), None):
        name = cached or _nearest(reading, tolerance)
        form = None if name is None else _BUILDERS[name](reading)
        if name and form and relative_difference(form.output, rows.output) <= tolerance:
            cache.forms[block] = name
            return replace(form, output_from=partial(_output_from, _BUILDERS[name], reading))
    return None


def _output_from(
    build: FormBuilder, reading: _Reading, at: Int[Tensor, "row"], attention_output: Rows, x: Rows | None = None
) -> Rows:
    """A form's output of some rows, in the dtype of what attention is to have written there."""
    x = reading.rows.input[at].to(attention_output.dtype) if x is None else x
    form = build(replace(reading, rows=BlockRows(x, attention_output, reading.rows.output[at])))
    assert form is not None
    return form.output


def _nearest(reading: _Reading, tolerance: float) -> str | None:
    """Of the forms that fit a few rows, the name of the one that is nearest on all of them."""
    few = replace(reading, rows=reading.rows.first(PROBE_ROWS))
    forms = ((name, build(few)) for name, build in _BUILDERS.items())
    expected = few.rows.output
    fitting = [name for name, form in forms if form and relative_difference(form.output, expected) <= tolerance]
    if len(fitting) < 2:
        return next(iter(fitting), None)
    # What tells them apart may be less than one rounding of the stream: it shows over many rows, in wide numbers.
    rows, wide = reading.rows, wide_dtype(reading.rows.input.device)
    widened = replace(reading, rows=BlockRows(rows.input.to(wide), rows.attention_output.to(wide), rows.output))

    def difference(name: str) -> float:
        form = _BUILDERS[name](widened)
        assert form is not None
        return float((form.output - rows.output).square().sum())

    return min(fitting, key=difference)


def _pre_norm(r: _Reading) -> CleanForm | None:
    if r.weights.norm2 is None or r.weights.norm2_post is not None:
        return None
    middle = r.rows.input + r.rows.attention_output
    first = NormState.of(r.weights.norm2, middle)
    mlp = r.mlp(first.output())
    return None if mlp is None else CleanForm("pre_norm", middle + mlp.output, first=first, mlp=mlp)


def _post_norm(r: _Reading) -> CleanForm | None:
    if r.weights.norm1 is None or r.weights.norm2 is None:
        return None
    before = None if r.weights.norm0 is None else NormState.of(r.weights.norm0, r.rows.input)
    x = r.rows.input if before is None else before.output()
    first = NormState.of(r.weights.norm1, x + r.rows.attention_output)
    read = first.output()
    mlp = r.mlp(read)
    if mlp is None:
        return None
    last = NormState.of(r.weights.norm2, read + mlp.output)
    return CleanForm("post_norm", last.output(), first=first, mlp=mlp, last=last, before=before)


def _sandwich(r: _Reading) -> CleanForm | None:
    w = r.weights
    if w.norm1_post is None or w.norm2 is None or w.norm2_post is None:
        return None
    first = NormState.of(w.norm1_post, r.rows.attention_output)
    middle = r.rows.input + first.output()
    between = NormState.of(w.norm2, middle)
    mlp = r.mlp(between.output())
    if mlp is None:
        return None
    last = NormState.of(w.norm2_post, mlp.output)
    return CleanForm("sandwich", middle + last.output(), first, between, mlp, last)


def _parallel(norm_name: str, r: _Reading) -> CleanForm | None:
    norm: Norm | None = getattr(r.weights, norm_name)
    mlp = None if norm is None else r.mlp(NormState.of(norm, r.rows.input).output())
    return None if mlp is None else CleanForm("parallel", r.rows.input + r.rows.attention_output + mlp.output)


# A parallel MLP may read a norm of its own or attention's.
_BUILDERS: dict[str, FormBuilder] = {
    "sandwich": _sandwich,
    "pre_norm": _pre_norm,
    "post_norm": _post_norm,
    "parallel, norm2": partial(_parallel, "norm2"),
    "parallel, norm1": partial(_parallel, "norm1"),
}


# Products that the clean run has done: taken from it, once it is known that they are the same.

# Keeps a vector that went through a matrix, under a name: (name, matrix, how to compute it).
Keep = Callable[[str, Tensor, Callable[[], Tensor]], Tensor]

# How far a product may be from the clean run's (root mean square, relative) and still be the same. What is farther is
# computed: Hugging Face's RMSNorm is float32 inside a float64 model.
SAME_PRODUCT = {torch.float64: 1e-12, torch.float32: 5e-6}

NUMBERS_WIDENED = 2**21  # of a matrix at a time, 16 MB


def random_direction(like: Float[Tensor, "*axes feature"]) -> Float[Tensor, "feature"]:
    """The same random vector each time: products of matrices that differ differ along it (Freivalds 1979)."""
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

    def of(self, rows: Float[Tensor, "row feature"], shown: Float[Tensor, "_ _"] | None) -> Float[Tensor, "row width"]:
        """The product of rows; `shown`, if it is that product."""
        if shown is not None and self._is_shown(rows, shown):
            return shown
        if rows.dtype != self.matrix.dtype:
            product = wider_product(rows, self.matrix)
            return product if self.bias is None else product + self.bias
        return rows @ self.matrix if self.bias is None else torch.addmm(self.bias, rows, self.matrix)

    def _is_shown(self, rows: Tensor, shown: Tensor) -> bool:
        if shown.shape != (len(rows), self.matrix.shape[-1]):
            return False
        direction = random_direction(self.matrix)
        through = self.keep(f"direction through {self.name}", self.matrix, lambda: self.matrix @ direction)
        along = rows @ through if self.bias is None else rows @ through + self.bias @ direction
        return relative_difference(along, shown @ direction) <= SAME_PRODUCT[rows.dtype]


# What was computed from a model's weights alone, for later calls.

_Key = tuple[str, str, torch.dtype, torch.device]


class WeightCache:
    """By block: W_O folded into the MLP's first products, vectors that went through a matrix, and the block's form.

    Folding costs as much as d_model pairs, for a short sentence more than all its pairs. Folds are held up to
    `max_bytes`; `forms` are names of forms. A block is named by the hook of its values.
    """

    def __init__(self, weights_sha256: str, max_bytes: float = 0.0) -> None:
        self.weights_sha256, self.max_bytes = weights_sha256, max_bytes
        self.folds: dict[_Key, Tensor] = {}
        self.vectors: dict[_Key, Tensor] = {}
        self.forms: dict[str, str] = {}

    def has_fold(self, block: str, matrix: Float[Tensor, "feature d_mlp"]) -> bool:
        """Whether the fold into a block's first product need not be computed again."""
        return _key(block, "0", matrix) in self.folds

    def fold(
        self, block: str, index: int, matrix: Float[Tensor, "feature d_mlp"], compute: Callable[[], Tensor]
    ) -> Float[Tensor, "head d_head d_mlp"]:
        """The fold into one of a block's products, from the cache or computed, and then cached if there is room."""
        key = _key(block, str(index), matrix)
        if key in self.folds:
            return self.folds[key]
        fold = compute()
        if sum(cached.nbytes for cached in self.folds.values()) + fold.nbytes <= self.max_bytes:
            self.folds[key] = fold
        return fold

    def vector(self, block: str, name: str, matrix: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """A vector that went through one of a block's matrices."""
        key = _key(block, name, matrix)
        if key not in self.vectors:
            self.vectors[key] = compute()
        return self.vectors[key]

    def limit(self, max_bytes: float) -> None:
        """Hold no more folds than this from now on."""
        self.max_bytes = max_bytes
        while self.folds and sum(fold.nbytes for fold in self.folds.values()) > max_bytes:
            self.folds.popitem()


def _key(block: str, name: str, matrix: Tensor) -> _Key:
    return block, name, matrix.dtype, matrix.device


_CACHES: WeakKeyDictionary[nn.Module, WeightCache] = WeakKeyDictionary()


def weight_cache_of(model: nn.Module, weights_sha256: str, max_bytes: float) -> WeightCache:
    """The cache of a model, a new one when a weight has changed since: the hash is of their content."""
    cache = _CACHES.get(model)
    if cache is None or cache.weights_sha256 != weights_sha256:
        cache = _CACHES[model] = WeightCache(weights_sha256)
    cache.limit(max_bytes)
    return cache


def forget_weight_cache(model: nn.Module) -> None:
    """Cache nothing of a model: what the next calls round does not depend on the calls before then."""
    _CACHES.pop(model, None)
