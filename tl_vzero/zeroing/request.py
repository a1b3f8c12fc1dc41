"""What is asked of Value Zeroing, checked at the door against the model."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from tl_vzero.choices import chosen, chosen_heads, flag, integers, listed, positive
from tl_vzero.distance import Distance, distance_named
from tl_vzero.errors import InputError, InputTypeError, unknown_name
from tl_vzero.inputs.text import Sentence
from tl_vzero.words import Phrase, Range, group_words, noun_chunks, root_subtrees

# Spans by their name, resolved for each sentence: which positions are zeroed together.

Span = tuple[int, ...]

WORDS = "words"
PHRASES: dict[str, Callable[[str, Sequence[Range]], tuple[Phrase, ...]]] = {
    "noun_chunks": noun_chunks,
    "subtrees": root_subtrees,
}


def check_span_name(name: str) -> None:
    """Raise InputError for a kind of span that does not exist."""
    if name not in (WORDS, *PHRASES):
        raise unknown_name("spans", name, (WORDS, *PHRASES, "a list of positions such as [[1, 2], [4]]"))


def named_spans(name: str, sentence: Sentence) -> tuple[Span, ...]:
    """The spans of a kind: every position is in one span, in the order of first positions; special tokens stay single.

    Raises InputError where the sentence does not say what its words are, or holds no text to parse, and
    DependencyError where there is no parser.
    """
    return _words(sentence) if name == WORDS else _phrases(name, sentence)


def _words(sentence: Sentence) -> tuple[Span, ...]:
    if sentence.word_ids is None:
        raise InputError(
            'spans="words" given, and without a tokenizer nothing says which ids form a word: load the model with '
            "tokenizer=, or give positions, such as spans=[[1, 2], [4]]"
        )
    return tuple(word.positions for word in group_words(sentence.word_ids, sentence.tokens))


def _phrases(name: str, sentence: Sentence) -> tuple[Span, ...]:
    if sentence.text is None:
        raise InputError(
            f'spans="{name}" given with ids: expected text, which the parser reads; give a string or a list of '
            "strings, or positions, such as spans=[[1, 2], [4]]"
        )
    if sentence.offsets is None:
        raise InputError(
            f'spans="{name}" given, and this tokenizer does not say where its tokens stand in the text: load the model '
            "with a fast tokenizer, or give positions, such as spans=[[1, 2], [4]]"
        )
    phrases = [phrase for start, text in sentence.texts for phrase in _phrases_in(name, text, start, sentence.offsets)]
    groups: dict[int, list[int]] = {}
    for position, piece in enumerate(sentence.offsets):
        phrase = None if sentence.special[position] else _phrase_of(piece, phrases)
        # What is in no phrase, a special token or white space, gets a number of its own.
        groups.setdefault(-1 - position if phrase is None else phrase, []).append(position)
    return tuple(sorted(tuple(group) for group in groups.values()))


def _phrases_in(name: str, text: str, start: int, pieces: Sequence[Range]) -> list[Phrase]:
    """The phrases of one text of a sentence or pair, which begins at a character of the whole."""
    within = [(begin - start, end - start) for begin, end in pieces if start <= begin and end <= start + len(text)]
    return [tuple((a + start, b + start) for a, b in phrase) for phrase in PHRASES[name](text, within)]


def _phrase_of(piece: Range, phrases: Sequence[Phrase]) -> int | None:
    """The phrase of the first word that a piece overlaps: "can" of "can't" belongs to spaCy's "ca"."""
    begin, end = piece
    found = [(word, n) for n, phrase in enumerate(phrases) for word in phrase if begin < word[1] and word[0] < end]
    return min(found)[1] if found else None


MEMORY_MB = 256.0


@dataclass(frozen=True, eq=False)
class Wanted:
    """Of one sentence: its length, the positions zeroed together in each column, and the destinations."""

    length: int
    spans: tuple[Span, ...]
    destinations: tuple[int, ...]

    @classmethod
    def whole(cls, length: int) -> "Wanted":
        """Every position as a source of its own and as a destination."""
        return cls(length, tuple((j,) for j in range(length)), tuple(range(length)))

    @property
    def zeroes_single_positions(self) -> bool:
        """Whether each column is one position."""
        return all(len(span) == 1 for span in self.spans)


