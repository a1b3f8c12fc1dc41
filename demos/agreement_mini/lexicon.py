"""The words of the agreement grammar: who can do what to whom, and how each form is written.

No form is both a noun's and a verb's (``painting`` is a noun, so there is no verb ``paint``). ``that`` alone
has several uses: determiner, relative pronoun and conjunction.
"""

from functools import cache
from typing import Literal, NamedTuple

from tl_vzero.data.examples import Number
from tl_vzero.errors import InputError

Kind = Literal["person", "animal", "thing", "picture"]
Gender = Literal["male", "female", "any"]

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
FULL_STOP = "."


class Noun(NamedTuple):
    """A noun lexeme; a proper name has no plural."""

    singular: str
    plural: str | None
    kind: Kind
    gender: Gender

    def form(self, number: Number) -> str:
        """The noun as written in that number."""
        if number == "singular":
            return self.singular
        if self.plural is None:
            raise InputError(f"{self.singular!r} is a proper name and has no plural: ask for the singular")
        return self.plural


class Verb(NamedTuple):
    """A verb lexeme; past form and participle are the same for every verb of the grammar."""

    base: str
    third: str
    past: str
    gerund: str
    subjects: tuple[Kind, ...]
    object: Kind | None

    @property
    def marks_number(self) -> bool:
        """Whether a plural subject shows: ``the authors hurt`` may be the past, so ``hurt`` does not."""
        return self.base != self.past


_IRREGULAR_PLURALS = {
    "man": "men",
    "woman": "women",
    "child": "children",
    "wolf": "wolves",
    "mouse": "mice",
    "goose": "geese",
    "knife": "knives",
}


def _plural(noun: str) -> str:
    if noun in _IRREGULAR_PLURALS:
        return _IRREGULAR_PLURALS[noun]
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def _nouns(kind: Kind, gender: Gender, words: str) -> tuple[Noun, ...]:
    return tuple(Noun(word, _plural(word), kind, gender) for word in words.split())


def _names(gender: Gender, words: str) -> tuple[Noun, ...]:
    return tuple(Noun(word, None, "person", gender) for word in words.split())


def _verbs(subjects: str, object_kind: Kind | None, table: str) -> tuple[Verb, ...]:
    kinds = tuple(kind for kind in KINDS if kind in subjects.split())
    rows = (line.split() for line in table.strip().splitlines())
    return tuple(
        Verb(base, third, past, gerund, kinds, object_kind) for row in rows for base, third, past, gerund in [row]
    )


KINDS: tuple[Kind, ...] = ("person", "animal", "thing", "picture")

NOUNS: tuple[Noun, ...] = (
    *_nouns("person", "male", "man boy king uncle brother waiter actor monk prince son"),
    *_nouns("person", "female", "woman girl queen aunt sister waitress actress nun princess daughter"),
    *_nouns("person", "any", "author senator teacher doctor lawyer student artist singer dancer writer driver"),
    *_nouns("person", "any", "farmer pilot judge nurse guest customer child neighbor visitor professor manager"),
    *_nouns("person", "any", "editor baker sailor banker friend cousin"),
    *_nouns("animal", "any", "horse dog cat cow goat rabbit lion tiger wolf bird duck monkey fox pony mouse goose"),
    *_nouns(
        "thing",
        "any",
        "hat table chair book letter car bicycle boat lamp window door house garden bridge cup",
    ),
    *_nouns("thing", "any", "plate bottle box bag coat shirt shoe glove guitar piano clock mirror computer camera"),
    *_nouns("thing", "any", "newspaper apple cake candle carpet vase umbrella ladder basket curtain knife"),
    *_nouns("thing", "any", "museum hospital restaurant school library"),
    *_nouns(
        "picture",
        "any",
        "picture photograph painting drawing portrait statue story poem film song report legend",
    ),
)

NAMES: tuple[Noun, ...] = (
    *_names("male", "marcus carl robert peter david george thomas samuel william kevin paul simon daniel martin"),
    *_names("female", "anna julia maria helen laura paula susan alice emma clara nina diana sarah rachel"),
)

RELATIONAL_PERSONS = frozenset("uncle brother son aunt sister daughter guest neighbor friend cousin".split())
TOLD_PICTURES = frozenset("story poem film song report legend".split())

