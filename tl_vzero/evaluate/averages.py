"""Means of context-mixing maps over many sentences, with intervals.

1. Of each sentence, a destination's row is summed over the sources of a group, then averaged over the destinations of
   a group. By distance there is nothing to sum: all entries at one distance are averaged.
2. The mean of a pair of groups is over the sentences that have both; its interval is a percentile bootstrap over them.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from tl_vzero.choices import LISTED_LENGTH, one_of
from tl_vzero.corpus.read import Corpus
from tl_vzero.difference import first_unlike
from tl_vzero.errors import InputError, InputTypeError, ScoresError, escaped, shortened, shown
from tl_vzero.inputs.text import same_length_batches
from tl_vzero.labels import Stage
from tl_vzero.scores import MASKS, Drawn, Scores
from tl_vzero.statistics import RESAMPLES, Array, Interval, bootstrap_means
from tl_vzero.words import encodable, parsed_words

if TYPE_CHECKING:
    import pandas as pd

By = Literal["position", "word", "pos", "dependency", "distance"]
Label = int | str
Pairs = dict[tuple[Label, Label], Array]  # what a sentence has of a destination's and a source's group

ALIKE = ("method", "baseline", "stage", "unit", "layers", "heads")
EVERY_DEST = "all"
COLUMNS_AT_ONCE = 4096  # means whose draws are held at a time, 64 MB of 2000 draws
LARGEST = 2**26  # means of a table, 1.6 GB with their intervals


@dataclass(frozen=True, eq=False, repr=False)
class MeanScores(Drawn):
    """Means over sentences of what destinations of a group draw on sources of a group.

    `values`, `low` and `high` are `[layer, dest group, src group]`, or `[layer, head, dest group, src group]` per head,
    and `n` says how many sentences have both groups: where none has, all three are NaN, and where one has, the bounds.
    Groups are texts, or whole numbers by position and by distance (source minus destination).
    """

    values: Float[Tensor, "*axes dest src"]
    low: Float[Tensor, "*axes dest src"]
    high: Float[Tensor, "*axes dest src"]
    n: Int[Tensor, "dest src"]
    dest_groups: tuple[Label, ...]
    src_groups: tuple[Label, ...]
    by: By
    method: str
    stage: Stage
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    confidence: float
    baseline: str = "zero"

    def to_frame(self) -> "pd.DataFrame":
        """A long pandas table of the pairs that some sentence has: layer, (head,) dest, src, mean, low, high, n."""
        import pandas as pd

        heads = {} if self.heads is None else {"head": self.heads}
        axes = {"layer": self.layers, **heads, "dest": self.dest_groups, "src": self.src_groups}
        frame = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
        for name, values in {"mean": self.values, "low": self.low, "high": self.high}.items():
            frame[name] = values.flatten().numpy()
        frame["n"] = self.n.expand(self.values.shape).flatten().numpy()
        return frame[frame["n"] > 0].reset_index(drop=True)

    def __repr__(self) -> str:
        heads = "" if self.heads is None else f", {len(self.heads)} heads"
        baseline = "" if self.baseline == "zero" else f", baseline {self.baseline}"
        return escaped(
            f"MeanScores({self.method} by {self.by}, {self.stage}{baseline}, {len(self.layers)} layers{heads}, "
            f"{len(self.dest_groups)} x {len(self.src_groups)} groups, up to {int(self.n.max())} sentences a pair)"
        )


def mean(
    scores: Iterable[Scores] | Corpus,
    by: By,
    *,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> MeanScores:
    """The mean of many sentences' maps, by groups of tokens, with a bootstrap interval over the sentences.

    `scores` are of one method, stage, layers and heads, and are averaged as they are: pass `normalized()` ones for
    shares. Any iterable will do, and an opened corpus of one method; maps are read one at a time.
    `by`: "position" (sentences of as many tokens); "word", the text of tokens (of words after `words()`); "pos" and
    "dependency", what spaCy's English parse says of words, with special tokens and masks as groups of their own;
    "distance", source minus destination position, over all destinations.

    Raises InputError or InputTypeError for no scores, or such as cannot be averaged, ScoresError where a map does not
    have the groups, DependencyError where there is no parser.
    Source of the interval: Efron & Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> texts = ["the authors near the hat [MASK] today.", "the author near the hats [MASK] today."]
    >>> maps = [scores.normalized() for scores in tl_vzero.value_zeroing(model, texts)]
    >>> shares = tl_vzero.mean(maps, by="pos")
    >>> shares
    MeanScores(value_zeroing by pos, normalized, 4 layers, 7 x 7 groups, up to 2 sentences a pair)
    >>> table = shares.to_frame()
    >>> table[(table.layer == 1) & (table.dest == "[MASK]") & (table.src == "NOUN")].n.item()
    2
    """
    one_of("by", by, GROUPS)
    interval = Interval(confidence, resamples, seed)
    first: Scores | None = None
    rows: dict[tuple[Label, Label], list[Array]] = {}
    for one in _read(scores):
        first = one if first is None else first
        _check_alike(first, one)
        if by == "position":
            _check_lengths(first, one)
        for pair, values in GROUPS[by](one).items():
            rows.setdefault(pair, []).append(values)
    if first is None:
        raise InputError("scores are empty: expected at least one Scores")
    return _means(first, by, rows, interval)


def _read(scores: Any) -> Iterator[Scores]:
    if isinstance(scores, Corpus):
        if len(scores.methods) > 1:
            raise InputError(
                f"this corpus holds the methods {', '.join(scores.methods)}: expected one; pass the maps of one, as by "
                f"(scores for _, scores in corpus.scores({scores.methods[0]!r}))"
            )
        scores = (of_sentence for _, of_sentence in scores.scores(scores.methods[0]))
    if not isinstance(scores, Iterable):
        raise InputTypeError(f"scores is {type(scores).__name__}: expected a list of Scores, or a corpus")
    for one in scores:
        if not isinstance(one, Scores):
            raise InputTypeError(f"scores hold {shown(one)} ({type(one).__name__}): expected Scores only")
        yield one


def _check_alike(first: Scores, one: Scores) -> None:
    unlike = first_unlike(first, one, ALIKE)
    if unlike is not None:
        raise InputError(
            f"these scores have no mean: {unlike}; expected scores of one method, baseline, layers and heads, all "
            "raw, normalized() or rollout()"
        )


def _check_lengths(first: Scores, one: Scores) -> None:
    if (first.n_positions, first.n_src_positions) != (one.n_positions, one.n_src_positions):
        ours, theirs = (
            " / ".join(
                shortened(" ".join(token.strip() for token in tokens), LISTED_LENGTH)
                for tokens in dict.fromkeys((scores.src_tokens, scores.dest_tokens))
            )
            for scores in (first, one)
        )
        raise InputError(
            f"by='position' needs sentences of as many tokens: {ours!r} has {first.n_positions} and {theirs!r} "
            f"{one.n_positions}; average by word, pos, dependency or distance"
        )


def _by_position(scores: Scores) -> Pairs:
    _check_single(scores, "position")
    return _pooled(scores, scores.dest_positions, scores.src_positions)


def _by_word(scores: Scores) -> Pairs:
    dests, sources = (
        [encodable(token.strip() or token) for token in tokens] for tokens in (scores.dest_tokens, scores.src_tokens)
    )
    return _pooled(scores, dests, sources)


def _by_pos(scores: Scores) -> Pairs:
    return _by_parse(scores, "pos", 0)


def _by_dependency(scores: Scores) -> Pairs:
    return _by_parse(scores, "dependency", 1)


def _by_parse(scores: Scores, by: By, said: int) -> Pairs:
    """Groups by one of the two things that the parse says of a word."""
    _check_single(scores, by)
    _check_one_sentence(scores, by)
    if scores.src_positions != tuple(range(scores.n_positions)):
        raise ScoresError(
            f"by={by!r} parses whole sentences, and this map has {len(scores.src_positions)} sources of "
            f"{scores.n_positions} positions: compute it with all sources"
        )
    words = scores.words()
    texts = [encodable(token.strip() or token) for token in words.src_tokens]
    special = words.special_sources
    parsed = iter(parsed_words([text for text, is_special in zip(texts, special, strict=True) if not is_special]))
    said_of = [None if is_special else next(parsed)[said] for is_special in special]
    labels = [text if label is None or text in MASKS else label for text, label in zip(texts, said_of, strict=True)]
    return _pooled(words, [labels[position] for position in words.dest_positions], labels)


def _by_distance(scores: Scores) -> Pairs:
    _check_single(scores, "distance")
    _check_one_sentence(scores, "distance")
    distances = np.array(scores.src_positions) - np.array(scores.dest_positions)[:, None]
    values = _numbers(scores)
    return {
        (EVERY_DEST, int(distance)): values[..., distances == distance].mean(axis=-1)
        for distance in np.unique(distances)
    }


def _check_single(scores: Scores, by: By) -> None:
    if scores.src_spans is not None:
        raise ScoresError(f"by={by!r} needs single sources, and these columns are spans: average by word")


def _check_one_sentence(scores: Scores, by: By) -> None:
    source_at = dict(zip(scores.src_positions, scores.src_tokens, strict=True))
    labels = zip(scores.dest_positions, scores.dest_tokens, strict=True)
    differ = any(source_at.get(position, token) != token for position, token in labels)
    if differ or scores.crosses or scores.n_src_positions is not None:
        raise ScoresError(
            f"by={by!r} is undefined here: rows and columns are of two sentences; average by position or word"
        )


def _numbers(scores: Scores) -> Array:
    return scores.values.detach().cpu().double().numpy()


def _pooled(scores: Scores, dests: Iterable[Label], sources: Iterable[Label]) -> Pairs:
    """Rows summed over the sources of a group, and averaged over the destinations of a group."""
    dest_groups, of_dest = _members(dests)
    src_groups, of_source = _members(sources)
    values = (of_dest / of_dest.sum(axis=1, keepdims=True)) @ _numbers(scores) @ of_source.T
    return {
        (dest, source): values[..., row, column]
        for row, dest in enumerate(dest_groups)
        for column, source in enumerate(src_groups)
    }


def _members(labels: Iterable[Label]) -> tuple[list[Label], Array]:
    """The groups in order of appearance, and which labels are theirs, `[group, label]`."""
    labels = list(labels)
    groups = list(dict.fromkeys(labels))
    return groups, np.array([[label == group for label in labels] for group in groups], dtype=np.float64)


GROUPS: dict[By, Callable[[Scores], Pairs]] = {
    "position": _by_position,
    "word": _by_word,
    "pos": _by_pos,
    "dependency": _by_dependency,
    "distance": _by_distance,
}


def _means(first: Scores, by: By, rows: dict[tuple[Label, Label], list[Array]], interval: Interval) -> MeanScores:
    dests, sources = (_in_order(labels) for labels in zip(*rows, strict=True))
    axes = first.shape[:-2]
    width = int(np.prod(axes))
    if width * len(dests) * len(sources) > LARGEST:
        raise InputError(
            f"by={by!r} gives {len(dests)} x {len(sources)} groups in {width} maps, more than a table holds: average "
            "fewer sentences or layers, or by pos, dependency or distance"
        )
    table = np.full((3, width, len(dests), len(sources)), np.nan)
    n = np.zeros((len(dests), len(sources)), dtype=np.int64)
    dest_at, src_at = ({label: at for at, label in enumerate(labels)} for labels in (dests, sources))
    # Pairs that as many sentences have share their draws, and so a bootstrap.
    for pairs in same_length_batches(rows, lambda pair: len(rows[pair]), lambda _: COLUMNS_AT_ONCE // width):
        places = tuple(np.array([(dest_at[dest], src_at[source]) for dest, source in pairs]).T)
        columns = np.concatenate([np.stack(rows[pair]).reshape(-1, width) for pair in pairs], axis=1)
        means = bootstrap_means(columns, **vars(interval))
        bounds = np.array([(one.mean, one.low, one.high) for one in means]).reshape(len(pairs), width, 3)
        table[:, :, *places] = bounds.transpose(2, 1, 0)
        n[places] = len(columns)
    values, low, high = torch.from_numpy(table).reshape(3, *axes, len(dests), len(sources))
    return MeanScores(
        values=values,
        low=low,
        high=high,
        n=torch.from_numpy(n),
        dest_groups=dests,
        src_groups=sources,
        by=by,
        method=first.method,
        stage=first.stage,
        layers=first.layers,
        heads=first.heads,
        confidence=interval.confidence,
        baseline=first.baseline,
    )


def _in_order(labels: Iterable[Label]) -> tuple[Label, ...]:
    """Groups that are numbers by size, others in the order in which they came."""
    groups = list(dict.fromkeys(labels))
    return tuple(sorted(groups, key=lambda label: label if isinstance(label, int) else 0))
