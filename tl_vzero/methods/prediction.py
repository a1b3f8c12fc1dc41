"""One sentence's prediction as a function of what a block writes: what the gradient methods differentiate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.clean import check_clean_output, ids_of, token_types_of
from tl_vzero.errors import InputError
from tl_vzero.inputs import Inputs, Sentence
from tl_vzero.models.facts import vocabulary_size
from tl_vzero.models.run import NamedHook
from tl_vzero.models.sites import Sites
from tl_vzero.models.target_logits import LOGITS_A_BATCH, TargetLogits
from tl_vzero.targets import find_target


@dataclass(frozen=True, eq=False)
class Prediction:
    """The logit of a token at the target, or the difference of two, in one sentence."""

    model: nn.Module
    sites: Sites
    ids: Int[Tensor, "position"]
    target: int
    good: int
    bad: int | None
    logits: TargetLogits
    token_types: Int[Tensor, "1 position"] | None

    @property
    def copies(self) -> int:
        """How many copies of the sentence share a forward pass."""
        unembedded = self.logits.positions_unembedded(self.ids.unsqueeze(0)) * vocabulary_size(self.model)
        return max(1, LOGITS_A_BATCH // unembedded)

    @property
    def tokens(self) -> list[int]:
        """The token whose logit it is, or the pair (good, bad)."""
        return [self.good] if self.bad is None else [self.good, self.bad]

    def from_block(self, layer: int) -> Callable[[Tensor], Tensor]:
        """The metric as a function of a block's output, `[copy, position, feature]` to `[copy]`."""

        def metric(outputs: Float[Tensor, "copy position feature"]) -> Float[Tensor, "copy"]:
            logits = self.logits.after(self.sites.outputs[layer], outputs, self.ids, self.target, self.token_types)
            return logits[:, self.good] if self.bad is None else logits[:, self.good] - logits[:, self.bad]

        return metric

    def output_for(self, token: int, layer: int) -> Float[Tensor, "1 position feature"]:
        """What a block writes where every position holds one token."""
        ids = torch.full_like(self.ids, token)
        outputs, _ = _outputs_and_logits(self.logits, self.sites, [layer], ids, self.target, self.token_types)
        return outputs[layer]


def predict(
    model: nn.Module,
    target_logits: TargetLogits,
    sites: Sites,
    sentence: Sentence,
    target: int,
    tokens: tuple[int, int | None] | None,
    layers: Sequence[int],
) -> tuple[Prediction, dict[int, Tensor]]:
    """A sentence's prediction, by default of its likeliest token, and the chosen blocks' clean outputs."""
    (ids,), token_types = ids_of(model, [sentence]), token_types_of(model, [sentence])
    outputs, logits = _outputs_and_logits(target_logits, sites, layers, ids, target, token_types)
    for layer, output in outputs.items():
        check_clean_output(sites.outputs[layer], output)
    # Now, and not in a run on which Captum has put hooks of its own, is found out what may be left out.
    target_logits.after(sites.outputs[layers[0]], outputs[layers[0]], ids, target, token_types)
    good, bad = tokens or (int(logits[0].argmax()), None)
    return Prediction(model, sites, ids, target, good, bad, target_logits, token_types), outputs


def _outputs_and_logits(
    target_logits: TargetLogits,
    sites: Sites,
    layers: Sequence[int],
    ids: Tensor,
    target: int,
    token_types: Tensor | None,
) -> tuple[dict[int, Tensor], Tensor]:
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> NamedHook:
        def hook_function(output: Tensor, *, hook: Any) -> None:
            seen[layer] = output.detach()

        return sites.outputs[layer], hook_function

    at = torch.tensor([target], device=ids.device)
    logits = target_logits.at(ids.unsqueeze(0), at, [keep(layer) for layer in layers], token_types)
    return seen, logits


def targets_of(model: nn.Module, encoded: Inputs, target: int | Sequence[int] | None) -> list[int]:
    """Each sentence's target: one position for all, or one for each sentence, or by default the only mask token."""
    sentences = encoded.sentences
    each: list[Any] = list(target) if isinstance(target, list | tuple | range) else [target] * len(sentences)
    if len(each) != len(sentences):
        raise InputError(
            f"target holds {len(each)} positions for {len(sentences)} sentences: expected one position for all, or "
            "one for each"
        )
    return [find_target(model, sentence, own) for sentence, own in zip(sentences, each, strict=True)]
