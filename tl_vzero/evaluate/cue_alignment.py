"""Cue alignment: does a method's row of the target point at the word that decides its form?

1. c is 1 at the cue and 0 elsewhere; s is the target's row of a map, one layer, no rollout.
2. dot = s·c; average precision = that of s as a ranking of the sources, with c as what is relevant.
3. Both are averaged over examples, by layer, method and paradigm, with a bootstrap interval.
4. Control: the same with other words of the sentence taken for the cue (seeded, never the cue itself).

Source: Mohebbi et al. 2023, section 5.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import numpy.typing as npt
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.corpus import Corpus
from tl_vzero.data.examples import ALL, Example, Skipped
from tl_vzero.data.tokens import WhichPieces
from tl_vzero.errors import InputError, unknown_name
from tl_vzero.evaluate.corpus_rows import corpus_rows
from tl_vzero.evaluate.published import Published, Training, published_of
from tl_vzero.evaluate.rows import TargetRows, target_rows
from tl_vzero.evaluate.statistics import (
    Estimate,
    Interval,
    columns_of,
    estimates,
    expected_average_precision,
    expected_dot,
    paradigms_of,
    plain_skip,
)
from tl_vzero.evaluate.tokenized import Protocol, TokenizedExample, tokenize_examples

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal["dot", "average_precision"]
LeftOut = Literal["special", "target"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Alignment:
    """One measure of one method in one layer, over the examples of one paradigm (or "all").

    `shuffled` is the same with other words taken for the cue, over the examples that have any; None where none has.
    `chance` is what random rows give in the mean. `published` is the paper's figure; None where there is none.
    """

    method: str
    layer: int
    paradigm: str
    measure: Measure
    aligned: Estimate
    shuffled: Estimate | None
    chance: float
    published: float | None


@dataclass(frozen=True)
class CueAlignment:
    """Cue alignment by method, layer, paradigm and measure, in that order.

    `left_out` are methods that were not named and not computed, `skipped` examples that the protocol cannot hold,
    both with the reason. `settings` say of what model, and by what conventions.
    """

    cells: tuple[Alignment, ...]
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table, a row a cell: mean, low, high and n; shuffled cues; chance; the published figure."""
        import pandas as pd

        return pd.DataFrame([_record(cell) for cell in self.cells])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; numbers that do not exist are None."""
        return {
            "cells": [_record(cell) for cell in self.cells],
            "left_out": dict(self.left_out),
            "skipped": [plain_skip(each) for each in self.skipped],
            "settings": dict(self.settings),
        }


def _record(cell: Alignment) -> dict[str, Any]:
    return {
        "method": cell.method,
        "layer": cell.layer,
        "paradigm": cell.paradigm,
        "measure": cell.measure,
        **columns_of(cell.aligned),
        **{f"shuffled_{name}": value for name, value in columns_of(cell.shuffled).items()},
        "chance": cell.chance,
        "published": cell.published,
    }


def cue_alignment(
    model: nn.Module,
    examples: Sequence[Example],
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    corpus: Corpus | None = None,
    which: WhichPieces = "first",
    without: Sequence[LeftOut] = (),
    protocol: Protocol = "masked",
    training: Training | None = None,
    interval: Interval | None = None,
    seed: int = 0,
    progress: bool = False,
) -> CueAlignment:
    """How much of the target's row lies on the cue, and how high it ranks: by method, layer and paradigm.

    `methods` and `options` are as in `target_rows`; of a `corpus` of these sentences rows are read, not computed (see
    `corpus_rows`), and options are those it was made with. The cue is the first piece of each of its words (the
    paper), or `which="all"` pieces. `without` takes the special tokens or the target itself from the row, which is
    normalised again; nothing by default. `training` says which published figures belong to the model, where its name
    does not. `seed` draws the shuffled cues.

    Raises what `tokenize_examples`, `target_rows` and `corpus_rows` raise, and leaves the model as it was.
    Source: Mohebbi et al. 2023, section 5.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> found = cue_alignment(model, agreement_examples()[:20], ["value_zeroing", "random"])
    >>> table = found.to_frame().query("paradigm == 'all' and measure == 'dot' and layer == 2").set_index("method")
    >>> bool(table["mean"]["value_zeroing"] > table["mean"]["random"])
    True
    """
    _check_left_out(without)
    layout = tokenize_examples(model, examples, protocol=protocol)
    rows = (
        target_rows(model, layout, methods, options=options, progress=progress)
        if corpus is None
        else corpus_rows(corpus, model, layout, methods, options=options, progress=progress)
    )
    return alignment_of(rows, which=which, without=without, training=training, interval=interval, seed=seed)


def alignment_of(
    rows: TargetRows,
    *,
    which: WhichPieces = "first",
    without: Sequence[LeftOut] = (),
    training: Training | None = None,
    interval: Interval | None = None,
    seed: int = 0,
) -> CueAlignment:
    """Cue alignment of rows that are there already; the arguments are those of `cue_alignment`."""
    if which not in get_args(WhichPieces):
        raise unknown_name("choice of pieces", which, get_args(WhichPieces))
    _check_left_out(without)
    interval = interval or Interval()
    questions = [_question(each, which, without, (seed, number)) for number, each in enumerate(rows.examples)]
    measured = {method: _measured(own, questions) for method, own in rows.rows.items()}
    known = published_of(str(rows.settings["model"]), training)
    cells = _cells(rows, questions, measured, known, interval)
    settings = {
        **rows.settings,
        "which": which,
        "without": list(without),
        "seed": seed,
        "confidence": interval.confidence,
        "resamples": interval.resamples,
        "published": None if known is None else f"{known.model}, {known.training}",
    }
    return CueAlignment(cells, rows.left_out, rows.skipped, settings)


@dataclass(frozen=True)
class _Question:
    """The sources of an example's row that are kept, and where among them cue and shuffled cue are."""

    kept: tuple[int, ...]
    cue: tuple[int, ...]
    shuffled: tuple[int, ...] | None


