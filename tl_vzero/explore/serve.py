"""Running the explorer until it is stopped."""

import socket

import uvicorn
from starlette.applications import Starlette

from tl_vzero.errors import InputError

LAST_ANSWERS = 1  # second, in which answers that are being sent may still get through
LOOPBACK = ("127.0.0.1", "localhost")


def hosts_of(host: str) -> tuple[str, ...]:
    """The names that an address of the explorer may have where it is bound to `host`.

    >>> hosts_of("127.0.0.1"), hosts_of("0.0.0.0")
    (('127.0.0.1', 'localhost'), ('*',))
    """
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
