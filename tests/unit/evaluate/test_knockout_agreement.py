"""Rolled-out rows against knockout: scipy's correlations of plain runs, and what has no correlation."""

from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from support.evaluations import EXAMPLES
from support.models import build
from support.state import left_as_found

import tl_vzero
from tl_vzero.data.examples import Example
from tl_vzero.errors import InputError
from tl_vzero.evaluate.knockout_agreement import KnockoutAgreement, knockout_agreement
from tl_vzero.evaluate.sentences import TokenizedExample, tokenize_examples
from tl_vzero.models.run import eager_attention
from tl_vzero.statistics import Interval

QUICK = Interval(resamples=20)


def cell(result: KnockoutAgreement, method: str, layer: int, paradigm: str = "all") -> Any:
    wanted = (method, layer, paradigm)
    (only,) = [row for row in result.correlations if (row.method, row.from_layer, row.paradigm) == wanted]
    return only


@torch.no_grad()
def plain_p(model: Any, sentence: TokenizedExample, source: int, first: int, over: str) -> float:
    """p(right form) where GPT-2's patterns are written over in the run, which acts there."""

    def cut(pattern: torch.Tensor, hook: Any) -> torch.Tensor:
        pattern = pattern.clone()
        pattern[:, :, sentence.dest, source] = 0
        return pattern

    hooks = [(f"blocks.{layer}.attn.hook_pattern", cut) for layer in range(first, 3)]
    with eager_attention(model):
        logits = model.run_with_hooks(sentence.encoding.ids.reshape(1, -1), fwd_hooks=hooks)[0, sentence.dest]
    forms = [sentence.encoding.good_id, sentence.encoding.bad_id]
    return float(
        (logits.double()[forms] if over == "forms" else logits.double()).softmax(-1)[0 if over == "forms" else forms[0]]
    )


@pytest.mark.parametrize(("change", "over", "special"), [("signed", "vocabulary", False), ("absolute", "forms", True)])
def test_correlations_are_scipys(change: Any, over: Any, special: bool) -> None:
    _, model = build("load_model", "gpt2")
    tokenized = tokenize_examples(model, EXAMPLES, protocol="causal")
    with left_as_found(model):
        options: dict[str, Any] = {"change": change, "over": over, "special_tokens": special, "protocol": "causal"}
        result = knockout_agreement(model, EXAMPLES, ["value_zeroing", "attention"], interval=QUICK, **options)
    for method in ("value_zeroing", "attention"):
        for layer in range(3):
            rhos = []
            for sentence in tokenized.examples:
                row = tl_vzero.score(model, sentence.encoding.ids, method).rollout().row(sentence.dest)[-1]
                positions = [i for i in range(len(sentence)) if i != sentence.target_position]
                positions = [i for i in positions if special or not sentence.encoding.special[i]]
                if len(positions) < 3:
                    continue
                clean = plain_p(model, sentence, 0, 3, over)
                drops = np.array([clean - plain_p(model, sentence, i, layer, over) for i in positions])
                rhos.append(stats.spearmanr(row[positions], np.abs(drops) if change == "absolute" else drops).statistic)
            entry = cell(result, method, layer)
            assert (entry.rho.mean, entry.rho.n) == (pytest.approx(np.mean(rhos)), len(rhos))
            assert entry.undefined == len(tokenized.examples) - len(rhos)
            assert (entry.row_layer, entry.rolled_out) == (2, True)


def test_what_has_no_correlation_is_counted() -> None:
    """Two tokens are too few; two forms must be there to be compared."""
    _, model = build("load_model", "bert")
    short = Example("s", "short", ("dog", "is", "near"), 1, "is", "are", (0,), "given")
    result = knockout_agreement(model, [short, EXAMPLES[0]], ["attention", "gradient_x_input"], interval=QUICK)
    assert (cell(result, "attention", 0, "short").rho, cell(result, "attention", 0, "short").undefined) == (None, 1)
    assert (cell(result, "attention", 2).rho.n, cell(result, "attention", 2).undefined) == (1, 1)
    gradient = cell(result, "gradient_x_input", 1)
    assert (gradient.row_layer, gradient.rolled_out) == (0, False)
    table = result.to_frame()
    assert table.columns.tolist()[:3] == ["method", "paradigm", "from_layer"] and len(table) == 2 * 3 * 3
    alone = Example("s", "short", ("dog", "is", "near"), 1, "is", None, (0,), "given")
    with pytest.raises(InputError, match='over="forms" compares two forms'):
        knockout_agreement(model, [alone], over="forms")
