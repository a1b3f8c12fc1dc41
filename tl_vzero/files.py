"""Reading and writing files whole or not at all, and values as plain JSON types."""

import json
import os
import shutil
import stat
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import fields, is_dataclass
from math import isfinite, nan, prod
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, NoReturn, Union, get_args, get_origin, get_type_hints
from uuid import uuid4

from tl_vzero.errors import FileFormatError, InputTypeError, OutputPathError, foreign_errors_as, shown

if TYPE_CHECKING:
    from torch import Tensor

# What is kept as safetensors, tensors with their labels: by the name of its class, the format and its version.
FORMATS = {"Scores": ("tl_vzero.scores", "1"), "BaselineValues": ("tl_vzero.baseline_values", "1")}
LARGEST_TEXT = 2**28  # bytes: a thousand times the largest file of text that the package writes or reads
LARGEST_LABELS = 2**24  # bytes, of a file of one tensor: those of 100,000 tokens, whose map would fill a disk
LARGEST_HEADER = LARGEST_LABELS + 1000  # with what safetensors says of the values
N_BYTES = {"F16": 2, "BF16": 2, "F32": 4, "F64": 8}  # of the numbers that scores are
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "bars"}


def path_of(path: object) -> Path:
    """A path that a caller names; raises InputTypeError for what is none."""
    if not isinstance(path, str | Path):
        raise InputTypeError(f"the path is {type(path).__name__}: expected a path (str or pathlib.Path)")
    return Path(path)


def folder_of(path: object) -> Path:
    """A folder that a caller names, `~` expanded, and as it is spelt where there is no such user, as in a shell.

    Raises InputTypeError for what is no path.
    """
    folder = path_of(path)
    try:
        return folder.expanduser()
    except RuntimeError:
        return folder


def check_writable(path: str | Path) -> Path:
    """Check at the door that a file can be written here; raises OutputPathError with the reason.

    Raises InputTypeError for what is no path.
    """
    target = path_of(path)
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = stat.S_IFREG
    except (OSError, ValueError) as error:  # links in a circle, a name that is too long or holds a NUL character
        raise OutputPathError(f"cannot write {target}: {error}; choose another path") from error
    if stat.S_ISDIR(mode):
        raise OutputPathError(f"cannot write {target}: it is a folder; give a file name")
    if stat.S_ISBLK(mode) or stat.S_ISSOCK(mode):
        raise OutputPathError(f"cannot write {target}: it is a disk or a socket; give a file name")
    changed = [target] if target.exists() else []
    if stat.S_ISREG(mode):
        folder = _behind_links(target).parent
        if not folder.is_dir():
            raise OutputPathError(f"cannot write {target}: the folder {folder} does not exist; create it first")
        changed.append(folder)
    if not all(os.access(path, os.W_OK) for path in changed):
        raise OutputPathError(f"cannot write {target}: permission denied; choose another path")
    return target


def open_regular(path: str | Path, *, follow_links: bool = True) -> BinaryIO:
    """Open a file for reading; raises FileFormatError for what is no regular file, such as a pipe, which may hang.

    With `follow_links=False` a symbolic link is refused too. Raises OSError where the file cannot be opened.
    """
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    if not follow_links:
        if Path(path).is_symlink():
            raise FileFormatError(f"{path} is a symbolic link: expected a file")
        flags |= getattr(os, "O_NOFOLLOW", 0)  # also where the link is made just now
    descriptor = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise FileFormatError(f"{path} is no regular file: expected one, not a folder, pipe, socket or device")
    return os.fdopen(descriptor, "rb")


