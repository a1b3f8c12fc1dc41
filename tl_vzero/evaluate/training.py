"""One epoch of fine-tuning: seeded batches, AdamW, a learning rate that rises and then falls linearly.

An epoch draws from numbers of its own, so that training goes on after an interruption with the same batches and the
same dropout, and gives the same weights.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tl_vzero.errors import ModelError
from tl_vzero.evaluate.laid_out import LaidOut
from tl_vzero.evaluate.two_forms import in_batches, logits_of_forms
from tl_vzero.models.heads import Trainable

# Sentences of near lengths go together, within so many batches: less padding, and the order stays random.
BATCHES_SORTED_TOGETHER = 8


@dataclass(frozen=True)
class Recipe:
    """How a model is fine-tuned; `warm_up` is the part of all steps in which the learning rate rises."""

    epochs: int
    batch_size: int
    learning_rate: float
    head_learning_rate: float
    warm_up: float
    seed: int

    def steps_an_epoch(self, examples: int) -> int:
        return -(-examples // self.batch_size)


def optimizer_of(trainable: Trainable, recipe: Recipe) -> torch.optim.AdamW:
    """AdamW over all weights; those of a fresh head, far from where they will end, take larger steps."""
    named = dict(trainable.model.named_parameters())
    groups = [
        ([each for name, each in named.items() if name not in trainable.fresh], recipe.learning_rate),
        ([each for name, each in named.items() if name in trainable.fresh], recipe.head_learning_rate),
    ]
    return torch.optim.AdamW([{"params": own, "lr": rate, "peak": rate} for own, rate in groups if own])


def share_of_peak(step: int, steps: int, warm_up: float) -> float:
    """The learning rate of a step, counted from 0, as a share of its peak.

    >>> [share_of_peak(step, 10, 0.2) for step in (0, 1, 2, 6, 9)]
    [0.5, 1.0, 1.0, 0.5, 0.125]
    """
    rising = round(warm_up * steps)
    return (step + 1) / rising if step < rising else (steps - step) / (steps - rising)


def batches_of(examples: Sequence[LaidOut], recipe: Recipe, epoch: int) -> list[list[LaidOut]]:
    """All examples once, in an order that seed and epoch decide."""
    generator = torch.Generator().manual_seed(_seed_of(recipe.seed, epoch, "order"))
    shuffled = [examples[number] for number in torch.randperm(len(examples), generator=generator).tolist()]
    window = BATCHES_SORTED_TOGETHER * recipe.batch_size
    ordered = [each for part in in_batches(shuffled, window) for each in sorted(part, key=len)]
    batches = in_batches(ordered, recipe.batch_size)
    return [batches[number] for number in torch.randperm(len(batches), generator=generator).tolist()]


def train_epoch(
    trainable: Trainable,
    optimizer: torch.optim.AdamW,
    examples: Sequence[LaidOut],
    recipe: Recipe,
    epoch: int,
    bar: Any,
) -> float:
    """Train on all examples once; `epoch` counts from 1. Returns the mean loss, in nats.

    Raises ModelError where the loss is no longer finite.
    """
    model, total = trainable.model, 0.0
    a_epoch = recipe.steps_an_epoch(len(examples))
    model.train()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(_seed_of(recipe.seed, epoch, "dropout"))
        for step, batch in enumerate(batches_of(examples, recipe, epoch), start=(epoch - 1) * a_epoch):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * share_of_peak(step, recipe.epochs * a_epoch, recipe.warm_up)
            optimizer.zero_grad()
            loss = _loss(logits_of_forms(model, batch))
            if not torch.isfinite(loss):
                raise ModelError(
                    f"the loss is {loss.item()} in epoch {epoch}: expected a finite number; take a lower "
                    f"learning_rate than {recipe.learning_rate:g}, head_learning_rate than "
                    f"{recipe.head_learning_rate:g}"
                )
            loss.backward()
            optimizer.step()
            total += loss.item() * len(batch)
            bar.update()
    return total / len(examples)


def _loss(logits: Tensor) -> Tensor:
    """Cross-entropy of the right form, the first, over the two."""
    return cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))


def good_wins(trainable: Trainable, examples: Sequence[LaidOut], batch_size: int) -> list[bool]:
    """Whether the right form has the higher logit, for each example, without dropout."""
    trainable.model.eval()
    with torch.no_grad():
        logits = [logits_of_forms(trainable.model, batch) for batch in in_batches(examples, batch_size)]
    return [bool(good > bad) for good, bad in torch.cat(logits)]


def _seed_of(seed: int, epoch: int, what: str) -> int:
    digest = hashlib.sha256(f"{seed} {epoch} {what}".encode()).digest()
    return int.from_bytes(digest[:4], "big")
