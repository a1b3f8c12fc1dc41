"""Value Zeroing within a tolerance: shares lie within the errors that are stated, and what is guessed is worth it."""

import pytest
import torch
from support.closed import shared_model as model_of
from support.state import type_checks_off
from transformers import BertConfig, BertForMaskedLM, LlamaConfig, LlamaForCausalLM

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.zeroing import sketch

IDS = torch.arange(4, 44) % 37
FORMS = {"post-norm": "bert", "pre-norm": "gpt2", "gated": "llama", "sandwich": "gemma2"}


@pytest.fixture
def guesses_all(monkeypatch):
    """Tiny models cost less exactly: let them be sketched all the same."""
    monkeypatch.setattr(sketch, "NARROWEST", 0)
    monkeypatch.setattr(sketch, "LARGEST_COST", float("inf"))
    monkeypatch.setattr(sketch, "COST_OF_EXACT", 1000.0)


def guessed(scores, exact) -> float:
    """The share of entries that are not what they are exactly."""
    off = (scores.values - exact.values).abs() > 1e-3 * exact.values
    return int(off.sum()) / int((exact.values > 0).sum())


def within_errors(scores, exact) -> bool:
    off = (scores.normalized().values.double() - exact.normalized().values.double()).abs()
    return bool((off <= scores.error + 1e-6).all())


@pytest.mark.parametrize("architecture", FORMS.values(), ids=FORMS)
def test_every_share_is_within_its_error_and_every_error_within_the_tolerance(architecture, guesses_all):
    model = model_of(architecture)
    exact = tl_vzero.value_zeroing(model, IDS)
    scores = tl_vzero.value_zeroing(model, IDS, tolerance=0.1, confidence=0.999)
    assert guessed(scores, exact) > 0.3
    assert scores.error.max() <= 0.1
    assert within_errors(scores, exact)
    # What is not guessed is exact.
    rows = (scores.error == 0).all(dim=-1)
    torch.testing.assert_close(scores.values[rows], exact.values[rows], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("architecture", FORMS.values(), ids=FORMS)
def test_rows_keep_to_their_errors_as_often_as_the_confidence_says(architecture, guesses_all):
    model, misses, rows = model_of(architecture), 0, 0
    exact = tl_vzero.value_zeroing(model, IDS).normalized().values.double()
    for seed in range(10):
        scores = tl_vzero.value_zeroing(model, IDS, tolerance=0.2, confidence=0.9, seed=seed)
        off = (scores.normalized().values.double() - exact).abs() > scores.error + 1e-6
        misses, rows = misses + int(off.any(dim=-1).sum()), rows + off[..., 0].numel()
    assert misses <= 0.1 * rows


def test_the_seed_decides_what_is_drawn(guesses_all):
    model = model_of("bert")
    one, same, other = (tl_vzero.value_zeroing(model, IDS, tolerance=0.1, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one.values, same.values)
    assert torch.equal(one.error, same.error)
    assert not torch.equal(one.values, other.values)
    assert one.metadata["options"]["seed"] == 1


def test_without_a_tolerance_nothing_is_guessed():
    scores = tl_vzero.value_zeroing(model_of("bert"), IDS)
    assert scores.error is None
    assert "tolerance" not in scores.metadata["options"]


def test_a_narrow_model_is_exact_within_any_tolerance():
    model = model_of("bert")
    scores = tl_vzero.value_zeroing(model, IDS, tolerance=0.1)
    assert not scores.error.any()
    assert torch.equal(scores.values, tl_vzero.value_zeroing(model, IDS).values)


def test_hooks_of_the_users_leave_it_exact():
    model = model_of("bert")
    model.add_hook("blocks.0.attn.hook_v", lambda value, hook: value * 1.5)
    try:
        scores = tl_vzero.value_zeroing(model, IDS, tolerance=0.1)
    finally:
        model.reset_hooks()
    assert scores.metadata["engine"] == "hooks"
    assert not scores.error.any()


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"tolerance": 0.0}, InputError, "tolerance is 0.0"),
        ({"tolerance": 1.0}, InputError, "tolerance is 1.0"),
        ({"tolerance": float("nan")}, InputError, "tolerance is nan"),
        ({"tolerance": "0.01"}, InputTypeError, "tolerance is str"),
        ({"tolerance": True}, InputTypeError, "tolerance is bool"),
        ({"tolerance": 0.01, "confidence": 1.0}, InputError, "confidence is 1.0"),
        ({"confidence": 1.0}, InputError, "confidence is 1.0"),
        ({"tolerance": 0.01, "seed": -1}, InputError, "seed is -1"),
        ({"tolerance": 0.01, "seed": 0.5}, InputTypeError, "seed is float"),
        ({"tolerance": 0.01, "engine": "hooks"}, InputError, 'engine="hooks"'),
        ({"tolerance": 0.01, "distance": "euclidean"}, InputError, "euclidean"),
        ({"tolerance": 0.01, "distance": lambda a, b: (a - b).norm(dim=-1)}, InputError, "a callable"),
    ],
)
def test_what_cannot_be_bounded_is_refused(options, error, says):
    with type_checks_off(), pytest.raises(error, match=says):
        tl_vzero.value_zeroing(model_of("bert"), IDS, **options)


def wide_bert() -> BertForMaskedLM:
    shape = {"hidden_size": 384, "intermediate_size": 1536, "num_attention_heads": 6, "num_hidden_layers": 1}
    return BertForMaskedLM(BertConfig(**shape, vocab_size=100)).eval()


def wide_llama() -> LlamaForCausalLM:
    shape = {"hidden_size": 384, "intermediate_size": 1024, "num_attention_heads": 6, "num_key_value_heads": 2}
    return LlamaForCausalLM(LlamaConfig(**shape, num_hidden_layers=1, vocab_size=100)).eval()


@pytest.mark.parametrize("build", [wide_bert, wide_llama])
def test_wide_models_are_guessed_as_they_are(build):
    torch.manual_seed(0)
    model = tl_vzero.load_model(build())
    ids = torch.randint(4, 100, (256,))
    exact = tl_vzero.value_zeroing(model, ids)
    scores = tl_vzero.value_zeroing(model, ids, tolerance=0.03)
    assert guessed(scores, exact) > 0.5
    assert within_errors(scores, exact)
