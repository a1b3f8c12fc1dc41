"""The package's own held-out agreement sentences as examples: what every evaluation uses without other data."""

from collections import Counter

from tl_vzero.data import lexicon
from tl_vzero.data.agreement import AgreementSentence, load_held_out, words_of
from tl_vzero.data.examples import Example
from tl_vzero.data.filtering import ExampleSet, FilterReport, Stage
from tl_vzero.data.lexicon import Number
from tl_vzero.data.number import number_of

_PLURALS = frozenset(noun.plural for noun in lexicon.NOUNS)


def agreement_examples() -> ExampleSet:
    """The 500 held-out sentences of the embedded model's grammar; cue and attractors as the grammar put them.

    Nouns between cue and target that have the cue's number are no attractors here: they do not mislead.

    >>> agreement_examples().counts()["subject_verb_pp"]
    83
    """
    examples = tuple(_example(row, sentence) for row, sentence in enumerate(load_held_out()))
    counts = dict(Counter(example.paradigm for example in examples))
    return ExampleSet(examples, FilterReport((Stage("read", counts),)))


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
        attractor=tuple(index for index in sentence.attractors if _number_of_noun(words[index]) != number),
        pair=str(row),
        number=number,
    )


def _number_of_noun(word: str) -> Number:
    return "plural" if word in _PLURALS else "singular"
