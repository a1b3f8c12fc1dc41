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

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import nan
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from tl_vzero.api import METHODS
from tl_vzero.corpus import Corpus
from tl_vzero.data.examples import ALL, Example, Skipped
from tl_vzero.effects.agreement import rank_correlation
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ModelError
from tl_vzero.evaluate.blanking import (
    FRACTIONS,
    KINDS,
    Blank,
    Conventions,
    Curve,
    blanks_of,
    check_fractions,
    curves_of,
    probabilities,
    replacing_token,
)
from tl_vzero.evaluate.corpus_rows import corpus_rows
from tl_vzero.evaluate.published import Training, published_of
from tl_vzero.evaluate.rows import SLOW, TargetRows, check_wrong_forms, target_rows
from tl_vzero.evaluate.statistics import Array, Estimate, Interval, columns_of, estimates, paradigms_of, plain_skip
from tl_vzero.evaluate.tokenized import Protocol, TokenizedExample, TokenizedSet, tokenize_examples
from tl_vzero.models.contracts import check_contracts
from tl_vzero.targets import check_trained_head

if TYPE_CHECKING:
    import pandas as pd


# The one row of each method that is ranked against the prediction: rolled out, or of one layer.

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
    layout: TokenizedSet,
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
    layout: TokenizedSet,
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
    wanted = [name for name in METHODS if name in options or name not in SLOW] if methods is None else methods
    return [name for name in wanted if name in METHODS and "target" in METHODS[name].needs]


def _layer_number(layer: Any, n_layers: int) -> int:
    if isinstance(layer, bool) or not isinstance(layer, int):
        raise InputTypeError(f"layer is {type(layer).__name__}: expected a number from 0 to {n_layers - 1}, or -1")
    if not -n_layers <= layer < n_layers:
        raise InputError(f"layer is {layer}: expected 0 to {n_layers - 1}, or -{n_layers} to -1 from the end")
    return layer % n_layers


FEWEST_TOKENS = 3  # two points always lie on a line


@dataclass(frozen=True)
class BlankOut:
    """The mean rank correlation of one method's rows with the changes that blanking makes.

    `rho` is None where no example has one, and `undefined` counts the examples without. `layer` is the row's, and
    `rolled_out` says whether it goes through all layers below; where a method has no rollout, it does not.
    """

    method: str
    paradigm: str
    layer: int
    rolled_out: bool
    rho: Estimate | None
    undefined: int
    published: float | None


@dataclass(frozen=True)
class Faithfulness:
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

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table of the correlations: mean, low, high, n, and the count of examples without one."""
        import pandas as pd

        return pd.DataFrame([_record(each) for each in self.correlations])

    def curves_frame(self) -> "pd.DataFrame":
        """A pandas table of the erasure curves, a row for each method, paradigm, kind and fraction (or the AOPC)."""
        import pandas as pd

        return pd.DataFrame([record for curve in self.curves for record in curve.records()])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; numbers that do not exist are None."""
        return {
            "correlations": [_record(each) for each in self.correlations],
            "curves": [record for curve in self.curves for record in curve.records()],
            "p_clean": self.p_clean,
            "left_out": dict(self.left_out),
            "skipped": [plain_skip(each) for each in self.skipped],
            "settings": dict(self.settings),
        }


def _record(each: BlankOut) -> dict[str, Any]:
    return {
        "method": each.method,
        "paradigm": each.paradigm,
        "layer": each.layer,
        "rolled_out": each.rolled_out,
        **columns_of(each.rho),
        "undefined": each.undefined,
        "published": each.published,
    }


