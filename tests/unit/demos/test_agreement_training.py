"""The training of the embedded model saves itself along the way, and is no other training for that."""

from pathlib import Path

import torch
from safetensors.torch import load_file

import tl_vzero
from demos.agreement_mini.train import checkpoint_steps, main


def test_checkpoints_are_even_and_end_with_the_last_step() -> None:
    assert checkpoint_steps(2500, 20)[:2] == [125, 250] and checkpoint_steps(2500, 20)[-1] == 2500
    assert checkpoint_steps(7, 3) == [2, 4, 7] and checkpoint_steps(7, 0) == []


def test_what_is_saved_on_the_way_is_the_model_after_so_many_steps(tmp_path: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("demos.agreement_mini.train.card_of_accuracy", lambda model: "")
    with torch.random.fork_rng():
        main(tmp_path, seed=0, layers=1, steps=4, checkpoints=2)
    torch.use_deterministic_algorithms(False)
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-00002", "step-00004"]
    last, whole = (load_file(folder / "model.safetensors") for folder in (tmp_path / "step-00004", tmp_path))
    assert all(torch.equal(last[name], whole[name]) for name in whole)
    assert any(
        not torch.equal(weight, whole[name])
        for name, weight in load_file(tmp_path / "step-00002" / "model.safetensors").items()
    )
    assert tl_vzero.load_model(tmp_path / "step-00002").cfg.n_layers == 1
