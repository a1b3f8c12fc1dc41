"""Distances between clean and changed representations, computed without cancellation.

`1 - cos` in float32 keeps nothing of a distance of 1e-7. Here the part of the difference that is
perpendicular to the clean vector is measured instead, in float64 where the device has it.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.choices import callable_name, one_of
from tl_vzero.errors import InputError, InputTypeError, foreign_errors_as

Distance = Callable[[Tensor, Tensor], Tensor]

# The share of a vector's size below which it must be known itself: as a difference of two float32 vectors it has lost a
# digit then, and all of them where nothing is left.
LITTLE_LEFT = 0.1


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest float type of a device: float64, but float32 on Apple's mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def _widened(clean: Tensor, changed: Tensor) -> tuple[Tensor, Tensor]:
    dtype = wide_dtype(clean.device)
    return clean.to(dtype), changed.to(dtype)


def cosine(
    clean: Float[Tensor, "*#batch feature"], changed: Float[Tensor, "*#batch feature"]
) -> Float[Tensor, "*batch"]:
    """Cosine distance, 1 - cos, from 0 (same direction) to 2 (opposite), stable down to 1e-10 and below.

    A zero vector is at distance 0 from a zero vector and 1 from any other.
    Source: Mohebbi et al. 2023, equation 3.

    >>> import torch
    >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])).item()
    1.0
    """
    clean, changed = _widened(clean, changed)
    difference = clean - changed
    clean_square = clean.square().sum(-1)
    changed_square = changed.square().sum(-1)
    # Divide by 1 where a norm is 0; such entries are set at the end.
    safe_clean = torch.where(clean_square == 0, 1.0, clean_square)
    safe_changed = torch.where(changed_square == 0, 1.0, changed_square)
    along = (difference * clean).sum(-1) / safe_clean
    perpendicular = difference - along.unsqueeze(-1) * clean
    sine_square = (perpendicular.square().sum(-1) / safe_changed).clamp(max=1.0)
    cosine_size = (1.0 - sine_square).sqrt()
    near = sine_square / (1.0 + cosine_size)
    opposite = 1.0 + cosine_size
    distance = torch.where(along > 1.0, opposite, near)
    one_zero = (clean_square == 0) != (changed_square == 0)
    both_zero = (clean_square == 0) & (changed_square == 0)
    distance = torch.where(both_zero, 0.0, distance)
    return torch.where(one_zero, 1.0, distance)


def cosine_of_change(
    clean: Float[Tensor, "*#batch feature"], change: Float[Tensor, "*batch feature"]
) -> Float[Tensor, "*batch"]:
    """Cosine distance between `clean` and `clean - change`, from the change itself; overwrites `change`.

    Where the change is known better than the changed vector, this keeps what rounding the changed vector
    would lose: only the sums over features are widened to float64.

    >>> import torch
    >>> cosine_of_change(torch.tensor([1.0, 0.0]), torch.tensor([1.0, -2.0])).item()
    1.0
    """
    return _cosine_of_change(clean, change)[0]


def _cosine_of_change(clean: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    """The distances, and where too little is left of `clean` for them to be trusted."""
    wide = wide_dtype(clean.device)
    clean_square = clean.square().sum(-1).to(wide)
    safe_clean = torch.where(clean_square == 0, 1.0, clean_square)
    along = (change * clean).sum(-1).to(wide) / safe_clean
    perpendicular = change.addcmul_(along.to(change.dtype).unsqueeze(-1), clean, value=-1.0)
    perpendicular_square = torch.linalg.vector_norm(perpendicular, dim=-1).to(wide).square()
    # clean - change is (1 - along) clean - perpendicular, and the two parts are at right angles.
    changed_square = clean_square * (1.0 - along).square() + perpendicular_square
    safe_changed = torch.where(changed_square == 0, 1.0, changed_square)
    sine_square = (perpendicular_square / safe_changed).clamp(max=1.0)
    cosine_size = (1.0 - sine_square).sqrt()
    distance = torch.where(along > 1.0, 1.0 + cosine_size, sine_square / (1.0 + cosine_size))
    distance = torch.where((clean_square == 0) & (changed_square == 0), 0.0, distance)
    distance = torch.where((clean_square == 0) != (changed_square == 0), 1.0, distance)
    return distance, changed_square < LITTLE_LEFT**2 * clean_square


def euclidean(
    clean: Float[Tensor, "*#batch feature"], changed: Float[Tensor, "*#batch feature"]
) -> Float[Tensor, "*batch"]:
    """Euclidean distance, in the units of the residual stream.

    >>> import torch
    >>> euclidean(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])).item()
    5.0
    """
    clean, changed = _widened(clean, changed)
    difference: Tensor = clean - changed
    return difference.square().sum(-1).sqrt()


def relative_difference(measured: Float[Tensor, "*axes"], expected: Float[Tensor, "*axes"]) -> float:
    """Root mean square of the difference, relative to that of `expected`.

    >>> import torch
    >>> round(relative_difference(torch.tensor([3.0, 5.0]), torch.tensor([3.0, 4.0])), 6)
    0.2
    """
    difference, scale = (measured - expected).square().mean(), expected.square().mean()
    return float((difference / scale.clamp(min=torch.finfo(scale.dtype).tiny)).sqrt())


DISTANCES: Mapping[str, Distance] = MappingProxyType({"cosine": cosine, "euclidean": euclidean})


# Gives the distances of (clean, change), and where they need the changed vector itself: too little is left of it.
ChangeForm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def change_form(distance: Distance) -> ChangeForm | None:
    """How a distance is measured on the change itself, which keeps digits; None for a distance without such a form.

    By the function, never by its name: a callable of the user's may be named like a distance of the library's.

    >>> change_form(cosine) is None, change_form(lambda clean, changed: clean[..., 0]) is None
    (False, True)
    """
    if distance is cosine:
        return _cosine_of_change
    return _size_of_change if distance is euclidean else None


def _size_of_change(_: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    size = torch.linalg.vector_norm(change, dim=-1, dtype=wide_dtype(change.device))
    return size, torch.zeros_like(size, dtype=torch.bool)


def distance_named(distance: str | Distance) -> tuple[str, Distance]:
    """Find a distance by name, or wrap a callable so that what it reads is its own and what it returns is checked.

    A callable gets (clean, changed), both `[..., feature]` and of one shape, and returns `[...]`. They are copies in
    float64 with gradients on, so that a plain formula keeps its digits; a callable that fails at float64, as one with
    weights does, gets them in float32. It goes by its name and "(a callable)".
    Raises InputError for an unknown name, InputTypeError for what is neither name nor callable.

    >>> distance_named("cosine")[0], distance_named(lambda clean, changed: clean[..., 0])[0]
    ('cosine', '<lambda> (a callable)')
    """
    if isinstance(distance, str):
        one_of("distance", distance, DISTANCES)
        return distance, DISTANCES[distance]
    if not callable(distance):
        raise InputTypeError(
            f"distance is {type(distance).__name__}: expected a name ({', '.join(DISTANCES)}) "
            "or a callable (clean, changed) -> distances"
        )
    for name, built_in in DISTANCES.items():
        if distance is built_in:
            return name, built_in
    name = callable_name(distance)
    return name, _checked(name, distance)


def check_finite_distances(name: str, distances: Float[Tensor, "..."], site: str) -> None:
    """Raise InputError where a distance is NaN or infinite."""
    if not torch.isfinite(distances).all():
        raise InputError(
            f"distance {name} gave NaN or infinity at {site}: expected finite numbers; check the distance, or the "
            "model's dtype"
        )


def _checked(name: str, distance: Distance) -> Distance:
    def checked(clean: Tensor, changed: Tensor) -> Tensor:
        wide = wide_dtype(clean.device)
        with foreign_errors_as(InputError, f"distance {name} failed"), _free_to_differentiate():
            try:
                result = distance(*_copies(clean, changed, wide))
            except RuntimeError:
                result = distance(*_copies(clean, changed, torch.float32))
            _check_result(name, result, changed.shape[:-1])
            return result.detach().to(device=clean.device, dtype=wide)

    return checked


@contextmanager
def _free_to_differentiate() -> Iterator[None]:
    with torch.inference_mode(False), torch.enable_grad():
        yield


def _copies(clean: Tensor, changed: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Both as tensors that are nobody else's: what is read and compared stays right whatever is written to them."""
    clean, changed = torch.broadcast_tensors(clean.detach(), changed.detach())
    return clean.to(dtype, copy=True), changed.to(dtype, copy=True)


def _check_result(name: str, result: Any, expected: torch.Size) -> None:
    if not isinstance(result, Tensor):
        raise InputTypeError(
            f"distance {name} returned {type(result).__name__}: expected a tensor of shape {list(expected)}"
        )
    if result.shape != expected:
        raise InputError(
            f"distance {name} returned shape {list(result.shape)}: expected {list(expected)}, "
            "one distance for each vector (reduce the last dimension)"
        )
    if result.is_complex():
        raise InputError(f"distance {name} returned complex numbers: expected real ones, such as their size")
