"""How much of a label is in a layer's representations: probing by minimum description length.

The representations at the target, and the compression of a label by them; the online code and its probes: `mdl.py`.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from math import log2
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import integer, integers, one_of
from tl_vzero.clean import check_clean_output, device_of
from tl_vzero.data.examples import Number
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.evaluate.mdl import (
    MODES,
    PERCENT_SENT,
    Mode,
    Sent,
    block_ends,
    fewest_examples,
    label_lengths,
    online_logits,
)
from tl_vzero.evaluate.sentences import TokenizedExample, TokenizedSet
from tl_vzero.files import to_plain
from tl_vzero.inputs.text import same_length_batches
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.run import quiet, remembering_hooks, run_to
from tl_vzero.statistics import RESAMPLES, Interval, bootstrap_means

if TYPE_CHECKING:
    import pandas as pd

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
    the curve they published (see `mdl.Paper`). `layers` are the layers' indices in the result, 0 and up if None.
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
