"""The folder of a corpus: where each file is, how it gets there whole or not at all, and the proof that it is ours.

    manifest.json          what the corpus is of: input, model, options and versions, all of which a resumed run shares
    shards/00000.parquet   the scores
    errors/00000.jsonl     the sentences of that shard that failed, where there are any
    done/00000.json        that the shard is finished, with the sizes and hashes of its files
    locks/00000.lock       held by rank 0 while it is at work
    errors.jsonl           all failed sentences, once the whole corpus is finished

1. A file is written aside, under the corpus's hash and random digits, synced, and then gets its name, which nothing may
have: nobody's file is ever replaced, and a file is whole or not there. A shard counts once its note is there.
2. A folder is proven to be of this very run before anything in it is touched: by its manifest or, where that is missing
or damaged, by a shard, which holds a copy. A new folder is one that is not there, is empty, or holds what this very run
left when it was killed before its manifest was whole.
3. In a folder that is proven, what is whole stays and what is damaged goes. Only a file that is ours by its name and by
its contents is ever taken away; where one has a name of ours and other contents, the run is refused. Ours is
- a shard that names this corpus and this shard; an errors file that holds failed sentences of that shard only;
- a shard or an errors file of which a piece is what the note says was written: a damaged one;
- a note that begins as the notes of this corpus do.
"""

import errno
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO
from uuid import uuid4

import pyarrow.parquet as pq

from tl_vzero.corpus import checked
from tl_vzero.corpus.checked import hashes_of
from tl_vzero.corpus.source import Unreadable, lines_of
from tl_vzero.errors import FileFormatError, InputError, OutputPathError, foreign_errors_as
from tl_vzero.files import open_regular

SUFFIXES = {"shards": ".parquet", "errors": ".jsonl", "done": ".json", "locks": ".lock"}
BEGINNINGS = {".parquet": b"PAR1", ".jsonl": b'{"position": ', ".json": b"{"}
PARTIAL_NAME = re.compile(r"\.(?P<name>[^/]+)\.(?P<corpus>[0-9a-f]{64})-[0-9a-f]{32}\.partial")
METADATA_KEY = b"tl_vzero.corpus"
ANEW = "move it away, and the same command again computes it anew"
BEGINNING = b'{\n  "format": "tl_vzero.corpus",\n'  # of a manifest
ALONGSIDE = ("begun", "input_name", "model_name")  # noted in it, and no part of what a corpus is

# Another run that begins in the same new folder at the same time makes this one look again, once or twice.
TRIES = 10


