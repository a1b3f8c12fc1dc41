"""The input of a corpus: opened with the hash that a resumed run checks, and read as records, in order.

Text, JSON lines, CSV, Parquet and Hugging Face datasets. Whatever a record holds, the next one is read: one that
cannot be used is refused, with the reason.
"""

import csv
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import islice, repeat
from pathlib import Path
from typing import Any, BinaryIO, Literal, get_args

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from huggingface_hub import HfApi

from tl_vzero.choices import one_of
from tl_vzero.corpus.checked import CheckedFile, CheckedFolder
from tl_vzero.errors import FileFormatError, InputError, InputTypeError, OfflineError, foreign_errors_as
from tl_vzero.files import check_header, parse_row

LONGEST_LINE = 2**20  # bytes
LONGEST_ID = 1000  # characters
LONGEST_TEXT = 2**20  # characters: far past any context, and no memory to speak of
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
SAMPLED_LINES = 100  # for the name of the column with the text

# Columns that may hold the sentence, where none is named.
TEXT_NAMES = ("text", "sentence")
ID_NAME = "id"

InputFormat = Literal["text", "jsonl", "csv", "parquet", "datasets"]
SUFFIXES: dict[str, InputFormat] = {
    ".txt": "text",
    ".text": "text",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
}
OTHER_ENCODINGS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
TEXT_TYPES = ("string", "large_string")
ROWS_PER_BATCH = 1024


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


class Unreadable(Exception):
    """A line, row or cell that cannot be read, and why."""


@dataclass(frozen=True)
class Origin:
    """What an input is, wherever it lies. `records` is about how many it holds, where that is known beforehand."""

    name: str
    format: str
    sha256: str
    n_bytes: int
    records: int | None
    text_column: str | None = None
    second_text_column: str | None = None
    id_column: str | None = None
    split: str | None = None

    @property
    def text_columns(self) -> list[str]:
        """The column with the sentence and, of pairs, the one with the second text."""
        return [name for name in (self.text_column, self.second_text_column) if name is not None]


@dataclass(frozen=True)
class Source(ABC):
    """An input that is read as a stream, from its beginning, as often as one likes.

    `raws` gives every record as it lies there, so that those of finished shards need not be understood again;
    `record` understands one.
    """

    origin: Origin

    @abstractmethod
    def raws(self) -> Iterator[Any]:
        """Every record, not yet understood; raises FileFormatError where the input is damaged or changed."""

    @abstractmethod
    def fields(self, raw: Any) -> Iterator[object]:
        """The id of a record, then its text or two texts; raises Unreadable."""

    @abstractmethod
    def check(self, *, contents: bool) -> None:
        """Raise FileFormatError where the input changed since it was hashed; looks into files where `contents`."""

    def record(self, position: int, raw: Any) -> Record | Refused:
        """One record, whose text or two texts can be tokenised and written, or why they cannot."""
        name = str(position)
        try:
            if isinstance(raw, Unreadable):
                raise raw
            fields = self.fields(raw)
            name = _id(next(fields)) or name
            texts = [_text(which, text) for which, text in zip(("", "of the second text: "), fields, strict=False)]
        except Unreadable as error:
            return Refused(position, name, str(error))
        return Record(position, name, *texts)

    def texts(self) -> Iterator[str | tuple[str, str]]:
        """The text or pair of every record; raises FileFormatError for one that has none."""
        for position, raw in enumerate(self.raws()):
            record = self.record(position, raw)
            if isinstance(record, Refused):
                raise FileFormatError(f"{self.origin.name}, record {record.id}: {record.reason}; take it out")
            yield record.text if record.second is None else (record.text, record.second)

    def fields_of_row(self, row: Mapping[str, Any], fault: str = "") -> Iterator[object]:
        """The fields of a row with named columns, of which only the id is readable where it has a fault."""
        yield row.get(self.origin.id_column or ID_NAME)
        if fault:
            raise Unreadable(fault)
        yield from map(row.get, self.origin.text_columns)


def _id(record_id: object) -> str:
    """An id as text, empty where there is none."""
    if record_id is None:
        return ""
    if isinstance(record_id, bool) or not isinstance(record_id, str | int):
        raise Unreadable(f"the id is {type(record_id).__name__}: expected a text or an integer")
    try:
        name = str(record_id)
        name.encode("utf-8")
    except ValueError:  # surrogates, or an integer of thousands of digits
        raise Unreadable("the id cannot be written in UTF-8") from None
    if len(name) > LONGEST_ID:
        raise Unreadable(f"the id has {len(name)} characters: expected at most {LONGEST_ID}")
    return name


