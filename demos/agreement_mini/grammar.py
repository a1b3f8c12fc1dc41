"""How the agreement sentences are put together, word by word, from the lexicon."""

from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Literal, get_args

from demos.agreement_mini import lexicon
from demos.agreement_mini.lexicon import Kind, Noun, Verb
from tl_vzero.data.examples import Number

Paradigm = Literal[
    "determiner_noun",
    "determiner_noun_adjective",
    "subject_verb",
    "subject_verb_pp",
    "subject_verb_relative",
    "reflexive",
]
PARADIGMS: tuple[Paradigm, ...] = get_args(Paradigm)
MASK = "[MASK]"


@dataclass(slots=True)
class Draft:
    """A sentence while it is being written, from left to right.

    ``cue_pairs`` are the combinations of the cue with the target and the attractors, ``other_pairs`` those of
    any other noun with the verb that agrees with it; both as lexemes.
    """

    rng: Random
    words: list[str] = field(default_factory=list)
    target: int = 0
    forms: tuple[str, str] = ("", "")
    cue: int = 0
    attractors: list[int] = field(default_factory=list)
    conflicting: bool = False
    cue_pairs: list[tuple[str, str]] = field(default_factory=list)
    other_pairs: list[tuple[str, str]] = field(default_factory=list)

    def say(self, *words: str) -> int:
        self.words.extend(words)
        return len(self.words) - 1

    def chance(self, probability: float) -> bool:
        return self.rng.random() < probability

    def say_target(self, number: Number, singular: str, plural: str) -> None:
        self.target = self.say(MASK)
        self.forms = (singular, plural) if number == "singular" else (plural, singular)


def write(paradigm: Paradigm, rng: Random, *, conflicting: bool) -> Draft:
    """One sentence of the paradigm; ``conflicting`` counts only where the paradigm has attractors."""
    draft = Draft(rng)
    if draft.chance(0.15):
        draft.say(rng.choice(lexicon.NAMES).singular, rng.choice(lexicon.REPORTING_VERBS), lexicon.THAT)
    _WRITERS[paradigm](draft, conflicting)
    draft.say(lexicon.FULL_STOP)
    return draft


def _write_determiner_noun(draft: Draft, conflicting: bool, *, adjective: bool = False) -> None:
    layout = draft.rng.choice(("object", "object", "place", "subject"))
    if layout == "subject":
        noun, number = _demonstrative_phrase(draft, lexicon.KINDS, adjective)
        _numberless_verb(draft, verb := _any_verb(draft, noun.kind))
        _object(draft, verb)
        return
    subject, number = _free_noun_phrase(draft, ("person",))
    verbs = lexicon.verbs_of("person", (None,) if layout == "place" else lexicon.KINDS)
    verb = draft.rng.choice(verbs)
    _embedded_verb(draft, subject, number, verb)
    if layout == "place":
        draft.say(draft.rng.choice(lexicon.PREPOSITIONS))
    _demonstrative_phrase(draft, (verb.object,) if verb.object else lexicon.KINDS, adjective)


def _write_determiner_noun_adjective(draft: Draft, conflicting: bool) -> None:
    _write_determiner_noun(draft, conflicting, adjective=True)


def _write_subject_verb(draft: Draft, conflicting: bool) -> None:
    noun, number = _cue_phrase(draft, lexicon.KINDS, name_share=0.1)
    _predicate(draft, noun, number)


def _write_subject_verb_pp(draft: Draft, conflicting: bool) -> None:
    noun, number = _cue_phrase(draft, lexicon.KINDS)
    _prepositional_attractors(draft, noun, number, conflicting)
    _predicate(draft, noun, number)


def _write_subject_verb_relative(draft: Draft, conflicting: bool) -> None:
    noun, number = _cue_phrase(draft, lexicon.KINDS)
    _relative_attractor(draft, noun, number, conflicting)
    _predicate(draft, noun, number)


def _write_reflexive(draft: Draft, conflicting: bool) -> None:
    bare = not conflicting and draft.chance(0.5)
    noun, number = _cue_phrase(draft, ("person",), name_share=0.3 if bare else 0.0)
    if not bare:
        write = draft.rng.choice((_prepositional_attractors, _relative_attractor))
        write(draft, noun, number, conflicting)
    _numberless_verb(draft, draft.rng.choice(lexicon.verbs_of("person", ("person",))))
    gender = draft.rng.choice(("male", "female")) if noun.gender == "any" else noun.gender
    draft.say_target(number, lexicon.REFLEXIVES[gender], lexicon.PLURAL_REFLEXIVE)
    draft.cue_pairs.append((noun.singular, "self"))
    _final_adverb(draft)


