"""What an encoder-decoder reads: sentence pairs, padding, text, and what is refused."""

from typing import Any

import pytest
import torch
from support.models import hf_bert, loaded, tokenizer
from support.paired import ON_THIS_LINE, READ, STACKS, WRITTEN, model_of, stack_options
from support.state import left_as_found, type_checks_off

import tl_vzero
from tl_vzero import Scores
from tl_vzero.errors import InputError

LONG, SHORT = torch.tensor(READ), torch.tensor(READ[:4])
LONG_OUT, SHORT_OUT = torch.tensor(WRITTEN), torch.tensor([3, 12])


@pytest.fixture(scope="module")
def bart() -> Any:
    return model_of("BART")


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("method", ["value_zeroing", "attention"])
@pytest.mark.parametrize("left", [False, True])
def test_a_padded_batch_is_its_sentences_alone(bart: Any, stack: str, method: str, left: bool) -> None:
    padded, mask = torch.zeros(3, len(LONG), dtype=torch.long), torch.zeros(3, len(LONG))
    for row, ids in enumerate((SHORT, LONG, SHORT)):
        at = slice(len(LONG) - len(ids), None) if left else slice(len(ids))
        padded[row, at], mask[row, at] = ids, 1
    outputs = [LONG_OUT, SHORT_OUT, SHORT_OUT]
    together = tl_vzero.score(bart, padded, method, attention_mask=mask, **stack_options(stack, outputs))
    alone = [
        tl_vzero.score(bart, ids, method, **stack_options(stack, out))
        for ids, out in zip((SHORT, LONG, SHORT), outputs, strict=True)
    ]
    assert isinstance(together, list)
    for one, other in zip(together, alone, strict=True):
        assert isinstance(other, Scores)
        assert one.dest_tokens == other.dest_tokens and one.src_tokens == other.src_tokens
        assert torch.allclose(one.values, other.values, rtol=1e-4, atol=1e-9)


def test_two_dimensional_decoder_ids_give_a_list(bart: Any) -> None:
    ids, out = LONG.repeat(2, 1), LONG_OUT.repeat(2, 1)
    both = tl_vzero.value_zeroing(bart, ids, stack="cross", decoder_inputs=out)
    assert len(both) == 2 and both[0].values.shape == (3, len(WRITTEN), len(READ))


@pytest.mark.parametrize("name", [name for name in ON_THIS_LINE if name in ("T5", "BART")])
@pytest.mark.parametrize("stack", STACKS)
def test_a_pair_of_texts_is_a_source_as_its_tokenizer_joins_them(name: str, stack: str) -> None:
    model, pair = model_of(name), ("the dogs bark .", "marcus is near")
    ids = tokenizer()(*pair)["input_ids"]
    expected = tl_vzero.value_zeroing(model, torch.tensor(ids), **stack_options(stack, LONG_OUT))
    for inputs in (pair, ids, {"input_ids": ids, "token_type_ids": [0] * len(ids)}):
        scores = tl_vzero.value_zeroing(model, inputs, **stack_options(stack, LONG_OUT))
        assert torch.equal(scores.values, expected.values)
    with pytest.raises(InputError, match="tells no segments apart"):
        tl_vzero.value_zeroing(model, ids, token_type_ids=[0, *[1] * (len(ids) - 1)], **stack_options(stack, LONG_OUT))


def test_text_is_read_as_labels_are(bart: Any) -> None:
    text, out = "the dogs bark .", "marcus is near"
    bert_tokenizer = tokenizer()
    labels = bert_tokenizer(out)["input_ids"]
    by_ids = tl_vzero.value_zeroing(
        bart,
        torch.tensor(bert_tokenizer(text)["input_ids"]),
        stack="cross",
        decoder_inputs=torch.tensor([3, *labels[:-1]]),
    )
    by_text = tl_vzero.value_zeroing(bart, text, stack="cross", decoder_inputs=out)
    assert torch.equal(by_ids.values, by_text.values)
    assert by_text.dest_tokens == ("[SEP]", "[CLS]", "marcus", "is", "near")
    listed = tl_vzero.value_zeroing(bart, [text], stack="cross", decoder_inputs=[out])
    assert isinstance(listed, list) and torch.equal(listed[0].values, by_text.values)


