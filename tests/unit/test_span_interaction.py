"""What zeroing a span adds to zeroing its positions one by one."""

from typing import Any

import pytest
import torch
from support import references
from support.laws import wide_model
from support.state import left_as_found, type_checks_off

import tl_vzero
from tl_vzero.errors import InputError, InputTypeError

IDS = [2, 5, 9, 10, 12, 3]
MASKED = "the pictures of some hat [MASK] scaring marcus."


def zeroed(hf_model: Any, positions: list[int]) -> torch.Tensor:
    """Distances of each block's outputs when some values are zeroed by a plain hook: `[layer, dest]`."""
    rows = []
    for call in references.clean_calls(hf_model, torch.tensor([IDS])):
        clean = references.first_tensor(call.block(*call.args, **call.kwargs))[0]
        with references.values_zeroed(call.block, hf_model.config, positions):
            changed = references.first_tensor(call.block(*call.args, **call.kwargs))[0]
        rows.append(references.cosine_distance(clean, changed))
    return torch.stack(rows)


@pytest.mark.parametrize("engine", ["hooks", "closed_form"])
@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
def test_joint_sum_and_difference(architecture: str, engine: str) -> None:
    hf_model, model = wide_model("load_model", architecture)
    table = tl_vzero.span_interaction(model, torch.tensor(IDS), [[1, 2], [0, 4, 5]], engine=engine)
    assert len(table) == 3 * 6 * 2
    singles = [zeroed(hf_model, [position]) for position in range(6)]
    for row in table.itertuples():
        at = (row.layer, row.dest)
        joint = zeroed(hf_model, list(row.positions))[at].item()
        summed = sum(singles[position][at].item() for position in row.positions)
        assert row.joint == pytest.approx(joint, abs=1e-11)
        assert row.sum == pytest.approx(summed, abs=1e-11)
        assert row.interaction == pytest.approx(joint - summed, abs=1e-11)
    assert table["interaction"].abs().max() > 1e-4


def test_a_span_of_one_position_has_none() -> None:
    for architecture in ("bert", "gpt2"):
        _, model = wide_model("load_model", architecture)
        table = tl_vzero.span_interaction(model, torch.tensor(IDS), [[3], [0], [1, 2], 4])
        single = table[table["positions"].map(len) == 1]
        assert len(single) == 3 * 6 * 3
        assert single["interaction"].abs().max() < 1e-14


def test_spans_that_a_destination_cannot_reach_have_none() -> None:
    _, model = wide_model("load_model", "gpt2")
    table = tl_vzero.span_interaction(model, torch.tensor(IDS), [[3, 4]])
    assert (table.loc[table["dest"] < 3, ["joint", "sum", "interaction"]] == 0).all(axis=None)
    # Where only one of the two can be felt, there is nothing to interact with.
    assert table.loc[table["dest"] == 3, "interaction"].abs().max() < 1e-14


def test_labels_sentences_and_phrases() -> None:
    model = tl_vzero.load_model("agreement-mini")
    with left_as_found(model):
        table = tl_vzero.span_interaction(
            model, [MASKED, "the authors [MASK] today."], "noun_chunks", layers=[1], destinations=[6]
        )
    assert list(table) == "sentence layer dest dest_token span positions joint sum interaction".split()
    first = table[table["sentence"] == 0]
    assert first["span"].tolist()[:4] == ["[CLS]", "the pictures", "of", "some hat"]
    assert first["positions"].tolist()[:4] == [(0,), (1, 2), (3,), (4, 5)]
    assert first["dest_token"].unique().tolist() == ["[MASK]"]
    assert table.loc[table["sentence"] == 1, "span"].tolist()[1] == "the authors"


def test_per_head() -> None:
    _, model = wide_model("load_model", "bert")
    table = tl_vzero.span_interaction(model, torch.tensor(IDS), [[1, 2]], per_head=True)
    head_1 = tl_vzero.span_interaction(model, torch.tensor(IDS), [[1, 2]], heads=[1])
    assert len(table) == 2 * len(head_1)
    of_head_1 = table.loc[table["head"] == 1, "interaction"].tolist()
    assert of_head_1 == pytest.approx(head_1["interaction"].tolist(), abs=1e-12)


def test_bad_input() -> None:
    _, model = wide_model("load_model", "bert")
    with type_checks_off(), pytest.raises(InputTypeError, match="spans is None"):
        tl_vzero.span_interaction(model, torch.tensor(IDS), None)
    with pytest.raises(InputError, match="sources="):
        tl_vzero.span_interaction(model, torch.tensor(IDS), [[1, 2]], sources=[1])
    with pytest.raises(InputError, match=r"spans\[0\] and spans\[1\] overlap, both hold position 2"):
        tl_vzero.span_interaction(model, torch.tensor(IDS), [[1, 2], [2, 3]])
