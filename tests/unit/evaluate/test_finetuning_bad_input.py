"""Fine-tuning: what it refuses, and that nothing is left behind."""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.finetuning import EXAMPLES, FAST, Stop, stop_at
from support.models import build, hf_bert, loaded
from support.state import left_as_found, type_checks_off

from tl_vzero.data.examples import Example
from tl_vzero.errors import FileFormatError, InputError, InputTypeError, ModelError, OutputPathError
from tl_vzero.evaluate import finetuning
from tl_vzero.evaluate.finetuning import accuracy, finetune, read_state


def changed(**changes: Any) -> list[Example]:
    return [replace(EXAMPLES[0], **changes), *EXAMPLES[1:]]


@pytest.mark.parametrize(
    ("examples", "expected"),
    [
        (changed(bad=None), "1 of 16 examples have no wrong form"),
        (changed(bad="barking"), "'barking' is 2 tokens"),
        (changed(bad="zebra"), "'zebra' is not in the vocabulary"),
        (changed(words=("the", "dogs", "are", *["near"] * 70)), "longer than the model's context of 64 tokens"),
        ([replace(example, split=None) for example in EXAMPLES], "none of 32 examples is in the train half"),
        ([example for example in EXAMPLES if example.split == "test"], "none of 16 examples is in the train half"),
        ([], "there are no examples"),
    ],
)
def test_examples_that_cannot_be_trained_on(tmp_path: Path, examples: list[Example], expected: str) -> None:
    model = loaded(hf_bert())
    with left_as_found(model), pytest.raises(InputError, match=expected):
        finetune(model, examples, tmp_path / "tuned", **FAST)
    assert not (tmp_path / "tuned").exists()


def test_a_causal_model_is_refused(tmp_path: Path) -> None:
    _, model = build("load_model", "gpt2")
    with pytest.raises(ModelError, match=r'protocol="causal"'):
        finetune(model, EXAMPLES, tmp_path)
    with pytest.raises(ModelError, match="is causal"):
        accuracy(model, EXAMPLES)


@pytest.mark.parametrize(
    ("options", "error", "expected"),
    [
        ({"epochs": 0}, InputError, "epochs is 0"),
        ({"batch_size": 2.0}, InputTypeError, "batch_size is float"),
        ({"learning_rate": -1e-5}, InputError, "learning_rate is -1e-05"),
        ({"learning_rate": float("nan")}, InputError, "learning_rate is nan"),
        ({"head_learning_rate": "high"}, InputTypeError, "head_learning_rate is str"),
        ({"warm_up": 1.0}, InputError, r"warm_up is 1\.0"),
        ({"seed": None}, InputTypeError, "seed is NoneType"),
        ({"half": "dev"}, InputError, "unknown half 'dev'"),
    ],
)
def test_options_that_cannot_be_used(
    tmp_path: Path, options: dict[str, Any], error: type[Exception], expected: str
) -> None:
    with type_checks_off(), pytest.raises(error, match=expected):
        finetune(loaded(hf_bert()), EXAMPLES, tmp_path / "tuned", **options)
    assert not (tmp_path / "tuned").exists()


def test_a_folder_that_is_a_file_or_holds_something_else(tmp_path: Path) -> None:
    model = loaded(hf_bert())
    (tmp_path / "file").write_text("mine")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "config.json").write_text("mine")
    cases = {
        "file": "cannot make the folder",
        "file/below": "cannot make the folder",
        "full": "expected a new or empty folder",
    }
    for name, expected in cases.items():
        with pytest.raises(OutputPathError, match=expected):
            finetune(model, EXAMPLES, tmp_path / name, resume=False, **FAST)
    assert (tmp_path / "full" / "config.json").read_text() == "mine"
    with type_checks_off(), pytest.raises(InputTypeError, match="is NoneType: expected a path"):
        finetune(model, EXAMPLES, None, **FAST)  # type: ignore[arg-type]