@dataclass(frozen=True)
class CorpusFolder:
    """Where each file of a corpus is. A part is one of the folders in it: shards, errors, done or locks."""

    root: Path

    @property
    def manifest(self) -> Path:
        """What the corpus is."""
        return self.root / "manifest.json"

    @property
    def all_errors(self) -> Path:
        """Every failed sentence, once all shards are finished."""
        return self.root / "errors.jsonl"

    def path(self, part: str, index: int) -> Path:
        """The file of a shard in a part; in locks, that of a rank."""
        return self.root / part / f"{index:05d}{SUFFIXES[part]}"

    def make(self) -> None:
        """Make the folders that are not there."""
        for part in SUFFIXES:
            (self.root / part).mkdir(exist_ok=True)

    def indices(self, part: str) -> list[int]:
        """The indices of which a part has a file, in order; other names in it are none of ours."""
        indices = []
        for path in self._paths_in(part):
            stem = path.name.removesuffix(SUFFIXES[part])
            # Only the one spelling that we write, which digits of other scripts and longer ones are not.
            if stem.isascii() and stem.isdigit() and len(stem) <= 12 and path == self.path(part, int(stem)):
                indices.append(int(stem))
        return sorted(indices)

    def check_kinds(self) -> None:
        """Raise OutputPathError where a name of ours is something else than the file or folder that we write."""
        parts = [self.root / part for part in SUFFIXES]
        files = [self.path(part, index) for part in SUFFIXES for index in self.indices(part)]
        strange = [part for part in parts if _is_strange(part)]
        strange += [path for path in (self.manifest, self.all_errors, *files) if _is_strange(path, Path.is_file)]
        if strange:
            raise OutputPathError(
                f"{strange[0]} is no {'folder' if strange[0] in parts else 'regular file'}: expected what `tl-vzero "
                "corpus` wrote, no link or pipe; nothing was changed; choose another folder"
            )

    def partials(self, corpus: str) -> list[Path]:
        """What an interrupted run of a corpus left: files that bear its name and begin as ours do."""
        partials = [(path, partial_of(path)) for part in (".", *SUFFIXES) for path in self._paths_in(part)]
        return sorted(path for path, of in partials if of and of[1] == corpus and begins_as_ours(path, of[0]))

    def note(self, index: int, corpus: str) -> checked.Done:
        """The note of a shard; raises FileFormatError where it cannot be read, or is of another corpus or shard."""
        path = self.path("done", index)
        done = checked.parsed(checked.Done, checked.read_small(path, checked.LARGEST_NOTE), path)
        if (done.corpus, done.shard) != (corpus, index):
            raise FileFormatError(f"{path} is of another corpus or shard: expected the one that was written there")
        return done

    def done(self, corpus: str) -> dict[int, checked.Done]:
        """The notes of a corpus, by shard; raises FileFormatError as `note` does, and where a link leads elsewhere."""
        for folder in (self.root / "shards", self.root / "done"):
            if _is_strange(folder):
                raise FileFormatError(f"{folder} is no folder: expected one of a corpus, no link or file")
        return {index: self.note(index, corpus) for index in self.indices("done")}

    def _paths_in(self, part: str) -> Iterator[Path]:
        """What lies in a part, without following a link."""
        folder = self.root / part
        if folder.is_dir() and (part == "." or not folder.is_symlink()):
            yield from folder.iterdir()


def _is_strange(path: Path, is_right: Callable[[Path], bool] = Path.is_dir) -> bool:
    """Whether something else has the name of a folder, or of a file."""
    return path.is_symlink() or (path.exists() and not is_right(path))


def partial_path(path: Path, corpus: str) -> Path:
    """Where a file is written until it is whole; hidden, so that no reader of the folder takes it for a part of it."""
    return path.with_name(f".{path.name}.{corpus}-{uuid4().hex}.partial")


def partial_of(path: Path) -> tuple[str, str] | None:
    """The name and the corpus of the file that is written aside here; None for what no run names so."""
    match = PARTIAL_NAME.fullmatch(path.name)
    return None if match is None else (match["name"], match["corpus"])


def begins_as_ours(path: Path, name: str) -> bool:
    """Whether what was written aside for a file of that name begins as we begin it, however early it was cut off."""
    beginning = BEGINNINGS.get(Path(name).suffix, b"")
    with suppress(OSError, FileFormatError), open_regular(path, follow_links=False) as file:
        return beginning != b"" and beginning.startswith(file.read(len(beginning)))
    return False


