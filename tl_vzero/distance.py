"""Distances between clean and changed representations, computed without cancellation.

`1 - cos` in float32 keeps nothing of a distance of 1e-7. Here the part of the difference that is
perpendicular to the clean vector is measured instead, in float64 where the device has it.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.errors import InputError, InputTypeError, unknown_name

Distance = Callable[[Tensor, Tensor], Tensor]


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
    return torch.where((clean_square == 0) != (changed_square == 0), 1.0, distance)


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


def distance_named(distance: str | Distance) -> tuple[str, Distance]:
    """Find a distance by name, or wrap a callable so that what it returns is checked.

    A callable gets (clean, changed), both `[..., feature]` and broadcastable, and returns `[...]`.
    Raises InputError for an unknown name, InputTypeError for what is neither name nor callable.

    >>> distance_named("cosine")[0]
    'cosine'
    """
    if isinstance(distance, str):
        if distance not in DISTANCES:
            raise unknown_name("distance", distance, DISTANCES)
        return distance, DISTANCES[distance]
    if not callable(distance):
        raise InputTypeError(
            f"distance is {type(distance).__name__}: expected a name ({', '.join(DISTANCES)}) "
            "or a callable (clean, changed) -> distances"
        )
    name = getattr(distance, "__name__", type(distance).__name__)
    return name, _checked(name, distance)


def _checked(name: str, distance: Distance) -> Distance:
    def checked(clean: Tensor, changed: Tensor) -> Tensor:
        expected = (clean - changed).shape[:-1]
        result = distance(clean, changed)
        if not isinstance(result, Tensor):
            raise InputTypeError(
                f"distance {name} returned {type(result).__name__}: expected a tensor of shape {list(expected)}"
            )
        if result.shape != expected:
            raise InputError(
                f"distance {name} returned shape {list(result.shape)}: expected {list(expected)}, "
                "one distance for each vector (reduce the last dimension)"
            )
        return result

    return checked
