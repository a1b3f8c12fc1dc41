"""What the JSON files of a corpus may hold, with types and bounds: whatever else lies there is an error in words."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from tl_vzero.errors import FileFormatError
from tl_vzero.files import open_regular

FORMAT = "tl_vzero.corpus"
FORMAT_VERSION = "3"

LARGEST_MANIFEST, LARGEST_NOTE = 2**20, 2**16  # bytes; both have a few thousand
LONGEST_INTEGER = 19  # digits, those of 64 bits

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Size = Annotated[int, Field(ge=0, lt=2**60)]
ShardIndex = Annotated[int, Field(ge=0, lt=2**40)]
Kind = TypeVar("Kind", bound=BaseModel)


class _Strict(BaseModel):
    """Plain data of exactly these types."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class _Input(_Strict):
    """What was read. More may be said of an input than is used here."""

    model_config = ConfigDict(extra="allow")

    format: str
    sha256: Hash
    bytes: Size


class _Options(_Strict):
    model_config = ConfigDict(extra="allow")

    methods: Annotated[dict[str, dict[str, JsonValue]], Field(min_length=1)]
    rows: Literal["all", "target", "summary"]
    shard_size: Annotated[int, Field(ge=1, lt=2**40)]


class Identity(_Strict):
    """What a corpus is of, of which a manifest and every shard hold a copy."""

    model_config = ConfigDict(extra="ignore")

    format: Literal["tl_vzero.corpus"]
    version: Literal["3"]
    input: _Input
    model: dict[str, JsonValue]
    layers: Annotated[list[Annotated[int, Field(ge=0, lt=10_000)]], Field(min_length=1, max_length=10_000)]
    options: _Options
    versions: dict[str, JsonValue]


class Manifest(Identity):
    """The identity, and what is noted alongside."""

    begun: str
    input_name: str
    model_name: str | None


class _Method(_Strict):
    stage: Literal["raw", "rollout"]
    identity: bool


class About(_Strict):
    """What a shard says of itself."""

    manifest: dict[str, JsonValue]
    shard: ShardIndex
    methods: dict[str, _Method]
    n_layers: Annotated[int, Field(ge=1, lt=10_000)]


class Written(_Strict):
    """A file as it was written. By the hashes of its pieces a damaged file is told from another one."""

    n_bytes: Size
    sha256: Hash
    pieces: Annotated[list[Hash], Field(max_length=64)]


class Done(_Strict):
    """That a shard is finished: of which corpus it is, and its files."""

    format: Literal["tl_vzero.corpus.shard"]
    corpus: Hash
    shard: ShardIndex
    rows: Size
    failed: Size
    scores: Written
    errors: Written | None


class Failed(_Strict):
    """A line of an errors file: a record without scores."""

    position: Size
    id: Annotated[str, Field(min_length=1, max_length=2**20)]
    reason: str


def parsed(kind: type[Kind], content: bytes | str, what: object) -> Kind:
    """JSON of a kind, checked; raises FileFormatError for anything else."""
    return validated(kind, parsed_object(content, what), what)


def validated(kind: type[Kind], plain: Mapping[str, Any], what: object) -> Kind:
    """Plain data of a kind, checked; raises FileFormatError that says what is wrong first, without the data."""
    try:
        return kind.model_validate(plain)
    except RecursionError as error:
        raise FileFormatError(f"{what} cannot be read: it is nested too deep") from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        fault = f"{'.'.join(map(str, first['loc']))}: {first['msg']}"[:300]
        raise FileFormatError(f"{what} cannot be read: {fault}") from error


def parsed_object(content: bytes | str, what: object) -> dict[str, Any]:
    """A JSON object; raises FileFormatError for anything else, however deep or long."""
    try:
        plain = json.loads(content, parse_int=_integer)
    except (ValueError, RecursionError) as error:
        raise FileFormatError(f"{what} cannot be read: it is no JSON ({type(error).__name__})") from error
    if not isinstance(plain, dict):
        raise FileFormatError(f"{what} cannot be read: it is {type(plain).__name__}, expected an object")
    return plain


def _integer(digits: str) -> int:
    if len(digits.removeprefix("-")) > LONGEST_INTEGER:
        raise ValueError(f"an integer of {len(digits)} digits")
    return int(digits)


def read_small(path: Path, limit: int) -> bytes:
    """The bytes of a small file; raises FileFormatError where it is large, no regular file or cannot be read."""
    try:
        with open_regular(path, follow_links=False) as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    if len(content) > limit:
        raise FileFormatError(f"{path} has more than {limit} bytes: expected a file that `tl-vzero corpus` wrote")
    return content


def corpus_hash(identity: Mapping[str, Any]) -> str:
    """The name of a corpus in its files: SHA-256 of what it is of."""
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
