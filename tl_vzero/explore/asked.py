"""What a person asks for, as it comes in an address."""

from collections.abc import Mapping
from dataclasses import dataclass

from tl_vzero.errors import InputError

LONGEST_POSITION = 20  # characters
LONGEST_TEXT = 4000  # characters; the tokens of a sentence are counted by the explorer


@dataclass(frozen=True)
class Asked:
    """A sentence for one of the models; `target` is a position, `corrupted` the sentence to patch into."""

    model: str
    text: str
    target: int | None = None
    corrupted: str | None = None


def read_asked(query: Mapping[str, str]) -> Asked:
    """Read the parts of an address; raises InputError for what is missing, too long or no number.

    >>> read_asked({"model": "agreement-mini", "text": "the hat [MASK] here.", "target": "3"}).target
    3
    """
    for name in ("model", "text"):
        if not query.get(name, "").strip():
            raise InputError(f"no {name} was given: write one" if name == "text" else "no model was given: choose one")
    for name in ("text", "corrupted"):
        length = len(query.get(name, ""))
        if length > LONGEST_TEXT:
            raise InputError(f"{name} has {length} characters: expected at most {LONGEST_TEXT}")
    return Asked(query["model"], query["text"], _position(query.get("target", "")), query.get("corrupted") or None)


def _position(given: str) -> int | None:
    if not given.strip():
        return None
    try:
        # No sentence has positions of more digits.
        return int(given if len(given) <= LONGEST_POSITION else "")
    except ValueError:
        raise InputError(f"the target is {given[:40]!r}: expected a position, such as 3, or nothing") from None
