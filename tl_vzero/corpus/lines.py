"""Lines of a file as bytes, of which a huge one is never held."""

from dataclasses import dataclass
from typing import BinaryIO

LONGEST_LINE = 2**20  # bytes
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class TooLong:
    """A line that was passed over: how many bytes it has."""

    n_bytes: int

    @property
    def reason(self) -> str:
        """Why it is refused."""
        return f"the line has {self.n_bytes} bytes: expected at most {LONGEST_LINE}"


class Lines:
    """An iterator over a file's lines without their ends; `number` counts what was read, from 1."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.number = 0

    def __iter__(self) -> "Lines":
        return self

    def __next__(self) -> bytes | TooLong:
        line = self._file.readline(LONGEST_LINE + 2)
        if not line:
            raise StopIteration
        self.number += 1
        if self.number == 1:
            line = line.removeprefix(BYTE_ORDER_MARK)
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(content) <= LONGEST_LINE:
            return content
        return TooLong(len(content) if line.endswith(b"\n") else len(line) + self._rest())

    def _rest(self) -> int:
        """Pass over the rest of a line, and count it."""
        passed = 0
        while part := self._file.readline(LONGEST_LINE):
            if part.endswith(b"\n"):
                return passed + len(part) - 1
            passed += len(part)
        return passed
