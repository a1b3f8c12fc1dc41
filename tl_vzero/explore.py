"""A live page on which a person types a sentence and sees the report's panels: local, offline, on any loaded model.
From the address, a question, through the explorer, which answers one at a time, to the server and who may ask it."""

import asyncio
import json
import logging
import socket
import threading
import traceback
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import lru_cache
from threading import Lock
from typing import Any

import uvicorn
from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from torch import nn

from tl_vzero.choices import good_and_bad
from tl_vzero.effects.agreement import PATCHED, effects_named
from tl_vzero.effects.measure import token_name
from tl_vzero.errors import InputError, TLVZeroError, escaped
from tl_vzero.inputs.text import Sentence, encode, warned_before
from tl_vzero.methods.plan import plan_of
from tl_vzero.models.facts import facts_of
from tl_vzero.plot.export import SHARED
from tl_vzero.plot.pages import asset, script_json
from tl_vzero.plot.parts import visible
from tl_vzero.report import make_report
from tl_vzero.report.make import target_beside
from tl_vzero.report.page import Json, beside_payload, explorer_page, page_payload, page_script
from tl_vzero.targets import default_text, target_tokens, word_of, written_token

LONGEST_POSITION = 20  # characters
LONGEST_TEXT = 4000  # characters; the tokens of a sentence are counted by the explorer
LONGEST_WORD = 100  # characters
MOST_TOKENS = 128
MOST_ANSWERS = 16  # that stay at hand, of 128 tokens 4 MB each; going back and a shared address then cost nothing
MOST_EXAMPLES = 5  # sentences to choose from
MOST_QUESTIONS = 8  # that wait or are computed: at seconds each, the last still waits less than a minute
LOOKS_AGAIN = 0.05  # seconds, between looks at who is next, who has gone and whether all ends
LAST_ANSWERS = 1  # second, in which answers that are being sent may still get through
LOOPBACK = ("127.0.0.1", "localhost")
SCRIPT = "explorer.js"
LOG = logging.getLogger(__name__)
UNEXPECTED = "the explorer failed on this; its terminal has the details"
BUSY = "the explorer is busy: {} questions wait already; ask again in a moment"
ENDING = "the explorer is being ended where it was started"
BODY = "a question to the explorer stands in its address: expected no body with it"
FOREIGN = "a page of another site asked for this: the explorer answers its own page, and whoever types its address"
HEADERS = {
    # Nothing but this page's own files; plotly writes styles into the page.
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; img-src data: blob:; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


@dataclass(frozen=True)
class Question:
    """A sentence for one of the models; `target` is a position, `corrupted` the sentence to patch into.

    `compare` and `compare_model` are a second sentence and model; where only one is given, the other is the same.
    `good` is the word whose logit is measured, `bad` its foil, whose logit is subtracted: words, or "#" and an id.
    `heads` asks for the maps of every head.
    """

    model: str
    text: str
    target: int | None = None
    corrupted: str | None = None
    compare: str | None = None
    compare_model: str | None = None
    good: str | None = None
    bad: str | None = None
    heads: bool = False


def read_question(query: Mapping[str, str]) -> Question:
    """Read the parts of an address; raises InputError for what is missing, too long, no number, or bad without good."""
    for name, advice in (("model", "choose"), ("text", "write")):
        if not query.get(name, "").strip():
            raise InputError(f"no {name} was given: {advice} one")
    limits = dict.fromkeys(("text", "corrupted", "compare"), LONGEST_TEXT) | dict.fromkeys(
        ("good", "bad"), LONGEST_WORD
    )
    for name, limit in limits.items():
        length = len(query.get(name, ""))
        if length > limit:
            raise InputError(f"{name} has {length} characters: expected at most {limit}")
    corrupted, compare, compare_model = (query.get(name) or None for name in ("corrupted", "compare", "compare_model"))
    # A space before a word may be the token's own.
    good, bad = (query.get(name, "").rstrip() or None for name in ("good", "bad"))
    good_and_bad(good, bad)
    heads = query.get("heads", "")
    if heads not in ("", "1"):
        raise InputError(f"heads is {heads[:40]!r}: expected 1 for the maps of every head, or nothing")
    target = _position(query.get("target", ""))
    return Question(query["model"], query["text"], target, corrupted, compare, compare_model, good, bad, heads == "1")


def _position(text: str) -> int | None:
    if not text.strip():
        return None
    try:
        # No sentence has positions of more digits.
        return int(text if len(text) <= LONGEST_POSITION else "")
    except ValueError:
        raise InputError(f"the target is {text[:40]!r}: expected a position, such as 3, or nothing") from None


class Explorer:
    """The models that may be asked, and their latest answers.

    `models` are loaded models by name; `methods` and `effects` those of `make_report`, where a question without a
    corrupted sentence leaves out what needs one; `most_tokens` bounds a sentence. Raises InputError for a method or an
    effect that there is not. While it answers, nothing else may use its models: hooks act on whoever runs one.

    >>> import tl_vzero
    >>> explorer = Explorer({"agreement-mini": tl_vzero.load_model("agreement-mini")})
    >>> explorer.answer(Question("agreement-mini", "the hat [MASK] today."))[:9]
    '{"data":{'
    """

    def __init__(
        self,
        models: Mapping[str, nn.Module],
        *,
        methods: Sequence[str] | None = None,
        effects: Sequence[str] | None = None,
        most_tokens: int = MOST_TOKENS,
    ) -> None:
        self.models = dict(models)
        if methods is not None:
            plan_of(methods)
        self.methods = methods
        self.effects = None if effects is None else effects_named(effects, corrupted=True)
        self.most_tokens = most_tokens
        # Of a comparison both sides stay, so that a change of one computes no other.
        self._side = lru_cache(MOST_ANSWERS)(self._computed)
        # Hooks on a model act on whoever runs it: one question at a time.
        self._lock = Lock()

    @property
    def texts(self) -> dict[str, str]:
        """A sentence that fits, for each model."""
        return {name: default_text(model) for name, model in self.models.items()}

    @property
    def answering(self) -> bool:
        """Whether an answer is being computed now."""
        return self._lock.locked()

    def answer(self, question: Question) -> str:
        """The page's payload as JSON; raises a TLVZeroError for what cannot be shown."""
        with self._lock:
            first = replace(question, compare=None, compare_model=None)
            if question == first:
                return str(script_json(self._side(first)))
            model, text = question.compare_model or question.model, question.compare or question.text
            second = replace(first, model=model, text=text, target=None, corrupted=None)
            if model != first.model:  # whose words are other tokens, or none
                second = replace(second, good=None, bad=None)
            with warned_before():
                for side in (first, second):  # before either is computed
                    self._read(side)
                if question.target is not None:
                    models = [self.models[side.model] for side in (first, second)]
                    at = target_beside(models[0], first.text, question.target, models[1], second.text)
                    second = replace(second, target=at)
            payload = self._side(first)
            return str(script_json(payload | {"beside": beside_payload(payload, self._side(second))}))

    def _read(self, question: Question) -> Sentence:
        """The sentence as its model reads it; raises InputError for a model that is not here and for a long text."""
        if question.model not in self.models:
            raise InputError(
                f"there is no model {question.model[:80]!r} here: expected one of {', '.join(self.models)}"
            )
        texts = [text for text in (question.text, question.corrupted) if text is not None]
        sentences = [encode(self.models[question.model], text).sentences[0] for text in texts]
        tokens = max(map(len, sentences))
        if tokens > self.most_tokens:
            raise InputError(f"the sentence has {tokens} tokens: expected at most {self.most_tokens}; shorten it")
        return sentences[0]

    def _computed(self, question: Question) -> Json:
        with warned_before():  # whoever asks does not see this process's warnings, but the page's notices
            sentence = self._read(question)
            model = self.models[question.model]
            measured, is_patched = _measured(model, question), question.corrupted is not None
            effects = self.effects and [name for name in self.effects if is_patched or name not in PATCHED]
            report = make_report(
                model,
                question.text,
                methods=self.methods,
                target=question.target,
                target_ids=good_and_bad(*measured),
                corrupted=question.corrupted,
                effects=effects,
                heads=question.heads,
            )
        chosen = {name: _chosen(model, token) for name, token in zip(("good", "bad"), measured, strict=True)}
        mask = getattr(facts_of(model).tokenizer, "mask_token", None)
        return page_payload(report) | {"mask": mask, "offsets": sentence.offsets, **chosen}

    def examples(self) -> dict[str, list[str]]:
        """By model, sentences to begin with: of the kind that it reads, and of words that it knows."""
        return {name: _examples(model, self.most_tokens) for name, model in self.models.items()}


def _measured(model: nn.Module, question: Question) -> tuple[int | None, int | None]:
    """The ids of the good word and the bad one; raises InputError, in their names, for what is no token."""
    good, bad = (None if word is None else written_token(word) for word in (question.good, question.bad))
    try:
        return target_tokens(model, good_and_bad(good, bad)) or (None, None)
    except InputError as error:
        raise InputError(str(error).replace("target_ids", "good and bad")) from error


def _chosen(model: nn.Module, token_id: int | None) -> dict[str, Any] | None:
    """A chosen word for the page: its id, how it is shown, and how an address says it."""
    if token_id is None:
        return None
    return {"id": token_id, "name": visible(token_name(model, token_id)), "word": word_of(model, token_id)}


def _examples(model: nn.Module, most_tokens: int) -> list[str]:
    facts, texts = facts_of(model), json.loads(asset("report/examples.json"))
    if facts.tokenizer is None:
        return []
    mask = getattr(facts.tokenizer, "mask_token", None)
    kind = "causal" if mask is None else "encoder" if facts.head == "absent" else "masked"
    texts = [text.replace("[MASK]", mask or "") for text in texts[kind]]
    with warned_before():
        sentences = encode(model, texts).sentences
    pairs = zip(texts, sentences, strict=True)
    return [text for text, read in pairs if not read.notes and len(read) <= most_tokens][:MOST_EXAMPLES]


def explorer_app(explorer: Explorer, *, first_text: str | None = None, hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """An ASGI application of an explorer. It opens with `first_text`, or one that fits the model; `hosts` are the names
    that an address may have ("*": any).

    A page of another site that has its name lead here (DNS rebinding) is refused by them, and one that asks from its
    own name by what browsers say of a request. Questions are computed one at a time, in order; where too many wait,
    a further one is refused (503), and one whose asker has gone is dropped. `app.state.ending` says whether the
    server is about to end: then nobody is kept waiting.
    """
    questions = _Questions(explorer)

    async def answer(request: Request) -> Response:
        try:
            computed = await questions.answer(request, read_question(_parts(request)))
            return Response(computed, media_type="application/json")
        except _Unanswered as reason:
            return _error(str(reason), 503)
        except TLVZeroError as error:
            return _error(str(error), 422)
        except Exception:
            LOG.error("unexpected error for %s\n%s", request.url.query, escaped(traceback.format_exc()))
            return _error(UNEXPECTED, 500)

    app = Starlette(
        routes=[
            Route("/", _fixed(explorer_page(explorer.texts, explorer.examples(), first_text, SCRIPT), "text/html")),
            Route(f"/{SCRIPT}", _fixed(page_script("explorer"), "text/javascript")),
            Route(f"/{SHARED}", _fixed(get_plotlyjs(), "text/javascript")),
            Route("/report", answer),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
            Middleware(_Door),
            Middleware(GZipMiddleware, compresslevel=1),
        ],
    )
    app.state.ending = lambda: False
    return app


class _Unanswered(Exception):
    """Ends a question that is not computed, with the reason."""


class _Questions:
    """The questions that wait for their turn; the first of them is being computed."""

    def __init__(self, explorer: Explorer) -> None:
        self.explorer = explorer
        self.line: deque[object] = deque()

    async def answer(self, request: Request, question: Question) -> str:
        """The explorer's answer when its turn has come; raises _Unanswered where it is not waited for."""
        if len(self.line) >= MOST_QUESTIONS:
            raise _Unanswered(BUSY.format(len(self.line)))
        place = object()
        self.line.append(place)
        try:
            await request.body()  # what comes after it is that the asker has gone
            while self.line[0] is not place:
                await self._check(request)
                await asyncio.sleep(LOOKS_AGAIN)
            await self._check(request)
            computed = asyncio.wrap_future(_in_a_thread(lambda: self.explorer.answer(question)))
            while not (await asyncio.wait({computed}, timeout=LOOKS_AGAIN))[0]:
                # It is computed to its end, and its answer stays at hand, also where the asker has gone.
                self._check_not_ending(request)
            return await computed
        finally:
            self.line.remove(place)

    async def _check(self, request: Request) -> None:
        self._check_not_ending(request)
        if await request.is_disconnected():
            raise _Unanswered("nobody waits for this")

    def _check_not_ending(self, request: Request) -> None:
        if request.app.state.ending():
            raise _Unanswered(ENDING)


def _in_a_thread(compute: Callable[[], str]) -> "Future[str]":
    """Start a computation in a thread that does not keep the process from ending."""
    future: Future[str] = Future()
    future.set_running_or_notify_cancel()

    def run() -> None:
        try:
            future.set_result(compute())
        except BaseException as error:
            # SystemExit, where it is awaited, would end the server.
            future.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    threading.Thread(target=run, daemon=True, name="explorer").start()
    return future


class _Door:
    """Refuses what pages of other sites ask for, and what has a body; adds the headers to every answer.

    A body could be endless, or never come, and its question would keep its place in the line.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self.app
        if scope["type"] == "http":
            headers = Headers(scope=scope)
            if _is_foreign(scope["path"], headers):
                app = _error(FOREIGN, 403)
            elif headers.get("content-length", "0") != "0" or "transfer-encoding" in headers:
                app = _error(BODY, 413)
        await app(scope, receive, send_with_headers)


def _is_foreign(path: str, headers: Headers) -> bool:
    """Whether a page of another site asks. Programs say nothing of a site, and are answered.

    A link to the page may be followed from anywhere: its address is there to be shared.
    """
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2].lower() != headers.get("host", "").lower():
        return True
    if path == "/" and (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document"):
        return False
    return headers.get("sec-fetch-site", "none") not in ("none", "same-origin")


def _error(reason: str, status: int) -> Response:
    headers = {"Retry-After": "5"} if status == 503 else {}
    return Response(script_json({"error": reason}), status, headers, "application/json")


def _parts(request: Request) -> dict[str, str]:
    """The parts of an address; raises InputError for one that stands twice: which of them was meant?"""
    parts = request.query_params.multi_items()
    for name, count in Counter(name for name, _ in parts).items():
        if count > 1:
            raise InputError(f"the address has {name[:40]!r} {count} times: expected it once")
    return dict(parts)


def _fixed(text: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def give(request: Request) -> Response:
        return Response(text, media_type=media_type)

    return give


def hosts_of(host: str) -> tuple[str, ...]:
    """The names that an address of the explorer may have where it is bound to `host`."""
    if host in LOOPBACK:
        return LOOPBACK
    if host in ("0.0.0.0", "::"):
        return ("*",)
    return (f"[{host}]" if ":" in host else host, *LOOPBACK)


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that listens at an address; port 0 takes any free one.

    Raises InputError for an address that is in use, or not of this machine.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    bound = socket.socket(family, socket.SOCK_STREAM)
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        bound.bind((host, port))
        # Until a socket listens, a second one may be bound to its address: another explorer, while models are loaded.
        bound.listen()
    except OSError as error:
        bound.close()
        raise InputError(
            f"cannot listen at {host} port {port}: {error.strerror or error}; choose another --port (0: any free one), "
            "or a --host of this machine"
        ) from error
    return bound


def serve(app: Starlette, bound: socket.socket) -> None:
    """Answer at a socket of `bound_socket` until Ctrl-C, which raises KeyboardInterrupt at once.

    What is being computed then is not waited for: its thread goes on until the process ends.
    """
    config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=LAST_ANSWERS)
    server = uvicorn.Server(config)
    app.state.ending = lambda: server.should_exit
    server.run(sockets=[bound])
