"""Text or ids to sentences: token ids, segments, labels, words and special tokens, without any padding.

A sentence carries all that is needed to run it, to label its map and to lead results back to the caller's batch.
"""

import re
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from itertools import count, groupby
from numbers import Integral
from operator import attrgetter
from threading import RLock
from typing import Any, TypeGuard, TypeVar

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.choices import flag
from tl_vzero.errors import InputError, InputTypeError, ModelError, foreign_errors_as, shown, warn_caller
from tl_vzero.models.facts import context_length, decoder_start, facts_of, segment_count, vocabulary_size
from tl_vzero.models.signals import signal_of
from tl_vzero.models.sites import kind_of, stacks_of
from tl_vzero.words import Places, decoded_places, label_tokens, unknown_id

TOKENS_PER_BATCH = 2048
NAMED = 5  # words that a note names
LONGEST_WORD = 100  # characters; BERT's tokenizer reads longer ones as unknown
# What people write where a word is to be predicted; a model reads only its own as its mask.
MASKS = re.compile(r"\[mask]|<mask>|_{3,}", re.IGNORECASE)
# A tokenizer written in Rust takes one text at a time, and models may share one.
_ONE_TEXT = RLock()

Item = TypeVar("Item")
Result = TypeVar("Result")

Pair = tuple[str, str]
Ids = Tensor | np.ndarray | Sequence[Any]
Text = str | Pair | Ids | Mapping[str, Any]

EXPECTED = (
    "a string, a pair of strings (a, b), ids (a 1-D tensor or a list of integers), a list of such, a 2-D tensor of ids "
    "with attention_mask, or what a tokenizer returned"
)

# In a tokenizer's output: what a model reads, and what only says how the text was cut.
READ = ("input_ids", "attention_mask", "token_type_ids")
ABOUT_THE_CUT = ("special_tokens_mask", "offset_mapping", "length", "overflow_to_sample_mapping")
OF_OVERFLOW = ("overflowing_tokens", "num_truncated_tokens")


