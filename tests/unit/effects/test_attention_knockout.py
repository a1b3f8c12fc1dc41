"""Attention knockout: against one run for each source and window, laws, choices, and what is refused."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from support.effects import TARGET, TEXT, double_model, ids_of_text
from support.models import EVERY_ROUTE, hf_bert, is_causal, logits_of
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError
from tl_vzero.models.run import eager_attention

IDS = ids_of_text(TEXT)
GOOD = 16
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
each_route = pytest.mark.parametrize(("route", "architecture"), EVERY_ROUTE)


@torch.no_grad()
def one_by_one(
    model: Any, sources: Sequence[int], destinations: Sequence[int], window: Sequence[int], renormalise: bool = False
) -> Tensor:
    """The logits with the destinations cut off from the sources: block after block, each in runs of its own.

    z of a block without sources is read where their values are zeroed, the weight that is left from the pattern.
    """
    rows: dict[int, Tensor] = {}

    def put(z: Tensor, hook: Any, layer: int) -> Tensor:
        z = z.clone()
        z[:, destinations] = rows[layer]
        return z

    def zero(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, sources] = 0
        return value

    def run(*hooks: Any) -> Tensor:
        earlier = [(f"blocks.{layer}.attn.hook_z", partial(put, layer=layer)) for layer in rows]
        with eager_attention(model):
            return model.run_with_hooks(IDS.reshape(1, -1), fwd_hooks=[*earlier, *hooks])

    for layer in window:
        z, pattern = [], []
        name = f"blocks.{layer}.attn"
        run(
            (f"{name}.hook_v", zero),
            (f"{name}.hook_z", lambda activation, hook, z=z: z.append(activation.clone())),
            (f"{name}.hook_pattern", lambda activation, hook, pattern=pattern: pattern.append(activation.clone())),
        )
        rows[layer] = z[0][:, destinations]
        if renormalise:
            gone = pattern[0][:, :, destinations][..., sources].sum(-1)
            rows[layer] = rows[layer] / (1 - gone).transpose(1, 2)[..., None]
    return run()


def table(model: Any, window: int | None, destinations: Sequence[int] = (TARGET,), **options: Any) -> Tensor:
    """The effects on the logit of all sources, `[layer, src]`."""
    clean = one_by_one(model, [], [TARGET], [])[0, TARGET, GOOD]
    stops = [(layer, 3 if window is None else layer + window) for layer in range(3)]
    return torch.stack(
        [
            torch.stack(
                [
                    one_by_one(model, [source], destinations, range(layer, stop), **options)[0, TARGET, GOOD] - clean
                    for source in range(len(IDS))
                ]
            )
            for layer, stop in stops
            if stop <= 3
        ]
    )


@pytest.mark.parametrize("window", [1, 2, None])
@each_route
def test_each_source_and_window_as_in_a_run_of_its_own(route: str, architecture: str, window: int | None) -> None:
    model = double_model(route, architecture)
    with left_as_found(model):
        effect = tl_vzero.attention_knockout(model, TEXT, target=TARGET, target_ids=GOOD, window=window)
    torch.testing.assert_close(effect.values, table(model, window), **CLOSE)
    assert effect.layers == tuple(range(2 if window == 2 else 3))
    assert (effect.method, effect.metadata["window"]) == ("attention_knockout", window)
    assert not is_causal(architecture) or not effect.values[:, TARGET + 1 :].any()


@each_route
def test_renormalised(route: str, architecture: str) -> None:
    model, behind = double_model(route, architecture), [TARGET, len(IDS) - 1]
    options: dict[str, Any] = {"target": TARGET, "target_ids": GOOD, "renormalise": True}
    effect = tl_vzero.attention_knockout(model, TEXT, destinations=behind, window=None, **options)
    torch.testing.assert_close(effect.values, table(model, None, behind, renormalise=True), **CLOSE)
