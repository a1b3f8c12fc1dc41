"""Opening an input: what it is, which column holds the sentence, and the hash that a resumed run checks."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

from tl_vzero.corpus.columns import pyarrow
from tl_vzero.corpus.hashed import CheckedFile, CheckedFolder
from tl_vzero.corpus.records import (
    ID_NAME,
    TEXT_NAMES,
    CsvRows,
    JsonLines,
    Origin,
    Record,
    Refused,
    Source,
    TextLines,
    checked,
    column_of,
    csv_header,
    json_columns,
    with_second,
)
from tl_vzero.errors import (
    DependencyError,
    FileFormatError,
    InputError,
    InputTypeError,
    OfflineError,
    foreign_errors_as,
    unknown_name,
)
from tl_vzero.files import check_header, open_regular

# Parquet files and Hugging Face datasets as sources, a batch of rows at a time.

ROWS_AT_ONCE = 1024


@dataclass(frozen=True)
class ParquetRows:
    """A Parquet file, with the sentence in the column `origin.text_column`."""

    file: CheckedFile
    origin: Origin

    def raws(self) -> Iterator[tuple[bytes | None, bytes | None, object]]:
        """Text and second text, still as bytes, and id of every row. Raises FileFormatError where it is damaged."""
        pa = pyarrow()
        given_id, second = self.origin.id_column, self.origin.second_text_column
        names = [name for name in (self.origin.text_column, second, given_id) if name is not None]
        try:
            with self.file.open() as stream, pa.parquet.ParquetFile(stream) as file:
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=names):
                    # As bytes, so that a text that is no UTF-8 is one refused record, not the end of the file.
                    texts, seconds = (
                        [None] * len(batch)
                        if name is None
                        else batch.column(name).cast(pa.large_string()).cast(pa.large_binary()).to_pylist()
                        for name in (self.origin.text_column, second)
                    )
                    ids = [None] * len(batch) if given_id is None else _plain(batch.column(given_id))
                    yield from zip(texts, seconds, ids, strict=True)
        except (pa.ArrowException, OSError) as error:
            raise FileFormatError(
                f"{self.file.path} cannot be read to its end ({error}): expected a Parquet file"
            ) from error

    def record(self, position: int, raw: tuple[bytes | None, bytes | None, object]) -> Record | Refused:
        """The row's text or pair, and id."""
        *texts, given_id = raw
        text, second = (None if each is None else each.decode("utf-8", "surrogateescape") for each in texts)
        found = checked(position, text, given_id)
        return found if self.origin.second_text_column is None else with_second(found, second)

    def check(self, *, contents: bool) -> None:
        """Raise FileFormatError where the file changed; each byte was compared when it was read."""
        self.file.check()


def _plain(column: Any) -> list[object]:
    try:
        return list(column.to_pylist())
    except UnicodeDecodeError:
        pa = pyarrow()
        return [each.decode("utf-8", "surrogateescape") for each in column.cast(pa.large_binary()).to_pylist()]


def parquet_columns(checked_file: CheckedFile) -> tuple[list[str], list[str], int]:
    """The columns with text, all columns, and the number of rows; raises FileFormatError for what is no Parquet."""
    pa = pyarrow()
    try:
        with checked_file.open() as stream, pa.parquet.ParquetFile(stream) as file:
            schema, rows = file.schema_arrow, file.metadata.num_rows
    except (pa.ArrowException, OSError) as error:
        raise FileFormatError(f"{checked_file.path} cannot be read ({error}): expected a Parquet file") from error
    return [field.name for field in schema if _is_text(pa, field.type)], list(schema.names), int(rows)


def _is_text(pa: Any, kind: Any) -> bool:
    if pa.types.is_dictionary(kind):
        kind = kind.value_type
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


@dataclass(frozen=True)
class DatasetRows:
    """A dataset of the package `datasets`, with the sentence in the column `origin.text_column`."""

    rows: Any
    origin: Origin
    folder: CheckedFolder | None = None

    def raws(self) -> Iterator[Any]:
        """Every row. Raises FileFormatError where they cannot be read to their end."""
        with foreign_errors_as(FileFormatError, f"the dataset {self.origin.name!r} cannot be read to its end"):
            try:
                yield from self.rows
            except Exception:
                self.check(contents=True)  # that a file changed tells more
                raise

    def record(self, position: int, raw: Any) -> Record | Refused:
        """The row's text and id."""
        found = checked(position, raw.get(self.origin.text_column), raw.get(self.origin.id_column or ID_NAME))
        second = self.origin.second_text_column
        return found if second is None else with_second(found, raw.get(second))

    def check(self, *, contents: bool) -> None:
        """Raise FileFormatError where a file of the folder changed; what the hub has at a commit does not."""
        if self.folder is not None:
            self.folder.check(contents=contents)