def test_a_damaged_folder_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(hf_bert())
    with monkeypatch.context() as patched:
        stop_at(patched, finetuning, "cross_entropy", 6)
        with pytest.raises(Stop):
            finetune(model, EXAMPLES, tmp_path, **FAST)
    (tmp_path / "epoch-1.safetensors").write_bytes(b"broken")
    with pytest.raises(FileFormatError, match=r"epoch-1\.safetensors is not the checkpoint"):
        finetune(model, EXAMPLES, tmp_path, **FAST)
    finetune(model, EXAMPLES, tmp_path, resume=False, **FAST)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileFormatError, match=r"holds no model\.safetensors"):
        finetune(model, EXAMPLES, tmp_path, **FAST)
    (tmp_path / "finetuning.json").write_text('{"format": "tl_vzero.finetuning"}')
    with pytest.raises(FileFormatError, match="is no state of a fine-tuning"):
        finetune(model, EXAMPLES, tmp_path, **FAST)


STATE = {
    "format": "tl_vzero.finetuning",
    "version": "1",
    "settings": {},
    "epochs_done": 0,
    "history": [{"epoch": 0, "loss": None, "accuracy": None}],
    "finished": False,
    "about": {},
}
ALTERED: dict[str, dict[str, Any]] = {
    "another version": {"version": "2"},
    "finished as a text": {"finished": "false"},
    "finished without an epoch": {"finished": True, "history": []},
    "settings that are a list": {"settings": []},
    "a history that is an object": {"history": {}},
    "an epoch that is missing": {"history": [{"epoch": 1, "loss": 1.0, "accuracy": None}]},
    "an epoch that is a text": {"history": [{"epoch": "0", "loss": None, "accuracy": None}]},
    "a loss that is a text": {"history": [{"epoch": 0, "loss": "low", "accuracy": None}]},
    "an accuracy that is a number": {"history": [{"epoch": 0, "loss": None, "accuracy": 1.0}]},
    "an accuracy without its interval": {"history": [{"epoch": 0, "loss": None, "accuracy": {"mean": 1.0}}]},
}


@pytest.mark.parametrize("change", ALTERED.values(), ids=ALTERED)
def test_a_state_that_was_altered_says_so(tmp_path: Path, change: dict[str, Any]) -> None:
    path = tmp_path / "finetuning.json"
    path.write_text(json.dumps(STATE))
    assert read_state(tmp_path) is not None
    path.write_text(json.dumps(STATE | change))
    with pytest.raises(FileFormatError, match=r"finetuning\.json is no state of a fine-tuning"):
        read_state(tmp_path)


@pytest.mark.parametrize("text", ["[" * 200_000, "9" * 5000, '{"format": NaN}', "[]", "null"])
def test_a_state_made_to_harm_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "finetuning.json").write_text(text)
    with pytest.raises(FileFormatError, match=r"finetuning\.json is no state of a fine-tuning"):
        read_state(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        {"weight.weight": torch.ones(1)},  # would be spread over the whole weight
        {"weight.weight": torch.ones(2, 3, dtype=torch.int64)},
        {"exp_avg.weight": torch.ones(3)},
        {"exp_avg_sq.bias": torch.ones(2, dtype=torch.float64)},
    ],
)
def test_a_checkpoint_of_other_tensors_says_so_and_changes_nothing(tmp_path: Path, change: dict[str, Any]) -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    finetuning.write_checkpoint(tmp_path, 1, model, optimizer)
    path = tmp_path / "epoch-1.safetensors"
    save_file(load_file(path) | change, path)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FileFormatError, match="is not the checkpoint"):
        finetuning.read_checkpoint(tmp_path, 1, 1, model, optimizer)
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_checkpoint_that_is_a_pipe_says_so(tmp_path: Path) -> None:
    model = torch.nn.Linear(3, 2)
    os.mkfifo(tmp_path / "epoch-1.safetensors")
    with pytest.raises(FileFormatError, match="pipe"):
        finetuning.read_checkpoint(tmp_path, 1, 1, model, torch.optim.AdamW(model.parameters()))


def test_a_loss_that_is_not_finite_ends_it(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="take a lower learning_rate"):
        finetune(loaded(hf_bert()), EXAMPLES, tmp_path, epochs=30, batch_size=4, learning_rate=1e30)
