"""One sentence's prediction as a function of what a block writes: what the gradient methods differentiate."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.clean import check_clean_output, ids_of
from tl_vzero.errors import InputError
from tl_vzero.inputs import Inputs, Sentence, find_target
from tl_vzero.models.facts import vocabulary_size
from tl_vzero.models.run import NamedHook, run_logits
from tl_vzero.models.sites import Sites

LOGITS_A_BATCH = 2**24  # numbers held at once: logits come for every position, and a gradient holds what made them


@dataclass(frozen=True, eq=False)
class Prediction:
    """The logit of a token at the target, or the difference of two, in one sentence."""

    model: nn.Module
    sites: Sites
    ids: Int[Tensor, "position"]
    target: int
    good: int
    bad: int | None

    @property
    def copies(self) -> int:
        """How many copies of the sentence share a forward pass."""
        return max(1, LOGITS_A_BATCH // (len(self.ids) * vocabulary_size(self.model)))

    @property
    def tokens(self) -> list[int]:
        """The token whose logit it is, or the pair (good, bad)."""
        return [self.good] if self.bad is None else [self.good, self.bad]

    def of_logits(self, logits: Float[Tensor, "copy position vocabulary"]) -> Float[Tensor, "copy"]:
        """The metric of each copy."""
        at_target = logits[:, self.target]
        return at_target[:, self.good] if self.bad is None else at_target[:, self.good] - at_target[:, self.bad]

    def from_block(self, layer: int) -> Callable[[Tensor], Tensor]:
        """The metric as a function of a block's output, `[copy, position, feature]` to `[copy]`."""

        def metric(outputs: Float[Tensor, "copy position feature"]) -> Float[Tensor, "copy"]:
            def overwrite(_: Tensor, *, hook: Any) -> Tensor:
                return outputs

            ids = self.ids.expand(len(outputs), -1)
            return self.of_logits(run_logits(self.model, ids, [(self.sites.outputs[layer], overwrite)]))

        return metric

    def output_for(self, token: int, layer: int) -> Float[Tensor, "1 position feature"]:
        """What a block writes where every position holds one token."""
        outputs, _ = _outputs_and_logits(self.model, self.sites, [layer], torch.full_like(self.ids, token))
        return outputs[layer]


def predict(
    model: nn.Module,
    sites: Sites,
    sentence: Sentence,
    target: int,
    tokens: tuple[int, int | None] | None,
    layers: Sequence[int],
) -> tuple[Prediction, dict[int, Tensor]]:
    """A sentence's prediction, by default of its likeliest token, and the chosen blocks' clean outputs."""
    (ids,) = ids_of(model, [sentence])
    outputs, logits = _outputs_and_logits(model, sites, layers, ids)
    for layer, output in outputs.items():
        check_clean_output(sites.outputs[layer], output)
    good, bad = tokens or (int(logits[0, target].argmax()), None)
    return Prediction(model, sites, ids, target, good, bad), outputs


def _outputs_and_logits(
    model: nn.Module, sites: Sites, layers: Sequence[int], ids: Tensor
) -> tuple[dict[int, Tensor], Tensor]:
    seen: dict[int, Tensor] = {}

    def keep(layer: int) -> NamedHook:
        def hook_function(output: Tensor, *, hook: Any) -> None:
            seen[layer] = output.detach()

        return sites.outputs[layer], hook_function

    logits = run_logits(model, ids.unsqueeze(0), [keep(layer) for layer in layers])
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
