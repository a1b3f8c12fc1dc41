"""The shape checks that the tests run under: shared by equal functions only, and refusing what beartype refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from jaxtyping import Float, TypeCheckError, jaxtyped
from torch import Tensor
from type_checks import checked_once


def inner(number: int, annotation: Any = Float[Tensor, "row 2"]) -> Callable[[Any], Any]:
    @jaxtyped(typechecker=checked_once)
    def times(rows: annotation) -> annotation:
        return rows * number

    return times


def test_a_function_made_again_is_checked_and_keeps_what_it_closes_over() -> None:
    rows = torch.ones(3, 2)
    for number in (2, 3):
        assert torch.equal(inner(number)(rows), rows * number)
        with pytest.raises(TypeCheckError, match="parameters"):
            inner(number)(torch.ones(3, 4))


def test_a_bad_return_value_is_refused_every_time() -> None:
    def made() -> Callable[[Any], Any]:
        @jaxtyped(typechecker=checked_once)
        def grown(rows: Float[Tensor, "row 2"]) -> Float[Tensor, "row 2"]:
            return torch.cat([rows, rows])

        return grown

    for _ in range(2):
        with pytest.raises(TypeCheckError, match="return value"):
            made()(torch.ones(3, 2))


def test_functions_of_one_name_with_other_annotations_have_checks_of_their_own() -> None:
    assert inner(2, int)(4) == 8
    assert inner(2, str)("a") == "aa"
    for annotation, wrong in ((int, "a"), (str, 4)):
        with pytest.raises(TypeCheckError):
            inner(2, annotation)(wrong)


def test_equal_stand_ins_share_a_check() -> None:
    def stand_in(annotation: Any) -> Any:
        def times(rows: int) -> None: ...

        times.__annotations__ = {"rows": annotation}
        return times

    assert checked_once(stand_in(int)) is checked_once(stand_in(int))
    assert checked_once(stand_in(int)) is not checked_once(stand_in(str))
