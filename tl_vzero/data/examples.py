"""One sentence of an evaluation: a target word, the cues that decide its form, and what competes with them."""

from dataclasses import dataclass
from typing import Literal, get_args

from tl_vzero.data.lexicon import Number
from tl_vzero.data.sentence_text import write_words
from tl_vzero.errors import InputError

CueSource = Literal["template", "spacy", "given"]
Half = Literal["train", "test"]
CUE_SOURCES: tuple[CueSource, ...] = get_args(CueSource)
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
        self._check_indices("target", (self.target,))
        self._check_indices("cue", self.cue)
        self._check_indices("attractor", self.attractor)
        if not self.cue:
            raise InputError(f"{self.id} has no cue: expected the index of at least one word")
        if self.target in (*self.cue, *self.attractor):
            raise InputError(f"{self.id} has its target, word {self.target}, as cue or attractor: expected other words")
        if self.words[self.target] != self.good:
            raise InputError(f"{self.id} has {self.words[self.target]!r} at its target: expected {self.good!r}, `good`")
        if self.good == self.bad:
            raise InputError(f"{self.id} has {self.good!r} as good and bad: expected two forms")

    def _check_indices(self, name: str, indices: tuple[int, ...]) -> None:
        for index in indices:
            if not 0 <= index < len(self.words):
                raise InputError(
                    f"{self.id} has {name} {index} outside the sentence {self.text!r}: "
                    f"expected 0 to {len(self.words) - 1}, counting words"
                )

    @property
    def text(self) -> str:
        """The sentence with the right form."""
        return self.with_target(self.good)

    def with_target(self, word: str) -> str:
        """The sentence with another word, or a mask token, at the target."""
        return write_words(self.words_with(word)).text

    def words_with(self, word: str) -> tuple[str, ...]:
        """The words with another one at the target."""
        return (*self.words[: self.target], word, *self.words[self.target + 1 :])

    def __repr__(self) -> str:
        forms = self.good if self.bad is None else f"{self.good}|{self.bad}"
        cue = " ".join(self.words[index] for index in self.cue)
        return f"Example({self.id!r}: {self.with_target(f'[{forms}]')!r}, cue {cue!r})"
