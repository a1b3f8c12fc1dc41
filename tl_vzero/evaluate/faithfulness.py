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
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from math import ceil, nan
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import integer, one_of
from tl_vzero.clean import device_of
from tl_vzero.corpus import Corpus
from tl_vzero.data.examples import ALL, Example, Skipped
from tl_vzero.distance import wide_dtype
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ModelError
from tl_vzero.evaluate.results import (
    COLUMNS,
    Published,
    Result,
    Row,
    Training,
    frame_of,
    means_by_paradigm,
    published_of,
)
from tl_vzero.evaluate.rows import Options, TargetRows, check_wrong_forms, rows_from
from tl_vzero.evaluate.sentences import Protocol, TokenizedExample, TokenizedSet, tokenize_examples
from tl_vzero.inputs.text import same_length_batches
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.facts import facts_of, trained_on_two_forms, vocabulary_size
from tl_vzero.models.run import LOGITS_PER_BATCH, TargetLogits, quiet
from tl_vzero.registry import METHODS
from tl_vzero.statistics import Array, Estimate, Interval, columns_of, rank_correlation
from tl_vzero.targets import check_predicts_words

if TYPE_CHECKING:
    import pandas as pd

# What blanking tokens does to the prediction at the target.
# 1. Each wanted sentence is a copy of an example with some of its tokens replaced, or removed.
# 2. Copies of all examples that have one length share a run, and equal copies are run once.
# 3. Logits are computed at the target only, where the model allows it.

Replacement = Literal["mask", "unk", "pad", "removed"]
Change = Literal["signed", "absolute"]
Over = Literal["vocabulary", "forms"]

TOKENS_PER_BATCH = 4096  # a choice: bounds the memory of a run, whatever the lengths of its sentences

Blank = frozenset[int]


@dataclass(frozen=True)
class Conventions:
    """How a token is blanked and what is measured; public programs differ, so a result records it.

    - `replacement`: by the mask, unknown or padding token (which is still attended to), or the token is removed
    - `change`: the drop of p(right form) with its sign, or its size
    - `over`: p over the vocabulary, or over the two forms {right, wrong}; None: over the forms for a head that was
      trained on two forms, whose p over a vocabulary means nothing, else over the vocabulary
    - `special_tokens`: whether special tokens are blanked and ranked too

    The target's own position is never blanked. Raises InputError for an unknown choice.
    """

    replacement: Replacement = "mask"
    change: Change = "signed"
    over: Over | None = None
    special_tokens: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("replacement", Replacement), ("change", Change), ("over", Over)):
            if (name, getattr(self, name)) != ("over", None):
                one_of(name, getattr(self, name), get_args(choices))

    def of(self, model: nn.Module) -> "Conventions":
        """The conventions with `over` settled for a model."""
        usual: Over = "forms" if trained_on_two_forms(model) else "vocabulary"
        return replace(self, over=self.over or usual)

    def positions(self, sentence: TokenizedExample) -> tuple[int, ...]:
        """The positions of an example that are blanked."""
        special, target = sentence.encoding.special, sentence.target_position
        return tuple(i for i in range(len(special)) if i != target and (self.special_tokens or not special[i]))


@dataclass(frozen=True)
class _Copy:
    """One sentence to run: its ids, the position that is read, and the forms that are asked for there."""

    ids: tuple[int, ...]
    read: int
    good: int
    bad: int | None


