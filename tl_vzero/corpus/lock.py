"""One run at a time in a folder: every process of a launch holds a lock file from before its first change to its end.

The operating system holds the lock and frees it when its process ends, however that ends and in whichever container it
was. So no lock is ever stale, and none is judged by age or by the number of a process. Lock files are empty, and stay.

1. Rank 0 takes its lock, and sees that no other lock of the folder is held: processes of an earlier launch may be at
   work after their rank 0 was killed.
2. The other ranks take theirs, and work begins once all have them (see `Ranks.meet`). Where rank 0 dies between the
   two, another launch may have begun, and those that wait for it give up.
"""

import errno
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, SoftFileLock, Timeout

from tl_vzero.errors import InputError, OutputPathError

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


def check_free(paths: list[Path]) -> None:
    """Raise InputError where a process holds one of these lock files."""
    for path in paths:
        with ExitStack() as at_once:
            take_lock(path, at_once)
