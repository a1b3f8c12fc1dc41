"""How large a corpus will be, from its first sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

from tl_vzero.corpus.columns import SUMMARIES, Columns
from tl_vzero.corpus.parts import Ready

LABEL_BYTES = 14  # of a token: its text, its id, its word and whether it is special, compressed
UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Estimate:
    """About how many bytes `sentences` take; None where their number is not known beforehand."""

    sentences: int | None
    bytes_a_sentence: float

    @property
    def n_bytes(self) -> float | None:
        """Of all sentences together."""
        return None if self.sentences is None else self.sentences * self.bytes_a_sentence

    def in_words(self, folder: Path) -> str:
        """What a user should know before the run."""
        each = f"about {sized(self.bytes_a_sentence)} a sentence"
        free = disk_usage(folder).free
        if self.n_bytes is None:
            return f"{each}, of sentences whose number is not known beforehand; {sized(free)} are free"
        told = f"about {self.sentences} sentences, {each}, {sized(self.n_bytes)} in all; {sized(free)} are free"
        if self.n_bytes > free:
            told += ": too little. The run stops cleanly when the disk is full; rows 'target' or 'summary' need less"
        return told


def estimate_of(sample: Sequence[Ready], sentences: int | None, columns: Columns, n_layers: int) -> Estimate:
    """What the sample's sentences need, on average."""
    total = sum(_bytes_of(len(each.sentence), columns, n_layers) for each in sample)
    return Estimate(sentences, total / max(1, len(sample)))


def _bytes_of(length: int, columns: Columns, n_layers: int) -> int:
    numbers = {"all": length**2, "target": length, "summary": len(SUMMARIES)}[columns.rows]
    return n_layers * numbers * len(columns.methods) * columns.dtype.itemsize + length * LABEL_BYTES


def sized(n_bytes: int | float) -> str:
    """A number of bytes for people.

    >>> sized(3_400_000)
    '3.4 MB'
    """
    for unit in UNITS:
        if n_bytes < 1000 or unit == UNITS[-1]:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    raise AssertionError("the last unit holds everything")
