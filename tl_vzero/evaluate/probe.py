"""The probe, one for each layer and all trained in one batched computation.

Dropout 0.2, linear to 128 features, ReLU, LayerNorm, dropout 0.3, linear to the classes. All layers' probes start from
the same weights and drop the same features of the same examples, so that layers differ by their representations only,
and a layer's probe is the same whatever other layers are probed beside it.
"""

from collections.abc import Sequence
from math import sqrt

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Generator, Tensor

WIDTH = 128
INPUT_DROPOUT = 0.2
HIDDEN_DROPOUT = 0.3


class Probes:
    """One probe per layer: `parameters` have a leading layer axis."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = tuple(parameters)

    @classmethod
    def start(cls, representations: Tensor, classes: int, generator: Generator) -> "Probes":
        """Untrained probes for `[layer, example, feature]`, drawn as torch draws linear layers; the same per layer."""
        layers, _, features = representations.shape
        one = [
            *_linear(features, WIDTH, generator),
            torch.ones(WIDTH),
            torch.zeros(WIDTH),
            *_linear(WIDTH, classes, generator),
        ]
        return cls([each.to(representations).repeat(layers, *[1] * each.dim()).requires_grad_() for each in one])

    def predict_uniformly(self) -> None:
        """Let the untrained probes give each class the same probability, by last linear maps of zeros."""
        with torch.no_grad():
            for each in self.parameters[-2:]:
                each.zero_()

    def copy(self) -> "Probes":
        return Probes([each.detach().clone() for each in self.parameters])

    def take(self, other: "Probes", layers: Bool[Tensor, "layer"]) -> None:
        """Copy the probes of some layers from another."""
        for ours, theirs in zip(self.parameters, other.parameters, strict=True):
            ours[layers] = theirs.detach()[layers]

    def logits(self, representations: Float[Tensor, "layer example feature"]) -> Float[Tensor, "layer example class"]:
        """What the probes predict; without dropout."""
        return self._read(self._hidden(representations))

    def logits_in_training(
        self, representations: Float[Tensor, "layer example feature"], generator: Generator
    ) -> Float[Tensor, "layer example class"]:
        """What the probes predict with features dropped at random, the same ones for every layer."""
        kept = _kept(representations, INPUT_DROPOUT, generator)
        hidden = self._hidden(representations * kept)
        return self._read(hidden * _kept(hidden, HIDDEN_DROPOUT, generator))

    def _hidden(self, representations: Tensor) -> Tensor:
        weight, bias, gain, shift, _, _ = self.parameters
        hidden = torch.baddbmm(bias[:, None], representations, weight.mT).relu()
        return torch.addcmul(shift[:, None], F.layer_norm(hidden, (WIDTH,)), gain[:, None])

    def _read(self, hidden: Tensor) -> Tensor:
        *_, weight, bias = self.parameters
        return torch.baddbmm(bias[:, None], hidden, weight.mT)


def _linear(inputs: int, outputs: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, drawn as `torch.nn.Linear` draws them."""
    bound = 1 / sqrt(inputs)
    weight = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(outputs).uniform_(-bound, bound, generator=generator)


def _kept(activation: Tensor, dropout: float, generator: Generator) -> Float[Tensor, "example feature"]:
    """What dropout multiplies `[layer, example, feature]` by."""
    kept = torch.rand(activation.shape[1:], generator=generator) >= dropout
    return kept.to(activation) / (1 - dropout)
