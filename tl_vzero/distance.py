"""Distances between clean and changed representations, computed without cancellation.

`1 - cos` in float32 keeps nothing of a distance of 1e-7. Here the part of the difference that is perpendicular to the
clean vector is measured instead, in float64 where the device has it. `DISTANCES` has the names that `distance=` takes.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.choices import callable_name, one_of
from tl_vzero.errors import InputError, InputTypeError, foreign_errors_as

Distance = Callable[[Tensor, Tensor], Tensor]
Vectors = Float[Tensor, "*#batch feature"]
Distances = Float[Tensor, "*batch"]

# The share of a vector's size below which the vector itself is needed: as a difference of two float32 vectors it has
# lost a digit by then, and all of them where nothing is left.
LITTLE_LEFT = 0.1


def wide_dtype(device: torch.device) -> torch.dtype:
    """The widest float type of a device: float64, but float32 on Apple's mps, which has no float64."""
    return torch.float32 if device.type == "mps" else torch.float64


def widened(numbers: Float[Tensor, "*axes"]) -> Float[Tensor, "*axes"]:
    """Numbers in the widest float type of their device."""
    return numbers.to(wide_dtype(numbers.device))


def cosine(clean: Vectors, changed: Vectors) -> Distances:
    """Cosine distance, 1 - cos, from 0 (same direction) to 2 (opposite), stable down to 1e-10 and below.

    A zero vector is at distance 0 from a zero vector and 1 from any other.
    Source: Mohebbi et al. 2023, equation 3.

    >>> cosine(torch.tensor([1.0, 0.0]), torch.tensor([0.0, 2.0])).item()
    1.0
    """
    clean, changed = widened(clean), widened(changed)
    difference, clean_square = clean - changed, clean.square().sum(-1)
    along = (difference * clean).sum(-1) / _nonzero(clean_square)
    perpendicular = difference - along.unsqueeze(-1) * clean
    return _cosine_distance(clean_square, changed.square().sum(-1), along, perpendicular.square().sum(-1))


def cosine_of_change(clean: Vectors, change: Float[Tensor, "*batch feature"]) -> tuple[Distances, Tensor]:
    """Cosine distance between `clean` and `clean - change`, from the change itself; overwrites `change`.

    This keeps what rounding the changed vector would lose; only sums over features are widened to float64. The second
    result is True where too little is left of `clean` for the distance to be trusted.
    """
    wide = wide_dtype(clean.device)
    clean_square = clean.square().sum(-1).to(wide)
    along = (change * clean).sum(-1).to(wide) / _nonzero(clean_square)
    perpendicular = change.addcmul_(along.to(change.dtype).unsqueeze(-1), clean, value=-1.0)
    perpendicular_square = torch.linalg.vector_norm(perpendicular, dim=-1).to(wide).square()
    # clean - change is (1 - along) clean - perpendicular, and the two parts are at right angles.
    changed_square = clean_square * (1.0 - along).square() + perpendicular_square
    distance = _cosine_distance(clean_square, changed_square, along, perpendicular_square)
    return distance, changed_square < LITTLE_LEFT**2 * clean_square


def _nonzero(square: Tensor) -> Tensor:
    """Divisors without 0; what is divided by a 0 is set in the end."""
    return torch.where(square == 0, 1.0, square)


def _cosine_distance(
    clean_square: Tensor, changed_square: Tensor, along: Tensor, perpendicular_square: Tensor
) -> Tensor:
    """1 - cos from squared sizes; `along` is the share of the clean vector that was lost."""
    sine_square = (perpendicular_square / _nonzero(changed_square)).clamp(max=1.0)
    cosine_size = (1.0 - sine_square).sqrt()
    distance = torch.where(along > 1.0, 1.0 + cosine_size, sine_square / (1.0 + cosine_size))
    distance = torch.where((clean_square == 0) & (changed_square == 0), 0.0, distance)
    return torch.where((clean_square == 0) != (changed_square == 0), 1.0, distance)


def euclidean(clean: Vectors, changed: Vectors) -> Distances:
    """Euclidean distance, in the units of the residual stream.

    >>> euclidean(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])).item()
    5.0
    """
    clean, changed = widened(clean), widened(changed)
    return (clean - changed).square().sum(-1).sqrt()


def manhattan(clean: Vectors, changed: Vectors) -> Distances:
    """Sum of absolute differences, in the units of the residual stream.

    >>> manhattan(torch.tensor([3.0, 0.0]), torch.tensor([0.0, -4.0])).item()
    7.0
    """
    clean, changed = widened(clean), widened(changed)
    return (clean - changed).abs().sum(-1)


def unit_euclidean(clean: Vectors, changed: Vectors) -> Distances:
    """Euclidean distance between the two vectors scaled to length 1.

    >>> unit_euclidean(torch.tensor([3.0, 0.0]), torch.tensor([7.0, 0.0])).item()
    0.0
    """
    # Half the square of this distance is the cosine distance, which is measured without cancellation.
    return (2 * cosine(clean, changed)).sqrt()


def standardised_euclidean(clean: Vectors, changed: Vectors) -> Distances:
    """Euclidean distance between the two vectors brought to mean 0 and variance 1 over their features.

    >>> standardised_euclidean(torch.tensor([3.0, 1.0]), torch.tensor([8.0, 4.0])).item()
    0.0
    """
    clean, changed = (wide - wide.mean(dim=-1, keepdim=True) for wide in (widened(clean), widened(changed)))
    return (2 * clean.shape[-1] * cosine(clean, changed)).sqrt()


# A new distance is one function above and its name here.
DISTANCES: Mapping[str, Distance] = MappingProxyType(
    {function.__name__: function for function in (cosine, euclidean, manhattan, unit_euclidean, standardised_euclidean)}
)


def relative_difference(measured: Float[Tensor, "*axes"], expected: Float[Tensor, "*axes"]) -> float:
    """Root mean square of the difference, relative to that of `expected`."""
    difference, scale = (measured - expected).square().mean(), expected.square().mean()
    return float((difference / scale.clamp(min=torch.finfo(scale.dtype).tiny)).sqrt())


# Gives the distances of (clean, change), and where they need the changed vector itself: too little is left of it.
ChangeForm = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def change_form(distance: Distance) -> ChangeForm | None:
    """How a distance is measured on the change itself, which keeps digits; None for a distance without such a form.

    By the function, never by its name: a callable of the user's may be named like a distance of the library's.
    """
    if distance is cosine:
        return cosine_of_change
    return _size_of_change if distance is euclidean else None


def _size_of_change(_: Tensor, change: Tensor) -> tuple[Tensor, Tensor]:
    size = torch.linalg.vector_norm(change, dim=-1, dtype=wide_dtype(change.device))
    return size, torch.zeros_like(size, dtype=torch.bool)


def distance_named(distance: str | Distance) -> tuple[str, Distance]:
    """Find a distance by name, or wrap a callable so that it reads copies and what it returns is checked.

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
        wide, both = wide_dtype(clean.device), torch.broadcast_tensors(clean.detach(), changed.detach())
        # Copies: what is read and compared stays right whatever the callable writes to them.
        with foreign_errors_as(InputError, f"distance {name} failed"), torch.inference_mode(False), torch.enable_grad():
            try:
                result = distance(*(vectors.to(wide, copy=True) for vectors in both))
            except RuntimeError:
                result = distance(*(vectors.to(torch.float32, copy=True) for vectors in both))
            _check_result(name, result, changed.shape[:-1])
            return result.detach().to(device=clean.device, dtype=wide)

    return checked


def _check_result(name: str, result: object, expected: torch.Size) -> None:
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
