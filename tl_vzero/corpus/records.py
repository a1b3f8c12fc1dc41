"""What a corpus is read as: records in order, those that can be used and those that cannot."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Protocol, runtime_checkable

from tl_vzero.corpus.hashed import CheckedFile
from tl_vzero.errors import FileFormatError
from tl_vzero.files import check_header, parse_row

# Lines of a file as bytes, of which a huge one is never held.

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


LONGEST_ID = 1000  # characters
LONGEST_TEXT = 2**20  # characters: far past any context, and no memory to speak of

# Columns that may hold the sentence, where none is named.
TEXT_NAMES = ("text", "sentence")
ID_NAME = "id"


@dataclass(frozen=True, slots=True)
class Record:
    """One sentence or pair of the input. `position` counts the input's records from 0, also those that were refused.

    `second` is the second text of a pair.
    """

    position: int
    id: str
    text: str
    second: str | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """A record that gives no scores, and why."""

    position: int
    id: str
    reason: str


@dataclass(frozen=True)
class Origin:
    """What an input is, wherever it lies. `records` is about how many it holds, where that is known beforehand."""

    name: str
    format: str
    sha256: str
    n_bytes: int
    records: int | None
    text_column: str | None = None
    id_column: str | None = None
    second_text_column: str | None = None
    split: str | None = None


@runtime_checkable
class Source(Protocol):
    """An input that is read as a stream, from its beginning, as often as one likes.

    `raws` gives every record as it lies there, so that those of finished shards need not be understood again;
    `record` understands one.
    """

    @property
    def origin(self) -> Origin:
        """What the input is."""
        ...

    def raws(self) -> Iterator[Any]:
        """Every record, not yet understood."""
        ...

    def record(self, position: int, raw: Any) -> Record | Refused:
        """One record, understood or refused."""
        ...

    def check(self, *, contents: bool) -> None:
        """Raise FileFormatError where the input changed since it was hashed; looks into files where `contents`."""
        ...


def checked(position: int, text: object, given_id: object = None) -> Record | Refused:
    """A record whose text can be tokenised and written, or why it cannot.

    >>> checked(3, "the authors write.")
    Record(position=3, id='3', text='the authors write.', second=None)
    >>> checked(4, "a" + chr(0)).reason
    'the text holds a NUL character, first at 1'
    """
    name, fault = _id(position, given_id)
    fault = fault or _fault_of(text)
    if fault is not None or not isinstance(text, str):
        return Refused(position, name, fault or "no text")
    return Record(position, name, text)


def with_second(record: Record | Refused, text: object) -> Record | Refused:
    """A record with the second text of its pair; one without it is refused, as it is no pair.

    >>> with_second(checked(3, "the authors write."), None).reason
    'of the second text: no text'
    """
    if isinstance(record, Refused):
        return record
    fault = _fault_of(text)
    if fault is not None or not isinstance(text, str):
        return Refused(record.position, record.id, f"of the second text: {fault}")
    return replace(record, second=text)


def _id(position: int, given: object) -> tuple[str, str | None]:
    """The id as text, the position where there is none, and what is wrong with it."""
    if given is None or given == "":
        return str(position), None
    if isinstance(given, bool) or not isinstance(given, str | int):
        return str(position), f"the id is {type(given).__name__}: expected a text or an integer"
    try:
        name = str(given)
        name.encode("utf-8")
    except ValueError:  # surrogates, or an integer of thousands of digits
        return str(position), "the id cannot be written in UTF-8"
    if len(name) > LONGEST_ID:
        return str(position), f"the id has {len(name)} characters: expected at most {LONGEST_ID}"
    return name, None


def _fault_of(text: object) -> str | None:
    if text is None:
        return "no text"
    if not isinstance(text, str):
        return f"the text is {type(text).__name__}: expected a string"
    if not text.strip():
        return "the text is empty"
    if len(text) > LONGEST_TEXT:
        return f"the text has {len(text)} characters: expected at most {LONGEST_TEXT}"
    if "\0" in text:
        return f"the text holds a NUL character, first at {text.index(chr(0))}"
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        return f"the text is no UTF-8: {_escaped(text[error.start])} at character {error.start}"
    return None


def _escaped(character: str) -> str:
    """A surrogate in words: a byte that decoding kept, or half of a pair."""
    code = ord(character)
    return f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half of a surrogate pair, U+{code:04X},"


# Plain text, JSON lines and CSV as sources: whatever a record holds, the next one is read.

LOOKED_AT = 100  # lines, for the name of the column with the text


@dataclass(frozen=True)
class _ByLine:
    """A file whose records are its lines."""

    file: CheckedFile
    origin: Origin

    def raws(self) -> Iterator[bytes | TooLong]:
        """Every line, the empty ones too."""
        with self.file.open() as file:
            yield from Lines(file)

    def check(self, *, contents: bool) -> None:
        """Raise FileFormatError where the file changed; each byte was compared when it was read."""
        self.file.check()


@dataclass(frozen=True)
class TextLines(_ByLine):
    """A sentence on each line; its id is its position."""

    def record(self, position: int, raw: bytes | TooLong) -> Record | Refused:
        """The line as text."""
        text = _decoded(position, raw)
        return text if isinstance(text, Refused) else checked(position, text)


@dataclass(frozen=True)
class JsonLines(_ByLine):
    """A JSON object on each line, with the sentence in the column `origin.text_column`."""

    def record(self, position: int, raw: bytes | TooLong) -> Record | Refused:
        """The object's text or pair, and id."""
        text = _decoded(position, raw)
        if isinstance(text, Refused):
            return text
        row = _object(text)
        if isinstance(row, str):
            return Refused(position, str(position), row)
        given_id = row.get(self.origin.id_column or ID_NAME)
        if self.origin.text_column not in row:
            found = checked(position, "", given_id)
            return Refused(position, found.id, f"no column {self.origin.text_column!r}")
        found = checked(position, row[self.origin.text_column], given_id)
        second = self.origin.second_text_column
        return found if second is None else with_second(found, row.get(second))