def faithfulness(
    model: nn.Module,
    examples: Sequence[Example],
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
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
    >>> found = faithfulness(model, agreement_examples()[:10], ["value_zeroing"], fractions=[0.2])
    >>> found.correlations[-1].paradigm, found.correlations[-1].rho.n
    ('all', 10)
    """
    conventions = conventions or Conventions()
    interval = interval or Interval()
    check_contracts(model)
    check_trained_head(model)
    check_fractions(fractions)
    layout = tokenize_examples(model, examples, protocol=protocol)
    replacing_token(model, conventions.replacement)
    if conventions.over == "forms":
        check_wrong_forms(layout.examples, 'over="forms"')
    read = ranked_rows(
        model,
        layout,
        methods,
        options=options,
        corpus=corpus,
        layer=layer,
        rolled_out=rolled_out,
        progress=progress,
    )
    positions = [conventions.positions(each) for each in layout.examples]
    measured = _measured(model, layout.examples, positions, read.rows, conventions, fractions, progress)
    known = published_of(str(read.settings["model"]), training)
    figures = {} if known is None else known.faithfulness
    return Faithfulness(
        correlations=_correlations(layout.examples, positions, read, measured, conventions, figures, interval),
        curves=curves_of(
            layout.examples, measured.clean, measured.erased, _ranked(read, positions), fractions, interval
        ),
        p_clean=float(measured.clean.mean()),
        left_out=read.left_out,
        skipped=layout.skipped,
        settings={
            **read.settings,
            "conventions": conventions.to_dict(),
            "layer": layer,
            "rolled_out": rolled_out,
            "fractions": list(fractions),
            "confidence": interval.confidence,
            "resamples": interval.resamples,
            "published": None if known is None else f"{known.model}, {known.training}",
        },
    )


@dataclass(frozen=True, eq=False)
class _Measured:
    """p(right form) of each example: of the whole sentence, with each token blanked, and with each ranking's sets."""

    clean: Array
    blanked: Sequence[Array]
    erased: Mapping[str, Sequence[Array]]


def _measured(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    positions: Sequence[Sequence[int]],
    rows: Mapping[str, Sequence[Array]],
    conventions: Conventions,
    fractions: Sequence[float],
    progress: bool,
) -> _Measured:
    """Everything that is to be run, together, so that equal sentences of several methods are run once."""
    wanted: list[tuple[TokenizedExample, list[Blank]]] = []
    for number, each in enumerate(examples):
        singles = [frozenset([position]) for position in positions[number]]
        sets = [blanks for own in rows.values() for blanks in blanks_of(own[number], positions[number], fractions)]
        wanted.append((each, [frozenset(), *singles, *sets]))
    total = sum(len({*blanks}) for _, blanks in wanted)
    with tqdm(total=total, disable=not progress, desc="blank-out", unit="sentence", leave=False) as bar:
        found = [each.numpy() for each in probabilities(model, wanted, conventions, bar.update)]
    erased: dict[str, list[Array]] = {method: [] for method in rows}
    for singly, own in zip(positions, found, strict=True):
        by_method = own[1 + len(singly) :].reshape(len(rows), len(KINDS), len(fractions))
        for method, values in zip(rows, by_method, strict=True):
            erased[method].append(values)
    blanked = [own[1 : 1 + len(singly)] for singly, own in zip(positions, found, strict=True)]
    return _Measured(np.array([own[0] for own in found]), blanked, erased)


def _ranked(read: RankedRows, positions: Sequence[Sequence[int]]) -> dict[str, list[bool]]:
    """Which examples have a ranking by a method: something to rank, and scores that are not all nothing."""
    return {
        method: [bool(row[list(own)].any()) for row, own in zip(rows, positions, strict=True)]
        for method, rows in read.rows.items()
    }


def _correlations(
    examples: Sequence[TokenizedExample],
    positions: Sequence[Sequence[int]],
    read: RankedRows,
    measured: _Measured,
    conventions: Conventions,
    known: Mapping[str, float],
    interval: Interval,
) -> tuple[BlankOut, ...]:
    rho = {
        method: np.array(
            [
                _rank_correlation(row[list(own)], clean - blanked, conventions)
                for row, own, clean, blanked in zip(rows, positions, measured.clean, measured.blanked, strict=True)
            ]
        )
        for method, rows in read.rows.items()
    }
    found: list[BlankOut] = []
    paradigms = paradigms_of(examples)
    means = {
        paradigm: estimates(np.stack([own[numbers] for own in rho.values()], axis=1), interval)
        for paradigm, numbers in paradigms.items()
    }
    for index, (method, own) in enumerate(rho.items()):
        layer, rolled_out = read.places[method]
        for paradigm, numbers in paradigms.items():
            undefined = int(np.isnan(own[numbers]).sum())
            beside = known.get(method) if paradigm == ALL else None
            found.append(BlankOut(method, paradigm, layer, rolled_out, means[paradigm][index], undefined, beside))
    return tuple(found)


def _rank_correlation(row: Array, drop: Array, conventions: Conventions) -> float:
    if len(row) < FEWEST_TOKENS:
        return nan
    return float(rank_correlation(row, np.abs(drop) if conventions.change == "absolute" else drop))