def probabilities(
    model: nn.Module,
    blanked: Sequence[tuple[TokenizedExample, Sequence[Blank]]],
    conventions: Conventions,
    advance: Any = lambda copies: None,
) -> list[Float[Tensor, "over _"]]:
    """p(right form) at the target in float64: for each example one value per set of blanked positions.

    The first row is over what the conventions say, the second over the other of vocabulary and forms: of an example
    without a wrong form NaN over the forms.
    """
    token_id, over = replacing_token(model, conventions.replacement), conventions.of(model).over
    copies = [[_copy(sentence, blank, token_id) for blank in blanks] for sentence, blanks in blanked]
    p_good: dict[_Copy, tuple[float, float]] = {}
    with quiet(model):
        logits = TargetLogits(model)

        def size_of(alike: Sequence[_Copy]) -> int:
            sample = torch.tensor([alike[0].ids], device=device_of(model))
            unembedded = logits.positions_unembedded(sample) * vocabulary_size(model)
            return min(TOKENS_PER_BATCH // sample.shape[1], LOGITS_PER_BATCH // unembedded)

        different = dict.fromkeys(copy for of_example in copies for copy in of_example)
        for batch in same_length_batches(different, lambda copy: len(copy.ids), size_of):
            ids = torch.tensor([copy.ids for copy in batch], device=device_of(model))
            read = torch.tensor([copy.read for copy in batch], device=ids.device)
            good, bad = ([getattr(copy, form) for copy in batch] for form in ("good", "bad"))
            at_target = logits.at(ids, read).to(wide_dtype(ids.device))
            forms = [right if wrong is None else wrong for right, wrong in zip(good, bad, strict=True)]
            over_forms = [
                nan if wrong is None else p for p, wrong in zip(p_right(at_target, good, forms), bad, strict=True)
            ]
            p_good |= zip(batch, zip(p_right(at_target, good, None), over_forms, strict=True), strict=True)
            advance(len(batch))
    both = [torch.tensor([p_good[copy] for copy in of_example], dtype=torch.float64).T for of_example in copies]
    return [of_example.flip(0) for of_example in both] if over == "forms" else both


def replacing_token(model: nn.Module, replacement: Replacement) -> int | None:
    """The id of the token that stands for a blank; None where blanks are removed."""
    if replacement == "removed":
        return None
    tokenizer = facts_of(model).tokenizer
    token_id = getattr(tokenizer, f"{replacement}_token_id")
    if token_id is None:
        held = [name for name in ("mask", "unk", "pad") if getattr(tokenizer, f"{name}_token_id") is not None]
        expected = f"one of {', '.join(held)}, removed" if held else "removed"
        raise InputError(f"replacement {replacement!r}: this tokenizer has no such token; expected {expected}")
    return int(token_id)


def _copy(sentence: TokenizedExample, blank: Blank, token_id: int | None) -> _Copy:
    encoding, read = sentence.encoding, sentence.dest
    ids = encoding.ids.tolist()
    if token_id is not None:
        ids = [token_id if position in blank else original for position, original in enumerate(ids)]
    else:
        remaining = sorted({*range(len(ids))} - blank)
        ids = [ids[position] for position in remaining]
        # Of a causal input the target is the next token: what is read is the last position that is left.
        read = remaining.index(read) if read in remaining else len(remaining) - 1
    return _Copy(tuple(ids), read, encoding.good_id, encoding.bad_id)


def p_right(logits: Float[Tensor, "copy vocabulary"], good: Sequence[int], bad: Sequence[int] | None) -> list[float]:
    """p(right form) of each copy, over the vocabulary, or over the two forms where `bad` is given."""
    copies = range(len(good))
    right = logits[copies, good]
    p_good = (right - logits.logsumexp(dim=-1)).exp() if bad is None else (right - logits[copies, bad]).sigmoid()
    if p_good.isnan().any():
        raise ModelError("a probability is NaN: check the weights, and the model's dtype (float16 overflows easily)")
    return [*p_good.tolist()]


# Erasure curves: the prediction without the tokens that rank highest, and with these alone.

Kind = Literal["comprehensiveness", "sufficiency"]
KINDS: tuple[Kind, ...] = get_args(Kind)
FRACTIONS = (0.1, 0.2, 0.3, 0.4, 0.5)  # a choice: ERASER's own go down to 1 %, less than a token of our sentences


@dataclass(frozen=True)
class Curve(Row):
    """The mean drop of p(right form) by the fraction of tokens, of one method over one paradigm (or "all").

    Comprehensiveness blanks the tokens that rank highest, sufficiency all the others. `aopc` is the mean over the
    fractions. Examples without a ranking (an empty row, no token to blank) are left out and counted in `undefined`;
    estimates are None where no example is left.
    """

    method: str
    paradigm: str
    kind: Kind
    fractions: tuple[float, ...]
    drops: tuple[Estimate | None, ...]
    aopc: Estimate | None
    undefined: int

    def records(self) -> Iterator[dict[str, Any]]:
        """One row per fraction, and one of the AOPC, whose fraction is None."""
        curve = {"method": self.method, "paradigm": self.paradigm, "kind": self.kind}
        for fraction, drop in zip((*self.fractions, None), (*self.drops, self.aopc), strict=True):
            yield {**curve, "fraction": fraction, **columns_of(drop), "undefined": self.undefined}


def check_fractions(fractions: Any, name: str = "fractions") -> None:
    """Raise InputError or InputTypeError for what are no shares of the tokens, from above 0 to 1."""
    if isinstance(fractions, str) or not isinstance(fractions, Sequence):
        raise InputTypeError(f"{name} is {type(fractions).__name__}: expected a list such as [0.1, 0.5], or ()")
    for fraction in fractions:
        expected = f"{name} hold {fraction!r}: expected numbers above 0, up to 1, such as 0.1 for 10 %"
        if isinstance(fraction, bool) or not isinstance(fraction, int | float):
            raise InputTypeError(expected)
        if not 0 < fraction <= 1:
            raise InputError(expected)


def blanks_of(row: Array, positions: Sequence[int], fractions: Sequence[float]) -> list[Blank]:
    """The sets of positions to blank: those that rank highest for each fraction, then all but these.

    A fraction is rounded up to whole tokens; of equal scores the first in the sentence comes first.
    """
    ranked = sorted(positions, key=lambda position: -row[position])
    # Rounded first: 0.3 * 10 is a little more than 3, and would be 4 tokens.
    tops = [frozenset(ranked[: ceil(round(fraction * len(ranked), 9))]) for fraction in fractions]
    return [*tops, *(frozenset(positions) - top for top in tops)]


def curves_of(
    examples: Sequence[TokenizedExample], drops: Mapping[str, Array], fractions: Sequence[float], interval: Interval
) -> tuple[Curve, ...]:
    """The curves of each method's drops of p(right form), `[example, kind, fraction]`; NaN without a ranking."""
    curves: list[Curve] = []
    for method, of_method in drops.items() if fractions else ():
        # The AOPC stands behind the fractions.
        drop = np.concatenate([of_method, of_method.mean(axis=2, keepdims=True)], axis=2)
        for paradigm, (indices, mean) in means_by_paradigm(drop, examples, interval).items():
            for kind, (*of_fractions, aopc) in zip(KINDS, mean, strict=True):
                undefined = len(indices) - (aopc.n if aopc else 0)
                curves.append(Curve(method, paradigm, kind, tuple(fractions), tuple(of_fractions), aopc, undefined))
    return tuple(curves)


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
    check_contracts(model)
    conventions = (conventions or Conventions()).of(model)
    check_predicts_words(model)
    check_fractions(fractions)
    tokenized = tokenize_examples(model, examples, protocol=protocol)
    replacing_token(model, conventions.replacement)
    if conventions.over == "forms":
        check_wrong_forms(tokenized.examples, 'over="forms"')
    ranked = Ranking(methods, options, corpus, layer, rolled_out).rows(model, tokenized, progress)
    return _Blanking(conventions, fractions, interval or Interval(), progress, training).beside(ranked)


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
    tokenized = tokenize_examples(model, examples)
    rows, places = {}, {}
    for name, baseline in baselines.items():
        ranking = Ranking(["value_zeroing"], {"value_zeroing": {"baseline": baseline}})
        ranked = ranking.rows(model, tokenized, progress)
        rows[f"value_zeroing, {name}"] = ranked.rows["value_zeroing"]
        places[f"value_zeroing, {name}"] = ranked.places["value_zeroing"]
    ranked = replace(ranked, rows=rows, places=places)
    return _Blanking(Conventions().of(model), (), interval, progress).beside(ranked)


# The one row of each method that is ranked against the prediction: rolled out, or of one layer.


@dataclass(frozen=True, eq=False)
class RankedRows:
    """The row `[src]` of each method and example, and where each method's was read: (layer, rolled out)."""

    model: nn.Module
    tokenized: TokenizedSet
    ranking: "Ranking"
    rows: Mapping[str, tuple[Array, ...]]
    places: Mapping[str, tuple[int, bool]]
    left_out: Mapping[str, str]
    settings: Mapping[str, Any]

    @property
    def examples(self) -> tuple[TokenizedExample, ...]:
        return self.tokenized.examples


@dataclass(frozen=True)
class Ranking:
    """Which rows rank the tokens: of which methods and layer, rolled out to it or its own, computed or of a corpus."""

    methods: Sequence[str] | None = None
    options: Options | None = None
    corpus: Corpus | None = None
    layer: int = -1
    rolled_out: bool = True

    def rows(self, model: nn.Module, tokenized: TokenizedSet, progress: bool) -> RankedRows:
        """The target's row of each method; of a method without a rollout, its row at the first block."""
        layer, methods, options = self._layer(check_contracts(model).n_layers), self.methods, self.options or {}
        compute = partial(rows_from(self.corpus), model, tokenized, progress=progress)
        unrolled = self._without_rollout()
        others = methods if methods is None else [name for name in methods if name not in unrolled]
        parts: list[tuple[TargetRows, int, bool]] = []  # the index of the layer that is read, and whether rolled out
        left_out: dict[str, str] = {}
        if others is None or others or not unrolled:
            of_others = {name: values for name, values in options.items() if name not in unrolled}
            layers = None if self.rolled_out else [layer]
            rows = compute(others, options=of_others, layers=layers, rolled_out=self.rolled_out)
            left_out |= rows.left_out
            parts.append((rows, layer if self.rolled_out else 0, self.rolled_out))
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
        for name in methods or (METHODS if self.corpus is None else part_of):
            if name in part_of:
                rows, index, _ = part_of[name]
                read[name] = tuple(row[index].numpy() for row in rows.rows[name])
        places = {name: (rows.layers[index], rolled) for name, (rows, index, rolled) in part_of.items()}
        left_out = {name: reason for name, reason in left_out.items() if name not in part_of}
        of_all = {name: values for rows, *_ in parts for name, values in rows.settings["options"].items()}
        settings = {**parts[0][0].settings, "options": of_all}
        return RankedRows(model, tokenized, self, read, places, left_out, settings)

    def _layer(self, n_layers: int) -> int:
        layer = integer("layer", self.layer, f"a number from 0 to {n_layers - 1}, or -1")
        if not -n_layers <= layer < n_layers:
            raise InputError(f"layer is {layer}: expected 0 to {n_layers - 1}, or -{n_layers} to -1 from the end")
        return layer % n_layers

    def _without_rollout(self) -> list[str]:
        """The methods that give the target's row only, where rows are rolled out; by default without the slow ones."""
        if not self.rolled_out or self.corpus is not None:
            return []
        asked_for = self.options or {}
        quick = [name for name in METHODS if name in asked_for or not METHODS[name].unasked]
        wanted = quick if self.methods is None else self.methods
        return [name for name in wanted if name in METHODS and "target" in METHODS[name].needs]


def correlations_of(ranked: RankedRows, conventions: Conventions, drops: Sequence[Array]) -> Array:
    """Rank correlations `[example, method, axis]` of rows with drops `[axis, token]`, by example, of blanked tokens."""
    rho = np.full((len(drops), len(ranked.rows), len(drops[0])), nan)
    for index, (sentence, drop) in enumerate(zip(ranked.examples, drops, strict=True)):
        positions = list(conventions.positions(sentence))
        if len(positions) >= FEWEST_TOKENS:
            for method, rows in enumerate(ranked.rows.values()):
                rho[index, method] = rank_correlation(np.broadcast_to(rows[index][positions], drop.shape), drop)
    return rho


@dataclass(frozen=True)
class _Blanking:
    """How tokens are blanked, and over what the results are averaged."""

    conventions: Conventions
    fractions: Sequence[float]
    interval: Interval
    progress: bool
    training: Training | None = None

    def beside(self, ranked: RankedRows) -> Faithfulness:
        """What blanking does, beside rows that are there."""
        clean, drops, erased = self.measured(ranked)
        figures = published_of(str(ranked.settings["model"]), self.training)
        settings = {
            **ranked.settings,
            "conventions": asdict(self.conventions),
            "layer": ranked.ranking.layer,
            "rolled_out": ranked.ranking.rolled_out,
            "fractions": list(self.fractions),
            **self.interval.settings,
            "published": figures.name if figures else None,
        }
        return Faithfulness(
            correlations=tuple(self.correlations(ranked, drops, figures)),
            curves=curves_of(ranked.examples, erased, self.fractions, self.interval),
            p_clean=float(clean.mean()),
            left_out=ranked.left_out,
            skipped=ranked.tokenized.skipped,
            settings=settings,
        )

    def measured(self, ranked: RankedRows) -> tuple[Array, list[Array], dict[str, Array]]:
        """p(right form) of whole examples; what each blanked token takes from it; and what each ranking's sets take.

        The second is `[over, token]` by example, the last `[example, kind, fraction]` by method, NaN without a ranking.
        Equal sentences of methods are run once.
        """
        positions = [self.conventions.positions(sentence) for sentence in ranked.examples]
        wanted = []
        for index, sentence in enumerate(ranked.examples):
            blanks = [frozenset(), *(frozenset([position]) for position in positions[index])]
            for rows in ranked.rows.values():
                blanks += blanks_of(rows[index], positions[index], self.fractions)
            wanted.append((sentence, blanks))
        total = sum(len({*blanks}) for _, blanks in wanted)
        with tqdm(total=total, disable=not self.progress, desc="blank-out", unit="sentence", leave=False) as bar:
            p_good = [values.numpy() for values in probabilities(ranked.model, wanted, self.conventions, bar.update)]
        drops_by_token = [p[:, :1] - p[:, 1 : 1 + len(singly)] for p, singly in zip(p_good, positions, strict=True)]
        clean = np.array([p[0, 0] for p in p_good])
        shape = (len(ranked.rows), len(KINDS), len(self.fractions))
        # [example, method, kind, fraction]
        erased = np.stack([p[0, 1 + len(singly) :].reshape(shape) for p, singly in zip(p_good, positions, strict=True)])
        drops = clean[:, None, None, None] - erased
        for index, rows in enumerate(ranked.rows.values()):
            # Nothing to rank, or scores that are all 0.
            drops[[not row[list(singly)].any() for row, singly in zip(rows, positions, strict=True)], index] = nan
        return clean, drops_by_token, {method: drops[:, index] for index, method in enumerate(ranked.rows)}

    def correlations(self, ranked: RankedRows, drops: Sequence[Array], figures: Published | None) -> Iterator[BlankOut]:
        sizes = [np.abs(drop) for drop in drops] if self.conventions.change == "absolute" else drops
        means = means_by_paradigm(correlations_of(ranked, self.conventions, sizes), ranked.examples, self.interval)
        for index, method in enumerate(ranked.rows):
            for paradigm, (indices, mean) in means.items():
                measured, otherwise = mean[index]
                undefined = len(indices) - (measured.n if measured else 0)
                beside = figures.faithfulness.get(method) if figures and paradigm == ALL else None
                yield BlankOut(method, paradigm, *ranked.places[method], measured, undefined, beside, otherwise)
