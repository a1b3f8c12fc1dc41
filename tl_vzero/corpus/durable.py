"""Files that are whole or not there, also after the machine went down.

A file is written aside, synced, and then gets its name, which nothing may have: so nobody's file is ever replaced.
What is written aside bears the name of the corpus, a hash, and random digits: no two processes write one such file, and
what an interruption left is told from files of others.
"""

import errno
import os
import re
from pathlib import Path
from uuid import uuid4

PARTIAL = ".partial"
_PARTIAL_NAME = re.compile(r"\.(?P<name>[^/]+)\.(?P<corpus>[0-9a-f]{64})-[0-9a-f]{32}\.partial")


def partial_path(path: Path, corpus: str) -> Path:
    """Where a file is written until it is whole; hidden, so that no reader of the folder takes it for a part of it."""
    return path.with_name(f".{path.name}.{corpus}-{uuid4().hex}{PARTIAL}")


def parts_of_partial(name: str) -> tuple[str, str] | None:
    """The name and the corpus of the file that is written aside by this name; None for what no run names so.

    >>> parts_of_partial(partial_path(Path("done/00000.json"), "0" * 64).name)[0]
    '00000.json'
    """
    match = _PARTIAL_NAME.fullmatch(name)
    return None if match is None else (match["name"], match["corpus"])


def write_new(path: Path, corpus: str, content: bytes) -> None:
    """Write a small file whole or not at all; raises FileExistsError where something has its name."""
    partial = partial_path(path, corpus)
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Give a whole file its name, and have that on the disk too; raises FileExistsError where something has it.

    The partial name may stay, for the caller to take away.
    """
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, or an error that the next lines meet too
        if path.is_symlink() or path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        partial.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
