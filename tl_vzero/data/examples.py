"""One sentence of an evaluation: a target word, the cues that decide its form, and what competes with them."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Literal, get_args, overload

from tl_vzero.choices import one_of
from tl_vzero.errors import InputError, escaped

if TYPE_CHECKING:
    import pandas as pd


Number = Literal["singular", "plural"]

# The grammatical number that a target's form shows, read off the pair of its forms.

SINGULAR = frozenset({"is", "was", "has", "does", "this", "that", "himself", "herself", "itself", "myself", "yourself"})
PLURAL = frozenset({"are", "were", "have", "do", "these", "those", "themselves", "ourselves", "yourselves"})


def number_of(good: str, bad: str | None) -> Number | None:
    """The number of `good`: by a list of forms, or, for a verb, by which of the two has the ending -s.

    Returns None where neither says.

    >>> number_of("scares", "scare"), number_of("were", "is"), number_of("cat", "dog")
    ('singular', 'plural', None)
    """
    right, wrong = good.lower(), None if bad is None else bad.lower()
    if right in SINGULAR or (wrong is not None and right not in PLURAL and _third_person_of(right, wrong)):
        return "singular"
    return "plural" if right in PLURAL or (wrong is not None and _third_person_of(wrong, right)) else None


def _third_person_of(form: str, base: str) -> bool:
    return form in (f"{base}s", f"{base}es") or (base.endswith("y") and form == f"{base[:-1]}ies")


# Sentences as words and back: where words end, and the contractions that hide one word in another.

CANNOT = ("cannot", "can not")

CLOSING_MARKS = ".,;:!?"
_CLOSING = re.compile(rf"^(.*[^{CLOSING_MARKS}])([{CLOSING_MARKS}]+)$")
_NEGATED = re.compile(r"^(?P<verb>.+)n['’]t$", re.IGNORECASE)
_IRREGULAR = {"wo": "will", "sha": "shall"}  # what is left without "n't" is no verb
_AMBIGUOUS = {"ai"}  # "ain't" stands for am, is, are, has and have


def split_words(text: str) -> tuple[str, ...]:
    """The words of a sentence; closing punctuation is a word of its own.

    >>> split_words("Susan's dogs, they bark.")
    ("Susan's", 'dogs', ',', 'they', 'bark', '.')
    """
    return tuple(word for chunk in text.split() for word in _without_closing_marks(chunk))


def word_of_chunk(text: str) -> tuple[int, ...]:
    """For each chunk between spaces, the index of its word as `split_words` counts.

    >>> word_of_chunk("The dogs, they bark.")
    (0, 1, 3, 4)
    """
    lengths = [len(_without_closing_marks(chunk)) for chunk in text.split()]
    return tuple(accumulate(lengths, initial=0))[:-1]


def _without_closing_marks(chunk: str) -> tuple[str, ...]:
    closed = _CLOSING.match(chunk)
    return (chunk,) if closed is None else (closed[1], closed[2])


def write_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Words as running text, closing punctuation without a space before it; where each begins and ends, in characters.

    >>> write_words(["Dogs", "bark", "."])
    ('Dogs bark.', [(0, 4), (5, 9), (9, 10)])
    """
    text, spans = "", []
    for word in words:
        if text and word.strip(CLOSING_MARKS):
            text += " "
        spans.append((len(text), len(text) + len(word)))
        text += word
    return text, spans


def expand_contractions(words: Sequence[str], *, cannot: str = "cannot") -> tuple[str, ...]:
    """Write negated verbs out, so that "isn't" and "aren't" differ in the verb alone.

    Returns the words with each "n't" as a word "not"; "can't" becomes one word or two, as `cannot` says. Other
    contractions stay: "'s" may be a possessive.
    Raises InputError for one that stands for several verbs (ain't).

    >>> expand_contractions(["Dogs", "won't", "bark"])
    ('Dogs', 'will', 'not', 'bark')
    """
    return tuple(part for word in words for part in _expanded(word, cannot))


def _expanded(word: str, cannot: str) -> tuple[str, ...]:
    negated = _NEGATED.match(word)
    if negated is None:
        return (word,)
    verb = negated["verb"]
    if verb.lower() in _AMBIGUOUS:
        raise InputError(f"the contraction {word!r} stands for several verbs: expected it written out")
    if verb.lower() == "ca":
        return tuple(_cased_like(word, cannot).split())
    return (_cased_like(word, _IRREGULAR.get(verb.lower(), verb)), "not")