def test_each_side_has_its_own_words(bart: Any) -> None:
    scores = tl_vzero.value_zeroing(bart, "the dogs barking", stack="cross", decoder_inputs="the hat of dogs")
    words = scores.words()
    assert words.dest_tokens == ("[SEP]", "[CLS]", "the", "hat", "of", "dogs")
    assert words.src_tokens == ("[CLS]", "the", "dogs", "barking", "[SEP]")
    assert torch.allclose(words.normalized().values.sum(-1), torch.ones(3, 6))
    assert not scores.partial and not words.partial
    frame = words.to_frame()
    assert list(frame["src_token"][:5]) == list(words.src_tokens) and set(frame["dest_token"]) == {*words.dest_tokens}


def test_labels_survive_a_file(bart: Any, tmp_path: Any) -> None:
    scores = tl_vzero.value_zeroing(bart, "the dogs bark", stack="cross", decoder_inputs="the hat")
    scores.save(tmp_path / "cross.safetensors")
    again = Scores.load(tmp_path / "cross.safetensors")
    assert torch.equal(again.values, scores.values)
    assert again.labels() == scores.labels()
    assert again.metadata["stack"] == "cross" and not again.partial


@pytest.mark.parametrize("stack", STACKS)
def test_rollout_of_a_stack(bart: Any, stack: str) -> None:
    scores = tl_vzero.value_zeroing(bart, LONG, **stack_options(stack))
    if stack == "cross":
        with pytest.raises(tl_vzero.TLVZeroError, match=r"two different sequences.*joint_rollout"):
            scores.rollout()
    else:
        rolled = scores.rollout().values
        assert torch.allclose(rolled.sum(-1), torch.ones(rolled.shape[:2]))


def test_a_cross_map_of_two_equal_texts_is_no_self_map(bart: Any) -> None:
    scores = tl_vzero.value_zeroing(bart, LONG_OUT, stack="cross", decoder_inputs=LONG_OUT)
    assert scores.dest_tokens == scores.src_tokens
    with pytest.raises(tl_vzero.TLVZeroError, match="two different sequences"):
        scores.rollout()


@pytest.mark.parametrize("stack", STACKS)
def test_parts_of_a_map(bart: Any, stack: str) -> None:
    whole = tl_vzero.value_zeroing(bart, LONG, **stack_options(stack))
    part = tl_vzero.value_zeroing(bart, LONG, layers=-1, destinations=[1], sources=[2, 0], **stack_options(stack))
    assert torch.allclose(part.values, whole.values[-1:, 1:2, [2, 0]], rtol=1e-4)
    assert part.partial
    heads = tl_vzero.value_zeroing(bart, LONG, per_head=True, **stack_options(stack))
    assert heads.values.shape == (3, 2, *whole.values.shape[1:])
    both = tl_vzero.value_zeroing(bart, LONG, heads=[0, 1], **stack_options(stack))
    assert torch.allclose(both.values, whole.values, rtol=1e-4)
    one = tl_vzero.value_zeroing(bart, LONG, heads=[1], **stack_options(stack))
    assert torch.allclose(one.values, heads.values[:, 1], rtol=1e-4, atol=1e-9)
    spans = tl_vzero.value_zeroing(bart, LONG, spans=[[0, 1], [3]], **stack_options(stack))
    assert torch.allclose(spans.values[..., 1], whole.values[..., 3], rtol=1e-4, atol=1e-9)


def test_the_last_source_of_a_cross_map_is_the_encoders(bart: Any) -> None:
    last = len(READ) - 1
    scores = tl_vzero.value_zeroing(bart, LONG, sources=[last], **stack_options("cross"))
    assert scores.src_positions == (last,)
    with pytest.raises(tl_vzero.TLVZeroError, match="sources holds 7"):
        tl_vzero.value_zeroing(bart, LONG, sources=[7], **stack_options("cross"))
    with pytest.raises(tl_vzero.TLVZeroError, match="destinations holds 5"):
        tl_vzero.value_zeroing(bart, LONG, destinations=[5], **stack_options("cross"))


