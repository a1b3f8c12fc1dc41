"""Representations at the target, against the Hugging Face model's own hidden states and against cached runs."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from support.models import MOST_ROUTES, build, is_causal
from torch import Tensor

from tl_vzero.data.examples import Example
from tl_vzero.errors import InputError, ModelError
from tl_vzero.evaluate.probing import representations, with_number
from tl_vzero.evaluate.sentences import Protocol, TokenizedSet, tokenize_examples
from tl_vzero.models.sites import sites_of

SENTENCES = [
    "the dogs near a hat are bark .",
    "the hat of marcus is near the dogs .",
    "a hat is near .",
    "some dogs of the hat are near a dog near marcus .",
]


def examples() -> list[Example]:
    examples = []
    for pair, sentence in enumerate(SENTENCES):
        words = tuple(sentence.split())
        target = next(index for index, word in enumerate(words) if word in ("is", "are"))
        good = words[target]
        bad = "is" if good == "are" else "are"
        shown: Any = "plural" if good == "are" else "singular"
        examples.append(Example(f"s-{pair}", "s", words, target, good, bad, (1,), "given", number=shown))
    return examples


def protocol_of(architecture: str) -> Protocol:
    return "causal" if is_causal(architecture) else "masked"


def one_by_one(model: Any, layout: TokenizedSet) -> Tensor:
    """The same from TransformerLens's own cache, one sentence at a time."""
    sites = sites_of(model)
    rows = []
    for tokenized in layout.examples:
        with torch.no_grad():
            _, cache = model.run_with_cache(tokenized.encoding.ids[None])
        rows.append(torch.stack([cache[name][0, tokenized.dest] for name in (sites.inputs[0], *sites.outputs)]))
    return torch.stack(rows)


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_they_are_the_cached_activations_at_the_target(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    layout = tokenize_examples(model, examples(), protocol=protocol_of(architecture))
    measured = representations(model, layout)
    assert measured.shape == (len(SENTENCES), 4, 16)
    assert torch.allclose(measured, one_by_one(model, layout), atol=1e-5)


def test_they_are_the_hidden_states_of_the_hugging_face_model() -> None:
    hf_model, model = build("load_model", "bert")
    layout = tokenize_examples(model, examples())
    measured = representations(model, layout)
    for states_at_target, tokenized in zip(measured, layout.examples, strict=True):
        with torch.no_grad():
            states = hf_model(input_ids=tokenized.encoding.ids[None], output_hidden_states=True).hidden_states
        expected = torch.stack([state[0, tokenized.dest] for state in states])
        assert torch.allclose(states_at_target, expected, atol=1e-5)


def test_batches_do_not_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = build("load_model", "bert")
    layout = tokenize_examples(model, examples() * 3)
    whole = representations(model, layout)
    monkeypatch.setattr("tl_vzero.evaluate.probing.TOKENS_PER_BATCH", 1)
    assert torch.allclose(representations(model, layout), whole, atol=1e-5)
    assert torch.allclose(whole[: len(SENTENCES)], whole[len(SENTENCES) : 2 * len(SENTENCES)], atol=1e-5)


def test_weights_that_overflow_are_refused() -> None:
    _, model = build("load_model", "bert")
    layout = tokenize_examples(model, examples())
    with torch.no_grad():
        model.blocks[1].ln2.bias.fill_(float("inf"))
    with pytest.raises(ModelError, match="NaN or infinite"):
        representations(model, layout)


def test_labels_are_the_numbers_that_the_targets_show() -> None:
    _, model = build("load_model", "bert")
    layout = tokenize_examples(model, examples())
    numbered, labels = with_number(layout)
    assert numbered.examples == layout.examples and labels.tolist() == [1, 0, 0, 1]


def test_examples_without_a_number_are_left_out_or_refused() -> None:
    _, model = build("load_model", "bert")
    unknown = [replace(example, number=None) for example in examples()]
    layout = tokenize_examples(model, [*examples()[:1], *unknown])
    numbered, labels = with_number(layout)
    assert numbered.examples == layout.examples[:1] and labels.tolist() == [1]
    with pytest.raises(InputError, match="none of 4 examples says whether"):
        with_number(tokenize_examples(model, unknown))
