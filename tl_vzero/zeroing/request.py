"""What a call of Value Zeroing asks for, checked before anything runs.

A Request holds for all sentences of the call; `Request.wanted` resolves its positions and spans for one of them.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from tl_vzero.choices import Position, Positions, integer, listed, one_of, positions, positions_in
from tl_vzero.clean import MEMORY_MB
from tl_vzero.distance import Distance, cosine
from tl_vzero.errors import InputError, InputTypeError, shown, unknown_name
from tl_vzero.inputs.baselines import ZERO, Baseline
from tl_vzero.inputs.text import Sentence
from tl_vzero.models.contracts import value_heads
from tl_vzero.models.run import FinalNorm
from tl_vzero.models.sites import Sites
from tl_vzero.words import Phrase, Range, group_words, noun_chunks, root_subtrees

Integers = Iterable[int] | int | None
Span = tuple[int, ...]  # positions that are zeroed together

ENGINES = ("auto", "hooks", "closed_form")
PRECISIONS = ("tf32",)
CONFIDENCE = 1 - 1e-6
WORDS = "words"
PHRASES: dict[str, Callable[[str, Sequence[Range]], tuple[Phrase, ...]]] = {
    "noun_chunks": noun_chunks,
    "subtrees": root_subtrees,
}


@dataclass(frozen=True, eq=False)
class Wanted:
    """Of one sentence: its length, how many sources it has, the positions zeroed together in each column, and the
    destinations.
    """

    length: int
    n_sources: int
    spans: tuple[Span, ...]
    destinations: tuple[int, ...]

    @classmethod
    def whole(cls, length: int) -> "Wanted":
        """Every position as a source and as a destination."""
        return cls(length, length, tuple((j,) for j in range(length)), tuple(range(length)))

    @property
    def zeroes_single_positions(self) -> bool:
        """Whether each column is one position."""
        return all(len(span) == 1 for span in self.spans)

    def affected(self, marked: Bool[Tensor, "*axes dest src"]) -> Bool[Tensor, "*axes row column"]:
        """Of all entries that can be affected, the rows and columns wanted: a span affects what one position does."""
        rows = pick(marked, marked.ndim - 2, self.destinations)
        if self.zeroes_single_positions:
            return pick(rows, marked.ndim - 1, tuple(span[0] for span in self.spans))
        return torch.stack([rows[..., list(span)].any(dim=-1) for span in self.spans], dim=-1)


def pick(tensor: Tensor, axis: int, positions: tuple[int, ...]) -> Tensor:
    """Some positions of one sentence along an axis; a view where they are the first ones."""
    if positions == tuple(range(len(positions))):
        return tensor.narrow(axis, 0, len(positions))
    return tensor.index_select(axis, torch.tensor(positions, device=tensor.device))


@dataclass(frozen=True)
class Tolerance:
    """How far a share, an entry of a normalised row, may be off, and how sure it is that a whole row keeps to that."""

    share: float
    confidence: float
    seed: int

    @property
    def risk(self) -> float:
        """How probable it is that a row does not keep to it."""
        return 1.0 - self.confidence


@dataclass(frozen=True, eq=False)
class Request:
    """The model and which maps to compute of it; the options are those of `value_zeroing`, and `None` means all.

    `norm` is the final norm where `final_norm` is set; `advance` counts sources times layers as they are done.
    `baseline` is what is put in the place of a value: what is said of zeroing holds for any.
    """

    model: nn.Module
    sites: Sites
    layers: tuple[int, ...]
    heads: tuple[int, ...] | None = None
    per_head: bool = False
    sources: tuple[Position, ...] | None = None
    spans: tuple[tuple[Position, ...], ...] | str | None = None
    destinations: tuple[Position, ...] | None = None
    distance_name: str = "cosine"
    distance: Distance = cosine
    final_norm: bool = False
    engine: str = "auto"
    cache: Any | None = None
    batch_size: int | None = None
    memory_mb: float = MEMORY_MB
    precision: str | None = None
    norm: FinalNorm | None = None
    advance: Callable[[float], object] = lambda sources: None
    baseline: Baseline = ZERO
    tolerance: Tolerance | None = None

    @property
    def zeroed_heads(self) -> tuple[int, ...]:
        """The value heads that are zeroed: one by one with `per_head`, else together."""
        return tuple(range(value_heads(self.model, self.sites.stack))) if self.heads is None else self.heads

    def norm_after(self, layer: int) -> FinalNorm | None:
        """The norm after which a layer's outputs are compared: the last one's, where that is asked for."""
        return self.norm if layer == self.sites.n_layers - 1 else None

    def wanted(self, sentence: Sentence) -> Wanted:
        """What to compute of a sentence; raises InputError for positions outside it, for spans that overlap, and for
        a baseline of another length.
        """
        tokens = sentence.sources.tokens
        self.baseline.check_length(len(tokens), shown(" ".join(tokens)))
        if isinstance(self.spans, str):
            spans = named_spans(self.spans, sentence.sources)
        elif self.spans is not None:
            spans = tuple(positions_in(tokens, f"spans[{n}]", span) for n, span in enumerate(self.spans))
            _check_apart(spans)
        else:
            spans = tuple((j,) for j in positions_in(tokens, "sources", self.sources))
        return Wanted(
            len(sentence),
            len(sentence.sources),
            spans,
            positions_in(sentence.tokens, "destinations", self.destinations),
        )


def megabytes(memory_mb: float | None, device: torch.device) -> float:
    """Check how much memory may be held, or choose: 256, and on CUDA a quarter of what is free, as a power of two, so
    that one call after another takes the same; raises InputError or InputTypeError.
    """
    if memory_mb is None:
        return max(1.0, 2.0 ** math.floor(math.log2(_free_on(device) / 4))) if device.type == "cuda" else MEMORY_MB
    if isinstance(memory_mb, bool) or not isinstance(memory_mb, int | float):
        raise InputTypeError(f"memory_mb is {type(memory_mb).__name__}: expected a number of megabytes")
    if not 0 < memory_mb < float("inf"):
        raise InputError(f"memory_mb is {memory_mb}: expected a positive number of megabytes")
    return float(memory_mb)


def checked_tolerance(
    tolerance: float | None, confidence: float, seed: int, distance_name: str, engine: str, precision: str | None
) -> Tolerance | None:
    """Check how far a share may be off; raises InputError or InputTypeError, also where it cannot be bounded."""
    numbers = [("confidence", confidence, "0.999")] + ([] if tolerance is None else [("tolerance", tolerance, "0.01")])
    for name, value, expected in numbers:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputTypeError(
                f"{name} is {type(value).__name__}: expected a number between 0 and 1, such as {expected}"
            )
        if not 0 < value < 1:
            raise InputError(f"{name} is {value}: expected a number between 0 and 1, such as {expected}")
    if not 0 <= integer("seed", seed) < 2**63:
        raise InputError(f"seed is {seed}: expected an integer from 0 to below 2**63")
    if tolerance is None:
        return None
    if distance_name != "cosine":
        raise InputError(
            f'tolerance={tolerance} given with distance {distance_name}: the error is known for distance="cosine" '
            "alone; take that, or leave tolerance out"
        )
    if engine == "hooks":
        raise InputError(
            f'tolerance={tolerance} given with engine="hooks", which computes every pair: expected engine="auto" or '
            '"closed_form", or leave tolerance out'
        )
    if precision is not None:
        raise InputError(
            f'tolerance={tolerance} given with precision="{precision}", whose rounding the error would not hold: leave '
            "one of them out"
        )
    return Tolerance(float(tolerance), float(confidence), seed)


def checked_precision(precision: str | None, engine: str, model: nn.Module) -> str | None:
    """Check that products can be of less precision; raises InputError where the model or its device has none."""
    if precision is None:
        return None
    one_of("precision", precision, PRECISIONS)
    weight = next(nn.Module.parameters(model))
    if engine == "hooks":
        raise InputError(
            f'precision="{precision}" with engine="hooks": expected the closed form; leave one of them out'
        )
    if weight.dtype == torch.float64 or not _has_tf32(weight.device):
        raise InputError(
            f'precision="{precision}" given, and the model is {str(weight.dtype).removeprefix("torch.")} on '
            f"{weight.device}: expected another dtype than float64, on a CUDA GPU from Ampere on; leave precision out"
        )
    return precision


def _has_tf32(device: torch.device) -> bool:
    has_cuda = device.type == "cuda" and torch.version.cuda is not None
    return has_cuda and torch.cuda.get_device_capability(device) >= (8, 0)


def _free_on(device: torch.device) -> float:
    """The megabytes of a GPU that nobody uses; torch holds what it has freed."""
    free, _ = torch.cuda.mem_get_info(device)
    return (free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)) / 2**20


def checked_spans(spans: str | Iterable[Positions] | None) -> tuple[tuple[Position, ...], ...] | str | None:
    """Read what is zeroed together, as positions or as a name; raises InputError or InputTypeError."""
    if spans is None:
        return None
    if isinstance(spans, str):
        if spans not in (WORDS, *PHRASES):
            raise unknown_name("spans", spans, (WORDS, *PHRASES, "a list of positions such as [[1, 2], [4]]"))
        return spans
    several = listed("spans", spans)
    if not isinstance(several, list):
        raise InputTypeError(
            f"spans is {type(spans).__name__}: expected a list with the positions of each span, such as [[1, 2], [4]]"
        )
    read = tuple(positions(f"spans[{n}]", span) or () for n, span in enumerate(several))
    if not read or not all(read):
        raise InputError("spans is empty or holds None: expected at least one span, such as [[1, 2], [4]]")
    return read


def _check_apart(spans: Sequence[Span]) -> None:
    holder: dict[int, int] = {}
    for n, position in ((n, position) for n, span in enumerate(spans) for position in span):
        if position in holder:
            raise InputError(
                f"spans[{holder[position]}] and spans[{n}] overlap, both hold position {position}: expected each "
                "position in one span at most; give spans that overlap in calls of their own"
            )
        holder[position] = n


# Spans by their name, resolved for each sentence.


def named_spans(name: str, sentence: Sentence) -> tuple[Span, ...]:
    """The spans of a kind: every position is in one span, in the order of first positions; special tokens stay single.

    Raises InputError where the sentence does not say what its words are, or holds no text to parse, and
    DependencyError where there is no parser.
    """
    if name == WORDS:
        if sentence.word_ids is None:
            raise InputError(
                'spans="words" given, and without a tokenizer nothing says which ids form a word: load the model with '
                "tokenizer=, or give positions, such as spans=[[1, 2], [4]]"
            )
        return tuple(word.positions for word in group_words(sentence.word_ids, sentence.tokens))
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
        # What is in no phrase, a special token or white space, stays alone under a negative key.
        groups.setdefault(-1 - position if phrase is None else phrase, []).append(position)
    return tuple(sorted(tuple(group) for group in groups.values()))


def _phrases_in(name: str, text: str, start: int, pieces: Sequence[Range]) -> list[Phrase]:
    """The phrases of one text of a sentence or pair, which begins at a character of the whole."""
    within = [(begin - start, end - start) for begin, end in pieces if start <= begin and end <= start + len(text)]
    return [tuple((a + start, b + start) for a, b in phrase) for phrase in PHRASES[name](text, within)]


def _phrase_of(piece: Range, phrases: Sequence[Phrase]) -> int | None:
    """The phrase of the first word that a piece overlaps: "can" of "can't" belongs to spaCy's "ca"."""
    begin, end = piece
    overlaps = ((word, n) for n, phrase in enumerate(phrases) for word in phrase if begin < word[1] and word[0] < end)
    return min(overlaps, default=(None, None))[1]
