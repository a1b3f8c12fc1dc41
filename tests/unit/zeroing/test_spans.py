"""Positions zeroed jointly: one column a span, in both engines."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.closed import ARCHITECTURES, IDS, assert_same, maps, model_in_float64, shared_model, tolerance_of
from support.state import type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.models.sites import sites_of

SPANS = [[3], [0, 4, 5], [-1, 2], [7, 9, 8], [6, 1]]


def zeroed_by_hand(model: Any, span: list[int]) -> Tensor:
    """Block outputs of one run a layer, the span's values zeroed in that layer only: `[layer, dest, feature]`."""
    sites, outputs = sites_of(model), []

    def keep(output: Tensor, hook: Any) -> None:
        outputs.append(output.detach()[0])

    for layer in range(sites.n_layers):
        hooks = tl_vzero.value_zeroing_hooks(model, positions=span, layers=layer)
        with torch.no_grad():
            model.run_with_hooks(IDS.unsqueeze(0), fwd_hooks=[*hooks, (sites.outputs[layer], keep)])
    return torch.stack(outputs)


@pytest.mark.parametrize("engine", ["hooks", "closed_form"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_span_is_zeroed_as_a_whole(engine: str, architecture: str) -> None:
    model = shared_model(architecture)
    scores = tl_vzero.value_zeroing(model, IDS, spans=SPANS, engine=engine)
    clean = zeroed_by_hand(model, [])
    for column, span in enumerate(SPANS):
        expected = 1 - torch.cosine_similarity(clean, zeroed_by_hand(model, span), dim=-1)
        assert torch.allclose(scores.values[:, :, column], expected, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(
    "options", [{}, {"per_head": True}, {"heads": [1], "destinations": [4, 9]}], ids=lambda options: "-".join(options)
)
def test_the_engines_agree(architecture: str, options: dict[str, Any]) -> None:
    model = shared_model(architecture)
    hooked = maps(model, "hooks", spans=SPANS, **options)
    assert_same(maps(model, "closed_form", spans=SPANS, **options), hooked, tolerance_of(architecture))


@pytest.mark.parametrize("memory_mb", [0.001, 0.1])
def test_the_memory_budget_changes_nothing(memory_mb: float) -> None:
    model = shared_model("bert")
    expected = maps(model, "closed_form", spans=SPANS)
    assert torch.allclose(maps(model, "closed_form", spans=SPANS, memory_mb=memory_mb), expected, rtol=1e-10, atol=0)


def test_spans_of_one_position_are_the_plain_map() -> None:
    model = shared_model("bert")
    spans = [[j] for j in range(len(IDS))]
    assert torch.equal(maps(model, "closed_form", spans=spans), maps(model, "closed_form"))


def test_a_span_is_not_the_sum_of_its_columns() -> None:
    model = shared_model("bert")
    joint, apart = maps(model, "closed_form", spans=[[2, 3]]), maps(model, "closed_form", sources=[2, 3])
    assert not torch.allclose(joint.squeeze(-1), apart.sum(dim=-1), rtol=1e-2)


def test_several_sentences_and_one_number_for_a_span() -> None:
    model = shared_model("gpt2")
    ids = torch.nn.utils.rnn.pad_sequence([IDS, IDS[:5]], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(11), torch.ones(5)], batch_first=True)
    together = tl_vzero.value_zeroing(model, ids, attention_mask=mask, spans=[0, [-1, 1]])
    assert isinstance(together, list)
    for scores, length in zip(together, (11, 5), strict=True):
        alone = maps(model, "hooks", IDS[:length], spans=[[0], [length - 1, 1]])
        assert_same(scores.values.double(), alone, 1e-11)
        assert scores.src_spans == ((0,), (length - 1, 1))


def test_labels_table_and_file(tmp_path: Path) -> None:
    model = tl_vzero.load_model("agreement-mini")
    scores = tl_vzero.value_zeroing(model, "the authors [MASK] today.", spans=[[1, 2], [0]])
    assert isinstance(scores, tl_vzero.Scores)
    assert scores.partial and scores.src_positions == (1, 0)
    assert scores.src_tokens == ("the authors", "[CLS]")
    frame = scores.to_frame()
    assert set(frame["src_token"]) == set(scores.src_tokens) and len(frame) == scores.values.numel()
    scores.save(tmp_path / "spans.safetensors")
    assert tl_vzero.Scores.load(tmp_path / "spans.safetensors").src_spans == ((1, 2), (0,))
    with pytest.raises(ScoresError, match="spans"):
        scores.words()
    with pytest.raises(ScoresError):
        scores.rollout()


@pytest.mark.parametrize(
    ("spans", "error", "match"),
    [
        ([], InputError, "at least one span"),
        ([[]], InputError, r"spans\[0\] is empty"),
        ([[1], [1, 1]], InputError, r"spans\[1\] holds \[1\] more than once"),
        ([[1, 99]], InputError, r"spans\[0\] holds 99"),
        ([None], InputError, "holds None"),
        ([[1], [3, 1]], InputError, r"spans\[0\] and spans\[1\] overlap, both hold position 1"),
        ([[2, -1], [10]], InputError, r"overlap, both hold position 10"),
        ("all", InputError, r"unknown spans 'all': expected one of words, noun_chunks"),
        (3, InputTypeError, "spans is int"),
        ([["a"]], InputError, r"spans\[0\] 'a' is none of the tokens"),
        ([[1.5]], InputTypeError, r"spans\[0\] holds 1.5"),
    ],
)
def test_bad_spans(spans: Any, error: type[Exception], match: str) -> None:
    with type_checks_off(), pytest.raises(error, match=match):
        tl_vzero.value_zeroing(shared_model("bert"), IDS, spans=spans)


def test_spans_and_sources_together() -> None:
    with pytest.raises(InputError, match="sources and spans"):
        tl_vzero.value_zeroing(model_in_float64("bert"), IDS, spans=[[1]], sources=[1])
