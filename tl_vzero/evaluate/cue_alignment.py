"""Cue alignment: does a method's row of the target point at the word that decides its form?

1. c is 1 at the cue and 0 elsewhere; s is the target's row of a map, one layer, no rollout.
2. dot = s·c; average precision = that of s as a ranking of the sources, with c as what is relevant.
3. Both are averaged over examples, by layer, method and paradigm, with a bootstrap interval.
4. Control: the same with other words of the sentence taken for the cue (seeded, never the cue itself).

Source: Mohebbi et al. 2023, section 5.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.corpus import Corpus
from tl_vzero.data.examples import ALL, Example, Skipped
from tl_vzero.errors import InputError
from tl_vzero.evaluate.results import COLUMNS, Published, Result, Row, Training, means_by_paradigm, published_of
from tl_vzero.evaluate.rows import Options, TargetRows, rows_from
from tl_vzero.evaluate.sentences import Protocol, TokenizedExample, WhichPieces, tokenize_examples
from tl_vzero.statistics import Array, Estimate, Interval

Measure = Literal["dot", "average_precision"]
LeftOut = Literal["special", "target"]
MEASURES: tuple[Measure, ...] = get_args(Measure)


@dataclass(frozen=True)
class Alignment(Row):
    """One measure of one method in one layer, over the examples of one paradigm (or "all").

    `shuffled` is the same with other words taken for the cue, over the examples that have any; None where none has.
    `chance` is what random rows give in the mean. `published` is the paper's figure; None where there is none.
    """

    method: str
    layer: int
    paradigm: str
    measure: Measure
    aligned: Estimate = field(metadata={COLUMNS: ""})
    shuffled: Estimate | None = field(metadata={COLUMNS: "shuffled_"})
    chance: float
    published: float | None


@dataclass(frozen=True)
class CueAlignment(Result):
    """Cue alignment by method, layer, paradigm and measure, in that order.

    `left_out` are methods that were not named and not computed, `skipped` examples that the protocol cannot hold,
    both with the reason. `settings` say of what model, and by what conventions.
    """

    cells: tuple[Alignment, ...]
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]


def cue_alignment(
    model: nn.Module,
    examples: Sequence[Example],
    methods: Sequence[str] | None = None,
    *,
    options: Options | None = None,
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
    `corpus_rows`), and options are those it was made with. The cue is the first token of each of its words (the
    paper), or with `which="all"` all tokens. `without` takes the special tokens or the target itself from the row,
    which is normalised again; nothing by default. `training` says which published figures belong to the model, where
    its name does not. `seed` draws the shuffled cues.

    Raises what `tokenize_examples`, `target_rows` and `corpus_rows` raise, and leaves the model as it was.
    Source: Mohebbi et al. 2023, section 5.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> table = cue_alignment(model, agreement_examples()[:20], ["value_zeroing", "random"]).to_frame()
    >>> means = table.query("paradigm == 'all' and measure == 'dot' and layer == 2").set_index("method")["mean"]
    >>> bool(means["value_zeroing"] > means["random"])
    True
    """
    _check_left_out(without)
    tokenized = tokenize_examples(model, examples, protocol=protocol)
    rows = rows_from(corpus)(model, tokenized, methods, options=options, progress=progress)
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
    _check_left_out(without)
    interval = interval or Interval()
    questions = [_question(sentence, which, without, (seed, index)) for index, sentence in enumerate(rows.examples)]
    figures = published_of(str(rows.settings["model"]), training)
    settings = {
        **rows.settings,
        "which": which,
        "without": list(without),
        "seed": seed,
        **interval.settings,
        "published": figures.name if figures else None,
    }
    return CueAlignment(tuple(_cells(rows, questions, figures, interval)), rows.left_out, rows.skipped, settings)


@dataclass(frozen=True)
class _Question:
    """The sources of an example's row that count, and where among them cue and shuffled cue are."""

    sources: tuple[int, ...]
    cue: tuple[int, ...]
    shuffled: tuple[int, ...] | None


def _check_left_out(without: Any) -> None:
    if isinstance(without, str) or any(part not in get_args(LeftOut) for part in without):
        raise InputError(f"without is {without!r}: expected a list of {', '.join(get_args(LeftOut))}, or ()")


