"""Text or ids to sentences: token ids, labels, words and special tokens, without any padding."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.errors import InputError, InputTypeError, ModelError, foreign_errors_as, warn_caller
from tl_vzero.models.facts import context_length, decoder_start, facts_of, vocabulary_size
from tl_vzero.models.signals import signal_of
from tl_vzero.models.sites import kind_of, stacks_of
from tl_vzero.words import Places, decoded_places, label_tokens

TOKENS_A_BATCH = 2048
SHOWN = 60  # characters of a text in an error
UNKNOWN_SHARE = 0.5  # of the tokens of words: with more of them unknown, a tokenizer does not fit the text

Result = TypeVar("Result")

EXPECTED = "a string, a list of strings, a 1-D tensor of ids, or a 2-D tensor of ids with attention_mask"


@dataclass(frozen=True, eq=False)
class Sentence:
    """One sentence as the model reads it. `row` and `columns` say where it stood in the caller's batch.

    Of text, `text` is what was given and `offsets` say where each token begins and ends in it, in characters; special
    tokens that the text does not hold are empty there. A slow tokenizer gives no offsets.

    Where the decoder of an encoder-decoder reads it, `encoder` is what the encoder reads beside it, and `cross` says
    that its map is over the encoder's positions.

    `notes` say what was noticed of it that may not have been meant; it is scored as it was given all the same.

    Of an image or a sound, `signal` is what the model reads, `about` says what its positions are, and there are no ids.
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
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def sources(self) -> "Sentence":
        """The sentence whose positions are the columns of the map."""
        return self.encoder if self.cross and self.encoder is not None else self

    @property
    def read(self) -> Int[Tensor, "position"] | Float[Tensor, "..."]:
        """What the model reads of it: its ids, or the image or sound."""
        return self.ids if self.signal is None else self.signal

    @property
    def shape(self) -> tuple[int, ...]:
        """Its length, and the encoder's beside it: sentences of one shape share a run without padding."""
        beside = 0 if self.encoder is None else len(self.encoder)
        return (len(self), beside) if self.signal is None else (len(self), beside, *self.signal.shape)


@dataclass(frozen=True, eq=False)
class Inputs:
    """The caller's sentences in order. `single` says that one was given, not a list of one."""

    sentences: tuple[Sentence, ...]
    single: bool

    def batches(self) -> Iterator[list[Sentence]]:
        """Sentences that are worked on together, from short to long."""
        batch: list[Sentence] = []
        held = 0
        for sentence in sorted(self.sentences, key=lambda each: each.shape):
            if batch and held + len(sentence) > TOKENS_A_BATCH:
                yield batch
                batch, held = [], 0
            batch.append(sentence)
            held += len(sentence)
        yield batch

    def in_order(self, by_row: Mapping[int, Result]) -> Result | list[Result]:
        """Results as the caller gave the sentences: a list for a list."""
        ordered = [by_row[sentence.row] for sentence in self.sentences]
        return ordered[0] if self.single else ordered


def encode(
    model: nn.Module,
    inputs: object,
    *,
    attention_mask: Tensor | None = None,
    prepend_bos: bool = False,
) -> Inputs:
    """Read inputs at the door: tokenise text, check ids, take padding away.

    Padding is taken away because it is neither source nor destination: what is computed of a padded batch
    is then what each sentence alone gives. Ids are taken as they are; `prepend_bos` adds the tokenizer's
    BOS to text where the tokenizer does not. What may not have been meant is an InputWarning, one for all inputs.

    Raises InputError or InputTypeError, saying what was given and what is expected, ModelError for a model that reads
    no tokens.
    """
    kind_of(model)
    signal = signal_of(model)
    if signal is not None:
        raise ModelError(
            f"this model reads {signal.named}, and what is asked for is for models that read tokens: take "
            "value_zeroing, value_zeroing_hooks, or score with a method that reads the clean run, such as attention"
        )
    if isinstance(inputs, str) or (isinstance(inputs, list | tuple) and _all_strings(inputs)):
        if attention_mask is not None:
            raise InputError("attention_mask given with text: expected ids; text is never padded here")
        texts = [inputs] if isinstance(inputs, str) else list(inputs)
        sentences = [_from_text(model, text, row, prepend_bos) for row, text in enumerate(texts)]
        return warned(Inputs(tuple(sentences), single=isinstance(inputs, str)))
    if isinstance(inputs, Tensor):
        return warned(from_ids(model, inputs, attention_mask))
    raise InputTypeError(f"inputs are {_describe(inputs)}: expected {EXPECTED}")


