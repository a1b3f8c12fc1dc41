"""Difference: which rows and columns of two maps stand against which, and what a difference is called.

1. As many tokens: position by position, also where tokens differ.
2. Other lengths, or words cut elsewhere, as by another tokenizer, but as many words: word by word.
3. Else by the caller's alignment: pairs, or the tokens that both sentences have.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from difflib import SequenceMatcher
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from tl_vzero.choices import listed, place_of
from tl_vzero.errors import InputError, InputTypeError, ScoresError, shortened, shown
from tl_vzero.words import Word, encodable, group_words

if TYPE_CHECKING:
    import tl_vzero

Place = int | str
Alignment = Literal["tokens"] | Sequence[tuple[Place, Place]]
Positions = Sequence[tuple[int, int]]

AXES = ("dest_tokens", "src_tokens", "dest_positions", "src_positions", "src_spans")
BETWEEN = "|"  # two tokens that stand against each other
LISTED_LENGTH = 600  # characters of a sentence that an error lists
HASHED = " (sha256 "  # what stands between the name of a baseline's vectors and their hash
NAME_LENGTH = 40  # characters of what differs, in a name


class Matched(NamedTuple):
    """Two maps of one shape, and by what their rows and columns stand against each other."""

    first: "tl_vzero.Scores"
    second: "tl_vzero.Scores"
    by: str


def aligned(first: Sequence[str], second: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """The places of the tokens of two sentences that stand against each other.

    One by one where there are as many tokens, else by the tokens that both have.
    Between shared tokens, stretches of as many tokens on both sides are paired one by one, too; a token without a
    counterpart is in no pair. Spaces around a token do not count.

    >>> aligned(["the", "hats", "[MASK]"], ["the", "hat", "[MASK]"])
    ((0, 0), (1, 1), (2, 2))
    >>> aligned(["the", "old", "hats", "[MASK]"], ["the", "hats", "[MASK]"])
    ((0, 0), (2, 1), (3, 2))
    """
    if len(first) == len(second):
        return tuple((place, place) for place in range(len(first)))
    texts, others = ([token.strip() for token in tokens] for tokens in (first, second))
    blocks = SequenceMatcher(None, texts, others, autojunk=False).get_opcodes()
    return tuple(
        pair
        for _, begin, end, other_begin, other_end in blocks
        if end - begin == other_end - other_begin
        for pair in zip(range(begin, end), range(other_begin, other_end), strict=True)
    )


def matched(first: "tl_vzero.Scores", second: "tl_vzero.Scores", alignment: Alignment | None) -> Matched:
    """The rows and columns of two maps that stand against each other; ScoresError where nothing says which do."""
    if any(one.joins_two or one.src_spans is not None for one in (first, second)):
        differs = next((name for name in AXES if getattr(first, name) != getattr(second, name)), None)
        if differs is not None or alignment is not None:
            raise ScoresError(
                f"these maps have no difference: {differs or 'alignment'} given for spans, or for rows and columns of "
                "two sentences; expected two maps with the same tokens, and no alignment"
            )
        return Matched(first, second, "positions")
    if alignment is not None:
        return _by_pairs(first, second, alignment)
    if first.unit == "token" and first.word_ids != second.word_ids and None not in (first.word_ids, second.word_ids):
        words = Matched(first.words(), second.words(), "words")
        if _same_places(words.first, words.second) and words.first.n_positions == words.second.n_positions:
            return words
    if _same_places(first, second):
        return Matched(first, second, "positions")
    raise _unmatched(
        first, second, "expected as many destinations and sources, or as many words", "for the tokens that both have"
    )


def _same_places(first: "tl_vzero.Scores", second: "tl_vzero.Scores") -> bool:
    return (first.dest_positions, first.src_positions) == (second.dest_positions, second.src_positions)


def _unmatched(first: "tl_vzero.Scores", second: "tl_vzero.Scores", expected: str, purpose: str) -> ScoresError:
    sides = (
        f"{len(one.tokens)} {one.unit}s {shortened(str([token.strip() for token in one.tokens]), LISTED_LENGTH)}"
        for one in (first, second)
    )
    return ScoresError(
        f'these maps have no difference: {" and ".join(sides)}; {expected}: give alignment="tokens" {purpose}, or in '
        'Python pairs, such as [("hat", "hats"), ("[MASK]", "[MASK]")]; what is in no pair is left out'
    )


def positions_of(scores: "tl_vzero.Scores") -> list[int]:
    """The positions that `scores.tokens` are at."""
    return sorted({*scores.dest_positions, *scores.src_positions})


def _by_pairs(first: "tl_vzero.Scores", second: "tl_vzero.Scores", alignment: Alignment) -> Matched:
    pairs = _pairs(first, second, alignment)
    rows = [(p, q) for p, q in pairs if p in first.dest_positions and q in second.dest_positions]
    columns = [(p, q) for p, q in pairs if p in first.src_positions and q in second.src_positions]
    if not rows or not columns:
        axis = "sources" if rows else "destinations"
        raise _unmatched(first, second, f"the alignment pairs none of their {axis}", "where they share some")
    by = "tokens" if isinstance(alignment, str) else "pairs"
    return Matched(_part(first, rows, columns, 0), _part(second, rows, columns, 1), by)


def _pairs(first: "tl_vzero.Scores", second: "tl_vzero.Scores", alignment: Alignment) -> Positions:
    """An alignment as positions, in the order of the first sentence."""
    places = positions_of(first), positions_of(second)
    if isinstance(alignment, str):
        if alignment != "tokens":
            raise InputError(f'alignment is {shown(alignment)}: expected "tokens", or pairs (first, second)')
        return [(places[0][i], places[1][j]) for i, j in aligned(first.tokens, second.tokens)]
    pairs: list[tuple[int, int]] = []
    for index, pair in enumerate(listed("alignment", alignment)):
        name = f"alignment[{index}]"
        if isinstance(pair, str) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputTypeError(f"{name} is {shown(pair)}: expected a pair (first, second) of positions or tokens")
        sides = zip(pair, (first, second), places, strict=True)
        at, beside = (where[place_of(name, place, one.tokens, where)] for place, one, where in sides)
        pairs.append((at, beside))
    for side in zip(*pairs, strict=True):
        repeated = sorted({at for at in side if side.count(at) > 1})
        if repeated:
            raise InputError(f"alignment holds {repeated} more than once: expected each position at most once")
    return sorted(pairs)


def _part(scores: "tl_vzero.Scores", rows: Positions, columns: Positions, side: int) -> "tl_vzero.Scores":
    """Some rows and columns of a map, in the order of the pairs."""
    row = [scores.dest_positions.index(pair[side]) for pair in rows]
    column = [scores.src_positions.index(pair[side]) for pair in columns]
    return replace(
        scores,
        values=scores.values[..., row, :][..., column],
        error=None if scores.error is None else scores.error[..., row, :][..., column],
        dest_tokens=tuple(scores.dest_tokens[i] for i in row),
        dest_positions=tuple(scores.dest_positions[i] for i in row),
        src_tokens=tuple(scores.src_tokens[i] for i in column),
        src_positions=tuple(scores.src_positions[i] for i in column),
    )


def described(first: "tl_vzero.Scores", second: "tl_vzero.Scores", both: Matched) -> dict[str, Any]:
    """The alignment as plain data: both sentences' tokens, the pairs of positions, and the tokens in no pair."""
    if both.first.joins_two or both.first.src_spans is not None:
        return {"by": both.by}  # every row and column with itself
    wholes = (both.first, both.second) if both.by == "words" else (first, second)
    pairs = _paired(both)
    texts = [dict(zip(positions_of(one), one.tokens, strict=True)) for one in wholes]
    left_out = [
        [token for at, token in texts[side].items() if at not in {pair[side] for pair in pairs}] for side in (0, 1)
    ]
    return {
        "by": both.by,
        "first": list(texts[0].values()),
        "second": list(texts[1].values()),
        "pairs": [list(pair) for pair in pairs],
        "left_out": {"first": left_out[0], "second": left_out[1]},
    }


