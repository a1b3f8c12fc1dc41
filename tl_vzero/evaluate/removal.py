"""Token removal: how much of the prediction stays if a method says which tokens a model may leave out?

1. The first `layer` blocks run on the whole sentence. Then the share of the tokens that a method's row of the target
   ranks lowest is left out: their positions are not attended to by the other blocks, and not computed.
2. The target and special tokens always stay. Every share is of the other tokens.
3. Accuracy and p(right form) over the sentences, by method and share, beside no removal and removal by chance; and
   the time that the shorter runs take, measured.

The rows that stay have their positions with them: what a block is given for a position, such as a mask or a rotation,
is cut with its row. Before any evaluation one sentence shows that the model then gives the logits that it gives with
attention to the other tokens masked.

Source: Mohebbi et al. 2023, section 9 (the idea); Goyal et al. 2020, "PoWER-BERT" (by attention).
"""

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from statistics import quantiles
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import at_least_one, chosen, integer
from tl_vzero.clean import device_of
from tl_vzero.corpus import Corpus
from tl_vzero.data.examples import Example, Skipped
from tl_vzero.distance import relative_difference, wide_dtype
from tl_vzero.errors import InputError, ModelError
from tl_vzero.evaluate.faithfulness import (
    TOKENS_PER_BATCH,
    Blank,
    RankedRows,
    Ranking,
    blanks_of,
    check_fractions,
    p_right,
)
from tl_vzero.evaluate.results import COLUMNS, Result, Row, means_by_paradigm
from tl_vzero.evaluate.rows import Options, check_wrong_forms
from tl_vzero.evaluate.sentences import Protocol, TokenizedExample, tokenize_examples
from tl_vzero.inputs.text import same_length_batches
from tl_vzero.models.blocks import SAME_BLOCK
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.facts import facts_of, vocabulary_size
from tl_vzero.models.run import (
    LOGITS_PER_BATCH,
    SAME,
    NamedHook,
    TargetLogits,
    quiet,
    run_logits,
    temporary_pre_hooks,
)
from tl_vzero.statistics import Array, Estimate, Interval
from tl_vzero.targets import check_predicts_words

PredictionMeasure = Literal["accuracy", "p_forms", "p_vocabulary", "beside_random"]

SHARES = tuple(eighth / 8 for eighth in range(1, 9))
REPEATS = 11  # an odd count has a run in its middle
TIMED_SENTENCES = 32  # a choice: enough for a processor to be busy, few enough for a large model


@dataclass(frozen=True)
class Removed(Row):
    """The prediction of one method's shortened sentences, over one paradigm (or "all").

    `share` is of the tokens that may go, 0 is no removal, and `removed` the mean share of all tokens of a sentence that
    is gone. `beside_random` is p(right form) over the two forms minus that with as many tokens removed by chance.
    Examples without a ranking are not in the means and counted in `undefined`; estimates are None where none is left.
    """

    method: str
    paradigm: str
    layer: int
    rolled_out: bool
    share: float
    removed: float
    accuracy: Estimate | None = field(metadata={COLUMNS: "accuracy_"})
    p_forms: Estimate | None = field(metadata={COLUMNS: "p_forms_"})
    p_vocabulary: Estimate | None = field(metadata={COLUMNS: "p_vocabulary_"})
    beside_random: Estimate | None = field(metadata={COLUMNS: "beside_random_"})
    undefined: int


@dataclass(frozen=True)
class RunTime(Row):
    """The time of a shortened run over that of the whole one beside it: the median of `repeats`, and its quartiles."""

    tokens: int
    removed: int
    sentences: int
    ratio: float
    low: float
    high: float
    repeats: int


@dataclass(frozen=True)
class TokenRemoval(Result):
    """Predictions without tokens, by method, share and paradigm (or "all"), and measured times.

    `left_out` are methods that were not named and not computed, `skipped` examples that the protocol cannot hold.
    `settings` have the model, the layer from which on tokens are left out, and how rows were read.
    """

    predictions: tuple[Removed, ...]
    times: tuple[RunTime, ...]
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]


