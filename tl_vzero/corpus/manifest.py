"""What a corpus is of: input, model, options and versions, all of which a resumed run must share.

A folder is proven to be of this very run before anything in it is touched: by its manifest or, where that is missing
or damaged, by a shard, which holds a copy. A new folder is one that is not there, or is empty; what a run leaves in it
that was killed before its manifest was whole bears the hash of what the run is of.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import nn

from tl_vzero.corpus.folder import (
    SUFFIXES,
    CorpusFolder,
    about_shard,
    begins_as_ours,
    check_all_errors,
    hashes_of,
    holds_failures,
    note_beginning,
    parts_of_partial,
    read_note,
    rows_in_shard,
    write_new,
)
from tl_vzero.corpus.schemas import (
    FORMAT,
    FORMAT_VERSION,
    LARGEST_MANIFEST,
    LARGEST_NOTE,
    Done,
    Identity,
    Manifest,
    Written,
    corpus_hash,
    parsed,
    parsed_object,
    read_small,
)
from tl_vzero.errors import FileFormatError, InputError, OutputPathError
from tl_vzero.files import open_regular
from tl_vzero.models.facts import facts_of

# What lies in a folder that is proven to be a corpus of this run: what is whole stays, what is damaged goes.
#
# Only a file that is ours by its name and by its contents is ever taken away:
#
# - a shard, where what it says of itself names this corpus and this shard;
# - a shard or an errors file of which a piece is what the note says was written: a damaged one;
# - an errors file without a note, where it holds failed sentences of that shard and nothing else;
# - a note that begins as the notes of this corpus do.
#
# Where a file has a name of ours and other contents, the run is refused, and nothing is taken away.


@dataclass
class _Findings:
    """What was found, in words, and the files to be taken away."""

    messages: list[str] = field(default_factory=list)
    doomed: list[Path] = field(default_factory=list)


def check_shards(folder: CorpusFolder, identity: Mapping[str, Any]) -> list[str]:
    """Take away what is not whole, so that it is computed again; what was found, in words.

    Raises OutputPathError, with nothing taken away, for a file with a name of ours that is not ours.
    """
    corpus, findings = corpus_hash(identity), _Findings()
    check_all_errors(folder)
    for path in folder.partials(corpus):
        findings.messages.append(f"{path.relative_to(folder.root)} was left open when a run was interrupted: removed")
        findings.doomed.append(path)
    shard_size = int(identity["options"]["shard_size"])
    for number in sorted({*folder.numbers("shards"), *folder.numbers("errors"), *folder.numbers("done")}):
        _Shard(folder, corpus, number, range(number * shard_size, (number + 1) * shard_size)).judge(findings)
    for path in findings.doomed:
        path.unlink(missing_ok=True)
    return findings.messages


@dataclass(frozen=True)
class _Shard:
    """A number of which there are files; a shard of it holds `positions`."""

    folder: CorpusFolder
    corpus: str
    number: int
    positions: range

    def judge(self, findings: _Findings) -> None:
        """Find what is wrong with its files; raises OutputPathError for one that is not ours."""
        note, shard, errors = (path(self.number) for path in (self.folder.note, self.folder.shard, self.folder.errors))
        done = self._done(note)
        if done is None:
            fault = f"its note {self._named(note)} cannot be read"
        else:
            fault = self._fault(shard, done.scores) or self._fault(errors, done.errors) or self._miscount(done) or ""
        if shard.exists() and not self._is_our_shard(shard, done):
            raise _foreign(shard)
        if done is not None and not fault:
            return
        if errors.exists() and not self._are_our_errors(errors, done):
            raise _foreign(errors)
        reason = f"is damaged ({fault})" if note.exists() else "was not finished"
        findings.messages.append(f"shard {note.stem} {reason}: computed again")
        findings.doomed += [note, shard, errors]  # the note first: what has none does not count

    def _done(self, note: Path) -> Done | None:
        """What the note says; None where it is not there or damaged."""
        if not note.exists():
            return None
        try:
            return read_note(self.folder, self.number, self.corpus)
        except FileFormatError as error:
            if not read_small(note, LARGEST_NOTE).startswith(note_beginning(self.corpus)):
                raise _foreign(note) from error
            return None

    def _fault(self, path: Path, written: Written | None) -> str | None:
        """What is wrong with a file that was written, or was not."""
        if written is None:
            return f"{self._named(path)} was not written" if path.exists() else None
        if not path.exists():
            return f"{self._named(path)} is not there"
        n_bytes = path.stat().st_size
        if n_bytes != written.n_bytes:
            return f"{self._named(path)} has {n_bytes} bytes, and {written.n_bytes} were written"
        if hashes_of(path).sha256 != written.sha256:
            return f"{self._named(path)} is not what was written: its hash differs"
        return None

    def _miscount(self, done: Done) -> str | None:
        """What the note says wrongly of files that are what was written."""
        errors = self.folder.errors(self.number)
        failed = 0
        if errors.exists():
            with open_regular(errors, follow_links=False) as lines:
                failed = sum(1 for _ in lines)
        counted = (rows_in_shard(self.folder.shard(self.number)), failed)
        if counted != (done.rows, done.failed):
            return "its note counts {} sentences and {} failed ones, and there are {} and {}".format(
                done.rows, done.failed, *counted
            )
        return None

    def _is_our_shard(self, shard: Path, done: Done | None) -> bool:
        try:
            about = about_shard(shard)
        except FileFormatError:
            return done is not None and _has_a_piece_of(shard, done.scores)
        return (corpus_hash(about.manifest), about.shard) == (self.corpus, self.number)

    def _are_our_errors(self, errors: Path, done: Done | None) -> bool:
        written = None if done is None else done.errors
        return holds_failures(errors, self.positions) or (written is not None and _has_a_piece_of(errors, written))

    def _named(self, path: Path) -> str:
        return path.relative_to(self.folder.root).as_posix()


def _has_a_piece_of(path: Path, written: Written) -> bool:
    return any(one == other for one, other in zip(hashes_of(path).pieces, written.pieces, strict=False))


def _foreign(path: Path) -> OutputPathError:
    return OutputPathError(
        f"{path} is not what was written there, and nothing in it shows that it ever was: move it away, and the same "
        "command computes it anew; nothing was changed"
    )


ALONGSIDE = ("begun", "input_name", "model_name")  # noted, and no part of what a corpus is
BEGINNING = b'{\n  "format": "tl_vzero.corpus",\n'

# Another run that begins in the same new folder at the same time makes this one look again, once or twice.
TRIES = 10


def prove(folder: CorpusFolder, identity: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """Prove that a folder is this run's, or make it one where it is new; what is amiss of its manifest, in words.

    Nothing in a folder that is refused is touched. Raises InputError for a corpus of something else, naming what
    differs; OutputPathError for a folder of other files; FileFormatError for a manifest of no known kind.
    """
    corpus = corpus_hash(identity)
    reason: OSError | None = None
    for _ in range(TRIES):
        if not _is_new(folder, corpus):
            return _amiss(folder, identity)
        reason = _begin(folder, corpus, _manifest(identity, names))
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
    write_new(folder.manifest, corpus_hash(identity), _manifest(identity, names))
    return [f"manifest.json {amiss}: written anew"]


def tokenizer_hash(model: nn.Module) -> str | None:
    """SHA-256 of how a model's tokenizer cuts text; None where it has none."""
    tokenizer = facts_of(model).tokenizer
    if tokenizer is None:
        return None
    if getattr(tokenizer, "is_fast", False):
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        # Calls set these two as they need them.
        described = {name: part for name, part in parts.items() if name not in ("truncation", "padding")}
    else:
        described = {"vocabulary": tokenizer.get_vocab(), "special": sorted(tokenizer.all_special_tokens)}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def read_manifest(folder: CorpusFolder) -> dict[str, Any]:
    """The manifest of a corpus; raises FileFormatError where it is none, or one of another version."""
    if not folder.manifest.is_file() and not folder.manifest.is_symlink():
        raise FileFormatError(
            f"{folder.root} is no corpus, it holds no manifest.json: expected a folder that `tl-vzero corpus` wrote"
        )
    content = read_small(folder.manifest, LARGEST_MANIFEST)
    try:
        data = parsed_object(content, folder.manifest)
    except FileFormatError as error:
        raise FileFormatError(
            f"{folder.root} is no corpus, or its manifest is damaged ({error}): where its shards are whole, the "
            "command that wrote it writes it anew"
        ) from error
    if data.get("format") != FORMAT:
        raise FileFormatError(f"{folder.manifest} is of another kind: expected that of `tl-vzero corpus`")
    if data.get("version") != FORMAT_VERSION:
        raise FileFormatError(
            f"{folder.root} holds a corpus in version {str(data.get('version'))[:20]} of its format: expected "
            f"{FORMAT_VERSION}; write it anew in another folder"
        )
    parsed(Manifest, content, folder.manifest)
    return data


