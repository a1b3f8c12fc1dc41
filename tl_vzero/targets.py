"""The target of a prediction: its position, and its tokens as ids or as words that are one token each.

Also whether the model has a trained head that could predict words at all, and a sentence with a target for any model.
"""

import math
import re
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Literal

import torch
from torch import nn

from tl_vzero.choices import Position, listed, place_of
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, foreign_errors_as, shown, unknown_name
from tl_vzero.inputs.text import Sentence
from tl_vzero.models.class_head import ClassHead
from tl_vzero.models.contracts import is_causal
from tl_vzero.models.facts import class_head_of, facts_of, vocabulary_size
from tl_vzero.models.run import quiet, run_logits
from tl_vzero.models.sites import stacks_of

TargetToken = int | str
TargetIds = TargetToken | tuple[TargetToken, TargetToken]

EXPECTED = "one token (an id or a word) or class (a number or a label), or a pair (good, bad)"


def check_trained_head(model: nn.Module) -> None:
    """Raise HeadlessModelError where no head was ever trained, or is not computed: the logits of words are noise."""
    facts = facts_of(model)
    if facts.head == "absent" and not class_head_of(model):
        reason = "has no trained prediction head, so its logits mean nothing"
        if facts.classes:
            reason = f"is a classifier, and its head {facts.classes}"
        raise HeadlessModelError(
            f"{facts.name} {reason}: expected a language model or a classifier of text with a trained head for an "
            "effect on the prediction; scores of what a layer mixes need none"
        )


def check_predicts_words(model: nn.Module) -> None:
    """Raise HeadlessModelError where no head for words was ever trained, and for a classifier."""
    head = class_head_of(model)
    if head is not None:
        raise HeadlessModelError(
            f"{facts_of(model).name} is a classifier: its head was trained for {shown(list(head.labels))} and predicts "
            "no words; expected a masked or causal language model, as this is about words"
        )
    check_trained_head(model)


def target_tokens(model: nn.Module, target_ids: TargetIds | None) -> tuple[int, int | None] | None:
    """The ids (good, bad) of one token or a pair; bad is None for one token, `None` stays `None`.

    A word must be one token of the vocabulary, as it is or after a space (" is" in GPT-2). Of a classifier they are
    numbers of classes, or their labels.
    Raises InputError for a word that is none, an id outside the vocabulary or a pair of one token,
    InputTypeError for what is no token.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> target_tokens(model, ("is", "are")) == (target_tokens(model, "is")[0], target_tokens(model, "are")[0])
    True
    """
    if target_ids is None:
        return None
    read = listed("target_ids", target_ids)
    read = read if isinstance(read, list) else [read]
    if len(read) not in (1, 2):
        raise InputTypeError(f"target_ids are {shown(target_ids)}: expected {EXPECTED}")
    head = class_head_of(model)
    tokens = [_token_id(model, token, target_ids) if head is None else _class(head, token) for token in read]
    if len(tokens) == 1:
        return tokens[0], None
    if tokens[0] == tokens[1]:
        kind, several = ("token", "tokens") if head is None else ("class", "classes")
        raise InputError(f"target_ids are {target_ids!r}, both {kind} {tokens[0]}: expected two different {several}")
    return tokens[0], tokens[1]


def written_token(text: str) -> TargetToken:
    """A token that was written in words: "#" and digits are an id, for tokens that no word says; else it is a word.

    >>> written_token("are"), written_token("#102"), written_token("##s")
    ('are', 102, '##s')
    """
    return int(text[1:]) if re.fullmatch("#[0-9]{1,20}", text) else text


def word_of(model: nn.Module, token_id: int) -> str:
    """A token as `written_token` and `target_tokens` read it back: a word where it says this token alone, else "#id".

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> [word_of(model, token_id) for token_id in target_tokens(model, ("are", "is"))]
    ['are', 'is']
    """
    head = class_head_of(model)
    if head is not None:
        label = head.labels[token_id]
        return label if written_token(label) == label and head.labels.count(label) == 1 else f"#{token_id}"
    tokenizer = facts_of(model).tokenizer
    text = "" if tokenizer is None else str(tokenizer.decode([token_id])).rstrip()
    for word in (text.strip(), text):  # GPT-2 has "is", and " is" after a space
        with suppress(InputError):
            if written_token(word) == word and _id_of_word(model, word) == token_id:
                return word
    return f"#{token_id}"


