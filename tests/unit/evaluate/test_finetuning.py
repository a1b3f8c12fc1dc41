"""Fine-tuning: against a plain loop; interrupted and gone on; what is written; accuracy one by one."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.finetuning import EXAMPLES, FAST, TRAIN, Stop, stop_at
from support.models import hf_bert, hf_bert_headless, hooked_encoder, loaded, tokenizer
from support.state import left_as_found
from torch import Tensor
from tqdm import tqdm
from transformers import AutoTokenizer, BertForMaskedLM

import tl_vzero
from tl_vzero.data.agreement_mini import agreement_examples
from tl_vzero.data.examples import Example, split_in_halves
from tl_vzero.errors import HeadlessModelError, InputError
from tl_vzero.evaluate import finetuning
from tl_vzero.evaluate.finetuning import (
    FineTuned,
    Recipe,
    accuracy,
    batches_of,
    finetune,
    logits_of_forms,
    optimizer_of,
    share_of_peak,
    train_epoch,
    trainable_copy,
)
from tl_vzero.evaluate.results import claimed
from tl_vzero.evaluate.sentences import TokenizedExample, pieces_of, tokenize_examples


def weights_in(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def assert_equal_weights(one: Path, other: Path) -> None:
    first, second = weights_in(one), weights_in(other)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def recipe_of(**changes: Any) -> Recipe:
    return replace(Recipe(2, 4, 1e-3, 1e-2, 0.25, 7), **changes)


# --- the steps ---


@pytest.mark.parametrize("make", [hf_bert, hf_bert_headless])
def test_the_logits_of_a_padded_batch_are_those_of_each_sentence_alone(make: Callable[..., Any]) -> None:
    model = loaded(make().double())
    copied = trainable_copy(model).model
    laid = tokenize_examples(model, EXAMPLES).examples
    with torch.no_grad():
        rows = logits_of_forms(copied, laid)
        for row, tokenized in zip(rows, laid, strict=True):
            logits = copied(input_ids=tokenized.encoding.ids[None]).logits[0, tokenized.encoding.target]
            assert torch.allclose(row, logits[[tokenized.encoding.good_id, tokenized.encoding.bad_id]], atol=1e-12)


def slow_training(model: Any, batches: Sequence[Sequence[TokenizedExample]], rates: Sequence[float]) -> list[float]:
    """Sentence by sentence, all logits, the two forms' softmax written out; AdamW as in its paper."""
    first: dict[str, Tensor] = {}
    second: dict[str, Tensor] = {}
    losses = []
    for step, (batch, rate) in enumerate(zip(batches, rates, strict=True), start=1):
        model.zero_grad()
        loss = torch.zeros((), dtype=torch.float64)
        for tokenized in batch:
            logits = model(input_ids=tokenized.encoding.ids[None]).logits[0, tokenized.encoding.target]
            good, bad = logits[tokenized.encoding.good_id], logits[tokenized.encoding.bad_id]
            loss = loss - torch.log(good.exp() / (good.exp() + bad.exp())) / len(batch)
        loss.backward()
        losses.append(loss.item())
        for name, parameter in model.named_parameters():
            grad = parameter.grad
            first[name] = 0.9 * first.get(name, 0 * grad) + 0.1 * grad
            second[name] = 0.999 * second.get(name, 0 * grad) + 0.001 * grad**2
            direction = first[name] / (1 - 0.9**step) / ((second[name] / (1 - 0.999**step)).sqrt() + 1e-8)
            parameter.data = parameter.data * (1 - rate * 0.01) - rate * direction
    return losses


