"""Nothing of a corpus is read unchecked: its JSON files have types and bounds, and its input is hashed.

Whatever else lies there is an error in words. An input is hashed block by block before it is read. Every block is
compared again when it is read, so that no byte is used that is not what was hashed, whatever happens to the file
meanwhile.
"""

import hashlib
import io
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from tl_vzero.errors import FileFormatError
from tl_vzero.files import open_regular

FORMAT = "tl_vzero.corpus"
FORMAT_VERSION = "3"

LARGEST_MANIFEST, LARGEST_NOTE = 2**20, 2**16  # bytes; both have a few thousand
LONGEST_INTEGER = 19  # digits, those of 64 bits

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, lt=2**60)]
ShardIndex = Annotated[int, Field(ge=0, lt=2**40)]
Kind = TypeVar("Kind", bound=BaseModel)


class _Strict(BaseModel):
    """Plain data of exactly these types."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Input(_Strict):
    """What was read. More may be said of an input than is used here."""

    model_config = ConfigDict(extra="allow")

    format: str
    sha256: Hash
    bytes: Size


class _Options(_Strict):
    model_config = ConfigDict(extra="allow")

    methods: Annotated[dict[str, dict[str, JsonValue]], Field(min_length=1)]
    rows: Literal["all", "target", "summary"]
    shard_size: Annotated[int, Field(ge=1, lt=2**40)]


class Identity(_Strict):
    """What a corpus is of, of which a manifest and every shard hold a copy."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["tl_vzero.corpus"]
    version: Literal["3"]
    input: _Input
    model: dict[str, JsonValue]
    layers: Annotated[list[Annotated[int, Field(ge=0, lt=10_000)]], Field(min_length=1, max_length=10_000)]
    options: _Options
    versions: dict[str, JsonValue]


class Manifest(Identity):
    """The identity, and what is noted alongside."""

    begun: str
    input_name: str
    model_name: str | None


class _Method(_Strict):
    stage: Literal["raw", "rollout"]
    identity: bool


class About(_Strict):
    """What a shard says of itself."""

    manifest: dict[str, JsonValue]
    shard: ShardIndex
    methods: dict[str, _Method]
    n_layers: Annotated[int, Field(ge=1, lt=10_000)]


class Written(_Strict):
    """A file as it was written. By the hashes of its pieces a damaged file is told from another one."""

    n_bytes: Size
    sha256: Hash
    pieces: Annotated[list[Hash], Field(max_length=64)]


class Done(_Strict):
    """That a shard is finished: of which corpus it is, and its files."""

    format: Literal["tl_vzero.corpus.shard"]
    corpus: Hash
    shard: ShardIndex
    rows: Size
    failed: Size
    scores: Written
    errors: Written | None


class Failed(_Strict):
    """A line of an errors file: a record without scores."""

    position: Size
    id: Annotated[str, Field(min_length=1, max_length=2**20)]
    reason: str


def parsed(kind: type[Kind], content: bytes | str, what: object) -> Kind:
    """JSON of a kind, checked; raises FileFormatError for anything else."""
    return validated(kind, parsed_object(content, what), what)


def validated(kind: type[Kind], plain: Mapping[str, Any], what: object) -> Kind:
    """Plain data of a kind, checked; raises FileFormatError that says what is wrong first, without the data."""
    try:
        return kind.model_validate(plain)
    except RecursionError as error:
        raise FileFormatError(f"{what} cannot be read: it is nested too deep") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]
        raise FileFormatError(f"{what} cannot be read: {fault}") from error


