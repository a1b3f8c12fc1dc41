"""Target tokens: ids as they are, words as the one token that they are."""

from functools import cache
from typing import Any

import pytest
from support.models import VOCABULARY, bridge, hf_bert, hf_bert_headless, hf_gpt2, loaded
from support.state import type_checks_off
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertForSequenceClassification, GPT2ForSequenceClassification, PreTrainedTokenizerFast

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.inputs.text import encode
from tl_vzero.targets import default_target, default_text, find_target, predicts, target_tokens, word_of, written_token


@cache
def bert() -> Any:
    return loaded(hf_bert())


def spaced_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level one as GPT-2's: the space before a word is part of its token; no merges but those below."""
    merges = [("i", "s"), ("Ġ", "a"), ("Ġa", "r"), ("Ġar", "e")]
    letters = ["Ġ", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {piece: number for number, piece in enumerate([*letters, *("".join(pair) for pair in merges)])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@cache
def gpt2() -> Any:
    return tl_vzero.load_model(hf_gpt2(), spaced_tokenizer())


def test_none_stays_none() -> None:
    assert target_tokens(bert(), None) is None


def test_ids_are_taken_as_they_are() -> None:
    assert target_tokens(bert(), 7) == (7, None)
    assert target_tokens(bert(), (7, 9)) == (7, 9)


def test_words_are_their_one_token() -> None:
    tokenizer = bert().tokenizer
    is_, are = tokenizer.convert_tokens_to_ids(["is", "are"])
    assert target_tokens(bert(), "is") == (is_, None)
    assert target_tokens(bert(), ("are", "is")) == (are, is_)
    assert target_tokens(bert(), ("are", is_)) == (are, is_)
    assert target_tokens(bert(), "[MASK]") == (tokenizer.mask_token_id, None)


def test_a_word_is_tried_as_given_and_then_behind_a_space() -> None:
    vocabulary = spaced_tokenizer().get_vocab()
    assert target_tokens(gpt2(), "is") == (vocabulary["is"], None)
    assert target_tokens(gpt2(), "are") == (vocabulary["Ġare"], None)
    assert target_tokens(gpt2(), " are") == (vocabulary["Ġare"], None)


def test_a_word_of_several_tokens_is_refused_with_its_pieces() -> None:
    with pytest.raises(InputError, match=r"'dogs'.*\['dog', '##s'\]"):
        target_tokens(bert(), "dogs")
    with pytest.raises(InputError, match=r"'hat' breaks into \['h', 'a', 't'\], and ' hat' breaks into \['Ġa?', 'h'"):
        target_tokens(gpt2(), "hat")


def test_a_word_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match="'zebra' is not in the vocabulary"):
        target_tokens(bert(), ("is", "zebra"))


@pytest.mark.parametrize("word", ["", "  "])
def test_no_word_is_refused(word: str) -> None:
    with pytest.raises(InputError, match="no word"):
        target_tokens(bert(), word)


def test_a_word_without_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match="no tokenizer: expected token ids"):
        target_tokens(tl_vzero.load_model(hf_bert()), "is")


@pytest.mark.parametrize("ids", [VOCABULARY, -1, (3, VOCABULARY)])
def test_ids_outside_the_vocabulary_are_refused(ids: Any) -> None:
    with pytest.raises(InputError, match=f"expected 0 to {VOCABULARY - 1}"):
        target_tokens(bert(), ids)


def test_a_pair_of_one_token_is_refused() -> None:
    with pytest.raises(InputError, match="both token"):
        target_tokens(bert(), ("is", "is"))


@pytest.mark.parametrize("ids", [1.5, True, (), (1, 2, 3), (1, None), {"good": 1}, b"is", object()])
def test_other_things_are_refused(ids: Any) -> None:
    with type_checks_off(), pytest.raises((InputTypeError, InputError), match="target_ids"):
        target_tokens(bert(), ids)


def test_a_users_own_bridge_has_its_words() -> None:
    assert target_tokens(bridge(hf_bert()), "is") == target_tokens(bert(), "is")


# --- the target where none is given -------------------------------------------------------------------------

MASKED, UNMASKED = "the hat of some [MASK] near marcus.", "the hat of some dog near marcus."


@cache
def classifier(kind: str) -> Any:
    builders = {
        "bert": lambda: hf_bert(kind=BertForSequenceClassification),
        "gpt2": lambda: hf_gpt2(kind=GPT2ForSequenceClassification),
    }
    return loaded(builders[kind]())


def default_of(model: Any, text: Any) -> int | None:
    return default_target(model, encode(model, text).sentences[0])


def test_a_masked_models_target_is_its_only_mask() -> None:
    for model in (bert(), bridge(hf_bert()), loaded(hf_bert_headless())):
        assert default_of(model, MASKED) == 5
        assert default_of(model, UNMASKED) is None
        assert default_of(model, f"{MASKED} {MASKED}") is None
        assert predicts(model) == "token"
    with pytest.raises(InputError, match="0 mask tokens: expected exactly one; give a target, a position from 0 to 9"):
        find_target(bert(), encode(bert(), UNMASKED).sentences[0], None)


@pytest.mark.parametrize("ids", [[1, 2, 3], [7, 8, 9, 10, 4]])
def test_a_causal_models_target_is_its_last_position(ids: list[int]) -> None:
    for model in (gpt2(), bridge(hf_gpt2()), tl_vzero.load_model(hf_gpt2())):
        assert default_of(model, ids) == find_target(model, encode(model, ids).sentences[0], None) == len(ids) - 1
        assert predicts(model) == "next token"


def test_a_classifiers_target_is_its_own_position() -> None:
    for text in (MASKED, UNMASKED):
        assert default_of(classifier("bert"), text) == 0
        assert default_of(classifier("gpt2"), text) == 9
    assert predicts(classifier("bert")) == predicts(classifier("gpt2")) == "class"


def test_a_causal_model_is_compared_and_measured_at_its_last_position() -> None:
    text = [3, 4, 5, 6]
    effect = tl_vzero.zero_ablation(gpt2(), text)
    assert effect.target == 3 and effect.metadata["predicts"] == "next token"
    compared = tl_vzero.compare(gpt2(), text, ["attention"])
    assert compared.target == 3 and compared.effect is not None  # type: ignore[union-attr]
    assert compared.effect.predicted == effect.predicted  # type: ignore[union-attr]


@pytest.mark.filterwarnings("ignore::tl_vzero.errors.InputWarning")  # the vocabularies are tiny
def test_each_kind_of_model_has_a_sentence_with_a_target() -> None:
    for model in (bert(), classifier("bert"), classifier("gpt2"), loaded(hf_gpt2()), loaded(hf_bert_headless())):
        assert default_of(model, default_text(model)) is not None
    assert default_text(gpt2()) == "The keys to the cabinet"
    assert "[MASK]" in default_text(bert()) and "[MASK]" not in default_text(classifier("bert"))
    assert default_text(tl_vzero.load_model(hf_bert())) == "the pictures of some hat are scaring marcus."


@pytest.mark.parametrize("model", [bert, gpt2])
def test_what_a_token_is_called_is_read_back_as_that_token(model: Any) -> None:
    for token_id in range(len(model().tokenizer)):
        assert target_tokens(model(), written_token(word_of(model(), token_id))) == (token_id, None)


def test_a_word_that_is_another_token_with_a_space_before_it_has_the_space() -> None:
    merged = gpt2().tokenizer.convert_tokens_to_ids(["is", "Ġare", "Ġa", "a", "Ġ"])
    assert [word_of(gpt2(), token_id) for token_id in merged] == ["is", "are", " a", "a", f"#{merged[-1]}"]
