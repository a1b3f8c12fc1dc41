"""Files that are whole or not there, also after the machine went down: written aside, synced, renamed."""

import hashlib
import io
import os
import socket
from pathlib import Path

PARTIAL = ".partial"


def partial_path(path: Path) -> Path:
    """Where a file is written until it is whole; hidden, so that no reader of the folder takes it for a part of it."""
    return path.with_name(f".{path.name}.{socket.gethostname()}-{os.getpid()}{PARTIAL}")


def partial_files(folder: Path) -> list[Path]:
    """What interrupted writing left in a folder."""
    return sorted(folder.glob(f".*{PARTIAL}"))


def write_durably(path: Path, content: bytes) -> None:
    """Write a small file whole or not at all."""
    partial = partial_path(path)
    try:
        with partial.open("wb") as file:
            file.write(content)
            sync(file)
        rename_durably(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def sync(file: io.IOBase) -> None:
    """Have a file's content on the disk."""
    file.flush()
    os.fsync(file.fileno())


def rename_durably(partial: Path, path: Path) -> None:
    """Give a whole file its name, and have that on the disk too."""
    partial.replace(path)
    try:
        folder = os.open(path.parent, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class HashedFile(io.RawIOBase):
    """A file to be written from its beginning to its end, hashed on the way; `discard` has it take no more."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self._digest = hashlib.sha256()
        self.n_bytes = 0
        self.discard = False

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: object) -> int:
        """Write and hash."""
        view = memoryview(content).cast("B")  # type: ignore[arg-type]
        if not self.discard:
            self._file.write(view)
            self._digest.update(view)
            self.n_bytes += len(view)
        return len(view)

    def tell(self) -> int:
        """How much was written."""
        return self.n_bytes

    def flush(self) -> None:
        """Nothing: `sync` has it on the disk."""

    def sync(self) -> str:
        """Have all on the disk; its SHA-256."""
        sync(self._file)
        return self._digest.hexdigest()

    def close(self) -> None:
        """Close the file; what a full disk did not take of a discarded one is no loss."""
        try:
            self._file.close()
        except OSError:
            if not self.discard:
                raise
        super().close()
