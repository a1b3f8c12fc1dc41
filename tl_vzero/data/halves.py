"""The seeded split of examples into a train and a test half."""

import hashlib
from dataclasses import replace

from tl_vzero.data.examples import Example
from tl_vzero.data.filtering import ExampleSet


def split_in_halves(examples: ExampleSet, *, seed: int = 0) -> ExampleSet:
    """Put half of each paradigm's pairs into `train`, the others into `test`; of an odd number, one more into `test`.

    Pairs are ranked by a hash of seed, paradigm and pair, so that the split is the same on any machine, and nearly
    the same for the examples that another tokenizer leaves. The seed is kept as `split_seed`.

    >>> from tl_vzero.data.embedded import agreement_examples
    >>> halves = split_in_halves(agreement_examples(), seed=3)
    >>> len(halves.half("train")), len(halves.half("test"))
    (248, 252)
    """
    train: set[tuple[str, str]] = set()
    for paradigm in examples.counts():
        pairs = sorted({each.pair for each in examples if each.paradigm == paradigm})
        ranked = sorted(pairs, key=lambda pair: _rank(seed, paradigm, pair))
        train.update((paradigm, pair) for pair in ranked[: len(ranked) // 2])
    placed = tuple(replace(each, split="train" if _key(each) in train else "test") for each in examples)
    return replace(examples, examples=placed, split_seed=seed)


def _key(example: Example) -> tuple[str, str]:
    return example.paradigm, example.pair


def _rank(seed: int, paradigm: str, pair: str) -> str:
    return hashlib.sha256(f"{seed} {paradigm} {pair}".encode()).hexdigest()
