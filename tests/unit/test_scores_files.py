"""Scores as files: safetensors and JSON, never pickle, and nothing left behind."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors
import torch
from support.scores import WORD_LABELS, make_scores, partial_scores, per_head_scores, random_values

from tl_vzero import Scores, TLVZeroError

SAVED: list[Any] = [
    pytest.param(make_scores, id="raw"),
    pytest.param(lambda: make_scores().normalized(), id="normalized"),
    pytest.param(lambda: make_scores().rollout(), id="rollout"),
    pytest.param(lambda: make_scores(identity=True), id="identity"),
    pytest.param(partial_scores, id="partial"),
    pytest.param(per_head_scores, id="per_head"),
    pytest.param(lambda: make_scores().words(), id="words"),
    pytest.param(lambda: make_scores(random_values(3, 7, 7, dtype=torch.float32)), id="float32"),
    pytest.param(lambda: make_scores(random_values(3, 7, 7).transpose(1, 2)), id="not_contiguous"),
    pytest.param(
        lambda: make_scores(dest_tokens=("é", "<script>", '"', "\\", "\n", "日本", "👋"), word_ids=None),
        id="odd_tokens",
    ),
]
LABELS = (
    "method",
    "layers",
    "dest_tokens",
    "src_tokens",
    "dest_positions",
    "src_positions",
    "n_layers",
    "n_positions",
    "heads",
    "word_ids",
    "identity",
    "stage",
    "unit",
    "partial",
    "empty_rows",
)


@pytest.mark.parametrize("build", SAVED)
def test_save_and_load_give_the_same_scores(build: Callable[[], Scores], tmp_path: Path) -> None:
    scores = build()
    scores.save(tmp_path / "scores.safetensors")
    again = Scores.load(tmp_path / "scores.safetensors")
    assert torch.equal(again.values, scores.values) and again.values.dtype == scores.values.dtype
    for label in LABELS:
        assert getattr(again, label) == getattr(scores, label), label
    assert dict(again.metadata) == json.loads(json.dumps(dict(scores.metadata)))


def test_what_was_loaded_works_on(tmp_path: Path) -> None:
    scores = make_scores()
    scores.save(tmp_path / "scores.safetensors")
    again = Scores.load(str(tmp_path / "scores.safetensors"))
    assert torch.equal(again.rollout().values, scores.rollout().values)
    assert again.words().dest_tokens == WORD_LABELS


def test_the_file_is_safetensors_and_json_and_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    make_scores().save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        header = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert any(torch.equal(tensor, make_scores().values) for tensor in tensors.values())
    assert any("made up" in json.dumps(json.loads(text)) for text in header.values() if text.startswith("{"))
    with pytest.raises((pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, AttributeError)):
        pickle.loads(path.read_bytes())


def test_saving_overwrites_and_leaves_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "scores.safetensors"
    make_scores(random_values(3, 7, 7, seed=1)).save(path)
    make_scores().save(path)
    assert torch.equal(Scores.load(path).values, make_scores().values)
    assert [entry.name for entry in tmp_path.iterdir()] == ["scores.safetensors"]


class Bomb:
    """Unpickling it would show."""

    exploded = False

    def __reduce__(self) -> Any:
        return (_explode, ())


def _explode() -> None:
    Bomb.exploded = True


def _pickle(path: Path) -> None:
    path.write_bytes(pickle.dumps(Bomb()))


def _torch_pickle(path: Path) -> None:
    torch.save({"values": torch.zeros(1, 2, 2), "bomb": Bomb()}, path)


def _truncated(path: Path) -> None:
    make_scores().save(path)
    path.write_bytes(path.read_bytes()[:-100])


def _header_only(path: Path) -> None:
    make_scores().save(path)
    path.write_bytes(path.read_bytes()[:64])


def _other_safetensors(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"values": torch.zeros(1, 2, 2)}, path)


def _other_safetensors_with_metadata(path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"values": torch.zeros(1, 2, 2)}, path, metadata={"format": "pt"})


def _values_of_another_shape(path: Path) -> None:
    """A real header on values that do not fit it."""
    from safetensors.torch import save_file

    make_scores().save(path)
    with safetensors.safe_open(path, framework="pt") as file:
        header, names = file.metadata(), list(file.keys())
    save_file({name: torch.zeros(2, 3, 3) for name in names}, path, metadata=header)


def _npy(path: Path) -> None:
    with path.open("wb") as file:
        np.save(file, np.zeros(3))


NO_SCORES: list[Any] = [
    pytest.param(_pickle, id="pickle"),
    pytest.param(_torch_pickle, id="torch_save"),
    pytest.param(_truncated, id="truncated"),
    pytest.param(_header_only, id="cut_in_the_header"),
    pytest.param(_other_safetensors, id="other_safetensors"),
    pytest.param(_other_safetensors_with_metadata, id="other_safetensors_with_metadata"),
    pytest.param(_values_of_another_shape, id="values_of_another_shape"),
    pytest.param(lambda path: path.write_text("layer,dest,src\n"), id="text"),
    pytest.param(lambda path: path.write_bytes(b""), id="empty"),
    pytest.param(lambda path: path.mkdir(), id="folder"),
    pytest.param(lambda path: None, id="missing"),
    pytest.param(_npy, id="npy"),
]


@pytest.mark.parametrize("write", NO_SCORES)
def test_a_file_that_is_no_scores_is_refused(write: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "given.safetensors"
    write(path)
    with pytest.raises(TLVZeroError, match=r"given\.safetensors") as caught:
        Scores.load(path)
    assert isinstance(caught.value, ValueError)
    assert not Bomb.exploded


def _in_a_missing_folder(folder: Path) -> Path:
    return folder / "missing" / "scores.safetensors"


def _a_folder(folder: Path) -> Path:
    (folder / "scores.safetensors").mkdir()
    return folder / "scores.safetensors"


def _under_a_file(folder: Path) -> Path:
    (folder / "file").write_text("text")
    return folder / "file" / "scores.safetensors"


@pytest.mark.parametrize("choose", [_in_a_missing_folder, _a_folder, _under_a_file])
def test_an_output_path_that_cannot_be_written(choose: Callable[[Path], Path], tmp_path: Path) -> None:
    path = choose(tmp_path)
    before = sorted(str(entry) for entry in tmp_path.rglob("*"))
    with pytest.raises(TLVZeroError, match=r"scores\.safetensors") as caught:
        make_scores().save(path)
    assert isinstance(caught.value, ValueError)
    assert sorted(str(entry) for entry in tmp_path.rglob("*")) == before
