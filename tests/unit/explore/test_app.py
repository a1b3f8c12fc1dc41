"""The explorer over HTTP, asked without a browser."""

import json
import logging
from typing import Any

import pytest
from support.decoder import KEYS, decoder_folder
from support.page import Page

import tl_vzero

pytest.importorskip("starlette", reason="starlette is not installed: pip install 'tl-vzero[explore]'")
from plotly.offline import get_plotlyjs
from starlette.testclient import TestClient

from tl_vzero.explore import UNEXPECTED, Explorer, Question, explorer_app, hosts_of

SENTENCE = "the pictures of some hat [MASK] scaring marcus."
ADDRESS = "http://127.0.0.1"
ASKED = {"model": "agreement-mini", "text": SENTENCE}
ODD = "the <script>window.hit=1</script> & </script> \u2028 \N{WOMANS HAT}\u200d שלום [MASK] today."


@pytest.fixture(scope="module")
def explorer() -> Explorer:
    return Explorer({"agreement-mini": tl_vzero.load_model("agreement-mini")}, methods=["attention"])


@pytest.fixture(scope="module")
def client(explorer: Explorer) -> TestClient:
    return TestClient(explorer_app(explorer, first_text=SENTENCE), base_url=ADDRESS)


def policy_of(response: Any) -> dict[str, list[str]]:
    """The content security policy: sources by directive."""
    parts = (part.split() for part in response.headers["content-security-policy"].split(";") if part.strip())
    return {name: sources for name, *sources in parts}


@pytest.mark.parametrize(
    ("path", "media_type"),
    [("/", "text/html"), ("/explorer.js", "text/javascript"), ("/plotly.min.js", "text/javascript")],
)
def test_its_own_files_are_given_with_strict_headers(client: TestClient, path: str, media_type: str) -> None:
    response = client.get(path)
    assert response.status_code == 200
    assert response.headers["content-type"].startswith(media_type)
    policy = policy_of(response)
    assert policy["default-src"] == policy["base-uri"] == policy["form-action"] == ["'none'"]
    assert policy["script-src"] == policy["connect-src"] == ["'self'"]
    assert policy["frame-ancestors"] == ["'none'"]
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert response.headers["cache-control"] == "no-store"
    assert not [name for name in response.headers if name.startswith("access-control")]


def test_the_page_has_no_script_of_its_own_and_fetches_nothing_else(client: TestClient) -> None:
    page = client.get("/").text
    assert page.count("<script src=") == 2
    assert "<script>" not in page and "http://" not in page and "https://" not in page
    assert client.get("/plotly.min.js").text == get_plotlyjs()


def test_the_page_names_the_models_and_the_first_text_as_text() -> None:
    explorer = Explorer({"<b>&": tl_vzero.load_model("agreement-mini")})
    page = TestClient(explorer_app(explorer, first_text=ODD), base_url=ADDRESS).get("/").text
    assert "<option>&lt;b&gt;&amp;</option>" in page
    assert "window.hit=1</script>" not in page
    data = page.split('id="report-data">')[1].split("</script>")[0]
    examples = explorer.examples()["<b>&"]
    texts = {"<b>&": SENTENCE}
    assert json.loads(data) == {"model": "<b>&", "text": ODD, "texts": texts, "examples": {"<b>&": examples}}


def test_without_a_first_text_the_page_opens_with_one_that_fits_the_model() -> None:
    explorer = Explorer({"next": tl_vzero.load_model(decoder_folder()), "mini": tl_vzero.load_model("agreement-mini")})
    page = TestClient(explorer_app(explorer), base_url=ADDRESS).get("/").text
    data = json.loads(page.split('id="report-data">')[1].split("</script>")[0])
    del data["examples"]
    assert data == {"model": "next", "text": KEYS, "texts": {"next": KEYS, "mini": SENTENCE}}


def test_a_question_is_answered_as_the_explorer_answers_it(client: TestClient, explorer: Explorer) -> None:
    response = client.get("/report", params=ASKED)
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.headers["content-encoding"] == "gzip"
    assert response.text == explorer.answer(Question("agreement-mini", SENTENCE))
    assert policy_of(response)["script-src"] == ["'self'"]


