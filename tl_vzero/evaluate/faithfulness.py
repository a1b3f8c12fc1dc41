"""Faithfulness: does a method's row of the target rank the tokens as the prediction depends on them?

Blank-out:
1. Blank one token, run the model, and take the change of p(right form) at the target; so for every token.
2. Spearman correlation, example by example, of these changes with the method's row of the target (rolled out, last
   layer, by default); its mean over examples, with a bootstrap interval. An example in which one side is constant, or
   with fewer than three tokens, has no correlation, and is counted.

Erasure curves: blank the k % of the tokens that rank highest (comprehensiveness: the drop should be large), or all the
others (sufficiency: it should be small); the mean over k is the AOPC.

Source: Abnar & Zuidema 2020 (blank-out); DeYoung et al. 2020, "ERASER", section 4.2 (the curves).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from tl_vzero.choices import integer
from tl_vzero.corpus import Corpus
from tl_vzero.data.examples import ALL, Example, Skipped
from tl_vzero.errors import DependencyError, InputError, ModelError
from tl_vzero.evaluate.blanking import (
    FRACTIONS,
    KINDS,
    Conventions,
    Curve,
    blanks_of,
    check_fractions,
    curves_of,
    probabilities,
    replacing_token,
)
from tl_vzero.evaluate.corpus_rows import corpus_rows
from tl_vzero.evaluate.published import Published, Training, published_of
from tl_vzero.evaluate.results import COLUMNS, Result, Row, frame_of, means_by_paradigm
from tl_vzero.evaluate.rows import TargetRows, check_wrong_forms, target_rows
from tl_vzero.evaluate.sentences import Protocol, TokenizedExample, TokenizedSet, tokenize_examples
from tl_vzero.models.contracts import check_contracts
from tl_vzero.registry import METHODS
from tl_vzero.statistics import Array, Estimate, Interval, rank_correlation
from tl_vzero.targets import check_predicts_words

if TYPE_CHECKING:
    import pandas as pd

Options = Mapping[str, Mapping[str, Any]]

FEWEST_TOKENS = 3  # two points always lie on a line


@dataclass(frozen=True)
class BlankOut(Row):
    """The mean rank correlation of one method's rows with the changes that blanking makes.

    `rho` is None where no example has one, and `undefined` counts the examples without. `rho_otherwise` is over the
    other of vocabulary and forms than the conventions say. `layer` is the row's, and `rolled_out` says whether it goes
    through all layers below; where a method has no rollout, it does not.
    """

    method: str
    paradigm: str
    layer: int
    rolled_out: bool
    rho: Estimate | None = field(metadata={COLUMNS: ""})
    undefined: int
    published: float | None
    rho_otherwise: Estimate | None = field(default=None, metadata={COLUMNS: "otherwise_"})


@dataclass(frozen=True)
class Faithfulness(Result):
    """Blank-out correlations and erasure curves, by method and paradigm (or "all").

    `left_out` are methods that were not named and not computed, `skipped` examples that the protocol cannot hold.
    `settings` have the model and every convention. `p_clean` is the mean p(right form) of whole sentences.
    """

    correlations: tuple[BlankOut, ...]
    curves: tuple[Curve, ...]
    p_clean: float
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]

    def curves_frame(self) -> "pd.DataFrame":
        """A pandas table of the erasure curves: one row per method, paradigm, kind and fraction (or the AOPC)."""
        return frame_of(self.curves)


def faithfulness(
    model: nn.Module,
    examples: Sequence[Example],
    methods: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    corpus: Corpus | None = None,
    conventions: Conventions | None = None,
    layer: int = -1,
    rolled_out: bool = True,
    fractions: Sequence[float] = FRACTIONS,
    protocol: Protocol = "masked",
    training: Training | None = None,
    interval: Interval | None = None,
    progress: bool = False,
) -> Faithfulness:
    """How well each method's row of the target ranks the tokens by what blanking them does to p(right form).

    `methods` and `options` are as in `target_rows`; of a `corpus` of these sentences rows are read, not computed (see
    `corpus_rows`), while what blanking does is always measured on the model. `conventions` say how a token is blanked
    and what is measured. Rows are rolled out to `layer`, the last by default, or that layer's own with
    `rolled_out=False`. Gradient methods, which have no rollout, are read at the first block's output, the nearest to
    the tokens, or at `layer` with `rolled_out=False`. `fractions` of the tokens are blanked for the erasure curves; ()
    for none.

    Raises HeadlessModelError for a model whose head was never trained, InputError where a convention asks for a token
    or a form that is not there, what `tokenize_examples`, `target_rows` and `corpus_rows` raise, and leaves the model
    as it was.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> result = faithfulness(model, agreement_examples()[:10], ["value_zeroing"], fractions=[0.2])
    >>> result.correlations[-1].paradigm, result.correlations[-1].rho.n
    ('all', 10)
    """
    interval = interval or Interval()
    check_contracts(model)
    conventions = (conventions or Conventions()).of(model)
    check_predicts_words(model)
    check_fractions(fractions)
    tokenized = tokenize_examples(model, examples, protocol=protocol)
    replacing_token(model, conventions.replacement)
    if conventions.over == "forms":
        check_wrong_forms(tokenized.examples, 'over="forms"')
    ranked = ranked_rows(model, tokenized, methods, options, corpus, layer, rolled_out, progress)
    return _of_rows(model, tokenized, ranked, conventions, layer, rolled_out, fractions, training, interval, progress)


def faithfulness_by_baseline(
    model: nn.Module,
    examples: Sequence[Example],
    baselines: Mapping[str, Any],
    *,
    interval: Interval,
    progress: bool = False,
) -> Faithfulness:
    """Blank-out correlations of Value Zeroing, rolled out, under several baselines: methods "value_zeroing, NAME".

    `baselines` are what `value_zeroing` takes, by name. Raises what `faithfulness` raises.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model, examples = tl_vzero.load_model("agreement-mini"), agreement_examples()[:3]
    >>> result = faithfulness_by_baseline(model, examples, {"mean": "mean"}, interval=Interval())
    >>> result.correlations[-1].method
    'value_zeroing, mean'
    """
    check_contracts(model)
    check_predicts_words(model)
    conventions = Conventions().of(model)
    tokenized = tokenize_examples(model, examples)
    rows, places = {}, {}
    for name, baseline in baselines.items():
        options = {"value_zeroing": {"baseline": baseline}}
        ranked = ranked_rows(model, tokenized, ["value_zeroing"], options, None, -1, True, progress)
        rows[f"value_zeroing, {name}"] = ranked.rows["value_zeroing"]
        places[f"value_zeroing, {name}"] = ranked.places["value_zeroing"]
    ranked = replace(ranked, rows=rows, places=places)
    return _of_rows(model, tokenized, ranked, conventions, -1, True, (), None, interval, progress)


def _of_rows(
    model: nn.Module,
    tokenized: TokenizedSet,
    ranked: "RankedRows",
    conventions: Conventions,
    layer: int,
    rolled_out: bool,
    fractions: Sequence[float],
    training: Training | None,
    interval: Interval,
    progress: bool,
) -> Faithfulness:
    """What blanking does, beside rows that are there."""
    clean, drops, erased = _measured(model, ranked, conventions, fractions, progress)
    drops = [np.abs(drop) for drop in drops] if conventions.change == "absolute" else drops
    figures = published_of(str(ranked.settings["model"]), training)
    return Faithfulness(
        correlations=tuple(_correlations(ranked, conventions, drops, figures, interval)),
        curves=curves_of(tokenized.examples, erased, fractions, interval),
        p_clean=float(clean.mean()),
        left_out=ranked.left_out,
        skipped=tokenized.skipped,
        settings={
            **ranked.settings,
            "conventions": asdict(conventions),
            "layer": layer,
            "rolled_out": rolled_out,
            "fractions": list(fractions),
            "confidence": interval.confidence,
            "resamples": interval.resamples,
            "published": None if figures is None else f"{figures.model}, {figures.training}",
        },
    )


# The one row of each method that is ranked against the prediction: rolled out, or of one layer.


@dataclass(frozen=True, eq=False)
class RankedRows:
    """The row `[src]` of each method and example, and where each method's was read: (layer, rolled out)."""

    examples: tuple[TokenizedExample, ...]
    rows: Mapping[str, tuple[Array, ...]]
    places: Mapping[str, tuple[int, bool]]
    left_out: Mapping[str, str]
    settings: Mapping[str, Any]


