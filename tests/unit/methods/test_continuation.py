"""A continuation explained: the rows that predict its tokens, their sum, and what is the continuation's own."""

from typing import Any

import pytest
import torch
from support.models import bridge, hf_bert, hf_gpt2, tokenizer
from tokenizers import processors

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError

PROMPT, WRITTEN = torch.tensor([5, 6, 7, 8]), torch.tensor([9, 10, 11])


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model(hf_gpt2())


@pytest.mark.parametrize("method", ["value_zeroing", "attention", "hta", "alti"])
def test_steps_are_the_rows_before_each_token(model: Any, method: str) -> None:
    explained = tl_vzero.explain_continuation(model, PROMPT, WRITTEN, method)
    (whole,) = tl_vzero.METHODS[method](model, torch.cat([PROMPT, WRITTEN])[None])
    shares = whole.normalized().values
    for step, dest in enumerate([3, 4, 5]):
        assert explained.steps[step].dest_positions == (dest,)
        expected = torch.cat([shares[:, dest, :4], shares[:, dest, 4:].sum(-1, keepdim=True)], dim=-1)
        torch.testing.assert_close(explained.rows()[:, step], expected)
    torch.testing.assert_close(explained.total().sum(-1), torch.full((3,), 3.0))
    assert len(explained.written) == 3
    frame = explained.to_frame(0)
    assert frame.shape == (4, 5) and frame.columns[-1] == "continuation" and frame.index[-1] == "sum"
    assert frame.iloc[0, -1] == 0  # the first token is written of the prompt alone


def test_a_method_with_a_target_explains_the_token_that_follows(model: Any) -> None:
    explained = tl_vzero.explain_continuation(model, PROMPT, WRITTEN, "logit_contributions")
    (one,) = tl_vzero.METHODS["logit_contributions"](model, torch.cat([PROMPT, WRITTEN])[None], target=4, target_ids=10)
    row = one.row(4)
    torch.testing.assert_close(explained.rows()[:, 1, :4], row[:, :4])
    torch.testing.assert_close(explained.rows()[:, 1, 4], row[:, 4:].sum(-1))


def test_the_model_writes_what_is_likeliest(model: Any) -> None:
    ids = PROMPT
    for _ in range(3):
        ids = torch.cat([ids, model(ids[None])[0, -1:].argmax(-1)])
    by_count = tl_vzero.explain_continuation(model, PROMPT, 3, "attention")
    given = tl_vzero.explain_continuation(model, PROMPT, ids[4:], "attention")
    assert by_count.written == given.written
    assert torch.equal(by_count.rows(), given.rows())


def test_texts_are_read_as_prompt_and_more() -> None:
    without_special = tokenizer()
    without_special.backend_tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    model = tl_vzero.load_model(hf_gpt2(), without_special)
    explained = tl_vzero.explain_continuation(model, "the dogs near", " the hat", "attention")
    assert explained.n_prompt == 4 and explained.written == ("the", "hat")
    with pytest.raises(InputError, match="do not begin with those of"):
        tl_vzero.explain_continuation(model, "the dogs", "")
    ids = torch.tensor(tokenizer().encode("the dogs near the hat", add_special_tokens=False))
    assert torch.equal(explained.rows(), tl_vzero.explain_continuation(model, ids[:4], ids[4:], "attention").rows())


@pytest.mark.parametrize(
    ("prompt", "written", "error", "said"),
    [
        (PROMPT, " the", InputTypeError, "expected both as texts, or both as ids"),
        (PROMPT, 0, InputError, "written is 0: expected at least 1"),
        (PROMPT, 10**4, InputError, "reads at most"),
    ],
)
def test_bad_input_is_told(model: Any, prompt: Any, written: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        tl_vzero.explain_continuation.__wrapped__(model, prompt, written)


def test_a_masked_model_writes_none() -> None:
    with pytest.raises(InputError, match="no causal language model"):
        tl_vzero.explain_continuation(bridge(hf_bert()), PROMPT, 2)
