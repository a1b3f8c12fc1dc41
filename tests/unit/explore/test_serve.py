"""Where the explorer listens, and by which names."""

import socket
from collections.abc import Iterator

import pytest

pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install 'tl-vzero[explore]'")
from tl_vzero.errors import InputError
from tl_vzero.explore import bound_socket, hosts_of


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of this machine at which something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_port_0_takes_a_free_one() -> None:
    with bound_socket("127.0.0.1", 0) as one, bound_socket("127.0.0.1", 0) as other:
        ports = [listening.getsockname()[1] for listening in (one, other)]
        assert 0 not in ports and ports[0] != ports[1]
        assert one.getsockname()[0] == "127.0.0.1"


def test_a_port_in_use_is_told(taken: int) -> None:
    with pytest.raises(InputError, match=f"cannot listen at 127.0.0.1 port {taken}: .*in use; choose another --port"):
        bound_socket("127.0.0.1", taken)


def test_a_port_of_an_explorer_that_is_still_loading_is_in_use() -> None:
    with bound_socket("127.0.0.1", 0) as first, pytest.raises(InputError, match="in use"):
        bound_socket("127.0.0.1", first.getsockname()[1])


def test_a_port_is_free_again_once_it_is_closed() -> None:
    with bound_socket("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
    with bound_socket("127.0.0.1", port) as second:
        assert second.getsockname()[1] == port


@pytest.mark.parametrize(
    "host", ["192.0.2.1", "no.such.name.invalid", "fe80::dead", "a" * 64 + ".invalid", "1.2.3.4.5"]
)
def test_an_address_that_is_not_of_this_machine_is_told(host: str) -> None:
    with pytest.raises(InputError, match=r"cannot listen at .*--host of this machine"):
        bound_socket(host, 0)


def test_the_new_protocol_is_listened_at_too() -> None:
    with bound_socket("::1", 0) as bound:
        assert bound.family == socket.AF_INET6


@pytest.mark.parametrize(
    ("host", "names"),
    [
        ("127.0.0.1", ("127.0.0.1", "localhost")),
        ("localhost", ("127.0.0.1", "localhost")),
        ("0.0.0.0", ("*",)),
        ("::", ("*",)),
        ("::1", ("[::1]", "127.0.0.1", "localhost")),
        ("192.168.1.7", ("192.168.1.7", "127.0.0.1", "localhost")),
    ],
)
def test_the_names_an_address_may_have(host: str, names: tuple[str, ...]) -> None:
    assert hosts_of(host) == names