def ranked_rows(
    model: nn.Module,
    tokenized: TokenizedSet,
    methods: Sequence[str] | None,
    options: Options | None,
    corpus: Corpus | None,
    layer: int,
    rolled_out: bool,
    progress: bool,
) -> RankedRows:
    """The target's row of each method at a layer, rolled out to it or by itself, or at the first block."""
    n_layers = check_contracts(model).n_layers
    layer = integer("layer", layer, f"a number from 0 to {n_layers - 1}, or -1")
    if not -n_layers <= layer < n_layers:
        raise InputError(f"layer is {layer}: expected 0 to {n_layers - 1}, or -{n_layers} to -1 from the end")
    layer %= n_layers
    source: Callable[..., TargetRows] = target_rows if corpus is None else partial(corpus_rows, corpus)
    compute = partial(source, model, tokenized, progress=progress)
    options = options or {}
    unrolled = _without_rollout(methods, options) if rolled_out and corpus is None else []
    others = methods if methods is None else [name for name in methods if name not in unrolled]
    parts: list[tuple[TargetRows, int, bool]] = []  # the index of the layer that is read, and whether it is rolled out
    left_out: dict[str, str] = {}
    if others is None or others or not unrolled:
        of_others = {name: values for name, values in options.items() if name not in unrolled}
        rows = compute(others, options=of_others, layers=None if rolled_out else [layer], rolled_out=rolled_out)
        left_out |= rows.left_out
        parts.append((rows, layer if rolled_out else 0, rolled_out))
    for name in unrolled:
        try:
            of_one = {name: options[name]} if name in options else None
            parts.append((compute([name], options=of_one, layers=[0]), 0, False))
        except (ModelError, DependencyError) as error:
            if methods is not None:
                raise
            left_out[name] = str(error)
    part_of = {name: part for part in parts for name in part[0].rows}
    read: dict[str, tuple[Array, ...]] = {}
    for name in methods or (METHODS if corpus is None else part_of):
        if name in part_of:
            rows, index, _ = part_of[name]
            read[name] = tuple(row[index].numpy() for row in rows.rows[name])
    places = {name: (rows.layers[index], rolled) for name, (rows, index, rolled) in part_of.items()}
    left_out = {name: reason for name, reason in left_out.items() if name not in part_of}
    of_all = {name: values for rows, *_ in parts for name, values in rows.settings["options"].items()}
    return RankedRows(tokenized.examples, read, places, left_out, {**parts[0][0].settings, "options": of_all})