def _all_strings(inputs: Sequence[Any]) -> bool:
    if not inputs:
        raise InputError(f"inputs are an empty list: expected {EXPECTED}")
    return all(isinstance(text, str) for text in inputs)


def _describe(inputs: object) -> str:
    if isinstance(inputs, list | tuple):
        kinds = sorted({type(item).__name__ for item in inputs})
        return f"a {type(inputs).__name__} of {', '.join(kinds)}"
    return type(inputs).__name__


def _from_text(model: nn.Module, text: str, row: int, prepend_bos: bool) -> Sentence:
    tokenizer = tokenizer_for(model, text, f"inputs[{row}]")
    pieces = pieces_of(tokenizer, text)
    if prepend_bos and tokenizer.bos_token_id is not None and pieces.ids[:1] != [tokenizer.bos_token_id]:
        pieces = pieces.behind(tokenizer.bos_token_id)
    return sentence_of(model, text, row, pieces)


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
    """A text as a tokenizer cuts it; a slow one knows neither words nor places in the text."""

    ids: list[int]
    word_ids: list[int | None] | None
    offsets: list[tuple[int, int]] | None

    def behind(self, token: int) -> "Pieces":
        """The same behind a token that the text does not hold."""
        return Pieces(
            [token, *self.ids],
            None if self.word_ids is None else [None, *self.word_ids],
            None if self.offsets is None else [(0, 0), *self.offsets],
        )

    def without_last(self) -> "Pieces":
        """All but the last."""
        return Pieces(self.ids[:-1], self.word_ids and self.word_ids[:-1], self.offsets and self.offsets[:-1])


def pieces_of(tokenizer: Any, text: str, *, as_target: bool = False) -> Pieces:
    """Cut a text, special tokens included; `as_target`: as the tokenizer does for what is to be produced.

    Raises InputError for a text that the tokenizer cannot read.
    """
    fast = getattr(tokenizer, "is_fast", False)
    given = {"text_target" if as_target else "text": text}
    with foreign_errors_as(InputError, f"the tokenizer {type(tokenizer).__name__} cannot read {_shortened(text)}"):
        text.encode()  # half of a character (a lone surrogate) is no text
        encoding = tokenizer(**given, return_offsets_mapping=fast, verbose=False)
        word_ids = list(encoding.word_ids()) if fast else None
        return Pieces(list(encoding["input_ids"]), word_ids, list(encoding["offset_mapping"]) if fast else None)


def _shortened(text: str) -> str:
    return repr(text if len(text) <= SHOWN else text[: SHOWN - 1] + "…")


def sentence_of(model: nn.Module, text: str, row: int, pieces: Pieces) -> Sentence:
    """A text that was cut, as a sentence; its labels are what the user wrote."""
    if not pieces.ids:
        raise InputError(f"inputs[{row}] {_shortened(text)} has no token for this tokenizer: expected at least one")
    _check_vocabulary(model, pieces.ids)
    places = None
    if pieces.offsets is not None and pieces.word_ids is not None:
        places = Places(text, pieces.offsets, pieces.word_ids)
    sentence = _labelled(model, torch.tensor(pieces.ids), row, tuple(range(len(pieces.ids))), places)
    notes = _notes_on_text(facts_of(model).tokenizer, text, sentence)
    kept = None if pieces.offsets is None else tuple((begin, end) for begin, end in pieces.offsets)
    return replace(sentence, text=text, offsets=kept, notes=notes)


def from_ids(model: nn.Module, ids: Tensor, mask: Tensor | None) -> Inputs:
    """Sentences of ids: one of a 1-D tensor, of a 2-D tensor a row each; `mask` is 0 at padding."""
    _check_ids(model, ids)
    if mask is not None:
        _check_mask(ids, mask)
    # Embeddings take no narrower integers.
    rows = (ids if ids.ndim == 2 else ids.unsqueeze(0)).long()
    kept = torch.ones_like(rows, dtype=torch.bool) if mask is None else mask.reshape(rows.shape) != 0
    sentences = []
    for row, (row_ids, row_kept) in enumerate(zip(rows, kept, strict=True)):
        columns = _one_run(row, row_kept)
        sentence = _labelled(model, row_ids[row_kept].detach().cpu(), row, columns, None)
        sentences.append(sentence if mask is not None else replace(sentence, notes=_notes_on_ids(model, sentence)))
    return Inputs(tuple(sentences), single=ids.ndim == 1)


