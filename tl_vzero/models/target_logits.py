"""Logits at one position of each copy of a sentence, at no more cost than the model makes necessary."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.models.run import NamedHook, run_logits
from tl_vzero.models.sites import hook_points

UNEMBEDDED = "unembed.hook_in"
LOGITS_A_BATCH = 2**24  # numbers held at once: a vocabulary is wide, and a gradient holds what made them
SAME = 1e-3  # what two orders of summing may differ by in a logit, far less than another token's logit does


class TargetLogits:
    """Runs copies of sentences to the logits at one position of each.

    What the unembedding reads is cut to that position, and blocks below one whose output is overwritten run once for
    all copies, wherever a first run shows that the model gives the same logits so.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cuts: bool | None = None
        self._spreads: bool | None = None

    def positions_unembedded(self, ids: Int[Tensor, "copy position"]) -> int:
        """At how many positions of a sentence logits are computed: one, or all of them."""
        return 1 if self._may_cut(ids[:1]) else ids.shape[1]

    def at(
        self,
        ids: Int[Tensor, "copy position"],
        positions: Int[Tensor, "copy"],
        hooks: Sequence[NamedHook] = (),
        token_types: Int[Tensor, "copy position"] | None = None,
    ) -> Float[Tensor, "copy vocabulary"]:
        """The logits of each copy at its position; `token_types` are segments."""
        return self._at(ids, positions, hooks, token_types)

    def _at(self, ids: Tensor, positions: Tensor, hooks: Sequence[NamedHook], token_types: Tensor | None) -> Tensor:
        """The same, also where hooks make several copies of one."""
        if self._may_cut(ids[:1]):
            return self._cut_logits(ids, positions, hooks, token_types)[:, 0]
        logits = run_logits(self._model, ids, hooks, token_types)
        return logits[torch.arange(len(logits), device=logits.device), positions]

    def after(
        self,
        site: str,
        outputs: Float[Tensor, "copy position feature"],
        ids: Int[Tensor, "position"],
        position: int,
        token_types: Int[Tensor, "1 position"] | None = None,
    ) -> Float[Tensor, "copy vocabulary"]:
        """The logits at one position of a sentence, with the activation at a hook overwritten by each of several."""

        def overwrite(_: Tensor, *, hook: Any) -> Tensor:
            return outputs

        positions = torch.full((len(outputs),), position, device=ids.device)
        hooks = [(site, overwrite)]
        if self._may_spread(site, outputs, ids, position):
            return self._at(ids.unsqueeze(0), positions, hooks, token_types)
        copies = len(outputs)
        types = None if token_types is None else token_types.expand(copies, -1)
        return self._at(ids.expand(copies, -1), positions, hooks, types)

    def _cut_logits(
        self, ids: Tensor, positions: Tensor, hooks: Sequence[NamedHook], token_types: Tensor | None = None
    ) -> Tensor:
        def cut(final: Tensor, *, hook: Any) -> Tensor:
            return final[torch.arange(len(final), device=final.device), positions].unsqueeze(1)

        return run_logits(self._model, ids, [*hooks, (UNEMBEDDED, cut)], token_types)

    def _may_cut(self, ids: Int[Tensor, "1 position"]) -> bool:
        """Whether the model unembeds each position by itself where its hook says so."""
        if self._cuts is None:
            last = torch.tensor([ids.shape[1] - 1], device=ids.device)
            self._cuts = UNEMBEDDED in hook_points(self._model) and _same(
                lambda: self._cut_logits(ids, last, []), lambda: run_logits(self._model, ids, [])[:, -1:]
            )
        return self._cuts

    def _may_spread(self, site: str, outputs: Tensor, ids: Tensor, position: int) -> bool:
        """Whether blocks above a hook take more copies than there were below it."""
        if self._spreads is None:
            two = torch.cat([outputs[:1], outputs[:1] / 2]).detach()
            self._spreads = False
            plain = self.after(site, two, ids, position)
            self._spreads = True
            self._spreads = _same(lambda: self.after(site, two, ids, position), lambda: plain)
        return self._spreads


def _same(quick: Callable[[], Tensor], plain: Callable[[], Tensor]) -> bool:
    with torch.no_grad():
        try:
            found = quick()
        except (RuntimeError, IndexError, ValueError):  # something in the model counts on the whole
            return False
        expected = plain()
    return found.shape == expected.shape and torch.allclose(found, expected, rtol=SAME, atol=SAME)
