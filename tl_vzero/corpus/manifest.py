"""What a corpus is of: input, model, options and versions, all of which a resumed run must share.

A folder is proven to be of this very run before anything in it is touched: by its manifest or, where that is missing
or damaged, by a shard, which holds a copy. A new folder is one that is not there, or is empty; what a run leaves in it
that was killed before its manifest was whole bears the hash of what the run is of.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from torch import nn

from tl_vzero.corpus.durable import parts_of_partial, write_new
from tl_vzero.corpus.reading import about_shard
from tl_vzero.corpus.schemas import (
    FORMAT,
    FORMAT_VERSION,
    LARGEST_MANIFEST,
    Identity,
    Manifest,
    corpus_hash,
    parsed,
    parsed_object,
    read_small,
)
from tl_vzero.corpus.shards import SUFFIXES, CorpusFolder, begins_as_ours
from tl_vzero.errors import FileFormatError, InputError, OutputPathError
from tl_vzero.models.facts import facts_of

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