def write_atomically(path: str | Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file beside `path`, then rename it; a failure leaves nothing behind.

    Through a symbolic link the file that it names is written. A device or pipe, such as /dev/stdout, stays what it is
    and takes the finished content.
    """
    target = check_writable(path)
    with foreign_errors_as(OutputPathError, f"cannot write {target}"):
        output = _open_stream(target)
        if output is None:
            _replace(_behind_links(target), write)
            return
        with os.fdopen(output, "wb") as stream, tempfile.TemporaryDirectory() as folder:
            partial = Path(folder) / "partial"
            write(partial)
            with partial.open("rb") as content:
                shutil.copyfileobj(content, stream)


def _replace(target: Path, write: Callable[[Path], object]) -> None:
    partial = target.with_name(f".{uuid4().hex}.partial")
    try:
        # Opened here, as the kernel then applies the umask, which a process can only read by changing it.
        os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        mode = (target if target.exists() else partial).stat().st_mode & 0o777
        partial.chmod(mode)
        write(partial)
        partial.chmod(mode)  # safetensors puts a file of its own there
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _behind_links(target: Path) -> Path:
    return Path(os.path.realpath(target)) if target.is_symlink() else target


def _open_stream(target: Path) -> int | None:
    """A descriptor to write to, where a file must not take the place of `target`."""
    if not target.exists():
        return None
    for stream, descriptor in ((sys.stdout, 1), (sys.stderr, 2)):
        with suppress(AttributeError, OSError, ValueError):  # there is none, or it is closed
            if os.path.samestat(os.fstat(descriptor), target.stat()):
                stream.flush()
                return os.dup(descriptor)
    if target.is_file():
        return None
    return _open_at_once(target)


def _open_at_once(target: Path, flags: int = 0) -> int:
    """A descriptor to write to; raises OSError for a pipe without a reader, as nobody may ever read it."""
    waits_not = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)
    descriptor = os.open(target, os.O_WRONLY | waits_not | flags, 0o666)
    os.set_blocking(descriptor, True)
    return descriptor


def append_line(path: Path, line: str) -> None:
    """Add a line to a file, or make it; raises OutputPathError. The lines of several processes do not mix."""
    with (
        foreign_errors_as(OutputPathError, f"cannot write {path}"),
        os.fdopen(_open_at_once(path, os.O_APPEND | os.O_CREAT), "ab", buffering=0) as file,
    ):
        file.write(f"{line}\n".encode("utf-8", "backslashreplace"))  # one write a line


def write_text(path: str | Path, text: str) -> None:
    r"""Write a text file in UTF-8, whole or not at all; half of a surrogate pair as \udxxx, which JSON reads back."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8", errors="backslashreplace"))


def read_text(path: str | Path) -> str:
    """Read a file of UTF-8; raises FileFormatError for what is none, is too large, or cannot be opened."""
    try:
        with open_regular(path) as file:
            n_bytes = os.fstat(file.fileno()).st_size
            if n_bytes > LARGEST_TEXT:
                raise FileFormatError(f"{path} has {n_bytes} bytes: expected at most {LARGEST_TEXT}")
            content = file.read(LARGEST_TEXT)  # it may have grown
        return content.decode("utf-8-sig")
    except OSError as error:
        raise FileFormatError(f"{path} cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise FileFormatError(f"{path} is no text in UTF-8 ({error}): save it as UTF-8") from error


def parse_json(text: str) -> Any:
    """Read JSON as the package writes it.

    Raises ValueError for what is none, a key that occurs twice, a number that is not finite, an integer of thousands
    of digits, and brackets nested too deeply.
    """
    return _loads(text, parse_constant=_not_finite, parse_float=_finite)


def parse_row(text: str) -> Any:
    """Read one line of JSON lines that anybody wrote: as `parse_json`, but NaN and infinities are numbers too."""
    return _loads(text)


def _loads(text: str, **options: Any) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_without_repeated_keys, **options)
    except RecursionError as error:
        raise ValueError("brackets are nested too deeply") from error


def _without_repeated_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        raise ValueError(f"the key {shown(_repeated([key for key, _ in pairs]))} occurs twice")
    return mapping


def _finite(digits: str) -> float:
    value = float(digits)
    return value if isfinite(value) else _not_finite(digits)


def _not_finite(digits: str) -> NoReturn:
    raise ValueError(f"{digits[:40]} is no finite number")


def _repeated(names: Sequence[str]) -> str | None:
    return next((name for name, count in Counter(names).items() if count > 1), None)


