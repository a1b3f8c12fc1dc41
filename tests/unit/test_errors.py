"""Errors and warnings as whoever meets them sees them: nothing that they quote acts on a terminal."""

import pickle
import re
import warnings
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from tl_vzero import errors
from tl_vzero.errors import FileFormatError, InputWarning, TLVZeroError, escaped, unknown_name

CLASSES = [
    each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, TLVZeroError | Warning)
]
# What terminals act on (ECMA-48, C0 and C1), what reorders a line (Unicode UAX 9), and what no encoding writes.
ACTS = [
    *map(chr, (*range(0x20), *range(0x7F, 0xA0))),
    *"\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069\u2028\u2029",
    "\ud800",
    "\udbff",
    "\udc80",
    "\udfff",
]


@pytest.mark.parametrize("character", [each for each in ACTS if each not in "\n\t"], ids=ascii)
def test_what_acts_is_written_as_its_number(character: str) -> None:
    shown = escaped(f"a{character}b")
    assert shown.isascii() and shown.isprintable() and f"{ord(character):02x}" in shown.lower().replace("\\r", "0d")


def test_all_else_stays_as_it_is() -> None:
    for text in ("", "a\nb\tc", "é 日本 👋🏽 👩\u200d👧 שלום \u200b\ufeff", "\\x1b", "'\"<&>"):
        assert escaped(text) == text
    others = "".join(chr(code) for code in range(0x110000) if not 0xD800 <= code <= 0xDFFF)
    others = others.translate(dict.fromkeys(map(ord, ACTS)))
    assert escaped(others) == others


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_error_and_warning_shows_what_it_quotes_escaped(kind: type[Exception]) -> None:
    raised = kind("no token \x1b[2J\u202e\udc80 here")
    assert str(raised) == f"{raised}" == r"no token \x1b[2J\u202e\udc80 here"
    assert raised.args == ("no token \x1b[2J\u202e\udc80 here",)
    assert str(pickle.loads(pickle.dumps(raised))) == str(raised)


def test_a_warning_that_is_printed_is_escaped() -> None:
    shown = warnings.formatwarning(InputWarning("\x1b[2J"), InputWarning, "file.py", 1)  # type: ignore[arg-type]
    assert "\x1b" not in shown


def test_an_error_in_an_error_is_escaped_once() -> None:
    inner = FileFormatError("\x1b")
    assert str(FileFormatError(f"outer: {inner}")) == r"outer: \x1b"
    assert str(unknown_name("method", "\x9b31m", ["alti"])).isprintable()


@pytest.mark.parametrize(
    ("typed", "said"),
    [("alty", "'alti'"), ("ALTI", "'alti'"), ("Attention", "'attention'"), ("decompX", "'DecompX'"), ("xyz", "")],
)
def test_the_nearest_name_is_offered_whatever_its_case(typed: str, said: str) -> None:
    message = str(unknown_name("method", typed, ["attention", "alti", "DecompX"]))
    assert message.endswith(f"; did you mean {said}?" if said else "alti, DecompX")


ORIGINS = {
    '{"dir_info": {"editable": true}, "url": "file:///home/me/tl_vzero"}': ".",
    '{"dir_info": {}, "url": "file:///home/me/tl_vzero"}': ".",
    '{"archive_info": {}, "url": "file:///home/me/tl_vzero-1-py3-none-any.whl"}': "tl-vzero",
    '{"vcs_info": {"vcs": "git", "commit_id": "1c6c"}, "url": "https://example.org/tl_vzero"}': "tl-vzero",
    None: "tl-vzero",  # from a package index
}


@pytest.mark.parametrize("origin", ORIGINS, ids=repr)
def test_an_extra_is_installed_from_where_the_package_was(origin: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Installed:
        def read_text(self, name: str) -> str | None:
            return origin if name == "direct_url.json" else ""

    monkeypatch.setattr(errors, "distribution", lambda name: Installed())
    assert errors.install_command("explore") == f"pip install '{ORIGINS[origin]}[explore]'"


def test_a_clone_that_was_not_installed_installs_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(errors, "distribution", absent)
    assert errors.install_command("images") == "pip install '.[images]'"


def test_every_hint_names_an_extra_that_there_is() -> None:
    root = Path(errors.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in root.rglob("*.py")]
    named = {extra for text in texts for extra in re.findall(r"install_command\(['\"](.+?)['\"]\)", text)}
    assert named == {"adapters", "explore", "gradients", "images", "minilm"}
    assert not [text for text in texts if re.search(r"pip install '?(tl-vzero|\.)\[", text)]