@dataclass(frozen=True, eq=False)
class Sentence:
    """One sentence as the model reads it. `row` and `columns` say where it stood in the caller's batch.

    text, offsets: the text, and where its tokens begin and end in it, in characters; special tokens that the text does
        not hold are empty there, and a slow tokenizer gives no offsets. Of a pair, `text` has both texts, one per line,
        and the second begins at the character `second_from`.
    token_types: the segments of its tokens; None: all are of segment 0, the models' own default.
    encoder, cross: where a decoder reads it, what the encoder reads, and whether sources are the encoder's positions.
    notes: what may not have been meant; it is scored as given all the same.
    unknown: the positions of tokens that the model reads as unknown; their labels are what was written.
    signal, media, about: what the model reads in place of ids, or beside them by argument; what its positions are.
    """

    ids: Int[Tensor, "position"]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    word_ids: tuple[int | None, ...] | None
    row: int
    columns: tuple[int, ...]
    text: str | None = None
    offsets: tuple[tuple[int, int], ...] | None = None
    encoder: "Sentence | None" = None
    cross: bool = False
    signal: Float[Tensor, "..."] | None = None
    about: Mapping[str, Any] = field(default_factory=dict)
    media: Mapping[str, Tensor] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    second_from: int | None = None
    token_types: tuple[int, ...] | None = None
    unknown: tuple[int, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def original(self) -> str | Pair | None:
        """The text or pair of texts that it comes from; None for ids."""
        if self.text is None or self.second_from is None:
            return self.text
        return self.text[: self.second_from - 1], self.text[self.second_from :]

    @property
    def texts(self) -> tuple[tuple[int, str], ...]:
        """The texts that it comes from, one or a pair, each with the character of `text` that it begins at."""
        if self.text is None or self.second_from is None:
            return () if self.text is None else ((0, self.text),)
        return (0, self.text[: self.second_from - 1]), (self.second_from, self.text[self.second_from :])

    @property
    def identity(self) -> tuple[object, ...]:
        """What distinguishes it: its ids and their segments, or the image or sound, and the encoder's beside it."""
        return tuple(self.read.flatten().tolist()), self.token_types, self.encoder and self.encoder.identity

    @property
    def sources(self) -> "Sentence":
        """The sentence whose positions are the columns of the map."""
        return self.encoder if self.cross and self.encoder is not None else self

    @property
    def read(self) -> Int[Tensor, "position"] | Float[Tensor, "..."]:
        """What the model reads: its ids, or the image or sound."""
        return self.ids if self.signal is None else self.signal

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length, and the encoder's beside it: sentences of one shape share a run; one with media runs alone."""
        alone = (-1, self.row) if self.media else () if self.signal is None else tuple(self.signal.shape)
        return len(self), 0 if self.encoder is None else len(self.encoder), *alone


@dataclass(frozen=True, eq=False)
class Inputs:
    """The caller's sentences in order. `single` says that one was given, not a list of one."""

    sentences: tuple[Sentence, ...]
    single: bool

    def batches(self, most_tokens: int = TOKENS_PER_BATCH) -> Iterator[list[Sentence]]:
        """Sentences that are worked on together, from short to long."""
        batch: list[Sentence] = []
        n_tokens = 0
        for sentence in sorted(self.sentences, key=attrgetter("shape")):
            if batch and n_tokens + len(sentence) > most_tokens:
                yield batch
                batch, n_tokens = [], 0
            batch.append(sentence)
            n_tokens += len(sentence)
        yield batch

    def alike(self) -> Iterator[list[Sentence]]:
        """The parts of `batches` of one shape, which share a run without padding."""
        for batch in self.batches():
            yield from same_shape(batch)

    def in_order(self, by_row: Mapping[int, Result]) -> Result | list[Result]:
        """Results as the caller gave the sentences: a list for a list."""
        ordered = [by_row[sentence.row] for sentence in self.sentences]
        return ordered[0] if self.single else ordered


def same_shape(sentences: Iterable[Sentence]) -> Iterator[list[Sentence]]:
    """Neighbours that share a run of the model without padding."""
    return (list(group) for _, group in groupby(sentences, key=attrgetter("shape")))


def same_length_batches(
    items: Iterable[Item], length_of: Callable[[Item], Hashable], size_of: Callable[[list[Item]], int]
) -> Iterator[list[Item]]:
    """Batches of items of one length, each of at most `size_of(all items of that length)`, at least one.

    They need no padding, so that every class of model takes them.

    >>> list(same_length_batches(["at", "a", "be", "in"], len, lambda alike: 2))
    [['at', 'be'], ['in'], ['a']]
    """
    by_length: dict[Hashable, list[Item]] = {}
    for item in items:
        by_length.setdefault(length_of(item), []).append(item)
    for alike in by_length.values():
        size = max(1, size_of(alike))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def padded(
    sentences: Sequence[Sentence],
) -> tuple[Int[Tensor, "sentence position"], Bool[Tensor, "sentence position"], Int[Tensor, "sentence position"]]:
    """Ids of sentences, padded on the right, where they have a token, and their segments."""
    rows = [(s.ids, torch.ones(len(s)), torch.tensor(s.token_types or [0] * len(s))) for s in sentences]
    ids, mask, types = (nn.utils.rnn.pad_sequence(list(part), batch_first=True) for part in zip(*rows, strict=True))
    return ids, mask.bool(), types


def encode(
    model: nn.Module,
    inputs: object,
    *,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    prepend_bos: bool = False,
) -> Inputs:
    """Read a user's inputs: tokenise text, check ids and segments, remove padding.

    Padding is neither source nor destination: without it, a padded batch gives what each sentence alone gives. Ids are
    taken as they are; `prepend_bos` adds the tokenizer's BOS to text where the tokenizer does not. A pair is cut as
    the tokenizer cuts pairs, with its segments where the model has any. What may not have been meant is an
    InputWarning, one for all inputs.

    Raises InputError or InputTypeError, saying what was given and what is expected, ModelError for a model that reads
    no tokens. Warns of pairs that come without segments.
    """
    kind_of(model)
    signal = signal_of(model)
    if signal is not None:
        raise ModelError(
            f"this model reads {signal.named}, and what is asked for is for models that read tokens: take "
            "value_zeroing, value_zeroing_hooks, or score with a method that reads the clean run, such as attention"
        )
    bos = flag("prepend_bos", prepend_bos)
    texts = _texts_in(inputs)
    if texts is not None:
        for name, value in (("attention_mask", attention_mask), ("token_type_ids", token_type_ids)):
            if value is not None:
                raise InputError(
                    f"{name} given with text: expected ids; text is never padded here, and of a pair of texts (a, b) "
                    "the tokenizer says which segment a token is of"
                )
        sentences = [_from_text(model, text, row, bos) for row, text in enumerate(texts)]
        return warned(Inputs(tuple(sentences), single=not isinstance(inputs, list)))
    if isinstance(inputs, Mapping):
        inputs, attention_mask, token_type_ids = _returned_by_tokenizer(inputs, attention_mask, token_type_ids)
    return warned(from_ids(model, inputs, attention_mask, token_type_ids))


def _texts_in(inputs: object) -> list[str | Pair] | None:
    """The texts and pairs in the inputs; None for what is no text."""
    if isinstance(inputs, str):
        return [inputs]
    if not isinstance(inputs, list | tuple):
        return None
    if not inputs:
        raise InputError(f"inputs are an empty {type(inputs).__name__}: expected {EXPECTED}")
    if is_pair(inputs):
        return [inputs]
    if not any(isinstance(text, str) or is_pair(text) for text in inputs):
        return None
    if isinstance(inputs, tuple):
        # As a batch it would be read as one pair whenever it happened to hold two texts.
        raise InputError(
            f"inputs are {describe(inputs)}, {len(inputs)} of them: expected a pair of two strings (a, b), or several "
            "texts as a list"
        )
    if not all(isinstance(text, str) or is_pair(text) for text in inputs):
        raise InputTypeError(f"inputs are {describe(inputs)}: expected only strings and pairs (a, b), or only ids")
    return inputs


def is_pair(value: object) -> TypeGuard[Pair]:
    """Whether it is a pair of texts: a tuple of two strings."""
    return isinstance(value, tuple) and len(value) == 2 and all(isinstance(text, str) for text in value)


def describe(inputs: object) -> str:
    if isinstance(inputs, list | tuple):
        kinds = sorted({type(item).__name__ for item in inputs})
        return f"a {type(inputs).__name__} of {', '.join(kinds) or 'nothing'}"
    if isinstance(inputs, np.ndarray):
        return f"an array of {inputs.dtype}"
    return type(inputs).__name__


def _returned_by_tokenizer(
    returned: Mapping[Any, Any], attention_mask: object, token_type_ids: object
) -> tuple[Any, Any, Any]:
    """Ids, mask and segments of a tokenizer's own output."""
    kind = type(returned).__name__
    if "input_ids" not in returned:
        raise InputTypeError(
            f"inputs are a {kind} with {', '.join(map(repr, returned)) or 'nothing'}: expected 'input_ids' in it, as "
            f"in what a tokenizer returns; or {EXPECTED}"
        )
    others = [name for name in returned if name not in (*READ, *ABOUT_THE_CUT, *OF_OVERFLOW)]
    if others:
        raise InputError(
            f"inputs are a {kind} with {others[0]!r}, which is not read here: expected only {', '.join(READ)}; leave "
            "it out"
        )
    arguments = {"attention_mask": attention_mask, "token_type_ids": token_type_ids}
    for name, argument in arguments.items():
        if returned.get(name) is not None:
            if argument is not None:
                raise InputError(f"{name} given, and the {kind} has its own: expected one of both; leave {name} out")
            arguments[name] = returned[name]
    return returned["input_ids"], arguments["attention_mask"], arguments["token_type_ids"]


def _from_text(model: nn.Module, text: str | Pair, row: int, prepend_bos: bool) -> Sentence:
    first, second = (text, None) if isinstance(text, str) else text
    tokenizer = tokenizer_for(model, first, f"inputs[{row}]" if second is None else f"inputs[{row}][0]")
    if second is not None:
        tokenizer_for(model, second, f"inputs[{row}][1]")
    pieces = pieces_of(tokenizer, first, second)
    if prepend_bos and tokenizer.bos_token_id is not None and pieces.ids[:1] != [tokenizer.bos_token_id]:
        pieces = pieces.behind(tokenizer.bos_token_id)
    if second is None:
        return sentence_of(model, first, row, pieces)
    sentence = replace(sentence_of(model, f"{first}\n{second}", row, pieces), second_from=len(first) + 1)
    return replace(sentence, notes=(*sentence.notes, *_notes_on_segments(model, sentence)))


def tokenizer_for(model: nn.Module, text: str, name: str) -> Any:
    """The model's tokenizer; raises InputError where there is none, or nothing to read in the text of that name."""
    tokenizer = facts_of(model).tokenizer
    if tokenizer is None:
        raise InputError(
            "text given, and this model has no tokenizer: pass a tensor of ids, or load the model with tokenizer="
        )
    if not text.strip():
        raise InputError(f"{name} is an empty text {text!r}: expected at least one word")
    return tokenizer


@dataclass(frozen=True)
class Pieces:
    """A text, or a pair on two lines, as a tokenizer cuts it; a slow one gives neither words nor places in the text.

    `token_types` are the segments of its tokens, where the tokenizer tells several apart.
    """

    ids: list[int]
    word_ids: list[int | None] | None
    offsets: list[tuple[int, int]] | None
    token_types: list[int] | None = None

    def behind(self, token_id: int) -> "Pieces":
        """The same behind a token that the text does not hold."""
        return Pieces(
            [token_id, *self.ids],
            None if self.word_ids is None else [None, *self.word_ids],
            None if self.offsets is None else [(0, 0), *self.offsets],
            None if self.token_types is None else [0, *self.token_types],
        )

    def without_last(self) -> "Pieces":
        """All but the last."""
        words, offsets, types = self.word_ids, self.offsets, self.token_types
        return Pieces(self.ids[:-1], words and words[:-1], offsets and offsets[:-1], types and types[:-1])


def pieces_of(tokenizer: Any, text: str, second: str | None = None, *, as_target: bool = False) -> Pieces:
    """Cut a text or a pair, special tokens included; `as_target`: as the tokenizer cuts what a decoder is to write.

    Raises InputError for a text that the tokenizer cannot read.
    """
    fast = getattr(tokenizer, "is_fast", False)
    texts = {"text_target" if as_target else "text": text}
    if second is not None:
        texts["text_pair"] = second
    what = f"the tokenizer {type(tokenizer).__name__} cannot read {' and '.join(map(shown, texts.values()))}"
    with foreign_errors_as(InputError, what), _ONE_TEXT:
        for half in texts.values():
            half.encode()  # half of a character (a lone surrogate) is no text
        encoding = tokenizer(**texts, return_offsets_mapping=fast, verbose=False)
        word_ids = list(encoding.word_ids()) if fast else None
        offsets = list(encoding["offset_mapping"]) if fast else None
        if second is not None and word_ids is not None and offsets is not None:
            sides = encoding.sequence_ids()
            word_ids, shifts = _apart(word_ids, sides), [len(text) + 1 if side == 1 else 0 for side in sides]
            offsets = [(begin + by, end + by) for (begin, end), by in zip(offsets, shifts, strict=True)]  # on two lines
        types = encoding.get("token_type_ids")
        return Pieces(list(encoding["input_ids"]), word_ids, offsets, list(types) if types and any(types) else None)


def _apart(word_ids: Sequence[int | None], sides: Sequence[int | None]) -> list[int | None]:
    """Words numbered so that none reaches from one side into the other; a tokenizer counts each text's from 0."""
    new_ids: dict[tuple[int | None, int], int] = {}
    pairs = zip(sides, word_ids, strict=True)
    return [None if word is None else new_ids.setdefault((side, word), len(new_ids)) for side, word in pairs]


def sentence_of(model: nn.Module, text: str, row: int, pieces: Pieces) -> Sentence:
    """A text that a tokenizer has cut, as a sentence; its labels are what the user wrote."""
    if not pieces.ids:
        raise InputError(f"inputs[{row}] {shown(text)} has no token for this tokenizer: expected at least one")
    _check_vocabulary(model, pieces.ids)
    places = None
    if pieces.offsets is not None and pieces.word_ids is not None:
        places = Places(text, pieces.offsets, pieces.word_ids)
    sentence = _labelled(model, torch.tensor(pieces.ids), row, tuple(range(len(pieces.ids))), places)
    offsets = None if pieces.offsets is None else tuple((begin, end) for begin, end in pieces.offsets)
    sentence = replace(sentence, text=text, offsets=offsets)
    sentence = replace(sentence, notes=_notes_on_text(facts_of(model).tokenizer, text, sentence))
    # A tokenizer may mark segments that its model does not tell apart (DistilBERT with a tokenizer of BERT's).
    if pieces.token_types is None or not any(pieces.token_types) or segment_count(model) == 1:
        return sentence
    return _in_segments(model, sentence, torch.tensor(pieces.token_types))


def from_ids(model: nn.Module, ids: Any, mask: Any = None, token_types: Any = None) -> Inputs:
    """Sentences of ids: a 1-D tensor or list of integers is one, a 2-D tensor or a list of such has one per row.

    `mask` is 0 at padding, `token_types` are segments; both have the form of the ids. Raises InputError or
    InputTypeError for ids that the model lacks, or a mask or segments that do not fit the ids.
    """
    rows, single = _rows_of_ids(model, ids)
    masks = _like_ids("attention_mask", mask, ids, rows)
    types = _like_ids("token_type_ids", token_types, ids, rows)
    sentences = []
    for row, row_ids in enumerate(rows):
        columns = _columns_of_tokens(row, torch.ones_like(row_ids) if masks is None else masks[row])
        sentence = _labelled(model, row_ids[list(columns)], row, columns, None)
        if types is not None:
            sentence = _in_segments(model, sentence, types[row][list(columns)])
        notes = _notes_on_segments(model, sentence) if types is None else ()
        notes += _notes_on_beginning(model, sentence)
        notes += _notes_on_ids(model, sentence) if masks is None else ()
        sentences.append(replace(sentence, notes=notes))
    return Inputs(tuple(sentences), single)


def _rows_of_ids(model: nn.Module, ids: Any) -> tuple[list[Int[Tensor, "_"]], bool]:
    """The ids of the sentences, padding included, and whether it is one sentence rather than a list."""
    if _is_list_of_rows(ids):
        named = {f"inputs[{row}]": _as_tensor(f"inputs[{row}]", row_ids) for row, row_ids in enumerate(ids)}
        for name, row_ids in named.items():
            if row_ids.ndim != 1:
                raise InputError(f"{name} has {row_ids.ndim} dimensions: expected 1, the ids of one sentence")
            _check_ids(model, row_ids, name)
        return [row_ids.detach().long().cpu() for row_ids in named.values()], False
    whole = _as_tensor("inputs", ids)
    _check_ids(model, whole, "ids")
    whole = whole.detach().long().cpu()  # embeddings take no narrower integers
    return ([whole], True) if whole.ndim == 1 else (list(whole), False)


def _is_list_of_rows(value: object) -> TypeGuard[list[Any] | tuple[Any, ...]]:
    kinds = (list, tuple, Tensor, np.ndarray)
    return isinstance(value, list | tuple) and len(value) > 0 and all(isinstance(row, kinds) for row in value)


def _as_tensor(name: str, value: Any) -> Tensor:
    """A tensor, an array or a list of integers as a tensor; the caller checks what it holds."""
    if isinstance(value, Tensor):
        if value.is_meta or value.layout is not torch.strided:
            raise InputTypeError(f"{name} is a tensor on the device 'meta', or a sparse one: expected a dense one")
        return value
    if isinstance(value, np.ndarray) and value.dtype.kind in "biu":
        # Torch has no operations on some of numpy's unsigned integers.
        return torch.from_numpy(value.copy() if value.dtype.kind == "b" else value.astype(np.int64))
    if isinstance(value, list | tuple):
        if not value:
            raise InputError(f"{name} is an empty {type(value).__name__}: expected at least one token")
        are_flags = [isinstance(item, bool) for item in value]
        if all(are_flags):
            return torch.tensor(value)
        if not any(are_flags) and all(isinstance(item, Integral) for item in value):
            with foreign_errors_as(InputError, f"{name} holds an integer that no id can be"):
                return torch.tensor([int(item) for item in value])
    raise InputTypeError(f"{name} is {describe(value)}: expected {EXPECTED}")


def _check_ids(model: nn.Module, ids: Tensor, name: str) -> None:
    if not _is_integer(ids):
        raise InputTypeError(
            f"{name} are {ids.dtype}, shape {list(ids.shape)}: expected integers, such as torch.int64; this model "
            "reads tokens, no image and no sound"
        )
    if ids.ndim not in (1, 2):
        raise InputError(f"{name} have {ids.ndim} dimensions, shape {list(ids.shape)}: expected {EXPECTED}")
    if ids.numel() == 0:
        raise InputError(f"{name} are empty, shape {list(ids.shape)}: expected at least one token")
    _check_vocabulary(model, ids, name)


def _check_vocabulary(model: nn.Module, ids: Tensor | Sequence[int], name: str = "ids") -> None:
    """Raise InputError for ids that the model's embedding does not have."""
    ids = torch.as_tensor(ids)
    size = vocabulary_size(model)
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high < size:
        return
    wrong = f"{name} run from {low} to {high}: expected 0 to {size - 1}, the model's vocabulary; "
    tokenizer = facts_of(model).tokenizer
    if low < 0 or tokenizer is None or high >= len(tokenizer):
        raise InputError(wrong + "check that the ids come from this model's tokenizer")
    token = tokenizer.convert_ids_to_tokens([high])[0]
    raise InputError(
        wrong + f"the tokenizer has {len(tokenizer)} tokens, and the model's embedding has no row for {token!r}, id "
        f"{high}; after adding tokens to a tokenizer, call resize_token_embeddings on the Hugging Face model and load "
        "it again, or take the tokenizer that the model was trained with"
    )


def _like_ids(name: str, value: Any, ids: Any, rows: Sequence[Tensor]) -> list[Tensor] | None:
    """A mask or segments of the sentences, row by row: a tensor for a tensor, a list for a list."""
    if value is None:
        return None
    if isinstance(ids, Tensor):
        if not isinstance(value, Tensor):
            raise InputTypeError(f"{name} is {type(value).__name__}: expected a tensor of the shape of the ids")
        if value.shape != ids.shape:
            raise InputError(f"{name} has shape {list(value.shape)}: expected {list(ids.shape)}, the shape of the ids")
    if _is_list_of_rows(value):
        parts = [_as_tensor(f"{name}[{row}]", values) for row, values in enumerate(value)]
    else:
        whole = _as_tensor(name, value)
        parts = [whole] if whole.ndim < 2 else list(whole)
    shapes, expected = ([list(one.shape) for one in every] for every in (parts, rows))
    if shapes != expected:
        raise InputError(f"{name} has rows of the shapes {shapes}: expected {expected}, those of the ids")
    return [part.detach().cpu() for part in parts]


def _is_integer(values: Tensor) -> bool:
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def _in_segments(model: nn.Module, sentence: Sentence, token_types: Tensor) -> Sentence:
    """A sentence with the segments of its tokens; raises InputError for those that its model does not have."""
    if not _is_integer(token_types):
        raise InputTypeError(f"token_type_ids are {token_types.dtype}: expected integers, the segments of the tokens")
    token_types = token_types.long()  # torch takes no minimum of narrow unsigned integers
    low, high = int(token_types.min()), int(token_types.max())
    if low == high == 0:
        return sentence
    n_segments = segment_count(model)
    if low < 0 or high >= n_segments:
        expected = f"0 to {n_segments - 1}, the segments that this model tells apart"
        if n_segments == 1:
            expected = "only 0, as this model tells no segments apart; leave them out, and a pair is read as its ids"
        raise InputError(f"token_type_ids of inputs[{sentence.row}] run from {low} to {high}: expected {expected}")
    types = token_types.tolist()
    words = None if sentence.word_ids is None else tuple(_apart(sentence.word_ids, types))
    return replace(sentence, token_types=tuple(types), word_ids=words)


def _notes_on_segments(model: nn.Module, sentence: Sentence) -> tuple[str, ...]:
    """A note on a pair without segments, where the model tells them apart and the tokenizer returns them."""
    tokenizer = facts_of(model).tokenizer
    if tokenizer is None or sentence.token_types is not None:
        return ()
    if not _is_like_a_pair(sentence, getattr(tokenizer, "sep_token_id", None)) or segment_count(model) == 1:
        return ()
    with _ONE_TEXT:
        if not any(tokenizer("a", "b", return_token_type_ids=True, verbose=False)["token_type_ids"]):
            return ()
    return (
        "it looks like a sentence pair and is read as one segment: pass token_type_ids with the ids, all 0 if one "
        "segment is meant, or a pair of texts (a, b) to a model whose tokenizer returns them, which it does if its "
        "model_input_names have token_type_ids",
    )


def _is_like_a_pair(sentence: Sentence, separator: int | None) -> bool:
    """Whether it is a pair of texts, or ids with words between one separator and another one at the end."""
    if sentence.text is not None:
        return sentence.second_from is not None
    places = [place for place, token in enumerate(sentence.ids.tolist()) if token == separator]
    between = sentence.special[places[0] : places[-1]] if places else ()
    return bool(places) and places[-1] == len(sentence) - 1 and not all(between)


def _columns_of_tokens(row: int, mask: Tensor) -> tuple[int, ...]:
    """The columns of a row's tokens; raises InputError where padding stands between them."""
    other = mask[(mask != 0) & (mask != 1)]
    if len(other):
        raise InputError(f"attention_mask holds {other[0].item()}: expected only 1 for tokens and 0 for padding")
    if not (columns := tuple(torch.nonzero(mask).flatten().tolist())):
        raise InputError(f"row {row} of attention_mask is all 0: expected at least one token that is no padding")
    if columns != tuple(range(columns[0], columns[-1] + 1)):
        raise InputError(
            f"row {row} of attention_mask has zeros between its ones: expected padding on the left or the right "
            "only; to take a token out, leave it out of the ids"
        )
    return columns


def _labelled(model: nn.Module, ids: Tensor, row: int, columns: tuple[int, ...], places: Places | None) -> Sentence:
    """Ids as a sentence; `places` say where its tokens stand in the text that they were cut from, None without one."""
    longest = context_length(model)
    if longest is not None and len(ids) > longest:
        raise InputError(
            f"inputs[{row}] has {len(ids)} tokens: the model's context holds {longest}; shorten or split the text"
        )
    tokenizer = facts_of(model).tokenizer
    token_ids = ids.tolist()
    if tokenizer is None:
        return Sentence(ids, tuple(map(str, token_ids)), (False,) * len(token_ids), None, row, columns)
    special_ids = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    mask_id = getattr(tokenizer, "mask_token_id", None)
    special = tuple(token_id in special_ids and token_id != mask_id for token_id in token_ids)
    what = f"the tokenizer {type(tokenizer).__name__} cannot write the ids of inputs[{row}]"
    with foreign_errors_as(InputError, what):
        apart = [token_id in special_ids or token_id == mask_id for token_id in token_ids]
        if places is None:
            places = decoded_places(tokenizer, token_ids, apart)
        else:  # what the tokenizer itself puts around a text has no word
            apart = [alone or word is None for alone, word in zip(apart, places.word_ids, strict=True)]
        labels, words = label_tokens(tokenizer, token_ids, apart, places)
    unknown = tuple(i for i, token_id in enumerate(token_ids) if token_id == unknown_id(tokenizer))
    return Sentence(ids, labels, special, _mask_as_word(words, special), row, columns, unknown=unknown)


def _mask_as_word(words: Sequence[int | None], special: Sequence[bool]) -> tuple[int | None, ...]:
    """A tokenizer gives its mask token no word; in a sentence it stands for one."""
    fresh = count(max((word for word in words if word is not None), default=-1) + 1)
    pairs = zip(words, special, strict=True)
    return tuple(next(fresh) if word is None and not is_special else word for word, is_special in pairs)


def _notes_on_text(tokenizer: Any, text: str, sentence: Sentence) -> tuple[str, ...]:
    """What of a text may not have been meant."""
    notes, ids = [], sentence.ids.tolist()
    # Twice in the ids, once in the text: the tokenizer adds the one that is there already.
    twice = "which the tokenizer adds as well: leave it out of the text, or pass ids (add_special_tokens=False)"
    for names, two, stands, where in (
        (("bos_token", "cls_token"), ids[:2], text.lstrip().startswith, "begins"),
        (("eos_token", "sep_token"), ids[-2:], text.rstrip().endswith, "ends"),
    ):
        for token in _special_tokens(tokenizer, *names):
            if two == [tokenizer.convert_tokens_to_ids(token)] * 2 and stands(token) and not stands(2 * token):
                notes.append(f"the text {where} with {token!r}, {twice}")
    mask = getattr(tokenizer, "mask_token", None)
    foreign = [match for match in MASKS.finditer(text) if match[0] != mask]
    if foreign:
        written = ", ".join(dict.fromkeys(shown(match[0]) for match in foreign))
        notes.append(f"read as plain text: {written}; this model {f'has the mask {mask}' if mask else 'has no mask'}")
    return (*notes, *_note_on_unknown(tokenizer, sentence, [match.span() for match in foreign]))


def _note_on_unknown(tokenizer: Any, sentence: Sentence, foreign_masks: list[tuple[int, int]]) -> Iterator[str]:
    """A note that counts the words that the model reads as unknown, and names a model that knows them."""
    places = sentence.offsets or ((0, 0),) * len(sentence)
    of_masks = {i for i, (a, b) in enumerate(places) for begin, end in foreign_masks if begin <= a < b <= end}
    texts = [sentence.tokens[i].strip() for i in sentence.unknown if i not in of_masks]
    if words := [text for text in texts if text != tokenizer.unk_token]:  # that one, written so, is meant
        named = list(dict.fromkeys(map(shown, words)))
        in_pieces = all(word.isascii() and len(word) <= LONGEST_WORD for word in words)
        knows = "all-MiniLM-L6-v2" if in_pieces else "a model that reads bytes, such as gpt2,"
        yield (
            f"{len(words)} of {len(sentence) - sum(sentence.special)} tokens are unknown to this model and read as "
            f"{tokenizer.unk_token}: {', '.join(named[:NAMED])}{', …' if len(named) > NAMED else ''}; "
            f"{knows} knows them; if you gave the tokenizer, check that it is the model's own"
        )


def _notes_on_beginning(model: nn.Module, sentence: Sentence) -> tuple[str, ...]:
    """A note on ids that begin with one special token twice, as where a chat template's text is cut once more."""
    tokenizer: Any = facts_of(model).tokenizer
    for token in sorted(_special_tokens(tokenizer, "bos_token", "cls_token")):
        if sentence.ids[:2].tolist() == [tokenizer.convert_tokens_to_ids(token)] * 2:
            return (f"the ids begin with {token!r} twice: cut a text that has it without adding it",)
    return ()


def _special_tokens(tokenizer: Any, *names: str) -> set[str]:
    return {token for name in names if (token := getattr(tokenizer, name, None))}


def _notes_on_ids(model: nn.Module, sentence: Sentence) -> tuple[str, ...]:
    """A note on ids without an attention_mask: padding at their ends is read as tokens."""
    tokenizer: Any = facts_of(model).tokenizer
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return ()
    ids = sentence.ids.tolist()
    left = next((i for i, token in enumerate(ids) if token != pad), len(ids))
    right = next((i for i, token in enumerate(reversed(ids)) if token != pad), len(ids)) if left < len(ids) else 0
    # One may be meant, where the token is also that of a beginning or an end.
    others = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "unk_token_id")
    uses = {getattr(tokenizer, name, None) for name in others} | ({decoder_start(model)} if stacks_of(model) else set())
    if max(left, right) <= (pad in uses):
        return ()
    return (
        f"the ids hold {left + right} times {tokenizer.pad_token!r} at their ends, the tokenizer's padding, which is "
        "read as tokens: pass attention_mask to leave it out, or take it out of the ids",
    )


_WARNED: ContextVar[bool] = ContextVar("_WARNED", default=False)


@contextmanager
def warned_before() -> Iterator[None]:
    """Within, inputs are read without a warning: there was one already, or the caller reports the notes itself."""
    before = _WARNED.set(True)
    try:
        yield
    finally:
        _WARNED.reset(before)


def warned(inputs: Inputs) -> Inputs:
    """The same inputs, after one warning for all notes on them."""
    noted = [sentence for sentence in inputs.sentences if sentence.notes]
    if noted and not _WARNED.get():
        name = "the input" if inputs.single else f"inputs[{noted[0].row}]"
        more = f" ({len(noted) - 1} more of {len(inputs.sentences)} inputs have such notes)" if len(noted) > 1 else ""
        warn_caller(f"{name}: {'; '.join(noted[0].notes)}; scored as given{more}")
    return inputs
