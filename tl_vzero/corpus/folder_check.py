"""What lies in a folder that is proven to be a corpus of this run: what is whole stays, what is damaged goes.

Only a file that is ours by its name and by its contents is ever taken away:

- a shard, where what it says of itself names this corpus and this shard;
- a shard or an errors file of which a piece is what the note says was written: a damaged one;
- an errors file without a note, where it holds failed sentences of that shard and nothing else;
- a note that begins as the notes of this corpus do.

Where a file has a name of ours and other contents, the run is refused, and nothing is taken away.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tl_vzero.corpus.reading import about_shard, rows_in_shard
from tl_vzero.corpus.schemas import LARGEST_NOTE, Done, Written, corpus_hash, read_small
from tl_vzero.corpus.shards import CorpusFolder, check_all_errors, hashes_of, holds_failures, note_beginning, read_note
from tl_vzero.errors import FileFormatError, OutputPathError
from tl_vzero.files import open_regular


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