def test_no_answer_holds_a_character_of_markup(client: TestClient) -> None:
    for params in ({**ASKED, "text": ODD}, {**ASKED, "model": ODD}, {**ASKED, "target": "<script>"}):
        text = client.get("/report", params=params).text
        assert not set("<>&") & set(text)
        assert text.isascii()
    header = Page(client.get("/report", params={**ASKED, "text": ODD}).json()["parts"]["header"])
    assert ODD.replace("\u2028", "‹U+2028›") in header.text
    assert "script" not in {tag for tag, _ in header.tags}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text": " "}, "no text was given: write one"),
        ({"model": ""}, "no model was given: choose one"),
        ({"model": "gpt2"}, "there is no model 'gpt2' here: expected one of agreement-mini"),
        ({"target": "x"}, "the target is 'x': expected a position"),
        ({"target": "99"}, "target 99 is outside the sentence"),
        ({"text": "a" * 4001}, "text has 4001 characters: expected at most 4000"),
        ({"text": "hat " * 200}, "the model's context holds 64; shorten"),
        ({"corrupted": SENTENCE + "."}, "has 11 tokens and the corrupted one 12"),
    ],
)
def test_what_cannot_be_shown_is_told(client: TestClient, change: dict[str, str], message: str) -> None:
    response = client.get("/report", params=ASKED | change)
    assert response.status_code == 422
    assert list(response.json()) == ["error"]
    assert message in response.json()["error"]


@pytest.mark.parametrize("twice", ["text", "model", "target", "layer"])
def test_a_part_of_an_address_that_is_given_twice_is_told(client: TestClient, twice: str) -> None:
    response = client.get("/report", params=[*ASKED.items(), (twice, "1"), (twice, "2")])
    assert response.status_code == 422
    assert f"the address has '{twice}'" in response.json()["error"]


def test_bytes_that_are_no_text_are_answered(client: TestClient) -> None:
    response = client.get("/report?model=agreement-mini&text=%ff%fe%00%ed%a0%80")
    assert response.status_code == 200
    assert not set("<>&") & set(response.text)


def test_an_unexpected_error_shows_nothing_of_the_inside(
    explorer: Explorer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(question: Question) -> str:
        raise RuntimeError("/home/someone/secret")

    client = TestClient(explorer_app(explorer, first_text=SENTENCE), base_url=ADDRESS)
    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(explorer, "answer", broken)
        response = client.get("/report", params=ASKED)
    assert (response.status_code, response.json()) == (500, {"error": UNEXPECTED})
    assert "secret" not in response.text and "secret" in caplog.text
    assert policy_of(response)["script-src"] == ["'self'"]
    assert client.get("/report", params=ASKED).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8050", "", "[::1]"])
def test_a_foreign_host_is_refused(client: TestClient, host: str) -> None:
    for path in ("/", "/report"):
        response = client.get(path, params=ASKED, headers={"host": host})
        assert response.status_code == 400
        assert "pictures" not in response.text


@pytest.mark.parametrize("host", ["localhost", "localhost:8050", "127.0.0.1:9"])
def test_its_own_names_are_answered_at_any_port(client: TestClient, host: str) -> None:
    assert client.get("/", headers={"host": host}).status_code == 200


def test_an_address_of_the_new_protocol_is_a_name_too(explorer: Explorer) -> None:
    client = TestClient(
        explorer_app(explorer, first_text=SENTENCE, hosts=hosts_of("::1")), base_url="http://[::1]:8050"
    )
    assert client.get("/").status_code == 200


def test_every_name_is_answered_where_it_is_wanted(explorer: Explorer) -> None:
    client = TestClient(explorer_app(explorer, first_text=SENTENCE, hosts=("*",)), base_url=ADDRESS)
    assert client.get("/", headers={"host": "some.name:8050"}).status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/../",
        "/..%2f..%2fetc%2fpasswd",
        "/%2e%2e/pyproject.toml",
        "/explorer.js/",
        "/page.css",
        "/report/",
        "/assets/report/page.html",
        "//evil.example",
        "/docs",
        "/openapi.json",
    ],
)
def test_nothing_else_is_there(explorer: Explorer, path: str) -> None:
    client = TestClient(explorer_app(explorer, first_text=SENTENCE), base_url=ADDRESS, follow_redirects=False)
    # A path is sent as it is written, where a client would shorten it.
    request = client.build_request("GET", ADDRESS)
    request.url = request.url.copy_with(raw_path=path.encode())
    response = client.send(request)
    if response.is_redirect:  # of a slash too many, to a path of the same host
        assert response.headers["location"].startswith(f"{ADDRESS}/")
    else:
        assert response.status_code == 404 or (path == "/../" and response.status_code == 200)
    assert "root:" not in response.text and "[project]" not in response.text


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
@pytest.mark.parametrize("path", ["/", "/report", "/explorer.js"])
def test_nothing_can_be_sent(client: TestClient, method: str, path: str) -> None:
    assert client.request(method, path, params=ASKED).status_code == 405


def test_head_is_answered_without_a_body(client: TestClient) -> None:
    response = client.head("/")
    assert response.status_code == 200
    assert response.content == b""