def _without_rollout(methods: Sequence[str] | None, options: Options) -> list[str]:
    """The methods that give the target's row only; by default without the slow ones."""
    wanted = [name for name in METHODS if name in options or not METHODS[name].unasked] if methods is None else methods
    return [name for name in wanted if name in METHODS and "target" in METHODS[name].needs]


def _measured(
    model: nn.Module, ranked: RankedRows, conventions: Conventions, fractions: Sequence[float], progress: bool
) -> tuple[Array, list[Array], dict[str, Array]]:
    """p(right form) of whole examples; what each blanked token takes from it; and what each ranking's sets take.

    The second is `[over, token]` by example, the last `[example, kind, fraction]` by method, NaN without a ranking.
    Equal sentences of methods are run once.
    """
    positions = [conventions.positions(sentence) for sentence in ranked.examples]
    wanted = []
    for index, sentence in enumerate(ranked.examples):
        blanks = [frozenset(), *(frozenset([position]) for position in positions[index])]
        for rows in ranked.rows.values():
            blanks += blanks_of(rows[index], positions[index], fractions)
        wanted.append((sentence, blanks))
    total = sum(len({*blanks}) for _, blanks in wanted)
    with tqdm(total=total, disable=not progress, desc="blank-out", unit="sentence", leave=False) as bar:
        p_good = [values.numpy() for values in probabilities(model, wanted, conventions, bar.update)]
    drops_by_token = [p[:, :1] - p[:, 1 : 1 + len(singly)] for p, singly in zip(p_good, positions, strict=True)]
    clean = np.array([p[0, 0] for p in p_good])
    shape = (len(ranked.rows), len(KINDS), len(fractions))
    # [example, method, kind, fraction]
    erased = np.stack([p[0, 1 + len(singly) :].reshape(shape) for p, singly in zip(p_good, positions, strict=True)])
    drops = clean[:, None, None, None] - erased
    for index, rows in enumerate(ranked.rows.values()):
        # Nothing to rank, or scores that are all 0.
        drops[[not row[list(singly)].any() for row, singly in zip(rows, positions, strict=True)], index] = nan
    return clean, drops_by_token, {method: drops[:, index] for index, method in enumerate(ranked.rows)}


def _correlations(
    ranked: RankedRows, conventions: Conventions, drops: Sequence[Array], figures: Published | None, interval: Interval
) -> Iterator[BlankOut]:
    # [example, method, over]
    rho = np.full((len(drops), len(ranked.rows), 2), nan)
    for index, sentence in enumerate(ranked.examples):
        positions = list(conventions.positions(sentence))
        if len(positions) >= FEWEST_TOKENS:
            for column, rows in enumerate(ranked.rows.values()):
                rho[index, column] = [rank_correlation(rows[index][positions], drop) for drop in drops[index]]
    means = means_by_paradigm(rho, ranked.examples, interval)
    for index, method in enumerate(ranked.rows):
        for paradigm, (indices, mean) in means.items():
            measured, otherwise = mean[index]
            undefined = len(indices) - (measured.n if measured else 0)
            beside = figures.faithfulness.get(method) if figures and paradigm == ALL else None
            yield BlankOut(method, paradigm, *ranked.places[method], measured, undefined, beside, otherwise)
