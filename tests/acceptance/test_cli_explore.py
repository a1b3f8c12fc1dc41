"""`tl-vzero explore` as a user meets it: what it refuses, how it starts, answers and ends."""

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import urlopen

import pytest
from typer.testing import CliRunner

from tl_vzero.cli import app
from tl_vzero.errors import install_command

RUNNER = CliRunner(env={"COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"})
SENTENCE = "the pictures of some hat [MASK] scaring marcus."
STARTED_WITHIN = 120  # seconds, on a machine that others use too
NOT_INSTALLED = """
import sys
class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if name == "{package}":
            raise ModuleNotFoundError("No module named '{package}'", name=name)
sys.meta_path.insert(0, NotInstalled())
sys.argv = ["tl-vzero", "explore", "--port", "0"]
from tl_vzero.cli import main
main()
"""


# Products of matrices, as a sentence's computation is, without an end.
SLOW = """
import sys, torch
from tl_vzero import explore
def make_report(*given, **options):
    print("computing", flush=True)
    matrix = torch.rand(600, 600)
    while True:
        matrix = torch.nn.functional.normalize(matrix @ matrix)
explore.make_report = make_report
sys.argv = ["tl-vzero", "explore", "--port", "0", "--host", "0.0.0.0"]
from tl_vzero.cli import main
main()
"""


def run(*words: str) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["explore", *words])
    return result.exit_code, result.output


def test_help_names_every_option_and_what_they_are_unless_told_otherwise() -> None:
    code, output = run("--help")
    assert code == 0
    for option in ("--model", "--method", "--max-tokens", "--host", "--port"):
        assert option in output
    assert "127.0.0.1" in output and "8050" in output and "Ctrl-C" in output


def test_an_unknown_model_ends_before_anything_is_answered() -> None:
    code, output = run("--model", "no-such-folder/no-such-model", "--port", "0")
    assert code == 2
    assert output.startswith("error: ") and "no-such-model" in output and "http://" not in output


def test_an_unknown_method_ends_before_anything_is_answered() -> None:
    code, output = run("--method", "altii", "--port", "0")
    assert code == 2
    assert "unknown method 'altii'" in output and "http://" not in output


def test_a_port_in_use_is_told_before_a_model_is_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, output = run("--port", str(port), "--model", "no-such-model")
    assert code == 2
    assert f"error: cannot listen at 127.0.0.1 port {port}" in output and "--port" in output


@pytest.mark.parametrize("package", ["starlette", "uvicorn"])
def test_a_missing_package_is_named_with_the_extra_that_brings_it(package: str) -> None:
    # A new process, in which nothing of the explorer has been imported yet.
    script = NOT_INSTALLED.format(package=package)
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 2
    message = f"error: the explorer needs {package}, which is not installed: {install_command('explore')}"
    assert ended.stderr.strip() == message


@pytest.fixture
def start() -> Iterator[Callable[..., tuple[Any, str]]]:
    """Start the command in a process of its own; gives the process and the address that it prints."""
    processes: list[Any] = []

    def started(*words: str, script: str | None = None) -> tuple[Any, str]:
        command = ["-m", "tl_vzero", "explore", "--port", "0", *words] if script is None else ["-c", script]
        process = subprocess.Popen(
            [sys.executable, *command],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        processes.append(process)
        assert select.select([process.stdout], [], [], STARTED_WITHIN)[0], "nothing was printed"
        return process, process.stdout.readline().split(" ")[0]

    yield started
    for process in processes:
        process.kill()
        process.communicate()


def port_of(address: str) -> int:
    return int(address.split(":")[-1].strip("/"))


def test_it_answers_until_ctrl_c(start: Callable[..., tuple[Any, str]]) -> None:
    process, address = start("the hat [MASK] today.", "--method", "attention", "--max-tokens", "12")
    assert address.startswith("http://127.0.0.1:") and address.endswith("/")
    # Another address of this machine: all of 127.0.0.0/8 leads here, and only 127.0.0.1 is bound.
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", port_of(address)), timeout=5)
    with urlopen(address) as page:
        assert page.status == 200 and "the hat [MASK] today." in page.read().decode()
    parts = {"model": "agreement-mini", "text": SENTENCE}
    with urlopen(f"{address}report?{urlencode(parts)}") as answer:
        methods = [method["name"] for method in json.load(answer)["data"]["methods"]]
    assert methods == ["value_zeroing", "attention"]
    with pytest.raises(HTTPError) as refused:
        urlopen(f"{address}report?{urlencode(parts | {'text': 'hat ' * 11})}")
    assert refused.value.code == 422 and "13 tokens: expected at most 12" in refused.value.read().decode()
    refused.value.close()
    process.send_signal(signal.SIGINT)
    output, complaints = process.communicate(timeout=30)
    assert (process.returncode, output, complaints) == (130, "", "stopped\n")


def test_ctrl_c_ends_it_while_a_sentence_is_computed_and_others_wait(start: Callable[..., tuple[Any, str]]) -> None:
    process, address = start(script=SLOW)
    assert address.startswith("http://0.0.0.0:")
    connections = [socket.create_connection(("127.0.0.1", port_of(address))) for _ in range(3)]
    query = urlencode({"model": "agreement-mini", "text": SENTENCE})
    for connection in connections:
        connection.sendall(f"GET /report?{query} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
    assert process.stdout.readline() == "computing\n"
    begin = time.monotonic()
    process.send_signal(signal.SIGINT)
    output, complaints = process.communicate(timeout=30)
    assert time.monotonic() - begin < 3
    assert process.returncode == 130 and output == ""
    assert "everyone who reaches 0.0.0.0 can use these models" in complaints
    assert complaints.endswith("stopped; the sentence that was being computed is given up\n")
    for connection in connections:
        with connection:
            answer = connection.recv(4096).decode()
            assert answer.startswith("HTTP/1.1 503") and "ended where it was started" in answer