def _cased_like(word: str, replacement: str) -> str:
    return replacement[0].upper() + replacement[1:] if word[0].isupper() else replacement


CueSource = Literal["template", "spacy", "given"]
Half = Literal["train", "test"]
HALVES: tuple[Half, ...] = get_args(Half)


@dataclass(frozen=True, slots=True)
class Example:
    """A sentence in words, its target in the right form. All indices count words from 0, punctuation included.

    - `good`, `bad`: the target's right form and, where there is one, the wrong form of the minimal pair
    - `cue`: the words that decide between the two; `cue_source` says how they were found
    - `attractor`: nouns that compete with the cue and have the other number; empty where there are none, and
      where the source of the sentences does not tell
    - `number`: what the right form shows; None where it cannot be told
    - `parsed_cue`: what the dependency parse says beside; None if nothing was parsed, () if it finds no cue
    - `pair`: the minimal pair within the paradigm; examples of one pair stay in one half

    Raises InputError for an index outside the sentence, no cue, a cue or an attractor that is the target itself, and
    a target that is not `good`.

    >>> Example("s-0", "s", ("Dogs", "bark", "."), target=1, good="bark", bad="barks", cue=(0,), cue_source="given")
    Example('s-0': 'Dogs [bark|barks].', cue 'Dogs')
    """

    id: str
    paradigm: str
    words: tuple[str, ...]
    target: int
    good: str
    bad: str | None
    cue: tuple[int, ...]
    cue_source: CueSource
    attractor: tuple[int, ...] = ()
    pair: str = ""
    number: Number | None = None
    split: Half | None = None
    parsed_cue: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        for name, indices in (("target", (self.target,)), ("cue", self.cue), ("attractor", self.attractor)):
            for index in indices:
                if not 0 <= index < len(self.words):
                    expected = f"expected 0 to {len(self.words) - 1}, counting words"
                    raise InputError(f"{self.id} has {name} {index} outside the sentence {self.text!r}: {expected}")
        if not self.cue:
            raise InputError(f"{self.id} has no cue: expected the index of at least one word")
        if self.target in (*self.cue, *self.attractor):
            raise InputError(f"{self.id} has its target, word {self.target}, as cue or attractor: expected other words")
        if self.words[self.target] != self.good:
            raise InputError(f"{self.id} has {self.words[self.target]!r} at its target: expected {self.good!r}, `good`")
        if self.good == self.bad:
            raise InputError(f"{self.id} has {self.good!r} as good and bad: expected two forms")

    @property
    def text(self) -> str:
        """The sentence with the right form."""
        return self.with_target(self.good)

    def with_target(self, word: str) -> str:
        """The sentence with another word, or a mask token, at the target."""
        return write_words(self.words_with(word))[0]

    def words_with(self, word: str) -> tuple[str, ...]:
        """The words with another one at the target."""
        return (*self.words[: self.target], word, *self.words[self.target + 1 :])

    def __repr__(self) -> str:
        forms = self.good if self.bad is None else f"{self.good}|{self.bad}"
        cue = " ".join(self.words[index] for index in self.cue)
        return f"Example({self.id!r}: {self.with_target(f'[{forms}]')!r}, cue {cue!r})"


# Examples, and the account of how many were left after each filter and why the others were not.

ALL = "all"


@dataclass(frozen=True, slots=True)
class Stage:
    """A filter by its name, and how many of each paradigm were left after it."""

    name: str
    counts: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Skipped:
    """One example that a filter took out, and the reason."""

    id: str
    paradigm: str
    stage: str
    reason: str

    def to_dict(self) -> dict[str, str]:
        """The example and the reason as plain JSON types."""
        return {"id": self.id, "paradigm": self.paradigm, "reason": self.reason}


