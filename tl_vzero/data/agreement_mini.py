"""The embedded model's own held-out agreement sentences: what every evaluation uses without other data.

The grammar that they come from, and the training of the model, are in `demos/agreement_mini/` of the repository.
"""

import json
from dataclasses import dataclass
from importlib.resources import files

from tl_vzero.data.examples import Example, ExampleSet, Number, number_of
from tl_vzero.files import from_plain

FULL_STOP = "."
# Where the ending -s misleads about the sentences' nouns and names; a test holds the rule against the whole lexicon.
PLURALS_WITHOUT_S = frozenset({"children", "geese", "men", "mice", "women"})
SINGULARS_IN_S = frozenset({"actress", "marcus", "princess", "thomas", "waitress"})


@dataclass(frozen=True, slots=True)
class AgreementSentence:
    """One sentence with its target masked; indices count words, the final ``.`` as a word of its own."""

    text: str
    target: int
    good: str
    bad: str
    cues: tuple[int, ...]
    attractors: tuple[int, ...]
    conflicting: bool
    paradigm: str


def words_of(sentence: AgreementSentence) -> list[str]:
    """The words that the sentence's indices count, the final ``.`` as the last one.

    >>> words_of(AgreementSentence("the hats [MASK] old.", 2, "are", "is", (1,), (), False, "subject_verb"))
    ['the', 'hats', '[MASK]', 'old', '.']
    """
    return [*sentence.text.removesuffix(FULL_STOP).split(), FULL_STOP]


def load_held_out() -> list[AgreementSentence]:
    """The 500 held-out sentences that are packaged with the embedded model.

    Raises FileNotFoundError if the package was installed without its assets.

    >>> len(load_held_out())
    500
    """
    stored = files("tl_vzero") / "assets" / "agreement-mini" / "held_out.jsonl"
    records = map(json.loads, stored.read_text(encoding="utf-8").splitlines())
    return [from_plain(AgreementSentence, record) for record in records]


def agreement_examples() -> ExampleSet:
    """The 500 held-out sentences of the embedded model's grammar; cue and attractors as the grammar put them.

    Nouns between cue and target that have the cue's number are no attractors here: they do not mislead.

    >>> agreement_examples().counts()["subject_verb_pp"]
    83
    """
    return ExampleSet.as_read(_example(row, sentence) for row, sentence in enumerate(load_held_out()))


def noun_number(noun: str) -> Number:
    """The grammatical number of a noun or name of these sentences.

    >>> noun_number("wolves"), noun_number("mice"), noun_number("marcus")
    ('plural', 'plural', 'singular')
    """
    in_s = noun.endswith("s") and noun not in SINGULARS_IN_S
    return "plural" if in_s or noun in PLURALS_WITHOUT_S else "singular"


def _example(row: int, sentence: AgreementSentence) -> Example:
    words = tuple(words_of(sentence))
    number = number_of(sentence.good, sentence.bad)
    return Example(
        id=f"agreement-{row}",
        paradigm=sentence.paradigm,
        words=(*words[: sentence.target], sentence.good, *words[sentence.target + 1 :]),
        target=sentence.target,
        good=sentence.good,
        bad=sentence.bad,
        cue=sentence.cues,
        cue_source="template",
        attractor=tuple(index for index in sentence.attractors if noun_number(words[index]) != number),
        pair=str(row),
        number=number,
    )