def _paired(both: Matched) -> list[tuple[int, int]]:
    rows = zip(both.first.dest_positions, both.second.dest_positions, strict=True)
    columns = zip(both.first.src_positions, both.second.src_positions, strict=True)
    return sorted({*rows, *columns})


def both_tokens(first: Sequence[str], second: Sequence[str]) -> tuple[str, ...]:
    """Tokens that stand against each other as labels: both, where they differ.

    >>> both_tokens([" the", " hat"], [" the", " hats"])
    (' the', ' hat|hats')
    """
    pairs = zip(first, second, strict=True)
    return tuple(one if one.strip() == other.strip() else f"{one}{BETWEEN}{other.strip()}" for one, other in pairs)


def words_of_both(word_ids: Sequence[int | None], labels: Sequence[str]) -> list[Word]:
    """As `group_words` of a difference's labels: what stands on either side is joined by itself.

    >>> words_of_both([0, 0, 1], ["scar|jump", "##ing", "cats"])[0].label
    'scaring|jumping'
    """
    parts = [label.partition(BETWEEN) for label in labels]
    sides = [
        [one if one and other else label for label, (one, _, other) in zip(labels, parts, strict=True)],
        [other if one and other else label for label, (one, _, other) in zip(labels, parts, strict=True)],
    ]
    first, second = (group_words(word_ids, side) for side in sides)
    both = both_tokens([word.label for word in first], [word.label for word in second])
    return [replace(word, label=label) for word, label in zip(first, both, strict=True)]