@dataclass(frozen=True, slots=True)
class FilterReport:
    """The filters in their order; the first stage counts what was read."""

    stages: tuple[Stage, ...]
    skipped: tuple[Skipped, ...] = ()

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table of counts: one row per paradigm and one for all, one column per stage."""
        import pandas as pd

        table = pd.DataFrame({stage.name: pd.Series(dict(stage.counts), dtype="int64") for stage in self.stages})
        table.index.name = "paradigm"
        table.loc[ALL] = table.sum()
        return table

    def skipped_frame(self) -> "pd.DataFrame":
        """A pandas table of what was taken out: id, paradigm, stage, reason."""
        return frame_of(Skipped, self.skipped)


@dataclass(frozen=True, repr=False)
class ExampleSet(Sequence[Example]):
    """Examples in the order of their source, with the report of the filters they passed.

    `split_seed` is the seed of the split into halves; None if there is no split, or the source gave it.
    """

    examples: tuple[Example, ...]
    report: FilterReport
    split_seed: int | None = None

    @classmethod
    def as_read(cls, examples: Iterable[Example]) -> "ExampleSet":
        """Examples that no filter has seen; the report's one stage counts them."""
        read = tuple(examples)
        counts = dict(Counter(example.paradigm for example in read))
        return cls(read, FilterReport((Stage("read", counts),)))

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        return self.examples[index]

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        counts = ", ".join(f"{paradigm}: {count}" for paradigm, count in self.counts().items())
        return escaped(f"ExampleSet({len(self)} examples; {counts})")

    def counts(self) -> dict[str, int]:
        """How many examples each paradigm has, in the order of their first example."""
        return dict(Counter(example.paradigm for example in self.examples))

    def half(self, split: str) -> tuple[Example, ...]:
        """The examples of one half.

        Raises InputError for an unknown half, and where the examples were never split.
        """
        one_of("half", split, HALVES)
        if all(example.split is None for example in self.examples):
            raise InputError("these examples have no halves: expected split_in_halves(examples, seed=...) before")
        return tuple(example for example in self.examples if example.split == split)

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table, one row per example, with all its fields."""
        return frame_of(Example, self.examples)

    def filtered(self, stage: str, why_not: Callable[[Example], str | None]) -> "ExampleSet":
        """The examples for which `why_not` gives no reason; the others are listed in the report with theirs."""
        reasons = [(one, why_not(one)) for one in self.examples]
        skipped = [Skipped(one.id, one.paradigm, stage, reason) for one, reason in reasons if reason is not None]
        return self.after(stage, [one for one, reason in reasons if reason is None], skipped)

    def after(self, stage: str, left: Sequence[Example], skipped: Iterable[Skipped] = ()) -> "ExampleSet":
        """The examples that a filter left; the report has one more stage."""
        counts = Counter(example.paradigm for example in left)
        # A paradigm of which nothing is left still counts, with 0.
        of_stage = Stage(stage, {paradigm: counts[paradigm] for paradigm in self.report.stages[0].counts})
        report = FilterReport((*self.report.stages, of_stage), (*self.report.skipped, *skipped))
        return replace(self, examples=tuple(left), report=report)


def frame_of(kind: Any, rows: Sequence[Any]) -> "pd.DataFrame":
    """A pandas table of dataclasses of one kind, a column per field, also where there is no row."""
    import pandas as pd

    return pd.DataFrame([asdict(row) for row in rows], columns=[field.name for field in fields(kind)])


def split_in_halves(examples: ExampleSet, *, seed: int = 0) -> ExampleSet:
    """Put half of each paradigm's pairs into `train`, the others into `test`; of an odd number, one more into `test`.

    Pairs are ranked by a hash of seed, paradigm and pair, so that the split is the same on any machine, and nearly
    the same for the examples that another tokenizer leaves. The seed stays as `split_seed`.

    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> halves = split_in_halves(agreement_examples(), seed=3)
    >>> len(halves.half("train")), len(halves.half("test"))
    (248, 252)
    """
    train: set[tuple[str, str]] = set()
    for paradigm in examples.counts():
        pairs = sorted({example.pair for example in examples if example.paradigm == paradigm})
        hashes = {pair: hashlib.sha256(f"{seed} {paradigm} {pair}".encode()).hexdigest() for pair in pairs}
        train.update((paradigm, pair) for pair in sorted(pairs, key=hashes.__getitem__)[: len(pairs) // 2])
    halves: list[Half] = ["train" if (example.paradigm, example.pair) in train else "test" for example in examples]
    placed = tuple(replace(example, split=half) for example, half in zip(examples, halves, strict=True))
    return replace(examples, examples=placed, split_seed=seed)