def _text(which: str, text: object) -> str:
    """A text that can be tokenised and written."""
    if text is None:
        raise Unreadable(f"{which}no text")
    if not isinstance(text, str):
        raise Unreadable(f"{which}the text is {type(text).__name__}: expected a string")
    if not text.strip():
        raise Unreadable(f"{which}the text is empty")
    if len(text) > LONGEST_TEXT:
        raise Unreadable(f"{which}the text has {len(text)} characters: expected at most {LONGEST_TEXT}")
    if "\0" in text:
        raise Unreadable(f"{which}the text holds a NUL character, first at {text.index(chr(0))}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        code = ord(text[error.start])  # a byte that decoding kept, or half of a pair
        what = f"byte 0x{code - 0xDC00:02x}" if 0xDC80 <= code <= 0xDCFF else f"half of a surrogate pair, U+{code:04X},"
        raise Unreadable(f"{which}the text is no UTF-8: {what} at character {error.start}") from None
    return text


@dataclass(frozen=True)
class FileSource(Source):
    """A file, of which each byte is compared with its hash when it is read."""

    file: CheckedFile

    def check(self, *, contents: bool) -> None:
        self.file.check()


def lines_of(file: BinaryIO) -> Iterator[bytes | Unreadable]:
    """The lines of a file that is open at its beginning, without their ends; empty ones at the end are none."""
    n_empty = 0
    for line in _all_lines(file):
        if line == b"":
            n_empty += 1
        else:
            yield from repeat(b"", n_empty)
            yield line
            n_empty = 0


def _all_lines(file: BinaryIO) -> Iterator[bytes | Unreadable]:
    """Every line; a huge one is never held."""
    is_first = True
    while line := file.readline(LONGEST_LINE + 2):
        if is_first:
            line, is_first = line.removeprefix(BYTE_ORDER_MARK), False
        content = line.removesuffix(b"\n").removesuffix(b"\r")
        if len(content) <= LONGEST_LINE:
            yield content
            continue
        n_bytes = len(content) if line.endswith(b"\n") else len(line)
        while not line.endswith(b"\n") and (line := file.readline(LONGEST_LINE)):
            n_bytes += len(line.removesuffix(b"\n"))
        yield Unreadable(f"the line has {n_bytes} bytes: expected at most {LONGEST_LINE}")


class TextLines(FileSource):
    """A sentence on each line; its id is its position."""

    def raws(self) -> Iterator[bytes | Unreadable]:
        with self.file.open() as file:
            yield from lines_of(file)

    def fields(self, raw: bytes) -> Iterator[object]:
        return iter((None, _decoded(raw)))


class JsonLines(TextLines):
    """A JSON object on each line, with the sentence in the column `origin.text_column`."""

    def fields(self, raw: bytes) -> Iterator[object]:
        row, column = _object(raw), self.origin.text_column
        return self.fields_of_row(row, "" if column in row else f"no column {column!r}")


def json_columns(file: CheckedFile) -> list[str]:
    """The columns of the first object of a file of JSON lines that hold text; none where no line is an object."""
    with file.open() as opened:
        for line in islice(lines_of(opened), SAMPLED_LINES):
            with suppress(Unreadable):
                if isinstance(line, bytes) and (row := _object(line)):
                    return [name for name, value in row.items() if isinstance(value, str)]
    return []


def _decoded(line: bytes) -> str:
    try:
        return line.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Unreadable(f"the line is no UTF-8: byte 0x{line[error.start]:02x} at {error.start}") from None


def _object(line: bytes) -> dict[str, Any]:
    """The JSON object on a line."""
    text = _decoded(line)
    if not text.strip():
        raise Unreadable("the line is empty")
    try:
        row = parse_row(text)
    except ValueError as error:
        raise Unreadable(f"the line is no JSON: {error}") from None
    if not isinstance(row, dict):
        raise Unreadable(f"the line is {type(row).__name__}: expected an object with columns")
    return row


@dataclass(frozen=True)
class CsvRows(FileSource):
    """A table with a header, with the sentence in the column `origin.text_column`."""

    header: tuple[str, ...]

    def raws(self) -> Iterator[list[str] | Unreadable]:
        with self.file.open() as file:
            yield from islice(_csv_rows(self.file.path, file), 1, None)

    def fields(self, raw: list[str]) -> Iterator[object]:
        if not raw:
            raise Unreadable("the line is empty")
        counts = f"{len(raw)} cells for {len(self.header)} columns"
        fault = "" if len(raw) == len(self.header) else f'{counts}: expected a sentence with commas in "quotes"'
        return self.fields_of_row(dict(zip(self.header, raw, strict=False)), fault)


def csv_header(file: CheckedFile) -> tuple[str, ...]:
    """The header of a table; raises FileFormatError where there is none."""
    with file.open() as opened:
        header = next(_csv_rows(file.path, opened), Unreadable("the file has no lines")) or "the first line is empty"
    if not isinstance(header, list):
        raise FileFormatError(
            f"{file.path} has no header that can be read ({header}): expected the names of its columns"
        )
    check_header(file.path, header, _separator(file.path))
    return tuple(header)


def _csv_rows(path: Path, file: BinaryIO) -> Iterator[list[str] | Unreadable]:
    reader = csv.reader(map(_csv_line, lines_of(file)), strict=True, delimiter=_separator(path))
    n_too_long = 0  # lines that the reader does not count
    while True:
        first = reader.line_num + n_too_long + 1
        try:
            yield next(reader)
        except StopIteration:
            return
        except (csv.Error, Unreadable) as error:
            n_too_long += isinstance(error, Unreadable)
            last = reader.line_num + n_too_long
            # A quote that is never closed takes many lines with it: all are named.
            where = f"line {first}" if last <= first else f"lines {first} to {last}"
            yield Unreadable(f"{where}: {error}")


def _csv_line(line: bytes | Unreadable) -> str:
    """A line as the csv module takes it. Bytes that are no UTF-8 stay, for the check of the cell they are in."""
    if isinstance(line, Unreadable):
        raise line
    return line.decode("utf-8", "surrogateescape") + "\n"


def _separator(path: Path) -> str:
    return "\t" if path.suffix.lower() == ".tsv" else ","


class ParquetRows(FileSource):
    """A Parquet file, with the sentence in the column `origin.text_column`."""

    def raws(self) -> Iterator[tuple[object, ...]]:
        # Of every row its id and its texts, these still as bytes.
        id_column, texts = self.origin.id_column, self.origin.text_columns
        names = texts if id_column is None else [*texts, id_column]
        with _opened_parquet(self.file, "to its end ") as file:
            for batch in file.iter_batches(ROWS_PER_BATCH, columns=names):
                ids = [None] * len(batch) if id_column is None else _plain(batch.column(id_column))
                # As bytes, so that a text that is no UTF-8 is one refused record, not the end of the file.
                columns = [batch.column(name).cast(pa.large_string()).cast(pa.large_binary()) for name in texts]
                yield from zip(ids, *(column.to_pylist() for column in columns), strict=True)

    def fields(self, raw: tuple[Any, ...]) -> Iterator[object]:
        yield raw[0]
        yield from (None if text is None else text.decode("utf-8", "surrogateescape") for text in raw[1:])


@contextmanager
def _opened_parquet(file: CheckedFile, how_far: str = "") -> Iterator[Any]:
    """A Parquet file to read; raises FileFormatError for whatever damaged bytes lead to within."""
    try:
        with file.open() as stream, pq.ParquetFile(stream) as opened:
            yield opened
    except (pa.ArrowException, OSError) as error:
        raise FileFormatError(f"{file.path} cannot be read {how_far}({error}): expected a Parquet file") from error


def _plain(column: Any) -> list[object]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        return [value.decode("utf-8", "surrogateescape") for value in column.cast(pa.large_binary()).to_pylist()]


@dataclass(frozen=True)
class DatasetRows(Source):
    """A dataset of the package `datasets`, with the sentence in the column `origin.text_column`."""

    rows: Any
    folder: CheckedFolder | None = None

    def raws(self) -> Iterator[Any]:
        with foreign_errors_as(FileFormatError, f"the dataset {self.origin.name!r} cannot be read to its end"):
            try:
                yield from self.rows
            except Exception:
                self.check(contents=True)  # that a file changed tells more
                raise

    def fields(self, raw: Mapping[str, Any]) -> Iterator[object]:
        return self.fields_of_row(raw)

    def check(self, *, contents: bool) -> None:
        if self.folder is not None:  # what the hub has at a commit does not change
            self.folder.check(contents=contents)


def open_source(
    source: str | Path,
    input_format: str | None = None,
    text_column: str | None = None,
    second_text_column: str | None = None,
    id_column: str | None = None,
    config: str | None = None,
    split: str | None = None,
) -> Source:
    """An input as a stream of records.

    `source` is a file (.txt, .jsonl, .csv, .tsv, .parquet), a folder that the package `datasets` reads or, with
    `input_format="datasets"`, a name on the hub. The sentence is in `text_column` (default: `text`, `sentence`, or the
    only column of text), its id in `id_column` (default: `id`, else its position). With `second_text_column` each
    record is a pair, whose second text is there.

    Raises FileFormatError for what cannot be read, InputError or InputTypeError for bad arguments.
    """
    kind = _format_of(source, input_format)
    if second_text_column is not None and second_text_column == text_column:
        raise InputError(f"text_column and second_text_column are both {text_column!r}: expected two columns")
    columns = {"text_column": text_column, "second_text_column": second_text_column, "id_column": id_column}
    if kind == "datasets":
        return _dataset(str(source), columns, config, split)
    for name, option in (("config", config), ("split", split)):
        if option is not None:
            raise InputError(f"{name}={option!r} given for a file of {kind}: expected it with a dataset only")
    path = Path(source).expanduser()
    if kind == "text" and any(name is not None for name in columns.values()):
        raise InputError(
            f"{path} is plain text and has no columns: leave text_column, second_text_column and id_column out"
        )
    with foreign_errors_as(FileFormatError, f"{path} cannot be read"):
        file = CheckedFile(path)
        with file.open() as opened:
            start = opened.read(2)
    if not start:
        raise FileFormatError(f"{path} is empty: expected sentences")
    if kind != "parquet" and start in OTHER_ENCODINGS:
        raise FileFormatError(f"{path} begins as {OTHER_ENCODINGS[start]} does: save it as UTF-8")
    origin = Origin(path.name, kind, file.sha256, file.n_bytes, file.n_lines - (kind == "csv"), **columns)
    return TextLines(origin, file) if kind == "text" else _table(origin, file)


def _format_of(source: object, name: str | None) -> InputFormat:
    if not isinstance(source, str | Path):
        raise InputTypeError(f"the input is {type(source).__name__}: expected a path, or the name of a dataset")
    formats: tuple[InputFormat, ...] = get_args(InputFormat)
    if name is not None:
        return one_of("input format", name, formats)
    path = Path(source).expanduser()
    if path.is_dir():
        return "datasets"
    if not path.exists():
        raise FileFormatError(
            f"no file {source}: expected a file or a folder; for a dataset of the hub, give input_format='datasets' "
            "(--format datasets)"
        )
    if path.suffix.lower() not in SUFFIXES:
        raise FileFormatError(
            f"{path} ends with {path.suffix or 'no suffix'}: expected one of {', '.join(SUFFIXES)}, or input_format "
            f"(--format), one of {', '.join(formats)}"
        )
    return SUFFIXES[path.suffix.lower()]


def _table(origin: Origin, file: CheckedFile) -> Source:
    path = file.path
    if origin.format == "jsonl":
        names = [name for name in json_columns(file) if name != origin.second_text_column]
        # Where no line is readable, each is refused with its own reason.
        text = origin.text_column or (column_of(path, None, names) if names else TEXT_NAMES[0])
        return JsonLines(replace(origin, text_column=text), file)
    if origin.format == "csv":
        header = csv_header(file)
        return CsvRows(_with_columns(origin, path, header, header), file, header)
    with _opened_parquet(file) as opened:
        schema, n_rows = opened.schema_arrow, opened.metadata.num_rows
    check_header(path, schema.names)
    origin = _with_columns(origin, path, schema.names, [field.name for field in schema if _is_text(field.type)])
    id_column = origin.id_column or (ID_NAME if ID_NAME in schema.names else None)
    return ParquetRows(replace(origin, records=n_rows, id_column=id_column), file)


def _with_columns(origin: Origin, path: object, names: Collection[str], with_text: Sequence[str]) -> Origin:
    """The origin with the column of the sentence; raises FileFormatError for a column that is not there."""
    if origin.id_column is not None and origin.id_column not in names:
        raise FileFormatError(f"{path} has no column {origin.id_column!r} with ids: expected one of {', '.join(names)}")
    second = origin.second_text_column
    if second is not None:
        column_of(path, second, with_text)
    text = column_of(path, origin.text_column, [name for name in with_text if name != second])
    return replace(origin, text_column=text)


def column_of(path: object, name: str | None, columns: Sequence[str]) -> str:
    """The column with the sentence: the one named, `text` or `sentence`, or the only one that may be.

    Raises FileFormatError where it is not there or there are several.
    """
    if name is not None:
        if name not in columns:
            raise FileFormatError(
                f"{path} has no column {name!r} with text: expected one of {', '.join(columns) or 'none found'}"
            )
        return name
    usual = [usual for usual in TEXT_NAMES if usual in columns]
    if usual or len(columns) == 1:
        return (usual or columns)[0]
    raise FileFormatError(
        f"{path} has the columns {', '.join(columns) or 'none'}: which holds the sentence? Expected its name as "
        "text_column (--text-column)"
    )


def _is_text(kind: Any) -> bool:
    return str(kind.value_type if pa.types.is_dictionary(kind) else kind) in TEXT_TYPES


def _dataset(name: str, columns: dict[str, str | None], config: str | None, split: str | None) -> DatasetRows:
    with foreign_errors_as(FileFormatError, f"the dataset {name!r} cannot be read"):
        folder = CheckedFolder(Path(name)) if Path(name).is_dir() else None
    rows, identity = _open_dataset(name, config, split)
    origin = Origin(
        name=name,
        format="datasets",
        sha256=hashlib.sha256(identity.encode()).hexdigest() if folder is None else folder.sha256,
        n_bytes=0 if folder is None else folder.n_bytes,
        records=len(rows) if hasattr(rows, "__len__") else None,
        split=str(rows.split) if rows.split is not None else split,
        **columns,
    )
    if rows.features:
        with_text = [name for name, feature in rows.features.items() if getattr(feature, "dtype", "") in TEXT_TYPES]
        return DatasetRows(_with_columns(origin, name, rows.features, with_text), rows, folder)
    return DatasetRows(replace(origin, text_column=origin.text_column or TEXT_NAMES[0]), rows, folder)


def _open_dataset(name: str, config: str | None, split: str | None) -> tuple[Any, str]:
    """One split of a dataset, from a folder or the hub, as a stream where it can be one, and what identifies it.

    Raises InputError where the split must be named, OfflineError or FileFormatError where it cannot be had.
    """
    folder = Path(name)
    revision = None if folder.exists() else _revision(name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config, streaming=True, revision=revision)
    except ConnectionError as error:
        raise OfflineError(f"the dataset {name!r} cannot be fetched: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"the dataset {name!r} cannot be read: {error}") from error
    if isinstance(loaded, dict):
        if split is None and len(loaded) == 1:
            split = next(iter(loaded))
        if split not in loaded:
            raise InputError(f"split is {split!r}: expected one of {', '.join(map(str, loaded))}, the splits of {name}")
        loaded = loaded[split]
    return loaded, f"{name} {config} {revision}"


def _revision(name: str) -> str | None:
    """The commit that a name of the hub stands for now."""
    try:
        return HfApi().dataset_info(name).sha
    except (OSError, ValueError) as error:
        raise OfflineError(
            f"the dataset {name!r} is no folder, and the hub cannot be asked for it ({error}): expected a folder or "
            "a name on the hub"
        ) from error


def check_apart(source: str | Path, folder: Path, log: Path | None) -> None:
    """Raise InputError where an input lies in the folder to be written, is that folder, holds it, or is the log."""
    if not isinstance(source, str | Path):
        return  # opening it says so
    with foreign_errors_as(FileFormatError, f"{source} cannot be read"):
        path = Path(source).expanduser()
        if not path.exists():
            return
        if log is not None and log.exists() and log.samefile(path):
            raise InputError(f"the JSON log {log} is the input: expected a file of its own")
        # By the files themselves, so that a link, `..`, another spelling or another mount is no way around.
        if _lies_in(path, folder):
            raise InputError(
                f"the input {path} lies in the output folder {folder}: expected an output folder of its own"
            )
        if path.is_dir() and _lies_in(folder, path):
            raise InputError(f"the output folder {folder} lies in the input {path}: expected one outside of it")


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, as it is spelt or where its links lead, is a folder that exists or lies in it."""
    if not folder.exists():
        return False
    spelt = path.absolute()
    above = {spelt, *spelt.parents, path.resolve(), *path.resolve().parents}
    return any(parent.exists() and parent.samefile(folder) for parent in above)
