"""Errors and warnings: each says what was given, what was expected and what to do."""

import json
import re
import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from importlib.metadata import PackageNotFoundError, distribution
from reprlib import Repr

# Controls except tab and new line, line separators, marks that reorder a text, and halves of surrogate pairs.
_ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def escaped(text: str) -> str:
    """Write a text so that no character of it acts on a terminal: controls, bidi marks and surrogates as escapes.

    >>> print(escaped("hat" + chr(27) + "[2J"))
    hat\\x1b[2J
    """
    return _ACTING.sub(lambda match: match[0].encode("unicode_escape").decode("ascii"), text)


class _Escaped:
    """A message that may quote a token, a file or a model, and that ends up on a terminal."""

    def __str__(self) -> str:
        return escaped(super().__str__())


class TLVZeroError(_Escaped, Exception):
    """Base of every error that tl_vzero raises on purpose."""


class InputError(TLVZeroError, ValueError):
    """An argument has the right type but a value that cannot be used."""


class InputTypeError(TLVZeroError, TypeError):
    """An argument has a type that cannot be used."""


class ModelError(TLVZeroError, ValueError):
    """The model cannot be read, or does not do what Value Zeroing needs."""


class OfflineError(ModelError):
    """A model was asked for by its hub name, and the hub cannot be reached."""


class HeadlessModelError(ModelError):
    """A prediction was asked of a model whose prediction head was never trained."""


class ScoresError(TLVZeroError, ValueError):
    """An operation is undefined for this Scores."""


class FileFormatError(TLVZeroError, ValueError):
    """A file is not what its reader expects."""


class OutputPathError(TLVZeroError, ValueError):
    """An output path cannot be written."""


class DependencyError(TLVZeroError, ImportError):
    """A package that only some functions need is not installed."""


class PluginError(TLVZeroError, ImportError):
    """A method that another package brings cannot be loaded or used."""


class MethodNameWarning(_Escaped, UserWarning):
    """Another package brings a method by a name that is taken."""


class ProcessedWeightsWarning(_Escaped, UserWarning):
    """The model's weights were processed in a way that changes Value Zeroing."""


class InputWarning(_Escaped, UserWarning):
    """An input is scored as it was given, and may not be what was meant."""


_QUOTED = Repr()
_QUOTED.maxstring = _QUOTED.maxother = 120

LONGEST_CAUSE = 400  # characters of a foreign exception that a message repeats: some print a whole configuration


class EndsRun(Exception):
    """Base of what leaves a run on purpose, and is no error."""


@contextmanager
def foreign_errors_as(kind: type[TLVZeroError | EndsRun], what: str) -> Iterator[None]:
    """Within, an exception that is none of ours becomes a `kind` that says `what` failed, with its cause chained.

    >>> with foreign_errors_as(ModelError, "the model cannot be run"):
    ...     raise KeyError("position_ids")
    Traceback (most recent call last):
    tl_vzero.errors.ModelError: the model cannot be run: KeyError: 'position_ids'
    """
    try:
        yield
    except (TLVZeroError, EndsRun, Warning):
        raise
    except Exception as error:
        text = shortened(" ".join(str(error).split()), LONGEST_CAUSE)
        raise kind(f"{what}: {type(error).__name__}: {text}") from error


def shortened(text: str, length: int) -> str:
    """A text of at most so many characters; what is cut off ends in a sign for it."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def shown(value: object) -> str:
    """A value as a message quotes it: in short, and also where its own `repr` fails.

    >>> shown("cosin"), shown(list(range(50)))
    ("'cosin'", '[0, 1, 2, 3, 4, 5, ...]')
    """
    return _QUOTED.repr(value)


def warn_caller(message: str, category: type[Warning] = InputWarning) -> None:
    """Give a warning that points to the line outside of this package from which it was called."""
    frame, level, of_caller = sys._getframe(1), 2, 2
    while frame.f_back is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        frame, level = frame.f_back, level + 1
        if package in ("tl_vzero", "jaxtyping"):  # which wraps our functions in the tests
            of_caller = level
    warnings.warn(message, category, stacklevel=of_caller)


def unknown_name(kind: str, name: object, choices: Iterable[str]) -> InputError:
    """Build the error for a name that is not among the choices.

    >>> str(unknown_name("distance", "cosin", ["cosine", "euclidean"]))
    "unknown distance 'cosin': expected one of cosine, euclidean; did you mean 'cosine'?"
    """
    names = list(choices)
    return InputError(f"unknown {kind} {shown(name)}: expected one of {', '.join(names)}{did_you_mean(name, names)}")


def did_you_mean(name: object, names: Iterable[str]) -> str:
    """The end of a message: the name that is nearest to another one, whatever its case; empty where none is near.

    >>> did_you_mean("ALTI", ["alti", "attention"])
    "; did you mean 'alti'?"
    """
    by_lower_case = {choice.lower(): choice for choice in names}
    near = get_close_matches(name.lower(), by_lower_case, n=1) if isinstance(name, str) else []
    return f"; did you mean {by_lower_case[near[0]]!r}?" if near else ""


def install_command(extra: str) -> str:
    """How to install an extra of the package: from the folder that it was installed from, or by its name.

    >>> install_command("explore").startswith("pip install '")
    True
    """
    try:
        origin = json.loads(distribution("tl-vzero").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:  # run from a clone
        origin = {"dir_info": {}}
    return f"pip install '{'.' if 'dir_info' in origin else 'tl-vzero'}[{extra}]'"