def token_removal(
    model: nn.Module,
    examples: Sequence[Example],
    methods: Sequence[str] | None = None,
    *,
    layer: int | None = None,
    shares: Sequence[float] = SHARES,
    rolled_out: bool = True,
    options: Options | None = None,
    corpus: Corpus | None = None,
    protocol: Protocol = "masked",
    repeats: int = REPEATS,
    interval: Interval | None = None,
    progress: bool = False,
) -> TokenRemoval:
    """How much of the prediction stays without the tokens that each method ranks lowest, and the time that saves.

    Tokens are left out from block `layer` on, the middle one by default. A share is rounded up to whole tokens; of
    equal scores the first in the sentence goes first. Rows are rolled out to that block, its own included, or its own
    with `rolled_out=False`. `random` is always among the methods. Methods, options and corpus are as in `faithfulness`,
    and so are gradient methods, which are given the right form. Times are measured `repeats` times on sentences of the
    most frequent length; 0: not.

    Raises ModelError for a model whose shortened runs differ from runs with attention masked, InputError for examples
    without a wrong form or a bad argument, what `faithfulness` raises, and leaves the model as it was.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> result = token_removal(model, agreement_examples()[:8], ["value_zeroing"], shares=[0.5], repeats=0)
    >>> [(row.method, row.share) for row in result.predictions if row.paradigm == "all"]
    [('value_zeroing', 0.0), ('value_zeroing', 0.5), ('random', 0.0), ('random', 0.5)]
    """
    interval = interval or Interval()
    check_fractions(shares, "shares")
    if integer("repeats", repeats) < 0:
        raise InputError(f"repeats is {repeats}: expected at least 1, or 0 for no times")
    shortened = _Shortened(model, layer)
    check_predicts_words(model)
    tokenized = tokenize_examples(model, examples, protocol=protocol)
    check_wrong_forms(tokenized.examples, "accuracy")
    named = methods if methods or corpus is None else corpus.methods
    named = named if named is None or "random" in named else [*named, "random"]
    shortened.check(max(tokenized.examples, key=lambda sentence: len(_removable(sentence))))
    ranked = Ranking(named, options, corpus, shortened.layer, rolled_out).rows(model, tokenized, progress)
    all_shares = (0.0, *shares)
    predicted = _predicted(shortened, ranked, all_shares, progress)
    return TokenRemoval(
        predictions=tuple(_rows(ranked, predicted, all_shares, interval)),
        times=_times(shortened, ranked.examples, shares, repeats),
        left_out=ranked.left_out,
        skipped=tokenized.skipped,
        settings={
            **ranked.settings,
            "layer": shortened.layer,
            "rolled_out": rolled_out,
            "shares": list(shares),
            **interval.settings,
        },
    )


def removal_times(
    model: nn.Module,
    ids: Int[Tensor, "sentence position"],
    target: int,
    *,
    layer: int,
    counts: Sequence[int],
    repeats: int = REPEATS,
) -> tuple[RunTime, ...]:
    """The time to the logits at a target with so many positions left out from a block on, over that of the whole run.

    Whole and shortened runs take turns, after one of each that is not measured. Which positions go changes no time:
    they are the first ones but the target. Raises InputError for counts that a sentence does not hold.

    >>> import torch, tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> times = removal_times(model, torch.zeros(2, 9, dtype=torch.long), 3, layer=2, counts=[4], repeats=3)
    >>> times[0].tokens, times[0].removed, times[0].ratio > 0
    (9, 4, True)
    """
    at_least_one("repeats", repeats)
    others = [position for position in range(ids.shape[1]) if position != target]
    if any(not 0 <= count <= len(others) for count in counts):
        raise InputError(f"counts are {list(counts)}: expected 0 to {len(others)} positions, all but the target")
    removed = [[frozenset(others[:count])] * len(ids) for count in (0, *counts)]
    shortened = _Shortened(model, layer)
    seconds = np.empty((repeats + 1, len(removed)))
    with quiet(model):
        for turn in range(repeats + 1):
            for index, sets in enumerate(removed):
                start = time.perf_counter()
                shortened.at_target(ids, [*range(len(ids))], sets, [target] * len(ids))
                if ids.device.type == "cuda":
                    torch.cuda.synchronize(ids.device)
                seconds[turn, index] = time.perf_counter() - start
    ratios = (seconds[1:, 1:] / seconds[1:, :1]).T.tolist()
    quartiles = [quantiles(of_count, method="inclusive") if repeats > 1 else of_count * 3 for of_count in ratios]
    return tuple(
        RunTime(ids.shape[1], count, len(ids), middle, low, high, repeats)
        for count, (low, middle, high) in zip(counts, quartiles, strict=True)
    )