def test_training_is_what_a_plain_loop_does() -> None:
    model = loaded(hf_bert().double())
    laid, recipe = tokenize_examples(model, TRAIN).examples, recipe_of()
    fast, slow = trainable_copy(model), trainable_copy(model)
    optimizer = optimizer_of(fast, recipe)
    with tqdm(disable=True) as bar:
        losses = [train_epoch(fast, optimizer, laid, recipe, epoch, bar) for epoch in (1, 2)]
    # 8 steps, a quarter of them warm-up.
    rates = [1e-3 * share for share in (1 / 2, 1, 1, 5 / 6, 4 / 6, 3 / 6, 2 / 6, 1 / 6)]
    batches = [batch for epoch in (1, 2) for batch in batches_of(laid, recipe, epoch)]
    expected = slow_training(slow.model, batches, rates)
    assert losses == pytest.approx([sum(expected[:4]) / 4, sum(expected[4:]) / 4], abs=1e-9)
    for (name, one), other in zip(fast.model.named_parameters(), slow.model.parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-7), name


def test_the_learning_rate_rises_and_falls() -> None:
    assert [share_of_peak(step, 4, 0.0) for step in range(4)] == [1, 3 / 4, 2 / 4, 1 / 4]
    assert share_of_peak(0, 1, 0.1) == 1
    assert share_of_peak(0, 1, 0.9) == 1


def test_a_fresh_head_takes_steps_of_its_own() -> None:
    trainable = trainable_copy(tl_vzero.load_model(hf_bert_headless(), tokenizer()))
    encoder, head = optimizer_of(trainable, recipe_of()).param_groups
    assert (encoder["lr"], head["lr"]) == (1e-3, 1e-2)
    assert len(head["params"]) == len(trainable.fresh) == 5
    assert len(optimizer_of(trainable_copy(loaded(hf_bert())), recipe_of()).param_groups) == 1


def test_an_epoch_holds_each_example_once_in_an_order_of_its_own() -> None:
    laid = tokenize_examples(loaded(hf_bert()), EXAMPLES).examples
    orders = []
    for seed, epoch in ((7, 1), (7, 1), (7, 2), (8, 1)):
        batches = batches_of(laid, recipe_of(seed=seed), epoch)
        assert [len(batch) for batch in batches] == [4] * 8
        orders.append([tokenized.example.id for batch in batches for tokenized in batch])
    assert all(sorted(order) == sorted(example.id for example in EXAMPLES) for order in orders)
    assert orders[0] == orders[1] and orders[0] != orders[2] and orders[0] != orders[3]


# --- the whole ---


def test_an_encoder_without_a_head_learns_to_choose(tmp_path: Path) -> None:
    embedded = files("tl_vzero") / "assets" / "agreement-mini"
    encoder = BertForMaskedLM.from_pretrained(str(embedded), dtype=torch.float32).bert
    model = tl_vzero.load_model(encoder, AutoTokenizer.from_pretrained(str(embedded)))
    examples = split_in_halves(agreement_examples())[:240]
    tuned = finetune(model, examples, tmp_path, batch_size=8)
    before, after = tuned.history[0].accuracy, tuned.accuracy
    assert before is not None and before.mean < 0.8
    assert after is not None and after.mean > 0.95 and after.n == 114
    losses = [epoch.loss for epoch in tuned.history]
    assert losses[0] is None and losses[1] is not None and losses[3] is not None and losses[3] < losses[1] / 2
    assert tuned.to_frame().loc[3, "accuracy"] == after.mean


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    model = loaded(hf_bert(dropout=0.1))
    with left_as_found(model):
        tuned = finetune(model, EXAMPLES, tmp_path / "new" / "tuned", **FAST)
    assert [epoch.epoch for epoch in tuned.history] == [0, 1, 2, 3]


def test_the_folder_holds_a_hugging_face_model_with_a_trained_head(tmp_path: Path) -> None:
    tuned = finetune(tl_vzero.load_model(hf_bert_headless(), tokenizer()), EXAMPLES, tmp_path, **FAST)
    model = tuned.load()
    names = {path.name for path in tmp_path.iterdir()}
    assert {"config.json", "model.safetensors", "finetuning.json", "tokenizer.json"} <= names
    assert not [name for name in names if name.startswith(("epoch-", "."))]
    assert tuned.settings["fresh_head"]
    assert accuracy(model, EXAMPLES) == tuned.accuracy
    laid = tokenize_examples(model, EXAMPLES).examples
    assert torch.allclose(logits_of_forms(trainable_copy(model).model, laid), _bridge_logits(model, laid), atol=1e-5)


