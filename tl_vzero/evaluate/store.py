"""A folder of finished parts, so that a long evaluation goes on where it was.

1. `options.json` says of what the parts are; a folder of other options is refused.
2. Each part is one JSON file, written whole or not at all as soon as it is finished.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tl_vzero.errors import FileFormatError, InputError, OutputPathError
from tl_vzero.evaluate.plain_data import from_plain, to_plain
from tl_vzero.files import folder_of, read_json, write_text

OPTIONS = "options.json"
FORMAT = "tl_vzero.evaluation"
FORMAT_VERSION = "1"

Part = TypeVar("Part")


@dataclass(frozen=True)
class Store:
    """Parts by name, in a folder; without a folder nothing is kept."""

    folder: Path | None

    def has(self, name: str) -> bool:
        """Whether a part is finished."""
        return self.folder is not None and self._path(name).is_file()

    def part(self, name: str, kind: type[Part], compute: Callable[[], Part]) -> Part:
        """A part that was finished before, or else computed now and kept.

        Raises FileFormatError for a file that holds no such part.
        """
        # Also what is computed now goes through plain types: a result does not show whether it was interrupted.
        plain = self._read(name) if self.has(name) else json.loads(json.dumps(to_plain(compute()), allow_nan=False))
        try:
            made: Part = from_plain(kind, plain)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise FileFormatError(
                f"{self._path(name)} is no {kind.__name__} ({type(error).__name__}: {error}): delete it to have it "
                "computed again"
            ) from error
        if self.folder is not None and not self.has(name):
            write_text(self._path(name), json.dumps(plain, ensure_ascii=False, allow_nan=False))
        return made

    def _path(self, name: str) -> Path:
        return Path(self.folder or ".") / f"{name}.json"

    def _read(self, name: str) -> Any:
        path = self._path(name)
        try:
            return read_json(path)
        except FileFormatError as error:
            raise FileFormatError(f"{path} cannot be read ({error}): delete it to have it computed again") from error


def open_store(folder: str | Path | None, options: Mapping[str, Any]) -> Store:
    """The store in a folder, made if it is not there; None keeps nothing.

    Raises InputError for a folder of other options, naming what differs, OutputPathError for one that cannot be
    written or holds other files.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     open_store(folder, {"seed": 0}).part("number", int, lambda: 3)
    ...     open_store(folder, {"seed": 0}).part("number", int, lambda: 4)
    3
    3
    """
    if folder is None:
        return Store(None)
    where = folder_of(folder)
    try:
        where.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # a name that is too long, or holds a NUL character
        raise OutputPathError(f"cannot make the folder {where}: {error}; choose another one") from error
    plain = {"format": FORMAT, "version": FORMAT_VERSION, **to_plain(options)}
    path = where / OPTIONS
    if path.is_file():
        _check_same(where, _options(path), plain)
    elif any(where.iterdir()):
        raise OutputPathError(
            f"{where} holds files, and no {OPTIONS}: expected a new or empty folder, or one to go on in"
        )
    else:
        write_text(path, json.dumps(plain, ensure_ascii=False, indent=2) + "\n")
    return Store(where)


def _options(path: Path) -> Mapping[str, Any]:
    try:
        read = read_json(path)
    except FileFormatError as error:
        raise FileFormatError(f"{path} cannot be read ({error}): choose another folder") from error
    if not isinstance(read, dict):
        raise FileFormatError(f"{path} holds no options: choose another folder")
    return read


def _check_same(where: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    differing = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    if differing:
        told = "; ".join(f"{name} was {before.get(name)}, is {now.get(name)}" for name in differing)
        raise InputError(
            f"{where} holds an evaluation of other options ({told}): expected the same to go on; choose another folder"
        )