@pytest.mark.parametrize("stack", STACKS)
def test_a_cache_of_the_users_own(bart: Any, stack: str) -> None:
    padded, mask = torch.cat([LONG, torch.tensor([0, 0])]).unsqueeze(0), torch.ones(1, 9, dtype=torch.long)
    mask[0, 7:] = 0
    with torch.no_grad():
        _, cache = bart.run_with_cache(padded, decoder_input=LONG_OUT.unsqueeze(0), attention_mask=mask)
    decoder = None if stack == "encoder" else LONG_OUT.unsqueeze(0)
    (with_cache,) = tl_vzero.value_zeroing(
        bart, padded, attention_mask=mask, cache=cache, **stack_options(stack, decoder)
    )
    without = tl_vzero.value_zeroing(bart, LONG, **stack_options(stack))
    assert torch.allclose(with_cache.values, without.values, rtol=1e-3, atol=1e-9)
    other = padded.clone()
    other[0, 2] = 30
    with pytest.raises(tl_vzero.TLVZeroError, match="another activation"):
        tl_vzero.value_zeroing(bart, other, attention_mask=mask, cache=cache, **stack_options(stack, decoder))


@pytest.mark.parametrize("stack", STACKS)
def test_the_hooks_are_the_engines_own_intervention(bart: Any, stack: str) -> None:
    ids, out = LONG.unsqueeze(0), LONG_OUT.unsqueeze(0)
    hooks = tl_vzero.value_zeroing_hooks(bart, positions=[2], layers=[0], stack=stack)
    (named,) = (name for name, _ in hooks)
    ends = {"encoder": "encoder_blocks.0.hook_out"}.get(stack, "decoder_blocks.0.hook_out")
    with torch.no_grad():
        _, clean = bart.run_with_cache(ids, decoder_input=out)
        with bart.hooks(fwd_hooks=hooks):
            _, changed = bart.run_with_cache(ids, decoder_input=out)
    assert not changed[named][0, 2].any()
    moved = 1 - torch.cosine_similarity(clean[ends].double(), changed[ends].double(), dim=-1)[0]
    column = tl_vzero.value_zeroing(bart, LONG, layers=0, sources=2, **stack_options(stack)).values[0, :, 0]
    assert torch.allclose(moved.float(), column, rtol=1e-3, atol=1e-7)


def test_the_model_is_left_as_it_was(bart: Any) -> None:
    with left_as_found(bart):
        for stack in STACKS:
            tl_vzero.value_zeroing(bart, LONG, **stack_options(stack))
        with pytest.raises(InputError, match="ZeroDivisionError"):
            tl_vzero.value_zeroing(bart, LONG, distance=lambda clean, changed: 1 / 0, **stack_options("cross"))


