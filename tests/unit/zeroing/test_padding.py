"""Sentences of near lengths share one padded run: padding is neither a source nor a destination."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.closed import ARCHITECTURES, IDS, assert_same, maps, model_in_float64, shared_model, tolerance_of
from support.models import CONTEXT, MOST_ROUTES, build, hf_bert, hf_gpt2, hf_llama, loaded
from torch import Tensor, nn

import tl_vzero
from tl_vzero import clean
from tl_vzero.models import run
from tl_vzero.zeroing import engine

# Of near lengths, so that they share one padded run, and not in order.
NEAR = [6, 3, 11, 1, 5, 8, 6]
PADDED_OPTIONS: list[dict[str, Any]] = [
    {},
    {"per_head": True},
    {"heads": [1]},
    {"heads": [1, 0], "per_head": True, "layers": [-1, 0]},
    {"sources": [0], "destinations": [-1]},
    {"sources": [0, -1], "destinations": [-1, 1], "distance": "euclidean"},
]


def sentence(shift: int, length: int) -> Tensor:
    return IDS.roll(shift)[:length]


def batch_maps(model: Any, engine: str, lengths: list[int], **options: Any) -> list[Tensor]:
    rows = [sentence(shift, length) for shift, length in enumerate(lengths)]
    ids = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    scores = tl_vzero.value_zeroing(model, ids, attention_mask=mask, engine=engine, **options)
    if engine != "auto":
        assert {of_sentence.metadata["engine"] for of_sentence in scores} == {engine}
    return [of_sentence.values.double() for of_sentence in scores]


def masks_of_runs(monkeypatch: pytest.MonkeyPatch) -> list[Tensor | None]:
    """The padding mask of every clean run from now on."""
    masks: list[Tensor | None] = []
    run_to = clean.run_to

    def spy(*arguments: Any, mask: Tensor | None = None, **others: Any) -> None:
        masks.append(mask)
        run_to(*arguments, mask=mask, **others)

    monkeypatch.setattr(clean, "run_to", spy)
    return masks


@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize("options", PADDED_OPTIONS, ids=lambda options: "-".join(options) or "all")
def test_sentences_padded_together_equal_the_hook_engine_without_padding(
    architecture: str, options: dict[str, Any]
) -> None:
    model = shared_model(architecture)
    lengths = [n for n in NEAR if n > 1 or len(options.get("sources", [])) < 2]
    padded, hooked = (batch_maps(model, engine, lengths, **options) for engine in ("closed_form", "hooks"))
    for one, other in zip(padded, hooked, strict=True):
        assert_same(one, other, tolerance_of(architecture))


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_sentences_padded_together_equal_the_sentences_alone(architecture: str) -> None:
    model = shared_model(architecture)
    for index, together in enumerate(batch_maps(model, "closed_form", NEAR)):
        alone = maps(model, "closed_form", sentence(index, NEAR[index]))
        assert_same(together, alone, tolerance_of(architecture))


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])
def test_sentences_padded_together_after_the_final_norm(architecture: str) -> None:
    model = shared_model(architecture)
    padded, hooked = (batch_maps(model, engine, NEAR, final_norm=True) for engine in ("closed_form", "hooks"))
    for one, other in zip(padded, hooked, strict=True):
        assert_same(one, other, tolerance_of(architecture))


@pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)
def test_sentences_padded_together_in_every_model_class(route: str, architecture: str) -> None:
    _, model = build(route, architecture)
    for options in ({}, {"per_head": True, "final_norm": architecture == "gpt2"}):
        padded, hooked = (batch_maps(model, engine, NEAR, **options) for engine in ("closed_form", "hooks"))
        assert all(((a - b).abs() <= 1e-4 * b + 1e-7).all() for a, b in zip(padded, hooked, strict=True))


@pytest.mark.parametrize("builder", [hf_bert, hf_gpt2, hf_llama])
def test_sentences_padded_together_in_a_wide_float32_model(builder: Callable[..., Any]) -> None:
    model = loaded(builder(1, width=320, layers=1))
    padded, hooked = (batch_maps(model, engine, NEAR) for engine in ("closed_form", "hooks"))
    assert all(((a - b).abs() <= 1e-4 * b + 1e-7).all() for a, b in zip(padded, hooked, strict=True))


@pytest.mark.parametrize("architecture", [name for name in ARCHITECTURES if name != "mistral"])
def test_near_lengths_share_a_run(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model(architecture)
    maps(model, "closed_form")
    masks = masks_of_runs(monkeypatch)
    batch_maps(model, "closed_form", NEAR)
    assert len(masks) == 1 and masks[0] is not None
    assert sorted(masks[0].sum(dim=1).tolist()) == sorted(NEAR)


def test_a_run_is_padded_by_no_more_than_pays(monkeypatch: pytest.MonkeyPatch) -> None:
    model = shared_model("bert")
    maps(model, "closed_form")
    masks = masks_of_runs(monkeypatch)
    batch_maps(model, "closed_form", [3] * 30 + [5] * 30 + [11] * 2)
    padding = [0 if mask is None else int((~mask).sum()) for mask in masks]
    assert max(padding) <= engine.PADDING_PER_RUN
    assert len(masks) == 2 and sum(padding) > 0


def run_without_mask(*arguments: Any, mask: Tensor | None, **options: Any) -> None:
    run.run_to(*arguments, **options)


@pytest.mark.parametrize("seen_before", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2", "llama"])
def test_a_model_that_ignores_its_mask_still_gets_right_numbers(
    architecture: str, seen_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in_float64(architecture)
    if seen_before:
        maps(model, "closed_form")
    monkeypatch.setattr(clean, "run_to", run_without_mask)
    for one, other in zip(batch_maps(model, "auto", NEAR), batch_maps(model, "hooks", NEAR), strict=True):
        assert_same(one, other, tolerance_of(architecture))


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_sentence_without_padding_stays_in_closed_form_where_masks_are_ignored(
    architecture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in_float64(architecture)
    maps(model, "closed_form")
    monkeypatch.setattr(clean, "run_to", run_without_mask)
    assert_same(maps(model, "closed_form"), maps(model, "hooks"), tolerance_of(architecture))


def count_positions_from_the_end(model: Any) -> None:
    """Every position is counted from the right end of the run, padding included."""
    modules = nn.Module.modules(model)
    (table,) = {m for m in modules if isinstance(m, nn.Embedding) and m.num_embeddings == CONTEXT}
    table.register_forward_pre_hook(lambda _, args: (args[0].flip(-1), *args[1:]))


@pytest.mark.parametrize("seen_before", [False, True])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_a_model_whose_positions_depend_on_padding_runs_unpadded(
    architecture: str, seen_before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = model_in_float64(architecture)
    if seen_before:
        batch_maps(model, "closed_form", NEAR)
    before = batch_maps(model, "hooks", NEAR)
    count_positions_from_the_end(model)
    hooked = batch_maps(model, "hooks", NEAR)
    assert not torch.allclose(before[2], hooked[2])
    for one, other in zip(batch_maps(model, "auto", NEAR), hooked, strict=True):
        assert_same(one, other, tolerance_of(architecture))
    masks = masks_of_runs(monkeypatch)
    batch_maps(model, "closed_form", NEAR)
    assert masks == [None] * len(set(NEAR))


@pytest.mark.parametrize("architecture", ["bert", "gemma2"])
@settings(derandomize=True, deadline=None, max_examples=5, database=None)
@given(lengths=st.lists(st.integers(1, len(IDS)), min_size=2, max_size=7))
def test_little_memory_changes_nothing_for_many_lengths(architecture: str, lengths: list[int]) -> None:
    model = shared_model(architecture)
    expected = batch_maps(model, "closed_form", lengths)
    for one, other in zip(batch_maps(model, "closed_form", lengths, memory_mb=0.01), expected, strict=True):
        assert_same(one, other, 1e-11)
