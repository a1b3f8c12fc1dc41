"""An explorer that is served from a thread, for browsers."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

import uvicorn

from tl_vzero.explore import Explorer, bound_socket, explorer_app


@contextmanager
def running(explorer: Explorer, first_text: str | None) -> Iterator[tuple[str, uvicorn.Server]]:
    """Serve an explorer at a free port; gives its address, and the server to stop it early."""
    with bound_socket("127.0.0.1", 0) as bound:
        app = explorer_app(explorer, first_text=first_text)
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", access_log=False))
        thread = Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{bound.getsockname()[1]}/", server
        finally:
            server.should_exit = True
            thread.join()
