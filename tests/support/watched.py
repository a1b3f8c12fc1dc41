"""Watching for what loading must never do: start a program, reach for the network, or ask at the keyboard."""

import builtins
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """What was attempted, which is refused; empty at the end where loading is as it should be."""
    attempts: list[str] = []
    programs = tmp_path_factory.mktemp("programs")
    for name in ("uv", "pip", "pip3", "python", "python3", "ninja", "git"):
        program = programs / name
        program.write_text(f'#!/bin/sh\necho {name} "$@" >> {programs}/ran\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")

    def refuse(what: str) -> Any:
        def refused(*arguments: Any, **options: Any) -> Any:
            attempts.append(f"{what} {arguments[-1:]}")
            raise OSError(f"{what} is watched")

        return refused

    monkeypatch.setattr(subprocess.Popen, "__init__", refuse("subprocess"))
    monkeypatch.setattr(subprocess.Popen, "__repr__", lambda self: "Popen", raising=False)
    for name in ("system", "popen", "posix_spawn", "posix_spawnp", "execv", "execve", "execvp", "fork", "forkpty"):
        monkeypatch.setattr(os, name, refuse(f"os.{name}"))
    for name in ("connect", "connect_ex"):
        monkeypatch.setattr(socket.socket, name, refuse("network"))
    monkeypatch.setattr(socket, "getaddrinfo", refuse("network"))
    monkeypatch.setattr(builtins, "input", refuse("keyboard"))
    # Where these are set, nothing would be tried, and nothing proved.
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    yield attempts
    assert not (programs / "ran").exists(), (programs / "ran").read_text()


def code_that_leaves(trace: Path, *class_names: str) -> str:
    """A module that leaves a trace when it is imported, and has the classes that a folder asks for."""
    classes = "".join(f"class {name}:\n    pass\n" for name in class_names)
    return f"from pathlib import Path\nPath({str(trace)!r}).write_text('ran')\n{classes}"
