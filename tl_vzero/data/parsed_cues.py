"""Cues by spaCy's dependency parse, for free text, and beside the templates of BLiMP.

The parser reads the words as they are given, so that its indices are ours.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from tl_vzero.data.examples import ALL, ExampleSet
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
    documents = (Doc(parser.vocab, words=list(words)) for words in sentences)
    for document, target in zip(parser.pipe(documents), targets, strict=True):
        yield _cue(document[target])


def with_parsed_cues(examples: ExampleSet) -> ExampleSet:
    """The same examples, each with the cue that the parse finds as `parsed_cue`; `cue` stays.

    Raises DependencyError without an English parser.
    """
    parsed = cues_by_parse([each.words for each in examples], [each.target for each in examples])
    return replace(
        examples,
        examples=tuple(replace(each, parsed_cue=cue) for each, cue in zip(examples, parsed, strict=True)),
    )


def cue_agreement(examples: ExampleSet) -> "pd.DataFrame":
    """How often template and parse agree, as a pandas table of counts.

    A row for each paradigm and one for all; columns `parsed` (examples that were parsed), `same`, `other` (the parse
    finds another word), `none` (it finds no cue).
    """
    import pandas as pd

    rows: dict[str, dict[str, int]] = {}
    for paradigm in examples.counts():
        parsed = [each for each in examples if each.paradigm == paradigm and each.parsed_cue is not None]
        same = sum(each.parsed_cue == each.cue for each in parsed)
        none = sum(not each.parsed_cue for each in parsed)
        rows[paradigm] = {"parsed": len(parsed), "same": same, "other": len(parsed) - same - none, "none": none}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["parsed", "same", "other", "none"]).astype("int64")
    table.index.name = "paradigm"
    table.loc[ALL] = table.sum()
    return table


def cue_disagreements(examples: ExampleSet) -> "pd.DataFrame":
    """The examples in which the parse finds another cue or none: id, paradigm, text, cue and parsed cue as words."""
    import pandas as pd

    columns = ["id", "paradigm", "text", "cue", "parsed_cue"]
    rows = [
        [each.id, each.paradigm, each.text, *(" ".join(each.words[i] for i in cue) for cue in (each.cue, other))]
        for each in examples
        if (other := each.parsed_cue) is not None and other != each.cue
    ]
    return pd.DataFrame(rows, columns=columns)


def _cue(token: Any) -> tuple[int, ...]:
    if token.dep_ == "det":
        return (token.head.i,)
    if token.lower_.endswith(("self", "selves")):
        return _nearest_subject(token)
    return _subjects_of_group(token)


def _nearest_subject(token: Any) -> tuple[int, ...]:
    for ancestor in token.ancestors:
        if subjects := _subjects_of(ancestor):
            return subjects
    return ()


def _subjects_of_group(verb: Any) -> tuple[int, ...]:
    own = _subjects_of(verb)
    return _subjects_of_group(verb.head) if not own and verb.dep_ in SHARING else own


def _subjects_of(verb: Any) -> tuple[int, ...]:
    return tuple(child.i for child in verb.children if child.dep_ in SUBJECTS)


# Cues by the rule of their source beside those of a dependency parse: how often they agree, and where they do not.


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
        """A pandas table of the counts, a row for each paradigm and one for all."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self.counts])

    def disagreements_frame(self) -> "pd.DataFrame":
        """A pandas table of the examples in which rule and parse differ."""
        import pandas as pd

        columns = ["id", "paradigm", "text", "cue", "parsed_cue"]
        return pd.DataFrame([asdict(each) for each in self.disagreements], columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types."""
        return {
            "counts": [asdict(each) for each in self.counts],
            "disagreements": [asdict(each) for each in self.disagreements],
        }


def check_cues(examples: ExampleSet) -> CueCheck:
    """Parse each example and compare the cue found with its own, which stays the one that is evaluated.

    Raises DependencyError without an English parser.

    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import limited
    >>> check_cues(limited(agreement_examples(), 2, 0)).counts[-1].parsed
    2
    """
    parsed = with_parsed_cues(examples)
    return CueCheck(
        tuple(CueCount(**row) for row in _records(cue_agreement(parsed).reset_index())),
        tuple(Disagreement(**row) for row in _records(cue_disagreements(parsed))),
    )


def _records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
