"""The middle way: attention is not run again, and the block's own norm and MLP modules read every pair.

For blocks whose MLP no weights explain (an activation without a formula here, a mixture of experts). The forms are
those of forms.py, put together from modules instead of weights; a block is of a form if that gives its clean output.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_vzero.distance import LITTLE_LEFT, relative_difference, wide_dtype
from tl_vzero.models.blocks import BlockModules, RowFunction
from tl_vzero.zeroing.chunks import Changes, Column, LostValues, Outputs, Zeroed
from tl_vzero.zeroing.forms import PROBE_ROWS, BlockRows, Rows

WIDEST_MLP = 8  # times d_model: what an MLP of unknown width is taken to hold for a row

Form = Callable[[Rows, Rows], Rows]  # a block's output from its input and its attention's output


@dataclass(frozen=True, eq=False)
class ModuleForm:
    """How a block's output follows from its rows on the clean run, by its modules; on the clean run, `output`.

    `adds` says that the output is just shifted by what attention writes: no module reads it.
    """

    function: Form
    adds: bool
    rows: BlockRows
    output: Float[Tensor, "row feature"]


def module_form(modules: BlockModules, rows: BlockRows, tolerance: float) -> ModuleForm | None:
    """The form whose output is nearest the block's, to a relative tolerance of its mean square; None if none is.

    The rows are in the dtype that the modules compute in.
    """
    few, wide = rows.first(PROBE_ROWS), wide_dtype(rows.output.device)
    fitting: list[ModuleForm] = []
    for function, adds in _forms(modules):
        if _output(function, few, tolerance) is not None:
            output = _output(function, rows, tolerance)
            fitting += [] if output is None else [ModuleForm(function, adds, rows, output)]

    def difference(form: ModuleForm) -> float:
        return float((form.output.to(wide) - rows.output.to(wide)).square().sum())

    # Several fit where the residual stream is large and little is written into it.
    return min(fitting, key=difference, default=None)


def _output(function: Form, rows: BlockRows, tolerance: float) -> Rows | None:
    """The output of a form, if it is the block's."""
    try:
        output = function(rows.input, rows.attention_output)
    except Exception:  # a module that does not take single positions may fail in any way, and is of no form
        return None
    return output if relative_difference(output, rows.output) <= tolerance else None


def _forms(m: BlockModules) -> Iterator[tuple[Form, bool]]:
    if m.norm1_post and m.norm2 and m.norm2_post and m.mlp:
        yield partial(_sandwich, m), False
    if m.norm2 and m.mlp:
        yield partial(_pre_norm, m), False
    if m.norm1 and m.norm2 and m.mlp:
        yield partial(_post_norm, m), False
    for norm in (m.norm2, m.norm1):
        if norm and m.mlp:
            yield partial(_parallel, norm, m), True
    yield torch.add, True


# The modules that these call are there: see _forms.


def _sandwich(m: Any, x: Rows, o: Rows) -> Any:
    middle = x + m.norm1_post(o)
    return middle + m.norm2_post(m.mlp(m.norm2(middle)))


def _pre_norm(m: Any, x: Rows, o: Rows) -> Any:
    middle = x + o
    return middle + m.mlp(m.norm2(middle))


def _post_norm(m: Any, x: Rows, o: Rows) -> Any:
    read = m.norm1((m.norm0(x) if m.norm0 else x) + o)
    return m.norm2(read + m.mlp(read))


def _parallel(norm: RowFunction, m: Any, x: Rows, o: Rows) -> Any:
    return x + o + m.mlp(norm(x))


class ModulePairs:
    """One layer with values zeroed, its modules on every pair; `changes` gives clean minus changed output."""

    def __init__(
        self, form: ModuleForm, w_o: Float[Tensor, "head d_head feature"], b_o: Float[Tensor, "feature"], zeroed: Zeroed
    ) -> None:
        self.form, self.w_o, self.b_o, self.zeroed = form, w_o, b_o, zeroed
        d_model, heads = w_o.shape[-1], list(zeroed.heads)
        self.lost = LostValues(zeroed, w_o[heads], (8 + 2 * WIDEST_MLP) * d_model, len(heads) * d_model)

    def changes(self, columns: Sequence[Column]) -> Changes:
        """Every pair of the columns with its change, which may be overwritten, and where attention falls silent."""
        whole = torch.linalg.vector_norm(self.form.rows.attention_output, dim=-1)
        for group in self.lost.groups(columns):
            for chunk in group.chunks():
                delta = group.delta(chunk)
                if self.form.adds:
                    yield chunk, delta, torch.zeros(len(delta), dtype=torch.bool, device=delta.device)
                    continue
                left = self.form.rows.attention_output[chunk.clean].to(delta.dtype) - delta
                vanishing = torch.linalg.vector_norm(left, dim=-1) < LITTLE_LEFT * whole[chunk.clean]
                clean, changed = self._outputs_from(chunk.clean, left)
                yield chunk, (clean - changed).to(delta.dtype), vanishing

    def outputs(self, rows: Int[Tensor, "pair"], columns: Int[Tensor, "pair"]) -> Outputs:
        """The clean and the changed outputs of some pairs themselves, from what is left, in the widest dtype."""
        left, _ = self.zeroed.attention_outputs(rows, columns, self.w_o, self.b_o)
        return self._outputs_from(rows, left)

    def _outputs_from(self, rows: Int[Tensor, "row"], left: Rows) -> tuple[Rows, Rows]:
        """Clean and changed outputs, in the dtype of what is left of attention's; modules compute in their own."""
        clean = self.form.output[rows]
        changed = self.form.function(self.form.rows.input[rows], left.to(clean.dtype))
        return clean.to(left.dtype), changed.to(left.dtype)