VERBS: tuple[Verb, ...] = (
    *_verbs(
        "person",
        "person",
        """
        admire admires admired admiring
        help helps helped helping
        praise praises praised praising
        trust trusts trusted trusting
        blame blames blamed blaming
        thank thanks thanked thanking
        respect respects respected respecting
        defend defends defended defending
        criticize criticizes criticized criticizing
        insult insults insulted insulting
        describe describes described describing
        avoid avoids avoided avoiding
        teach teaches taught teaching
        tease teases teased teasing
        protect protects protected protecting
        hurt hurts hurt hurting
        """,
    ),
    *_verbs(
        "person",
        "thing",
        """
        buy buys bought buying
        sell sells sold selling
        repair repairs repaired repairing
        lose loses lost losing
        find finds found finding
        carry carries carried carrying
        visit visits visited visiting
        notice notices noticed noticing
        """,
    ),
    *_verbs(
        "person",
        "picture",
        """
        discuss discusses discussed discussing
        finish finishes finished finishing
        enjoy enjoys enjoyed enjoying
        copy copies copied copying
        """,
    ),
    *_verbs(
        "person",
        "animal",
        """
        cure cures cured curing
        feed feeds fed feeding
        wash washes washed washing
        rescue rescues rescued rescuing
        """,
    ),
    *_verbs("person animal", "animal", "chase chases chased chasing\nfollow follows followed following"),
    *_verbs(
        "person animal thing picture",
        "person",
        """
        scare scares scared scaring
        annoy annoys annoyed annoying
        amuse amuses amused amusing
        bore bores bored boring
        impress impresses impressed impressing
        worry worries worried worrying
        confuse confuses confused confusing
        disturb disturbs disturbed disturbing
        delight delights delighted delighting
        surprise surprises surprised surprising
        """,
    ),
    *_verbs(
        "person animal",
        None,
        """
        sleep sleeps slept sleeping
        wait waits waited waiting
        return returns returned returning
        arrive arrives arrived arriving
        """,
    ),
    *_verbs(
        "person",
        None,
        """
        smile smiles smiled smiling
        laugh laughs laughed laughing
        work works worked working
        dance dances danced dancing
        complain complains complained complaining
        """,
    ),
    *_verbs(
        "animal thing picture",
        None,
        """
        vanish vanishes vanished vanishing
        disappear disappears disappeared disappearing
        """,
    ),
)

ADJECTIVES: dict[Kind, tuple[str, ...]] = {
    "person": tuple("old young famous popular tall kind clever tired angry happy sad quiet brave polite".split()),
    "animal": tuple("old young small big strange hungry tired quiet wild brave".split()),
    "thing": tuple("old new small big strange red blue green white heavy expensive cheap dusty wooden".split()),
    "picture": tuple("old new strange famous popular beautiful short sad modern expensive".split()),
}

NEUTRAL_DETERMINERS = ("the", "the", "the", "the", "some", "no", "my", "our", "your", "their", "his", "her")
SINGULAR_DETERMINERS = ("a", "every", "each", "another")
PLURAL_DETERMINERS = ("many", "several", "few", "two", "three")
DEMONSTRATIVES = (("this", "these"), ("that", "those"))

BE_PRESENT, BE_PAST = ("is", "are"), ("was", "were")
HAVE, DO = ("has", "have"), ("does", "do")
NEGATION = "not"
MODALS = ("could", "will", "might", "should")
REPORTING_VERBS = ("said", "thought", "knew", "believed")
ADVERBS = ("often", "never", "rarely", "usually", "always")
FINAL_ADVERBS = ("again", "today", "suddenly")
PREPOSITIONS = ("near", "behind", "beside")
OF, ABOUT = "of", "about"
WHO, THAT = "who", "that"
REFLEXIVES: dict[Gender, str] = {"male": "himself", "female": "herself"}
PLURAL_REFLEXIVE = "themselves"


@cache
def nouns_of(kinds: tuple[Kind, ...]) -> tuple[Noun, ...]:
    """The common nouns of those kinds."""
    return tuple(noun for noun in NOUNS if noun.kind in kinds)


@cache
def verbs_of(subject: Kind, objects: tuple[Kind | None, ...]) -> tuple[Verb, ...]:
    """The verbs which such a subject can have with an object of one of those kinds (None: no object)."""
    return tuple(verb for verb in VERBS if subject in verb.subjects and verb.object in objects)


def indefinite_article(next_word: str) -> str:
    """``a`` or ``an``; no noun or adjective of the lexicon is spelled against its sound."""
    return "an" if next_word[0] in "aeiou" else "a"


def all_words() -> list[str]:
    """Every written form of the grammar once, in alphabetical order, the full stop included."""
    forms = {FULL_STOP, "an", NEGATION, OF, ABOUT, WHO, THAT, PLURAL_REFLEXIVE, *REFLEXIVES.values()}
    for noun in (*NOUNS, *NAMES):
        forms.update(form for form in (noun.singular, noun.plural) if form)
    for verb in VERBS:
        forms.update((verb.base, verb.third, verb.past, verb.gerund))
    groups: tuple[tuple[str, ...], ...] = (
        *ADJECTIVES.values(),
        *DEMONSTRATIVES,
        *(NEUTRAL_DETERMINERS, SINGULAR_DETERMINERS, PLURAL_DETERMINERS),
        *(BE_PRESENT, BE_PAST, HAVE, DO, MODALS),
        *(REPORTING_VERBS, ADVERBS, FINAL_ADVERBS, PREPOSITIONS),
    )
    forms.update(word for group in groups for word in group)
    return sorted(forms)