def _check_ids(model: nn.Module, ids: Tensor) -> None:
    if ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        raise InputTypeError(
            f"ids are {ids.dtype}, shape {list(ids.shape)}: expected integers, such as torch.int64; this model reads "
            "tokens, no image and no sound"
        )
    if ids.ndim not in (1, 2):
        raise InputError(f"ids have {ids.ndim} dimensions, shape {list(ids.shape)}: expected {EXPECTED}")
    if ids.numel() == 0:
        raise InputError(f"ids are empty, shape {list(ids.shape)}: expected at least one token")
    _check_vocabulary(model, ids)


def _check_vocabulary(model: nn.Module, ids: Tensor | Sequence[int]) -> None:
    """Raise InputError for ids that the model's embedding does not have."""
    ids = torch.as_tensor(ids)
    size = vocabulary_size(model)
    low, high = int(ids.min()), int(ids.max())
    if low >= 0 and high < size:
        return
    said = f"ids run from {low} to {high}: expected 0 to {size - 1}, the model's vocabulary; "
    tokenizer = facts_of(model).tokenizer
    if low < 0 or tokenizer is None or high >= len(tokenizer):
        raise InputError(said + "check that the ids come from this model's tokenizer")
    token = tokenizer.convert_ids_to_tokens([high])[0]
    raise InputError(
        said + f"the tokenizer has {len(tokenizer)} tokens, and the model's embedding has no row for {token!r}, id "
        f"{high}; after adding tokens to a tokenizer, call resize_token_embeddings on the Hugging Face model and load "
        "it again, or take the tokenizer that the model was trained with"
    )


def _check_mask(ids: Tensor, mask: Tensor) -> None:
    if not isinstance(mask, Tensor):
        raise InputTypeError(f"attention_mask is {type(mask).__name__}: expected a tensor of the shape of the ids")
    if mask.shape != ids.shape:
        raise InputError(
            f"attention_mask has shape {list(mask.shape)}: expected {list(ids.shape)}, the shape of the ids"
        )
    other = mask[(mask != 0) & (mask != 1)]
    if len(other):
        raise InputError(f"attention_mask holds {other[0].item()}: expected only 1 for tokens and 0 for padding")


def _one_run(row: int, kept: Tensor) -> tuple[int, ...]:
    columns = tuple(torch.nonzero(kept).flatten().tolist())
    if not columns:
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
    numbers = ids.tolist()
    if tokenizer is None:
        labels = tuple(str(number) for number in numbers)
        return Sentence(ids, labels, (False,) * len(labels), None, row, columns)
    special_ids = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    mask_id = getattr(tokenizer, "mask_token_id", None)
    special = tuple(number in special_ids and number != mask_id for number in numbers)
    with foreign_errors_as(
        InputError, f"the tokenizer {type(tokenizer).__name__} cannot write the ids of inputs[{row}]"
    ):
        apart = [number in special_ids or number == mask_id for number in numbers]
        if places is None:
            places = decoded_places(tokenizer, numbers, apart)
        else:  # what the tokenizer itself puts around a text has no word
            apart = [alone or word is None for alone, word in zip(apart, places.word_ids, strict=True)]
        labels, words = label_tokens(tokenizer, numbers, apart, places)
    return Sentence(ids, labels, special, _mask_as_word(words, special), row, columns)


def _mask_as_word(words: Sequence[int | None], special: Sequence[bool]) -> tuple[int | None, ...]:
    """A tokenizer gives its mask token no word; in a sentence it stands for one."""
    used = [word for word in words if word is not None]
    fresh = max(used, default=-1) + 1
    named: list[int | None] = []
    for word, is_special in zip(words, special, strict=True):
        if word is None and not is_special:
            named.append(fresh)
            fresh += 1
        else:
            named.append(word)
    return tuple(named)