def _check_left_out(without: Any) -> None:
    for each in (without,) if isinstance(without, str) else without:
        if isinstance(without, str) or each not in get_args(LeftOut):
            raise InputError(f"without is {without!r}: expected a list of {', '.join(get_args(LeftOut))}, or ()")


def _question(each: TokenizedExample, which: WhichPieces, without: Sequence[LeftOut], seed: Sequence[int]) -> _Question:
    special = each.encoding.special
    gone = {position for position in range(len(each)) if "special" in without and special[position]}
    if "target" in without and each.target_position is not None:
        gone.add(each.target_position)
    kept = tuple(position for position in range(len(each)) if position not in gone)
    place = {position: index for index, position in enumerate(kept)}
    cue = each.cue(which)
    shuffled = _shuffled(each, cue, seed)
    return _Question(
        kept,
        tuple(place[position] for position in cue),
        None if shuffled is None else tuple(place[position] for position in shuffled),
    )


def _shuffled(each: TokenizedExample, cue: Sequence[int], seed: Sequence[int]) -> tuple[int, ...] | None:
    """As many other positions as the cue has, of words that are neither cue nor target; None if there are too few."""
    cue_words = {each.encoding.word_ids[position] for position in cue}
    others = [
        position
        for position, word in enumerate(each.encoding.word_ids)
        if word is not None and word not in cue_words and position != each.target_position
    ]
    if len(others) < len(cue):
        return None
    return tuple(np.random.default_rng(seed).choice(others, len(cue), replace=False).tolist())


def _measured(rows: Sequence[Tensor], questions: Sequence[_Question]) -> Array:
    """`[example, shuffled, measure, layer]`: the two measures, with the cue and with shuffled ones (NaN if none)."""
    found = []
    for row, question in zip(rows, questions, strict=True):
        kept = row[:, list(question.kept)].numpy()
        if len(question.kept) < row.shape[1]:
            total = kept.sum(axis=1, keepdims=True)
            kept = np.divide(kept, total, out=np.zeros_like(kept), where=total != 0)
        nothing = np.full((len(MEASURES), len(kept)), np.nan)
        found.append([nothing if cue is None else _both(kept, cue) for cue in (question.cue, question.shuffled)])
    return np.array(found)


def _both(rows: Array, cue: Sequence[int]) -> Array:
    return np.stack([rows[:, list(cue)].sum(axis=1), average_precision(rows, cue)])


def average_precision(rows: Float[np.ndarray, "layer src"], cue: Sequence[int]) -> Float[np.ndarray, "layer"]:
    """Average precision of each row as a ranking of the sources, where `cue` holds those that are relevant.

    The mean, over the cues, of the share of cues among the sources that score no less: sources of one score come
    together, as in scikit-learn's definition.

    >>> average_precision(np.array([[0.5, 0.3, 0.2], [0.2, 0.3, 0.5]]), [0]).round(3).tolist()
    [1.0, 0.333]
    """
    no_less = rows[:, None, :] >= rows[:, list(cue), None]
    return np.asarray((no_less[:, :, list(cue)].sum(axis=2) / no_less.sum(axis=2)).mean(axis=1))


def _cells(
    rows: TargetRows,
    questions: Sequence[_Question],
    measured: Mapping[str, Array],
    known: Published | None,
    interval: Interval,
) -> tuple[Alignment, ...]:
    chance = np.array(
        [
            [formula(len(each.cue), len(each.kept)) for formula in (expected_dot, expected_average_precision)]
            for each in questions
        ]
    )
    paradigms = paradigms_of(rows.examples)
    # [example, method, shuffled, measure, layer]: all columns of a paradigm share their draws.
    together = np.stack([*measured.values()], axis=1)
    found = {paradigm: _estimated(together[numbers], interval) for paradigm, numbers in paradigms.items()}
    cells: list[Alignment] = []
    for which_method, method in enumerate(measured):
        figures = () if known is None else known.dot.get(method, ())
        for index, layer in enumerate(rows.layers):
            for paradigm, numbers in paradigms.items():
                for which, measure in enumerate(MEASURES):
                    aligned, shuffled = found[paradigm][which_method, :, which, index]
                    beside = measure == "dot" and paradigm == ALL and layer < len(figures)
                    cells.append(
                        Alignment(
                            method,
                            layer,
                            paradigm,
                            measure,
                            aligned,
                            shuffled,
                            float(chance[numbers, which].mean()),
                            figures[layer] if beside else None,
                        )
                    )
    return tuple(cells)


def _estimated(measured: Array, interval: Interval) -> Array:
    """The estimate of each column of numbers whose first axis is the example."""
    flat = estimates(measured.reshape(len(measured), -1), interval)
    found = np.empty(len(flat), dtype=object)
    found[:] = flat
    return found.reshape(measured.shape[1:])