def _question(
    sentence: TokenizedExample, which: WhichPieces, without: Sequence[LeftOut], seed: Sequence[int]
) -> _Question:
    leaves_special, target = "special" in without, sentence.target_position if "target" in without else None
    is_special = sentence.encoding.special
    sources = tuple(i for i in range(len(sentence)) if i != target and not (leaves_special and is_special[i]))
    cue = sentence.cue(which)
    shuffled = _shuffled(sentence, cue, seed)
    return _Question(sources, tuple(map(sources.index, cue)), shuffled and tuple(map(sources.index, shuffled)))


def _shuffled(sentence: TokenizedExample, cue: Sequence[int], seed: Sequence[int]) -> tuple[int, ...] | None:
    """As many other positions as the cue has, of words that are neither cue nor target; None if there are too few."""
    word_ids = sentence.encoding.word_ids
    cue_words = {None, *(word_ids[position] for position in cue)}
    target = sentence.target_position
    others = [position for position, word in enumerate(word_ids) if word not in cue_words and position != target]
    if len(others) < len(cue):
        return None
    return tuple(np.random.default_rng(seed).choice(others, len(cue), replace=False).tolist())


def _measured(rows: Sequence[Tensor], questions: Sequence[_Question]) -> Array:
    """`[example, shuffled, measure, layer]`: the two measures, with the cue and with shuffled ones (NaN if none)."""
    measured = []
    for row, question in zip(rows, questions, strict=True):
        scores = row[:, list(question.sources)].numpy()
        if len(question.sources) < row.shape[1]:
            total = scores.sum(axis=1, keepdims=True)
            scores = np.divide(scores, total, out=np.zeros_like(scores), where=total != 0)
        undefined = np.full((len(MEASURES), len(scores)), np.nan)
        for cue in (question.cue, question.shuffled):
            both = undefined if cue is None else [scores[:, list(cue)].sum(axis=1), average_precision(scores, cue)]
            measured.append(both)
    return np.array(measured).reshape(len(rows), 2, len(MEASURES), -1)


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
    rows: TargetRows, questions: Sequence[_Question], figures: Published | None, interval: Interval
) -> Iterator[Alignment]:
    expected = (expected_dot, expected_average_precision)
    chance = np.array([[chance_of(len(one.cue), len(one.sources)) for chance_of in expected] for one in questions])
    # [example, method, shuffled, measure, layer]: all columns of a paradigm share their draws.
    measured = np.stack([_measured(of_method, questions) for of_method in rows.rows.values()], axis=1)
    means = means_by_paradigm(measured, rows.examples, interval)
    for (method_index, method), (layer_index, layer), (paradigm, (indices, mean)), (measure_index, measure) in product(
        enumerate(rows.rows), enumerate(rows.layers), means.items(), enumerate(MEASURES)
    ):
        of_method = figures.dot.get(method, ()) if figures and measure == "dot" and paradigm == ALL else ()
        beside = of_method[layer] if layer < len(of_method) else None
        aligned, shuffled = mean[method_index, :, measure_index, layer_index]
        expected_mean = float(chance[indices, measure_index].mean())
        yield Alignment(method, layer, paradigm, measure, aligned, shuffled, expected_mean, beside)


def expected_dot(n_cues: int, n_sources: int) -> float:
    """The mean of s·c over random rows s that sum to one: each source has the same share.

    >>> expected_dot(1, 8)
    0.125
    """
    return n_cues / n_sources


def expected_average_precision(n_cues: int, n_sources: int) -> float:
    """The mean average precision over random orders of the sources.

    A cue stands at each rank r with the same probability, and of the r - 1 sources before it (cues - 1) / (sources - 1)
    are cues in the mean.

    >>> expected_average_precision(1, 2), expected_average_precision(3, 3)
    (0.75, 1.0)
    """
    others = (n_cues - 1) / (n_sources - 1) if n_sources > 1 else 0.0
    return sum((1 + (rank - 1) * others) / rank for rank in range(1, n_sources + 1)) / n_sources