def publish(partial: Path, path: Path) -> None:
    """Give a whole file its name, and have that on the disk too; raises FileExistsError where something has it.

    The partial name may stay, for the caller to take away.
    """
    try:
        path.hardlink_to(partial)
    except OSError as error:  # its name is taken, or a file system without hard links, or what the next lines meet too
        if isinstance(error, FileExistsError) or path.is_symlink() or path.exists():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path)) from None
        partial.rename(path)
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Have the names in a folder on the disk."""
    with suppress(OSError):  # Windows opens no folders
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def write_whole(path: Path, corpus: str, content: Iterable[bytes], put: Callable[[Path, Path], None] = publish) -> None:
    """Write a file whole or not at all, and `put` it at its name; raises FileExistsError where something has it."""
    partial = partial_path(path, corpus)
    try:
        with partial.open("xb") as file:
            file.writelines(content)
            file.flush()
            os.fsync(file.fileno())
        put(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def join_errors(folder: CorpusFolder, corpus: str) -> None:
    """Write all failed sentences into one file, in order; raises OutputPathError where another file has its name."""

    def contents() -> Iterator[bytes]:
        for index, done in folder.done(corpus).items():
            if done.failed:
                with open_regular(folder.path("errors", index), follow_links=False) as errors:
                    yield errors.read()

    def put(partial: Path, path: Path) -> None:
        if not path.exists():
            return publish(partial, path)
        check_all_errors(folder)
        partial.replace(path)
        return _sync_folder(path.parent)

    write_whole(folder.all_errors, corpus, contents(), put)


def check_all_errors(folder: CorpusFolder) -> None:
    """Raise OutputPathError where a file of others has the name of the one with all failed sentences."""
    if folder.all_errors.exists() and not holds_failures(folder.all_errors):
        raise OutputPathError(
            f"{folder.all_errors} is not what `tl-vzero corpus` writes there: move it away, and the same command "
            "goes on"
        )


def holds_failures(path: Path, positions: range = range(2**60)) -> bool:
    """Whether a file holds failed sentences, as we write them, and nothing else; those of `positions` alone."""
    with suppress(OSError, FileFormatError), open_regular(path, follow_links=False) as file:
        for line in lines_of(file):
            if isinstance(line, Unreadable) or checked.parsed(checked.Failed, line, path).position not in positions:
                return False
        return True
    return False


@contextmanager
def open_shard(path: Path, opened: Callable[[], BinaryIO] | None = None) -> Iterator[tuple[Any, checked.About]]:
    """A shard as a Parquet file to read, and what it says of itself.

    Raises FileFormatError where it is none, and for whatever damaged bytes lead to within.
    """
    with (
        foreign_errors_as(FileFormatError, f"{path} cannot be read: {ANEW}"),
        open_regular(path, follow_links=False) if opened is None else opened() as stream,
        pq.ParquetFile(stream, page_checksum_verification=True) as file,
    ):
        yield (
            file,
            checked.parsed(checked.About, file.schema_arrow.metadata[METADATA_KEY], f"what {path} says of itself"),
        )


def read_manifest(folder: CorpusFolder) -> dict[str, Any]:
    """The manifest of a corpus; raises FileFormatError where it is none, or one of another version."""
    if not folder.manifest.is_file() and not folder.manifest.is_symlink():
        raise FileFormatError(
            f"{folder.root} is no corpus, it holds no manifest.json: expected a folder that `tl-vzero corpus` wrote"
        )
    content = checked.read_small(folder.manifest, checked.LARGEST_MANIFEST)
    try:
        manifest = checked.parsed_object(content, folder.manifest)
    except FileFormatError as error:
        raise FileFormatError(
            f"{folder.root} is no corpus, or its manifest is damaged ({error}): where its shards are whole, the "
            "command that wrote it writes it anew"
        ) from error
    if manifest.get("format") != checked.FORMAT:
        raise FileFormatError(f"{folder.manifest} is of another kind: expected that of `tl-vzero corpus`")
    if manifest.get("version") != checked.FORMAT_VERSION:
        raise FileFormatError(
            f"{folder.root} holds a corpus in version {str(manifest.get('version'))[:20]} of its format: expected "
            f"{checked.FORMAT_VERSION}; write it anew in another folder"
        )
    checked.validated(checked.Manifest, manifest, folder.manifest)
    return manifest


def identity_in(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a corpus is of, as its manifest says."""
    return {name: part for name, part in manifest.items() if name not in ALONGSIDE}