REFUSED: list[Any] = [
    pytest.param({}, "encoder-decoder.*'encoder' or 'decoder' or 'cross'", id="no_stack"),
    pytest.param({"stack": "crss"}, "unknown stack 'crss'.*did you mean 'cross'", id="misspelt"),
    pytest.param({"stack": "cross"}, "no decoder_inputs given", id="cross_alone"),
    pytest.param({"stack": "decoder"}, "no decoder_inputs given", id="decoder_alone"),
    pytest.param({"stack": "encoder", "decoder_inputs": LONG_OUT}, "leave them out", id="encoder_with_decoder"),
    pytest.param(
        {"stack": "cross", "decoder_inputs": LONG_OUT.unsqueeze(0)}, "one sentence.*a list of 1", id="list_for_one"
    ),
    pytest.param({"stack": "cross", "decoder_inputs": ["a", "b"]}, "one sentence.*a list of 2", id="two_for_one"),
    pytest.param({"stack": "cross", "decoder_inputs": torch.tensor([99])}, "decoder.*vocabulary", id="outside"),
    pytest.param({"stack": "cross", "decoder_inputs": torch.tensor([1.0])}, "decoder.*integers", id="floats"),
    pytest.param({"stack": "cross", "decoder_inputs": " "}, "decoder.*empty", id="blank"),
    pytest.param({"stack": "cross", "decoder_inputs": []}, "decoder_inputs are a list of nothing", id="nothing"),
    pytest.param({"stack": "cross", "decoder_inputs": 3}, "decoder_inputs are int", id="number"),
    pytest.param({"stack": "cross", "decoder_inputs": torch.ones(65).long()}, "decoder.*context", id="too_long"),
    pytest.param({"stack": 3, "decoder_inputs": LONG_OUT}, "stack is int", id="stack_of_another_type"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_what_is_refused(bart: Any, options: dict[str, Any], said: str) -> None:
    with type_checks_off(), left_as_found(bart):
        for method in ("value_zeroing", "attention"):
            with pytest.raises(tl_vzero.TLVZeroError, match=said):
                tl_vzero.score(bart, LONG, method, **options)


def test_a_model_of_one_stack_has_no_other() -> None:
    bert = loaded(hf_bert())
    for stack in STACKS:
        with pytest.raises(tl_vzero.TLVZeroError, match="one stack of blocks: leave stack out"):
            tl_vzero.value_zeroing(bert, LONG, stack=stack)
        with pytest.raises(tl_vzero.TLVZeroError, match="one stack of blocks: leave stack out"):
            tl_vzero.value_zeroing_hooks(bert, [1], stack=stack)
    with pytest.raises(tl_vzero.TLVZeroError, match="no second sequence"):
        tl_vzero.value_zeroing(bert, LONG, decoder_inputs=LONG_OUT)
    assert "stack" not in tl_vzero.value_zeroing(bert, LONG).metadata


def test_a_method_that_is_undefined_for_a_stack_says_why(bart: Any) -> None:
    with pytest.raises(tl_vzero.TLVZeroError, match="alti_logit is undefined for stack='encoder': an encoder predicts"):
        tl_vzero.score(bart, LONG, "alti_logit", stack="encoder")


@pytest.mark.parametrize("method", ["attention_rollout", "attention_flow"])
def test_a_method_that_follows_layers_refuses_a_cross_map(bart: Any, method: str) -> None:
    with pytest.raises(tl_vzero.TLVZeroError, match="joins two sequences"):
        tl_vzero.score(bart, LONG, method, **stack_options("cross"))
    assert tl_vzero.score(bart, LONG, method, stack="encoder").stage == "rollout"


def test_random_scores_have_the_maps_shape(bart: Any) -> None:
    scores = tl_vzero.score(bart, LONG, "random", **stack_options("cross"))
    assert scores.values.shape == (3, len(WRITTEN), len(READ))


@pytest.mark.parametrize("stack", ["decoder", "cross"])
def test_the_closed_form_takes_a_cache_of_both_attentions(bart: Any, stack: str) -> None:
    options = stack_options(stack)
    _, cache = bart.run_with_cache(LONG.unsqueeze(0), decoder_input=LONG_OUT.unsqueeze(0))
    scores = tl_vzero.value_zeroing(bart, LONG, cache=cache, **options)
    assert scores.metadata["engine"] == "closed_form"
    torch.testing.assert_close(scores.values, tl_vzero.value_zeroing(bart, LONG, **options).values)
    lacking = "cross_attn" if stack == "decoder" else "self_attn"
    part = {name: activation for name, activation in cache.items() if lacking not in name}
    scores = tl_vzero.value_zeroing(bart, LONG, cache=part, **options)
    assert scores.metadata["engine"] == "hooks" and "both attentions" in scores.metadata["engine_reason"]
    with pytest.raises(tl_vzero.TLVZeroError, match='engine="closed_form" cannot be used: it reads both'):
        tl_vzero.value_zeroing(bart, LONG, engine="closed_form", cache=part, **options)
