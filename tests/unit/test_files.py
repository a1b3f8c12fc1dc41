"""Writing whole or not at all, whatever stands at the path, and reading only what is a file and fits."""

import os
import socket
import stat
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support.state import type_checks_off

import tl_vzero
from tl_vzero import files
from tl_vzero.errors import FileFormatError, InputTypeError, OutputPathError, TLVZeroError
from tl_vzero.files import (
    append_line,
    check_header,
    check_writable,
    folder_of,
    open_regular,
    parse_json,
    parse_row,
    path_of,
    read_text,
    write_text,
)

DEEP = "[" * 200_000
ROOT = os.geteuid() == 0


@pytest.fixture
def umask() -> Iterator[int]:
    before = os.umask(0o027)
    try:
        yield 0o027
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_new_file_has_the_mode_that_the_umask_leaves(tmp_path: Path, umask: int) -> None:
    write_text(tmp_path / "new", "text")
    (tmp_path / "plain").write_text("text")
    assert mode(tmp_path / "new") == mode(tmp_path / "plain") == 0o640


def test_a_file_that_is_written_again_stays_as_private_as_it_was(tmp_path: Path, umask: int) -> None:
    path = tmp_path / "secret"
    path.write_text("before")
    for bits in (0o600, 0o664, 0o400 if ROOT else 0o600):
        path.chmod(bits)
        write_text(path, "after")
        assert path.read_text() == "after" and mode(path) == bits


def test_the_umask_is_never_changed_while_others_make_files(tmp_path: Path, umask: int) -> None:
    ended, modes = threading.Event(), set()

    def make_files() -> None:
        number = 0
        while not ended.is_set():
            path = tmp_path / f"other-{number}"
            os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o666))
            modes.add(mode(path))
            path.unlink()
            number += 1

    other = threading.Thread(target=make_files)
    other.start()
    for number in range(100):
        write_text(tmp_path / f"mine-{number % 3}", "text")
    ended.set()
    other.join()
    assert modes == {0o640}


