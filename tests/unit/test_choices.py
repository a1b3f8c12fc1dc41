"""What callers choose: resolved where it makes sense, refused in words where it does not."""

from collections.abc import Callable
from typing import Any

import pytest

from tl_vzero import choices
from tl_vzero.errors import InputError, InputTypeError

RESOLVED: dict[str, tuple[Callable[[], Any], Any]] = {
    "layers from the end": (lambda: choices.chosen("layers", [-1, 0], 4, "the model has"), (3, 0)),
    "a layer alone": (lambda: choices.chosen("layers", 2, 4, "the model has"), (2,)),
    "all layers": (lambda: choices.chosen("layers", None, 4, "the model has"), None),
    "a head under grouped queries": (lambda: choices.chosen_heads([-1], 2, 4), (1,)),
    "integers of a range": (lambda: choices.integers("sources", range(1, 3)), (1, 2)),
    "a range, listed": (lambda: choices.listed("layers", range(2)), [0, 1]),
    "an integer, listed": (lambda: choices.listed("layers", 3), 3),
    "a name, listed": (lambda: choices.listed("spans", "words"), "words"),
    "a flag": (lambda: choices.flag("per_head", True), True),
    "an integer": (lambda: choices.integer("seed", 3), 3),
    "a count": (lambda: choices.at_least_one("folds", 1), 1),
    "a count left open": (lambda: choices.positive("batch_size", None), None),
    "a function of the caller's": (lambda: choices.callable_name(max), "max (a callable)"),
    "a name": (lambda: choices.one_of("stack", "decoder", ("encoder", "decoder")), "decoder"),
}
REFUSED: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "a layer too many": (lambda: choices.chosen("layers", [4], 4, "the model has"), InputError, "layers"),
    "a head of the pattern only": (lambda: choices.chosen_heads([3], 2, 4), InputError, "heads"),
    "a truth for an integer": (lambda: choices.integer("seed", True), InputTypeError, "seed"),
    "no folds": (lambda: choices.at_least_one("folds", 0), InputError, "folds is 0: expected at least 1"),
    "a batch of none": (lambda: choices.positive("batch_size", 0), InputError, "batch_size"),
    "a name with a slip": (lambda: choices.one_of("stack", "decode", ("encoder", "decoder")), InputError, "decoder"),
    "a list for a name": (lambda: choices.one_of("stack", [], ("encoder", "decoder")), InputError, "stack"),
}


@pytest.mark.parametrize("name", RESOLVED)
def test_a_choice_is_resolved(name: str) -> None:
    call, expected = RESOLVED[name]
    assert call() == expected


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_chosen_is_refused_in_words(name: str) -> None:
    call, error, words = REFUSED[name]
    with pytest.raises(error, match=words):
        call()