# Runs that leave positions out.


class _Shortened:
    """A model that leaves positions out from one of its blocks on."""

    def __init__(self, model: nn.Module, layer: int | None) -> None:
        self.model, self.sites, self.logits = model, check_contracts(model), TargetLogits(model)
        n_layers = self.sites.n_layers
        (self.layer,) = chosen("layer", layer, n_layers, "the model has") or (n_layers // 2,)

    def at_target(
        self, ids: Int[Tensor, "run position"], runs: Sequence[int], removed: Sequence[Blank], targets: Sequence[int]
    ) -> Float[Tensor, "copy vocabulary"]:
        """The logits of each copy of a run at its target, without as many positions in every copy."""
        read = torch.tensor(targets, device=ids.device)
        self.logits.positions_unembedded(ids[:1])  # it tries itself out by runs of its own, which nothing shortens
        if not removed[0]:
            return self.logits.at(ids[list(runs)], read)
        remaining = [sorted({*range(ids.shape[1])} - positions) for positions in removed]
        rows = _RowsLeft(
            torch.tensor(runs, device=ids.device), torch.tensor(remaining, device=ids.device), ids.shape[1]
        )
        blocks: Any = self.model.blocks
        with temporary_pre_hooks(self.model, [*blocks][self.layer :], rows.of_arguments):
            return self.logits.at(ids, read, [(self.sites.outputs[-1], rows.in_place)])

    def masked(
        self, ids: Int[Tensor, "run position"], removed: Sequence[Blank]
    ) -> Float[Tensor, "copy position vocabulary"]:
        """The logits of copies of one run whose blocks compute every position, but attend to those that remain only.

        A second set of copies has values of one where a position remains, and of zero elsewhere: what attention makes
        of them is the weight that remains, by which that of the first is divided.
        """
        count = len(removed)
        remain = torch.ones(count, ids.shape[1], device=ids.device)
        for copy, positions in enumerate(removed):
            remain[copy, [*positions]] = 0

        def same_input(x: Tensor, *, hook: Any) -> Tensor:
            return torch.cat([x[:count], x[:count]])

        def values(value: Tensor, *, hook: Any) -> Tensor:
            weight = remain.view(*remain.shape, *[1] * (value.ndim - 2)).to(value.dtype)
            return torch.cat([value[:count] * weight, weight.expand_as(value[:count])])

        def mixed(z: Tensor, *, hook: Any) -> Tensor:
            # Before the first position that remains, a causal model attends to nothing; nothing reads that.
            return torch.cat([z[:count] / z[count:].clamp(min=torch.finfo(z.dtype).tiny), z[count:]])

        hooks: list[NamedHook] = []
        for block_input, value, *_ in map(self.sites.at, range(self.layer, self.sites.n_layers)):
            hooks += [(block_input, same_input), (value, values), (value.replace("hook_v", "hook_z"), mixed)]
        return run_logits(self.model, ids.expand(2 * count, -1), hooks)[:count]

    def check(self, sentence: TokenizedExample) -> None:
        """Raise ModelError where leaving positions out is another thing than masking attention to them."""
        positions, target = _removable(sentence), sentence.dest
        half = max(1, len(positions) // 2)
        removed = [frozenset(positions[:half]), frozenset(positions[-half:])]
        ids = sentence.encoding.ids.to(device_of(self.model)).unsqueeze(0)
        try:
            with quiet(self.model):
                left = self.at_target(ids, [0, 0], removed, [target, target])
                differs = relative_difference(left.double(), self.masked(ids, removed)[:, target].double())
        except ModelError as error:
            raise self._refusal(str(error)) from error
        if not differs <= max(SAME, SAME_BLOCK.get(left.dtype, 0.0)):  # NaN is no agreement
            raise self._refusal(f"its logits differ by {differs:.1%} from those with attention to them masked")

    def _refusal(self, reason: str) -> ModelError:
        return ModelError(
            f"{facts_of(self.model).name} cannot leave tokens out from block {self.layer} on: {reason}; expected "
            "blocks that are given all they know of positions (as in BERT or Llama) and attend to tokens only"
        )


@dataclass(frozen=True, eq=False)
class _RowsLeft:
    """Which run each copy is of, and which of its `length` rows it has left."""

    runs: Int[Tensor, "copy"]
    remaining: Int[Tensor, "copy row"]
    length: int

    def of_arguments(self, block: nn.Module, positional: Any, named: Any) -> Any:
        """What a block is given, cut to the rows that are left."""
        return self._of(positional), {name: self._of(value) for name, value in named.items()}

    def _of(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(self._of, value))
        if not isinstance(value, Tensor) or not 2 <= value.ndim <= 4:
            return value
        # A mask or bias `[sentence, head, dest, src]`; else rows: a residual stream, rotations, positions.
        axes = [axis for axis in ((2, 3) if value.ndim == 4 else (1,)) if value.shape[axis] == self.length]
        if axes:  # below the first of the blocks that are shortened; above it, streams have the rows that are left
            value = value.expand(len(self.runs), *value.shape[1:]) if len(value) == 1 else value[self.runs]
        for axis in axes:
            shape = [len(self.remaining), *(1 for _ in value.shape[1:])]
            shape[axis] = -1
            value = value.take_along_dim(self.remaining.view(shape), axis)
        return value

    def in_place(self, rows: Tensor, *, hook: Any) -> Tensor:
        """The last block's rows where they were, and zeros: what follows may count on a whole sentence."""
        whole = rows.new_zeros(len(rows), self.length, rows.shape[-1])
        return whole.scatter(1, self.remaining.unsqueeze(-1).expand_as(rows), rows)


def _removable(sentence: TokenizedExample) -> list[int]:
    """The positions that may go: all but the target and special tokens."""
    return [at for at, special in enumerate(sentence.encoding.special) if not special and at != sentence.dest]


def _lowest(sentence: TokenizedExample, row: Array | None, share: float) -> Blank:
    """The positions that rank lowest in a row, or any as many."""
    row = np.zeros(len(sentence)) if row is None else row
    return blanks_of(-row, _removable(sentence), [share])[0]


def _predicted(shortened: _Shortened, ranked: RankedRows, shares: Sequence[float], progress: bool) -> Array:
    """p(right form) over the forms and over the vocabulary, `[example, method, share, 2]`; NaN without a ranking."""
    wanted: list[list[Blank]] = []
    for index, sentence in enumerate(ranked.examples):
        wanted.append([_lowest(sentence, rows[index], share) for rows in ranked.rows.values() for share in shares])
    copies = list(dict.fromkeys((index, removed) for index, sets in enumerate(wanted) for removed in sets))
    p_good: dict[tuple[int, Blank], tuple[float, float]] = {}
    with quiet(shortened.model), tqdm(total=len(copies), disable=not progress, desc="removal", leave=False) as bar:
        for batch in _batches(shortened, ranked.examples, copies):
            p_good |= zip(batch, _of_batch(shortened, ranked.examples, batch), strict=True)
            bar.update(len(batch))
    shape = (len(wanted), len(ranked.rows), len(shares), 2)
    values = np.array([p_good[index, removed] for index, sets in enumerate(wanted) for removed in sets]).reshape(shape)
    for at, rows in enumerate(ranked.rows.values()):
        values[[not row[_removable(one)].any() for row, one in zip(rows, ranked.examples, strict=True)], at] = nan
    return values


def _batches(
    shortened: _Shortened, examples: Sequence[TokenizedExample], copies: Sequence[tuple[int, Blank]]
) -> Iterator[list[tuple[int, Blank]]]:
    """Copies of sentences of one length without as many positions."""

    def size_of(alike: Sequence[tuple[int, Blank]]) -> int:
        ids = examples[alike[0][0]].encoding.ids.to(device_of(shortened.model)).unsqueeze(0)
        unembedded = shortened.logits.positions_unembedded(ids) * vocabulary_size(shortened.model)
        return min(TOKENS_PER_BATCH // ids.shape[1], LOGITS_PER_BATCH // unembedded)

    return same_length_batches(copies, lambda copy: (len(examples[copy[0]]), len(copy[1])), size_of)


def _of_batch(
    shortened: _Shortened, examples: Sequence[TokenizedExample], batch: Sequence[tuple[int, Blank]]
) -> Iterator[tuple[float, float]]:
    """p(right form) of copies, over the forms and over the vocabulary; sentences run once below the first block."""
    run_of = {index: run for run, index in enumerate(dict.fromkeys(index for index, _ in batch))}
    ids = torch.stack([examples[index].encoding.ids for index in run_of]).to(device_of(shortened.model))
    runs, removed = [run_of[index] for index, _ in batch], [positions for _, positions in batch]
    logits = shortened.at_target(ids, runs, removed, [examples[index].dest for index, _ in batch])
    logits = logits.to(wide_dtype(ids.device))
    good, bad = ([getattr(examples[index].encoding, form) for index, _ in batch] for form in ("good_id", "bad_id"))
    return zip(p_right(logits, good, bad), p_right(logits, good, None), strict=True)


def _rows(ranked: RankedRows, predicted: Array, shares: Sequence[float], interval: Interval) -> Iterator[Removed]:
    p_forms, p_vocabulary = predicted[..., 0], predicted[..., 1]
    accuracy = np.where(np.isnan(p_forms), nan, p_forms > 0.5)
    beside = p_forms - p_forms[:, [list(ranked.rows).index("random")]]
    means = means_by_paradigm(np.stack([accuracy, p_forms, p_vocabulary, beside], -1), ranked.examples, interval)
    for at, method in enumerate(ranked.rows):
        for paradigm, (indices, mean) in means.items():
            of_paradigm = [ranked.examples[index] for index in indices]
            for nth, share in enumerate(shares):
                gone = float(np.mean([len(_lowest(one, None, share)) / len(one) for one in of_paradigm]))
                accurate, forms, vocabulary, more = mean[at, nth]
                undefined = len(indices) - (accurate.n if accurate else 0)
                place = ranked.places[method]
                yield Removed(
                    method, paradigm, *place, share, gone, accurate, forms, vocabulary, more, undefined=undefined
                )


def _times(
    shortened: _Shortened, examples: Sequence[TokenizedExample], shares: Sequence[float], repeats: int
) -> tuple[RunTime, ...]:
    """Times on sentences of the most frequent length."""
    if not repeats:
        return ()
    length, _ = Counter(map(len, examples)).most_common(1)[0]
    alike = [sentence for sentence in examples if len(sentence) == length][:TIMED_SENTENCES]
    counts = [len(_lowest(alike[0], None, share)) for share in shares]
    ids = torch.stack([sentence.encoding.ids for sentence in alike]).to(device_of(shortened.model))
    return removal_times(
        shortened.model, ids, alike[0].dest, layer=shortened.layer, counts=list(dict.fromkeys(counts)), repeats=repeats
    )
