"""Slow, obvious effects on a prediction: one run of the model for each value position."""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
from support.models import HF_BUILDERS, ROUTES
from torch import Tensor

TEXT = "the hat of some [MASK] near marcus."
CORRUPTED = "a hat of the [MASK] near marcus."
TARGET = 5  # [MASK], behind [CLS]


def double_model(route: str, architecture: str) -> Any:
    """A model of this kind in float64, made once."""
    return _double_pair(route, architecture)[1]


def double_hf_model(architecture: str) -> Any:
    """The same weights in Hugging Face's class."""
    return _double_pair("load_model", architecture)[0]


@cache
def _double_pair(route: str, architecture: str) -> tuple[Any, Any]:
    hf_model = HF_BUILDERS[architecture]().double()
    return hf_model, ROUTES[route, architecture](hf_model)


def ids_of_text(text: str) -> Tensor:
    from support.models import tokenizer

    return torch.tensor(tokenizer()(text)["input_ids"])


@torch.no_grad()
def logits_with(model: Any, ids: Tensor, change: Callable[[Tensor], None], layer: int) -> Tensor:
    """The logits of a run in which one block's values are changed in place."""

    def hook_function(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        change(value)
        return value

    return model.run_with_hooks(ids.reshape(1, -1), fwd_hooks=[(f"blocks.{layer}.attn.hook_v", hook_function)])


@torch.no_grad()
def values_of(model: Any, ids: Tensor, layer: int) -> Tensor:
    """One block's values in the clean run, `[1, position, head, feature]`."""
    name = f"blocks.{layer}.attn.hook_v"
    return model.run_with_cache(ids.reshape(1, -1), names_filter=name)[1][name].clone()


def zeroed_one_by_one(
    model: Any,
    ids: Tensor,
    metric: Callable[[Tensor], Any],
    layers: Sequence[int],
    heads: Sequence[Any] = (slice(None),),
    baseline: Callable[[int, Tensor], Tensor] = lambda layer, values: torch.zeros_like(values),
) -> Tensor:
    """The metric with each value zeroed minus the clean one, `[layer, head, src]`; or with what a baseline says of a
    layer's values `[position, head, feature]` in its place."""
    clean = metric(logits_with(model, ids, lambda value: None, 0))
    put_in = {layer: baseline(layer, values_of(model, ids, layer)[0]) for layer in layers}

    def effect(layer: int, head: Any, source: int) -> float:
        def change(value: Tensor) -> None:
            value[0, source, head] = put_in[layer][source, head]

        return float(metric(logits_with(model, ids, change, layer)) - clean)

    return _table(effect, layers, heads, len(ids))


def patched_one_by_one(
    model: Any,
    clean: Tensor,
    corrupted: Tensor,
    metric: Callable[[Tensor], Any],
    layers: Sequence[int],
    heads: Sequence[Any] = (slice(None),),
) -> Tensor:
    """The metric of the corrupted run with each clean value put in minus the one without, `[layer, head, src]`."""
    before = metric(logits_with(model, corrupted, lambda value: None, 0))
    values = {layer: values_of(model, clean, layer) for layer in layers}

    def effect(layer: int, head: Any, source: int) -> float:
        def change(value: Tensor) -> None:
            value[0, source, head] = values[layer][0, source, head]

        return float(metric(logits_with(model, corrupted, change, layer)) - before)

    return _table(effect, layers, heads, len(corrupted))


def _table(
    effect: Callable[[int, Any, int], float], layers: Sequence[int], heads: Sequence[Any], length: int
) -> Tensor:
    rows = [[[effect(layer, head, source) for source in range(length)] for head in heads] for layer in layers]
    return torch.tensor(rows, dtype=torch.float64)
