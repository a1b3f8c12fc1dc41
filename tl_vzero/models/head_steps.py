"""A prediction's head taken apart into steps, from a position's output of the last block to its logits."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.distance import relative_difference
from tl_vzero.errors import ModelError
from tl_vzero.models.blocks import ACTIVATIONS, SAME_BLOCK, Activation, weight_view
from tl_vzero.models.facts import class_head_of, facts_of
from tl_vzero.models.sites import roots_of

SAME_LOGITS = 10  # times what a block may differ by: a vocabulary sums as many terms, and its logits are further apart
_BETWEEN: tuple[Activation | None, ...] = (None, torch.tanh, *ACTIVATIONS.values())

Vector = Float[Tensor, "feature"]
Written = Float[Tensor, "written"]
Call = tuple[nn.Module, Tensor, Tensor]  # what a module read and wrote


@dataclass(frozen=True, eq=False)
class HeadStep:
    """An activation where there is one, then a linear map or a norm with the scale of the clean run, then the bias.

    `read` is what it reads in the clean run, before the activation.
    """

    read: Vector
    activation: Activation | None
    weight: Float[Tensor, "feature written"] | Vector  # of a norm divided by its scale
    centred: bool
    bias: Written | None

    def linear(self, vectors: Float[Tensor, "*rows feature"]) -> Float[Tensor, "*rows written"]:
        """What it makes of vectors behind its activation, without its bias."""
        if self.weight.ndim == 2:
            return vectors @ self.weight
        return self.weight * (vectors - vectors.mean(dim=-1, keepdim=True) if self.centred else vectors)


def head_steps(model: nn.Module, run: Callable[[], tuple[Vector, Written]]) -> list[HeadStep]:
    """The steps between the two vectors that `run` gives of one position: the last block's output, and the logits.

    They are found among the modules that have weights by what these read and wrote in the run. Raises ModelError where
    no chain of them gives the logits.
    """
    calls: list[Call] = []

    def remember(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        tensors = [part for part in (*inputs[:1], output) if isinstance(part, Tensor) and part.is_floating_point()]
        if len(tensors) == 2:
            calls.append((module, tensors[0].detach(), tensors[1].detach()))

    with ExitStack() as hooks:
        for module in _outside_blocks(model):
            hooks.callback(module.register_forward_hook(remember).remove)
        output, logits = run()
    dtype = torch.float64 if output.dtype == torch.float64 else torch.float32
    tolerance = SAME_LOGITS * SAME_BLOCK.get(logits.dtype, SAME_BLOCK[torch.float16])
    read, steps = output.to(dtype), list[HeadStep]()
    for module, inputs, outputs in calls:
        step, written = _step(module, read, inputs.to(dtype), outputs.to(dtype), tolerance)
        if step is not None:
            steps.append(step)
            read = written
    if read.shape != logits.shape or relative_difference(read, logits.to(dtype)) > tolerance:
        raise ModelError(
            f"the head of {facts_of(model).name} is no chain of linear maps, norms and activations of one unit that "
            "tl_vzero can follow (some cap their logits or read several positions, a hook may act), so a logit has no "
            "parts: use zero_ablation or activation_patching"
        )
    return steps


def _outside_blocks(model: nn.Module) -> Iterator[nn.Module]:
    """The modules with weights of the model and its head, but for those of its blocks."""
    head = class_head_of(model)
    passed = {id(module) for module in nn.Module.modules(model.blocks)}  # type: ignore[arg-type]
    for root in [*roots_of(model), *([] if head is None else [head.whole])]:
        for module in nn.Module.modules(root):
            if id(module) not in passed and _weight(module) is not None:
                yield module
            passed.add(id(module))


def _weight(module: nn.Module, names: tuple[str, ...] = ("weight", "W_U", "W", "w")) -> Tensor | None:
    return next((weight for name in names if (weight := weight_view(module, name)) is not None), None)


def _step(
    module: nn.Module, read: Vector, inputs: Tensor, outputs: Tensor, tolerance: float
) -> tuple[HeadStep | None, Written]:
    """A module as the next step after `read`, with what it wrote of it; None where it is not."""
    rows, written = inputs.flatten(0, -2), outputs.flatten(0, -2)
    if rows.shape[1:] != read.shape or len(written) not in (1, len(rows)):  # 1: a hook inside cut to the target
        return None, read
    for activation in _BETWEEN:
        acted = read if activation is None else activation(read.clone())
        row = int((rows - acted).abs().sum(dim=-1).argmin())
        if relative_difference(rows[row], acted) <= tolerance:
            of_row = written[row % len(written)]
            weight, bias = _weight(module), _weight(module, ("bias", "b_U", "b"))
            assert weight is not None
            bias = None if bias is None else bias.to(read)
            for matrix, centred in _maps(weight.to(read), bias, acted, of_row):
                step = HeadStep(read, activation, matrix, centred, bias)
                computed = step.linear(acted) if bias is None else step.linear(acted) + bias
                if relative_difference(computed, of_row) <= tolerance:
                    return step, of_row
    return None, read


def _maps(weight: Tensor, bias: Tensor | None, read: Vector, written: Written) -> Iterator[tuple[Tensor, bool]]:
    """What a weight may stand for: a matrix by rows or columns; a norm's, over the scale that `written` shows."""
    shape = (len(read), len(written))
    if bias is not None and bias.shape != written.shape:
        return
    if weight.ndim == 2:
        yield from ((matrix, False) for matrix in (weight, weight.T) if matrix.shape == shape)
    elif weight.shape == read.shape == written.shape:
        without = written if bias is None else written - bias
        for stored, centred in ((weight, True), (weight, False), (weight + 1.0, False)):  # Gemma stores it minus 1
            scaled = stored * (read - read.mean() if centred else read)
            yield stored * ((scaled @ without) / (scaled @ scaled)), centred
