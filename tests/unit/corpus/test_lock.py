"""One run per folder, whoever starts it and wherever, and no lock outlives its process."""

import errno
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from support.corpora import assert_same_corpus, text_file

import tl_vzero
from tl_vzero.corpus import run_corpus
from tl_vzero.corpus import write as run_module
from tl_vzero.corpus.processes import Ranks, take_lock
from tl_vzero.errors import InputError, OutputPathError, TLVZeroError

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return text_file(tmp_path_factory.mktemp("input"), 14)


@pytest.fixture(scope="module")
def whole(model: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    again(model, source, folder)
    return folder


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "out")


def again(model: Any, source: Path, folder: Path) -> Any:
    return run_corpus(model, source, folder, shard_size=4)


@pytest.fixture
def start(source: Path, tmp_path: Path) -> Iterator[Start]:
    """Starts processes that run a corpus and stop in the midst of it."""
    program = Path(__file__).parents[2] / "support" / "holding.py"
    with ExitStack() as ended:

        def started(*before: str, **variables: str) -> "subprocess.Popen[str]":
            process = ended.enter_context(
                subprocess.Popen(
                    [*before, sys.executable, str(program), str(source), str(tmp_path / "out")],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
                )
            )
            ended.callback(process.kill)
            return process

        yield started


def reads(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def test_a_process_of_another_container_is_at_work_as_any_other(
    model: Any, source: Path, whole: Path, tmp_path: Path, start: Start
) -> None:
    """Its process id is 1 there, and says nothing here."""
    alone = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    tried = shutil.which("unshare") and subprocess.run([*alone, "true"], capture_output=True, check=False)
    if not tried or tried.returncode:
        pytest.skip("no PID namespaces can be made here")
    process = start(*alone)
    assert reads(process) == "holding"
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=r"is in use: another run holds locks/00000\.lock"):
        again(model, source, tmp_path / "out")
    assert sorted(tmp_path.rglob("*")) == before
    process.kill()
    process.wait()
    assert again(model, source, tmp_path / "out").complete
    assert_same_corpus(tmp_path / "out", whole)


@pytest.mark.slow
def test_ranks_hold_the_folder_when_their_first_was_killed(
    model: Any, source: Path, whole: Path, tmp_path: Path, start: Start
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    first, second = (start(**launch, RANK=str(rank)) for rank in range(2))
    assert (reads(first), reads(second)) == ("holding", "holding")
    first.kill()
    first.wait()
    with pytest.raises(InputError, match=r"is in use: another run holds locks/00001\.lock"):
        again(model, source, tmp_path / "out")
    assert second.stdin is not None
    second.stdin.close()
    assert reads(second) == "complete: False"
    second.wait()
    run = again(model, source, tmp_path / "out")
    assert run.complete and run.computed == 2
    assert_same_corpus(tmp_path / "out", whole)


def test_any_rank_that_is_at_work_keeps_a_new_launch_out(model: Any, source: Path, out: Path) -> None:
    """Also one past the ranks of the new launch."""
    with FileLock(out / "locks" / "00007.lock"), pytest.raises(InputError, match=r"holds locks/00007\.lock"):
        again(model, source, out)
    assert again(model, source, out).complete


def test_a_rank_whose_lock_is_held_ends_the_launch(
    model: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 was killed before rank 1 had its lock, and another launch began meanwhile."""

    monkeypatch.setattr(run_module, "ranks_of_launch", lambda: Ranks(1, 1))
    with ExitStack() as held:
        real = run_module._settle

        def settled(*arguments: Any) -> Any:
            answer = real(*arguments)
            take_lock(out / "locks" / "00001.lock", held)
            return answer

        monkeypatch.setattr(run_module, "_settle", settled)
        with pytest.raises(InputError, match=r"holds locks/00001\.lock"):
            again(model, source, out)


def test_two_threads_are_two_runs(model: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another = tl_vzero.load_model("agreement-mini")
    refused: list[str] = []

    def meanwhile(message: str) -> None:
        with ThreadPoolExecutor(1) as thread, pytest.raises(InputError, match="is in use"):
            thread.submit(again, another, source, tmp_path / "out").result()
        refused.append(message)

    run_corpus(model, source, tmp_path / "out", shard_size=4, say=meanwhile)
    assert len(refused) == 1


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "I/O error"), MemoryError()], ids=repr)
@pytest.mark.parametrize("taken", [False, True])
def test_a_lock_that_failed_half_way_does_not_lock_its_process_out(
    model: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, taken: bool
) -> None:
    fcntl = pytest.importorskip("fcntl")
    real = fcntl.flock

    def failing(descriptor: int, operation: int) -> None:
        if operation & fcntl.LOCK_EX:
            if taken:
                real(descriptor, operation)
            raise error
        real(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", failing)
    with pytest.raises((type(error), TLVZeroError)):
        again(model, source, out)
    monkeypatch.undo()
    assert again(model, source, out).complete


@pytest.mark.parametrize("error_code", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_refused_in_words(
    model: Any, source: Path, out: Path, monkeypatch: pytest.MonkeyPatch, error_code: int
) -> None:
    """A lock by the mere presence of a file goes stale: none is taken in its place."""
    fcntl = pytest.importorskip("fcntl")

    def none(descriptor: int, operation: int) -> None:
        raise OSError(error_code, os.strerror(error_code))

    monkeypatch.setattr(fcntl, "flock", none)
    with pytest.raises(OutputPathError, match="file system with locks"):
        again(model, source, out)
    monkeypatch.undo()
    assert again(model, source, out).complete


def test_a_failed_run_frees_its_lock(model: Any, source: Path, out: Path) -> None:
    with pytest.raises(InputError, match="corpus of something else"):
        run_corpus(model, source, out, shard_size=5)
    assert again(model, source, out).complete