def _notes_on_text(tokenizer: Any, text: str, sentence: Sentence) -> tuple[str, ...]:
    """What may not have been meant of a text, for whoever reads the scores."""
    notes = []
    ids = sentence.ids.tolist()
    # Twice in the ids, once in the text: the tokenizer adds the one that is there already.
    twice = "which the tokenizer adds as well: leave it out of the text, or pass ids (add_special_tokens=False)"
    for token in _special_tokens(tokenizer, "bos_token", "cls_token"):
        typed = text.lstrip()
        if ids[:2] == [tokenizer.convert_tokens_to_ids(token)] * 2 and _once(typed.startswith, token):
            notes.append(f"the text begins with {token!r}, {twice}")
    for token in _special_tokens(tokenizer, "eos_token", "sep_token"):
        typed = text.rstrip()
        if ids[-2:] == [tokenizer.convert_tokens_to_ids(token)] * 2 and _once(typed.endswith, token):
            notes.append(f"the text ends with {token!r}, {twice}")
    words = [token for token, is_special in zip(ids, sentence.special, strict=True) if not is_special]
    unknown = words.count(tokenizer.unk_token_id)
    if words and unknown > UNKNOWN_SHARE * len(words):
        notes.append(
            f"{unknown} of {len(words)} tokens are unknown to the tokenizer ({tokenizer.unk_token}): check that it is "
            "the model's own, and made for this language"
        )
    return tuple(notes)


def _special_tokens(tokenizer: Any, *names: str) -> set[str]:
    return {token for name in names if (token := getattr(tokenizer, name, None))}


def _once(stands: Callable[[str], bool], token: str) -> bool:
    return stands(token) and not stands(2 * token)


def _notes_on_ids(model: nn.Module, sentence: Sentence) -> tuple[str, ...]:
    """What may not have been meant of ids without an attention_mask: padding that is read as tokens."""
    tokenizer: Any = facts_of(model).tokenizer
    pad = getattr(tokenizer, "pad_token_id", None)
    if pad is None:
        return ()
    ids = sentence.ids.tolist()
    left = next((i for i, token in enumerate(ids) if token != pad), len(ids))
    right = next((i for i, token in enumerate(reversed(ids)) if token != pad), len(ids)) if left < len(ids) else 0
    # One may be meant, where the token is also that of a beginning or an end.
    others = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id", "unk_token_id")
    has_use = pad in [getattr(tokenizer, name, None) for name in others] or (
        stacks_of(model) and pad == decoder_start(model)
    )
    if max(left, right) <= bool(has_use):
        return ()
    return (
        f"the ids hold {left + right} times {tokenizer.pad_token!r} at their ends, the tokenizer's padding, which is "
        "read as tokens: pass attention_mask to leave it out, or take it out of the ids",
    )


_WARNED: ContextVar[bool] = ContextVar("_WARNED", default=False)


@contextmanager
def warned_before() -> Iterator[None]:
    """Within, inputs are read without a warning: of the same ones there was one, or their notes are told otherwise."""
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


def mask_positions(model: nn.Module, sentence: Sentence) -> tuple[int, ...]:
    """The positions of the model's mask token in a sentence; none where the tokenizer has no such token."""
    mask_id = getattr(facts_of(model).tokenizer, "mask_token_id", None)
    return tuple(i for i, number in enumerate(sentence.ids.tolist()) if number == mask_id)


def find_target(model: nn.Module, sentence: Sentence, target: int | None) -> int:
    """The target's position: the one given (negative: from the end), or the only mask token.

    Raises InputError where the position is outside the sentence, or there is not exactly one mask token.
    """
    if target is None:
        masks = mask_positions(model, sentence)
        if len(masks) != 1:
            raise InputError(
                f"no target given, and the sentence has {len(masks)} mask tokens: expected exactly one; "
                f"give target=, a position from 0 to {len(sentence) - 1}"
            )
        return masks[0]
    if isinstance(target, bool) or not isinstance(target, int):
        raise InputTypeError(f"target is {type(target).__name__}: expected a position (int)")
    if not -len(sentence) <= target < len(sentence):
        raise InputError(
            f"target {target} is outside the sentence: expected 0 to {len(sentence) - 1}, "
            f"or -{len(sentence)} to -1 from the end"
        )
    return target % len(sentence)
