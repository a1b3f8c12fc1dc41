"""Distances against an independent oracle: exact rational arithmetic and 60-digit square roots."""

from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.state import type_checks_off
from torch import Tensor

from tl_vzero.distance import (
    DISTANCES,
    cosine,
    cosine_of_change,
    distance_named,
    euclidean,
    unit_euclidean,
)
from tl_vzero.errors import InputError, InputTypeError, TLVZeroError

FEATURES = [8, 64, 768]
SIZES = [1e-1, 1e-4, 1e-8, 1e-10]


def _exact_products(clean: Tensor, changed: Tensor) -> tuple[Fraction, Fraction, Fraction]:
    y = [Fraction(value) for value in clean.double().tolist()]
    z = [Fraction(value) for value in changed.double().tolist()]
    dot = sum((a * b for a, b in zip(y, z, strict=True)), Fraction(0))
    return dot, sum((a * a for a in y), Fraction(0)), sum((b * b for b in z), Fraction(0))


def _decimal(number: Fraction) -> Decimal:
    return Decimal(number.numerator) / Decimal(number.denominator)


def exact_cosine_distance(clean: Tensor, changed: Tensor) -> float:
    with localcontext() as context:
        context.prec = 60
        dot, clean_square, changed_square = _exact_products(clean, changed)
        cosine_of_angle = _decimal(dot) / _decimal(clean_square * changed_square).sqrt()
        return float(1 - cosine_of_angle)


def exact_euclidean_distance(clean: Tensor, changed: Tensor) -> float:
    with localcontext() as context:
        context.prec = 60
        dot, clean_square, changed_square = _exact_products(clean, changed)
        return float(_decimal(clean_square + changed_square - 2 * dot).sqrt())


