"""Rows that lose all of their attention, or nearly: no difference of float32 vectors shows what is left then."""

import copy
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import pytest
import torch
from support.architecture_row import WITH_CAPS, tiny_model
from support.laws import assert_close
from support.models import CONTEXT, hf_bert, hf_neox, loaded
from support.plain_hooks import module_at, plain_value_zeroing
from support.references import row_normalized
from torch import Tensor

import tl_vzero

IDS = [17, 5, 41, 9, 31, 28, 52]
# Wide enough for the closed form to compute in float32.
WIDTH, HEADS = 288, 4
UNKNOWN = {"hidden_act": "mish", "hidden_activation": "mish"}  # an activation without a formula: by modules


def decoder(config: str, **changes: Any) -> Any:
    shape = {
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": HEADS,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "max_position_embeddings": CONTEXT,
    }
    return tiny_model(f"{config}Config", f"{config.removesuffix('Text')}ForCausalLM", **{**shape, **changes})


LLAMA = ("model.layers", "self_attn.v_proj", "self_attn.o_proj", "model.embed_tokens")
BERT = ("bert.encoder.layer", "attention.self.value", "attention.output.dense", "bert.embeddings.LayerNorm")
NEOX = ("gpt_neox.layers", "attention.query_key_value", "attention.dense", "gpt_neox.embed_in")
# How a model is made, and the paths to its blocks, and in a block to what makes values and what writes them.
MODELS: dict[str, tuple[Callable[[], Any], tuple[str, str, str, str]]] = {
    "Gemma 2": (partial(decoder, "Gemma2", **WITH_CAPS), LLAMA),
    "Gemma 2, by modules": (partial(decoder, "Gemma2", **WITH_CAPS, **UNKNOWN), LLAMA),
    "Gemma 3": (partial(decoder, "Gemma3Text"), LLAMA),
    "GLM 4": (partial(decoder, "Glm4"), LLAMA),
    "GLM 4, by modules": (partial(decoder, "Glm4", **UNKNOWN), LLAMA),
    "Llama": (partial(decoder, "Llama"), LLAMA),
    "BERT": (partial(hf_bert, width=WIDTH, heads=HEADS, layers=2), BERT),
    "NeoX": (partial(hf_neox, width=WIDTH, heads=HEADS, layers=2), NEOX),
}


def as_it_is(hf_model: Any, paths: tuple[str, str, str, str]) -> None:
    """Nothing is changed."""


def tiny_residual(hf_model: Any, paths: tuple[str, str, str, str]) -> None:
    """Nearly all of the stream comes from attention."""
    if paths is BERT:  # whose values would be tiny too
        for block in module_at(hf_model, paths[0]):  # type: ignore[attr-defined]
            module_at(block, paths[2]).weight.data *= 1e4
        return
    for weight in module_at(hf_model, paths[3]).parameters():
        weight.data *= 1e-4


def without_output_bias(hf_model: Any, paths: tuple[str, str, str, str]) -> None:
    """Nothing at all is left of an attention output that loses every source."""
    tiny_residual(hf_model, paths)
    for block in module_at(hf_model, paths[0]):  # type: ignore[attr-defined]
        bias = module_at(block, paths[2]).bias
        if bias is not None:
            bias.data.zero_()


EDITS = [as_it_is, tiny_residual, without_output_bias]


@cache
def model_of(name: str, edit: Callable[..., None]) -> tuple[Any, Any]:
    make, paths = MODELS[name]
    hf_model = copy.deepcopy(make())
    edit(hf_model, paths)
    return hf_model, loaded(hf_model)


def expected_of(name: str, edit: Callable[..., None], ids: list[int], **options: Any) -> Tensor:
    hf_model, paths = model_of(name, edit)[0], MODELS[name][1]
    columns = None
    if name == "NeoX":
        columns = lambda config: torch.arange(3 * WIDTH).view(HEADS, 3, -1)[:, 2]  # noqa: E731
    return plain_value_zeroing(hf_model, ids, blocks=paths[0], value=paths[1], columns=columns, **options)


def assert_right(measured: Tensor, expected: Tensor, allowed: float = 2e-4) -> None:
    measured = measured.double()
    relative = (measured - expected).abs() / expected
    assert relative[expected >= 1e-7].max() <= allowed
    assert_close(row_normalized(measured), row_normalized(expected), 5e-6)


# The third shows a row that loses its only source; the last every one that it has.
CASES: list[tuple[list[int], dict[str, Any]]] = [
    (IDS, {}),
    (IDS, {"heads": [1]}),
    (IDS[:1], {}),
    (IDS, {"spans": [[0, 1, 2], [3, 4, 5], [6]]}),
    (IDS, {"spans": [list(range(len(IDS)))]}),
]


@pytest.mark.parametrize("engine", ["closed_form", "hooks"])
@pytest.mark.parametrize(("ids", "options"), CASES, ids=["all", "head", "one token", "spans", "one span"])
@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("name", MODELS)
def test_what_is_left_decides(
    name: str, edit: Callable[..., None], ids: list[int], options: dict[str, Any], engine: str
) -> None:
    model = model_of(name, edit)[1]
    scores = tl_vzero.value_zeroing(model, torch.tensor(ids), engine=engine, **options)
    # Hooks see outputs that are rounded already.
    assert_right(scores.values, expected_of(name, edit, ids, **options), 2e-4 if engine == "closed_form" else 1e-3)


@pytest.mark.parametrize("name", ["Gemma 2", "GLM 4, by modules"])
def test_parts_and_batches_and_small_budgets_change_nothing(name: str) -> None:
    """The pairs that vanish are found again wherever they stand."""
    model = model_of(name, as_it_is)[1]
    expected = expected_of(name, as_it_is, IDS)
    part = tl_vzero.value_zeroing(
        model, torch.tensor(IDS), destinations=[5, 0, 2], sources=[2, 0], engine="closed_form"
    )
    assert_right(part.values, expected[:, [5, 0, 2]][:, :, [2, 0]].clamp(min=0))
    small = tl_vzero.value_zeroing(model, torch.tensor(IDS), memory_mb=0.05, engine="closed_form")
    assert_right(small.values, expected)
    rows = [IDS, IDS[:3], IDS[2:], IDS[:1]]
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(row)) for row in rows], batch_first=True)
    together = tl_vzero.value_zeroing(model, ids, attention_mask=mask, engine="closed_form")
    for row, scores in zip(rows, together, strict=True):
        assert_right(scores.values, expected_of(name, as_it_is, row))


@pytest.mark.parametrize("distance", ["euclidean", lambda clean, changed: (clean - changed).norm(dim=-1)])
@pytest.mark.parametrize("name", ["Gemma 2", "Gemma 2, by modules"])
def test_every_distance_sees_what_is_left(name: str, distance: Any) -> None:
    model = model_of(name, as_it_is)[1]
    closed, hooked = (
        tl_vzero.value_zeroing(model, torch.tensor(IDS), distance=distance, engine=engine, final_norm=True).values
        for engine in ("closed_form", "hooks")
    )
    assert ((closed - hooked).abs() <= 1e-4 * hooked).all()