_WRITERS: dict[Paradigm, Callable[[Draft, bool], None]] = {
    "determiner_noun": _write_determiner_noun,
    "determiner_noun_adjective": _write_determiner_noun_adjective,
    "subject_verb": _write_subject_verb,
    "subject_verb_pp": _write_subject_verb_pp,
    "subject_verb_relative": _write_subject_verb_relative,
    "reflexive": _write_reflexive,
}


def _number(draft: Draft) -> Number:
    return draft.rng.choice(get_args(Number))


def _other(number: Number) -> Number:
    return "plural" if number == "singular" else "singular"


def _demonstrative_phrase(draft: Draft, kinds: tuple[Kind, ...], adjective: bool) -> tuple[Noun, Number]:
    """A masked demonstrative and its noun, which is the cue."""
    noun, number = draft.rng.choice(lexicon.nouns_of(kinds)), _number(draft)
    singular, plural = draft.rng.choice(lexicon.DEMONSTRATIVES)
    draft.say_target(number, singular, plural)
    if adjective:
        draft.say(draft.rng.choice(lexicon.ADJECTIVES[noun.kind]))
    draft.cue = draft.say(noun.form(number))
    draft.cue_pairs.append((noun.singular, singular))
    return noun, number


def _cue_phrase(draft: Draft, kinds: tuple[Kind, ...], name_share: float = 0.0) -> tuple[Noun, Number]:
    """The subject that the target agrees with, its number shown by the noun alone."""
    if draft.chance(name_share):
        noun = draft.rng.choice(lexicon.NAMES)
        draft.cue = draft.say(noun.singular)
        return noun, "singular"
    noun, number = draft.rng.choice(lexicon.nouns_of(kinds)), _number(draft)
    draft.cue = _common_noun_phrase(draft, noun, number, marked_share=0.0)
    return noun, number


def _common_noun_phrase(draft: Draft, noun: Noun, number: Number, marked_share: float) -> int:
    """Determiner, perhaps an adjective, noun; returns its index. A marked determiner shows the number."""
    marked = draft.chance(marked_share)
    singular, plural = lexicon.SINGULAR_DETERMINERS, lexicon.PLURAL_DETERMINERS
    determiner = draft.rng.choice(
        (singular if number == "singular" else plural) if marked else lexicon.NEUTRAL_DETERMINERS
    )
    rest = [noun.form(number)]
    if draft.chance(0.15):
        rest.insert(0, draft.rng.choice(lexicon.ADJECTIVES[noun.kind]))
    return draft.say(lexicon.indefinite_article(rest[0]) if determiner == "a" else determiner, *rest)


def _noun_phrase(draft: Draft, kinds: tuple[Kind, ...], number: Number, unlike: Noun | None = None) -> tuple[Noun, int]:
    """Any noun phrase of that number, names included. Returns the noun and its index."""
    if "person" in kinds and number == "singular" and draft.chance(0.4):
        name = draft.rng.choice(lexicon.NAMES)
        return name, draft.say(name.singular)
    while (noun := draft.rng.choice(lexicon.nouns_of(kinds))) == unlike:
        pass
    return noun, _common_noun_phrase(draft, noun, number, marked_share=0.4)


def _free_noun_phrase(draft: Draft, kinds: tuple[Kind, ...]) -> tuple[Noun, Number]:
    number = _number(draft)
    noun, _ = _noun_phrase(draft, kinds, number)
    return noun, number


def _attractor(draft: Draft, cue: Noun, kinds: tuple[Kind, ...], number: Number, cue_number: Number) -> Noun:
    noun, index = _noun_phrase(draft, kinds, number, unlike=cue)
    draft.attractors.append(index)
    draft.conflicting = draft.conflicting or number != cue_number
    draft.cue_pairs.append((cue.singular, noun.singular))
    return noun


def _prepositional_attractors(draft: Draft, cue: Noun, number: Number, conflicting: bool) -> None:
    """One prepositional phrase after the cue, seldom two; one attractor conflicts if the sentence does."""
    numbers = [_other(number) if conflicting else number]
    if draft.chance(0.15):
        numbers.insert(draft.rng.randrange(2), _number(draft) if conflicting else number)
    for i, attractor_number in enumerate(numbers):
        preposition, kinds = (
            _preposition(draft, cue) if i == 0 else (draft.rng.choice(lexicon.PREPOSITIONS), lexicon.KINDS)
        )
        draft.say(preposition)
        _attractor(draft, cue, kinds, attractor_number, number)