def turned(size: float, features: int, *, scale: float = 1.0, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A vector, and the same turned by an angle of cosine distance `size` and scaled, both in float64."""
    generator = torch.Generator().manual_seed(seed)
    clean = torch.randn(features, generator=generator, dtype=torch.float64)
    other = torch.randn(features, generator=generator, dtype=torch.float64)
    across = other - (other @ clean) / (clean @ clean) * clean
    across = across * clean.norm() / across.norm()
    sine = (2 * size - size**2) ** 0.5
    return clean, scale * ((1 - size) * clean + sine * across)


def relative_error(measured: Tensor, expected: float) -> float:
    return abs(measured.item() - expected) / expected


@pytest.mark.parametrize("scale", [1.0, 1.3, 0.01, 1000.0], ids="scaled_by_{}".format)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("size", SIZES)
def test_cosine_of_float64_vectors(size: float, features: int, scale: float) -> None:
    clean, changed = turned(size, features, scale=scale)
    assert relative_error(cosine(clean, changed), exact_cosine_distance(clean, changed)) < 1e-9


@pytest.mark.parametrize("scale", [1.0, 1.3], ids="scaled_by_{}".format)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("size", SIZES)
def test_cosine_of_float32_vectors(size: float, features: int, scale: float) -> None:
    """The oracle gets the rounded vectors too: what is measured is the formula, not the rounding."""
    clean, changed = (vector.float() for vector in turned(size, features, scale=scale))
    assert relative_error(cosine(clean, changed), exact_cosine_distance(clean, changed)) < 2e-5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_cosine_of_half_precision_vectors(dtype: torch.dtype) -> None:
    clean, changed = (vector.to(dtype) for vector in turned(1e-2, 64))
    assert relative_error(cosine(clean, changed), exact_cosine_distance(clean, changed)) < 2e-5


@pytest.mark.parametrize("across", [1e-3, 1e-5, 1e-6])
@pytest.mark.parametrize("along", [-0.5, -0.01, 0.3, 20.0])
def test_cosine_when_the_change_is_nearly_parallel(along: float, across: float) -> None:
    """The case in which (|d|^2 - (|y| - |y'|)^2) cancels."""
    clean, aside = turned(1.0, 64)
    changed = clean + along * clean + across * aside
    assert relative_error(cosine(clean, changed), exact_cosine_distance(clean, changed)) < 1e-8


@pytest.mark.parametrize("size", [1.0, 1.5, 1.999, 2 - 1e-9])
def test_cosine_past_a_right_angle(size: float) -> None:
    clean, changed = turned(size, 64)
    assert cosine(clean, changed).item() == pytest.approx(exact_cosine_distance(clean, changed), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cosine_of_special_vectors(dtype: torch.dtype) -> None:
    vector = torch.tensor([3.0, -4.0, 1.0], dtype=dtype)
    zero = torch.zeros(3, dtype=dtype)
    assert cosine(vector, vector).item() == 0
    assert cosine(vector, -vector).item() == pytest.approx(2, abs=1e-7)
    assert cosine(zero, zero).item() == 0
    assert cosine(vector, zero).item() == 1
    assert cosine(zero, vector).item() == 1


@pytest.mark.parametrize("power", [-30, -15, 15, 18])
def test_cosine_does_not_overflow_or_underflow_in_float32(power: int) -> None:
    clean, changed = (vector.mul(10.0**power).float() for vector in turned(1e-4, 64))
    assert relative_error(cosine(clean, changed), exact_cosine_distance(clean, changed)) < 2e-5


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    st.lists(st.tuples(st.floats(-100, 100), st.floats(-100, 100)), min_size=1, max_size=6).filter(
        lambda pairs: any(abs(a) > 1e-3 for a, _ in pairs) and any(abs(b) > 1e-3 for _, b in pairs)
    )
)
def test_cosine_of_any_vectors(pairs: list[tuple[float, float]]) -> None:
    clean, changed = torch.tensor(pairs, dtype=torch.float64).unbind(1)
    measured = cosine(clean, changed).item()
    assert 0 <= measured <= 2
    assert measured == pytest.approx(exact_cosine_distance(clean, changed), rel=1e-6, abs=1e-28)


@pytest.mark.parametrize("size", SIZES)
def test_euclidean(size: float) -> None:
    clean, changed = turned(size, 64, scale=1.3)
    assert relative_error(euclidean(clean, changed), exact_euclidean_distance(clean, changed)) < 1e-9


def test_euclidean_of_special_vectors() -> None:
    vector = torch.tensor([3.0, 4.0])
    assert euclidean(vector, vector).item() == 0
    assert euclidean(vector, torch.zeros(2)).item() == 5
    assert euclidean(vector, -vector).item() == 10


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.sqrt((vector**2).sum())


def _standardised(vector: np.ndarray) -> np.ndarray:
    return (vector - vector.mean()) / vector.std()


# By hand, in numpy, of two vectors; a new distance gets its formula here.
BY_HAND: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "cosine": lambda y, z: 1 - _unit(y) @ _unit(z),
    "euclidean": lambda y, z: np.sqrt(((y - z) ** 2).sum()),
    "manhattan": lambda y, z: np.abs(y - z).sum(),
    "unit_euclidean": lambda y, z: np.sqrt(((_unit(y) - _unit(z)) ** 2).sum()),
    "standardised_euclidean": lambda y, z: np.sqrt(((_standardised(y) - _standardised(z)) ** 2).sum()),
}


@pytest.mark.parametrize("name", DISTANCES)
def test_a_named_distance_is_its_formula(name: str) -> None:
    clean, changed = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)).double()
    expected = [BY_HAND[name](y, z) for y, z in zip(clean.numpy(), changed.numpy(), strict=True)]
    assert DISTANCES[name](clean, changed).tolist() == pytest.approx(expected, rel=1e-12)


def test_a_small_change_of_direction_has_its_digits() -> None:
    clean = torch.randn(5, 8, generator=torch.Generator().manual_seed(0)).double()
    near = clean * (1 + 1e-9)
    near[:, 0] += 1e-9
    assert bool((unit_euclidean(clean, near) < 1e-8).all()) and bool((unit_euclidean(clean, near) > 0).all())


@pytest.mark.parametrize("distance", DISTANCES.values())
def test_leading_axes_are_kept_and_broadcast(distance: Callable[[Tensor, Tensor], Tensor]) -> None:
    clean, changed = torch.randn(1, 5, 8), torch.randn(3, 5, 8)
    together = distance(clean, changed)
    assert together.shape == (3, 5)
    for copy in range(3):
        for position in range(5):
            alone = distance(clean[0, position], changed[copy, position])
            assert together[copy, position].item() == pytest.approx(alone.item(), rel=1e-12)


