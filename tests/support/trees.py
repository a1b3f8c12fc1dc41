"""What lies in a folder, to the last bit and without following a link."""

import os
from pathlib import Path
from typing import Any


def tree(folder: Path) -> dict[str, Any]:
    """Of every entry its kind, time, contents, link target and hard links; times of reading are none of it."""
    entries: dict[str, Any] = {}
    for path in sorted([folder, *folder.rglob("*")]):
        about = path.lstat()
        held: Any = None
        if path.is_symlink():
            held = os.readlink(path)  # noqa: PTH115
        elif path.is_file():
            held = path.read_bytes()
        name = path.relative_to(folder).as_posix()
        entries[name] = (about.st_mode, about.st_ino, about.st_nlink, about.st_mtime_ns, held)
    return entries
