"""How much of a label is in a layer's representations: probing by minimum description length.

The online code:
1. Labels are sent block by block; the first with the uniform code: log2 K bits for each label of K classes.
2. For each further block, a probe is trained on all that was sent, and the block is sent with its predictions.
3. The code length is the sum over blocks; compression is that of the uniform code, N log2 K, over it.

Two modes say how a probe is trained and what a label costs. `correct`: cross-entropy of the logits, in bits; the
training's length is chosen on a tenth of what was sent. `paper`: as the public program of Mohebbi et al. (2023) does.

Source: Voita & Titov 2020, "Information-Theoretic Probing with Minimum Description Length", section 3.2.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count, pairwise
from math import log, log2, sqrt
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Generator, Tensor, nn
from torch.optim import AdamW
from tqdm.auto import tqdm

from tl_vzero.choices import integer, integers, one_of
from tl_vzero.clean import check_clean_output, device_of
from tl_vzero.data.examples import Number
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.evaluate.sentences import TokenizedExample, TokenizedSet
from tl_vzero.files import to_plain
from tl_vzero.inputs.text import same_length_batches
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.run import quiet, remembering_hooks, run_to
from tl_vzero.statistics import RESAMPLES, Interval, bootstrap_means

if TYPE_CHECKING:
    import pandas as pd

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


# The representations at the target.

EMBEDDINGS = -1  # the layer of what the first block reads, in a probing result
TOKENS_PER_BATCH = 4096  # of one run of the model, so that its memory does not grow with the examples
LABELS: dict[Number, int] = {"singular": 0, "plural": 1}


def representations(
    model: nn.Module, layout: TokenizedSet, *, progress: bool = False
) -> Float[Tensor, "example layer feature"]:
    """The representation at the target of each example: what the first block reads, then what each block writes.

    `[example, layer, feature]`, one layer more than the model has blocks. The target is the mask, or, by the causal
    protocol, the last position before the target. In float32, or float64 for such a model, on the CPU. No logits are
    computed.

    Raises ModelError where a block's output is not finite, and leaves the model as it was.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> representations(model, tokenize_examples(model, agreement_examples()[:3])).shape
    torch.Size([3, 5, 128])
    """
    sites = check_contracts(model)
    names = (sites.inputs[0], *sites.outputs)
    read: dict[TokenizedExample, Tensor] = {}
    total = len(layout.examples)
    with quiet(model), tqdm(total=total, disable=not progress, desc="representations", leave=False) as bar:
        for batch in same_length_batches(layout.examples, len, lambda alike: TOKENS_PER_BATCH // len(alike[0])):
            read.update(zip(batch, _at_targets(model, names, batch), strict=True))
            bar.update(len(batch))
    return torch.stack([read[sentence] for sentence in layout.examples])


def with_number(layout: TokenizedSet) -> tuple[TokenizedSet, Int[Tensor, "example"]]:
    """The examples whose target shows a grammatical number, and what it is: 0 for singular, 1 for plural.

    Raises InputError where none does.
    """
    numbered = [(laid, LABELS[which]) for laid in layout.examples if (which := laid.example.number) is not None]
    if not numbered:
        raise InputError(
            f"none of {len(layout.examples)} examples says whether its target is singular or plural: expected a column "
            "number, or forms that show it, such as is and are"
        )
    examples, labels = zip(*numbered, strict=True)
    return replace(layout, examples=examples), torch.tensor(labels)


def _at_targets(
    model: nn.Module, names: Sequence[str], batch: Sequence[TokenizedExample]
) -> Float[Tensor, "batch layer feature"]:
    rows, targets = list(range(len(batch))), [laid.dest for laid in batch]
    at_targets: dict[str, Tensor] = {}

    def cut(name: str, activation: Tensor) -> Tensor:
        check_clean_output(name, activation)
        return activation.detach()[rows, targets].cpu()

    ids = torch.stack([laid.encoding.ids for laid in batch]).to(device_of(model))
    run_to(model, ids, remembering_hooks(names, at_targets, cut), last=names[-1])
    stacked = torch.stack([at_targets[name] for name in names], dim=1)
    return stacked if stacked.dtype == torch.float64 else stacked.float()


# What of a label they hold, by layer.

FORMAT_VERSION = 1
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)
LARGEST = 1e15  # float32 holds the squares that the probe's LayerNorm takes
ModeName = Literal["correct", "paper"]


@dataclass(frozen=True)
class ProbingResult:
    """Compression of the labels by each layer's representations: 1 where the probe learns nothing, in mode `correct`.

    `code_length[layer]` is in bits and the sum of `block_lengths[layer]`, one for each of the `block_sizes`;
    `compression` is `uniform_length`, N log2 K bits for N labels of K `classes`, over it. `low` and `high` bound its
    bootstrap interval over the examples that probes were used for: what other examples would give, not what probes
    trained with other seeds would. In mode `paper` the lengths are the public program's sum of bits and nats.
    """

    mode: ModeName
    layers: tuple[int, ...]
    compression: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]
    code_length: tuple[float, ...]
    block_lengths: tuple[tuple[float, ...], ...]
    block_sizes: tuple[int, ...]
    n: int
    classes: int
    seed: int
    confidence: float

    @property
    def uniform_length(self) -> float:
        """What the labels cost without a probe, in bits."""
        return self.n * log2(self.classes)

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table: mode, layer, compression, low, high, code_length, n."""
        import pandas as pd

        of_layers = {name: getattr(self, name) for name in ("compression", "low", "high", "code_length")}
        return pd.DataFrame({"mode": self.mode, "layer": self.layers, **of_layers, "n": self.n})

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        about = {"format": "tl_vzero.probing", "format_version": FORMAT_VERSION}
        return {**about, **to_plain(self), "uniform_length": self.uniform_length}


