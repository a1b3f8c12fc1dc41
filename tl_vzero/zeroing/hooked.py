"""Engine 1: Value Zeroing by hooks on hook_v, for any model; the truth that the closed form is tested against.

1. The clean run gives every block's input, value, pattern and output.
2. A batch of copies of the sentences runs through the model; copy n zeroes one source's value, in all blocks.
3. Each block's input is overwritten by the clean one, so that blocks do not see one another's change.
4. Each block's output is compared with the clean output, at every destination.

One forward pass a batch of copies so serves all layers. Source: Mohebbi et al. 2023, section 3.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.clean import Clean, CleanBlock
from tl_vzero.distance import cosine, cosine_of_change, wide_dtype
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.models.contracts import check_contracts, value_heads
from tl_vzero.models.run import NamedHook, run_to
from tl_vzero.models.sites import Sites
from tl_vzero.zeroing.reach import reached
from tl_vzero.zeroing.request import Request, chosen, integers

TOKENS_A_BATCH = 768


def value_zeroing_hooks(
    model: nn.Module,
    positions: Iterable[int] | int,
    layers: Iterable[int] | int | None = None,
    heads: Iterable[int] | int | None = None,
) -> list[NamedHook]:
    """Hooks that zero the values of some positions, for TransformerLens's own `run_with_hooks`.

    Returns (hook name, function) pairs, one a layer; `layers` and `heads` default to all. Every sentence of a
    batch is zeroed at the same positions; negative ones count from the end. No position at all zeroes nothing.
    Under grouped-query attention `heads` are key-value heads.

    Raises InputError for layers or heads that the model lacks, and in the run for positions outside it.

    >>> import torch, tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> hooks = tl_vzero.value_zeroing_hooks(model, positions=[1, 2], layers=0)
    >>> logits = model.run_with_hooks(torch.tensor([[2, 7, 8, 3]]), fwd_hooks=hooks)
    """
    sites = check_contracts(model)
    zeroed = integers("positions", positions, empty=True)
    if zeroed is None:
        raise InputTypeError("positions is None: expected one number or several, such as [1, 2]")
    chosen_layers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    n_heads = value_heads(model)
    chosen_heads = chosen("heads", heads, n_heads, "values have") or tuple(range(n_heads))

    def zero_values(value: Tensor, hook: Any) -> Tensor:
        inside = chosen("positions", zeroed, value.shape[1], "the sentence has") if zeroed else ()
        value = value.clone()
        for position in inside or ():
            value[:, position, list(chosen_heads)] = 0
        return value

    return [(sites.values[layer], zero_values) for layer in chosen_layers]


@dataclass(frozen=True, eq=False)
class _Copies:
    """A batch of copies: copy n is of sentence `sentence[n]`, its source `source[n]` is zeroed.

    `column[n]` is where the result goes on the source axis; `head[n]`, per head, the head zeroed.
    """

    sentence: Int[Tensor, "copy"]
    source: Int[Tensor, "copy"]
    column: Int[Tensor, "copy"]
    head: Int[Tensor, "copy"]

    def part(self, start: int, stop: int) -> "_Copies":
        return _Copies(*(t[start:stop] for t in (self.sentence, self.source, self.column, self.head)))

    def __len__(self) -> int:
        return len(self.sentence)


def hooked_maps(
    model: nn.Module,
    sites: Sites,
    ids: Int[Tensor, "sentence position"],
    clean: Clean,
    request: Request,
    sources: tuple[int, ...],
    destinations: tuple[int, ...],
    *,
    final_norm: nn.Module | None = None,
    advance: Callable[[float], object] = lambda copies: None,
) -> Float[Tensor, "sentence layer head dest src"]:
    """Raw Value Zeroing maps of sentences of one length, in float64; the head axis is 1 long unless per head.

    `clean` is their clean run; `advance` is told how many sources each batch had zeroed. An entry is exactly 0 where
    every zeroed head's pattern or value is exactly 0.
    """
    heads = _heads_of(clean, request)
    n_maps = len(heads) if request.per_head else 1
    shape = (len(ids), len(request.layers), n_maps, len(destinations), len(sources))
    maps = torch.zeros(shape, dtype=wide_dtype(ids.device), device=ids.device)
    copies = _all_copies(len(ids), sources, n_maps, ids.device)
    size = request.batch_size or max(1, TOKENS_A_BATCH // ids.shape[1])
    dest = torch.tensor(destinations, device=ids.device)
    for start in range(0, len(copies), size):
        part = copies.part(start, start + size)
        hooks: list[NamedHook] = []
        for index, layer in enumerate(request.layers):
            norm = final_norm if layer == sites.n_layers - 1 else None
            block = clean[layer]
            hooks += [
                (sites.inputs[layer], _clean_input(block, part)),
                (sites.values[layer], _zero_sources(part, heads, request)),
                (sites.outputs[layer], _measure(block, part, dest, request, norm, maps[:, index])),
            ]
        run_to(model, ids[part.sentence], hooks, last=sites.outputs[max(request.layers)])
        advance(len(part) / n_maps)
    for index, layer in enumerate(request.layers):
        maps[:, index] *= reached(clean[layer], heads, request.per_head, destinations, sources)
    return maps


def _heads_of(clean: Clean, request: Request) -> tuple[int, ...]:
    n_heads = next(iter(clean.values())).value.shape[2]
    return request.heads if request.heads is not None else tuple(range(n_heads))


def _all_copies(n_sentences: int, sources: tuple[int, ...], n_maps: int, device: torch.device) -> _Copies:
    column = torch.arange(len(sources), device=device)
    grid = torch.cartesian_prod(torch.arange(n_sentences, device=device), column)
    grid = grid.repeat_interleave(n_maps, dim=0)
    head = torch.arange(n_maps, device=device).repeat(n_sentences * len(sources))
    source = torch.tensor(sources, device=device)[grid[:, 1]]
    return _Copies(grid[:, 0], source, grid[:, 1], head)


def _clean_input(block: CleanBlock, copies: _Copies) -> Any:
    def hook_function(_: Tensor, *, hook: Any) -> Tensor:
        return block.input[copies.sentence]

    return hook_function


def _zero_sources(copies: _Copies, heads: tuple[int, ...], request: Request) -> Any:
    chosen_heads = torch.tensor(heads, device=copies.source.device)
    copy = torch.arange(len(copies), device=copies.source.device).unsqueeze(1)
    zeroed = chosen_heads[copies.head].unsqueeze(1) if request.per_head else chosen_heads.unsqueeze(0)

    def hook_function(value: Tensor, *, hook: Any) -> Tensor:
        value = value.clone()
        value[copy, copies.source.unsqueeze(1), zeroed] = 0
        return value

    return hook_function


def _distances(request: Request, clean: Tensor, changed: Tensor) -> Tensor:
    if request.distance is not cosine or clean.dtype not in (torch.float32, torch.float64):
        return request.distance(clean, changed)
    # The same distance in half the passes over memory: two float32 outputs this near differ almost exactly.
    return cosine_of_change(clean, clean - changed)


def _measure(
    block: CleanBlock, copies: _Copies, dest: Tensor, request: Request, norm: nn.Module | None, maps: Tensor
) -> Any:
    def hook_function(changed: Tensor, *, hook: Any) -> None:
        changed = changed.detach()[:, dest]
        clean = block.output[:, dest][copies.sentence]
        if norm is not None:
            clean, changed = norm(clean), norm(changed)
        distances = _distances(request, clean, changed)
        if not torch.isfinite(distances).all():
            raise InputError(
                f"distance {request.distance_name} gave NaN or infinity at {hook.name}: expected finite numbers; "
                "check the distance, or the model's dtype"
            )
        maps[copies.sentence, copies.head, :, copies.column] = distances.to(maps.dtype)

    return hook_function