def open_dataset(name: str, *, config: str | None, split: str | None) -> tuple[Any, str]:
    """One split of a dataset, from a folder or the hub, as a stream where it can be one, and what identifies it.

    Raises DependencyError without the package, InputError where the split must be named, OfflineError or
    FileFormatError where it cannot be had.
    """
    try:
        import datasets
    except ImportError as error:
        raise DependencyError("the package datasets is not installed: pip install 'tl-vzero[datasets]'") from error

    folder = Path(name)
    revision = _revision(name)
    try:
        if (folder / "dataset_dict.json").is_file() or (folder / "dataset_info.json").is_file():
            loaded = datasets.load_from_disk(name)
        else:
            loaded = datasets.load_dataset(name, config, streaming=True, revision=revision)
    except ConnectionError as error:
        raise OfflineError(f"the dataset {name!r} cannot be fetched: {error}") from error
    except (OSError, ValueError, RuntimeError) as error:
        raise FileFormatError(f"the dataset {name!r} cannot be read: {error}") from error
    identity = f"{name} {config} {revision}"
    if not isinstance(loaded, dict):
        return loaded, identity
    if split is None and len(loaded) == 1:
        split = next(iter(loaded))
    if split not in loaded:
        raise InputError(f"split is {split!r}: expected one of {', '.join(map(str, loaded))}, the splits of {name}")
    return loaded[split], identity


def _revision(name: str) -> str | None:
    """The commit that a name of the hub stands for now; None for a folder."""
    if Path(name).exists():
        return None
    from huggingface_hub import HfApi

    try:
        return HfApi().dataset_info(name).sha
    except (OSError, ValueError) as error:
        raise OfflineError(
            f"the dataset {name!r} is no folder, and the hub cannot be asked for it ({error}): expected a folder or "
            "a name on the hub"
        ) from error


InputFormat = Literal["text", "jsonl", "csv", "parquet", "datasets"]
FORMATS: tuple[InputFormat, ...] = get_args(InputFormat)

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


def open_source(
    given: str | Path,
    *,
    input_format: str | None = None,
    text_column: str | None = None,
    second_text_column: str | None = None,
    id_column: str | None = None,
    config: str | None = None,
    split: str | None = None,
) -> Source:
    """An input as a stream of records.

    `given` is a file (.txt, .jsonl, .csv, .tsv, .parquet), a folder that the package `datasets` reads or, with
    `input_format="datasets"`, a name on the hub. The sentence is in `text_column` (default: `text`, `sentence`, or the
    only column of text), its id in `id_column` (default: `id`, else its position). With `second_text_column` each
    record is a pair, whose second text is there.

    Raises FileFormatError for what cannot be read, InputError or InputTypeError for bad arguments, DependencyError
    where a package is missing.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "two.txt"
    ...     _ = path.write_text("the authors write.\\nthe author writes.\\n")
    ...     source = open_source(path)
    ...     [source.record(number, raw).text for number, raw in enumerate(source.raws())]
    ['the authors write.', 'the author writes.']
    """
    kind = _format_of(given, input_format)
    if second_text_column is not None and second_text_column == text_column:
        raise InputError(f"text_column and second_text_column are both {text_column!r}: expected two columns")
    columns = _Columns(text_column, second_text_column, id_column)
    if kind == "datasets":
        return _dataset(str(given), columns, config, split)
    for name, option in (("config", config), ("split", split)):
        if option is not None:
            raise InputError(f"{name}={option!r} given for a file of {kind}: expected it with a dataset only")
    path = Path(given).expanduser()
    _check_file(path, kind)
    if kind == "text" and columns != _Columns(None, None, None):
        raise InputError(
            f"{path} is plain text and has no columns: leave text_column, second_text_column and id_column out"
        )
    try:
        file = CheckedFile(path)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    if kind == "text":
        return TextLines(file, _origin(file, kind))
    return _table(file, kind, columns)


def check_apart(given: str | Path, folder: Path, log: Path | None) -> None:
    """Raise InputError where an input lies in the folder to be written, is that folder, holds it, or is the log."""
    if not isinstance(given, str | Path):
        return  # opening it says so
    with foreign_errors_as(FileFormatError, f"{given} cannot be read"):
        _check_apart(Path(given).expanduser(), folder, log)


def _check_apart(path: Path, folder: Path, log: Path | None) -> None:
    if not path.exists():
        return
    if log is not None and log.exists() and log.samefile(path):
        raise InputError(f"the JSON log {log} is the input: expected a file of its own")
    # By the files themselves, so that a link, `..`, another spelling or another mount is no way around.
    if _lies_in(path, folder):
        raise InputError(f"the input {path} lies in the output folder {folder}: expected an output folder of its own")
    if path.is_dir() and _lies_in(folder, path):
        raise InputError(f"the output folder {folder} lies in the input {path}: expected one outside of it")


