"""A run that was interrupted: nothing is lost or done twice, and the next start reports what it mends."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.corpora import assert_same_corpus, errors_of, left_over, shards_of, table_of, text_file
from torch import Tensor

import tl_vzero
from tl_vzero.corpus import run_corpus
from tl_vzero.corpus import write as run_module
from tl_vzero.corpus.checked import HashedFile
from tl_vzero.corpus.folder import partial_path
from tl_vzero.corpus.processes import Ranks
from tl_vzero.corpus.write import CorpusRun
from tl_vzero.errors import InputError, OutputPathError

COUNT, SHARD_SIZE, SHARDS = 14, 4, 4


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = text_file(tmp_path_factory.mktemp("input"), COUNT)
    lines = path.read_text().splitlines()
    lines[5] = "a line with a NUL \0"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(model: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run gives."""
    folder = tmp_path_factory.mktemp("whole") / "out"
    again(model, source, folder)
    return folder


def again(model: Any, source: Path, folder: Path, **options: Any) -> CorpusRun:
    return run_corpus(model, source, folder, **{"shard_size": SHARD_SIZE, **options})


@pytest.fixture(scope="module")
def stopped(model: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped while it worked on its third shard."""
    folder = tmp_path_factory.mktemp("stopped") / "out"
    with pytest.MonkeyPatch.context() as patched:
        stop_at(2, patched)
        with pytest.raises(KeyboardInterrupt):
            again(model, source, folder)
    assert len(shards_of(folder)) == 2 and left_over(folder) == []
    return folder


@pytest.fixture
def half(stopped: Path, tmp_path: Path) -> Path:
    """A copy of it for each test."""
    return shutil.copytree(stopped, tmp_path / "out")


def stop_at(shard: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real = run_module._write_part

    def stopping(job: Any, part: Any, *rest: Any) -> None:
        real(job, part, *rest)
        if part.shard == shard:
            raise KeyboardInterrupt

    monkeypatch.setattr(run_module, "_write_part", stopping)


def test_a_stopped_run_goes_on_where_it_was(model: Any, source: Path, half: Path, whole: Path) -> None:
    run = again(model, source, half)
    assert (run.computed, run.shards, run.sentences, run.failed, run.complete) == (2, SHARDS, COUNT - 1, 1, True)
    assert_same_corpus(half, whole)
    assert [failure["position"] for failure in errors_of(half)] == [5]
    assert again(model, source, half).computed == 0
    assert_same_corpus(half, whole)


def test_batches_do_not_depend_on_what_came_before(model: Any, source: Path, whole: Path, tmp_path: Path) -> None:
    """What is cached of the model's weights decides which route later sentences take."""
    again(model, source, tmp_path / "out")
    (tmp_path / "out" / "done" / "00001.json").unlink()
    tl_vzero.value_zeroing(model, "the authors near the lamps near the lamps [MASK] today.")
    assert again(model, source, tmp_path / "out").computed == 1
    assert_same_corpus(tmp_path / "out", whole)


def euclidean(clean: Tensor, changed: Tensor) -> Tensor:
    """A distance of the user's by the name of one of the library's."""
    return 2 * (clean - changed).norm(dim=-1)


def test_other_options_are_refused_with_the_difference(model: Any, source: Path, half: Path, tmp_path: Path) -> None:
    for changed, message in [
        ({"methods": ["attention"]}, "options.methods.value_zeroing was {}, is None"),
        ({"rows": "summary"}, "options.rows was all, is summary"),
        ({"layers": [0, 1]}, r"layers was \[0, 1, 2, 3\], is \[0, 1\]"),
        ({"shard_size": 5}, "options.shard_size was 4, is 5"),
        ({"options": {"value_zeroing": {"distance": "euclidean"}}}, "distance was None, is euclidean"),
        ({"options": {"value_zeroing": {"distance": euclidean}}}, r"is euclidean \(a callable\)"),
        ({"baseline": "mean"}, "value_zeroing.baseline was None, is mean"),
        ({"baseline": tl_vzero.mean_values(model, ["the hat."])}, r"is mean of 1 texts \(sha256 [0-9a-f]{16}\)"),
    ]:
        with pytest.raises(InputError, match=message):
            again(model, source, half, **changed)
    other = text_file(tmp_path, COUNT, seed=1)
    with pytest.raises(InputError, match=r"input\.sha256 was"):
        again(model, other, half)
    assert len(shards_of(half)) == 2 and left_over(half) == []


def test_another_model_is_refused(source: Path, half: Path) -> None:
    changed = tl_vzero.load_model("agreement-mini")
    next(changed.parameters()).data[0, 0] += 1
    with pytest.raises(InputError, match=r"model\.weights_sha256 was"):
        again(changed, source, half)


def test_an_input_that_moved_is_the_same(model: Any, source: Path, half: Path, whole: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved.txt"
    moved.write_bytes(source.read_bytes())
    again(model, moved, half)
    assert_same_corpus(half, whole)


def test_a_folder_of_other_files_is_refused(model: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    with pytest.raises(OutputPathError, match=r"holds files, and no manifest\.json"):
        again(model, source, tmp_path / "out")


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def corpus_of(out: Path) -> str:
    """The hash that the notes of a corpus bear."""
    return str(json.loads((out / "done" / "00000.json").read_text())["corpus"])


DAMAGES: dict[str, Any] = {
    "shard 00001 is damaged .*its hash differs": lambda out: flip(out / "shards" / "00001.parquet", 300),
    "shard 00001 is damaged .*were written": lambda out: cut(out / "shards" / "00001.parquet"),
    "shard 00001 is damaged .*is not there": lambda out: (out / "shards" / "00001.parquet").unlink(),
    "shard 00001 is damaged .*errors/00001.jsonl": lambda out: flip(out / "errors" / "00001.jsonl", 3),
    "shard 00001 is damaged .*its note": lambda out: cut(out / "done" / "00001.json"),
    "shard 00001 was not finished": lambda out: (out / "done" / "00001.json").unlink(),
    "manifest.json is damaged": lambda out: cut(out / "manifest.json"),
    "manifest.json is not there": lambda out: (out / "manifest.json").unlink(),
    "was left open": lambda out: partial_path(out / "shards" / "00003.parquet", corpus_of(out)).write_bytes(
        b"PAR1 half"
    ),
}


@pytest.mark.parametrize("message", DAMAGES)
def test_damage_is_reported_and_mended(model: Any, source: Path, half: Path, whole: Path, message: str) -> None:
    DAMAGES[message](half)
    heard: list[str] = []
    run = again(model, source, half, say=heard.append)
    assert any(re.search(message, note) for note in run.notes) and any(re.search(message, note) for note in heard)
    assert_same_corpus(half, whole)


def test_a_damaged_manifest_does_not_let_other_options_in(model: Any, source: Path, half: Path) -> None:
    cut(half / "manifest.json")
    with pytest.raises(InputError, match=r"options\.rows was all, is target"):
        again(model, source, half, rows="target")


def test_a_full_disk_stops_the_run_and_keeps_what_is_finished(
    model: Any, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = 0
    real = HashedFile.write

    def full(self: HashedFile, content: Any) -> int:
        nonlocal written
        written += memoryview(content).nbytes
        if written > 25_000 and not self.discard:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(self, content)

    monkeypatch.setattr(HashedFile, "write", full)
    with pytest.raises(OutputPathError, match=r"No space left on device; [12] finished shards are kept"):
        again(model, source, tmp_path / "out")
    assert left_over(tmp_path / "out") == []
    monkeypatch.undo()
    again(model, source, tmp_path / "out")
    assert_same_corpus(tmp_path / "out", whole)


def test_a_full_disk_when_the_shard_is_synced(
    model: Any, source: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: HashedFile) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(HashedFile, "sync", full)
    with pytest.raises(OutputPathError, match="0 finished shards"):
        again(model, source, tmp_path / "out")
    monkeypatch.undo()
    again(model, source, tmp_path / "out")
    assert_same_corpus(tmp_path / "out", whole)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no disk that is always full")
def test_a_discarded_file_is_closed_on_a_full_disk() -> None:
    for discard in (False, True):
        file = HashedFile(Path("/dev/full").open("wb"))  # noqa: SIM115
        file.write(b"a few bytes, still in memory")
        with pytest.raises(OSError, match="No space left"):
            file.sync()
        file.discard = discard
        if discard:
            file.close()
        else:
            with pytest.raises(OSError, match="No space left"):
                file.close()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 100 kB."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", str(where)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_disk_that_is_really_full(model: Any, tmp_path: Path, small_disk: Path) -> None:
    source = text_file(tmp_path, 60)
    with pytest.raises(OutputPathError, match="No space left on device"):
        run_corpus(model, source, small_disk / "out", shard_size=5)
    assert left_over(small_disk / "out") == []
    n_finished = len(list((small_disk / "out" / "done").glob("*.json")))
    assert n_finished > 0
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    run = run_corpus(model, source, small_disk / "out", shard_size=5)
    assert run.computed == 12 - n_finished and run.sentences == 60


class Lone(Ranks):
    """One rank of several, whose others are not there."""

    def agree(self, settle: Any) -> Any:
        return settle()

    def meet(self, work: Any = lambda: None) -> bool:
        work()
        return True


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_share_what_is_left(
    model: Any, source: Path, half: Path, whole: Path, monkeypatch: pytest.MonkeyPatch, world: int
) -> None:
    for rank in reversed(range(world)):
        monkeypatch.setattr(run_module, "ranks_of_launch", lambda rank=rank: Lone(rank, world))
        run = again(model, source, half)
        # Each takes its part of what was left when it began, so two shards never both go to one rank of two.
        assert run.computed <= 1
    monkeypatch.undo()
    assert again(model, source, half).complete
    assert_same_corpus(half, whole)


def test_variables_of_half_a_launch_are_refused(
    model: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.delenv("MASTER_ADDR", raising=False)
    with pytest.raises(InputError, match="MASTER_ADDR, MASTER_PORT is not set"):
        again(model, source, tmp_path / "out")


def test_an_input_without_any_sentence(model: Any, tmp_path: Path) -> None:
    path = tmp_path / "blank.txt"
    path.write_text("\n\n \n")
    run = run_corpus(model, path, tmp_path / "out", shard_size=2)
    assert (run.sentences, run.failed, run.shards, run.complete) == (0, 3, 2, True)
    assert len(table_of(tmp_path / "out")) == 0 and len(errors_of(tmp_path / "out")) == 3


def crashed(source: Path, folder: Path, mode: str, count: int) -> dict[str, Any]:
    program = Path(__file__).parents[2] / "support" / "crashing.py"
    process = subprocess.run(
        [sys.executable, str(program), mode, str(source), str(folder), str(count)],
        capture_output=True,
        text=True,
        check=False,
        timeout=3000,
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return dict(json.loads(process.stdout))


def assert_all_whole(crash: dict[str, Any], expected: Path) -> None:
    for folder in crash["folders"]:
        assert_same_corpus(Path(folder), expected)


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are forked")


@needs_fork
@pytest.mark.slow
def test_killed_before_every_change_of_the_folder(source: Path, tmp_path: Path) -> None:
    crash = crashed(source, tmp_path / "killed", "steps", 0)
    assert len(crash["folders"]) == crash["steps"] > 30
    assert_all_whole(crash, tmp_path / "killed" / "whole")


@needs_fork
@pytest.mark.slow
def test_killed_at_thirty_random_moments(tmp_path: Path) -> None:
    crash = crashed(text_file(tmp_path, 150), tmp_path / "killed", "random", 30)
    assert crash["kills"] == 30
    assert_all_whole(crash, tmp_path / "killed" / "whole")
