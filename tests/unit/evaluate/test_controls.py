"""Controls: a model with fresh weights, and the library's distances; and the published figures."""

import pytest
import torch
from support.evaluations import EXAMPLES
from support.models import build, hf_bert, hf_bert_headless, hooked_encoder, loaded
from support.state import left_as_found, type_checks_off

import tl_vzero
from tl_vzero.distance import DISTANCES, manhattan
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.evaluate.mass import mass
from tl_vzero.evaluate.protocol import randomised_copy, rows_by_distance
from tl_vzero.evaluate.results import published, published_of
from tl_vzero.evaluate.rows import target_rows
from tl_vzero.evaluate.sentences import tokenize_examples
from tl_vzero.models.facts import facts_of


@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_a_copy_has_other_weights_and_the_same_shape(architecture: str) -> None:
    _, model = build("load_model", architecture)
    state = torch.random.get_rng_state()
    with left_as_found(model):
        first, again, other = (randomised_copy(model, seed) for seed in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    weights = [dict(any_model.named_parameters()) for any_model in (model, first, again, other)]
    assert [{name: w.shape for name, w in by_name.items()} for by_name in weights] == [
        {name: w.shape for name, w in weights[0].items()}
    ] * 4
    matrix = next(name for name, weight in weights[0].items() if weight.ndim == 2)
    assert not torch.equal(weights[0][matrix], weights[1][matrix])
    assert torch.equal(weights[1][matrix], weights[2][matrix])
    assert not torch.equal(weights[1][matrix], weights[3][matrix])
    assert facts_of(first).tokenizer is facts_of(model).tokenizer
    assert tl_vzero.value_zeroing(first, torch.tensor([2, 5, 6, 3])).values.isfinite().all()


def test_a_copy_has_the_head_that_the_model_has() -> None:
    assert facts_of(randomised_copy(loaded(hf_bert_headless()))).head == "absent"
    assert facts_of(randomised_copy(loaded(hf_bert()))).head == "trained"


def test_a_copy_keeps_its_dtype() -> None:
    copied = randomised_copy(tl_vzero.load_model(hf_bert(), dtype=torch.float64))
    assert {weight.dtype for weight in copied.parameters()} == {torch.float64}


def test_no_copy_without_a_configuration() -> None:
    with pytest.raises(ModelError, match="holds no Hugging Face model"):
        randomised_copy(hooked_encoder(hf_bert()))


def test_a_seed_is_an_integer() -> None:
    with type_checks_off(), pytest.raises(InputTypeError, match="seed is str"):
        randomised_copy(loaded(hf_bert()), "a")  # type: ignore[arg-type]


def test_a_random_model_goes_through_an_evaluation() -> None:
    _, model = build("load_model", "bert")
    assert mass(randomised_copy(model), EXAMPLES, ["value_zeroing"]).shares


def test_rows_by_distance_are_value_zeroings() -> None:
    _, model = build("load_model", "bert")
    layout = tokenize_examples(model, EXAMPLES)
    rows_of_methods = rows_by_distance(model, layout)
    assert [*rows_of_methods.rows] == [f"value_zeroing, {name}" for name in DISTANCES]
    plain = target_rows(model, layout, ["value_zeroing"]).rows["value_zeroing"]
    assert all(map(torch.equal, rows_of_methods.rows["value_zeroing, cosine"], plain))
    for tokenized, row in zip(layout.examples, rows_of_methods.rows["value_zeroing, unit_euclidean"], strict=True):
        raw = tl_vzero.value_zeroing(model, tokenized.encoding.ids).row(tokenized.dest).double()
        expected = raw.sqrt() / raw.sqrt().sum(-1, keepdim=True)
        assert torch.allclose(row, expected, rtol=1e-4, atol=1e-6)
    with pytest.raises(InputError, match="distances are empty"):
        rows_by_distance(model, layout, {})
    with pytest.raises(InputError, match="unknown distance 'cosin'"):
        rows_by_distance(model, layout, {"mine": "cosin"})


def test_a_function_with_the_name_of_a_distance_is_labelled_a_callable() -> None:
    _, model = build("load_model", "bert")
    rows_of_methods = rows_by_distance(
        model, tokenize_examples(model, EXAMPLES), {"cosine": manhattan, "euclidean": tl_vzero.distance.euclidean}
    )
    assert list(rows_of_methods.rows) == ["value_zeroing, cosine (a callable)", "value_zeroing, euclidean"]


@pytest.mark.parametrize(
    ("training", "first", "last", "compression"), [("pretrained", 0.1, 0.21, 2.09), ("finetuned", 0.1, 0.22, 2.76)]
)
def test_published_figures(training: str, first: float, last: float, compression: float) -> None:
    """As protocol and slides have them; each curve has the twelve layers of BERT."""
    figures = published(training)  # type: ignore[arg-type]
    assert (figures.dot["value_zeroing"][0], figures.dot["value_zeroing"][-1]) == (first, last)
    assert len(figures.dot) == 11 and {*figures.dot} <= {*tl_vzero.METHODS}
    assert {len(curve) for curve in (*figures.dot.values(), figures.compression)} == {12}
    assert figures.compression[-1] == compression
    assert {*figures.faithfulness} <= {*tl_vzero.METHODS}


def test_whose_figures_they_are() -> None:
    assert published_of("bert-base-uncased", "finetuned") == published("finetuned")
    assert published_of("some/folder", None) is None
