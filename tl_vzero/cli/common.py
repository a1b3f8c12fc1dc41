"""What the commands share: options, errors in words, and files that are checked first and written last."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_vzero.errors import InputWarning, TLVZeroError, escaped
from tl_vzero.files import check_writable, write_text

if TYPE_CHECKING:
    import pandas as pd

DEFAULT_MODEL = "agreement-mini"
DEFAULT_TEXT = "the pictures of some hat [MASK] scaring marcus."


def position(text: str) -> int | str:
    """A position, or the text of a token."""
    try:
        return int(text)
    except ValueError:
        return text


TextArgument = Annotated[str, typer.Argument(help="The sentence; [MASK] marks the target of a masked model.")]
ModelOption = Annotated[
    str,
    typer.Option("--model", help="agreement-mini, all-MiniLM-L6-v2, a Hugging Face folder, or a hub name."),
]
LayersOption = Annotated[
    list[int] | None, typer.Option("--layer", help="A layer, from 0; may be repeated. Default: all.")
]
TargetOption = Annotated[
    Any,  # typer knows no int | str | None
    typer.Option(
        "--target",
        parser=position,
        metavar="POSITION|TOKEN",
        help="The target: its position (negative: from the end), or its token where that occurs once. Default: the "
        "only [MASK].",
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")]
CsvOption = Annotated[
    Path | None,
    typer.Option("--csv", help="Also write the table to this file; a cell is data, as it is, and never a formula."),
]
PairOption = Annotated[
    str | None, typer.Option("--pair", help="A second text, which the model reads with the sentence as a pair.")
]
QuietOption = Annotated[bool, typer.Option("--quiet", help="No progress bar.")]


def say(text: str, *, err: bool = False) -> None:
    """Print a text so that no token, file or model that it names can act on the terminal."""
    typer.echo(escaped(text), err=err)  # noqa: TID251


def check_files(*paths: Path | None) -> None:
    """Raise OutputPathError for a file that cannot be written, before any work."""
    for path in paths:
        if path is not None:
            check_writable(path)


def write_numbers(json_file: Path | None, numbers: Any) -> None:
    """Write numbers as JSON, where a file for them is named."""
    if json_file is not None:
        write_text(json_file, json.dumps(numbers, ensure_ascii=False))


def write_table(csv_file: Path | None, table: "pd.DataFrame") -> None:
    """Write a table as CSV, where a file for it is named."""
    if csv_file is not None:
        write_text(csv_file, table.to_csv(index=False))


_show_as_python = warnings.showwarning


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    if issubclass(category, InputWarning):
        say(f"warning: {message}", err=True)
    else:
        _show_as_python(message, category, *where, **more)


@contextmanager
def errors_in_words() -> Iterator[None]:
    """Within, an error of the package ends the command with its text and code 2, Ctrl-C with code 130.

    An InputWarning is a line of text, too. Decorates a command as well.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always", InputWarning)
            warnings.showwarning = _show
            yield
    except TLVZeroError as error:
        say(f"error: {error}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say("stopped", err=True)
        raise typer.Exit(130) from None
