"""Engine 1: Value Zeroing by hooks on hook_v, for any model; the truth that the closed form is tested against.

1. A batch of copies of the sentences runs through the model; copy n zeroes one source's value, in all blocks.
2. The first batch starts with a clean copy of each sentence, unless the clean run is there already.
3. Each block's input is overwritten by the clean one, so that blocks do not see one another's change.
4. Each block's output is compared with the clean output, at every destination.

One forward pass a batch of copies so serves all layers. Source: Mohebbi et al. 2023, section 3.
"""

import threading
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Unpack

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.choices import chosen, chosen_heads, integers
from tl_vzero.clean import Beside, Clean, CleanBlock, check_clean_output
from tl_vzero.distance import change_form, check_finite_distances, wide_dtype
from tl_vzero.errors import InputTypeError
from tl_vzero.models.contracts import attention_heads, check_contracts, value_heads
from tl_vzero.models.run import FinalNorm, NamedHook, eager_attention, run_to
from tl_vzero.models.signals import Read
from tl_vzero.models.sites import Sites
from tl_vzero.models.turns import check_own_run, takes_turn
from tl_vzero.zeroing.layout import felt_of, reached
from tl_vzero.zeroing.request import Request, Span, Wanted

TOKENS_A_BATCH = 768


@takes_turn
def value_zeroing_hooks(
    model: nn.Module,
    positions: Iterable[int] | int,
    layers: Iterable[int] | int | None = None,
    heads: Iterable[int] | int | None = None,
    stack: str | None = None,
) -> list[NamedHook]:
    """Hooks that zero the values of some positions, for TransformerLens's own `run_with_hooks`.

    Returns (hook name, function) pairs, one a layer; `layers` and `heads` default to all. Every sentence of a
    batch is zeroed at the same positions; negative ones count from the end. No position at all zeroes nothing.
    Under grouped-query attention `heads` are key-value heads. Of an encoder-decoder `stack` says which values:
    "encoder", "decoder", or "cross" for what the decoder's layers read at encoder positions.

    Raises InputError for layers, heads or a stack that the model lacks, and in the run for positions outside it; where
    another thread calls tl_vzero on the model during such a run, that call raises InputError.

    >>> import torch, tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> hooks = tl_vzero.value_zeroing_hooks(model, positions=[1, 2], layers=0)
    >>> logits = model.run_with_hooks(torch.tensor([[2, 7, 8, 3]]), fwd_hooks=hooks)
    """
    sites = check_contracts(model, stack)
    zeroed = integers("positions", positions, empty=True)
    if zeroed is None:
        raise InputTypeError("positions is None: expected one number or several, such as [1, 2]")
    chosen_layers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    n_heads = value_heads(model, sites.stack)
    zeroed_heads = chosen_heads(heads, n_heads, attention_heads(model, sites.stack)) or tuple(range(n_heads))

    maker = threading.get_ident()

    def zero_values(value: Tensor, hook: Any) -> Tensor:
        check_own_run(model, hook, zero_values, maker)
        inside = chosen("positions", zeroed, value.shape[1], "the sentence has") if zeroed else ()
        value = value.clone()
        for position in inside or ():
            value[:, position, list(zeroed_heads)] = 0
        return value

    return [(sites.values[layer], zero_values) for layer in chosen_layers]


@dataclass(frozen=True, eq=False)
class _Copies:
    """A batch of copies, after `n_clean` clean ones: copy n is of sentence `sentence[n]`, `zeroed[n]` are zeroed.

    `column[n]` is where the result goes on the source axis; `head[n]`, per head, the head zeroed.
    """

    sentence: Int[Tensor, "copy"]
    zeroed: Int[Tensor, "copy member"]
    column: Int[Tensor, "copy"]
    head: Int[Tensor, "copy"]
    n_clean: int = 0

    def part(self, start: int, stop: int, n_clean: int) -> "_Copies":
        which = slice(start, stop)
        return _Copies(self.sentence[which], self.zeroed[which], self.column[which], self.head[which], n_clean)

    def __len__(self) -> int:
        return len(self.sentence)

    def rows(self, per_sentence: Tensor) -> Tensor:
        """One row a copy, the clean ones first, from one row a sentence."""
        zeroed = per_sentence[self.sentence]
        return torch.cat([per_sentence, zeroed]) if self.n_clean else zeroed


class _CleanActivations:
    """What each hook sees of the clean run: known beforehand, or taken from the clean copies of the first batch."""

    def __init__(self, sites: Sites, clean: Clean | None) -> None:
        self.sites = sites
        self._seen: dict[str, Tensor] = {}
        for layer, block in (clean or {}).items():
            activations = (block.input, block.value, block.pattern, block.output)
            self._seen.update(zip(sites.at(layer), activations, strict=True))

    def at(self, name: str, activation: Tensor, copies: _Copies) -> Tensor:
        if name not in self._seen:
            self._seen[name] = activation[: copies.n_clean].detach()
            if name in self.sites.outputs:
                check_clean_output(name, self._seen[name])
        return self._seen[name]

    def block(self, layer: int) -> CleanBlock:
        return CleanBlock(*(self._seen[name] for name in self.sites.at(layer)))