def probe_layers(
    representations: Float[Tensor, "example layer feature"],
    labels: Int[Tensor, "example"],
    *,
    mode: ModeName = "correct",
    layers: Iterable[int] | None = None,
    seed: int = 0,
    confidence: float = 0.95,
    resamples: int = RESAMPLES,
    progress: bool = False,
) -> ProbingResult:
    """Code length and compression of labels, in bits, given each layer's representations.

    `labels` are any integers, one per example. Examples are put into a random order by `seed`, which also draws the
    probes. Mode `correct` is a code; mode `paper` repeats the public program of Mohebbi et al., to compare with
    the curve they published (see `Paper`). `layers` are the layers' indices in the result, 0 and up if None.
    Computed in float32, or in float64 where the representations are.

    Raises InputError for shapes that do not fit, fewer examples than the blocks need, labels of one class,
    representations that are not finite, an unknown mode; InputTypeError for what is no tensor of numbers.
    Source: Voita & Titov 2020, "Information-Theoretic Probing with Minimum Description Length", section 3.2; the
    probe, Mohebbi et al. 2023, "Quantifying Context Mixing in Transformers".

    >>> import torch
    >>> labels = torch.arange(400) % 2
    >>> telling, silent = labels * 2.0 - 1, torch.zeros(400)
    >>> representations = torch.stack([telling, silent], dim=1)[:, :, None].expand(-1, -1, 8)
    >>> result = probe_layers(representations, labels)
    >>> result.compression[0] > 3, 0.9 < result.compression[1] < 1.1
    (True, True)
    """
    rules = MODES[one_of("mode", mode, MODES)]
    _check(representations, labels, rules)
    named = _layers(layers, representations.shape[1])
    if integer("seed", seed) < 0:
        raise InputError(f"seed is {seed}: expected 0 or more")
    Interval(confidence, resamples)  # refused before the probes are trained
    kinds, classes = torch.unique(labels, return_inverse=True)
    lengths = _lengths(representations, classes, len(kinds), rules, seed, progress)
    ends = block_ends(len(labels))
    sizes = [end - start for start, end in pairwise((0, *ends))]
    blocks = torch.stack([part.sum(dim=1) for part in lengths.split(sizes, dim=1)], dim=1)
    totals = blocks.sum(dim=1)
    uniform = len(labels) * log2(len(kinds))
    coded = bootstrap_means(lengths[:, ends[0] :].T, confidence=confidence, resamples=resamples, seed=seed)
    first = ends[0] * log2(len(kinds))
    return ProbingResult(
        mode=mode,
        layers=named,
        compression=tuple(uniform / total for total in totals.tolist()),
        low=tuple(uniform / (first + mean.n * mean.high) for mean in coded),
        high=tuple(uniform / (first + mean.n * mean.low) for mean in coded),
        code_length=tuple(totals.tolist()),
        block_lengths=tuple(tuple(lengths) for lengths in blocks.tolist()),
        block_sizes=tuple(sizes),
        n=len(labels),
        classes=len(kinds),
        seed=seed,
        confidence=confidence,
    )


