"""The processes of a run: their locks, what they agree on and where they meet, and how each is getting on.

One run at a time in a folder: every process of a launch holds a lock file from before its first change to its end. The
operating system holds the lock and frees it when its process ends, however that ends; so no lock is ever stale. Lock
files are empty, and stay. Rank 0 takes its lock, and sees that no other one of the folder is held: processes of an
earlier launch may be at work after their rank 0 was killed. Then the other ranks take theirs (see `Ranks.meet`).
"""

import errno
import json
import os
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from filelock import FileLock, SoftFileLock, Timeout
from tqdm.auto import tqdm

from tl_vzero.errors import InputError, OutputPathError, TLVZeroError
from tl_vzero.files import append_line

NO_LOCKS = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL}


def take_lock(path: Path, undo: ExitStack) -> None:
    """Hold a lock file until `undo`.

    Raises InputError where another process holds it, OutputPathError where the file system has no locks, OSError where
    the file cannot be made.
    """
    # Not filelock's stand-in for file systems without locks: it goes stale.
    lock = FileLock(path, fallback_to_soft=False)
    undo.callback(lock.release)  # first, so that whatever ends the next line leaves no lock
    if isinstance(lock, SoftFileLock):
        raise OutputPathError(f"cannot lock {path}: this system has no file locks; a corpus cannot be written here")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise InputError(
            f"{path.parent.parent} is in use: another run holds {path.parent.name}/{path.name}; wait for its end, or "
            "choose another folder"
        ) from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
        raise OutputPathError(
            f"cannot lock {path}: {error}; expected a folder on a file system with locks, so that no two runs write "
            "one corpus; choose another folder"
        ) from error


def check_free(path: Path) -> None:
    """Raise InputError where a process holds this lock file."""
    with ExitStack() as at_once:
        take_lock(path, at_once)


VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
LONGEST_RUN = timedelta(days=60)  # how long a rank waits for the slowest one


@dataclass
class Ranks:
    """This process among those of its launch (`torchrun`, `accelerate launch`); alone, it is rank 0 of 1."""

    rank: int
    world: int
    group: Any = None
    owns_group: bool = False

    def agree(self, settle: Callable[[], Any]) -> Any:
        """What rank 0 settles, as plain JSON data, sent to all; its error is raised by all."""
        if self.world == 1:
            return settle()
        message: dict[str, Any] = {}
        failed: BaseException | None = None
        if self.rank == 0:
            try:
                message = {"settled": settle()}
            except BaseException as error:
                failed, message = error, {"error": str(error) or type(error).__name__}
        message = json.loads(self._broadcast(json.dumps(message).encode()))
        if failed is not None:
            raise failed
        if "error" in message:
            raise InputError(f"rank 0 refused: {message['error']}")
        return message["settled"]

    def meet(self, work: Callable[[], object] = lambda: None) -> bool:
        """Do some work in every rank and wait until all have done it; False where one of them is gone.

        Raises this rank's error, or TLVZeroError where another rank has one.
        """
        failed: BaseException | None = None
        try:
            work()
        except BaseException as error:
            failed = error
        failures, all_there = torch.tensor([int(failed is not None)]), True
        if self.world > 1:
            try:
                dist.all_reduce(failures, group=self.group)
            except RuntimeError:
                all_there = False
        if failed is not None:
            raise failed
        if all_there and failures.item():
            raise TLVZeroError("another process of this launch ended with an error, which it tells: this one ends too")
        return all_there

    def leave(self) -> None:
        """End the group that this run began."""
        if self.owns_group and dist.is_initialized():
            dist.destroy_process_group()

    def _broadcast(self, content: bytes) -> bytes:
        """Bytes of rank 0, to all; not by broadcast_object_list, which pickles."""
        size = torch.tensor([len(content)])
        dist.broadcast(size, src=0, group=self.group)
        received = torch.zeros(int(size.item()), dtype=torch.uint8)
        if self.rank == 0:
            received.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        dist.broadcast(received, src=0, group=self.group)
        return bytes(received.tolist())


def ranks_of_launch() -> Ranks:
    """The ranks that the launcher's environment variables describe, joined by gloo.

    Raises InputError where only some of the variables are set, TLVZeroError where the ranks cannot be joined.
    """
    if dist.is_available() and dist.is_initialized():
        # The caller's own group may be one of GPUs, which moves no bytes of ours.
        return Ranks(dist.get_rank(), dist.get_world_size(), dist.new_group(backend="gloo"))
    if os.environ.get("WORLD_SIZE", "1") == "1":
        return Ranks(0, 1)
    missing = [name for name in VARIABLES if not os.environ.get(name)]
    if missing:
        raise InputError(
            f"WORLD_SIZE is {os.environ['WORLD_SIZE']}, and {', '.join(missing)} is not set: expected a start by "
            "torchrun or accelerate launch, which set all, or WORLD_SIZE unset"
        )
    try:
        dist.init_process_group("gloo", timeout=LONGEST_RUN)
    except (RuntimeError, ValueError) as error:
        raise TLVZeroError(f"the processes of this launch cannot be joined: {error}") from error
    return Ranks(dist.get_rank(), dist.get_world_size(), owns_group=True)


@dataclass(eq=False)
class Progress:
    """How one process is getting on: a bar for people if `shown`, JSON lines for machines.

    `total` is about how many sentences it has to do.
    """

    total: int | None
    rank: int
    shown: bool
    json_log: Path | None
    sentences: int = 0
    failed: int = 0
    begun: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self._bar = tqdm(total=self.total, disable=not self.shown, desc="corpus", unit="sentence", file=sys.stderr)

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self.begun

    def part(self, sentences: int, failed: int) -> None:
        """So many more sentences are done."""
        self.sentences += sentences
        self.failed += failed
        memory = memory_mb()
        if memory is not None:
            self._bar.set_postfix_str(f"{memory:.0f} MB, {self.failed} failed", refresh=False)
        self._bar.update(sentences + failed)

    def log(self, event: str, **about: Any) -> None:
        """Add a line to the JSON log: an event, and the state at that time."""
        if self.json_log is None:
            return
        done, seconds = self.sentences + self.failed, self.seconds
        rate = done / max(seconds, 1e-9)
        line = {
            "event": event,
            "time": time.time(),
            "rank": self.rank,
            "sentences": self.sentences,
            "failed": self.failed,
            "seconds": seconds,
            "rate": rate,
            "left_seconds": max(0, self.total - done) / rate if self.total is not None and self.sentences else None,
            "memory_mb": memory_mb(),
            **about,
        }
        append_line(self.json_log, json.dumps(line, ensure_ascii=False))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def memory_mb() -> float | None:
    """What this process holds in memory now; None where the system does not say."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError):
        return None
