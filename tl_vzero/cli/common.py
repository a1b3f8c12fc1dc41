"""What the commands share: options, each described once, checks before a model is loaded, errors in words, and files
that are checked first and written last."""

import json
import re
import warnings
import webbrowser
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, is_dataclass
from functools import wraps
from importlib.metadata import version
from inspect import Signature, signature
from pathlib import Path
from platform import python_version
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

import tl_vzero
from tl_vzero.errors import InputWarning, TLVZeroError, escaped
from tl_vzero.files import check_writable, write_text

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

# Click's own class; newer releases of typer hold a copy of click, older ones the package.
UsageError: Any = typer.BadParameter.__base__

DEFAULT_MODEL = "agreement-mini"
DTYPES = ("float32", "float64", "float16", "bfloat16")


def position(text: str) -> int | str:
    """A position, or the text of a token."""
    try:
        return int(text)
    except ValueError:
        return text


TextArgument = Annotated[
    str | None,
    typer.Argument(
        help="The sentence; [MASK] marks the target of a masked model. Default: one that fits the model.",
        show_default=False,
    ),
]
ModelOption = Annotated[
    str, typer.Option(help="agreement-mini, all-MiniLM-L6-v2, a Hugging Face folder, or a hub name.")
]
DeviceOption = Annotated[
    str | None, typer.Option("--device", help="cpu, cuda, cuda:1, mps, ... Default: cuda where there is one.")
]
DtypeOption = Annotated[str | None, typer.Option("--dtype", help=f"{', '.join(DTYPES)}. Default: float32.")]
LayersOption = Annotated[
    list[int] | None, typer.Option("--layer", help="A layer, from 0; may be repeated. Default: all.")
]
MethodsOption = Annotated[
    list[str] | None,
    typer.Option("--method", help="A name that `tl-vzero methods` lists; may be repeated. Default: the quick ones."),
]
EffectsOption = Annotated[
    list[str] | None,
    typer.Option("--effect", help="An effect beside zero ablation, such as logit_lens; may be repeated."),
]
TargetOption = Annotated[
    Any,  # typer knows no int | str | None
    typer.Option(
        "--target",
        parser=position,
        metavar="POSITION|TOKEN",
        help="The target: its position (negative: from the end), or its token where that occurs once. Default: the "
        "only [MASK], the last token of a causal model, or where a classifier's head reads.",
    ),
]
StackOption = Annotated[
    str | None, typer.Option(help="Of an encoder-decoder: encoder, decoder, or cross (decoder on encoder).")
]
DecoderInputsOption = Annotated[
    str | None,
    typer.Option(
        help="What the decoder reads: for --stack decoder and cross, and for any prediction of the decoder's."
    ),
]
OpenOption = Annotated[bool, typer.Option("--open", help="Open the page in the browser.")]


@dataclass(frozen=True)
class ModelOptions:
    """The model of a command, and how it is loaded and run."""

    model: ModelOption = DEFAULT_MODEL
    device: DeviceOption = None
    dtype: DtypeOption = None
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False

    def check(self, methods: Sequence[str] | None = None, layers: Sequence[int] | None = None) -> None:
        """Raise for a method, a layer or a dtype that there is not, before a model is loaded."""
        from tl_vzero.choices import chosen, one_of
        from tl_vzero.models.hub import layer_count

        for method in methods or ():
            one_of("method", method, tl_vzero.METHODS)
        if self.dtype is not None:
            one_of("dtype", self.dtype, DTYPES)
        count = layer_count(self.model) if layers else None
        if count is not None:
            chosen("--layer", layers, count, "layers of the model:")

    def load(
        self, methods: Sequence[str] | None = None, layers: Sequence[int] | None = None, *, device: str | None = None
    ) -> "nn.Module":
        """The model, after `check`; on `device` where the command line names none."""
        self.check(methods, layers)
        import torch

        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        return tl_vzero.load_model(self.model, device=self.device or device, dtype=dtype)


@dataclass(frozen=True)
class SentenceOptions(ModelOptions):
    """The model and the sentence or pair that it reads."""

    text: TextArgument = None
    pair: Annotated[str | None, typer.Option(help="A second text, read with the sentence as a pair.")] = None
    target: TargetOption = None

    def sentence(self, model: "nn.Module") -> str | tuple[str, str]:
        """What the model reads: by default a sentence that fits it."""
        from tl_vzero.targets import default_text

        text = default_text(model) if self.text is None else self.text
        return text if self.pair is None else (text, self.pair)


@dataclass(frozen=True)
class BaselineOptions:
    """What is put in a value's place."""

    baseline: Annotated[
        str,
        typer.Option(
            metavar="zero|mean|FILE",
            help="What takes a value's place: zero, the mean of the sentence's own, or what `tl-vzero values` wrote.",
        ),
    ] = "zero"

    def read(self) -> "str | tl_vzero.BaselineValues":
        """The baseline for a call; raises before a model is loaded for what is no name and no file of values."""
        from tl_vzero.errors import unknown_name
        from tl_vzero.inputs.baselines import NAMES

        if self.baseline in NAMES:
            return self.baseline
        if not (Path(self.baseline).suffix or Path(self.baseline).exists()):
            raise unknown_name("--baseline", self.baseline, (*NAMES, "a file that `tl-vzero values` wrote"))
        return tl_vzero.BaselineValues.load(self.baseline)