def hooked_maps(
    model: nn.Module,
    sites: Sites,
    ids: Read,
    request: Request,
    wanted: Wanted,
    *,
    clean: Clean | None = None,
    final_norm: FinalNorm | None = None,
    advance: Callable[[float], object] = lambda copies: None,
    **beside: Unpack[Beside],
) -> Float[Tensor, "sentence layer head dest src"]:
    """Raw Value Zeroing maps of sentences of one length, in float64; the head axis is 1 long unless per head.

    The last axis is `wanted`'s spans, in most maps single positions. `beside` is what goes beside the ids: what
    the decoder reads, where the map is one of an encoder-decoder's decoder, and segments.

    `clean` is their clean run, where it is known; `advance` is told how many sources each batch had zeroed. An entry
    is exactly 0 where every zeroed head's pattern or value is exactly 0.
    """
    heads = request.heads if request.heads is not None else tuple(range(value_heads(model, sites.stack)))
    n_maps = len(heads) if request.per_head else 1
    shape = (len(ids), len(request.layers), n_maps, len(wanted.destinations), len(wanted.spans))
    maps = torch.zeros(shape, dtype=wide_dtype(ids.device), device=ids.device)
    copies = _all_copies(len(ids), wanted.spans, n_maps, ids.device)
    length = wanted.length + (0 if beside.get("decoder_ids") is None else ids.shape[1])
    size = request.batch_size or max(1, TOKENS_A_BATCH // length)
    known = _CleanActivations(sites, clean)
    dest = torch.tensor(wanted.destinations, device=ids.device)
    for start in range(0, len(copies), size):
        part = copies.part(start, start + size, n_clean=len(ids) if start == 0 and clean is None else 0)
        hooks: list[NamedHook] = []
        for index, layer in enumerate(request.layers):
            norm = final_norm if layer == sites.n_layers - 1 else None
            hooks += [
                (sites.inputs[layer], _clean_input(known, sites.inputs[layer], part)),
                (sites.values[layer], _zero_sources(known, sites.values[layer], part, heads, request, layer)),
                (
                    sites.outputs[layer],
                    _measure(known, sites.outputs[layer], part, dest, request, norm, maps[:, index]),
                ),
            ]
            if part.n_clean:
                hooks.append((sites.patterns[layer], _look(known, sites.patterns[layer], part)))
        with eager_attention(model) if part.n_clean else nullcontext():
            run_to(model, part.rows(ids), hooks, last=sites.outputs[max(request.layers)], **_copied(beside, part))
        advance(len(part) / n_maps)
    for index, layer in enumerate(request.layers):
        felt = reached(known.block(layer), heads, request.per_head)
        maps[:, index] *= felt_of(felt, wanted)
    return maps


def _copied(beside: Beside, copies: _Copies) -> Beside:
    whole = beside.get("decoder_ids"), beside.get("token_types")
    decoder_ids, token_types = (None if each is None else copies.rows(each) for each in whole)
    return Beside(decoder_ids=decoder_ids, token_types=token_types)


def _all_copies(n_sentences: int, spans: tuple[Span, ...], n_maps: int, device: torch.device) -> _Copies:
    column = torch.arange(len(spans), device=device)
    grid = torch.cartesian_prod(torch.arange(n_sentences, device=device), column)
    grid = grid.repeat_interleave(n_maps, dim=0)
    head = torch.arange(n_maps, device=device).repeat(n_sentences * len(spans))
    # A shorter span is filled up with a position of its own: zeroing it twice is zeroing it.
    longest = max(map(len, spans))
    filled = torch.tensor([[*span, *[span[0]] * (longest - len(span))] for span in spans], device=device)
    return _Copies(grid[:, 0], filled[grid[:, 1]], grid[:, 1], head)


def _look(known: _CleanActivations, name: str, copies: _Copies) -> Any:
    def hook_function(activation: Tensor, *, hook: Any) -> None:
        known.at(name, activation, copies)

    return hook_function


def _clean_input(known: _CleanActivations, name: str, copies: _Copies) -> Any:
    def hook_function(activation: Tensor, *, hook: Any) -> Tensor:
        return copies.rows(known.at(name, activation, copies))

    return hook_function


def _zero_sources(
    known: _CleanActivations, name: str, copies: _Copies, heads: tuple[int, ...], request: Request, layer: int
) -> Any:
    all_heads = torch.tensor(heads, device=copies.head.device)
    copy = copies.n_clean + torch.arange(len(copies), device=copies.head.device)[:, None, None]
    zeroed_heads = all_heads[copies.head, None] if request.per_head else all_heads.unsqueeze(0)

    def hook_function(value: Tensor, *, hook: Any) -> Tensor:
        known.at(name, value, copies)
        value = value.clone()
        zeroed = copy, copies.zeroed.unsqueeze(1), zeroed_heads.unsqueeze(-1)
        value[zeroed] = value[zeroed] * (1.0 - request.taken_in(layer))
        return value

    return hook_function


def _distances(request: Request, clean: Tensor, changed: Tensor) -> Tensor:
    of_change = change_form(request.distance)
    if of_change is None or clean.dtype not in (torch.float32, torch.float64):
        return request.distance(clean, changed)
    # The same distance in half the passes over memory: two float32 outputs this near differ almost exactly.
    distances, little = of_change(clean, clean - changed)
    if little.any():
        distances[little] = request.distance(clean[little], changed[little])
    return distances


def _measure(
    known: _CleanActivations,
    name: str,
    copies: _Copies,
    dest: Tensor,
    request: Request,
    norm: FinalNorm | None,
    maps: Tensor,
) -> Any:
    def hook_function(output: Tensor, *, hook: Any) -> None:
        changed = output.detach()[copies.n_clean :, dest]
        clean = known.at(name, output, copies)[:, dest][copies.sentence]
        if norm is not None:
            clean, changed = norm(clean), norm(changed)
        distances = _distances(request, clean, changed)
        check_finite_distances(request.distance_name, distances, name)
        maps[copies.sentence, copies.head, :, copies.column] = distances.to(maps.dtype)

    return hook_function
