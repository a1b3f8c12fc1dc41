"""Cues of BLiMP sentences by the template that they were generated from: rules on the surface, no parser.

Indices count words after contractions are written out. Where a noun is a compound ("college campuses"), the cue is
its last word, the one with the ending.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

from tl_vzero.data.sentence_text import CLOSING_MARKS
from tl_vzero.errors import InputError

DETERMINERS = frozenset("a an the this that these those some many most all every each no".split())
DEMONSTRATIVES = frozenset({"this", "that", "these", "those"})
LINKS = frozenset({"of", "about"})
QUANTIFIER = ("a", "lot", "of")


@dataclass(frozen=True, slots=True)
class TemplateCue:
    """The cue's words, and the nouns between cue and target that have the other number."""

    cue: tuple[int, ...]
    attractor: tuple[int, ...] = ()


def cue_by_template(paradigm: str, words: Sequence[str], target: int) -> TemplateCue:
    """The cue of a BLiMP sentence.

    - ana: the head of the noun phrase at the start of the sentence
    - dna, dnaa: the head of the noun phrase that the determiner begins and the sentence ends with
    - darn: the noun before the first "of" or "about"; the noun before the verb is its attractor
    - rpsv: the noun before the verb

    "a lot of" is a determiner. Raises InputError where the sentence is not of its paradigm's template.

    >>> cue_by_template("darn", "The pictures of a lot of hats are old .".split(), 7)
    TemplateCue(cue=(1,), attractor=(6,))
    """
    return _RULES[paradigm](tuple(words), target)


def _head_of_first_phrase(words: tuple[str, ...], target: int) -> TemplateCue:
    if not words[target].lower().endswith(("self", "selves")):
        raise InputError(f"the target {words[target]!r} is no reflexive pronoun")
    head = _after_determiner(words)
    # A name of several words: Harvard University.
    while head + 1 < target and words[head][0].isupper() and words[head + 1][0].isupper():
        head += 1
    if head >= target:
        raise InputError("no noun phrase before the target")
    return TemplateCue((head,))


def _after_determiner(words: tuple[str, ...]) -> int:
    if _is_quantifier(words, 0):
        return len(QUANTIFIER)
    return int(words[0].lower() in DETERMINERS)


def _is_quantifier(words: tuple[str, ...], start: int) -> bool:
    return tuple(word.lower() for word in words[start : start + len(QUANTIFIER)]) == QUANTIFIER


def _head_of_last_phrase(words: tuple[str, ...], target: int) -> TemplateCue:
    if words[target].lower() not in DEMONSTRATIVES:
        raise InputError(f"the target {words[target]!r} is no demonstrative")
    last = max(index for index, word in enumerate(words) if word.strip(CLOSING_MARKS))
    if last <= target:
        raise InputError("no noun after the target")
    return TemplateCue((last,))


def _noun_before_link(words: tuple[str, ...], target: int) -> TemplateCue:
    for index in range(1, target - 1):
        of_quantifier = index >= 2 and _is_quantifier(words, index - 2)
        if words[index].lower() in LINKS and not of_quantifier:
            return TemplateCue((index - 1,), (target - 1,))
    raise InputError(f"no {' or '.join(sorted(LINKS))} with a noun on either side before the target")


def _noun_before_target(words: tuple[str, ...], target: int) -> TemplateCue:
    if target <= _after_determiner(words):
        raise InputError("no noun before the target")
    return TemplateCue((target - 1,))


_RULES: Mapping[str, Callable[[tuple[str, ...], int], TemplateCue]] = MappingProxyType(
    {
        "ana": _head_of_first_phrase,
        "dna": _head_of_last_phrase,
        "dnaa": _head_of_last_phrase,
        "darn": _noun_before_link,
        "rpsv": _noun_before_target,
    }
)
