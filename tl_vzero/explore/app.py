"""The explorer over HTTP: its page, its script and its answers."""

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from plotly.offline import get_plotlyjs
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from tl_vzero.errors import TLVZeroError
from tl_vzero.explore.asked import read_asked
from tl_vzero.explore.explorer import Explorer
from tl_vzero.explore.page import SCRIPT, explorer_page
from tl_vzero.explore.serve import LOOPBACK
from tl_vzero.plot.export import SHARED
from tl_vzero.report.packed import script_json
from tl_vzero.report.page import page_script

LOG = logging.getLogger(__name__)
UNEXPECTED = "the explorer failed on this; its terminal has the details"
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


def explorer_app(explorer: Explorer, *, first_text: str, hosts: Sequence[str] = LOOPBACK) -> Starlette:
    """An ASGI application of an explorer; `hosts` are the names that an address may have ("*": any).

    A page of another site that has its name lead here (DNS rebinding) is refused by them.
    """

    def answer(request: Request) -> Response:
        try:
            return _json(explorer.answer(read_asked(request.query_params)))
        except TLVZeroError as error:
            return _json(script_json({"error": str(error)}), status=422)
        except Exception:
            LOG.exception("unexpected error for %s", request.url.query)
            return _json(script_json({"error": UNEXPECTED}), status=500)

    page = explorer_page(list(explorer.models), first_text)
    script = page_script(SCRIPT)
    return Starlette(
        routes=[
            Route("/", _fixed(page, "text/html")),
            Route(f"/{SCRIPT}", _fixed(script, "text/javascript")),
            Route(f"/{SHARED}", _fixed(get_plotlyjs(), "text/javascript")),
            Route("/report", answer),
        ],
        middleware=[
            Middleware(TrustedHostMiddleware, allowed_hosts=list(hosts), www_redirect=False),
            Middleware(BaseHTTPMiddleware, dispatch=_with_headers),
            Middleware(GZipMiddleware, compresslevel=1),
        ],
    )


def _json(text: str, status: int = 200) -> Response:
    return Response(text, status_code=status, media_type="application/json")


def _fixed(text: str, media_type: str) -> Callable[[Request], Awaitable[Response]]:
    async def give(request: Request) -> Response:
        return Response(text, media_type=media_type)

    return give


async def _with_headers(request: Request, call_next: Any) -> Response:
    response: Response = await call_next(request)
    response.headers.update(HEADERS)
    return response
