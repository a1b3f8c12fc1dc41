"""Token removal: each shortened run against the whole plain model, with attention to the same tokens masked."""

import copy
import json
from collections.abc import Iterable
from inspect import signature
from operator import attrgetter
from typing import Any

import numpy as np
import pytest
import torch
from support.architecture_row import Architecture
from support.architectures import ARCHITECTURES
from support.evaluations import EXAMPLES
from support.models import build, hf_bert_headless, loaded
from support.state import left_as_found, type_checks_off

import tl_vzero
from tl_vzero.data.examples import Example
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError, ModelError
from tl_vzero.evaluate import rows as rows_module
from tl_vzero.evaluate.removal import TokenRemoval, removal_times, token_removal
from tl_vzero.evaluate.sentences import TokenizedExample, tokenize_examples
from tl_vzero.statistics import Interval

QUICK: dict[str, Any] = {"repeats": 0, "interval": Interval(resamples=20)}
NAMES = ("BERT", "RoBERTa", "DistilBERT", "MPNet", "ModernBERT", "GPT-2", "GPT-NeoX, Pythia", "Llama", "Gemma 3")


def masked_logits(row: Architecture, ids: list[int], removed: Iterable[int], layer: int, read: int) -> torch.Tensor:
    """The plain Hugging Face model's logits, all positions computed; none attends to `removed` from a block on."""
    model = copy.deepcopy(row.tiny()).double()
    model.config._attn_implementation = "eager"

    def mask(block: Any, positional: Any, named: Any) -> Any:
        arguments = signature(block.forward).bind(*positional, **named)
        before = arguments.arguments["attention_mask"]
        # Not infinity: rows of removed positions may be without any source, and then would be NaN.
        after = torch.zeros(1, 1, len(ids), len(ids)).double() if before is None else before.clamp(min=-1e30)
        after[..., list(removed)] = -1e30
        arguments.arguments["attention_mask"] = after
        return arguments.args, arguments.kwargs

    for block in list(attrgetter(row.blocks)(model))[layer:]:
        block.register_forward_pre_hook(mask, with_kwargs=True)
    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0, read]
    return logits


def lowest(model: Any, sentence: TokenizedExample, method: str, layer: int, share: float) -> list[int]:
    row = tl_vzero.score(model, sentence.encoding.ids, method).rollout().row(sentence.dest)[layer]
    may_go = [i for i, special in enumerate(sentence.encoding.special) if not special and i != sentence.dest]
    ranked = sorted(may_go, key=lambda position: row[position].item())
    return ranked[: int(np.ceil(share * len(ranked)))]


def of_all(result: TokenRemoval, method: str) -> list[Any]:
    return [entry for entry in result.predictions if (entry.method, entry.paradigm) == (method, "all")]


@pytest.mark.parametrize(("name", "layer"), [("BERT", 0), *((name, 1) for name in NAMES)])
def test_predictions_are_those_of_the_whole_model_with_attention_masked(name: str, layer: int) -> None:
    row, shares = ARCHITECTURES[name], [0.25, 0.5, 1.0]
    model = loaded(row.tiny())
    causal = name in ("GPT-2", "GPT-NeoX, Pythia", "Llama", "Gemma 3")
    protocol: Any = "causal" if causal else "masked"
    with left_as_found(model):
        result = token_removal(
            model, EXAMPLES[:3], ["attention"], layer=layer, shares=shares, protocol=protocol, **QUICK
        )
    expected = []
    for sentence in tokenize_examples(model, EXAMPLES[:3], protocol=protocol).examples:
        forms = [sentence.encoding.good_id, sentence.encoding.bad_id]
        for share in (0.0, *shares):
            removed = lowest(model, sentence, "attention", layer, share)
            logits = masked_logits(row, sentence.encoding.ids.tolist(), removed, layer, sentence.dest)
            over_forms = logits[forms].softmax(-1)[0].item()
            expected.append((float(over_forms > 0.5), over_forms, logits.softmax(-1)[forms[0]].item()))
    means = np.array(expected).reshape(-1, len(shares) + 1, 3).mean(axis=0)
    measured = [
        [entry.accuracy.mean, entry.p_forms.mean, entry.p_vocabulary.mean] for entry in of_all(result, "attention")
    ]
    np.testing.assert_allclose(measured, means, atol=1e-5)
    assert np.ptp(means[:, 1]) > 1e-4, "removal changes nothing, and shows nothing"


def test_a_hooked_encoder_too() -> None:
    """Its own hook on scores, before the softmax, says what masked attention gives."""
    _, model = build("HookedEncoder", "bert")
    (sentence,) = tokenize_examples(model, EXAMPLES[:1]).examples
    result = token_removal(model, EXAMPLES[:1], ["attention"], layer=1, shares=[0.5], **QUICK)
    removed = lowest(model, sentence, "attention", 1, 0.5)

    def masked(scores: torch.Tensor, hook: Any) -> torch.Tensor:
        scores[..., removed] = float("-inf")
        return scores

    hooks = [(f"blocks.{layer}.attn.hook_attn_scores", masked) for layer in (1, 2)]
    logits = model.run_with_hooks(sentence.encoding.ids.unsqueeze(0), return_type="logits", fwd_hooks=hooks)
    expected = logits[0, sentence.dest].softmax(-1)[sentence.encoding.good_id].item()
    assert of_all(result, "attention")[1].p_vocabulary.mean == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", ["MPT", "BLOOM", "gpt-oss"])
