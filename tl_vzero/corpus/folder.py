"""Files that are whole or not there, also after the machine went down.

A file is written aside, synced, and then gets its name, which nothing may have: so nobody's file is ever replaced.
What is written aside bears the name of the corpus, a hash, and random digits: no two processes write one such file, and
what an interruption left is told from files of others.
"""

import errno
import json
import os
import re
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch

from tl_vzero.corpus.columns import METADATA_KEY, Columns, pyarrow
from tl_vzero.corpus.hashed import CheckedFile, HashedFile, Pieces, pieces_of
from tl_vzero.corpus.records import Lines, Refused, TooLong
from tl_vzero.corpus.schemas import LARGEST_NOTE, About, Done, Failed, Written, corpus_hash, parsed, read_small
from tl_vzero.errors import FileFormatError, OutputPathError, foreign_errors_as
from tl_vzero.files import open_regular

PARTIAL = ".partial"
_PARTIAL_NAME = re.compile(r"\.(?P<name>[^/]+)\.(?P<corpus>[0-9a-f]{64})-[0-9a-f]{32}\.partial")


def partial_path(path: Path, corpus: str) -> Path:
    """Where a file is written until it is whole; hidden, so that no reader of the folder takes it for a part of it."""
    return path.with_name(f".{path.name}.{corpus}-{uuid4().hex}{PARTIAL}")


def parts_of_partial(name: str) -> tuple[str, str] | None:
    """The name and the corpus of the file that is written aside by this name; None for what no run names so.

    >>> parts_of_partial(partial_path(Path("done/00000.json"), "0" * 64).name)[0]
    '00000.json'
    """
    match = _PARTIAL_NAME.fullmatch(name)
    return None if match is None else (match["name"], match["corpus"])