def identity_in(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """What a corpus is of, as its manifest says."""
    return {name: part for name, part in manifest.items() if name not in ALONGSIDE}


def _manifest(identity: Mapping[str, Any], names: Mapping[str, str]) -> bytes:
    data = {**identity, "begun": datetime.now(UTC).isoformat(timespec="seconds"), **names}
    return (json.dumps(data, indent=2) + "\n").encode()


def _is_new(folder: CorpusFolder, corpus: str) -> bool:
    """Whether there is nothing in it but the beginning of a manifest of this very run."""
    if not folder.root.exists() and not folder.root.is_symlink():
        return True
    if not folder.root.is_dir():
        raise OutputPathError(
            f"cannot make the folder {folder.root}: it is a file, or a link to nothing; choose another one"
        )
    # One look, as another run may begin in it meanwhile: what it wrote aside comes and goes.
    return all(
        parts_of_partial(path.name) == (folder.manifest.name, corpus)
        and (begins_as_ours(path, folder.manifest.name) or not path.exists())
        for path in list(folder.root.iterdir())
    )


def _begin(folder: CorpusFolder, corpus: str, manifest: bytes) -> OSError | None:
    """Write the manifest of a new folder; the reason where it could not be, perhaps as somebody was faster."""
    try:
        if not folder.root.exists():
            folder.root.parent.mkdir(parents=True, exist_ok=True)
            folder.root.mkdir()
        write_new(folder.manifest, corpus, manifest)
    except (FileExistsError, FileNotFoundError) as error:
        return error
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL character
        raise OutputPathError(f"cannot make the folder {folder.root}: {error}; choose another one") from error
    return None


def _amiss(folder: CorpusFolder, identity: Mapping[str, Any]) -> str | None:
    folder.check_kinds()
    if folder.manifest.exists():
        try:
            before = identity_in(read_manifest(folder))
        except FileFormatError:
            # Also the damaged file must be ours: its name may be that of another program's.
            copy = _copy_in_shards(folder)
            if copy is None or not read_small(folder.manifest, LARGEST_MANIFEST).startswith(BEGINNING):
                raise
            _check_same(folder, copy, identity)
            return "is damaged"
        _check_same(folder, before, identity)
        return None
    names = {path.name for path in folder.root.iterdir() if parts_of_partial(path.name) is None}
    copy = _copy_in_shards(folder) if names <= {*SUFFIXES, folder.all_errors.name} else None
    if copy is None:
        raise OutputPathError(
            f"{folder.root} holds files, and no manifest.json: expected a new or empty folder, or one to go on in"
        )
    _check_same(folder, copy, identity)
    return "is not there"


def _copy_in_shards(folder: CorpusFolder) -> dict[str, Any] | None:
    """What the first shard that can be read says of the corpus."""
    for number in folder.numbers("shards"):
        try:
            copy = about_shard(folder.shard(number)).manifest
            parsed(Identity, json.dumps(copy), folder.shard(number))
        except FileFormatError:
            continue
        return dict(copy)
    return None


def _check_same(folder: CorpusFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    was, known = dict(_leaves(before)), dict(_leaves(now))
    differing = [name for name in {**was, **known} if was.get(name) != known.get(name)]
    if differing:
        told = "; ".join(f"{name} was {was.get(name)}, is {known.get(name)}" for name in differing)
        raise InputError(
            f"{folder.root} holds a corpus of something else ({told}): expected the same to go on; choose another "
            "folder"
        )


def _leaves(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    for name, each in tree.items():
        if isinstance(each, Mapping) and each:
            yield from _leaves(each, f"{above}{name}.")
        else:
            yield f"{above}{name}", each