def prove(folder: CorpusFolder, identity: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """Prove that a folder is this run's, or make it one where it is new; what is amiss of its manifest, in words.

    Nothing in a folder that is refused is touched. Raises InputError for a corpus of something else, naming what
    differs; OutputPathError for a folder of other files; FileFormatError for a manifest of no known kind.
    """
    reason: OSError | None = None
    for _ in range(TRIES):
        if not _is_new(folder, checked.corpus_hash(identity)):
            return _amiss(folder, identity)
        reason = _begin(folder, identity, names)
        if reason is None:
            return None
    raise OutputPathError(
        f"cannot begin in {folder.root}: {reason}; choose another folder, or try again where another run begins in it"
    )


def repair(folder: CorpusFolder, identity: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Prove the folder again, now that it is locked, and write its manifest anew where it was amiss; messages."""
    amiss = prove(folder, identity, names)
    if amiss is None:
        return []
    folder.manifest.unlink(missing_ok=True)
    _write_manifest(folder, identity, names)
    return [f"manifest.json {amiss}: written anew"]


def _is_new(folder: CorpusFolder, corpus: str) -> bool:
    """Whether there is nothing in it but the beginning of a manifest of this very run."""
    if not folder.root.exists() and not folder.root.is_symlink():
        return True
    # One look, as another run may begin in it meanwhile: what it wrote aside comes and goes.
    return all(
        partial_of(path) == (folder.manifest.name, corpus)
        and (begins_as_ours(path, folder.manifest.name) or not path.exists())
        for path in list(folder.root.iterdir())
    )


def _begin(folder: CorpusFolder, identity: Mapping[str, Any], names: Mapping[str, str]) -> OSError | None:
    """Write the manifest of a new folder; the reason where it could not be, perhaps as somebody was faster."""
    try:
        if not folder.root.exists():
            folder.root.parent.mkdir(parents=True, exist_ok=True)
            folder.root.mkdir()
        _write_manifest(folder, identity, names)
    except (FileExistsError, FileNotFoundError) as error:
        return error
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL character
        raise OutputPathError(f"cannot make the folder {folder.root}: {error}; choose another one") from error
    return None


def _write_manifest(folder: CorpusFolder, identity: Mapping[str, Any], names: Mapping[str, str]) -> None:
    manifest = {**identity, "begun": datetime.now(UTC).isoformat(timespec="seconds"), **names}
    write_whole(folder.manifest, checked.corpus_hash(identity), [(json.dumps(manifest, indent=2) + "\n").encode()])


def _amiss(folder: CorpusFolder, identity: Mapping[str, Any]) -> str | None:
    folder.check_kinds()
    if folder.manifest.exists():
        try:
            before, amiss = identity_in(read_manifest(folder)), None
        except FileFormatError:
            # Also the damaged file must be ours: its name may be that of another program's.
            copy = _copy_in_shards(folder)
            if copy is None or not checked.read_small(folder.manifest, checked.LARGEST_MANIFEST).startswith(BEGINNING):
                raise
            before, amiss = copy, "is damaged"
    else:
        names = {path.name for path in folder.root.iterdir() if partial_of(path) is None}
        copy = _copy_in_shards(folder) if names <= {*SUFFIXES, folder.all_errors.name} else None
        if copy is None:
            raise OutputPathError(
                f"{folder.root} holds files, and no manifest.json: expected a new or empty folder, or one to go on in"
            )
        before, amiss = copy, "is not there"
    was, now = dict(_leaves(before)), dict(_leaves(identity))
    differing = [name for name in {**was, **now} if was.get(name) != now.get(name)]
    if differing:
        differences = "; ".join(f"{name} was {was.get(name)}, is {now.get(name)}" for name in differing)
        raise InputError(
            f"{folder.root} holds a corpus of something else ({differences}): expected the same to go on; choose "
            "another folder"
        )
    return amiss


def _copy_in_shards(folder: CorpusFolder) -> dict[str, Any] | None:
    """What the first shard that can be read says of the corpus."""
    for path in (folder.path("shards", index) for index in folder.indices("shards")):
        try:
            with open_shard(path) as (_, about):
                checked.validated(checked.Identity, about.manifest, path)
                return dict(about.manifest)
        except FileFormatError:
            continue
    return None


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def check_shards(folder: CorpusFolder, identity: Mapping[str, Any]) -> list[str]:
    """Remove what is not whole, so that it is computed again; return messages.

    Raises OutputPathError, with nothing removed, for a file with a name of ours that is not ours.
    """
    corpus, shard_size = checked.corpus_hash(identity), int(identity["options"]["shard_size"])
    check_all_errors(folder)
    doomed = folder.partials(corpus)
    messages = [f"{path.relative_to(folder.root)} was left open when a run was interrupted: removed" for path in doomed]
    for index in sorted({*folder.indices("shards"), *folder.indices("errors"), *folder.indices("done")}):
        shard = _Shard(folder, corpus, index, range(index * shard_size, (index + 1) * shard_size))
        fault = shard.fault()
        if fault is not None:
            messages.append(f"shard {index:05d} {fault}: computed again")
            doomed += [shard.note, shard.scores, shard.errors]  # the note first: what has none does not count
    for path in doomed:
        path.unlink(missing_ok=True)
    return messages


class _Shard:
    """An index of which there are files; a shard of it holds `positions`."""

    def __init__(self, folder: CorpusFolder, corpus: str, index: int, positions: range) -> None:
        self.folder, self.corpus, self.index, self.positions = folder, corpus, index, positions
        self.note, self.scores, self.errors = (folder.path(part, index) for part in ("done", "shards", "errors"))

    def fault(self) -> str | None:
        """What is wrong with its files; raises OutputPathError for one that is not ours."""
        done = self._done()
        if done is None:
            reason: str | None = f"its note {self._name(self.note)} cannot be read"
        else:
            reason = self._change(self.scores, done.scores) or self._change(self.errors, done.errors)
            reason = reason or self._miscount(done)
        if self.scores.exists() and not self._are_our_scores(done):
            raise _foreign(self.scores)
        if reason is None:
            return None
        if self.errors.exists() and not self._are_our_errors(done):
            raise _foreign(self.errors)
        return f"is damaged ({reason})" if self.note.exists() else "was not finished"

    def _done(self) -> checked.Done | None:
        """What the note says; None where it is not there or damaged."""
        if not self.note.exists():
            return None
        try:
            return self.folder.note(self.index, self.corpus)
        except FileFormatError as error:
            beginning = json.dumps({"format": "tl_vzero.corpus.shard", "corpus": self.corpus})[:-1].encode()
            if not checked.read_small(self.note, checked.LARGEST_NOTE).startswith(beginning):
                raise _foreign(self.note) from error
            return None

    def _change(self, path: Path, written: checked.Written | None) -> str | None:
        """What is wrong with a file that was written, or was not."""
        name = self._name(path)
        if written is None:
            return f"{name} was not written" if path.exists() else None
        if not path.exists():
            return f"{name} is not there"
        n_bytes = path.stat().st_size
        if n_bytes != written.n_bytes:
            return f"{name} has {n_bytes} bytes, and {written.n_bytes} were written"
        return None if _hashes(path).sha256 == written.sha256 else f"{name} is not what was written: its hash differs"

    def _miscount(self, done: checked.Done) -> str | None:
        """What the note says wrongly of files that are what was written."""
        failed = 0
        with open_shard(self.scores) as (file, _):
            rows = file.metadata.num_rows
        if self.errors.exists():
            with open_regular(self.errors, follow_links=False) as lines:
                failed = sum(1 for _ in lines)
        if (rows, failed) == (done.rows, done.failed):
            return None
        return f"its note counts {done.rows} sentences and {done.failed} failed ones, and there are {rows} and {failed}"

    def _are_our_scores(self, done: checked.Done | None) -> bool:
        try:
            with open_shard(self.scores) as (_, about):
                return (checked.corpus_hash(about.manifest), about.shard) == (self.corpus, self.index)
        except FileFormatError:
            return done is not None and _has_a_piece_of(self.scores, done.scores)

    def _are_our_errors(self, done: checked.Done | None) -> bool:
        if holds_failures(self.errors, self.positions):
            return True
        return done is not None and done.errors is not None and _has_a_piece_of(self.errors, done.errors)

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder.root).as_posix()


def _has_a_piece_of(path: Path, written: checked.Written) -> bool:
    return any(one == other for one, other in zip(_hashes(path).pieces, written.pieces, strict=False))


def _hashes(path: Path) -> checked.Written:
    with open_regular(path, follow_links=False) as file:
        return hashes_of(file)


def _foreign(path: Path) -> OutputPathError:
    return OutputPathError(
        f"{path} is not what was written there, and nothing in it shows that it ever was: move it away, and the same "
        "command computes it anew; nothing was changed"
    )
