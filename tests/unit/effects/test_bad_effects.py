"""Bad input to the effects: a clear error before any work, and a model that is left as it was."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from support.effects import CORRUPTED, TARGET, TEXT, double_model, ids_of_text
from support.models import hf_bert_headless, loaded
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, ModelError
from tl_vzero.inputs.baselines import BaselineValues

EFFECTS: dict[str, Callable[..., Any]] = {
    "zero_ablation": tl_vzero.zero_ablation,
    "value_patching": lambda model, inputs, **options: tl_vzero.value_patching(model, inputs, CORRUPTED, **options),
    "q_patching": lambda model, inputs, **options: tl_vzero.activation_patching(
        model, inputs, CORRUPTED, "q", **options
    ),
    "attribution_patching": tl_vzero.attribution_patching,
    "attention_knockout": tl_vzero.attention_knockout,
}
each_effect = pytest.mark.parametrize("effect", EFFECTS.values(), ids=EFFECTS)


@pytest.fixture(autouse=True)
def as_for_users() -> Iterator[None]:
    with type_checks_off():
        yield


def refused(call: Callable[..., Any], error: type[Exception], *mentions: str) -> None:
    model = double_model("load_model", "bert")
    with left_as_found(model), pytest.raises(error) as caught:
        call(model)
    for mention in mentions:
        assert mention in str(caught.value)


BAD_OPTIONS: list[tuple[str, dict[str, Any], type[Exception], tuple[str, ...]]] = [
    ("unknown_metric", {"metric": "logits"}, InputError, ("'logits'", "logit, probability", "did you mean 'logit'")),
    ("no_metric", {"metric": None}, InputTypeError, ("NoneType", "'logit'")),
    ("row", {"metric": lambda logits: logits[0, 0]}, InputError, ("shape [60]", "scalar")),
    ("one_number_in_a_row", {"metric": lambda logits: logits[:, 0, 0]}, InputError, ("shape [1]", "scalar")),
    ("number", {"metric": lambda logits: 1.0}, InputTypeError, ("float", "scalar tensor")),
    ("function_and_ids", {"metric": torch.sum, "target_ids": 3}, InputError, ("target_ids 3", "function")),
    ("pieces", {"target_ids": "dogs"}, InputError, ("'dogs'", "['dog', '##s']")),
    ("unknown_word", {"target_ids": ("is", "zebra")}, InputError, ("'zebra' is not in the vocabulary",)),
    ("id", {"target_ids": 60}, InputError, ("60", "0 to 59")),
    ("three_ids", {"target_ids": (1, 2, 3)}, InputTypeError, ("(1, 2, 3)", "a pair")),
    ("target", {"target": 10}, InputError, ("target 10", "0 to 9")),
    ("layer", {"layers": 3}, InputError, ("layers holds 3", "0 to 2")),
    ("source", {"sources": [0, 99]}, InputError, ("sources holds 99", "0 to 9")),
    ("mask_of_text", {"attention_mask": torch.ones(1, 10)}, InputError, ("attention_mask given with text",)),
]


@pytest.mark.parametrize(
    ("options", "error", "mentions"), [pytest.param(*rest, id=name) for name, *rest in BAD_OPTIONS]
)
@each_effect
def test_bad_options(
    effect: Callable[..., Any], options: dict[str, Any], error: type[Exception], mentions: tuple[str, ...]
) -> None:
    refused(partial(effect, inputs=TEXT, **options), error, *mentions)


def other_models(shape: tuple[int, ...]) -> BaselineValues:
    return BaselineValues(torch.zeros(shape), "mean of 2 texts", {"weights_sha256": "0", "stack": None})


BAD_BASELINES: list[tuple[Any, type[Exception], tuple[str, ...]]] = [
    ("men", InputError, ("'men'", "zero, mean", "did you mean 'mean'")),
    (3, InputTypeError, ("int", "mean_values")),
    (torch.zeros(3, 2, 9), InputError, ("[3, 2, 9]", "[3, 2, 8]")),
    (torch.zeros(3, 9, 2, 8), InputError, ("9 positions", "10")),
    (torch.zeros(3, 2, 8, dtype=torch.long), InputTypeError, ("int64",)),
    (torch.full((3, 2, 8), torch.nan), InputError, ("NaN",)),
    (other_models((3, 2, 8)), ModelError, ("other weights",)),
]


@pytest.mark.parametrize(("baseline", "error", "mentions"), BAD_BASELINES)
@pytest.mark.parametrize("effect", [tl_vzero.zero_ablation, tl_vzero.attribution_patching])
def test_bad_baselines(effect: Any, baseline: Any, error: type[Exception], mentions: tuple[str, ...]) -> None:
    refused(partial(effect, inputs=TEXT, baseline=baseline), error, *mentions)


@each_effect
def test_a_sentence_without_a_mask_needs_a_target(effect: Callable[..., Any]) -> None:
    refused(partial(effect, inputs="the hat of some dog near marcus."), InputError, "no target", "0 mask tokens")


@each_effect
def test_several_sentences_are_refused(effect: Callable[..., Any]) -> None:
    for inputs in ([TEXT], [TEXT, TEXT], ids_of_text(TEXT).expand(2, -1)):
        refused(partial(effect, inputs=inputs), InputTypeError, "expected one", "call it for each")


@each_effect
def test_a_headless_model_has_no_prediction(effect: Callable[..., Any]) -> None:
    model = loaded(hf_bert_headless())
    with pytest.raises(HeadlessModelError, match="no trained prediction head"):
        effect(model, TEXT)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5])
def test_a_bad_batch_size(batch_size: Any) -> None:
    with pytest.raises((InputError, InputTypeError), match="batch_size is"):
        tl_vzero.zero_ablation(double_model("load_model", "bert"), TEXT, batch_size=batch_size)


# --- pairs ----------------------------------------------------------------------------------------------


def patch(clean: Any, corrupted: Any, **options: Any) -> Callable[..., Any]:
    return lambda model: tl_vzero.value_patching(model, clean, corrupted, **options)


def test_sentences_of_different_length_show_both_token_lists() -> None:
    call = patch("the dog [MASK] near.", "the dogs [MASK] near.")
    tokens = "['[CLS]', 'the', 'dog', '[MASK]', 'near', '.', '[SEP]']", "'dog', '##s', '[MASK]'"
    refused(call, InputError, "7 tokens", "8", *tokens)


def test_the_same_sentence_twice_is_refused() -> None:
    refused(patch(TEXT, TEXT), InputError, "the same tokens")


def test_two_places_of_the_mask_are_refused() -> None:
    refused(patch("the dog [MASK] near.", "[MASK] the dog near."), InputError, "position 3", "1", "give a target")


def test_a_bad_corrupted_sentence_is_refused() -> None:
    refused(patch(TEXT, ["the dog"]), InputTypeError, "expected one")
    refused(patch(TEXT, "", target=TARGET), InputError, "empty text")


def test_an_error_in_the_users_metric_is_reported_with_its_cause() -> None:
    def broken(logits: Tensor) -> Tensor:
        raise ZeroDivisionError("mine")

    for effect in EFFECTS.values():
        refused(partial(effect, inputs=TEXT, metric=broken), InputError, "broken failed: ZeroDivisionError: mine")
