"""What is measured of a prediction: a logit, a probability, or a function of the user's."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.distance import wide_dtype
from tl_vzero.errors import InputError, InputTypeError, foreign_errors_as, unknown_name
from tl_vzero.models.facts import facts_of
from tl_vzero.targets import TargetIds, target_tokens

# As in TransformerLens's patching: logits [1, position, vocabulary] -> scalar.
MetricFunction = Callable[[Tensor], Tensor]

NAMES = ("logit", "probability")


@dataclass(frozen=True)
class Metric:
    """A number a copy of the sentence: `function` reads logits `[copy, position, vocabulary]`, `name` says it in words.

    `target_ids` are the tokens it is about, None for a function of the user's.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    target_ids: tuple[int, ...] | None

    def __call__(self, logits: Float[Tensor, "copy position vocabulary"]) -> Float[Tensor, "copy"]:
        return self.function(logits).to(wide_dtype(logits.device))


MakeMetric = Callable[[int, Tensor], Metric]


def metric_for(model: nn.Module, metric: str | MetricFunction, target_ids: TargetIds | None) -> MakeMetric:
    """Check what is to be measured, before any run; returns what makes the metric of (target, its clean logits).

    Without `target_ids` it is about the likeliest token of the clean run. Raises InputError or InputTypeError.
    """
    if isinstance(metric, str):
        if metric not in NAMES:
            raise unknown_name("metric", metric, (*NAMES, "or a function"))
        wanted = target_tokens(model, target_ids)

        def make(target: int, clean: Tensor) -> Metric:
            good, bad = wanted or (int(clean.argmax()), None)
            return _logit(model, target, good, bad) if metric == "logit" else _probability(model, target, good)

        return make
    if not callable(metric):
        raise InputTypeError(
            f"metric is {type(metric).__name__}: expected 'logit', 'probability', or a function from logits "
            "[1, position, vocabulary] to a scalar tensor"
        )
    if target_ids is not None:
        raise InputError(
            f"target_ids {target_ids!r} given with a function as metric: expected one of both; read the tokens' "
            "logits in the function"
        )
    own = _of_users(metric)
    return lambda target, clean: own


def _logit(model: nn.Module, target: int, good: int, bad: int | None) -> Metric:
    if bad is None:
        return Metric(f"logit of {token_name(model, good)!r}", lambda logits: logits[:, target, good], (good,))

    def difference(logits: Tensor) -> Tensor:
        wide = logits[:, target].to(wide_dtype(logits.device))
        return wide[:, good] - wide[:, bad]

    name = f"logit of {token_name(model, good)!r} minus logit of {token_name(model, bad)!r}"
    return Metric(name, difference, (good, bad))


def _probability(model: nn.Module, target: int, good: int) -> Metric:
    def probability(logits: Tensor) -> Tensor:
        return logits[:, target].to(wide_dtype(logits.device)).softmax(dim=-1)[:, good]

    return Metric(f"probability of {token_name(model, good)!r}", probability, (good,))


def _of_users(function: MetricFunction) -> Metric:
    name = f"metric {getattr(function, '__name__', type(function).__name__)}"

    def copy_by_copy(logits: Tensor) -> Tensor:
        with foreign_errors_as(InputError, f"the {name} failed"):
            return torch.stack([_scalar(function(logits[n : n + 1])) for n in range(len(logits))])

    return Metric(name, copy_by_copy, None)


def _scalar(measured: Any) -> Tensor:
    if not isinstance(measured, Tensor):
        raise InputTypeError(f"the metric returned {type(measured).__name__}: expected a scalar tensor, shape []")
    if measured.ndim:
        raise InputError(
            f"the metric returned a tensor of shape {list(measured.shape)}: expected a scalar, shape []; it is given "
            "the logits [1, position, vocabulary] of one sentence"
        )
    return measured


def token_name(model: nn.Module, number: int) -> str:
    """A token of the vocabulary as text; its number where there is no tokenizer."""
    tokenizer = facts_of(model).tokenizer
    return str(number) if tokenizer is None else str(tokenizer.decode([number]))