@dataclass(frozen=True)
class FileOptions:
    """Where numbers and table are written, beside what is printed; raises OutputPathError before any work."""

    json_file: Annotated[Path | None, typer.Option("--json", help="Also write the numbers to this file.")] = None
    csv_file: Annotated[Path | None, typer.Option("--csv", help="Also write the table to this file.")] = None

    def __post_init__(self) -> None:
        for file in (self.json_file, self.csv_file):
            if file is not None:
                check_writable(file)

    def write(self, numbers: Callable[[], Any], table: "Callable[[], pd.DataFrame]") -> None:
        """Write the numbers as JSON and the table as CSV, each where a file for it is named."""
        if self.json_file is not None:
            write_text(self.json_file, json.dumps(numbers(), ensure_ascii=False))
        if self.csv_file is not None:
            write_text(self.csv_file, table().to_csv(index=False))
        for file in (self.json_file, self.csv_file):
            if file is not None:
                say(f"wrote {file}", err=True)  # not among numbers that go to /dev/stdout


def say(text: str, *, err: bool = False) -> None:
    """Print a text so that no token, file or model that it names can act on the terminal."""
    typer.echo(escaped(text), err=err)  # noqa: TID251


@contextmanager
def _usage_errors_escaped() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        error.message = escaped(error.message)
        raise


class _Commands(TyperGroup):
    """The commands; what one is called wrongly with is written escaped."""

    make_context = _usage_errors_escaped()(TyperGroup.make_context)
    invoke = _usage_errors_escaped()(TyperGroup.invoke)


def below_help(*examples: str) -> str:
    """Examples as --help shows them, a line each."""
    return "\n\n".join(["Examples:", *(f"tl-vzero {example}" for example in examples)])


app = typer.Typer(
    name="tl-vzero",
    cls=_Commands,
    help="Which tokens does a Transformer layer really mix into a token? Value Zeroing (Mohebbi et al. 2023).",
    epilog=below_help("report --open", 'map "the authors near the hat [MASK] today." --layer 1', "explore --open"),
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def _say_version(is_wanted: bool) -> bool:
    if is_wanted:
        uses = ", ".join(f"{name} {version(name)}" for name in ("transformer-lens", "transformers", "torch"))
        say(f"tl-vzero {tl_vzero.__version__} ({uses}, Python {python_version()})")
        raise typer.Exit
    return is_wanted


@app.callback()
def _of_all_commands(
    version: Annotated[
        bool, typer.Option("--version", callback=_say_version, is_eager=True, help="Say which versions are installed.")
    ] = False,
) -> None:
    """Hold what stands before a command."""


def command(group: typer.Typer, name: str, *examples: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a command, errors in words and examples below its --help.

    A parameter that is annotated with a dataclass stands for the dataclass's fields: each is an option.
    """

    def registered(function: Callable[..., None]) -> Callable[..., None]:
        stated = signature(function).parameters.values()
        shared: dict[str, Any] = {one.name: one.annotation for one in stated if is_dataclass(one.annotation)}

        @wraps(function)
        def called(**values: Any) -> None:
            with errors_in_words():
                for part, options in shared.items():
                    values[part] = options(**{option: values.pop(option) for option in signature(options).parameters})
                function(**values)

        words = name if group is app else f"{group.info.name} {name}"
        # A line of the docstring is no line of --help.
        purpose = "\n\n".join(" ".join(part.split()) for part in str(function.__doc__).split("\n\n"))
        epilog = below_help(*(f"{words} {example}".rstrip() for example in examples))
        # What typer reads: the options' names, types and defaults.
        parameters = [
            option.replace(kind=option.KEYWORD_ONLY)
            for one in stated
            for option in (signature(shared[one.name]).parameters.values() if one.name in shared else [one])
        ]
        vars(called)["__signature__"] = Signature(parameters)
        called.__annotations__ = {option.name: option.annotation for option in parameters}
        group.command(name, help=purpose, epilog=epilog)(called)
        return called

    return registered


def open_page(page: Path | str) -> None:
    """Open a page or an address in the browser; where there is none, a line says where the page is."""
    address = page.resolve().as_uri() if isinstance(page, Path) else page
    try:
        is_open = webbrowser.open(address)
    except webbrowser.Error:
        is_open = False
    if not is_open:
        say(f"there is no browser here to open the page: it is at {address}", err=True)


# Arguments by the options that set them, for messages that were written for callers in Python.
_OPTIONS = {
    **{
        name: f"--{name}"
        for name in ("target", "baseline", "alignment", "stack", "spans", "heads", "rows", "protocol", "cues", "over")
    },
    **{
        name: f"--{name.replace('_', '-')}"
        for name in ("decoder_inputs", "per_head", "text_column", "second_text_column")
    },
    "target_ids": "--good and --bad",
    "destinations": "--destination",
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
        ("BaselineValues.save", "`tl-vzero values`"),
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

    An InputWarning is a line of text, too.
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
