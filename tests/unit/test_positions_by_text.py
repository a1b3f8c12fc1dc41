"""The text of a token is taken wherever a position is, and means the same."""

from typing import Any

import pytest
import torch
from support.models import hf_bert, hf_gpt2, loaded
from support.state import type_checks_off

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError

TEXT = "the dog near a hat [MASK] ."
OTHER = "a hat [MASK] the dog near ."  # as many tokens, and all of them elsewhere


@pytest.fixture(scope="module")
def model() -> Any:
    return loaded(hf_bert())


@pytest.fixture(scope="module")
def tokens(model: Any) -> list[str]:
    return list(tl_vzero.value_zeroing(model, TEXT).dest_tokens)


@pytest.mark.parametrize("method", ["value_zeroing", "attention", "attention_norm", "alti", "decompx", "hta"])
def test_destinations_of_every_kind_of_method(model: Any, tokens: list[str], method: str) -> None:
    by_text = tl_vzero.score(model, TEXT, method, destinations=["[MASK]", "dog"])
    by_position = tl_vzero.score(model, TEXT, method, destinations=[tokens.index("[MASK]"), tokens.index("dog")])
    assert by_text.dest_tokens == ("[MASK]", "dog")
    assert by_text.dest_positions == by_position.dest_positions
    assert torch.equal(by_text.values, by_position.values)


@pytest.mark.parametrize("method", ["value_zeroing", "attention", "alti", "decompx", "hta"])
def test_a_text_is_looked_for_in_each_sentence(model: Any, method: str) -> None:
    """Both are of one length and share a run, and the token is at another place in each."""
    both = tl_vzero.score(model, [TEXT, OTHER, TEXT], method, destinations="[MASK]")
    alone = [tl_vzero.score(model, text, method).row("[MASK]") for text in (TEXT, OTHER, TEXT)]
    for scores, row in zip(both, alone, strict=True):
        assert scores.dest_tokens == ("[MASK]",)
        assert torch.allclose(scores.values[:, 0], row, atol=1e-6)
    assert both[0].dest_positions != both[1].dest_positions


def test_sources_and_spans(model: Any, tokens: list[str]) -> None:
    dog, hat = tokens.index("dog"), tokens.index("hat")
    by_text = tl_vzero.value_zeroing(model, TEXT, sources=["hat", dog])
    assert by_text.src_positions == (hat, dog)
    assert torch.equal(by_text.values, tl_vzero.value_zeroing(model, TEXT, sources=[hat, dog]).values)
    spans = tl_vzero.value_zeroing(model, TEXT, spans=[["the", "dog"], "hat"])
    assert spans.src_spans == ((dog - 1, dog), (hat,))
    assert torch.equal(spans.values, tl_vzero.value_zeroing(model, TEXT, spans=[[dog - 1, dog], [hat]]).values)


def test_targets_of_methods_effects_and_comparisons(model: Any, tokens: list[str]) -> None:
    dog = tokens.index("dog")
    assert tl_vzero.score(model, TEXT, "gradient_x_input", target="dog").dest_positions == (dog,)
    effect = tl_vzero.zero_ablation(model, TEXT, target="dog", sources=["hat", "the"])
    assert (effect.target, effect.src_tokens) == (dog, ("hat", "the"))
    assert tl_vzero.attribution_patching(model, TEXT, target="dog").target == dog
    compared = tl_vzero.compare(model, [TEXT, OTHER], ["value_zeroing"], target=["dog", "near"])
    assert [tokens.index("dog"), compared[1].tokens.index("near")] == [one.target for one in compared]


def test_of_patching_a_text_is_of_the_clean_sentence(model: Any) -> None:
    clean, corrupted = "the dog [MASK] .", "the hat [MASK] ."
    effect = tl_vzero.value_patching(model, clean, corrupted, target="dog", sources=["dog"])
    assert (effect.target_token, effect.src_tokens, effect.corrupted_tokens) == ("dog", ("dog",), ("hat",))


def test_tokens_with_a_space_before_them(model: Any) -> None:
    scores = tl_vzero.value_zeroing(loaded(hf_gpt2()), "the dog near a hat", destinations="near")
    assert [token.strip() for token in scores.dest_tokens] == ["near"]


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"destinations": "dig"}, r"destinations 'dig' is none of the tokens: .*; did you mean 'dog'\?"),
        ({"destinations": "[mask]"}, r"did you mean '\[MASK\]'\?"),
        ({"sources": ["zzzz"]}, r"sources 'zzzz' is none of the tokens: expected one of \[CLS\], the, dog, near"),
        ({"spans": [["the", "dg"]]}, r"spans\[0\] 'dg' .*did you mean 'dog'\?"),
        ({"destinations": ["dog", "dog"]}, "more than once"),
    ],
)
def test_a_text_that_is_not_there(model: Any, option: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        tl_vzero.value_zeroing(model, TEXT, **option)


def test_a_text_that_occurs_several_times_is_told_with_its_positions(model: Any) -> None:
    text = "the dog near the hat ."
    at = "occurs 2 times, at positions 1, 4: expected a token that occurs once; give one of these positions"
    for call in (
        lambda: tl_vzero.value_zeroing(model, text, destinations="the"),
        lambda: tl_vzero.zero_ablation(model, text, target="the"),
        lambda: tl_vzero.value_zeroing(model, text).row("the"),
    ):
        with pytest.raises(InputError, match=at):
            call()


@pytest.mark.parametrize("odd", [1.5, True, ["dog", 1.5], [["dog"]], {}])
def test_what_is_neither_position_nor_text(model: Any, odd: Any) -> None:
    scores = tl_vzero.value_zeroing(model, TEXT)
    for call in (lambda: scores.row(odd), lambda: tl_vzero.value_zeroing(model, TEXT, destinations=odd)):
        with type_checks_off(), pytest.raises((InputTypeError, InputError), match="dest"):
            call()
