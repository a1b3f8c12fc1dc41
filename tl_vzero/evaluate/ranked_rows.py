"""The one row of each method that is ranked against the prediction: rolled out, or of one layer."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from tl_vzero.api import METHODS
from tl_vzero.corpus import Corpus
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ModelError
from tl_vzero.evaluate.corpus_rows import corpus_rows
from tl_vzero.evaluate.laid_out import Layout
from tl_vzero.evaluate.rows import DEAR, TargetRows, target_rows
from tl_vzero.evaluate.summaries import Array
from tl_vzero.models.contracts import check_contracts

Options = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True, eq=False)
class RankedRows:
    """The row `[src]` of each method and example, and where each method's was read: (layer, rolled out)."""

    rows: Mapping[str, tuple[Array, ...]]
    places: Mapping[str, tuple[int, bool]]
    left_out: Mapping[str, str]
    settings: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class _Part:
    """Rows of some methods, the index of the layer that is read of them, and whether they are rolled out."""

    rows: TargetRows
    index: int
    rolled_out: bool


def ranked_rows(
    model: nn.Module,
    layout: Layout,
    methods: Sequence[str] | None,
    *,
    options: Options | None,
    corpus: Corpus | None,
    layer: int,
    rolled_out: bool,
    progress: bool,
) -> RankedRows:
    """The target's row of each method at a layer, rolled out to it or by itself; read from a corpus where one is given.

    A method that gives the target's row only has no rollout: it is read at the first block's output, the nearest to
    the tokens. Raises what `target_rows` or `corpus_rows` raises, and InputError or InputTypeError for a layer that is
    not there.
    """
    at = _layer_number(layer, check_contracts(model).n_layers)
    left_out: dict[str, str] = {}
    if corpus is None:
        parts = list(_parts(model, layout, methods, options or {}, at, rolled_out, progress, left_out))
    else:
        layers = None if rolled_out else [at]
        rows = corpus_rows(
            corpus, model, layout, methods, options=options, layers=layers, rolled_out=rolled_out, progress=progress
        )
        left_out |= rows.left_out
        parts = [_Part(rows, at if rolled_out else 0, rolled_out)]
    found = {name: part for part in parts for name in part.rows.rows}
    return RankedRows(
        rows={
            name: tuple(row[found[name].index].numpy() for row in found[name].rows.rows[name])
            for name in methods or (METHODS if corpus is None else found)
            if name in found
        },
        places={name: (part.rows.layers[part.index], part.rolled_out) for name, part in found.items()},
        left_out={name: reason for name, reason in left_out.items() if name not in found},
        settings={
            **parts[0].rows.settings,
            "options": {name: own for part in parts for name, own in part.rows.settings["options"].items()},
        },
    )


def _parts(
    model: nn.Module,
    layout: Layout,
    methods: Sequence[str] | None,
    options: Options,
    at: int,
    rolled_out: bool,
    progress: bool,
    left_out: dict[str, str],
) -> Iterator[_Part]:
    """Rows of the methods that have a rollout, then of each that has none; what is undefined goes to `left_out`."""
    alone = _without_rollout(methods, options) if rolled_out else []
    others = methods if methods is None else [name for name in methods if name not in alone]
    if others is None or others or not alone:
        own = {name: each for name, each in options.items() if name not in alone}
        layers = None if rolled_out else [at]
        rows = target_rows(model, layout, others, options=own, layers=layers, rolled_out=rolled_out, progress=progress)
        left_out |= rows.left_out
        yield _Part(rows, at if rolled_out else 0, rolled_out)
    for name in alone:
        try:
            rows = target_rows(
                model,
                layout,
                [name],
                options={name: options[name]} if name in options else None,
                layers=[0],
                progress=progress,
            )
        except (ModelError, DependencyError) as error:
            if methods is not None:
                raise
            left_out[name] = str(error)
        else:
            yield _Part(rows, 0, rolled_out=False)


def _without_rollout(methods: Sequence[str] | None, options: Options) -> list[str]:
    """The methods that give the target's row only; by default without the dearest."""
    wanted = [name for name in METHODS if name in options or name not in DEAR] if methods is None else methods
    return [name for name in wanted if name in METHODS and "target" in METHODS[name].needs]


def _layer_number(layer: Any, n_layers: int) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise InputTypeError(f"layer is {type(layer).__name__}: expected a number from 0 to {n_layers - 1}, or -1")
    if not -n_layers <= layer < n_layers:
        raise InputError(f"layer is {layer}: expected 0 to {n_layers - 1}, or -{n_layers} to -1 from the end")
    return layer % n_layers
