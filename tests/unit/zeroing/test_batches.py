"""Sentences in batches, padded or not, as text or ids: each as if it were alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import references
from support.laws import (
    IDS,
    N_LAYERS,
    SENTENCES,
    TOLERANCE,
    assert_close,
    assert_same_in_float32,
    each_engine,
    each_route,
    few_examples,
    narrow_model,
    padded,
    scores_of,
    wide_model,
)
from support.models import (
    CONTEXT,
    VOCABULARY,
    tokenizer,
)

import tl_vzero
from tl_vzero import Scores, TLVZeroError
from tl_vzero.errors import InputWarning

# --- padding and batches --------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@each_route
@few_examples(3)
@given(sentences=SENTENCES, pad=st.sampled_from([0, 7]))
def test_a_padded_batch_gives_what_each_sentence_gives(
    route: str, architecture: str, side: str, sentences: list[list[int]], pad: int
) -> None:
    _, model = narrow_model(route, architecture)
    ids, mask = padded(sentences, side, pad)
    together = tl_vzero.value_zeroing(model, ids, attention_mask=mask)
    assert isinstance(together, list) and len(together) == len(sentences)
    for scores, sentence in zip(together, sentences, strict=True):
        alone = scores_of(model, sentence)
        assert_same_in_float32(scores, alone)
        assert scores.dest_tokens == alone.dest_tokens and scores.src_tokens == alone.src_tokens


@pytest.mark.parametrize("side", ["right", "left"])
@each_route
def test_a_padded_batch_in_float64(route: str, architecture: str, side: str) -> None:
    hf_model, model = wide_model(route, architecture)
    sentences = [[2, 5, 7, 3], [2, 9, 10, 11, 12, 3], [4]]
    ids, mask = padded(sentences, side)
    for scores, sentence in zip(tl_vzero.value_zeroing(model, ids, attention_mask=mask), sentences, strict=True):
        assert_close(scores.values, references.value_zeroing(hf_model, sentence), TOLERANCE[architecture])


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.bool, torch.float32], ids=str)
def test_a_mask_of_any_number_type_works_the_same_or_is_refused(dtype: torch.dtype) -> None:
    _, model = narrow_model("load_model", "bert")
    ids, mask = padded([[2, 5, 7, 3], [2, 3]], "right")
    try:
        measured = tl_vzero.value_zeroing(model, ids, attention_mask=mask.to(dtype))
    except TLVZeroError:
        assert dtype == torch.float32
        return
    assert_close(measured[1].values, scores_of(model, [2, 3]).values, 1e-6)


@each_route
@few_examples(3)
@given(
    texts=st.lists(
        st.lists(st.sampled_from(["the", "hats", "dogs", "barking", "[MASK]", "marcus", "."]), min_size=1, max_size=6),
        min_size=1,
        max_size=4,
    )
)
def test_a_list_of_strings_gives_what_each_string_gives(route: str, architecture: str, texts: list[list[str]]) -> None:
    _, model = narrow_model(route, architecture)
    sentences = [" ".join(words) for words in texts]
    together = tl_vzero.value_zeroing(model, sentences)
    assert isinstance(together, list) and len(together) == len(sentences)
    for scores, sentence in zip(together, sentences, strict=True):
        alone = tl_vzero.value_zeroing(model, sentence)
        assert isinstance(alone, Scores)
        assert_same_in_float32(scores, alone)
        assert scores.dest_tokens == alone.dest_tokens


@each_route
def test_a_string_is_read_as_the_tokenizer_reads_it(route: str, architecture: str) -> None:
    _, model = narrow_model(route, architecture)
    text = "the dogs barking near marcus ."
    scores = tl_vzero.value_zeroing(model, text)
    assert_close(scores.values, scores_of(model, tokenizer()(text)["input_ids"]).values, 1e-6)
    assert scores.dest_tokens == ("[CLS]", "the", "dog", "##s", "bark", "##ing", "near", "marcus", ".", "[SEP]")
    assert scores.words().dest_tokens == ("[CLS]", "the", "dogs", "barking", "near", "marcus", ".", "[SEP]")


@pytest.mark.parametrize(("route", "architecture"), [("load_model", "bert"), ("HookedEncoder", "bert")])
def test_ids_and_text_have_the_same_labels_and_words(route: str, architecture: str) -> None:
    _, model = narrow_model(route, architecture)
    text = "the dogs barking near [MASK] ."
    of_text = tl_vzero.value_zeroing(model, text)
    of_ids = scores_of(model, tokenizer()(text)["input_ids"])
    assert of_ids.dest_tokens == of_text.dest_tokens
    assert of_ids.words().dest_tokens == of_text.words().dest_tokens
    assert of_text.words().dest_tokens == ("[CLS]", "the", "dogs", "barking", "near", "[MASK]", ".", "[SEP]")


@pytest.mark.parametrize(("route", "architecture"), [("load_model", "bert"), ("HookedEncoder", "bert")])
def test_a_word_outside_the_vocabulary_shows_as_it_was_written(route: str, architecture: str) -> None:
    _, model = narrow_model(route, architecture)
    with pytest.warns(InputWarning, match="unknown to this model"):
        scores = tl_vzero.value_zeroing(model, "the Zyxwv dog near the <script> dog .")
    assert "Zyxwv" in scores.dest_tokens and "dog" in scores.dest_tokens
    assert "Zyxwv" in scores.words().src_tokens


def test_a_progress_bar_changes_no_number() -> None:
    _, model = narrow_model("load_model", "bert")
    assert torch.equal(scores_of(model, [2, 5, 3], progress=True).values, scores_of(model, [2, 5, 3]).values)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.int16, torch.uint8], ids=str)
def test_ids_of_any_integer_type_work_or_are_refused(dtype: torch.dtype) -> None:
    _, model = narrow_model("load_model", "bert")
    ids = torch.tensor([2, 5, 9, 3])
    try:
        scores = tl_vzero.value_zeroing(model, ids.to(dtype))
    except TLVZeroError:
        assert dtype != torch.int64
        return
    assert torch.equal(scores.values, tl_vzero.value_zeroing(model, ids).values)


def test_ids_that_are_a_view() -> None:
    _, model = narrow_model("load_model", "bert")
    ids = torch.tensor([2, 5, 9, 3])
    strided = torch.stack([ids, ids], 1)[:, 0]
    assert torch.equal(tl_vzero.value_zeroing(model, strided).values, scores_of(model, ids.tolist()).values)


def test_a_list_in_gives_a_list_out() -> None:
    _, model = narrow_model("load_model", "bert")
    assert isinstance(tl_vzero.value_zeroing(model, "the dog"), Scores)
    assert isinstance(tl_vzero.value_zeroing(model, torch.tensor([2, 5, 3])), Scores)
    for one in (["the dog"], torch.tensor([[2, 5, 3]])):
        result = tl_vzero.value_zeroing(model, one)
        assert isinstance(result, list) and len(result) == 1 and isinstance(result[0], Scores)


@each_engine
@each_route
@few_examples(3)
@given(ids=IDS, batch_size=st.integers(1, 12))
def test_the_batch_size_changes_nothing(
    route: str, architecture: str, engine: str, ids: list[int], batch_size: int
) -> None:
    _, model = wide_model(route, architecture)
    whole = scores_of(model, ids, engine=engine)
    chunked = scores_of(model, ids, engine=engine, batch_size=batch_size)
    assert_close(chunked.values, whole.values, 1e-12 if architecture != "llama" else 1e-7)


@each_route
def test_the_batch_size_changes_nothing_in_float32(route: str, architecture: str) -> None:
    _, model = narrow_model(route, architecture)
    ids = [2, 5, 9, 10, 11, 12, 18, 14, 3]
    whole = scores_of(model, ids)
    for batch_size in (1, 2, 5, 8, 100):
        assert_same_in_float32(scores_of(model, ids, batch_size=batch_size), whole)


def test_the_batch_size_changes_nothing_for_several_sentences() -> None:
    _, model = wide_model("load_model", "gpt2")
    ids, mask = padded([[2, 5, 7, 3], [2, 9, 10, 11, 12, 3], [4]], "right")
    whole = tl_vzero.value_zeroing(model, ids, attention_mask=mask)
    for batch_size in (1, 3, 64):
        chunked = tl_vzero.value_zeroing(model, ids, attention_mask=mask, batch_size=batch_size)
        for one, other in zip(chunked, whole, strict=True):
            assert_close(one.values, other.values, 1e-12)


def test_a_sentence_as_long_as_the_context() -> None:
    _, model = narrow_model("load_model", "bert")
    ids = torch.randint(1, VOCABULARY, (CONTEXT,), generator=torch.Generator().manual_seed(0)).tolist()
    scores = scores_of(model, ids)
    assert scores.values.shape == (N_LAYERS, CONTEXT, CONTEXT)
    assert (scores.normalized().values.sum(-1) - 1).abs().max() < 1e-6
