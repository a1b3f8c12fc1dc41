"""What a corpus is of: input, model, options and versions, all of which a resumed run must share."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from torch import nn

from tl_vzero.corpus.arrow import pyarrow
from tl_vzero.corpus.columns import METADATA_KEY
from tl_vzero.corpus.durable import partial_files, write_durably
from tl_vzero.corpus.shards import CorpusFolder
from tl_vzero.errors import FileFormatError, InputError, OutputPathError
from tl_vzero.models.facts import facts_of

FORMAT = "tl_vzero.corpus"
FORMAT_VERSION = "2"
ALONGSIDE = ("begun", "input_name", "model_name")  # told, and no part of what a corpus is


def settle_manifest(folder: CorpusFolder, identity: Mapping[str, Any], names: Mapping[str, str]) -> list[str]:
    """Check the folder's manifest against this run, or write it where there is none; what was found, in words.

    A manifest that cannot be read is written anew where the shards, which hold a copy, are of this same run.

    Raises InputError for a corpus of something else, naming what differs, OutputPathError for a folder that holds
    other files, FileFormatError for a manifest of no known kind.
    """
    for partial in partial_files(folder.root):
        partial.unlink(missing_ok=True)
    told: list[str] = []
    if folder.manifest.is_file():
        before = _read(folder)
        if before is not None:
            _check_same(folder, before, identity)
            return told
        told.append("manifest.json is damaged: written anew")
    before = _copy_in_shards(folder)
    if before is not None:
        _check_same(folder, before, identity)
        told = told or ["manifest.json is not there: written anew"]
    elif not told and any(path.name not in ("locks", "shards", "done", "errors") for path in folder.root.iterdir()):
        raise OutputPathError(
            f"{folder.root} holds files, and no manifest.json: expected a new or empty folder, or one to go on in"
        )
    written = {**identity, "begun": datetime.now(UTC).isoformat(timespec="seconds"), **names}
    write_durably(folder.manifest, (json.dumps(written, ensure_ascii=False, indent=2) + "\n").encode())
    return told


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
    """The manifest of a corpus; raises FileFormatError where it is none."""
    found = _read(folder) if folder.manifest.is_file() else None
    if found is None:
        raise FileFormatError(
            f"{folder.root} is no corpus, or its manifest.json is damaged: expected a folder that `tl-vzero corpus` "
            "wrote; the same command again repairs it"
        )
    return found


def _read(folder: CorpusFolder) -> dict[str, Any] | None:
    """The manifest, or None where the file is damaged."""
    try:
        read = json.loads(folder.manifest.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return read if isinstance(read, dict) and read.get("format") == FORMAT else None


def _copy_in_shards(folder: CorpusFolder) -> dict[str, Any] | None:
    """What the first shard that can be read says of the corpus."""
    pa = pyarrow()
    for path in sorted((folder.root / "shards").glob("*.parquet")):
        try:
            metadata = pa.parquet.read_schema(path).metadata or {}
            return dict(json.loads(metadata[METADATA_KEY])["manifest"])
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError):
            continue
    return None


def _check_same(folder: CorpusFolder, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    was = dict(_leaves({name: each for name, each in before.items() if name not in ALONGSIDE}))
    known = dict(_leaves(now))
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
