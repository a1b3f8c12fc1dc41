"""What a corpus is read as: records in order, those that can be used and those that cannot."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Protocol, runtime_checkable

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
