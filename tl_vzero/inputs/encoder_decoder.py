"""Inputs of any model and stack: text, ids, images or sounds, and for a decoder its sentences beside the encoder's."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.inputs.media import NO_SOUND, Signals, encode_mixed, encode_signals, holds_media
from tl_vzero.inputs.text import (
    Ids,
    Inputs,
    Sentence,
    Text,
    describe,
    encode,
    from_ids,
    pieces_of,
    sentence_of,
    tokenizer_for,
    warned,
)
from tl_vzero.models.facts import decoder_start
from tl_vzero.models.signals import signal_of
from tl_vzero.models.sites import Stack

EXPECTED = (
    "a string, a list of strings, a 1-D tensor of ids, a list of such tensors, or a 2-D tensor of ids without padding"
)
DecoderInputs = str | Sequence[str] | Sequence[Tensor] | Tensor


def encode_for(
    model: nn.Module,
    stack: Stack | None,
    inputs: Text | Signals,
    decoder_inputs: DecoderInputs | None,
    *,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    prepend_bos: bool = False,
    sampling_rate: int | None = None,
    predicting: bool = False,
) -> Inputs:
    """Read a user's inputs for a stack; None is the only stack of a model that is no encoder-decoder.

    For the decoder's stacks the sentences are what the decoder reads, and so they are for the encoder's where the
    decoder's prediction is asked for (`predicting`). The decoder's text loses its last special token and gets the token
    that starts the decoder, as labels do in training; its ids are taken as they are.

    Raises InputError or InputTypeError, as `encode` does, and where decoder inputs are missing, not needed, or not as
    many as the inputs.
    """
    _check_needed(stack, decoder_inputs, predicting)
    signal = signal_of(model)
    if signal is not None:
        if token_type_ids is not None:
            raise InputError(f"token_type_ids given with {signal.named}: expected none; segments are of token ids")
        of_encoder = encode_signals(signal, inputs, attention_mask=attention_mask, sampling_rate=sampling_rate)
    elif sampling_rate is not None:
        raise InputError(NO_SOUND)
    elif holds_media(model, inputs):
        if attention_mask is not None or token_type_ids is not None:
            raise InputError(
                "attention_mask or token_type_ids given with images or sounds: the processor returned them"
            )
        return encode_mixed(model, inputs)
    else:
        of_encoder = encode(
            model, inputs, attention_mask=attention_mask, token_type_ids=token_type_ids, prepend_bos=prepend_bos
        )
    if decoder_inputs is None:
        return of_encoder
    try:
        of_decoder = _decoder_sentences(model, decoder_inputs)
    except (InputError, InputTypeError) as error:
        raise type(error)(f"of the decoder's inputs: {error}") from error
    if of_decoder.single != of_encoder.single or len(of_decoder.sentences) != len(of_encoder.sentences):
        raise InputError(
            f"inputs are {_counted(of_encoder)} and decoder_inputs {_counted(of_decoder)}: expected as many for the "
            "decoder as for the encoder, one sentence for one sentence and a list for a list"
        )
    pairs = zip(warned(of_decoder).sentences, of_encoder.sentences, strict=True)
    sentences = (replace(sentence, encoder=encoder, cross=stack != "decoder") for sentence, encoder in pairs)
    return Inputs(tuple(sentences), single=of_encoder.single)


def _check_needed(stack: Stack | None, decoder_inputs: object, predicting: bool) -> None:
    if stack in ("decoder", "cross") or (stack == "encoder" and predicting):
        if decoder_inputs is None:
            raise InputError(
                f"stack={stack!r}, and no decoder_inputs given: expected what the decoder reads, {EXPECTED}"
            )
    elif decoder_inputs is not None:
        reader = 'stack="encoder"' if stack else "this model"
        raise InputError(
            f"decoder_inputs given, and {reader} reads no second sequence: leave them out; they belong to "
            'stack="decoder" and stack="cross" of an encoder-decoder'
        )


def _counted(inputs: Inputs) -> str:
    return "one sentence" if inputs.single else f"a list of {len(inputs.sentences)}"


def _decoder_sentences(model: nn.Module, inputs: Any) -> Inputs:
    if isinstance(inputs, Tensor):
        return from_ids(model, inputs, None)
    if isinstance(inputs, str):
        return Inputs((_shifted(model, inputs, 0),), single=True)
    if isinstance(inputs, list | tuple):
        for kind, sentence_from in ((str, _shifted), (Tensor, _row_of_ids)):
            if inputs and all(isinstance(item, kind) for item in inputs):
                return Inputs(tuple(sentence_from(model, item, row) for row, item in enumerate(inputs)), single=False)
    raise InputTypeError(f"decoder_inputs are {describe(inputs)}: expected {EXPECTED}")


def _row_of_ids(model: nn.Module, ids: Tensor, row: int) -> Sentence:
    read = from_ids(model, ids, None)
    if not read.single:
        raise InputError(f"decoder_inputs[{row}] has {ids.ndim} dimensions: expected 1, the ids of one sentence")
    return replace(read.sentences[0], row=row)


def _shifted(model: nn.Module, text: str, row: int) -> Sentence:
    """A text as the decoder reads it in training: each position reads the token before the one it is to predict."""
    tokenizer = tokenizer_for(model, text, f"decoder_inputs[{row}]")
    start = decoder_start(model)
    if start is None:
        raise InputError(
            "text given, and the model's configuration names no token that starts its decoder "
            "(decoder_start_token_id): pass ids, the starting token first"
        )
    pieces = pieces_of(tokenizer, text, as_target=True)
    if pieces.ids and pieces.ids[-1] in tokenizer.all_special_ids:
        pieces = pieces.without_last()
    # Whisper's tokenizer sets the start itself, before the language and the task.
    return sentence_of(model, text, row, pieces if pieces.ids[:1] == [start] else pieces.behind(start))


def as_given(sentence: Sentence) -> Any:
    """What the decoder reads as the caller gave it, text or ids."""
    return sentence.ids if sentence.text is None else sentence.text


def described(stack: Stack | None, sentence: Sentence) -> dict[str, Any]:
    """A Scores's metadata on inputs: warnings, unknown tokens, stack, the encoder's, segments, image or sound."""
    notes = [*sentence.notes, *(() if sentence.encoder is None else sentence.encoder.notes)]
    metadata: dict[str, Any] = {"warnings": notes} if notes else {}
    metadata |= {"unknown": list(sentence.unknown)} if sentence.unknown else {}
    if stack is None:
        if sentence.token_types is not None:
            metadata["token_types"] = list(sentence.token_types)
        return metadata | ({"signal": dict(sentence.about)} if sentence.about else {})
    metadata["stack"] = stack
    metadata |= {"signal": dict(sentence.sources.about)} if sentence.sources.about else {}
    if sentence.encoder is not None:
        text = f"text behind {sentence.tokens[0]!r}, which starts the decoder, without its last special token"
        metadata["decoder_inputs"] = "ids as given" if sentence.text is None else text
        metadata["encoder_tokens"] = list(sentence.encoder.tokens)
        metadata["encoder_special"] = list(sentence.encoder.special)
        metadata |= {"encoder_unknown": list(sentence.encoder.unknown)} if sentence.encoder.unknown else {}
    return metadata