def parsed_object(content: bytes | str, what: object) -> dict[str, Any]:
    """A JSON object; raises FileFormatError for anything else, however deep or long."""
    try:
        plain = json.loads(content, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{what} cannot be read: it is no JSON ({type(error).__name__})") from error
    if not isinstance(plain, dict):
        raise FileFormatError(f"{what} cannot be read: it is {type(plain).__name__}, expected an object")
    return plain


def _integer(digits: str) -> int:
    if len(digits.removeprefix("-")) > LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a small file; raises FileFormatError where it is large, no regular file or cannot be read."""
    try:
        with open_regular(path, follow_links=False) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    if len(content) > limit:
        raise FileFormatError(f"{path} has more than {limit} bytes: expected a file that `tl-vzero corpus` wrote")
    return content


def corpus_hash(identity: Mapping[str, Any]) -> str:
    """The name of a corpus in its files: SHA-256 of what it is of."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


# Files that are hashed while they are written, and files of which only what was hashed is read.

BLOCK = 2**20  # bytes

# Where the pieces of a file end that tell a damaged one from another one: bytes 0 to 64, 64 to 128, 128 to 256, ...
# Later bytes are no part of a piece.
ENDS = [0, *(2**power for power in range(6, 21))]
PIECES_END = ENDS[-1]


class InputChanged(FileFormatError):
    """A file is no longer what it was when it was hashed."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} changed while it was read: expected a file that nobody writes to; restore it, or start anew on "
            "what it is now with another folder"
        )


class Pieces:
    """SHA-256 of bytes that come in parts: of all of them, and of each piece."""

    def __init__(self) -> None:
        self._whole, self._beginning = hashlib.sha256(), bytearray()
        self.n_bytes = 0

    def update(self, part: memoryview) -> None:
        """Hash the next part."""
        self._whole.update(part)
        self._beginning += part[: PIECES_END - len(self._beginning)]
        self.n_bytes += len(part)

    @property
    def written(self) -> Written:
        """Length and hashes, as a note has them; the last piece may be cut short."""
        pieces = (self._beginning[start:end] for start, end in pairwise(ENDS))
        hashes = [hashlib.sha256(piece).hexdigest() for piece in pieces if piece]
        return Written(n_bytes=self.n_bytes, sha256=self._whole.hexdigest(), pieces=hashes)


def hashes_of(file: BinaryIO) -> Written:
    """The hashes of a file that is open at its beginning."""
    hashed = Pieces()
    for block in _blocks(file):
        hashed.update(memoryview(block))
    return hashed.written


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(BLOCK), b"")


class HashedFile(io.RawIOBase):
    """Writes to an open file from its beginning to its end, hashing on the way; `discard` has it take no more."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hashed = Pieces()
        self.discard = False

    def writable(self) -> bool:
        return True

    def write(self, content: object) -> int:
        view = memoryview(content).cast("B")  # type: ignore[arg-type]
        if not self.discard:
            self._file.write(view)
            self._hashed.update(view)
        return len(view)

    def tell(self) -> int:
        """How much was written."""
        return self._hashed.n_bytes

    def sync(self) -> Written:
        """Have all on the disk; its hashes."""
        self._file.flush()
        os.fsync(self._file.fileno())
        return self._hashed.written

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
        self.blocks: list[bytes] = []  # the hash of each
        self.n_bytes, self.n_lines = 0, 0
        whole, last = hashlib.sha256(), b"\n"
        with self._opened() as file:
            self._state = _state(os.fstat(file.fileno()))
            for block in _blocks(file):
                whole.update(block)
                self.blocks.append(hashlib.sha256(block).digest())
                self.n_bytes += len(block)
                self.n_lines += block.count(b"\n")
                last = block[-1:]
        self.n_lines += last != b"\n"
        self.sha256 = whole.hexdigest()

    def open(self) -> BinaryIO:
        """Open it for reading; reading raises InputChanged where it is no longer what was hashed."""
        try:
            return io.BufferedReader(_CheckedReader(self, self._opened()), BLOCK)
        except (OSError, FileFormatError) as error:
            raise InputChanged(self.path) from error

    def check(self) -> None:
        """Raise InputChanged where the file is no longer what was hashed, by its time and size, then its content."""
        state = None
        with suppress(OSError, FileFormatError), self._opened() as file:
            stat = os.fstat(file.fileno())
            has_same_size = stat.st_size == self.n_bytes
            if _state(stat) == self._state or (has_same_size and hashes_of(file).sha256 == self.sha256):
                state = _state(stat)
        if state is None:
            raise InputChanged(self.path)
        self._state = state

    def _opened(self) -> BinaryIO:
        return open_regular(self.path, follow_links=self._follow_links)


class _CheckedReader(io.RawIOBase):
    """Reads a file a block at a time, comparing each block with its hash."""

    mode = "rb"  # with its name, what makes a reader a file

    def __init__(self, checked: CheckedFile, file: BinaryIO) -> None:
        self.name = str(checked.path)
        self._checked, self._file = checked, file
        self._position = 0
        self._block_index, self._block = -1, b""

    def readable(self) -> bool:
        return True

    seekable = readable

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._checked.n_bytes}[whence]
        self._position = max(0, start + offset)
        return self._position

    def readinto(self, buffer: object) -> int:
        """The next bytes, of one block at most."""
        view = memoryview(buffer).cast("B")  # type: ignore[arg-type]
        index, start = divmod(self._position, BLOCK)
        if index != self._block_index:
            self._block_index, self._block = index, self._read(index)
        part = self._block[start : start + len(view)]
        view[: len(part)] = part
        self._position += len(part)
        return len(part)

    def _read(self, index: int) -> bytes:
        try:
            self._file.seek(index * BLOCK)
            block = self._file.read(BLOCK)
        except OSError as error:
            raise FileFormatError(f"{self._checked.path} cannot be read: {error}") from error
        expected = self._checked.blocks[index : index + 1]  # none past the end
        if ([hashlib.sha256(block).digest()] if block else []) != expected:
            raise InputChanged(self._checked.path)
        return block

    def close(self) -> None:
        self._file.close()
        super().close()


class CheckedFolder:
    """The files of a folder that a library reads by itself: hidden ones are no part of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._states = self._states_now()
        self.sha256, self.n_bytes = self._hashed()

    def check(self, *, contents: bool) -> None:
        """Raise InputChanged where a file is no longer what was hashed, by its time and size or by its contents.

        Contents are looked at where a time differs, and always with `contents`.
        """
        states = None
        with suppress(OSError, FileFormatError):
            now = self._states_now()
            if (now == self._states and not contents) or self._hashed()[0] == self.sha256:
                states = now
        if states is None:
            raise InputChanged(self.folder)
        self._states = states

    def _files(self) -> list[Path]:
        return sorted(path for path in self.folder.rglob("*") if path.is_file() and not path.name.startswith("."))

    def _states_now(self) -> list[tuple[Path, object]]:
        return [(path, _state(path.stat())) for path in self._files()]

    def _hashed(self) -> tuple[str, int]:
        digest, n_bytes = hashlib.sha256(), 0
        for path in self._files():
            digest.update(os.fsencode(path.relative_to(self.folder).as_posix()) + b"\0")
            with open_regular(path) as file:
                for block in _blocks(file):
                    digest.update(block)
                    n_bytes += len(block)
        return digest.hexdigest(), n_bytes


def _state(stat: os.stat_result) -> object:
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns
