"""Folders of evaluations: held by one run at a time."""

from pathlib import Path

import pytest

import tl_vzero
from tl_vzero.errors import InputError, OutputPathError
from tl_vzero.evaluate import results
from tl_vzero.evaluate.protocol import reproduce
from tl_vzero.evaluate.results import claimed


def test_a_reproduction_holds_its_folder(tmp_path: Path) -> None:
    with claimed(tmp_path / "new"), pytest.raises(InputError, match="new is in use: another run holds locks"):
        reproduce(tl_vzero.load_model("agreement-mini"), limit=2, folder=tmp_path / "new")
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["locks"]


def test_a_folder_is_free_after_its_run(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), claimed(tmp_path):
        raise KeyboardInterrupt
    with claimed(tmp_path):
        pass


def test_a_folder_that_cannot_be_written_is_read_without_a_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(results.os, "access", lambda *_: False)
    with claimed(tmp_path), claimed(None):
        assert not list(tmp_path.iterdir())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputPathError, match="cannot make the folder"), claimed(tmp_path / "file"):
        pass
