"""A block's own norm and MLP modules, as functions of rows: what they do is theirs, whatever it is."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

RowFunction = Callable[[Float[Tensor, "row feature"]], Float[Tensor, "row feature"]]


@dataclass(frozen=True, eq=False)
class BlockModules:
    """The modules of a block that read one position at a time. Absent ones are None."""

    norm1: RowFunction | None
    norm1_post: RowFunction | None
    norm2: RowFunction | None
    norm2_post: RowFunction | None
    mlp: RowFunction | None


def block_modules(model: nn.Module, layer: int) -> BlockModules:
    """Find a block's modules by the names that TransformerLens gives them."""
    block: Any = model.blocks[layer]  # type: ignore[index]

    def named(name: str) -> RowFunction | None:
        module = getattr(block, name, None)
        return _on_rows(module) if callable(module) else None

    mlp = getattr(block, "mlp", None)
    return BlockModules(named("ln1"), named("ln1_post"), named("ln2"), named("ln2_post"), _mlp(mlp))


def _mlp(mlp: Any) -> RowFunction | None:
    if not callable(mlp):
        return None
    if getattr(mlp, "name", "") is None:
        # A bridge without a module of its own for the MLP: two linear maps on the layer, the first with its activation.
        first, second = getattr(mlp.original_component, "intermediate", None), getattr(mlp, "out", None)
        return _on_rows(lambda rows: second(first(rows))) if callable(first) and callable(second) else None
    return _on_rows(mlp)


def _on_rows(module: Callable[[Tensor], Any]) -> RowFunction:
    """A module called on rows as on one long sentence; of several results the first is what it writes."""

    def function(rows: Tensor) -> Tensor:
        written = module(rows.unsqueeze(0))
        first: Tensor = written[0] if isinstance(written, tuple) else written
        return first.reshape(rows.shape)

    return function