def _bridge_logits(model: Any, laid: Sequence[TokenizedExample]) -> Tensor:
    rows = []
    for tokenized in laid:
        logits = model(tokenized.encoding.ids[None], return_type="logits")[0, tokenized.encoding.target]
        rows.append(logits[[tokenized.encoding.good_id, tokenized.encoding.bad_id]])
    return torch.stack(rows)


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(tmp_path: Path) -> None:
    model = loaded(hf_bert(dropout=0.2))
    for name, seed in (("one", 3), ("same", 3), ("other", 4)):
        torch.manual_seed(len(name))  # what the user drew before must not matter
        finetune(model, EXAMPLES, tmp_path / name, seed=seed, **FAST)
    assert_equal_weights(tmp_path / "one", tmp_path / "same")
    one, other = weights_in(tmp_path / "one"), weights_in(tmp_path / "other")
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> FineTuned:
    """A fine-tuning without interruption."""
    return finetune(loaded(hf_bert(dropout=0.2)), EXAMPLES, tmp_path_factory.mktemp("whole"), **FAST)


@pytest.mark.parametrize(
    ("module", "name", "call", "epochs_done"),
    [
        pytest.param(finetuning, "logits_of_forms", 2, 0, id="before all", marks=pytest.mark.slow),
        pytest.param(finetuning, "cross_entropy", 3, 0, id="in epoch 1", marks=pytest.mark.slow),
        pytest.param(finetuning, "cross_entropy", 6, 1, id="in epoch 2"),
        pytest.param(finetuning, "write_checkpoint", 2, 1, id="before checkpoint 2", marks=pytest.mark.slow),
        pytest.param(finetuning, "write_state", 4, 1, id="between checkpoint and state"),
        pytest.param(finetuning, "drop_checkpoints", 2, 2, id="before the old checkpoint goes", marks=pytest.mark.slow),
        pytest.param(finetuning, "publish", 1, 3, id="before the model is written"),
        pytest.param(finetuning, "write_state", 6, 3, id="after the model is written", marks=pytest.mark.slow),
    ],
)
def test_an_interrupted_run_resumes_to_the_same_weights(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    whole: FineTuned,
    module: Any,
    name: str,
    call: int,
    epochs_done: int,
) -> None:
    model = loaded(hf_bert(dropout=0.2))
    with monkeypatch.context() as patched, left_as_found(model):
        stop_at(patched, module, name, call)
        with pytest.raises(Stop):
            finetune(model, EXAMPLES, tmp_path, **FAST)
    state = finetuning.read_state(tmp_path)
    assert state is not None and not state.finished and state.epochs_done == epochs_done
    resumed = finetune(model, EXAMPLES, tmp_path, **FAST)
    assert_equal_weights(whole.folder, tmp_path)
    assert (resumed.history, resumed.settings) == (whole.history, whole.settings)
    names = [sorted(path.name for path in folder.iterdir()) for folder in (whole.folder, tmp_path)]
    assert names[0] == names[1]


def test_a_fresh_head_goes_on_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(hf_bert_headless(dropout=0.2))
    finetune(model, EXAMPLES, tmp_path / "whole", **FAST)
    with monkeypatch.context() as patched:
        stop_at(patched, finetuning, "cross_entropy", 6)
        with pytest.raises(Stop):
            finetune(model, EXAMPLES, tmp_path / "stopped", **FAST)
    finetune(model, EXAMPLES, tmp_path / "stopped", **FAST)
    assert_equal_weights(tmp_path / "whole", tmp_path / "stopped")


def test_a_finished_run_is_read_and_resume_false_starts_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(hf_bert())
    first = finetune(model, EXAMPLES, tmp_path, **FAST)
    with monkeypatch.context() as patched:
        stop_at(patched, finetuning, "logits_of_forms", 1)
        assert finetune(model, EXAMPLES, tmp_path, **FAST) == first
        with pytest.raises(Stop):
            finetune(model, EXAMPLES, tmp_path, resume=False, **FAST)
    assert not (tmp_path / "model.safetensors").exists()
    assert finetune(model, EXAMPLES, tmp_path, **FAST) == first


