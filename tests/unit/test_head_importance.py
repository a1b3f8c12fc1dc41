"""Head importance, against the definition computed on the plain Hugging Face model."""

from typing import Any

import pytest
import torch
from support import references
from support.laws import wide_model
from support.models import build, hf_llama, loaded

import tl_vzero
from tl_vzero.errors import InputError

SENTENCES = [[2, 5, 9, 10, 12, 3], [2, 7, 8, 3]]


def mixing(hf_model: Any, heads: list[int] | None = None, *, elsewhere: bool = False) -> torch.Tensor:
    """Of each layer: over sources summed, over destinations and sentences averaged."""
    means = []
    for ids in SENTENCES:
        maps = references.value_zeroing(hf_model, ids, heads=heads)
        if elsewhere:
            maps = maps * (1 - torch.eye(len(ids), dtype=maps.dtype))
        means.append(maps.sum(dim=-1).mean(dim=-1))
    return sum(means) / len(means)


@pytest.mark.parametrize(("architecture", "tolerance"), [("bert", 1e-9), ("gpt2", 1e-9), ("llama", 1e-5)])
def test_the_table_is_the_definition(architecture: str, tolerance: float) -> None:
    hf_model, model = wide_model("load_model", architecture)
    ids = torch.nn.utils.rnn.pad_sequence([torch.tensor(ids) for ids in SENTENCES], batch_first=True)
    mask = torch.tensor([[1] * 6, [1] * 4 + [0] * 2])
    table = tl_vzero.head_importance(model, ids, attention_mask=mask).set_index(["layer", "head"])
    alone = torch.stack([mixing(hf_model, [head]) for head in (0, 1)])
    elsewhere = torch.stack([mixing(hf_model, [head], elsewhere=True) for head in (0, 1)])
    whole = mixing(hf_model)
    assert len(table) == 3 * 2 and (table["n"] == 2).all()
    for layer, head in table.index:
        row = table.loc[(layer, head)]
        assert row["mixing"] == pytest.approx(alone[head, layer].item(), abs=tolerance)
        assert row["share"] == pytest.approx((alone[head, layer] / alone[:, layer].sum()).item(), abs=tolerance)
        # Without one of two heads, the other is left.
        assert row["lost"] == pytest.approx(1 - (alone[1 - head, layer] / whole[layer]).item(), abs=tolerance)
        assert row["context"] == pytest.approx((elsewhere[head, layer] / alone[head, layer]).item(), abs=tolerance)


def test_shares_of_a_layer_sum_to_one() -> None:
    table = tl_vzero.head_importance(tl_vzero.load_model("agreement-mini"), "the authors [MASK] today.")
    assert table.groupby("layer")["share"].sum().tolist() == pytest.approx([1.0] * 4)
    assert table["context"].between(0, 1).all()


@pytest.mark.parametrize(("kv_heads", "shared"), [(2, 2), (1, 4), (4, 1)])
def test_value_heads_under_grouped_queries(kv_heads: int, shared: int) -> None:
    model = loaded(hf_llama(kv_heads=kv_heads))
    table = tl_vzero.head_importance(model, torch.tensor(SENTENCES[0]), layers=[-1])
    assert table["head"].tolist() == list(range(kv_heads)) and table["layer"].unique().tolist() == [2]
    assert table["query_heads"].unique().tolist() == [shared]
    if kv_heads == 1:
        assert table["lost"].tolist() == [1.0] and table["share"].tolist() == [1.0]


def test_a_head_that_reaches_nothing() -> None:
    hf_model, _ = build("load_model", "bert")
    attention = hf_model.bert.encoder.layer[1].attention
    width = hf_model.config.hidden_size // 2
    with torch.no_grad():
        attention.output.dense.weight[:, :width] = 0
    table = tl_vzero.head_importance(loaded(hf_model), torch.tensor(SENTENCES[0]), layers=1)
    assert table["mixing"][0] < 1e-12 and table["lost"][0] == pytest.approx(0, abs=1e-6)
    assert table["share"][1] == pytest.approx(1) and table["lost"][1] == pytest.approx(1)


def test_a_layer_that_mixes_nothing_has_parts_of_zero() -> None:
    _, model = wide_model("load_model", "bert")
    table = tl_vzero.head_importance(
        model, torch.tensor(SENTENCES[0]), distance=lambda clean, changed: 0 * (clean - changed).sum(dim=-1)
    )
    assert (table[["mixing", "share", "lost", "context"]] == 0).all(axis=None)


def test_spans_and_chosen_destinations_keep_their_own_positions_apart() -> None:
    _, model = wide_model("load_model", "bert")
    ids = torch.tensor(SENTENCES[0])
    of_itself = tl_vzero.head_importance(model, ids, spans=[[1, 2]], destinations=[2])
    other = tl_vzero.head_importance(model, ids, spans=[[1, 2]], destinations=[4])
    assert (of_itself["context"] == 0).all() and (other["context"] == 1).all()


def test_options_may_be_iterators() -> None:
    _, model = wide_model("load_model", "bert")
    assert tl_vzero.head_importance(model, torch.tensor([2, 5, 3]), layers=iter([1]))["layer"].tolist() == [1, 1]


@pytest.mark.parametrize("options", [{"heads": [0]}, {"per_head": False}])
def test_options_that_the_table_sets_itself(options: dict[str, Any]) -> None:
    _, model = wide_model("load_model", "bert")
    with pytest.raises(InputError, match=rf"{next(iter(options))}=.* a row for each head"):
        tl_vzero.head_importance(model, torch.tensor([2, 5, 3]), **options)
