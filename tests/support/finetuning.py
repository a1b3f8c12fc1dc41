"""Made-up sentences to fine-tune on, and an interruption at a chosen step."""

from typing import Any

import pytest

from tl_vzero.data.examples import Example, Half

NOUNS = [("dogs", "are", "is"), ("hat", "is", "are"), ("dog", "is", "are"), ("marcus", "is", "are")]
ENDINGS = [("near", "the", "hat", "."), ("near", "a", "dog", "of", "marcus", "."), (".",), ("near", "marcus", ".")]
FAST = {"epochs": 3, "batch_size": 5, "learning_rate": 3e-3}


def examples_of(count: int = 32) -> list[Example]:
    """Made-up sentences of several lengths, every other one in the train half."""
    examples = []
    for index in range(count):
        noun, good, bad = NOUNS[index % 4]
        ending = ENDINGS[index // 4 % 4]
        half: Half = "train" if index // 4 % 2 == 0 else "test"
        words = ("the", "some")[index // 16 % 2], noun, good, *ending
        examples.append(
            Example(
                f"made-{index}",
                "made",
                words,
                2,
                good,
                bad,
                cue=(1,),
                cue_source="given",
                pair=str(index),
                split=half,
            )
        )
    return examples


EXAMPLES = examples_of()
TRAIN = [example for example in EXAMPLES if example.split == "train"]


class Stop(KeyboardInterrupt):
    pass


def stop_at(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, call: int) -> None:
    """Let a function of a module raise Ctrl-C at its n-th call, once."""
    original, calls = getattr(module, name), iter(range(1, 10**6))

    def counted(*arguments: Any, **options: Any) -> Any:
        if next(calls) == call:
            raise Stop
        return original(*arguments, **options)

    monkeypatch.setattr(module, name, counted)
