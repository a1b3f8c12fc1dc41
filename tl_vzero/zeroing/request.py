"""What is asked of Value Zeroing, checked at the door against the model."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tl_vzero.choices import chosen, integers
from tl_vzero.distance import Distance, distance_named
from tl_vzero.errors import InputError, InputTypeError

MEMORY_MB = 256.0


@dataclass(frozen=True)
class Request:
    """Which maps to compute. `None` means all; positions are resolved sentence by sentence."""

    layers: tuple[int, ...]
    heads: tuple[int, ...] | None
    per_head: bool
    sources: tuple[int, ...] | None
    destinations: tuple[int, ...] | None
    distance_name: str
    distance: Distance
    final_norm: bool
    batch_size: int | None
    memory_mb: float


def default_request(n_layers: int) -> Request:
    """Everything, by cosine distance."""
    name, function = distance_named("cosine")
    return Request(tuple(range(n_layers)), None, False, None, None, name, function, False, None, MEMORY_MB)


def make_request(
    *,
    n_layers: int,
    n_heads: int,
    layers: Iterable[int] | int | None,
    heads: Iterable[int] | int | None,
    per_head: bool,
    sources: Iterable[int] | int | None,
    destinations: Iterable[int] | int | None,
    distance: str | Distance,
    final_norm: bool,
    batch_size: int | None,
    memory_mb: float,
) -> Request:
    """Check every option against the model; raises InputError or InputTypeError."""
    name, function = distance_named(distance)
    chosen_layers = chosen("layers", layers, n_layers, "the model has")
    return Request(
        layers=tuple(range(n_layers)) if chosen_layers is None else chosen_layers,
        heads=chosen("heads", heads, n_heads, "values have"),
        per_head=per_head,
        sources=integers("sources", sources),
        destinations=integers("destinations", destinations),
        distance_name=name,
        distance=function,
        final_norm=final_norm,
        batch_size=_positive("batch_size", batch_size),
        memory_mb=_megabytes(memory_mb),
    )


def _positive(name: str, given: int | None) -> int | None:
    if given is None:
        return None
    if isinstance(given, bool) or not isinstance(given, int):
        raise InputTypeError(f"{name} is {type(given).__name__}: expected a positive integer or None")
    if given < 1:
        raise InputError(f"{name} is {given}: expected at least 1, or None to let the engine choose")
    return given


def _megabytes(given: float) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float):
        raise InputTypeError(f"memory_mb is {type(given).__name__}: expected a number of megabytes")
    if not 0 < given < float("inf"):
        raise InputError(f"memory_mb is {given}: expected a positive number of megabytes")
    return float(given)


def positions_of(name: str, wanted: Sequence[int] | None, length: int) -> tuple[int, ...]:
    """Resolve chosen positions in a sentence of a given length; `None` means all."""
    resolved = chosen(name, wanted, length, "the sentence has")
    return tuple(range(length)) if resolved is None else resolved
