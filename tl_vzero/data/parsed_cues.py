"""Cues by spaCy's dependency parse: for free text, and to check the cues that a rule or a user gives."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tl_vzero.data.examples import ALL, Example, ExampleSet, frame_of
from tl_vzero.words import english_parser

if TYPE_CHECKING:
    import pandas as pd


SUBJECTS = frozenset({"nsubj", "nsubjpass"})
# What shares the subject of the word above it: auxiliaries, and a verb joined by "and".
SHARING = frozenset({"aux", "auxpass", "conj"})


def cues_by_parse(sentences: Sequence[Sequence[str]], targets: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The cue of each target, one tuple of word indices for each sentence in order, () where the parse shows none.

    For a determiner, the noun that it belongs to; for a reflexive pronoun, the subject of the nearest verb above it
    that has one; for a verb or an auxiliary, the subject of its verb group, or of the verb that it is joined to by
    a conjunction.
    Raises DependencyError without an English parser.

    >>> list(cues_by_parse([["The", "dogs", "in", "this", "house", "are", "barking", "."]], [5]))
    [(1,)]
    """
    from spacy.tokens import Doc

    parser = english_parser()
    # Built from words, so that the parser cuts none again and its indices are ours.
    documents = (Doc(parser.vocab, words=list(words)) for words in sentences)
    for document, target in zip(parser.pipe(documents), targets, strict=True):
        yield _cue(document[target])


def with_parsed_cues(examples: ExampleSet) -> ExampleSet:
    """The same examples with the parse's cue as `parsed_cue`; raises DependencyError without an English parser."""
    cues = cues_by_parse([example.words for example in examples], [example.target for example in examples])
    parsed = tuple(replace(example, parsed_cue=cue) for example, cue in zip(examples, cues, strict=True))
    return replace(examples, examples=parsed)


def _cue(token: Any) -> tuple[int, ...]:
    if token.dep_ == "det":
        return (token.head.i,)
    if token.lower_.endswith(("self", "selves")):
        return next((subjects for ancestor in token.ancestors if (subjects := _subjects_of(ancestor))), ())
    return _subjects_of_group(token)


def _subjects_of_group(verb: Any) -> tuple[int, ...]:
    subjects = _subjects_of(verb)
    return _subjects_of_group(verb.head) if not subjects and verb.dep_ in SHARING else subjects


def _subjects_of(verb: Any) -> tuple[int, ...]:
    return tuple(child.i for child in verb.children if child.dep_ in SUBJECTS)


@dataclass(frozen=True)
class CueCount:
    """Of one paradigm: how often the parse finds the same cue, another word, or none."""

    paradigm: str
    parsed: int
    same: int
    other: int
    none: int


@dataclass(frozen=True)
class Disagreement:
    """One example in which the parse finds another cue; cues as words, empty where the parse finds none."""

    id: str
    paradigm: str
    text: str
    cue: str
    parsed_cue: str


@dataclass(frozen=True)
class CueCheck:
    """Counts by paradigm, the last of all together, and every example in which the two differ."""

    counts: tuple[CueCount, ...]
    disagreements: tuple[Disagreement, ...]

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table of the counts, one row per paradigm and one for all."""
        return frame_of(CueCount, self.counts)

    def disagreements_frame(self) -> "pd.DataFrame":
        """A pandas table of the examples in which rule and parse differ."""
        return frame_of(Disagreement, self.disagreements)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types."""
        return asdict(self)


def check_cues(examples: ExampleSet) -> CueCheck:
    """Parse each example and compare the parse's cue with the example's, which stays the one that is evaluated.

    Raises DependencyError without an English parser.

    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import limited
    >>> check_cues(limited(agreement_examples(), 2, 0)).counts[-1].parsed
    2
    """
    return compare_cues(with_parsed_cues(examples))


def compare_cues(examples: ExampleSet) -> CueCheck:
    """How often the parse of the examples that were parsed gives the same cue, and where it does not."""
    parsed = [example for example in examples if example.parsed_cue is not None]
    by_paradigm = {name: [example for example in parsed if example.paradigm == name] for name in examples.counts()}
    counts = tuple(_count(name, part) for name, part in (by_paradigm | {ALL: parsed}).items())
    return CueCheck(counts, tuple(_disagreement(example) for example in parsed if example.parsed_cue != example.cue))


def _disagreement(example: Example) -> Disagreement:
    rule, parse = (" ".join(example.words[index] for index in cue or ()) for cue in (example.cue, example.parsed_cue))
    return Disagreement(example.id, example.paradigm, example.text, rule, parse)


def _count(paradigm: str, parsed: Sequence[Example]) -> CueCount:
    same = sum(example.parsed_cue == example.cue for example in parsed)
    none = sum(not example.parsed_cue for example in parsed)
    return CueCount(paradigm, len(parsed), same, len(parsed) - same - none, none)