def _preposition(draft: Draft, noun: Noun) -> tuple[str, tuple[Kind, ...]]:
    """A preposition that suits the noun, with the kinds of noun it takes."""
    if noun.kind == "picture" and draft.chance(0.8):
        if noun.singular in lexicon.TOLD_PICTURES:
            return lexicon.ABOUT, lexicon.KINDS
        return lexicon.OF, ("person", "animal", "thing")
    if noun.singular in lexicon.RELATIONAL_PERSONS and draft.chance(0.6):
        return lexicon.OF, ("person",)
    return draft.rng.choice(lexicon.PREPOSITIONS), lexicon.KINDS


def _relative_attractor(draft: Draft, cue: Noun, number: Number, conflicting: bool) -> None:
    """A relative clause after the cue, the cue its object or its subject."""
    attractor_number = _other(number) if conflicting else number
    draft.say(lexicon.WHO if cue.kind == "person" else lexicon.THAT)
    if draft.chance(0.6):
        agents = ("person",) if cue.kind != "person" or draft.chance(0.8) else lexicon.KINDS
        agent = _attractor(draft, cue, agents, attractor_number, number)
        _embedded_verb(draft, agent, attractor_number, draft.rng.choice(lexicon.verbs_of(agent.kind, (cue.kind,))))
        return
    verb = draft.rng.choice(lexicon.verbs_of(cue.kind, lexicon.KINDS))
    _numberless_verb(draft, verb)
    _attractor(draft, cue, (verb.object,) if verb.object else lexicon.KINDS, attractor_number, number)


def _any_verb(draft: Draft, subject: Kind) -> Verb:
    objects = (None,) if draft.chance(0.3) else lexicon.KINDS
    return draft.rng.choice(lexicon.verbs_of(subject, objects))


def _numberless_verb(draft: Draft, verb: Verb) -> None:
    if draft.chance(0.6):
        draft.say(verb.past)
    else:
        draft.say(draft.rng.choice(lexicon.MODALS), verb.base)


def _embedded_verb(draft: Draft, subject: Noun, number: Number, verb: Verb) -> None:
    """A verb of a noun that is not the cue: it may show that noun's number."""
    if draft.chance(0.5):
        _numberless_verb(draft, verb)
        return
    draft.say(verb.third if number == "singular" else verb.base)
    draft.other_pairs.append((subject.singular, verb.base))


def _object(draft: Draft, verb: Verb) -> None:
    if verb.object is None:
        _final_adverb(draft)
    else:
        _free_noun_phrase(draft, (verb.object,))


def _final_adverb(draft: Draft) -> None:
    if draft.chance(0.3):
        draft.say(draft.rng.choice(lexicon.FINAL_ADVERBS))


def _predicate(draft: Draft, subject: Noun, number: Number) -> None:
    """The masked verb that agrees with the cue, and what follows it."""
    write = draft.rng.choices((_be, _have, _do, _main_verb), weights=(45, 15, 15, 25))[0]
    draft.cue_pairs.append((subject.singular, write(draft, subject, number)))


def _be(draft: Draft, subject: Noun, number: Number) -> str:
    draft.say_target(number, *(lexicon.BE_PRESENT if draft.chance(0.7) else lexicon.BE_PAST))
    if draft.chance(0.15):
        draft.say(draft.rng.choice((*lexicon.ADVERBS, lexicon.NEGATION)))
    if draft.chance(0.3):
        draft.say(draft.rng.choice(lexicon.ADJECTIVES[subject.kind]))
    else:
        draft.say((verb := _any_verb(draft, subject.kind)).gerund)
        _object(draft, verb)
    return "be"


def _have(draft: Draft, subject: Noun, number: Number) -> str:
    draft.say_target(number, *lexicon.HAVE)
    if draft.chance(0.15):
        draft.say(draft.rng.choice((*lexicon.ADVERBS, lexicon.NEGATION)))
    draft.say((verb := _any_verb(draft, subject.kind)).past)
    _object(draft, verb)
    return "have"


def _do(draft: Draft, subject: Noun, number: Number) -> str:
    draft.say_target(number, *lexicon.DO)
    draft.say(lexicon.NEGATION, (verb := _any_verb(draft, subject.kind)).base)
    _object(draft, verb)
    return "do"


def _main_verb(draft: Draft, subject: Noun, number: Number) -> str:
    while not (verb := _any_verb(draft, subject.kind)).marks_number:
        pass
    draft.say_target(number, verb.third, verb.base)
    _object(draft, verb)
    return verb.base
