"""The sentences of an evaluation: read from their source, filtered for a model, and tokenized by a protocol.

- masked: the whole sentence with the target masked; the row that is evaluated is that of the mask.
- causal: the words before the target; the target is the next token, and the row is that of the last position.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jaxtyping import Int
from torch import Tensor, nn

from tl_vzero.choices import one_of, positive
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.data.blimp import read_blimp
from tl_vzero.data.examples import Example, ExampleSet, Skipped, write_words
from tl_vzero.data.own_file import read_examples
from tl_vzero.errors import InputError, InputTypeError, ModelError, TLVZeroError
from tl_vzero.inputs.text import encode, warned_before
from tl_vzero.models.contracts import check_contracts, is_causal
from tl_vzero.models.facts import facts_of

WhichPieces = Literal["first", "all"]
WHICH_PIECES: tuple[WhichPieces, ...] = get_args(WhichPieces)
ONE_PIECE = "target is one token"


@dataclass(frozen=True, eq=False)
class Pieces:
    """One masked sentence in the tokenizer's pieces; positions count pieces, special tokens included.

    `word_ids` gives the word of the example that each piece belongs to, None for special tokens. `good_id` and
    `bad_id` are the two forms as the tokenizer writes them at the target's place.
    """

    ids: Int[Tensor, "position"]
    tokens: tuple[str, ...]
    word_ids: tuple[int | None, ...]
    target: int
    good_id: int
    bad_id: int | None

    @property
    def special(self) -> tuple[bool, ...]:
        """Which positions hold special tokens; the mask stands for a word and is none of them."""
        return tuple(word is None for word in self.word_ids)

    def positions(self, words: Sequence[int], which: WhichPieces) -> tuple[int, ...]:
        """The first piece of each of some words (the paper), or all of them; words that are not there have none."""
        one_of("choice of pieces", which, WHICH_PIECES)
        by_word = [[position for position, owner in enumerate(self.word_ids) if owner == word] for word in words]
        return tuple(position for pieces in by_word for position in (pieces[:1] if which == "first" else pieces))


def pieces_of(example: Example, tokenizer: Any) -> Pieces:
    """Lay an example onto a tokenizer, its special tokens around it, the target replaced by its mask token.

    Raises InputError for a tokenizer that gives no character offsets or has no mask token, a target that is not one
    known token, and a cue or an attractor that the tokenizer drops.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> tokenizer = tl_vzero.load_model("agreement-mini").tokenizer
    >>> pieces = pieces_of(agreement_examples()[2], tokenizer)
    >>> pieces.tokens
    ('[CLS]', 'her', 'professor', '[MASK]', 'praising', 'the', 'polite', 'lawyer', '.', '[SEP]')
    >>> pieces.target, pieces.positions([1, 2], "first")
    (3, (2, 3))
    """
    _check_tokenizer(tokenizer)
    good_id = _single_id(example, example.good, tokenizer)
    bad_id = None if example.bad is None else _single_id(example, example.bad, tokenizer)
    ids, word_ids = tokenize_words(example.words_with(tokenizer.mask_token), tokenizer)
    masks = [position for position, token_id in enumerate(ids) if token_id == tokenizer.mask_token_id]
    if len(masks) != 1:
        raise InputError(f"{example.id} has {len(masks)} mask tokens: expected one, at its target")
    dropped = [example.words[word] for word in (*example.cue, *example.attractor) if word not in word_ids]
    if dropped:
        raise InputError(f"{example.id}: the tokenizer drops the cue or attractor {dropped[0]!r}; expected a token")
    tokens = tuple(str(token) for token in tokenizer.convert_ids_to_tokens(ids))
    return Pieces(torch.tensor(ids), tokens, word_ids, masks[0], good_id, bad_id)


def keep_one_piece_targets(examples: ExampleSet, tokenizer: Any) -> ExampleSet:
    """The examples whose right and wrong form are one known token each; the others are listed in the report.

    Raises InputError for a tokenizer that gives no character offsets or has no mask token, and where no example is
    left.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> usable = keep_one_piece_targets(agreement_examples(), tl_vzero.load_model("agreement-mini").tokenizer)
    >>> usable.report.to_frame().loc["all"].to_dict()
    {'read': 500, 'target is one token': 500}
    """
    _check_tokenizer(tokenizer)
    # Of BLiMP 4,724 are left under bert-base-uncased. The paper has 4,276: with cues of one token too, 4,273 are left.
    usable = examples.filtered(ONE_PIECE, lambda example: _why_not_one_piece(example, tokenizer))
    if not usable and examples:
        raise InputError(
            f"no example is left: this tokenizer has no target of {len(examples)} as one token, for one "
            f"{usable.report.skipped[-1].reason}; expected a model with these words in its vocabulary"
        )
    return usable


def check_fast(tokenizer: Any) -> None:
    """Raise InputError for a tokenizer that gives no character offsets."""
    if not getattr(tokenizer, "is_fast", False):
        what = type(tokenizer).__name__
        raise InputError(
            f"the tokenizer is {what}, without character offsets: expected a fast one, as of AutoTokenizer"
        )


def _check_tokenizer(tokenizer: Any) -> None:
    check_fast(tokenizer)
    if tokenizer.mask_token is None:
        raise InputError(
            "the tokenizer has no mask token: expected one of a masked language model; for a causal model, take the "
            "words before the target as the text and the target as the next token"
        )


def _why_not_one_piece(example: Example, tokenizer: Any) -> str | None:
    forms = [form for form in (example.good, example.bad) if form is not None]
    return next((reason for form in forms if isinstance(reason := _one_piece(example, form, tokenizer), str)), None)


def _single_id(example: Example, form: str, tokenizer: Any) -> int:
    token_id = _one_piece(example, form, tokenizer)
    if isinstance(token_id, str):
        raise InputError(f"{example.id}: {token_id}; expected one token, see keep_one_piece_targets")
    return token_id


def _one_piece(example: Example, form: str, tokenizer: Any) -> int | str:
    """The id of a form in its place, or why it has none: a tokenizer may cut it otherwise at the start of a text."""
    ids, word_ids = tokenize_words(example.words_with(form), tokenizer)
    pieces = [token_id for token_id, word in zip(ids, word_ids, strict=True) if word == example.target]
    if len(pieces) != 1:
        return f"{form!r} is {len(pieces)} tokens: {' '.join(tokenizer.convert_ids_to_tokens(pieces))}"
    return f"{form!r} is not in the vocabulary" if pieces[0] == tokenizer.unk_token_id else pieces[0]


def tokenize_words(words: Sequence[str], tokenizer: Any) -> tuple[list[int], tuple[int | None, ...]]:
    """The ids of a sentence, and the word of each; None for what the tokenizer puts around the sentence."""
    text, spans = write_words(words)
    encoding = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, verbose=False)
    # [MASK] within the sentence counts as a word. A piece's word is the first that ends after the piece begins: a piece
    # may be, or begin with, the space before its word.
    around = encoding["special_tokens_mask"]
    word_ids = tuple(
        None if special else next((index for index, (_, end) in enumerate(spans) if end > begin), None)
        for (begin, _), special in zip(encoding["offset_mapping"], around, strict=True)
    )
    return list(encoding["input_ids"]), word_ids


# The sentences of one source, for a model.

Protocol = Literal["masked", "causal"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)


@dataclass(frozen=True)
class Sentences:
    """The examples of one source that a model can be asked about, and what the source is, in words."""

    source: str
    examples: ExampleSet


def sentences_for(
    model: nn.Module,
    *,
    blimp: str | Path | None = None,
    file: str | Path | None = None,
    cues: str = "given",
    protocol: Protocol = "masked",
    limit: int | None = None,
    seed: int = 0,
) -> Sentences:
    """The examples of BLiMP in a folder, of a CSV or JSONL file, or the embedded ones, as far as a model can take them.

    `blimp="hub"` fetches BLiMP. `cues` are those "given" in the file, or come from a dependency parse, "spacy".
    Under the masked protocol targets have to be one token each. `limit` keeps so many, spread over the paradigms and
    drawn by `seed`. The report of the examples counts what is left at each filter.

    Raises InputError for both a folder and a file, for `cues` without a file, or a bad limit, and what the readers and
    `keep_one_piece_targets` raise.

    >>> import tl_vzero
    >>> sentences_for(tl_vzero.load_model("agreement-mini"), limit=12).examples.report.to_frame().loc["all"].to_dict()
    {'read': 500, 'target is one token': 500, 'chosen by limit': 12}
    """
    if blimp is not None and file is not None:
        raise InputError(f"given both BLiMP's folder {blimp} and the file {file}: expected one source of sentences")
    if file is None and cues != "given":
        raise InputError(f"cues={cues!r} without a file: expected sentences of your own; others have their cues")
    positive("limit", limit)
    if blimp is not None:
        examples, source = read_blimp(None if str(blimp) == "hub" else blimp), "BLiMP"
    elif file is not None:
        examples, source = read_examples(file, cues=cues), Path(file).name
    else:
        examples, source = agreement_examples(), "the embedded agreement sentences"
    tokenizer = facts_of(model).tokenizer
    # Without a mask token no filter applies: `tokenize_examples` explains better what is wrong.
    if protocol == "masked" and getattr(tokenizer, "mask_token", None) is not None:
        examples = keep_one_piece_targets(examples, tokenizer)
    return Sentences(source, examples if limit is None else limited(examples, limit, seed))


def limited(examples: ExampleSet, limit: int, seed: int) -> ExampleSet:
    """So many examples, drawn by a hash of seed and id, in turn from each paradigm; their order stays.

    >>> list(limited(agreement_examples(), 6, 0).counts().values())
    [1, 1, 1, 1, 1, 1]
    """
    drawn = sorted(examples, key=lambda example: hashlib.sha256(f"{seed} {example.id}".encode()).hexdigest())
    queues = [[example.id for example in drawn if example.paradigm == paradigm] for paradigm in examples.counts()]
    in_turn = [name for turn in zip_longest(*queues) for name in turn if name is not None]
    chosen = set(in_turn[:limit])
    return examples.after("chosen by limit", [example for example in examples if example.id in chosen])


@dataclass(frozen=True, eq=False)
class TokenizedExample:
    """An example as a model reads it. `target_position` is that of the target; None where the target comes next."""

    example: Example
    encoding: Pieces
    target_position: int | None

    def __len__(self) -> int:
        return len(self.encoding.tokens)

    @property
    def dest(self) -> int:
        """The position whose row is evaluated."""
        return self.encoding.target

    def cue(self, which: WhichPieces) -> tuple[int, ...]:
        """The positions of the cue: the first token of each of its words (the paper), or all tokens."""
        return self.encoding.positions(self.example.cue, which)

    def attractor(self, which: WhichPieces) -> tuple[int, ...]:
        """The positions of the words that compete with the cue, as far as they are in the input."""
        return self.encoding.positions(self.example.attractor, which)


@dataclass(frozen=True, eq=False)
class TokenizedSet:
    """Examples as one model reads them, in order; `skipped` are those that the protocol cannot hold, and why."""

    examples: tuple[TokenizedExample, ...]
    protocol: Protocol
    skipped: tuple[Skipped, ...] = ()


def tokenize_examples(model: nn.Module, examples: Sequence[Example], *, protocol: Protocol = "masked") -> TokenizedSet:
    """Examples in a model's tokens; what the causal protocol cannot hold is listed as skipped.

    Raises InputError for no examples, a tokenizer that cannot place words, or a target that is not one token;
    ModelError for a causal model under the masked protocol, and the reverse.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> tokenized = tokenize_examples(tl_vzero.load_model("agreement-mini"), agreement_examples()[:2])
    >>> tokenized.examples[0].encoding.tokens[tokenized.examples[0].dest]
    '[MASK]'
    """
    one_of("protocol", protocol, PROTOCOLS)
    check_contracts(model)
    name, tokenizer = facts_of(model).name, facts_of(model).tokenizer
    if tokenizer is None:
        raise InputError("this model has no tokenizer: load the model with tokenizer=, examples are words")
    if not isinstance(examples, Sequence) or not all(isinstance(example, Example) for example in examples):
        what = type(examples).__name__
        raise InputTypeError(f"examples is {what}: expected a sequence of Example, such as agreement_examples()")
    if not examples:
        raise InputError("there are no examples: expected at least one; see the filter report of their ExampleSet")
    # A causal model's tokenizer may well lack a mask token: that it is causal is the reason to give.
    causal = is_causal(model)
    if causal != (protocol == "causal"):
        attends = "is causal: it predicts the next token" if causal else "attends in both directions: it fills in masks"
        raise ModelError(f'{name} {attends}; give protocol="{"causal" if causal else "masked"}", or another model')
    if causal:
        return _causal_set(examples, tokenizer)
    masked = ((example, pieces_of(example, tokenizer)) for example in examples)
    return TokenizedSet(tuple(TokenizedExample(*pair, pair[1].target) for pair in masked), "masked")


class NotCausal(Exception):
    """Why an example cannot be read from left to right."""


def _causal_set(examples: Sequence[Example], tokenizer: Any) -> TokenizedSet:
    check_fast(tokenizer)
    tokenized: list[TokenizedExample] = []
    skipped: list[Skipped] = []
    for example in examples:
        try:
            tokenized.append(TokenizedExample(example, _tokens_before_target(example, tokenizer), None))
        except NotCausal as reason:
            skipped.append(Skipped(example.id, example.paradigm, "target is the next token", str(reason)))
    if not tokenized:
        expected = f"{skipped[-1].reason}: expected examples whose cue comes before a target of one token"
        raise InputError(f"no example of {len(examples)} can be read from left to right, for one {expected}")
    return TokenizedSet(tuple(tokenized), "causal", tuple(skipped))


def _tokens_before_target(example: Example, tokenizer: Any) -> Pieces:
    """The tokens before the target, and the two forms as the next token; `target` is the last position."""
    late = [word for word in example.cue if word > example.target]
    if late:
        raise NotCausal(f"the cue {example.words[late[0]]!r} comes after the target")
    ids, word_ids, good_id = _ids_before_target(example, example.good, tokenizer)
    bad_id = None
    if example.bad is not None:
        ids_before_bad, _, bad_id = _ids_before_target(example, example.bad, tokenizer)
        if ids_before_bad != ids:
            raise NotCausal("the tokens before the target differ between the two forms")
    dropped = [example.words[word] for word in example.cue if word not in word_ids]
    if dropped:
        raise NotCausal(f"the tokenizer drops the cue {dropped[0]!r}")
    tokens = tuple(str(token) for token in tokenizer.convert_ids_to_tokens(ids))
    return Pieces(torch.tensor(ids), tokens, word_ids, len(ids) - 1, good_id, bad_id)


def _ids_before_target(example: Example, form: str, tokenizer: Any) -> tuple[list[int], tuple[int | None, ...], int]:
    """The ids before the target, the word of each, and the id of a form at the target."""
    ids, word_ids = tokenize_words(example.words_with(form), tokenizer)
    at_target = [position for position, word in enumerate(word_ids) if word == example.target]
    if len(at_target) != 1:
        raise NotCausal(f"{form!r} is {len(at_target)} tokens")
    (target,) = at_target
    if ids[target] == tokenizer.unk_token_id and form != tokenizer.unk_token:
        raise NotCausal(f"{form!r} is not in the vocabulary")
    if target == 0:
        raise NotCausal("there is no token before the target")
    return ids[:target], word_ids[:target], ids[target]


def read_texts(model: nn.Module, tokenized: TokenizedSet) -> list[str]:
    """The text of each example, as `tl-vzero corpus` reads it: its target masked, or only what comes before a target.

    Raises InputError where a text by itself gives other tokens than the example: the corpus of it would be another.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> read_texts(model, tokenize_examples(model, agreement_examples()[2:3]))
    ['her professor [MASK] praising the polite lawyer.']
    """
    tokenizer: Any = facts_of(model).tokenizer
    texts = [_text_of(sentence, tokenizer.mask_token) for sentence in tokenized.examples]
    pairs = zip(tokenized.examples, texts, strict=True)
    differing = [one.example.id for one, text in pairs if _ids(model, text) != one.encoding.ids.tolist()]
    if differing:
        raise InputError(
            f"the text of {len(differing)} of {len(texts)} examples gives other tokens by itself than before its "
            f"target, first {differing[0]!r}: expected sentences whose text can stand alone; evaluate without a corpus"
        )
    return texts


def _text_of(sentence: TokenizedExample, mask_token: str) -> str:
    example = sentence.example
    if sentence.target_position is not None:
        return example.with_target(mask_token)
    text, spans = write_words(example.words)
    return text[: spans[example.target][0]].rstrip()


def _ids(model: nn.Module, text: str) -> list[int] | None:
    try:
        with warned_before():  # whatever is amiss with a text, the corpus of it notes
            (encoded,) = encode(model, [text]).sentences
    except TLVZeroError:
        return None
    return encoded.ids.tolist()
