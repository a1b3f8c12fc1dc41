"""What the commands share: options, errors in words, and files that are checked first and written last."""

import json
import re
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
    from torch.nn import Module

DEFAULT_MODEL = "agreement-mini"

TextArgument = Annotated[
    str | None,
    typer.Argument(
        help="The sentence; [MASK] marks the target of a masked model. Default: one that fits the model.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str,
    typer.Option("--model", help="agreement-mini, all-MiniLM-L6-v2, a Hugging Face folder, or a hub name."),
]
LayersOption = Annotated[
    list[int] | None, typer.Option("--layer", help="A layer, from 0; may be repeated. Default: all.")
]
TargetOption = Annotated[
    int | None,
    typer.Option(
        "--target",
        help="Position of the target, negative: from the end. Default: the only [MASK], the last token of a causal "
        "model, or [CLS] of a classifier.",
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


def text_for(model: "Module", text: str | None) -> str:
    """The sentence, or one that fits the model."""
    from tl_vzero.targets import default_text

    return default_text(model) if text is None else text


def write_numbers(json_file: Path | None, numbers: Any) -> None:
    """Write numbers as JSON, where a file for them is named."""
    if json_file is not None:
        write_text(json_file, json.dumps(numbers, ensure_ascii=False))


def write_table(csv_file: Path | None, table: "pd.DataFrame") -> None:
    """Write a table as CSV, where a file for it is named."""
    if csv_file is not None:
        write_text(csv_file, table.to_csv(index=False))


# Arguments by the options that set them, for messages that were written for callers in Python.
_OPTIONS = {
    **{name: f"--{name}" for name in ("target", "stack", "spans", "heads", "rows", "protocol", "cues", "over")},
    **{name: f"--{name.replace('_', '-')}" for name in ("decoder_inputs", "per_head", "text_column")},
    "target_ids": "--good and --bad",
    "layers": "--layer",
    "methods": "--method",
    "input_format": "--format",
    "folder": "--out",
    "tokenizer": "a tokenizer",
}
_ARGUMENT = re.compile(
    rf"\b({'|'.join(_OPTIONS)})=([\"']?)([\w-]*)\2|\b({'|'.join(n for n in _OPTIONS if '_' in n)})\b"
)


def in_options(message: str) -> str:
    """A message in the words of the command line.

    >>> in_options("target_ids hold 'arre'; expected rows='target', or load the model with tokenizer=")
    "--good and --bad hold 'arre'; expected --rows target, or load the model with a tokenizer"
    """
    for python, option in (
        ("resume=False", "another --out"),
        ("(add_special_tokens=False)", "in Python"),
        ("give a target", "give --target"),
    ):
        message = message.replace(python, option)
    return _ARGUMENT.sub(lambda match: f"{_OPTIONS[match[1] or match[4]]} {match[3] or ''}".rstrip(), message)


_show_as_python = warnings.showwarning


def _show(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
    if issubclass(category, InputWarning):
        say(f"warning: {in_options(str(message))}", err=True)
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
        say(f"error: {in_options(str(error))}", err=True)
        raise typer.Exit(2) from None
    except KeyboardInterrupt:
        say("stopped", err=True)
        raise typer.Exit(130) from None
