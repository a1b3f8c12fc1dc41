"""Parquet files and Hugging Face datasets as sources, a batch of rows at a time."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tl_vzero.corpus.arrow import pyarrow
from tl_vzero.corpus.hashed import CheckedFile, CheckedFolder
from tl_vzero.corpus.records import ID_NAME, Origin, Record, Refused, checked, with_second
from tl_vzero.errors import DependencyError, FileFormatError, InputError, OfflineError, foreign_errors_as

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