def _lies_in(path: Path, folder: Path) -> bool:
    """Whether a path, as it is spelt or where its links lead, is a folder that exists or lies in it."""
    if not folder.exists():
        return False
    spelt = path.absolute()
    above = {spelt, *spelt.parents, path.resolve(), *path.resolve().parents}
    return any(parent.exists() and parent.samefile(folder) for parent in above)


@dataclass(frozen=True)
class _Columns:
    """The names of columns that were asked for."""

    text: str | None
    second_text: str | None
    id: str | None

    def of_texts(self, path: object, names: list[str]) -> dict[str, str | None]:
        """The columns with the text and the second one, among those that hold text, as an Origin has them."""
        second = None if self.second_text is None else column_of(path, self.second_text, names)
        first = column_of(path, self.text, [name for name in names if name != second])
        return {"text_column": first, "second_text_column": second}


def _table(file: CheckedFile, kind: InputFormat, columns: _Columns) -> Source:
    path = file.path
    if kind == "jsonl":
        names = [name for name in json_columns(file) if name != columns.second_text]
        # Where no line is readable, each is refused with its own reason.
        named = columns.text or (column_of(path, None, names) if names else TEXT_NAMES[0])
        texts = {"text_column": named, "second_text_column": columns.second_text}
        return JsonLines(file, _origin(file, kind, **texts, id_column=columns.id))
    if kind == "csv":
        header = csv_header(file)
        origin = _origin(file, kind, **columns.of_texts(path, [*header]), id_column=columns.id)
        _check_id_column(path, columns.id, header)
        return CsvRows(file, origin, header)
    with_text, names, rows = parquet_columns(file)
    check_header(path, names)
    _check_id_column(path, columns.id, names)
    named_id = columns.id or (ID_NAME if ID_NAME in names else None)
    origin = _origin(file, kind, **columns.of_texts(path, with_text), id_column=named_id)
    return ParquetRows(file, replace(origin, records=rows))


def _dataset(name: str, columns: _Columns, config: str | None, split: str | None) -> DatasetRows:
    with foreign_errors_as(FileFormatError, f"the dataset {name!r} cannot be read"):
        folder = CheckedFolder(Path(name)) if Path(name).is_dir() else None
    rows, identity = open_dataset(name, config=config, split=split)
    features = rows.features or {}
    texts = [column for column, feature in features.items() if getattr(feature, "dtype", "") in TEXT_TYPES]
    if features:
        _check_id_column(name, columns.id, features)
    named = {"text_column": columns.text or TEXT_NAMES[0], "second_text_column": columns.second_text}
    if features:
        named = columns.of_texts(name, texts)
    sha256, n_bytes = hashlib.sha256(identity.encode()).hexdigest(), 0
    if folder is not None:
        sha256, n_bytes = folder.sha256, folder.n_bytes
    return DatasetRows(
        rows,
        Origin(
            name=name,
            format="datasets",
            sha256=sha256,
            n_bytes=n_bytes,
            records=len(rows) if hasattr(rows, "__len__") else None,
            id_column=columns.id,
            **named,
            split=str(rows.split) if rows.split is not None else split,
        ),
        folder,
    )


TEXT_TYPES = ("string", "large_string")


def _format_of(given: object, named: str | None) -> InputFormat:
    if not isinstance(given, str | Path):
        raise InputTypeError(f"the input is {type(given).__name__}: expected a path, or the name of a dataset")
    if named is not None:
        for known in FORMATS:
            if named == known:
                return known
        raise unknown_name("input format", named, FORMATS)
    path = Path(given).expanduser()
    if path.is_dir():
        return "datasets"
    if not path.exists():
        raise FileFormatError(
            f"no file {given}: expected a file or a folder; for a dataset of the hub, give input_format='datasets' "
            "(--format datasets)"
        )
    found = SUFFIXES.get(path.suffix.lower())
    if found is None:
        raise FileFormatError(
            f"{path} ends with {path.suffix or 'no suffix'}: expected one of {', '.join(SUFFIXES)}, or input_format "
            f"(--format), one of {', '.join(FORMATS)}"
        )
    return found


def _check_file(path: Path, kind: str) -> None:
    if not path.is_file():
        raise FileFormatError(f"{path} is no file: expected one to read as {kind}")
    try:
        with open_regular(path) as file:
            start = file.read(2)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    if not start:
        raise FileFormatError(f"{path} is empty: expected sentences")
    if kind != "parquet" and start in OTHER_ENCODINGS:
        raise FileFormatError(f"{path} begins as {OTHER_ENCODINGS[start]} does: save it as UTF-8")


def _check_id_column(name: object, id_column: str | None, columns: Any) -> None:
    if id_column is not None and id_column not in columns:
        raise FileFormatError(f"{name} has no column {id_column!r} with ids: expected one of {', '.join(columns)}")


def _origin(file: CheckedFile, kind: str, **columns: str | None) -> Origin:
    records = file.n_lines - (kind == "csv")
    return Origin(file.path.name, kind, file.sha256, file.n_bytes, records, **columns)
