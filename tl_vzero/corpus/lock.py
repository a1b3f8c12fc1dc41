"""One run at a time in a folder: each process of a run has a lock file, which is touched while it is at work.

A lock whose process is gone is stale. Of a process on another host only the file's age can tell, measured against a
file that is touched now, so that clocks need not agree.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from tl_vzero.corpus.durable import partial_files, write_durably
from tl_vzero.corpus.processes import is_running, this_process
from tl_vzero.errors import InputError

TOUCHED_EVERY = 15.0  # seconds
STALE_AFTER = 120.0


def take_over(locks: Path) -> list[str]:
    """Take stale locks away, and say whose they were; raises InputError where a process is still at work.

    Call it with `guarded(locks)` until the own lock is there.
    """
    told = []
    for path in sorted(locks.glob("rank-*.json")):
        process = _read(path)
        running = is_running(process)
        if running is None:
            running = _age(path, locks) < STALE_AFTER
        named = f"process {process.get('pid')} on {process.get('host')}"
        if running:
            raise InputError(
                f"{locks.parent} is in use by {named} ({path.name}): expected no other run; wait for its end, or "
                "choose another folder"
            )
        told.append(f"{named} ended without finishing ({path.name}): its lock is taken over")
        path.unlink(missing_ok=True)
    for partial in partial_files(locks):
        partial.unlink(missing_ok=True)
    return told


@contextmanager
def guarded(locks: Path) -> Iterator[None]:
    """Within, no other process looks at the locks, where the file system can tell."""
    locks.mkdir(parents=True, exist_ok=True)
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    with (locks / ".guard").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            yield
            return
        yield


class Lock:
    """This process's lock, from its making to `release`."""

    def __init__(self, locks: Path, rank: int) -> None:
        self._path = locks / f"rank-{rank}.json"
        write_durably(self._path, json.dumps(this_process()).encode())
        self._ended = Event()
        self._thread = Thread(target=self._touch, name="lock", daemon=True)
        self._thread.start()

    def _touch(self) -> None:
        while not self._ended.wait(TOUCHED_EVERY):
            try:
                self._path.touch()
            except OSError:
                return

    def release(self) -> None:
        """Let others have the folder."""
        self._ended.set()
        self._thread.join()
        self._path.unlink(missing_ok=True)


def _read(path: Path) -> dict[str, Any]:
    """What a lock says; nothing where it cannot be read, so that its age decides."""
    try:
        read = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}


def _age(path: Path, locks: Path) -> float:
    now = locks / ".now"
    now.touch()
    try:
        return now.stat().st_mtime - path.stat().st_mtime
    except FileNotFoundError:
        return float("inf")
    finally:
        now.unlink(missing_ok=True)