def common_words(both: Matched) -> tuple[int | None, ...] | None:
    """The words of the first sentence, None where the pairs are of other words in the second."""
    if both.first.joins_two or both.first.src_spans is not None or both.first.word_ids == both.second.word_ids:
        return both.first.word_ids
    if both.first.word_ids is None or both.second.word_ids is None:
        return None
    if both.by == "words":  # their words are what is paired
        return both.first.word_ids
    pairs = _paired(both)
    groups = [
        [
            (word.positions, ids[pairs[word.positions[0]][side]] is None)
            for word in group_words(inside, [""] * len(pairs))
        ]
        for side, ids in enumerate((both.first.word_ids, both.second.word_ids))
        for inside in [[ids[pair[side]] for pair in pairs]]
    ]
    return both.first.word_ids if groups[0] == groups[1] else None


def name_of(first: "tl_vzero.Scores", second: "tl_vzero.Scores") -> str:
    """What was subtracted from what: the methods, and the models, words or options in which two maps differ."""
    methods = [first.method, second.method]
    differing = [names for names in (_models(first, second), _texts(first, second)) if names]
    if first.method == second.method and (not differing or first.baseline != second.baseline):
        differing += [names for names in [_options(first, second)] if names]
    behind = [", ".join(side) for side in zip(*differing, strict=True)] or ["", ""]
    return " - ".join(
        f"{method} ({_printable(shortened(text, NAME_LENGTH))})" if text else method
        for method, text in zip(methods, behind, strict=True)
    )


def _models(first: "tl_vzero.Scores", second: "tl_vzero.Scores") -> tuple[str, str] | None:
    names = [str(one.metadata.get("model", "")) for one in (first, second)]
    digests = [str(one.metadata.get("weights_sha256", "")) for one in (first, second)]
    if names[0] == names[1]:  # of one name, such as before and after training
        names = [f"{name} {digest[:8]}".strip() for name, digest in zip(names, digests, strict=True)]
    short = [name.rstrip("/").rpartition("/")[2] for name in names]
    names = names if short[0] == short[1] else short
    return (names[0], names[1]) if names[0] != names[1] and all(names) else None


def _texts(first: "tl_vzero.Scores", second: "tl_vzero.Scores") -> tuple[str, str] | None:
    """The words in which two sentences differ; both sentences, where one of them has nothing that the other lacks."""
    if first.joins_two or second.joins_two or first.src_spans is not None:
        return None
    texts = [[token.strip() for token in one.tokens] for one in (first, second)]
    if texts[0] == texts[1]:
        return None
    equal = [(i, j) for i, j in aligned(*texts) if texts[0][i] == texts[1][j]]
    apart = [
        " ".join(token for place, token in enumerate(texts[side]) if place not in {pair[side] for pair in equal})
        for side in (0, 1)
    ]
    return (apart[0], apart[1]) if all(apart) else (" ".join(texts[0]), " ".join(texts[1]))


def _options(first: "tl_vzero.Scores", second: "tl_vzero.Scores") -> tuple[str, str] | None:
    options = [{"baseline": one.baseline, **one.metadata.get("options", {})} for one in (first, second)]
    names = [name for name in dict.fromkeys(chain(*options)) if options[0].get(name) != options[1].get(name)]
    first_text, second_text = (", ".join(f"{name} {one.get(name)}" for name in names) for one in options)
    return (first_text, second_text) if names else None


def _printable(text: str) -> str:
    """A text as a name has it: what cannot be shown is written out."""
    return "".join(c if c.isprintable() else encodable(ascii(c)[1:-1]) for c in text)


# What two maps may differ in.


def baseline_in(metadata: Any) -> str:
    """The baseline that metadata name; zero where they say nothing, as of other methods and in older files."""
    options = metadata.get("options") if isinstance(metadata, Mapping) else None
    return str(options.get("baseline", "zero")) if isinstance(options, Mapping) else "zero"


def of_baseline(metadata: Mapping[str, Any]) -> str:
    """What is behind a method's name; nothing for zero, and of two maps with two baselines their difference's name
    has both.
    """
    baselines = {baseline_in(metadata), baseline_in(metadata.get("subtracted", metadata))}
    identity = baselines.pop()
    name = shortened(identity.partition(HASHED)[0], NAME_LENGTH)
    return "" if baselines or identity == "zero" else f", baseline {name}"


def first_unlike(first: "tl_vzero.Scores", second: "tl_vzero.Scores", names: Sequence[str]) -> str | None:
    """The first of some labels in which two maps differ, and both of its values; None where they agree."""
    both = ((name, getattr(first, name), getattr(second, name)) for name in names)
    return next((f"{name} {shown(one)} and {shown(other)}" for name, one, other in both if one != other), None)


def distinct(tokens: Sequence[str], positions: Sequence[int]) -> tuple[str, ...]:
    """Tokens as labels that differ: one that occurs again has its position behind it."""
    texts = [encodable(token.strip() or token) for token in tokens]
    return tuple(
        text if texts.count(text) == 1 else f"{text} ({at})" for text, at in zip(texts, positions, strict=True)
    )