def json_columns(checked: CheckedFile) -> list[str]:
    """The columns of the first object of a file of JSON lines that hold text; none where no line is an object."""
    with checked.open() as file:
        for line in islice(Lines(file), LOOKED_AT):
            text = _decoded(0, line)
            row = _object(text) if isinstance(text, str) else None
            if isinstance(row, dict) and row:
                return [name for name, value in row.items() if isinstance(value, str)]
    return []


def _decoded(position: int, raw: bytes | TooLong) -> str | Refused:
    if isinstance(raw, TooLong):
        return Refused(position, str(position), raw.reason)
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        reason = f"the line is no UTF-8: byte 0x{raw[error.start]:02x} at {error.start}"
        return Refused(position, str(position), reason)


def _object(text: str) -> dict[str, Any] | str:
    """A JSON object, or why the text is none."""
    if not text.strip():
        return "the line is empty"
    try:
        row = parse_row(text)
    except ValueError as error:
        return f"the line is no JSON: {error}"
    return row if isinstance(row, dict) else f"the line is {type(row).__name__}: expected an object with columns"


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row of a CSV file that cannot be read."""

    reason: str


class _LineTooLong(Exception):
    """Ends a CSV row in which a line is too long."""


class _CsvLines:
    """Lines as the csv module takes them. Bytes that are no UTF-8 are kept, for the check of the cell they are in."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        if isinstance(line, TooLong):
            raise _LineTooLong(line.reason)
        return line.decode("utf-8", "surrogateescape") + "\n"


@dataclass(frozen=True)
class CsvRows:
    """A table with a header, with the sentence in the column `origin.text_column`."""

    file: CheckedFile
    origin: Origin
    header: tuple[str, ...]

    def raws(self) -> Iterator[list[str] | BadRow]:
        """Every row after the header, and what cannot be read as one."""
        with self.file.open() as file:
            lines = Lines(file)
            rows = _rows(self.file.path, lines)
            next(rows, None)
            yield from rows

    def check(self, *, contents: bool) -> None:
        """Raise FileFormatError where the file changed; each byte was compared when it was read."""
        self.file.check()

    def record(self, position: int, raw: list[str] | BadRow) -> Record | Refused:
        """The row's text and id."""
        if isinstance(raw, BadRow):
            return Refused(position, str(position), raw.reason)
        if not raw:
            return Refused(position, str(position), "the line is empty")
        row = dict(zip(self.header, raw, strict=False))
        found = checked(position, row.get(self.origin.text_column or ""), row.get(self.origin.id_column or ID_NAME))
        if self.origin.second_text_column is not None:
            found = with_second(found, row.get(self.origin.second_text_column))
        if len(raw) != len(self.header):
            reason = f'{len(raw)} cells for {len(self.header)} columns: expected a sentence with commas in "quotes"'
            return Refused(position, found.id, reason)
        return found


def csv_header(checked: CheckedFile) -> tuple[str, ...]:
    """The header of a table; raises FileFormatError where there is none."""
    path = checked.path
    with checked.open() as file:
        header = next(_rows(path, Lines(file)), BadRow("the file has no lines"))
    if isinstance(header, BadRow) or not header:
        reason = header.reason if isinstance(header, BadRow) else "the first line is empty"
        raise FileFormatError(f"{path} has no header that can be read ({reason}): expected the names of its columns")
    check_header(path, header, _separator(path))
    return tuple(header)


def _rows(path: Path, lines: Lines) -> Iterator[list[str] | BadRow]:
    reader = csv.reader(_CsvLines(lines), strict=True, delimiter=_separator(path))
    while True:
        first = lines.number + 1
        try:
            yield next(reader)
        except StopIteration:
            return
        except (csv.Error, _LineTooLong) as error:
            # A quote that is never closed takes many lines with it: all are named.
            where = f"line {first}" if lines.number <= first else f"lines {first} to {lines.number}"
            yield BadRow(f"{where}: {error}")


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


def column_of(path: object, given: str | None, columns: list[str]) -> str:
    """The column with the sentence: the one named, `text` or `sentence`, or the only one that may be.

    Raises FileFormatError where it is not there or there are several.
    """
    if given is not None:
        if given not in columns:
            raise FileFormatError(
                f"{path} has no column {given!r} with text: expected one of {', '.join(columns) or 'none found'}"
            )
        return given
    usual = [name for name in TEXT_NAMES if name in columns]
    if usual or len(columns) == 1:
        return (usual or columns)[0]
    raise FileFormatError(
        f"{path} has the columns {', '.join(columns) or 'none'}: which holds the sentence? Expected its name as "
        "text_column (--text-column)"
    )
