"""The online code of minimum description length probing, and its probes.

1. Labels are sent block by block; the first with the uniform code: log2 K bits for each label of K classes.
2. For each further block, a probe is trained on all that was sent, and the block is sent with its predictions.
3. The code length is the sum over blocks; compression is that of the uniform code, N log2 K, over it.

Two modes say how a probe is trained and what a label costs. `correct`: cross-entropy of the logits, in bits; the
training's length is chosen on a tenth of what was sent. `paper`: as the public program of Mohebbi et al. (2023) does.

Source: Voita & Titov 2020, "Information-Theoretic Probing with Minimum Description Length", section 3.2.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, pairwise
from math import log, log2, sqrt
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor
from torch.optim import AdamW

# All of the paper: the blocks, the probe and its training; but for the tenth that is held out.
PERCENT_SENT = (0.8, 1.6, 3.2, 6.25, 12.5, 25.0, 50.0, 100.0)
WIDTH = 128
INPUT_DROPOUT = 0.2
HIDDEN_DROPOUT = 0.3
BATCH = 128
RATE = 1e-3
HELD_OUT = 0.1


class Probes:
    """One probe per layer, all trained in one batched computation: `parameters` have a leading layer axis.

    Dropout, linear to 128 features, ReLU, LayerNorm, dropout, linear to the classes. All layers' probes start from the
    same weights and drop the same features of the same examples, so that layers differ by their representations only,
    and a layer's probe is the same whatever other layers are probed beside it.
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = tuple(parameters)

    @classmethod
    def start(cls, representations: Tensor, classes: int, generator: Generator) -> "Probes":
        """Untrained probes for `[layer, example, feature]`, drawn as torch draws linear layers; the same per layer."""
        layers, _, features = representations.shape
        first, norm = _linear(features, WIDTH, generator), (torch.ones(WIDTH), torch.zeros(WIDTH))
        one = (*first, *norm, *_linear(WIDTH, classes, generator))
        return cls([part.to(representations).repeat(layers, *[1] * part.dim()).requires_grad_() for part in one])

    def copy(self) -> "Probes":
        return Probes([parameter.detach().clone() for parameter in self.parameters])

    def take(self, other: "Probes", layers: Bool[Tensor, "layer"]) -> None:
        """Copy the probes of some layers from another."""
        for ours, theirs in zip(self.parameters, other.parameters, strict=True):
            ours[layers] = theirs.detach()[layers]

    def logits(
        self, representations: Float[Tensor, "layer example feature"], generator: Generator | None = None
    ) -> Float[Tensor, "layer example class"]:
        """What the probes predict; a generator, in training, drops features at random, the same for every layer."""
        weight, bias, gain, shift, last_weight, last_bias = self.parameters
        remaining = _dropped(representations, INPUT_DROPOUT, generator)
        hidden = torch.baddbmm(bias[:, None], remaining, weight.mT).relu()
        hidden = torch.addcmul(shift[:, None], F.layer_norm(hidden, (WIDTH,)), gain[:, None])
        return torch.baddbmm(last_bias[:, None], _dropped(hidden, HIDDEN_DROPOUT, generator), last_weight.mT)


