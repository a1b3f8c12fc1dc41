"""The copy that is trained: the model's own weights, a fresh head where there was none, and the model left alone."""

from importlib.metadata import version
from typing import Any

import pytest
import torch
from support.models import VOCABULARY, bridge, build, hf_bert, hf_bert_headless, loaded, randomise, tokenizer
from support.state import left_as_found
from transformers import (
    BertConfig,
    BertForMaskedLM,
    ElectraConfig,
    ElectraForMaskedLM,
    RobertaConfig,
    RobertaForMaskedLM,
)

import tl_vzero
from tl_vzero.errors import InputTypeError, ModelError
from tl_vzero.evaluate.finetuning import _give_fresh_head, trainable_copy

IDS = torch.tensor([[2, 5, 6, 7, 30, 11, 3]])
BRIDGES = {
    "loaded": lambda: loaded(hf_bert()),
    "user's own": lambda: bridge(hf_bert()),
    "float64": lambda: loaded(hf_bert().double()),
    "embedded": lambda: tl_vzero.load_model("agreement-mini"),
}


@pytest.mark.parametrize("make", BRIDGES.values(), ids=BRIDGES.keys())
def test_the_copy_computes_what_the_model_computes(make: Any) -> None:
    model = make()
    copied = trainable_copy(model)
    assert not copied.fresh
    with torch.no_grad():
        assert torch.equal(copied.model(input_ids=IDS).logits, model(IDS, return_type="logits"))


def test_training_the_copy_leaves_the_model_as_it_was() -> None:
    model = loaded(hf_bert())
    with left_as_found(model):
        copied = trainable_copy(model).model
        assert all(parameter.requires_grad for parameter in copied.parameters())
        copied(input_ids=IDS).logits.sum().backward()
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.add_(1)


def test_the_users_own_random_draws_stay() -> None:
    model = loaded(hf_bert())
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    trainable_copy(model)
    assert torch.equal(torch.rand(3), expected)


def test_a_roberta_is_copied_too() -> None:
    if version("transformer-lens").startswith("3"):
        pytest.skip("TransformerLens 3 has no RoBERTa bridge")
    config = RobertaConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=66,
        pad_token_id=1,
    )
    model = loaded(randomise(RobertaForMaskedLM(config), seed=3))
    copied = trainable_copy(model)
    with torch.no_grad():
        assert torch.equal(copied.model(input_ids=IDS).logits, model(IDS, return_type="logits"))


def test_an_encoder_without_a_head_gets_one_that_compares_with_the_embeddings() -> None:
    base = hf_bert_headless()
    copied = trainable_copy(tl_vzero.load_model(base, tokenizer()))
    assert copied.fresh == {
        "cls.predictions.bias",
        "cls.predictions.transform.dense.weight",
        "cls.predictions.transform.dense.bias",
        "cls.predictions.transform.LayerNorm.weight",
        "cls.predictions.transform.LayerNorm.bias",
    }
    assert copied.model.cls.predictions.decoder.weight is copied.model.bert.embeddings.word_embeddings.weight
    with torch.no_grad():
        logits = copied.model(input_ids=IDS).logits
        hidden = torch.nn.functional.gelu(base(input_ids=IDS).last_hidden_state)
        normed = (hidden - hidden.mean(-1, keepdim=True)) / hidden.std(-1, correction=0, keepdim=True)
        expected = normed @ base.embeddings.word_embeddings.weight.T
    assert torch.allclose(logits, expected, atol=1e-4)


def test_an_untied_config_is_tied() -> None:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        tie_word_embeddings=False,
    )
    untied = BertForMaskedLM(config)
    assert untied.cls.predictions.decoder.weight is not untied.bert.embeddings.word_embeddings.weight
    fresh = _give_fresh_head(untied, seed=0)
    assert untied.cls.predictions.decoder.weight is untied.bert.embeddings.word_embeddings.weight
    assert not any("decoder.weight" in name for name in fresh)


def test_only_a_matrix_that_is_not_square_is_drawn_and_the_seed_decides() -> None:
    config = ElectraConfig(
        vocab_size=VOCABULARY,
        embedding_size=8,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
    )
    drawn = []
    for seed in (1, 1, 2):
        electra = ElectraForMaskedLM(config)
        _give_fresh_head(electra, seed)
        drawn.append(electra.generator_predictions.dense.weight.detach())
    assert drawn[0].shape == (8, 16)
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])


def test_half_precision_is_trained_in_float32() -> None:
    copied = trainable_copy(loaded(hf_bert().to(torch.bfloat16))).model
    assert {parameter.dtype for parameter in copied.parameters()} == {torch.float32}


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_the_error_for_a_causal_model_names_the_causal_protocol(architecture: str) -> None:
    _, model = build("load_model", architecture)
    with pytest.raises(ModelError, match=r'a masked language model.*protocol="causal"'):
        trainable_copy(model)


def test_a_hooked_encoder_holds_no_hugging_face_model() -> None:
    _, model = build("HookedEncoder", "bert")
    with pytest.raises(ModelError, match="holds no Hugging Face model to fine-tune"):
        trainable_copy(model)


def test_a_plain_hugging_face_model_is_to_be_loaded_first() -> None:
    with pytest.raises(InputTypeError, match=r"wrap it with tl_vzero\.load_model"):
        trainable_copy(hf_bert())


def test_a_model_with_a_hook_that_acts_is_refused() -> None:
    model = loaded(hf_bert())
    model.add_hook("blocks.1.attn.hook_v", lambda value, hook: 0 * value)
    with pytest.raises(ModelError, match="computes something else than the Hugging Face weights"):
        trainable_copy(model)


def test_a_headless_model_with_a_hook_that_acts_is_refused() -> None:
    model = tl_vzero.load_model(hf_bert_headless(), tokenizer())
    model.add_hook("blocks.0.attn.hook_v", lambda value, hook: 0 * value)
    with pytest.raises(ModelError, match="computes something else than the Hugging Face weights"):
        trainable_copy(model)
