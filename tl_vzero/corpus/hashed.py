"""Files that are hashed while they are written, and files of which only what was hashed is read.

A file is hashed block by block before it is read. Every block is compared again when it is read, so that no byte is
used that is not what was hashed, whatever happens to the file meanwhile.
"""

import hashlib
import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from tl_vzero.errors import FileFormatError
from tl_vzero.files import open_regular

BLOCK = 2**20  # bytes

# Pieces of a file that tell a damaged one from another one: bytes 0 to 64, 64 to 128, 128 to 256, ... Later bytes are
# no part of a piece, so that writing hashes little twice.
FIRST_PIECE, PIECES_END = 64, 2**20


class InputChanged(FileFormatError):
    """A file is no longer what it was when it was hashed."""


class Pieces:
    """SHA-256 of bytes that come in parts: of all of them, and of each piece."""

    def __init__(self) -> None:
        self._whole, self._piece = hashlib.sha256(), hashlib.sha256()
        self._ended: list[str] = []
        self._end = FIRST_PIECE
        self.n_bytes = 0

    def update(self, view: memoryview) -> None:
        """Hash the next part."""
        self._whole.update(view)
        rest = view
        start = self.n_bytes
        self.n_bytes += len(view)
        while start < PIECES_END and len(rest):
            part = rest[: self._end - start]
            self._piece.update(part)
            start, rest = start + len(part), rest[len(part) :]
            if start == self._end:
                self._ended.append(self._piece.hexdigest())
                self._piece, self._end = hashlib.sha256(), 2 * self._end

    @property
    def sha256(self) -> str:
        """SHA-256 of all bytes."""
        return self._whole.hexdigest()

    @property
    def pieces(self) -> list[str]:
        """SHA-256 of each piece, the last one perhaps cut short."""
        cut_short = self.n_bytes < PIECES_END and self.n_bytes > (self._end // 2 if self._ended else 0)
        return [*self._ended, self._piece.hexdigest()] if cut_short else list(self._ended)


def pieces_of(file: BinaryIO) -> Pieces:
    """The hashes of a file that is open at its beginning."""
    hashed = Pieces()
    while part := file.read(BLOCK):
        hashed.update(memoryview(part))
    return hashed


class HashedFile(io.RawIOBase):
    """Writes to an open file from its beginning to its end, hashing on the way; `discard` has it take no more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.hashed = Pieces()
        self.discard = False

    def writable(self) -> bool:
        """Always."""
        return True

    def write(self, content: object) -> int:
        """Write and hash."""
        view = memoryview(content).cast("B")  # type: ignore[arg-type]
        if not self.discard:
            self._file.write(view)
            self.hashed.update(view)
        return len(view)

    def tell(self) -> int:
        """How much was written."""
        return self.hashed.n_bytes

    def flush(self) -> None:
        """Nothing: `sync` has it on the disk."""

    def sync(self) -> Pieces:
        """Have all on the disk; its hashes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self.hashed

    def close(self) -> None:
        """Close the file; what a full disk did not take of a discarded one is no loss."""
        try:
            self._file.close()
        except OSError:
            if not self.discard:
                raise
        super().close()


class CheckedFile:
    """A file that was hashed: it may be read as often as one likes, and what is read is what was hashed.

    Raises FileFormatError for what is no regular file, OSError where it cannot be read.
    """

    def __init__(self, path: Path, *, follow_links: bool = True) -> None:
        self.path, self._follow_links = path, follow_links
        whole = hashlib.sha256()
        self._blocks: list[bytes] = []
        self.n_bytes, self.n_lines = 0, 0
        last = b"\n"
        with self._opened() as file:
            self._state = _state(file)
            while part := file.read(BLOCK):
                whole.update(part)
                self._blocks.append(hashlib.sha256(part).digest())
                self.n_bytes += len(part)
                self.n_lines += part.count(b"\n")
                last = part[-1:]
        self.n_lines += last != b"\n"
        self.sha256 = whole.hexdigest()

    def open(self) -> BinaryIO:
        """Open it for reading; reading raises FileFormatError where it is no longer what was hashed."""
        try:
            opened = self._opened()
        except (OSError, FileFormatError) as error:
            raise changed(self.path) from error
        return io.BufferedReader(_CheckedReader(self, opened, self._blocks), BLOCK)

    def check(self) -> None:
        """Raise FileFormatError where the file is no longer what was hashed, by its time and size, then its content."""
        try:
            with self._opened() as file:
                state = _state(file)
                same = state == self._state or (
                    os.fstat(file.fileno()).st_size == self.n_bytes and pieces_of(file).sha256 == self.sha256
                )
        except (OSError, FileFormatError) as error:
            raise changed(self.path) from error
        if not same:
            raise changed(self.path)
        self._state = state

    def _opened(self) -> BinaryIO:
        return open_regular(self.path, follow_links=self._follow_links)


class _CheckedReader(io.RawIOBase):
    """Reads a file a block at a time, comparing each block with its hash."""

    mode = "rb"  # with its name, what makes a reader a file

    def __init__(self, of: CheckedFile, file: BinaryIO, blocks: Sequence[bytes]) -> None:
        self.name = str(of.path)
        self._of, self._file, self._blocks = of, file, blocks
        self._position = 0
        self._held: tuple[int, bytes] = (-1, b"")

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position."""
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._of.n_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """The position."""
        return self._position

    def readinto(self, buffer: object) -> int:
        """The next bytes, of one block at most."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        number, start = divmod(self._position, BLOCK)
        part = self._block(number)[start : start + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _block(self, number: int) -> bytes:
        if number != self._held[0]:
            try:
                self._file.seek(number * BLOCK)
                content = self._file.read(BLOCK)
            except OSError as error:
                raise FileFormatError(f"{self._of.path} cannot be read: {error}") from error
            is_one = number < len(self._blocks)
            if bool(content) != is_one or (is_one and hashlib.sha256(content).digest() != self._blocks[number]):
                raise changed(self._of.path)
            self._held = number, content
        return self._held[1]

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class CheckedFolder:
    """The files of a folder that a library reads by itself: hidden ones are no part of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._states = self._states_now()
        self.sha256, self.n_bytes = self._hashed()

    def check(self, *, contents: bool) -> None:
        """Raise FileFormatError where a file is no longer what was hashed, by its time and size or by its contents.

        Contents are looked at where a time differs, and always with `contents`.
        """
        try:
            states = self._states_now()
            same = (states == self._states and not contents) or self._hashed()[0] == self.sha256
        except (OSError, FileFormatError) as error:
            raise changed(self.folder) from error
        if not same:
            raise changed(self.folder)
        self._states = states

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith("."))

    def _states_now(self) -> list[tuple[Path, object]]:
        return [(path, _state_of(path.stat())) for path in self._files()]

    def _hashed(self) -> tuple[str, int]:
        digest, total = hashlib.sha256(), 0
        for path in self._files():
            digest.update(os.fsencode(path.relative_to(self.folder).as_posix()) + b"\0")
            with open_regular(path) as file:
                while part := file.read(BLOCK):
                    digest.update(part)
                    total += len(part)
        return digest.hexdigest(), total


def changed(path: Path) -> InputChanged:
    """The error for what is no longer what was hashed."""
    return InputChanged(
        f"{path} changed while it was read: expected a file that nobody writes to; restore it, or start anew on what "
        "it is now with another folder"
    )


def _state(file: BinaryIO) -> object:
    return _state_of(os.fstat(file.fileno()))


def _state_of(stat: os.stat_result) -> object:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