def test_another_model_other_data_or_options_are_refused(tmp_path: Path) -> None:
    model = loaded(hf_bert())
    finetune(model, EXAMPLES, tmp_path, **FAST)
    before = weights_in(tmp_path)
    cases: list[tuple[Any, Sequence[Example], dict[str, Any], str]] = [
        (model, EXAMPLES, {"learning_rate": 1e-3}, r"learning_rate was 0\.003, is 0\.001"),
        (model, EXAMPLES, {"epochs": 4}, "epochs was 3, is 4"),
        (model, EXAMPLES[:-8], {}, "n_train was 16, is 12"),
        (model, EXAMPLES[::-1], {}, "train_sha256 was"),
        (loaded(hf_bert(seed=1)), EXAMPLES, {}, "start_sha256 was"),
    ]
    for start, examples, options, expected in cases:
        with pytest.raises(InputError, match=f"other data or options .*{expected}.*resume=False"):
            finetune(start, examples, tmp_path, **(FAST | options))
    assert all(torch.equal(before[name], tensor) for name, tensor in weights_in(tmp_path).items())


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with claimed(tmp_path), pytest.raises(InputError, match="is in use: another run holds locks"):
        finetune(loaded(hf_bert()), EXAMPLES, tmp_path, **FAST)
    assert {path.name for path in tmp_path.iterdir()} == {"locks"}
    assert finetune(loaded(hf_bert()), EXAMPLES, tmp_path, **FAST).history


def test_the_state_says_what_was_done(tmp_path: Path) -> None:
    tuned = finetune(loaded(hf_bert()), EXAMPLES, tmp_path, **FAST)
    state = json.loads((tmp_path / "finetuning.json").read_text())
    assert (state["epochs_done"], state["finished"]) == (3, True)
    assert state["settings"]["seed"] == 0 and len(state["settings"]["train_sha256"]) == 64
    assert tuned.accuracy is not None
    assert state["history"][3]["accuracy"]["mean"] == tuned.accuracy.mean
    assert state["about"]["versions"]["torch"] == torch.__version__


def test_all_examples_may_be_trained_on(tmp_path: Path) -> None:
    tuned = finetune(loaded(hf_bert()), EXAMPLES, tmp_path, half=None, **FAST)
    assert (tuned.settings["n_train"], tuned.settings["n_held_out"], tuned.accuracy) == (32, 0, None)
    assert tuned.to_frame()["accuracy"].isna().all()


def test_progress_is_shown_where_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finetune(loaded(hf_bert()), EXAMPLES, tmp_path / "silent", **FAST)
    assert not capsys.readouterr().err
    finetune(loaded(hf_bert()), EXAMPLES, tmp_path / "shown", progress=True, **FAST)
    assert "fine-tuning" in capsys.readouterr().err


# --- accuracy ---


@pytest.mark.parametrize("make", [loaded, hooked_encoder], ids=["bridge", "HookedEncoder"])
def test_accuracy_is_counted_one_by_one(make: Callable[[Any], Any]) -> None:
    model = make(hf_bert(seed=5))
    wins = []
    for example in EXAMPLES:
        if example.split == "test":
            pieces = pieces_of(example, tokenizer())
            with torch.no_grad():
                row = model(pieces.ids[None], return_type="logits")[0, pieces.target]
            wins.append(float(row[pieces.good_id] > row[pieces.bad_id]))
    with left_as_found(model):
        measured = accuracy(model, EXAMPLES, batch_size=3)
    assert (measured.mean, measured.n) == (sum(wins) / len(wins), 16)
    assert 0 < measured.mean < 1 and measured.low <= measured.mean <= measured.high


def test_no_accuracy_without_a_trained_head() -> None:
    with pytest.raises(HeadlessModelError):
        accuracy(tl_vzero.load_model(hf_bert_headless(), tokenizer()), EXAMPLES)
