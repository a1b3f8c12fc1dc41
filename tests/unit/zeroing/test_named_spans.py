"""Words and phrases zeroed jointly: which positions they are, in one sentence and in a batch."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support import references
from support.laws import assert_close, wide_model
from support.models import bridge, hf_bert
from support.state import left_as_found, type_checks_off

import tl_vzero
from tl_vzero import Scores
from tl_vzero.errors import DependencyError, InputError
from tl_vzero.inputs.text import encode
from tl_vzero.zeroing import request

NAMES = ["words", "noun_chunks", "subtrees"]
MASKED = "the pictures of some hat [MASK] scaring marcus."
# Of one length, with different phrases; and of another length.
SENTENCES = [MASKED, "the authors today [MASK] the old hats again.", "the authors [MASK] today."]


def scored(model: Any, text: str, **options: Any) -> Scores:
    scores = tl_vzero.value_zeroing(model, text, **options)
    assert isinstance(scores, Scores)
    return scores


@pytest.fixture(scope="module")
def mini() -> Any:
    return tl_vzero.load_model("agreement-mini")


def test_noun_chunks(mini: Any) -> None:
    scores = scored(mini, MASKED, spans="noun_chunks")
    assert scores.src_tokens == (
        *("[CLS]", "the pictures", "of", "some hat", "[MASK]", "scaring", "marcus", ".", "[SEP]"),
    )
    assert scores.src_spans == ((0,), (1, 2), (3,), (4, 5), (6,), (7,), (8,), (9,), (10,))
    assert scores.values.shape == (4, 11, 9)


def test_subtrees_of_the_roots_dependents(mini: Any) -> None:
    scores = scored(mini, MASKED, spans="subtrees")
    assert scores.src_spans == ((0,), (1,), (2,), (3, 4, 5), (6,), (7, 8), (9,), (10,))
    assert scores.src_tokens[3] == "of some hat"


def test_words_join_their_pieces() -> None:
    scores = scored(wide_model("load_model", "bert")[1], "the dogs near marcus barking", spans="words")
    assert scores.src_spans == ((0,), (1,), (2, 3), (4,), (5,), (6, 7), (8,))
    assert scores.src_tokens == ("[CLS]", "the", "dogs", "near", "marcus", "barking", "[SEP]")


def test_words_of_ids_are_told_from_their_pieces() -> None:
    model = wide_model("load_model", "bert")[1]
    ids = encode(model, "the dogs near marcus barking").sentences[0].ids
    by_ids = tl_vzero.value_zeroing(model, ids, spans="words")
    assert by_ids.src_spans == ((0,), (1,), (2, 3), (4,), (5,), (6, 7), (8,))


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")  # words that the model does not know are meant
def test_pieces_of_a_phrase_follow_its_words() -> None:
    """A word outside the vocabulary is one piece, a plural is two; both belong to the phrase they stand in."""
    scores = scored(wide_model("load_model", "bert")[1], "the gracious dogs barking near a hat", spans="noun_chunks")
    assert scores.src_spans is not None and (1, 2, 3, 4) in scores.src_spans
    assert "the gracious dogs" in scores.src_tokens
    assert sorted(p for span in scores.src_spans for p in span) == list(range(scores.n_positions))


def test_a_special_token_in_the_text_stays_single() -> None:
    scores = scored(wide_model("load_model", "bert")[1], "the dog [SEP] a hat", spans="noun_chunks")
    special = [column for column, token in enumerate(scores.src_tokens) if token in ("[CLS]", "[SEP]")]
    assert len(special) == 3
    assert scores.src_spans is not None and all(len(scores.src_spans[column]) == 1 for column in special)


@pytest.mark.parametrize("engine", ["hooks", "closed_form"])
@pytest.mark.parametrize("name", NAMES)
def test_each_sentence_of_a_batch_has_its_own_spans(mini: Any, name: str, engine: str) -> None:
    together = tl_vzero.value_zeroing(mini, [*SENTENCES, MASKED], spans=name, engine=engine)
    assert isinstance(together, list)
    assert together[0].src_spans != together[1].src_spans or name == "words"
    for text, scores in zip([*SENTENCES, MASKED], together, strict=True):
        assert scores.metadata["engine"] == engine
        alone = scored(mini, text, spans=name, engine="hooks")
        assert scores.src_spans == alone.src_spans and scores.src_tokens == alone.src_tokens
        assert torch.allclose(scores.values, alone.values, rtol=1e-4, atol=1e-9)
        by_position = scored(mini, text, spans=[list(span) for span in alone.src_spans or ()], engine="hooks")
        assert torch.allclose(alone.values, by_position.values, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("engine", ["hooks", "closed_form"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "neox"])
def test_a_column_is_the_span_zeroed_in_the_plain_model(architecture: str, engine: str) -> None:
    """Against plain torch hooks on the Hugging Face model, in float64."""
    hf_model, model = wide_model("load_model", architecture)
    text = "the dogs near marcus barking"
    sentence = encode(model, text).sentences[0]
    scores = scored(model, text, spans="words", engine=engine)
    expected = torch.zeros_like(scores.values)
    for layer, call in enumerate(references.clean_calls(hf_model, sentence.ids.unsqueeze(0))):
        clean = references.first_tensor(call.block(*call.args, **call.kwargs))[0]
        for column, span in enumerate(scores.src_spans or ()):
            with references.values_zeroed(call.block, hf_model.config, list(span)):
                changed = references.first_tensor(call.block(*call.args, **call.kwargs))[0]
            expected[layer, :, column] = references.cosine_distance(clean, changed)
    assert_close(scores.values, expected, 1e-9)


def test_a_users_cache_and_named_spans(mini: Any) -> None:
    ids = torch.stack([encode(mini, text).sentences[0].ids for text in SENTENCES[:2]])
    _, cache = mini.run_with_cache(ids)
    with_cache = tl_vzero.value_zeroing(mini, SENTENCES[:2], spans="noun_chunks", cache=cache, engine="hooks")
    without = tl_vzero.value_zeroing(mini, SENTENCES[:2], spans="noun_chunks")
    for one, other in zip(with_cache, without, strict=True):
        assert torch.allclose(one.values, other.values, rtol=1e-4, atol=1e-9)


def test_progress_counts_spans(mini: Any, capsys: pytest.CaptureFixture[str]) -> None:
    tl_vzero.value_zeroing(mini, SENTENCES[:2], spans="noun_chunks", progress=True, layers=[0])
    assert "value zeroing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["noun_chunks", "subtrees"])
def test_phrases_of_ids(name: str) -> None:
    with pytest.raises(InputError, match=f'spans="{name}" given with ids: expected text'):
        tl_vzero.value_zeroing(wide_model("load_model", "bert")[1], torch.tensor([2, 5, 3]), spans=name)


def test_words_without_a_tokenizer() -> None:
    model = bridge(hf_bert())
    model.tokenizer = None
    with pytest.raises(InputError, match="without a tokenizer"):
        tl_vzero.value_zeroing(model, torch.tensor([2, 5, 3]), spans="words")


def test_an_unknown_name() -> None:
    model = wide_model("load_model", "bert")[1]
    with left_as_found(model), pytest.raises(InputError, match=r"'noun_chunk'.*words.*did you mean 'noun_chunks'"):
        tl_vzero.value_zeroing(model, "the dog", spans="noun_chunk")


def test_no_parser(mini: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> Any:
        raise DependencyError("no English dependency parser")

    monkeypatch.setitem(request.PHRASES, "noun_chunks", missing)
    with type_checks_off(), pytest.raises(DependencyError, match="no English dependency parser"):
        tl_vzero.value_zeroing(mini, MASKED, spans="noun_chunks")


def test_a_tokenizer_without_offsets(mini: Any) -> None:
    sentence = encode(mini, MASKED).sentences[0]
    with pytest.raises(InputError, match="fast tokenizer"):
        request.named_spans("subtrees", replace(sentence, offsets=None))