def _lengths(
    representations: Tensor, classes: Tensor, kinds: int, mode: Mode, seed: int, progress: bool
) -> Float[Tensor, "layer example"]:
    """What each label costs, in the order in which they are sent; in float64 on the CPU."""
    dtype = torch.promote_types(representations.dtype, torch.float32)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(classes), generator=generator).to(representations.device)
    seeds = torch.randint(2**62, (len(PERCENT_SENT) - 1,), generator=generator)
    total = mode.most_epochs * sum(block_ends(len(classes))[:-1])
    # Copies made here take part in gradients, also where the caller is in inference mode.
    with (
        torch.inference_mode(False),
        torch.enable_grad(),
        tqdm(total=total, disable=not progress, desc="probing", unit="example", leave=False) as bar,
    ):
        by_layer = representations.detach()[order].to(dtype).transpose(0, 1)
        sent = Sent(by_layer.clone(memory_format=torch.contiguous_format), classes.to(by_layer.device)[order])
        logits = online_logits(sent, kinds, mode, seeds, bar.update)
        return label_lengths(logits.cpu().double(), sent.labels.cpu(), mode)


def _check(representations: Any, labels: Any, mode: Mode) -> None:
    if not isinstance(representations, Tensor) or not representations.is_floating_point():
        raise _not_a_tensor("representations", representations, "floating-point [example, layer, feature]")
    if not isinstance(labels, Tensor) or labels.dtype not in INTEGERS:
        raise _not_a_tensor("labels", labels, "integer [example]")
    shape = list(representations.shape)
    if len(shape) != 3 or 0 in shape[1:]:
        raise InputError(f"representations have shape {shape}: expected [example, layer, feature], not empty")
    if list(labels.shape) != shape[:1]:
        raise InputError(f"labels have shape {list(labels.shape)}: expected one for each of {shape[0]} examples")
    fewest = fewest_examples(mode)
    if len(labels) < fewest:
        raise InputError(
            f"given {len(labels)} examples: expected at least {fewest}, or the first block is too small for a probe"
        )
    if (labels == labels[0]).all():
        raise InputError(f"all labels are {labels[0].item()}: expected two classes or more")
    usable = (representations.detach().abs() <= LARGEST).flatten(1).all(dim=1)  # False for NaN
    if not usable.all():
        wrong = (~usable).nonzero().flatten().tolist()
        which = f"{len(wrong)} examples (the first is {wrong[0]})"
        raise InputError(
            f"representations of {which} hold NaN or are beyond {LARGEST:g}: leave these out, or scale them"
        )


def _not_a_tensor(name: str, value: Any, expected: str) -> InputTypeError:
    what = f"a tensor of {value.dtype}" if isinstance(value, Tensor) else type(value).__name__
    return InputTypeError(f"{name} is {what}: expected a tensor, {expected}")


def _layers(layers: Iterable[int] | None, count: int) -> tuple[int, ...]:
    named = integers("layers", layers) or tuple(range(count))
    if len(named) != count or len(set(named)) != count:
        raise InputError(f"layers is {list(named)}: expected a number of its own for each of {count} layers")
    return named


def probe_number(
    model: nn.Module, layout: TokenizedSet, *, mode: ModeName = "correct", seed: int = 0, progress: bool = False
) -> ProbingResult:
    """Compression of singular or plural by each layer's representation at the target; layer -1 is the embeddings.

    Examples that show no number are left out: the result's `n` counts the others. Raises InputError as `probe_layers`
    does and where no example shows a number, and leaves the model as it was.
    Source: Mohebbi et al. 2023, section 6.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> result = probe_number(model, tokenize_examples(model, agreement_examples()[:200]))
    >>> result.compression[-1] > result.compression[0]
    True
    """
    numbered, labels = with_number(layout)
    read = representations(model, numbered, progress=progress)
    layers = range(EMBEDDINGS, read.shape[1] + EMBEDDINGS)
    return probe_layers(read, labels, mode=mode, layers=layers, seed=seed, progress=progress)
