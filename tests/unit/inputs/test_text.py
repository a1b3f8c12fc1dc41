"""Text at the door: what a tokenizer cannot read, and what the model's embedding does not have."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from support.models import VOCABULARY, hf_bert, loaded, third_party_warnings_ignored, tokenizer
from support.state import left_as_found
from support.tokenizer_kinds import tokenizer_named
from tokenizers import processors

import tl_vzero
from tl_vzero.errors import InputError
from tl_vzero.models.facts import Facts, remember


def model_with(words: Any) -> Any:
    with third_party_warnings_ignored():
        return tl_vzero.load_model(hf_bert(), words)


class Breaks:
    """A tokenizer of the user's own that ends in an error wherever it is called."""

    def __init__(self, error: Exception) -> None:
        self._inside, self._error = tokenizer(), error

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        raise self._error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["_inside"], name)


@pytest.mark.parametrize(
    "text", ["the \ud800 dog", "\udcff", "the dog" + "\udfff" * 2000], ids=["inside", "alone", "many"]
)
@pytest.mark.parametrize("call", [tl_vzero.value_zeroing, tl_vzero.compare], ids=["value_zeroing", "compare"])
def test_half_of_a_character_is_no_text(call: Callable[..., Any], text: str) -> None:
    model = loaded(hf_bert())
    with left_as_found(model), pytest.raises(InputError, match="cannot read") as caught:
        call(model, ["the dog", text])
    assert len(str(caught.value)) < 500


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")
@pytest.mark.parametrize(
    "text", ["the\0dog", "\u202ethe dog\u202c", "\u2066the\u2069 dog", "the\ufeff dog", "a" * 10**6]
)
def test_odd_text_is_scored_or_refused_in_words(text: str) -> None:
    model = loaded(hf_bert())
    try:
        scores = tl_vzero.value_zeroing(model, text)
    except InputError:
        return
    assert isinstance(scores, tl_vzero.Scores)
    assert bool(torch.isfinite(scores.values).all())


def test_a_million_letters_are_refused_by_the_context() -> None:
    with third_party_warnings_ignored():
        model = tl_vzero.load_model(_bert_of(384), tokenizer_named("byt5"))
    with pytest.raises(InputError, match="1000001 tokens"):
        tl_vzero.value_zeroing(model, "a" * 10**6)


def _bert_of(size: int) -> Any:
    hf_model = hf_bert()
    hf_model.resize_token_embeddings(size)
    return hf_model


def test_a_text_without_a_token() -> None:
    """A tokenizer may drop all that a text holds."""
    bare = copy.deepcopy(tokenizer())
    bare._tokenizer.post_processor = processors.Sequence([])
    with pytest.raises(InputError, match=r"inputs\[0\] .* no token"):
        tl_vzero.value_zeroing(model_with(bare), "\u200b\u200b")


@pytest.mark.parametrize("error", [KeyError("the"), RuntimeError("bad"), TypeError("no"), OverflowError("big")])
def test_a_tokenizer_that_breaks(error: Exception) -> None:
    model = loaded(hf_bert())
    remember(model, Facts("broken", Breaks(error), "trained"))
    with pytest.raises(InputError, match=f"cannot read 'the dog': {type(error).__name__}"):
        tl_vzero.value_zeroing(model, "the dog")


# --- a tokenizer that is larger than the model ----------------------------------------------------------


def longer_tokenizer() -> Any:
    words = tokenizer()
    words.add_special_tokens({"additional_special_tokens": ["[E1]", "[/E1]"]})
    return words


@pytest.mark.parametrize("method", ["value_zeroing", "attention", "zero_ablation"])
def test_a_token_that_the_embedding_does_not_have(method: str) -> None:
    model = model_with(longer_tokenizer())
    text = "the [E1] dog [MASK]"
    ids = torch.tensor(longer_tokenizer()(text)["input_ids"])
    call = tl_vzero.zero_ablation if method == "zero_ablation" else tl_vzero.METHODS[method]
    messages = []
    for inputs in (text, ids):
        with left_as_found(model), pytest.raises(InputError) as caught:
            call(model, inputs)
        messages.append(str(caught.value))
    assert messages[0] == messages[1]
    assert all(part in messages[0] for part in ("'[E1]'", f"id {VOCABULARY}", "resize_token_embeddings"))


def test_a_text_without_such_a_token_is_scored() -> None:
    assert tl_vzero.value_zeroing(model_with(longer_tokenizer()), "the dog").dest_tokens[1:-1] == ("the", "dog")


def test_a_beginning_that_the_embedding_does_not_have() -> None:
    words = tokenizer()
    words.add_special_tokens({"bos_token": "[B]"})
    with pytest.raises(InputError, match=r"'\[B\]'.*resize_token_embeddings"):
        tl_vzero.value_zeroing(model_with(words), "the dog", prepend_bos=True)


def test_ids_past_the_tokenizer_too() -> None:
    with pytest.raises(InputError, match="come from this model's tokenizer"):
        tl_vzero.value_zeroing(loaded(hf_bert()), torch.tensor([2, VOCABULARY + 5, 3]))