def test_blocks_that_find_positions_or_attend_by_themselves_are_refused(name: str) -> None:
    model = loaded(ARCHITECTURES[name].tiny())
    with left_as_found(model), pytest.raises(ModelError, match="cannot leave tokens out from block 1 on"):
        token_removal(model, EXAMPLES[:1], ["attention"], protocol="causal", layer=1, **QUICK)


def test_what_is_left_out_is_not_computed() -> None:
    _, model = build("load_model", "bert")
    rows: list[tuple[int, ...]] = []
    for block in model.original_model.bert.encoder.layer:
        block.intermediate.register_forward_pre_hook(lambda module, inputs: rows.append(tuple(inputs[0].shape[:2])))
    times = removal_times(model, torch.tensor([[2, 9, 8, 7, 6, 5, 3]] * 2), 4, layer=1, counts=[0, 5], repeats=1)
    of_turn = [*[(2, 7)] * 6, (2, 7), (2, 2), (2, 2)]
    assert rows[-18:] == of_turn * 2
    assert [(time.tokens, time.removed, time.sentences, time.repeats) for time in times] == [(7, 0, 2, 1), (7, 5, 2, 1)]
    assert times[1].low == times[1].ratio == times[1].high > 0


def test_own_rows_beside_random_removal() -> None:
    _, model = build("load_model", "bert")
    result = token_removal(model, EXAMPLES, ["attention"], layer=-1, shares=[0.5], rolled_out=False, **QUICK)
    whole, half = of_all(result, "attention")
    assert (half.layer, half.rolled_out, half.share, half.undefined) == (2, False, 0.5, 0)
    assert (whole.removed, half.removed) == (0, pytest.approx(np.mean([5 / 12, 3 / 8, 5 / 12, 3 / 8])))
    by_chance = of_all(result, "random")[1]
    assert by_chance.beside_random.mean == whole.beside_random.mean == 0
    assert half.beside_random.mean == pytest.approx(half.p_forms.mean - by_chance.p_forms.mean) != 0
    assert {"accuracy_mean", "p_forms_low", "p_vocabulary_high", "beside_random_n"} < {*result.to_frame().columns}
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["settings"]["layer"] == 2


def test_rows_of_zeros_rank_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = build("load_model", "bert")
    method = tl_vzero.METHODS["hta"]

    def empty(model: Any, inputs: Any, **options: Any) -> Any:
        scored = method(model, inputs, **options)
        return [type(scores)(**{**vars(scores), "values": torch.zeros_like(scores.values)}) for scores in scored]

    spied = type(method)(empty, "", "", "", ("gradients",), name="hta")
    monkeypatch.setattr(rows_module, "METHODS", {"hta": spied, "random": tl_vzero.METHODS["random"]})
    result = token_removal(model, EXAMPLES, ["hta"], shares=[0.5], **QUICK)
    assert [(entry.accuracy, entry.undefined) for entry in of_all(result, "hta")] == [(None, 4)] * 2


def test_times_are_of_the_most_frequent_length() -> None:
    _, model = build("load_model", "bert")
    examples = [EXAMPLES[0], *EXAMPLES[1:2] * 2]
    result = token_removal(model, examples, ["attention"], shares=[0.5, 0.51, 1.0], repeats=2)
    assert [(time.tokens, time.removed, time.sentences) for time in result.times] == [(8, 3, 2), (8, 5, 2)]


def test_bad_arguments_are_refused_before_any_work() -> None:
    _, model = build("load_model", "bert")
    one_form = Example("o", "one", ("the", "dog", "is", "near"), 2, "is", None, (1,), "given")
    with type_checks_off(), left_as_found(model):
        for wrong, kind, message in (
            ({"shares": [0.0]}, InputError, "shares hold 0.0: expected numbers above 0"),
            ({"shares": "half"}, InputTypeError, "shares is str"),
            ({"layer": 3}, InputError, "layer holds 3: expected 0 to 2"),
            ({"repeats": -1}, InputError, "repeats is -1: expected at least 1, or 0"),
            ({"repeats": 1.5}, InputTypeError, "repeats is float"),
        ):
            with pytest.raises(kind, match=message):
                token_removal(model, EXAMPLES[:1], ["attention"], **wrong)
        with pytest.raises(InputError, match="accuracy compares two forms"):
            token_removal(model, [one_form], ["attention"])
        with pytest.raises(InputError, match=r"counts are \[3\]: expected 0 to 2"):
            removal_times(model, torch.tensor([[2, 9, 3]]), 1, layer=1, counts=[3])
    with pytest.raises(HeadlessModelError):
        token_removal(loaded(hf_bert_headless()), EXAMPLES[:1])
