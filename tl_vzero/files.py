"""Reading and writing files whole or not at all."""

import json
import os
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from tl_vzero.errors import FileFormatError, OutputPathError

FORMAT = "tl_vzero.scores"
FORMAT_VERSION = "1"


def check_writable(path: str | Path) -> Path:
    """Check at the door that a file can be written here; raises OutputPathError with the reason."""
    target = Path(path)
    if target.is_dir():
        raise OutputPathError(f"cannot write {target}: it is a folder; give a file name")
    folder = target.parent
    if not folder.is_dir():
        raise OutputPathError(f"cannot write {target}: the folder {folder} does not exist; create it first")
    if not os.access(folder, os.W_OK) or (target.exists() and not os.access(target, os.W_OK)):
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
    """Let `write` fill a temporary file beside `path`, then rename it; a failure leaves nothing behind."""
    target = check_writable(path)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
    os.close(handle)
    partial = Path(name)
    try:
        write(partial)
        partial.chmod(0o666 & ~_umask())
        partial.replace(target)
    except OSError as error:
        raise OutputPathError(f"cannot write {target}: {error}") from error
    finally:
        partial.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: str | Path, text: str) -> None:
    """Write a text file in UTF-8, whole or not at all."""
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def write_scores(path: str | Path, values: Tensor, labels: str) -> None:
    """Write one tensor and its JSON labels as safetensors."""
    from safetensors.torch import save_file

    header = {"format": FORMAT, "version": FORMAT_VERSION, "labels": labels}
    tensors = {"values": values.detach().cpu().contiguous()}
    write_atomically(path, lambda partial: save_file(tensors, partial, metadata=header))


def read_scores(path: str | Path) -> tuple[Tensor, dict[str, Any]]:
    """Read what `write_scores` wrote; raises FileFormatError for anything else."""
    from safetensors import SafetensorError, safe_open

    source = Path(path)
    if not source.is_file():
        raise FileFormatError(f"no file {source}: expected a file written by Scores.save")
    try:
        with safe_open(source, framework="pt") as archive:
            header = archive.metadata() or {}
            if header.get("format") != FORMAT:
                raise FileFormatError(f"{source} holds no Scores: expected a file written by Scores.save")
            if header.get("version") != FORMAT_VERSION:
                raise FileFormatError(
                    f"{source} has Scores format {header.get('version')}: this version reads {FORMAT_VERSION}"
                )
            return archive.get_tensor("values"), json.loads(header["labels"])
    except (SafetensorError, json.JSONDecodeError, KeyError, OSError) as error:
        raise FileFormatError(
            f"{source} is no Scores file ({error}): expected a file written by Scores.save"
        ) from error
