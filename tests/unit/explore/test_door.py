"""Who may ask the explorer, and how many at once: over HTTP, with an answer that takes as long as a test wants."""

import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event, Thread
from typing import Any, ClassVar
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'tl-vzero[explore]'")
pytest.importorskip("starlette", reason="starlette is not installed: pip install 'tl-vzero[explore]'")
import uvicorn
from torch import nn

from tl_vzero.explore import MOST_QUESTIONS, Explorer, Question, bound_socket, explorer_app

SOON = 20.0  # seconds, on a machine that others use too


class SlowExplorer(Explorer):
    """Answers the text of a question once it is let to, and keeps the order of what it computed."""

    texts: ClassVar = {"slow": "the hat"}

    def __init__(self) -> None:
        super().__init__({"slow": nn.Identity()})
        self.computed: list[str] = []
        self.release = Event()

    def answer(self, question: Question) -> str:
        self.computed.append(question.text)
        assert self.release.wait(SOON)
        return json.dumps({"text": question.text})


@contextmanager
def running(explorer: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """A real server of an explorer's app at a free port: its address."""
    bound = bound_socket("127.0.0.1", 0)
    server = uvicorn.Server(
        uvicorn.Config(explorer_app(explorer, first_text="the hat"), log_level="critical", timeout_graceful_shutdown=1)
    )
    thread = Thread(target=server.run, kwargs={"sockets": [bound]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{bound.getsockname()[1]}", server
    finally:
        explorer.release.set()
        server.should_exit = True
        thread.join(SOON)
        bound.close()
    assert not thread.is_alive()


@pytest.fixture
def slow() -> SlowExplorer:
    return SlowExplorer()


def get(address: str, path: str = "/report", text: str = "a", **headers: str) -> tuple[int, Any, str]:
    """What comes back: its code, its body and its Retry-After."""
    query = f"?{urlencode({'model': 'slow', 'text': text})}" if path == "/report" else ""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    try:
        with urlopen(Request(f"{address}{path}{query}", headers=named), timeout=SOON) as answer:
            body = answer.read().decode()
            return answer.status, json.loads(body) if path == "/report" else body, ""
    except HTTPError as refused:
        with refused:
            return refused.code, json.loads(refused.read()), refused.headers.get("Retry-After", "")


def until(happens: Callable[[], bool]) -> None:
    end = time.monotonic() + SOON
    while not happens():
        assert time.monotonic() < end, "it does not happen"
        time.sleep(0.01)


FOREIGN = [
    {"Sec_Fetch_Site": "cross-site"},
    {"Sec_Fetch_Site": "same-site"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "no-cors", "Sec_Fetch_Dest": "image"},
    {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "iframe"},
    {"Sec_Fetch_Site": "anything"},
    {"Origin": "https://evil.example"},
    {"Origin": "null"},
    {"Origin": "http://["},
    {"Origin": "http://127.0.0.1:1"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "https://evil.example", "Sec_Fetch_Site": "same-origin"},
]


def test_what_a_page_of_another_site_asks_for_is_refused_and_not_computed(slow: SlowExplorer) -> None:
    slow.release.set()
    with running(slow) as (address, _):
        for path in ("/report", "/", "/explorer.js", "/no-such-path"):
            for headers in FOREIGN:
                code, body, _ = get(address, path, **headers)
                assert code == 403, (path, headers)
                assert "another site" in body["error"]
        assert slow.computed == []


def test_its_own_page_and_a_program_are_answered(slow: SlowExplorer) -> None:
    slow.release.set()
    with running(slow) as (address, _):
        for headers in (
            {},
            {"Sec_Fetch_Site": "same-origin", "Sec_Fetch_Mode": "cors", "Sec_Fetch_Dest": "empty"},
            {"Sec_Fetch_Site": "none", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"},
            {"Origin": address},
            {"Origin": address, "Sec_Fetch_Site": "same-origin"},
        ):
            assert get(address, **headers)[:2] == (200, {"text": "a"}), headers
            assert get(address, "/", **headers)[0] == 200, headers


def test_a_shared_link_to_the_page_may_be_followed_from_anywhere_but_to_no_answer(slow: SlowExplorer) -> None:
    followed = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    slow.release.set()
    with running(slow) as (address, _):
        assert get(address, "/", **followed)[0] == 200
        assert get(address, **followed)[0] == 403


def test_a_refusal_has_the_strict_headers_too(slow: SlowExplorer) -> None:
    with running(slow) as (address, _):
        with pytest.raises(HTTPError) as refused:
            urlopen(Request(f"{address}/report", headers={"Origin": "https://evil.example"}), timeout=SOON)
        with refused.value:
            assert "default-src 'none'" in refused.value.headers["Content-Security-Policy"]
            assert "Access-Control-Allow-Origin" not in refused.value.headers


@contextmanager
def asked_at_once(address: str, slow: SlowExplorer, texts: list[str]) -> Iterator[list[Future[Any]]]:
    """Questions in this order, the first of which is being computed."""
    with ThreadPoolExecutor(len(texts)) as people:
        try:
            answers = []
            for place, text in enumerate(texts):
                answers.append(people.submit(get, address, text=text))
                if place == 0:
                    until(lambda: slow.computed == texts[:1])
                time.sleep(0.1)  # until it is in the line
            yield answers
        finally:
            slow.release.set()


def test_questions_are_computed_one_at_a_time_in_order(slow: SlowExplorer) -> None:
    texts = [f"question {place}" for place in range(5)]
    with running(slow) as (address, _), asked_at_once(address, slow, texts) as answers:
        assert slow.computed == texts[:1]
        slow.release.set()
        assert [answer.result()[:2] for answer in answers] == [(200, {"text": text}) for text in texts]
    assert slow.computed == texts


def test_one_too_many_is_told_that_the_explorer_is_busy(slow: SlowExplorer) -> None:
    texts = [f"question {place}" for place in range(MOST_QUESTIONS)]
    with running(slow) as (address, _), asked_at_once(address, slow, texts) as answers:
        for _ in range(3):
            code, body, retry = get(address, text="one too many")
            assert code == 503 and "busy" in body["error"] and "again" in body["error"] and int(retry) > 0
        assert get(address, "/")[0] == 200  # the page itself is there
        slow.release.set()
        assert {answer.result()[0] for answer in answers} == {200}
        assert get(address, text="later")[:2] == (200, {"text": "later"})
    assert slow.computed == [*texts, "later"]


def raw_question(address: str, text: str) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", int(address.rsplit(":", 1)[1])))
    query = urlencode({"model": "slow", "text": text})
    connection.sendall(f"GET /report?{query} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
    return connection


def test_the_question_of_a_client_that_has_gone_is_not_computed(slow: SlowExplorer) -> None:
    with running(slow) as (address, _), asked_at_once(address, slow, ["first"]) as answers:
        for place in range(MOST_QUESTIONS * 2):  # more than may wait: those that left make room
            with raw_question(address, f"gone {place}"):
                time.sleep(0.03)
            time.sleep(0.12)
        with ThreadPoolExecutor(1) as person:
            last = person.submit(get, address, text="last")
            time.sleep(0.3)
            slow.release.set()
            assert answers[0].result()[0] == 200 and last.result()[:2] == (200, {"text": "last"})
    assert slow.computed == ["first", "last"]


def test_an_answer_whose_asker_left_while_it_was_computed_makes_room_for_the_next(slow: SlowExplorer) -> None:
    with running(slow) as (address, _):
        with raw_question(address, "left"):
            until(lambda: slow.computed == ["left"])
        with ThreadPoolExecutor(1) as person:
            following = person.submit(get, address, text="next")
            time.sleep(0.3)
            assert slow.computed == ["left"]  # one at a time, also then
            slow.release.set()
            assert following.result()[:2] == (200, {"text": "next"})


def test_an_error_while_one_is_computed_makes_room_for_the_next() -> None:
    class Failing(SlowExplorer):
        def answer(self, question: Question) -> str:
            raise SystemExit("a plugin that ends the process")

    failing = Failing()
    with running(failing) as (address, _):
        for _ in range(MOST_QUESTIONS + 1):
            assert get(address)[0] == 500


def test_a_question_with_a_body_keeps_nobody_waiting() -> None:
    explorer = SlowExplorer()
    explorer.release.set()
    with running(explorer) as (address, _):
        host, port = address.removeprefix("http://").split(":")
        held = [socket.create_connection((host, int(port)), SOON) for _ in range(MOST_QUESTIONS)]
        try:
            for sender in held:  # bodies that never come
                sender.sendall(f"GET /report?text=x HTTP/1.1\r\nHost: {host}\r\nContent-Length: 9\r\n\r\n".encode())
            assert all(sender.recv(4096).startswith(b"HTTP/1.1 413") for sender in held)
        finally:
            for sender in held:
                sender.close()
    assert explorer.computed == []
