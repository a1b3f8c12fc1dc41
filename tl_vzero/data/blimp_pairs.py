"""BLiMP's minimal pairs as published: from a folder of JSONL files, or from the Hugging Face hub."""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tl_vzero.errors import DependencyError, FileFormatError, OfflineError
from tl_vzero.files import parse_row, read_text

# The paper's short names, and the names that BLiMP's files and its configurations on the hub have.
PARADIGM_FILES: Mapping[str, str] = MappingProxyType(
    {
        "ana": "anaphor_number_agreement",
        "dna": "determiner_noun_agreement_2",
        "dnaa": "determiner_noun_agreement_with_adj_2",
        "darn": "distractor_agreement_relational_noun",
        "rpsv": "regular_plural_subject_verb_agreement_1",
    }
)
PAIRS_A_PARADIGM = 1000
HUB_NAME = "nyu-mll/blimp"
PROBE_SECONDS = 1.5
# The published files and the hub's tables name the pair differently.
_PAIR_COLUMNS = ("pairID", "pair_id")
_OTHER_WAY = "or give folder=, where BLiMP's JSONL files lie (data/ of github.com/alexwarstadt/blimp)"


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two sentences as published, alike but for one word; `pair` is the number within the paradigm."""

    paradigm: str
    pair: str
    good: str
    bad: str


def pairs_in_folder(folder: str | Path, paradigm: str) -> list[MinimalPair]:
    """Read a paradigm's file, `<name>.jsonl`.

    Raises FileFormatError for a folder or file that is not there, a line that is no JSON or lacks a column, a pair
    that occurs twice, and a count other than the published 1000.
    """
    where = Path(folder)
    if not where.is_dir():
        raise FileFormatError(f"no folder {where}: expected the folder with BLiMP's JSONL files")
    path = where / f"{PARADIGM_FILES[paradigm]}.jsonl"
    if not path.is_file():
        raise FileFormatError(
            f"no file {path.name} in {where}: expected BLiMP's JSONL files as published, for the paradigm {paradigm}"
        )
    # Not splitlines: JSON may hold what separates lines elsewhere.
    lines = read_text(path).removesuffix("\n").split("\n")
    records = [(f"{path}, line {number}", _parsed(path, number, line)) for number, line in enumerate(lines, start=1)]
    return _pairs(records, paradigm, str(path))


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = parse_row(line)
    except ValueError as error:
        raise FileFormatError(f"{path}, line {number} is no JSON ({error}): expected one pair on each line") from error
    if not isinstance(record, dict):
        raise FileFormatError(
            f"{path}, line {number} is {type(record).__name__}: expected an object with named columns"
        )
    return record


def _pairs(records: Iterable[tuple[str, Mapping[str, Any]]], paradigm: str, source: str) -> list[MinimalPair]:
    pairs = [_pair(record, paradigm, place) for place, record in records]
    if len(pairs) != PAIRS_A_PARADIGM:
        raise FileFormatError(
            f"{source} holds {len(pairs)} pairs: expected the published {PAIRS_A_PARADIGM}; fetch it again"
        )
    if len({pair.pair for pair in pairs}) != len(pairs):
        raise FileFormatError(f"{source} holds a pair number twice: expected the published file; fetch it again")
    return pairs


def _pair(record: Mapping[str, Any], paradigm: str, place: str) -> MinimalPair:
    number = next((name for name in _PAIR_COLUMNS if name in record), _PAIR_COLUMNS[0])
    missing = [name for name in ("sentence_good", "sentence_bad", "UID", number) if name not in record]
    if missing:
        raise FileFormatError(f"{place} has no column {', '.join(missing)}: expected BLiMP's columns as published")
    if record["UID"] != PARADIGM_FILES[paradigm]:
        raise FileFormatError(
            f"{place} is of the paradigm {record['UID']}: expected {PARADIGM_FILES[paradigm]}, as the name says"
        )
    good, bad = record["sentence_good"], record["sentence_bad"]
    if not isinstance(good, str) or not isinstance(bad, str) or type(record[number]) not in (str, int):
        raise FileFormatError(
            f"{place} has {number}={record[number]!r}, sentence_good={good!r}, sentence_bad={bad!r}: expected a number "
            "and two texts, as published"
        )
    return MinimalPair(paradigm, str(record[number]), good, bad)


def pairs_on_hub(paradigm: str) -> list[MinimalPair]:
    """Read a paradigm of `nyu-mll/blimp` by `datasets`, from its cache or over the network.

    Raises DependencyError without the package, OfflineError where the hub is not reached and nothing is cached,
    FileFormatError for another count than the published 1000.
    """
    if find_spec("datasets") is None:
        raise DependencyError(
            f"BLiMP from the hub needs the package datasets: pip install 'tl-vzero[datasets]', {_OTHER_WAY}"
        )
    _check_reachable(paradigm)
    from datasets import load_dataset

    name = PARADIGM_FILES[paradigm]
    try:
        table = load_dataset(HUB_NAME, name, split="train")
    except OSError as error:
        raise OfflineError(f"cannot load {HUB_NAME} ({name}) from the hub: {error}; try again, {_OTHER_WAY}") from error
    source = f"{HUB_NAME} ({name})"
    return _pairs([(f"{source}, row {row}", record) for row, record in enumerate(table)], paradigm, source)


def _check_reachable(paradigm: str) -> None:
    """Ask the hub once, briefly: the library's own retries take 23 seconds to say no."""
    reason = "HF_HUB_OFFLINE is set" if _switched_off() else _why_unreachable()
    if reason is not None and not _is_cached(paradigm):
        raise OfflineError(
            f"cannot load {HUB_NAME} ({PARADIGM_FILES[paradigm]}) from the Hugging Face hub: {reason}, and it is not "
            f"in the local cache; try again with a network, {_OTHER_WAY}"
        )


def _switched_off() -> bool:
    variables = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in variables)


def _why_unreachable() -> str | None:
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(f"{constants.ENDPOINT}/datasets/{HUB_NAME}", timeout=PROBE_SECONDS)
    except httpx.HTTPError as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    return None


def _is_cached(paradigm: str) -> bool:
    from datasets import config

    prepared = Path(config.HF_DATASETS_CACHE) / HUB_NAME.replace("/", "___") / PARADIGM_FILES[paradigm]
    return prepared.is_dir()