def to_plain(value: Any) -> Any:
    """A result as plain JSON types; a number that is not finite becomes None."""
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_plain(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {str(key): to_plain(entry) for key, entry in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [to_plain(entry) for entry in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def from_plain(kind: Any, plain: Any) -> Any:
    """The value of a type that `to_plain` wrote; None stands for NaN where the type is float.

    Raises KeyError, TypeError or ValueError for what it did not write, such as a text for a number.
    """
    origin, arguments = get_origin(kind), get_args(kind)
    if origin in (Union, UnionType):
        (other,) = (argument for argument in arguments if argument is not type(None))
        return None if plain is None else from_plain(other, plain)
    if origin is tuple:
        return tuple(from_plain(arguments[0], entry) for entry in _of_type(plain, list))
    if origin is Literal:
        if plain not in arguments:
            raise ValueError(f"{plain!r} is none of {', '.join(map(repr, arguments))}")
        return plain
    if origin is not None and issubclass(origin, Mapping):
        return {key: from_plain(arguments[1], entry) for key, entry in _of_type(plain, dict).items()}
    if is_dataclass(kind) and isinstance(kind, type):
        hints, record = get_type_hints(kind), _of_type(plain, dict)
        return kind(**{field.name: from_plain(hints[field.name], record[field.name]) for field in fields(kind)})
    if kind is float:
        return nan if plain is None else float(_of_type(plain, int, float))
    return _of_type(plain, kind) if kind in (int, str, bool) else plain


def _of_type(plain: Any, *kinds: type) -> Any:
    # Not isinstance: true is no number.
    if type(plain) not in kinds:
        raise TypeError(f"{str(plain)[:80]!r} is {type(plain).__name__}: expected {kinds[-1].__name__}")
    return plain


def check_header(path: object, names: Sequence[str], separator: str | None = None) -> None:
    """Check the names of a table's columns; `separator` is that of its text, None for a table that is no text.

    Raises FileFormatError for a name that occurs twice, and for one column whose name holds another separator.
    """
    repeated = _repeated([name for name in names if name])  # columns without a name are nobody's
    if repeated is not None:
        raise FileFormatError(
            f"{path} has the column {shown(repeated)} twice: expected each name once; rename one of them"
        )
    for other, plural in SEPARATORS.items():
        if separator is not None and len(names) == 1 and other != separator and other in names[0]:
            raise FileFormatError(
                f"{path} has one column, {shown(names[0])}, which holds {plural}: expected {SEPARATORS[separator]} "
                f"between columns; save it with {SEPARATORS[separator]}"
            )


def write_labelled(path: str | Path, kind: str, tensors: "Mapping[str, Tensor]", labels: str) -> None:
    """Write the tensors of a kind in FORMATS, "values" and others, and its JSON labels as safetensors."""
    from safetensors.torch import save_file

    file_format, version = FORMATS[kind]
    # Half of a surrogate pair has no UTF-8; written as JSON's own escape, it is read back as it was.
    labels = labels.encode("utf-8", "backslashreplace").decode("utf-8")
    header = {"format": file_format, "version": version, "labels": labels}
    written = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    write_atomically(path, lambda partial: save_file(written, partial, metadata=header))


def read_labelled(
    path: str | Path, kind: str, shapes_of: Callable[[Any], Mapping[str, list[int]]]
) -> "tuple[dict[str, Tensor], Any]":
    """Read what `write_labelled` wrote; raises FileFormatError for anything else.

    `shapes_of` says what tensors labels describe, of what shapes: others are never read. All but "values" may be
    missing.
    """
    from safetensors.torch import load

    with foreign_errors_as(FileFormatError, f"{shown(path)} is no path"):
        if not path_of(path).exists():
            raise FileFormatError(f"no file {path}: expected a file written by {kind}.save")
    with foreign_errors_as(FileFormatError, f"{path} is no {kind} file, as {kind}.save writes it"):
        # Read and not mapped: a file that is cut while it is mapped ends the process.
        with open_regular(path) as file:
            length = file.read(8)
            n_header = int.from_bytes(length, "little")
            if not 0 < n_header <= LARGEST_HEADER:
                raise FileFormatError(f"{path} holds no {kind}: expected a file written by {kind}.save")
            header = file.read(n_header)
            about = parse_json(header.decode("utf-8"))
            labels = parse_json(_labels_in(path, kind, about))
            n_bytes = _n_bytes(path, kind, about, shapes_of(labels))
            if os.fstat(file.fileno()).st_size != len(length) + n_header + n_bytes:
                raise FileFormatError(f"{path} is not as long as its header says: expected all that {kind}.save wrote")
            content = file.read(n_bytes)
        return load(length + header + content), labels


def _labels_in(path: str | Path, kind: str, about: Any) -> str:
    file_format, version = FORMATS[kind]
    metadata = about.get("__metadata__") if isinstance(about, dict) else None
    if not isinstance(metadata, dict) or metadata.get("format") != file_format:
        raise FileFormatError(f"{path} holds no {kind}: expected a file written by {kind}.save")
    if metadata.get("version") != version:
        raise FileFormatError(
            f"{path} has {kind} format {shown(metadata.get('version'))}: this version reads {version}"
        )
    labels = metadata.get("labels")
    if not isinstance(labels, str):
        raise FileFormatError(f"{path} holds no labels: expected a file written by {kind}.save")
    return labels


def _n_bytes(path: str | Path, kind: str, about: dict[str, Any], shapes: Mapping[str, list[int]]) -> int:
    """How long the tensors of a file are; raises FileFormatError where the file says something else."""
    tensors = {name: tensor for name, tensor in about.items() if name != "__metadata__"}
    if not {"values"} <= set(tensors) <= set(shapes) or not all(isinstance(of, dict) for of in tensors.values()):
        raise FileFormatError(
            f"{path} holds other tensors than {', '.join(shapes)}: expected a file written by {kind}.save"
        )
    for name, tensor in tensors.items():
        if tensor.get("dtype") not in N_BYTES:
            raise FileFormatError(
                f"{path} holds numbers of the type {shown(tensor.get('dtype'))}: expected {', '.join(N_BYTES)}"
            )
        if tensor.get("shape") != shapes[name]:
            raise FileFormatError(
                f"{path} holds {name} of shape {shown(tensor.get('shape'))}: its labels describe {shapes[name]}"
            )
    return sum(prod(shapes[name]) * N_BYTES[tensor["dtype"]] for name, tensor in tensors.items())