def _linear(inputs: int, outputs: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Weight and bias of a linear layer, drawn as `torch.nn.Linear` draws them."""
    bound = 1 / sqrt(inputs)
    weight = torch.empty(outputs, inputs).uniform_(-bound, bound, generator=generator)
    return weight, torch.empty(outputs).uniform_(-bound, bound, generator=generator)


def _dropped(activation: Tensor, share: float, generator: Generator | None) -> Float[Tensor, "layer example feature"]:
    """The activation after dropout; as it is without a generator."""
    if generator is None:
        return activation
    stays = torch.rand(activation.shape[1:], generator=generator) >= share
    return activation * (stays.to(activation) / (1 - share))


Tick = Callable[[int], object]


@dataclass(frozen=True, eq=False)
class Sent:
    """The examples that sender and receiver both know."""

    representations: Float[Tensor, "layer example feature"]
    labels: Int[Tensor, "example"]

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, start: int, end: int) -> "Sent":
        return Sent(self.representations[:, start:end], self.labels[start:end])


# A mode is how a probe is trained on what was sent, and what a label then costs: `most_epochs` bounds a training,
# `fewest_sent` is what it needs to have been sent, `bits_per_loss` is what a loss of one counts in the code. `loss` is
# what training makes small, example by example; `trained` gives the probes, and `tick` counts an epoch's examples.


class Correct:
    """Bits from logits, and a training whose length is chosen without the block that is sent next.

    At most 15 epochs on nine tenths of what was sent; those probes are taken that do best on the tenth that is held
    out, layer by layer, and training ends when none has improved for five epochs. Untrained probes predict uniformly
    and count as an epoch: where nothing can be learnt, a label costs what it costs by the uniform code.
    """

    most_epochs: ClassVar[int] = 15
    fewest_sent: ClassVar[int] = 2  # one to train on and one to hold out
    bits_per_loss: ClassVar[float] = 1 / log(2)
    patience: ClassVar[int] = 5

    def loss(
        self, logits: Float[Tensor, "layer example class"], labels: Int[Tensor, "example"]
    ) -> Float[Tensor, "layer example"]:
        return _cross_entropy(logits, labels)

    def trained(self, sent: Sent, classes: int, generator: Generator, tick: Tick) -> Probes:
        n_trained = len(sent) - max(1, round(HELD_OUT * len(sent)))
        training, held_out = sent.part(0, n_trained), sent.part(n_trained, len(sent))
        probes = Probes.start(sent.representations, classes, generator)
        with torch.no_grad():  # a last linear map of zeros gives each class the same probability
            for parameter in probes.parameters[-2:]:
                parameter.zero_()
        best, least = probes.copy(), self._mean_loss(probes, held_out)
        epochs_since = torch.zeros_like(least)
        optimizer = _adamw(probes)
        for _ in range(self.most_epochs):
            _train_one_epoch(self, probes, optimizer, training, generator, lambda _: RATE)
            tick(len(sent))
            loss = self._mean_loss(probes, held_out)
            better = (loss < least) & (epochs_since < self.patience)
            best.take(probes, better)
            least = torch.where(better, loss, least)
            epochs_since = torch.where(better, 0, epochs_since + 1)
            if (epochs_since >= self.patience).all():
                break
        return best

    def _mean_loss(self, probes: Probes, held_out: Sent) -> Float[Tensor, "layer"]:
        with torch.no_grad():
            return self.loss(probes.logits(held_out.representations), held_out.labels).mean(dim=-1)


class Paper:
    """The public program's arithmetic, to compare with the published curve.

    A softmax is taken of the probabilities as if they were logits, and its cross-entropy in nats is added to the first
    block's bits: with two classes and N labels, compression is 1.4376 at chance and 3.137 at perfection. The learning
    rate falls to 0 within the first epoch and stays there. So the program's choice among its epochs, made on the very
    block that is sent, is one among equals, and a single epoch gives all that its fifteen give. (The program rounds
    the sizes of blocks down when it sends them and so leaves out up to one label of each; here all are sent.)
    """

    most_epochs: ClassVar[int] = 1
    fewest_sent: ClassVar[int] = 1
    bits_per_loss: ClassVar[float] = 1.0  # nats, taken for bits

    def loss(
        self, logits: Float[Tensor, "layer example class"], labels: Int[Tensor, "example"]
    ) -> Float[Tensor, "layer example"]:
        return _cross_entropy(logits.softmax(dim=-1), labels)

    def trained(self, sent: Sent, classes: int, generator: Generator, tick: Tick) -> Probes:
        probes = Probes.start(sent.representations, classes, generator)
        steps = -(-len(sent) // BATCH)
        _train_one_epoch(self, probes, _adamw(probes), sent, generator, lambda step: RATE * (steps - step) / steps)
        tick(len(sent))
        return probes


Mode = Correct | Paper
MODES: Mapping[str, Mode] = {"correct": Correct(), "paper": Paper()}


def block_ends(n: int) -> tuple[int, ...]:
    """How many of `n` examples are sent after each block; of 1000, for example, 8, 16, 32, 62, 125, 250, 500, 1000."""
    return tuple(round(n * percent / 100) for percent in PERCENT_SENT)


def fewest_examples(mode: Mode) -> int:
    """The smallest data that the blocks can be made of: 188 examples for `correct`, 63 for `paper`."""
    return next(n for n in count(1) if block_ends(n)[0] >= mode.fewest_sent)


def online_logits(
    examples: Sent, classes: int, mode: Mode, seeds: Int[Tensor, "block"], tick: Tick
) -> Float[Tensor, "layer sent_by_probe class"]:
    """What the probes predict of each example after the first block, each block by probes of the blocks before it."""
    ends = block_ends(len(examples))
    predicted = []
    for (start, end), seed in zip(pairwise(ends), seeds.tolist(), strict=True):
        # A generator of its own: how long another block, or another layer, was trained changes nothing here.
        generator = torch.Generator().manual_seed(seed)
        probes = mode.trained(examples.part(0, start), classes, generator, tick)
        with torch.no_grad():
            predicted.append(probes.logits(examples.part(start, end).representations))
    return torch.cat(predicted, dim=1)


def label_lengths(
    logits: Float[Tensor, "layer sent_by_probe class"], labels: Int[Tensor, "example"], mode: Mode
) -> Float[Tensor, "layer example"]:
    """What each label costs: by the uniform code where there is no prediction yet, in the mode's arithmetic after it.

    >>> import torch
    >>> label_lengths(torch.zeros(1, 2, 4), torch.tensor([0, 3, 1]), MODES["correct"])
    tensor([[2., 2., 2.]])
    """
    layers, sent_by_probe, classes = logits.shape
    first = len(labels) - sent_by_probe
    uniform = logits.new_full((layers, first), log2(classes))
    return torch.cat([uniform, mode.loss(logits, labels[first:]) * mode.bits_per_loss], dim=1)


def _cross_entropy(logits: Tensor, labels: Tensor) -> Float[Tensor, "layer example"]:
    """In nats."""
    layers, examples, _ = logits.shape
    return F.cross_entropy(logits.mT, labels.expand(layers, examples), reduction="none")


def _adamw(probes: Probes) -> AdamW:
    # No weight decay, and this eps: the defaults of the AdamW that the authors used, that of transformers.
    return AdamW(probes.parameters, lr=RATE, weight_decay=0.0, eps=1e-6)


def _train_one_epoch(
    mode: Mode, probes: Probes, optimizer: AdamW, training: Sent, generator: Generator, rate: Callable[[int], float]
) -> None:
    """Go through the examples once, in their (random) order; `rate` is the learning rate of each step."""
    for step, start in enumerate(range(0, len(training), BATCH)):
        batch = training.part(start, start + BATCH)
        for group in optimizer.param_groups:
            group["lr"] = rate(step)
        loss = mode.loss(probes.logits(batch.representations, generator), batch.labels)
        optimizer.zero_grad()
        # The sum over layers trains each layer's probe by its own loss alone.
        loss.mean(dim=-1).sum().backward()
        optimizer.step()
