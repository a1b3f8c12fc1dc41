"""Examples on a model's tokens: where target, cue and attractor lie, and what each protocol refuses."""

from dataclasses import replace
from typing import Any

import pytest
from support.evaluations import EXAMPLES, masked_ids
from support.models import MOST_ROUTES, build, is_causal
from support.state import left_as_found, type_checks_off

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.evaluate.sentences import tokenize_examples


def test_a_masked_example() -> None:
    _, model = build("load_model", "bert")
    (sentence, *_) = tokenize_examples(model, EXAMPLES).examples
    assert sentence.encoding.tokens == (
        "[CLS]", "the", "dog", "##s", "near", "a", "hat", "[MASK]", "bark", "##ing", ".", "[SEP]"
    )  # fmt: skip
    assert sentence.encoding.ids.tolist() == masked_ids(EXAMPLES[0])
    assert (sentence.dest, sentence.target_position) == (7, 7)
    assert (sentence.cue("first"), sentence.cue("all")) == ((2,), (2, 3))
    assert (sentence.attractor("first"), sentence.attractor("all")) == ((6,), (6,))


def test_a_causal_example() -> None:
    _, model = build("load_model", "gpt2")
    tokenized = tokenize_examples(model, EXAMPLES, protocol="causal")
    (first, second, third) = tokenized.examples
    assert first.encoding.tokens == ("[CLS]", "the", "dog", "##s", "near", "a", "hat")
    assert (first.dest, first.target_position) == (6, None)
    assert (first.cue("all"), first.attractor("first")) == ((2, 3), (6,))
    assert second.encoding.tokens == ("[CLS]", "the", "dog")
    assert second.dest == 2 == second.cue("first")[0]
    tokenizer = tl_vzero.models.facts.facts_of(model).tokenizer
    assert tokenizer.convert_ids_to_tokens([third.encoding.good_id, third.encoding.bad_id]) == ["are", "is"]
    (skipped,) = tokenized.skipped
    assert (skipped.id, skipped.paradigm) == ("question-0", "question")
    assert skipped.reason == "the cue 'dog' comes after the target"


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"words": ("dogs", "dogs"), "target": 1, "good": "dogs", "bad": None, "cue": (0,)}, "'dogs' is 2 tokens"),
        ({"words": ("dogs", "xyz"), "target": 1, "good": "xyz", "bad": None, "cue": (0,)}, "'xyz' is not in the"),
        ({"words": ("dogs", "is"), "target": 1, "good": "is", "bad": "dogs", "cue": (0,)}, "'dogs' is 2 tokens"),
    ],
)
def test_what_the_causal_protocol_skips(changed: dict[str, Any], reason: str) -> None:
    _, model = build("load_model", "gpt2")
    odd = replace(EXAMPLES[1], id="odd", attractor=(), **changed)
    tokenized = tokenize_examples(model, [odd, EXAMPLES[1]], protocol="causal")
    assert [sentence.example.id for sentence in tokenized.examples] == ["plain-0"]
    assert [sentence.id for sentence in tokenized.skipped] == ["odd"]
    assert reason in tokenized.skipped[0].reason


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_each_model_has_its_protocol(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    right, wrong = ("causal", "masked") if is_causal(architecture) else ("masked", "causal")
    with left_as_found(model):
        assert tokenize_examples(model, EXAMPLES[:2], protocol=right).protocol == right
        with pytest.raises(ModelError, match=f'protocol="{right}"'):
            tokenize_examples(model, EXAMPLES[:2], protocol=wrong)


def test_bad_input() -> None:
    hf_model, model = build("load_model", "bert")
    with type_checks_off():
        with pytest.raises(InputError, match=r"unknown protocol 'mask'.*did you mean 'masked'"):
            tokenize_examples(model, EXAMPLES, protocol="mask")  # type: ignore[arg-type]
        with pytest.raises(InputTypeError, match="expected a sequence of Example"):
            tokenize_examples(model, ["the dog is near"])  # type: ignore[list-item]
        with pytest.raises(InputError, match="there are no examples"):
            tokenize_examples(model, [])
        with pytest.raises(InputError, match="no tokenizer"):
            tokenize_examples(tl_vzero.load_model(hf_model), EXAMPLES)
    _, causal = build("load_model", "gpt2")
    with pytest.raises(InputError, match="no example of 1 can be read from left to right"):
        tokenize_examples(causal, EXAMPLES[3:], protocol="causal")
