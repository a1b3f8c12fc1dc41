"""Which heads change in training: heads changed by hand are found, and chance is not; bad input in words."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import binom, ttest_1samp
from support.models import hf_bert, loaded, tokenizer
from transformers import BertForMaskedLM

import tl_vzero
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.data.examples import Example
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.evaluate.sentences import limited
from tl_vzero.evaluate.training import discoveries, p_values, training_changes

MINI = Path(tl_vzero.__file__).parent / "assets" / "agreement-mini"
PARTS = ("query", "key", "value")


def rows_of(head: int, width: int) -> slice:
    return slice(head * width, (head + 1) * width)


@torch.no_grad()
def exchange(hf_model: Any, layer: int, one: int, other: int) -> None:
    """Exchange all that two heads of a block are."""
    attention = hf_model.bert.encoder.layer[layer].attention
    width = attention.self.attention_head_size
    first, second = rows_of(one, width), rows_of(other, width)
    matrices = [weight for part in PARTS for weight in getattr(attention.self, part).parameters()]
    for weight in [*matrices, attention.output.dense.weight.T]:
        kept = weight[first].clone()
        weight[first] = weight[second]
        weight[second] = kept


@torch.no_grad()
def silence(hf_model: Any, layer: int, head: int) -> None:
    """Let a head write nothing."""
    attention = hf_model.bert.encoder.layer[layer].attention
    attention.output.dense.weight[:, rows_of(head, attention.self.attention_head_size)] = 0


@pytest.fixture(scope="module")
def mini() -> Any:
    return BertForMaskedLM.from_pretrained(MINI)


def load_mini(hf_model: Any) -> Any:
    return tl_vzero.load_model(hf_model, facts_tokenizer())


def facts_tokenizer() -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(MINI)


def planted(hf_model: Any, seed: int) -> tuple[Any, set[tuple[int, int]]]:
    """A copy with two heads of one block exchanged, or silenced, and which these are."""
    rng = np.random.default_rng(seed)
    layer = int(rng.integers(hf_model.config.num_hidden_layers))
    one, other = (int(head) for head in rng.choice(hf_model.config.num_attention_heads, 2, replace=False))
    changed = copy.deepcopy(hf_model)
    if seed % 2:
        exchange(changed, layer, one, other)
    else:
        silence(changed, layer, one)
        silence(changed, layer, other)
    return changed, {(layer, one), (layer, other)}


def test_heads_changed_by_hand_are_found_and_no_others(mini: Any) -> None:
    sentences = limited(agreement_examples(), 48, 0)
    before = load_mini(mini)
    right = wrong = missed = 0
    for seed in range(20):
        changed, expected = planted(mini, seed)
        table = training_changes({"before": before, "after": load_mini(changed)}, sentences).heads()
        found = set(zip(table["layer"], table["head"], strict=True))
        print(seed, expected, found)
        right += len(found & expected)
        wrong += len(found - expected)
        missed += len(expected - found)
    assert right / (right + wrong) >= 0.95 and right / (right + missed) >= 0.95