def test_many_threads_write_one_file_whole(tmp_path: Path) -> None:
    path, texts = tmp_path / "one", [str(number) * 20_000 for number in range(8)]
    threads = [threading.Thread(target=write_text, args=(path, text)) for text in texts * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert [each.name for each in tmp_path.iterdir()] == ["one"]


def test_through_a_link_the_file_that_it_names_is_written(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    target, link, second = tmp_path / "far" / "target", tmp_path / "link", tmp_path / "second"
    target.write_text("before")
    target.chmod(0o600)
    link.symlink_to("far/target")
    second.symlink_to("link")
    write_text(second, "after")
    assert target.read_text() == "after" and mode(target) == 0o600
    assert str(link.readlink()) == "far/target" and str(second.readlink()) == "link"
    assert [each.name for each in (tmp_path / "far").iterdir()] == ["target"]


def test_a_link_that_leads_to_nothing_yet_is_filled(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("to be made")
    write_text(tmp_path / "link", "text")
    assert (tmp_path / "to be made").read_text() == "text" and (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("leads_to", ["link", "missing/target", "folder"])
def test_a_link_that_leads_nowhere_is_told(tmp_path: Path, leads_to: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(leads_to)
    with pytest.raises(OutputPathError, match=r"cannot write .*link"):
        write_text(tmp_path / "link", "text")
    assert sorted(each.name for each in tmp_path.rglob("*")) == ["folder", "link"]


def test_a_device_takes_it_and_stays_a_device() -> None:
    before = Path("/dev/null").stat()
    write_text("/dev/null", "text")
    after = Path("/dev/null").stat()
    assert stat.S_ISCHR(after.st_mode) and (before.st_ino, before.st_mode) == (after.st_ino, after.st_mode)


def test_a_full_device_is_told() -> None:
    with pytest.raises(OutputPathError, match=r"/dev/full.*No space left"):
        write_text("/dev/full", "text")
    assert stat.S_ISCHR(Path("/dev/full").stat().st_mode)


def test_a_pipe_takes_it_and_one_that_nobody_reads_is_told(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(OutputPathError, match=r"cannot write .*pipe"):
        write_text(pipe, "text")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        write_text(pipe, "text")
        assert os.read(reader, 100) == b"text"
    finally:
        os.close(reader)
    assert stat.S_ISFIFO(pipe.stat().st_mode) and [each.name for each in tmp_path.iterdir()] == ["pipe"]


@contextmanager
def own_output(descriptor: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Within, this process writes its output to a descriptor."""
    before = os.dup(1)
    os.dup2(descriptor, 1)
    try:
        with open(1, "w", closefd=False) as output, monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", output)
            yield
    finally:
        os.dup2(before, 1)
        os.close(before)


@pytest.mark.parametrize("path", ["/dev/stdout", "/proc/self/fd/1", "itself"])
def test_what_goes_to_the_file_that_takes_the_output_stands_in_its_place(
    tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "output"
    with output.open("wb") as file, own_output(file.fileno(), monkeypatch):
        sys.stdout.write("before\n")
        write_text(output if path == "itself" else path, "within\n")
        sys.stdout.write("after\n")
    assert output.read_text() == "before\nwithin\nafter\n"


def test_what_goes_to_the_pipe_that_takes_the_output_stands_in_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    with os.fdopen(reader) as read, own_output(writer, monkeypatch):
        os.close(writer)
        sys.stdout.write("before\n")
        write_text("/dev/stdout", "within\n")
        sys.stdout.write("after\n")
        sys.stdout.flush()
        assert os.read(read.fileno(), 1000) == b"before\nwithin\nafter\n"


def test_a_socket_is_refused(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(str(tmp_path / "socket"))
        with pytest.raises(OutputPathError, match="a disk or a socket"):
            check_writable(tmp_path / "socket")
    assert stat.S_ISSOCK((tmp_path / "socket").stat().st_mode)


@pytest.mark.parametrize("name", ["n" * 255, "é" * 127, "a\nb", "x\udc80y", "\x1b[2J", "-", "*"])
def test_any_name_that_a_file_may_have_may_be_written(tmp_path: Path, name: str) -> None:
    write_text(tmp_path / name, "text")
    assert [each.name for each in tmp_path.iterdir()] == [name]


@pytest.mark.parametrize("name", ["n" * 256, "a\0b", "", ".", ".."])
def test_a_name_that_no_file_may_have_is_told(tmp_path: Path, name: str) -> None:
    with pytest.raises(OutputPathError, match="cannot write") as caught:
        write_text(tmp_path / name, "text")
    assert "\0" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, OSError, ValueError, MemoryError])
@pytest.mark.parametrize("there", [True, False])
def test_whatever_ends_the_writing_leaves_what_was_there(
    tmp_path: Path, error: type[BaseException], there: bool
) -> None:
    path = tmp_path / "file"
    if there:
        path.write_text("before")

    def interrupted(partial: Path) -> None:
        partial.write_text("half")
        raise error

    expected = error if error in (KeyboardInterrupt, SystemExit) else OutputPathError
    with pytest.raises(expected):
        files.write_atomically(path, interrupted)
    assert [each.read_text() for each in tmp_path.iterdir()] == (["before"] if there else [])


def test_half_of_a_surrogate_pair_is_written_so_that_json_reads_it_back(tmp_path: Path) -> None:
    write_text(tmp_path / "file", '{"token": "\udc80"}')
    assert parse_json(read_text(tmp_path / "file")) == {"token": "\udc80"}


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _huge(path: Path) -> None:
    path.write_bytes(b"")
    os.truncate(path, 2**40)  # takes no room


NO_JSON: list[Any] = [
    pytest.param(lambda path: None, id="missing"),
    pytest.param(lambda path: path.mkdir(), id="folder"),
    pytest.param(_fifo, id="pipe"),
    pytest.param(lambda path: path.symlink_to("/dev/zero"), id="link to a device"),
    pytest.param(lambda path: path.symlink_to(path.name), id="link to itself"),
    pytest.param(_huge, id="huge"),
    *(
        pytest.param(lambda path, content=content: path.write_bytes(content), id=name)
        for name, content in {
            "empty": b"",
            "no UTF-8": b'"\xff"',
            "UTF-16": '{"a": 1}'.encode("utf-16"),
            "deep": DEEP.encode(),
            "deep objects": b'{"a":' * 200_000,
            "digits": b"9" * 5000,
            "NaN": b'{"a": NaN}',
            "infinity": b"[-Infinity]",
            "infinity by digits": b"1e999",
            "a key twice": b'{"a": {"b": 1, "b": 1}}',
            "two values": b"{} {}",
        }.items()
    ),
]


@pytest.mark.parametrize("make", NO_JSON)
def test_what_is_no_json_of_ours_is_refused_in_words(make: Callable[[Path], Any], tmp_path: Path) -> None:
    path = tmp_path / "read.json"
    make(path)
    with pytest.raises(ValueError, match=r"read\.json|Expecting|Extra data|nested|digits|twice|finite"):
        parse_json(read_text(path))


@pytest.mark.parametrize("text", ["{", DEEP, "9" * 5000, '{"a": 1, "a": 2}'])
def test_a_line_of_anybody_is_refused_for_the_same_reasons_but_may_hold_nan(text: str) -> None:
    with pytest.raises(ValueError, match=r"Expecting|nested|digits|twice"):
        parse_json(text)
    with pytest.raises(ValueError, match=r"Expecting|nested|digits|twice"):
        parse_row(text)
    assert parse_row('{"a": NaN}')["a"] != 0


def test_a_link_is_followed_unless_told_otherwise(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"text")
    (tmp_path / "link").symlink_to("file")
    with open_regular(tmp_path / "link") as file:
        assert file.read() == b"text"
    with pytest.raises(FileFormatError, match="symbolic link"):
        open_regular(tmp_path / "link", follow_links=False)


@pytest.mark.parametrize(
    ("names", "separator", "told"),
    [
        (["text", "id", "text"], ",", "the column 'text' twice"),
        (["text", "text"], None, "the column 'text' twice"),
        (["sentence;cue"], ",", "holds semicolons: expected commas between columns"),
        (["sentence\tcue"], ",", "holds tabs: expected commas"),
        (["sentence|cue"], ",", "holds bars: expected commas"),
        (["sentence,cue"], "\t", "holds commas: expected tabs"),
        (["sep=;"], ",", "holds semicolons"),
    ],
)
def test_a_header_that_is_not_what_was_meant_is_told(names: list[str], separator: str | None, told: str) -> None:
    with pytest.raises(FileFormatError, match=told):
        check_header("table", names, separator)


@pytest.mark.parametrize(
    ("names", "separator"),
    [
        (["text"], ","),
        (["text", "Text", " text"], ","),
        (["text", "", ""], ","),
        (["a;b", "c"], ","),
        (["a;b"], None),
        ([], ","),
    ],
)
def test_any_other_header_passes(names: list[str], separator: str | None) -> None:
    check_header("table", names, separator)


def test_the_errors_are_ours() -> None:
    assert issubclass(FileFormatError, TLVZeroError) and issubclass(OutputPathError, TLVZeroError)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_line_goes_to_a_file_and_never_waits_for_a_pipe(tmp_path: Path) -> None:
    log, pipe = tmp_path / "log", tmp_path / "pipe"
    append_line(log, "one")
    append_line(log, "half \ud83d of a pair")
    assert log.read_text(encoding="utf-8") == "one\nhalf \\ud83d of a pair\n"
    os.mkfifo(pipe)
    with pytest.raises(OutputPathError, match="cannot write"):
        append_line(pipe, "one")


@pytest.mark.parametrize("path", [5, None, b"bytes", ["list"]])
def test_what_is_no_path_is_told(path: Any) -> None:
    for use in (path_of, folder_of, check_writable, tl_vzero.Scores.load):
        with type_checks_off(), pytest.raises(InputTypeError, match="expected a path"):
            use(path)


def test_the_home_of_nobody_is_a_name_like_any_other() -> None:
    assert folder_of("~no-such-user/x") == Path("~no-such-user/x")
    assert folder_of("~/x") == Path.home() / "x"