def _token_id(model: nn.Module, token: Any, target_ids: object) -> int:
    if isinstance(token, bool) or not isinstance(token, int | str):
        raise InputTypeError(f"target_ids are {shown(target_ids)}: expected {EXPECTED}")
    token_id = _id_of_word(model, token) if isinstance(token, str) else token
    size = vocabulary_size(model)
    if not 0 <= token_id < size:
        raise InputError(f"target_ids hold {token_id}: expected 0 to {size - 1}, the model's vocabulary")
    return token_id


def _class(head: ClassHead, named: Any) -> int:
    """The number of a class, named by that or by its label."""
    numbers = f"a number from 0 to {len(head.labels) - 1}"
    if isinstance(named, bool) or not isinstance(named, int | str):
        raise InputTypeError(f"target_ids hold {shown(named)}: expected a class, by its label or {numbers}")
    if isinstance(named, int):
        if not 0 <= named < len(head.labels):
            raise InputError(f"target_ids hold class {named}: expected {numbers}")
        return named
    if head.labels.count(named) > 1:
        raise InputError(f"target_ids hold {named!r}, the label of several classes: expected {numbers}")
    if named not in head.labels:
        raise unknown_name("class in target_ids:", named, (*head.labels, numbers))
    return head.labels.index(named)


def _id_of_word(model: nn.Module, word: str) -> int:
    tokenizer = facts_of(model).tokenizer
    if tokenizer is None:
        raise InputError(f"target_ids hold the word {word!r}, and this model has no tokenizer: expected token ids")
    if not word.strip():
        raise InputError(f"target_ids hold {word!r}, no word: expected one token of the vocabulary")
    tried: dict[tuple[int, ...], str] = {}  # by ids: many tokenizers read a word and a space before it alike
    for written in (word, f" {word}"):
        with foreign_errors_as(InputError, f"target_ids hold {word!r}, which the tokenizer cannot read"):
            ids = tuple(tokenizer(written, add_special_tokens=False, verbose=False)["input_ids"])
        unknown = tokenizer.unk_token_id in ids and word != tokenizer.unk_token
        if len(ids) == 1 and not unknown:
            return int(ids[0])
        pieces = f"breaks into {tokenizer.convert_ids_to_tokens(list(ids))}"
        tried.setdefault(ids, f"{written!r} {'is not in the vocabulary' if len(ids) == 1 else pieces}")
    raise InputError(
        f"target_ids hold {word!r}, which is no single token: {', and '.join(tried.values())}; "
        "expected a word that is one token of the vocabulary, or its id"
    )


def mask_positions(model: nn.Module, sentence: Sentence) -> tuple[int, ...]:
    """The positions of the model's mask token in a sentence; none where the tokenizer has no such token."""
    mask_id = getattr(facts_of(model).tokenizer, "mask_token_id", None)
    return tuple(i for i, token_id in enumerate(sentence.ids.tolist()) if token_id == mask_id)


def default_target(model: nn.Module, sentence: Sentence) -> int | None:
    """The target where none is given: what the model itself predicts or decides at; None for a masked model whose
    sentence has not exactly one mask token.

    The position that a classifier's head reads; where it reads each by itself, the one whose class is surest, and of
    an answer the best span's start. The last position of a causal model or a decoder, which predict the next token;
    else the only mask token.

    >>> import tl_vzero
    >>> from tl_vzero.inputs.text import encode
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> [default_target(model, encode(model, text).sentences[0]) for text in ("the [MASK] today.", "the hat near.")]
    [2, None]
    """
    head = class_head_of(model)
    if head is not None:
        return head.position(sentence.ids) if head.reads != "each" else _surest(model, head, sentence)
    if is_causal(model) or sentence.encoder is not None:
        return len(sentence) - 1
    facts = facts_of(model)
    if facts.classes:
        ids, cls_id = sentence.ids.tolist(), getattr(facts.tokenizer, "cls_token_id", None)
        return ids.index(cls_id) if cls_id in ids else 0
    masks = mask_positions(model, sentence)
    return masks[0] if len(masks) == 1 else None