def write_new(path: Path, corpus: str, content: bytes) -> None:
    """Write a small file whole or not at all; raises FileExistsError where something has its name."""
    partial = partial_path(path, corpus)
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        publish(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def publish(partial: Path, path: Path) -> None:
    """Give a whole file its name, and have that on the disk too; raises FileExistsError where something has it.

    The partial name may stay, for the caller to take away.
    """
    try:
        path.hardlink_to(partial)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links, or an error that the next lines meet too
        if path.is_symlink() or path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        partial.rename(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    try:
        opened = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders
        return
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


# The folder of a corpus: shards, the sentences that failed, and a note for each shard that is finished.
#
#     manifest.json          what the corpus is: options, versions, hashes
#     shards/00000.parquet   the scores
#     errors/00000.jsonl     the sentences of that shard that failed, where there are any
#     done/00000.json        that the shard is finished, with the sizes and hashes of its files
#     locks/00000.lock       held by rank 0 while it is at work
#     errors.jsonl           all failed sentences, once the whole corpus is finished
#
# A shard counts once its note is there, which is written last. Everything is written aside, synced and then named.

LONGEST_REASON = 10_000  # characters
SUFFIXES = {"shards": ".parquet", "errors": ".jsonl", "done": ".json", "locks": ".lock"}


@dataclass(frozen=True)
class CorpusFolder:
    """Where each file of a corpus is."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What the corpus is."""
        return self.root / "manifest.json"

    @property
    def all_errors(self) -> Path:
        """Every failed sentence, once all shards are finished."""
        return self.root / "errors.jsonl"

    def lock(self, rank: int) -> Path:
        """What a rank holds while it is at work."""
        return self._numbered("locks", rank)

    def shard(self, number: int) -> Path:
        """A shard's scores."""
        return self._numbered("shards", number)

    def errors(self, number: int) -> Path:
        """A shard's failed sentences."""
        return self._numbered("errors", number)

    def note(self, number: int) -> Path:
        """That a shard is finished."""
        return self._numbered("done", number)

    def _numbered(self, part: str, number: int) -> Path:
        return self.root / part / f"{number:05d}{SUFFIXES[part]}"

    def make(self) -> None:
        """Make the folders that are not there."""
        for part in SUFFIXES:
            (self.root / part).mkdir(exist_ok=True)

    def numbers(self, part: str) -> list[int]:
        """The numbers of which a part has a file, in order; other names in it are none of ours."""
        numbers = []
        for path in self._names(part):
            stem = path.name.removesuffix(SUFFIXES[part])
            # Only the one spelling that we write, which digits of other scripts and longer ones are not.
            if stem.isascii() and stem.isdigit() and len(stem) <= 12 and path == self._numbered(part, int(stem)):
                numbers.append(int(stem))
        return sorted(numbers)

    def check_kinds(self) -> None:
        """Raise OutputPathError where a name of ours is something else than the file or folder that we write."""
        for part in SUFFIXES:
            if _is_strange(self.root / part):
                raise OutputPathError(
                    f"{self.root / part} is no folder: expected the one that `tl-vzero corpus` made, no link or file; "
                    "nothing was changed; choose another folder"
                )
        files = [self.manifest, self.all_errors]
        files += [self._numbered(part, number) for part in SUFFIXES for number in self.numbers(part)]
        for path in files:
            if path.is_symlink() or (path.exists() and not path.is_file()):
                raise OutputPathError(
                    f"{path} is no regular file: expected one that `tl-vzero corpus` wrote, no link, pipe or folder; "
                    "nothing was changed; choose another folder"
                )

    def partials(self, corpus: str) -> list[Path]:
        """What an interrupted run of a corpus left: files that bear its name and begin as ours do."""
        partials = []
        for part in (".", *SUFFIXES):
            for path in self._names(part):
                named = parts_of_partial(path.name)
                if named is not None and named[1] == corpus and begins_as_ours(path, named[0]):
                    partials.append(path)
        return sorted(partials)

    def done(self, corpus: str) -> dict[int, Done]:
        """The finished shards of a corpus.

        Raises FileFormatError where a note cannot be read, or is of another corpus, or a link leads elsewhere.
        """
        for part in ("shards", "done"):
            if _is_strange(self.root / part):
                raise FileFormatError(f"{self.root / part} is no folder: expected one of a corpus, no link or file")
        return {number: read_note(self, number, corpus) for number in self.numbers("done")}

    def _names(self, part: str) -> Iterator[Path]:
        """What lies in a part, without following a link."""
        folder = self.root / part
        if folder.is_dir() and (part == "." or not folder.is_symlink()):
            yield from folder.iterdir()


def _is_strange(folder: Path) -> bool:
    """Whether something that is no folder has the name of one."""
    return folder.is_symlink() or (folder.exists() and not folder.is_dir())


BEGINNINGS = {".parquet": b"PAR1", ".jsonl": b'{"position": ', ".json": b"{"}


def begins_as_ours(path: Path, name: str) -> bool:
    """Whether what was written aside for a file of that name begins as we begin it, however early it was cut off."""
    beginning = BEGINNINGS.get(Path(name).suffix)
    if beginning is None:
        return False
    try:
        with open_regular(path, follow_links=False) as file:
            begins = file.read(len(beginning))
    except (OSError, FileFormatError):
        return False
    return beginning.startswith(begins)


def read_note(folder: CorpusFolder, number: int, corpus: str) -> Done:
    """The note of a shard; raises FileFormatError where it cannot be read, or is of another corpus or shard."""
    path = folder.note(number)
    done, _ = parsed(Done, read_small(path, LARGEST_NOTE), path)
    if (done.corpus, done.shard) != (corpus, number):
        raise FileFormatError(f"{path} is of another corpus or shard: expected the one that was written there")
    return done


def note_beginning(corpus: str) -> bytes:
    """How every note of a corpus begins."""
    return json.dumps({"format": "tl_vzero.corpus.shard", "corpus": corpus})[:-1].encode()


def written(hashed: Pieces) -> Written:
    """What is noted of a file."""
    return Written(n_bytes=hashed.n_bytes, sha256=hashed.sha256, pieces=hashed.pieces)


class ShardWriter:
    """Writes one shard, part by part; until `finish` nothing of it has its name."""

    def __init__(self, folder: CorpusFolder, corpus: str, number: int, schema: Any) -> None:
        self._folder, self._corpus, self._number, self._schema = folder, corpus, number, schema
        self._refused: list[Refused] = []
        self._rows = 0
        self._partial = partial_path(folder.shard(number), corpus)
        self._file = HashedFile(self._partial.open("xb"))
        numbers = [field.name for field in schema if pyarrow().types.is_list(field.type)]
        # Distances hardly repeat: looking for repetitions costs time and finds none.
        texts = [name for name in schema.names if name not in numbers]
        self._writer = pyarrow().parquet.ParquetWriter(
            self._file, schema, compression="zstd", use_dictionary=texts, write_page_checksum=True
        )

    def add(self, columns: Columns, scored: Any, refused: Sequence[Refused]) -> None:
        """Write a part's rows, and keep the sentences that failed."""
        table = columns.table(self._schema, scored)
        if len(table):
            self._writer.write_table(table)
        self._rows += len(table)
        self._refused += refused

    def finish(self) -> Done:
        """Have the shard on the disk, under its name and noted as done."""
        self._writer.close()
        scores = written(self._file.sync())
        self._file.close()
        errors = self._write_errors()
        publish(self._partial, self._folder.shard(self._number))
        self._partial.unlink(missing_ok=True)
        done = Done(
            format="tl_vzero.corpus.shard",
            corpus=self._corpus,
            shard=self._number,
            rows=self._rows,
            failed=len(self._refused),
            scores=scores,
            errors=errors,
        )
        write_new(self._folder.note(self._number), self._corpus, json.dumps(done.model_dump()).encode())
        return done

    def _write_errors(self) -> Written | None:
        if not self._refused:
            return None
        in_order = sorted(self._refused, key=lambda refused: refused.position)
        # A reason may quote half of a surrogate pair, which no JSON can hold.
        rows = [{**asdict(refused), "reason": _writable(refused.reason)} for refused in in_order]
        content = "".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows).encode()
        write_new(self._folder.errors(self._number), self._corpus, content)
        hashed = Pieces()
        hashed.update(memoryview(content))
        return written(hashed)

    def abandon(self) -> None:
        """Leave nothing of the shard behind."""
        self._file.discard = True  # closing the writer would write its footer, perhaps to a full disk
        try:
            self._writer.close()
        finally:
            self._file.close()
            self._partial.unlink(missing_ok=True)


def _writable(text: str) -> str:
    return text[:LONGEST_REASON].encode("utf-8", "backslashreplace").decode()


def forget_shards(folder: CorpusFolder, numbers: Sequence[int]) -> None:
    """Have shards that this process wrote count as finished no more."""
    for number in numbers:
        folder.note(number).unlink(missing_ok=True)


def join_errors(folder: CorpusFolder, corpus: str) -> None:
    """Write all failed sentences into one file, in order; raises OutputPathError where another file has its name."""
    partial = partial_path(folder.all_errors, corpus)
    try:
        with partial.open("xb") as file:
            for number, done in folder.done(corpus).items():
                if done.failed:
                    with open_regular(folder.errors(number), follow_links=False) as errors:
                        file.write(errors.read())
            file.flush()
            os.fsync(file.fileno())
        if not folder.all_errors.exists():
            publish(partial, folder.all_errors)
        else:
            check_all_errors(folder)
            partial.replace(folder.all_errors)
            sync_folder(folder.root)
    finally:
        partial.unlink(missing_ok=True)


def check_all_errors(folder: CorpusFolder) -> None:
    """Raise OutputPathError where a file of others has the name of the one with all failed sentences."""
    if folder.all_errors.exists() and not holds_failures(folder.all_errors):
        raise OutputPathError(
            f"{folder.all_errors} is not what `tl-vzero corpus` writes there: move it away, and the same command "
            "goes on"
        )


def holds_failures(path: Path, positions: range | None = None) -> bool:
    """Whether a file holds failed sentences, as we write them, and nothing else; those of `positions` alone."""
    try:
        with open_regular(path, follow_links=False) as file:
            for line in Lines(file):
                if isinstance(line, TooLong):
                    return False
                failed, _ = parsed(Failed, line, path)
                if positions is not None and failed.position not in positions:
                    return False
    except (OSError, FileFormatError):
        return False
    return True


def hashes_of(path: Path) -> Pieces:
    """The hashes of a file in the folder; raises OSError or FileFormatError where it cannot be read."""
    with open_regular(path, follow_links=False) as file:
        return pieces_of(file)


# Reading shards back, a few rows at a time. Nothing is executed or unpickled; damage is told in words.
#
# What is read is what was written: a shard is compared with the hash in its note before it is read, and block by block
# while it is read; and it must be the shard of that number of this very corpus, by what it says of itself.

ROWS_AT_ONCE = 256


@dataclass(frozen=True, slots=True)
class Stored:
    """A sentence that a corpus holds: the shard and the row it is in, its ids and its target, where it has one."""

    shard: int
    row: int
    id: str
    token_ids: tuple[int, ...]
    target: int | None


@dataclass(frozen=True, slots=True)
class ShardFile:
    """A shard on the disk, with its note; with `verify`, it is read only where it is what was written."""

    path: Path
    done: Done
    verify: bool

    @contextmanager
    def opened(self) -> Iterator[tuple[Any, About]]:
        """The Parquet file and what it says of itself.

        Raises FileFormatError where it cannot be read or, with `verify`, is another one than was written.
        """
        with _damage_told(self.path), self._stream() as stream, _parquet(stream) as file:
            about = _about(file.schema_arrow, self.path)
            if self.verify and (corpus_hash(about.manifest), about.shard) != (self.done.corpus, self.done.shard):
                raise FileFormatError(f"{self.path} is a shard of another corpus, or another shard: {ANEW}")
            if self.verify and file.metadata.num_rows != self.done.rows:
                raise FileFormatError(
                    f"{self.path} holds {file.metadata.num_rows} sentences, and its note says {self.done.rows}: {ANEW}"
                )
            yield file, about

    def _stream(self) -> Any:
        if not self.verify:
            return open_regular(self.path, follow_links=False)
        checked = CheckedFile(self.path, follow_links=False)
        if (checked.sha256, checked.n_bytes) != (self.done.scores.sha256, self.done.scores.n_bytes):
            raise FileFormatError(f"{self.path} is not what was written, its hash differs: {ANEW}")
        return checked.open()


ANEW = "move it away, and the same command again computes it anew"


def about_shard(path: Path) -> About:
    """What a file says of itself as a shard; raises FileFormatError where it is none."""
    with _damage_told(path), open_regular(path, follow_links=False) as stream, _parquet(stream) as file:
        return _about(file.schema_arrow, path)


def rows_in_shard(path: Path) -> int:
    """How many sentences a shard holds; raises FileFormatError where it is none."""
    with _damage_told(path), open_regular(path, follow_links=False) as stream, _parquet(stream) as file:
        return int(file.metadata.num_rows)


def stored_sentences(shard: ShardFile) -> Iterator[Stored]:
    """The sentences of a shard in order, without their numbers; raises what `opened` raises."""
    with shard.opened() as (file, _):
        names = [name for name in ("id", "token_ids", "target") if name in file.schema_arrow.names]
        rows = (row for batch in file.iter_batches(ROWS_AT_ONCE, columns=names) for row in batch.to_pylist())
        for number, row in enumerate(rows):
            yield Stored(shard.done.shard, number, row["id"], tuple(row["token_ids"]), row.get("target"))


def stored_numbers(
    shard: ShardFile, methods: Sequence[str], among: Container[int] | None = None
) -> Iterator[tuple[int, dict[str, Any], dict[str, torch.Tensor], About]]:
    """Row, labels and each method's numbers, still flat, of a shard's sentences, or of those rows `among` them.

    With each, what the shard says of itself. Raises what `opened` raises.
    """
    with shard.opened() as (file, about):
        labels = [name for name in file.schema_arrow.names if name not in about.methods]
        first = 0
        for batch in file.iter_batches(ROWS_AT_ONCE, columns=[*labels, *methods]):
            rows = batch.select(labels).to_pylist()
            for index, row in enumerate(rows):
                if among is None or first + index in among:
                    yield first + index, row, {name: _numbers(batch.column(name), index) for name in methods}, about
            first += len(rows)


def _parquet(stream: Any) -> Any:
    return pyarrow().parquet.ParquetFile(stream, page_checksum_verification=True)


def _about(schema: Any, path: Path) -> About:
    about, _ = parsed(About, schema.metadata[METADATA_KEY], f"what {path} says of itself")
    return about


def _numbers(column: Any, row: int) -> torch.Tensor:
    """One row's list of numbers, in the precision of the file."""
    return torch.tensor(column[row].values.to_numpy(zero_copy_only=False))


def _damage_told(path: Path) -> Any:
    """Within, whatever damaged bytes lead to is one error."""
    return foreign_errors_as(FileFormatError, f"{path} cannot be read: {ANEW}")
