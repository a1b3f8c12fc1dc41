"""Plain text, JSON lines and CSV as sources: whatever a record holds, the next one is read."""

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from tl_vzero.corpus.hashed import CheckedFile
from tl_vzero.corpus.lines import Lines, TooLong
from tl_vzero.corpus.records import ID_NAME, TEXT_NAMES, Origin, Record, Refused, checked, with_second
from tl_vzero.errors import FileFormatError
from tl_vzero.files import check_header, parse_row

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
