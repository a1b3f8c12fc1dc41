"""What each layer makes of the target: the representations that probes read, and the labels that they should tell."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.clean import check_clean_output, device_of
from tl_vzero.data.lexicon import Number
from tl_vzero.errors import InputError
from tl_vzero.evaluate.laid_out import LaidOut, Layout
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.run import NamedHook, quiet, run_to

EMBEDDINGS = -1  # the number that a probing result gives to what the first block reads
TOKENS_A_BATCH = 4096
LABELS: dict[Number, int] = {"singular": 0, "plural": 1}


def representations(
    model: nn.Module, layout: Layout, *, progress: bool = False
) -> Float[Tensor, "example layer feature"]:
    """The representation at the target of each example: what the first block reads, then what each block writes.

    `[example, layer, feature]`, one layer more than the model has blocks; `layer_numbers` names them. The target is
    the mask, or, by the causal protocol, the last position before the target. In float32, or float64 for such a
    model, on the CPU. No logits are computed.

    Raises ModelError where a block's output is not finite, and leaves the model as it was.

    >>> import tl_vzero
    >>> from tl_vzero.data.embedded import agreement_examples
    >>> from tl_vzero.evaluate.laid_out import lay_out
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> representations(model, lay_out(model, agreement_examples()[:3])).shape
    torch.Size([3, 5, 128])
    """
    sites = check_contracts(model)
    names = (sites.inputs[0], *sites.outputs)
    found: list[Tensor | None] = [None] * len(layout.examples)
    with quiet(model), tqdm(total=len(found), disable=not progress, desc="representations", leave=False) as bar:
        for numbers in _batches(layout.examples):
            batch = [layout.examples[number] for number in numbers]
            for number, own in zip(numbers, _at_targets(model, names, batch), strict=True):
                found[number] = own
            bar.update(len(numbers))
    return torch.stack([own for own in found if own is not None])


def layer_numbers(n_blocks: int) -> tuple[int, ...]:
    """The layers that `representations` gives: `EMBEDDINGS`, then the blocks from 0.

    >>> layer_numbers(2)
    (-1, 0, 1)
    """
    return tuple(range(EMBEDDINGS, n_blocks))


def with_number(layout: Layout) -> Layout:
    """The examples of a layout whose target shows a grammatical number.

    Raises InputError where none does.
    """
    kept = tuple(each for each in layout.examples if each.example.number is not None)
    if not kept:
        raise InputError(
            f"none of {len(layout.examples)} examples says whether its target is singular or plural: expected a "
            "column number, or forms that show it, such as is and are"
        )
    return Layout(kept, layout.protocol, layout.skipped)


def number_labels(examples: Sequence[LaidOut]) -> Int[Tensor, "example"]:
    """The grammatical number that each target shows: 0 for singular, 1 for plural.

    Raises InputError for an example that shows none; see `with_number`.
    """
    labels = []
    for each in examples:
        if each.example.number is None:
            raise InputError(f"{each.example.id} shows no grammatical number: leave it out, see with_number")
        labels.append(LABELS[each.example.number])
    return torch.tensor(labels, dtype=torch.long)


def _batches(examples: Sequence[LaidOut]) -> Iterator[list[int]]:
    """Numbers of examples of one length, as many as may share a run: no class of model has to know of padding."""
    by_length: dict[int, list[int]] = {}
    for number, each in enumerate(examples):
        by_length.setdefault(len(each), []).append(number)
    for length, numbers in sorted(by_length.items()):
        size = max(1, TOKENS_A_BATCH // length)
        yield from (numbers[start : start + size] for start in range(0, len(numbers), size))


def _at_targets(
    model: nn.Module, names: Sequence[str], batch: Sequence[LaidOut]
) -> Float[Tensor, "batch layer feature"]:
    rows, targets = list(range(len(batch))), [each.dest for each in batch]
    seen: dict[str, Tensor] = {}

    def keep(name: str) -> NamedHook:
        def hook_function(activation: Tensor, *, hook: Any) -> None:
            check_clean_output(name, activation)
            seen[name] = activation.detach()[rows, targets].cpu()

        return name, hook_function

    ids = torch.stack([each.pieces.ids for each in batch]).to(device_of(model))
    run_to(model, ids, [keep(name) for name in names], last=names[-1])
    stacked = torch.stack([seen[name] for name in names], dim=1)
    return stacked if stacked.dtype == torch.float64 else stacked.float()
