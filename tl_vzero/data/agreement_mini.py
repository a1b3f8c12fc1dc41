"""Number-agreement sentences from a small English grammar, the cue of each target known by construction.

Each sentence has one target, a word whose form agrees in number with one noun, its cue. Nouns between the two
are attractors; a sentence is conflicting if some attractor has the other number. No word but the cue tells
which number is right: its determiner has one form for both, and so have the verbs of a relative clause whose
subject it is (past or modal).

Held-out combinations
    A *combination* is a pair of lexemes, whatever their number: the cue's with the target's (``be``,
    ``have``, ``do``, the base form of a main verb, ``this`` or ``that`` for determiners, ``self`` for
    reflexives), or the cue's with an attractor's, names included. A fixed hash puts one combination in five
    aside, for all paradigms and both numbers.

    - *train*: no combination of the sentence is put aside, nor is that of any other noun with the verb that
      agrees with it (``the senator admires`` in a relative clause counts as ``senator`` with ``admire``).
    - *held_out*: every combination of the cue, with the target and with each attractor, is put aside.

    So no held-out combination occurs in training, but every noun does, in both numbers, in other ones.
    Two nouns that merely occur together (the cue and an object, say) are not a combination.
"""

import hashlib
import json
from collections import Counter
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from random import Random
from typing import Literal, get_args

from tl_vzero.choices import one_of
from tl_vzero.data import lexicon
from tl_vzero.data.examples import Example, ExampleSet, FilterReport, Stage, number_of
from tl_vzero.data.grammar import PARADIGMS, Draft, Paradigm, write
from tl_vzero.data.lexicon import Number
from tl_vzero.errors import InputError, unknown_name

Split = Literal["train", "held_out"]
SPLITS: tuple[Split, ...] = get_args(Split)
HELD_OUT_SHARE = 0.2
HELD_OUT_SIZE = 500
HELD_OUT_SEED = 0


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


def generate(n: int, *, seed: int, split: Split, paradigm: Paradigm | None = None) -> list[AgreementSentence]:
    """Sentences of the grammar, the same for the same arguments on any machine.

    Returns ``n`` sentences that take the paradigms in turn (or are all of the one named). Where a paradigm
    has attractors, every second sentence is conflicting; of the other reflexives, half have no attractor.
    What each ``split`` holds is said at the top of this module.
    Raises InputError, a ValueError, for ``n`` below 1 and for an unknown split or paradigm.

    >>> generate(2, seed=0, split="train", paradigm="subject_verb_pp")[0].conflicting
    True
    >>> [sentence.paradigm for sentence in generate(3, seed=0, split="held_out")]
    ['determiner_noun', 'determiner_noun_adjective', 'subject_verb']
    """
    if n < 1:
        raise InputError(f"n is {n}: expected a number of sentences of at least 1")
    one_of("split", split, SPLITS)
    if paradigm is not None and paradigm not in PARADIGMS:
        raise unknown_name("paradigm", paradigm, PARADIGMS)
    chosen = PARADIGMS if paradigm is None else (paradigm,)
    rng = Random(f"{seed} {split} {paradigm}")
    return [_sentence(rng, split, chosen[i % len(chosen)], conflicting=i // len(chosen) % 2 == 0) for i in range(n)]


def words_of(sentence: AgreementSentence) -> list[str]:
    """The words that the sentence's indices count.

    Returns the words of the text in order, the final ``.`` as the last one.

    >>> words_of(AgreementSentence("the hats [MASK] old.", 2, "are", "is", (1,), (), False, "subject_verb"))
    ['the', 'hats', '[MASK]', 'old', '.']
    """
    return [*sentence.text.removesuffix(lexicon.FULL_STOP).split(), lexicon.FULL_STOP]


def vocabulary() -> list[str]:
    """All tokens of a model of these sentences, in the order of their ids.

    Returns the special tokens, then every word form of the grammar and ``.``, alphabetically.

    >>> vocabulary()[:6]
    ['[PAD]', '[UNK]', '[CLS]', '[SEP]', '[MASK]', '.']
    """
    return [*lexicon.SPECIAL_TOKENS, *lexicon.all_words()]


def load_held_out() -> list[AgreementSentence]:
    """The held-out sentences that are packaged with the embedded model.

    Returns ``generate(HELD_OUT_SIZE, seed=HELD_OUT_SEED, split="held_out")`` as stored beside the model.
    Raises FileNotFoundError if the package was installed without its assets.

    >>> len(load_held_out())
    500
    """
    stored = files("tl_vzero") / "assets" / "agreement-mini" / "held_out.jsonl"
    return [_from_record(json.loads(line)) for line in stored.read_text(encoding="utf-8").splitlines()]


def is_held_out(cue: str, other: str) -> bool:
    """Whether the combination of a cue lexeme with a target or attractor lexeme is kept out of training.

    Returns the same answer on any machine: the SHA-256 hash of the two lexemes decides.

    >>> is_held_out("picture", "be")
    False
    """
    return _hash_share(cue, other) < HELD_OUT_SHARE


@cache
def _hash_share(cue: str, other: str) -> float:
    digest = hashlib.sha256(f"{cue} {other}".encode()).digest()
    return int.from_bytes(digest[:6], "big") / 2**48


def _from_record(record: dict[str, object]) -> AgreementSentence:
    indices = {key: tuple(value) for key, value in record.items() if isinstance(value, list)}
    return AgreementSentence(**{**record, **indices})  # type: ignore[arg-type]


def _sentence(rng: Random, split: Split, paradigm: Paradigm, *, conflicting: bool) -> AgreementSentence:
    while True:
        draft = write(paradigm, rng, conflicting=conflicting)
        if _belongs_to(draft, split):
            return _finished(draft, paradigm)


def _belongs_to(draft: Draft, split: Split) -> bool:
    if split == "held_out":
        return all(is_held_out(*pair) for pair in draft.cue_pairs)
    return not any(is_held_out(*pair) for pair in draft.cue_pairs + draft.other_pairs)


def _finished(draft: Draft, paradigm: Paradigm) -> AgreementSentence:
    return AgreementSentence(
        text=" ".join(draft.words[:-1]) + draft.words[-1],
        target=draft.target,
        good=draft.forms[0],
        bad=draft.forms[1],
        cues=(draft.cue,),
        attractors=tuple(draft.attractors),
        conflicting=draft.conflicting,
        paradigm=paradigm,
    )


# The package's own held-out agreement sentences as examples: what every evaluation uses without other data.

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
