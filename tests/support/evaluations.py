"""A few examples in the tiny models' words, and slow readings of what the evaluations compute."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from support.models import tokenizer
from torch import Tensor

from tl_vzero.data.examples import Example

EXAMPLES = (
    Example(
        "pp-0",
        "pp",
        ("the", "dogs", "near", "a", "hat", "are", "barking", "."),
        target=5,
        good="are",
        bad="is",
        cue=(1,),
        cue_source="given",
        attractor=(4,),
    ),
    Example(
        "plain-0",
        "plain",
        ("the", "dog", "is", "near", "marcus", "."),
        target=2,
        good="is",
        bad="are",
        cue=(1,),
        cue_source="given",
    ),
    Example(
        "pp-1",
        "pp",
        ("some", "dogs", "of", "marcus", "are", "near", "the", "hat", "."),
        target=4,
        good="are",
        bad="is",
        cue=(1,),
        cue_source="given",
        attractor=(3,),
    ),
    Example(
        "question-0",
        "question",
        ("is", "the", "dog", "near", "a", "hat"),
        target=0,
        good="is",
        bad="are",
        cue=(2,),
        cue_source="given",
        attractor=(5,),
    ),
)


def masked_ids(example: Example) -> list[int]:
    """The ids of an example with its target masked, by the tokenizer alone."""
    words = [*example.words]
    words[example.target] = "[MASK]"
    return list(tokenizer()(" ".join(words))["input_ids"])


def id_of(word: str) -> int:
    return int(tokenizer().convert_tokens_to_ids(word))


def p_good(hf_model: Any, ids: Iterable[int], read: int, good: int, bad: int | None = None) -> float:
    """p(good) at a position: over the vocabulary, or over the two forms where `bad` is given; one plain forward."""
    with torch.no_grad():
        logits = hf_model(input_ids=torch.tensor([list(ids)])).logits[0, read].double()
    if bad is None:
        return logits.softmax(-1)[good].item()
    return logits[[good, bad]].softmax(-1)[0].item()


def slow_average_precision(row: Tensor | Sequence[float], cue: Sequence[int]) -> float:
    from sklearn.metrics import average_precision_score

    scores = torch.as_tensor(row).numpy()
    truth = [int(position in cue) for position in range(len(scores))]
    return float(average_precision_score(truth, scores))