def _surest(model: nn.Module, head: ClassHead, sentence: Sentence) -> int:
    """The position whose class has the highest probability, or where the best span begins; by one clean run.

    Special tokens count only where there is nothing else, and so do positions whose class says that they are of none: a
    tagger's "O", the blank of CTC. An answer stands in the second text of a pair.
    """
    first, types = next(nn.Module.parameters(model)), sentence.token_types
    read = sentence.read.to(first.device).unsqueeze(0)
    segments = None if types is None else torch.tensor([types], device=first.device)
    with quiet(model):
        read = read.to(first.dtype) if read.is_floating_point() else read
        logits = run_logits(model, read, [], segments)[0].cpu().double()
    allowed = ~torch.tensor(sentence.special)
    if head.is_span:
        within = allowed & (torch.tensor(types) == max(types)) if types else allowed
        start, end = logits.masked_fill(~(within if within.any() else ~within).unsqueeze(-1), -math.inf).unbind(-1)
        return int((start + end.flip(0).cummax(0).values.flip(0)).argmax())
    says = ~torch.isin(logits.argmax(-1), torch.tensor(sorted(head.nothing), dtype=torch.long))
    usable = next(marked for marked in (allowed & says, allowed, ~allowed) if marked.any())
    sure = head.probabilities(logits) if head.has_probabilities else logits
    return int(sure.amax(-1).masked_fill(~usable, -math.inf).argmax())


def why_no_default(model: nn.Module, sentence: Sentence) -> str:
    """Why a sentence has no default target."""
    return f"the sentence has {len(mask_positions(model, sentence))} mask tokens"


def predicts(model: nn.Module) -> Literal["next token", "token", "class"]:
    """What a position's prediction is of: the token after it, the token that stands there, or a class."""
    if class_head_of(model) is not None:
        return "class"
    return "next token" if is_causal(model) or stacks_of(model) else "token"


def default_text(model: nn.Module) -> str:
    """A sentence for a model of its kind, with a default target where the model has one.

    >>> import tl_vzero
    >>> default_text(tl_vzero.load_model("agreement-mini"))
    'the pictures of some hat [MASK] scaring marcus.'
    """
    facts = facts_of(model)
    mask = getattr(facts.tokenizer, "mask_token", None)
    if facts.classes:
        return "the pictures of some hat are scaring marcus."
    return (
        "The keys to the cabinet" if is_causal(model) else f"the pictures of some hat {mask or 'are'} scaring marcus."
    )


def find_target(model: nn.Module, sentence: Sentence, target: Position | None) -> int:
    """The target's position: the one given (negative: from the end; or by its token), or the default.

    Raises InputError where the position is outside the sentence or is not what a classifier's head reads, or none is
    given and there is no default.
    """
    head = class_head_of(model)
    if target is None:
        target = default_target(model, sentence)
        if target is None:
            raise InputError(
                f"no target given, and {why_no_default(model, sentence)}: expected exactly one; give a target, a "
                f"position from 0 to {len(sentence) - 1} or its token"
            )
        return target
    place = place_of("target", target, sentence.tokens, range(len(sentence)))
    read = place if head is None or head.reads == "each" else head.position(sentence.ids)
    if place != read:
        raise InputError(
            f"target is {shown(target)}, and the head of {facts_of(model).name} reads position {read} alone: expected "
            "that, or no target"
        )
    return place


def one_per_sentence(target: Position | Sequence[Position] | None, count: int) -> list[Any]:
    """A target for each of several sentences: one position for all, or a list with one for each."""
    targets = list(target) if isinstance(target, list | tuple | range) else [target] * count
    if len(targets) != count:
        raise InputError(
            f"target holds {len(targets)} positions for {count} sentences: expected one position for all, or one for "
            "each"
        )
    return targets