def exact_cosine_distance_of_change(clean: Tensor, change: Tensor) -> float:
    """The oracle for a change that is known exactly: the changed vector is never rounded."""
    with localcontext() as context:
        context.prec = 60
        y = [Fraction(value) for value in clean.double().tolist()]
        z = [a - Fraction(value) for a, value in zip(y, change.double().tolist(), strict=True)]
        dot = sum((a * b for a, b in zip(y, z, strict=True)), Fraction(0))
        squares = sum((a * a for a in y), Fraction(0)) * sum((b * b for b in z), Fraction(0))
        return float(1 - _decimal(dot) / _decimal(squares).sqrt())


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 2e-5), (torch.float64, 1e-12)], ids=str)
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("size", [1.5, *SIZES, 1e-14])
def test_cosine_of_a_change_that_is_carried_through(
    size: float, features: int, dtype: torch.dtype, allowed: float
) -> None:
    clean, changed = turned(size, features)
    clean, change = clean.to(dtype), (clean - changed).to(dtype)
    expected = exact_cosine_distance_of_change(clean, change)
    assert relative_error(cosine_of_change(clean, change.clone())[0], expected) < allowed


@pytest.mark.parametrize(("dtype", "allowed"), [(torch.float32, 1e-3), (torch.float64, 1e-10)], ids=str)
@pytest.mark.parametrize("along", [-0.5, -0.01, 0.3, 20.0])
def test_cosine_of_a_change_nearly_parallel(along: float, dtype: torch.dtype, allowed: float) -> None:
    clean, aside = turned(1.0, 64)
    clean, change = clean.to(dtype), (along * clean + 1e-3 * aside).to(dtype)
    expected = exact_cosine_distance_of_change(clean, change)
    assert relative_error(cosine_of_change(clean, change.clone())[0], expected) < allowed


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_cosine_of_special_changes(dtype: torch.dtype) -> None:
    vector = torch.tensor([3.0, -4.0, 1.0], dtype=dtype)
    zero = torch.zeros(3, dtype=dtype)
    assert cosine_of_change(vector, zero.clone())[0].item() == 0
    assert cosine_of_change(vector, vector.clone())[0].item() == 1
    assert cosine_of_change(vector, 2 * vector)[0].item() == pytest.approx(2, abs=1e-7)
    assert cosine_of_change(zero, zero.clone())[0].item() == 0
    assert cosine_of_change(zero, vector.clone())[0].item() == 1


def test_the_named_distances() -> None:
    with pytest.raises(InputError, match=f"expected one of {', '.join(DISTANCES)}"):
        distance_named("dot")
    name, function = distance_named("euclidean")
    assert name == "euclidean"
    assert function(torch.tensor([3.0, 0.0]), torch.tensor([0.0, 4.0])).item() == 5


def test_a_callable_is_a_distance() -> None:
    def largest_difference(clean: Tensor, changed: Tensor) -> Tensor:
        return (clean - changed).abs().amax(-1)

    name, function = distance_named(largest_difference)
    assert "largest_difference" in name
    assert function(torch.tensor([[3.0, 1.0]]), torch.tensor([[1.0, 1.5]])).tolist() == [2.0]


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda clean, changed: clean - changed, id="keeps_the_feature_axis"),
        pytest.param(lambda clean, changed: (clean - changed).sum(), id="drops_every_axis"),
        pytest.param(lambda clean, changed: 1.0, id="no_tensor"),
    ],
)
def test_a_callable_must_return_one_number_for_each_pair(wrong: Callable[[Tensor, Tensor], Tensor]) -> None:
    _, function = distance_named(wrong)
    with type_checks_off(), pytest.raises(TLVZeroError) as caught:
        function(torch.randn(2, 3, 4), torch.randn(2, 3, 4))
    assert isinstance(caught.value, ValueError | TypeError)


def test_an_unknown_name_gets_the_nearest() -> None:
    with pytest.raises(InputError, match=r"'cosin'.*'cosine'"):
        distance_named("cosin")


@pytest.mark.parametrize("given_distance", [None, 3, ["cosine"]], ids=repr)
def test_what_is_no_distance(given_distance: object) -> None:
    with type_checks_off(), pytest.raises(InputTypeError, match="distance"):
        distance_named(given_distance)  # type: ignore[arg-type]