@dataclass(frozen=True)
class Request:
    """Which maps to compute. `None` means all; positions and names of spans are resolved sentence by sentence.

    `taken` is how much of a value is taken away in each layer: once all of it, but in a probe.
    """

    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    per_head: bool
    sources: tuple[int, ...] | None
    spans: tuple[Span, ...] | str | None
    destinations: tuple[int, ...] | None
    distance_name: str
    distance: Distance
    final_norm: bool
    batch_size: int | None
    memory_mb: float
    taken: Mapping[int, float] = field(default_factory=dict)

    def taken_in(self, layer: int) -> float:
        """How much of a value is taken away in a layer, as a multiple of it."""
        return self.taken.get(layer, 1.0)

    def wanted(self, sentence: Sentence) -> Wanted:
        """What is asked of a sentence; raises InputError for positions outside it and for spans that overlap."""
        n_sources = len(sentence.sources)
        spans: tuple[Span, ...]
        if isinstance(self.spans, str):
            spans = named_spans(self.spans, sentence.sources)
        elif self.spans is not None:
            spans = tuple(_positions(f"spans[{n}]", span, n_sources) for n, span in enumerate(self.spans))
            _check_apart(spans)
        else:
            spans = tuple((j,) for j in _positions("sources", self.sources, n_sources))
        return Wanted(len(sentence), spans, _positions("destinations", self.destinations, len(sentence)))


def default_request(n_layers: int) -> Request:
    """Everything, by cosine distance."""
    name, function = distance_named("cosine")
    return Request(tuple(range(n_layers)), None, False, None, None, None, name, function, False, None, MEMORY_MB)


def make_request(
    *,
    n_layers: int,
    n_heads: int,
    n_query_heads: int,
    layers: Iterable[int] | int | None,
    heads: Iterable[int] | int | None,
    per_head: bool,
    sources: Iterable[int] | int | None,
    spans: str | Iterable[Iterable[int] | int] | None,
    destinations: Iterable[int] | int | None,
    distance: str | Distance,
    final_norm: bool,
    batch_size: int | None,
    memory_mb: float,
) -> Request:
    """Check every option against the model; raises InputError or InputTypeError."""
    name, function = distance_named(distance)
    if sources is not None and spans is not None:
        raise InputError("sources and spans given: expected one of them, single positions or positions zeroed together")
    chosen_layers = chosen("layers", layers, n_layers, "the model has")
    return Request(
        layers=tuple(range(n_layers)) if chosen_layers is None else chosen_layers,
        heads=chosen_heads(heads, n_heads, n_query_heads),
        per_head=flag("per_head", per_head),
        sources=integers("sources", sources),
        spans=_spans(spans),
        destinations=integers("destinations", destinations),
        distance_name=name,
        distance=function,
        final_norm=flag("final_norm", final_norm),
        batch_size=positive("batch_size", batch_size),
        memory_mb=_megabytes(memory_mb),
    )


def _megabytes(given: float) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InputTypeError(f"memory_mb is {type(given).__name__}: expected a number of megabytes")
    if not 0 < given < float("inf"):
        raise InputError(f"memory_mb is {given}: expected a positive number of megabytes")
    return float(given)


def _spans(given: str | Iterable[Iterable[int] | int] | None) -> tuple[Span, ...] | str | None:
    if given is None:
        return None
    if isinstance(given, str):
        check_span_name(given)
        return given
    several = listed("spans", given)
    if not isinstance(several, list):
        raise InputTypeError(
            f"spans is {type(given).__name__}: expected a list with the positions of each span, such as [[1, 2], [4]]"
        )
    spans = tuple(integers(f"spans[{n}]", span) or () for n, span in enumerate(several))
    if not spans or not all(spans):
        raise InputError("spans is empty or holds None: expected at least one span, such as [[1, 2], [4]]")
    return spans


def _check_apart(spans: Sequence[Span]) -> None:
    holder: dict[int, int] = {}
    for n, span in enumerate(spans):
        for position in span:
            if position in holder:
                raise InputError(
                    f"spans[{holder[position]}] and spans[{n}] overlap, both hold position {position}: expected each "
                    "position in one span at most; give spans that overlap in calls of their own"
                )
            holder[position] = n


def _positions(name: str, wanted: Sequence[int] | None, length: int) -> tuple[int, ...]:
    resolved = chosen(name, wanted, length, "the sentence has")
    return tuple(range(length)) if resolved is None else resolved
