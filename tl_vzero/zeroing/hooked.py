"""Engine 1: Value Zeroing by hooks on hook_v, for any model; the truth that the closed form is tested against.

1. A batch of copies of the sentences runs through the model; copy n zeroes one source's value, in all blocks.
2. The first batch starts with a clean copy of each sentence, unless the clean run is there already.
3. Each block's input is overwritten by the clean one, so that blocks do not see one another's change.
4. Each block's output is compared with the clean output, at every destination.

So one forward pass per batch serves all layers. Source: Mohebbi et al. 2023, section 3.
"""

import threading
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.choices import chosen, chosen_heads, integers
from tl_vzero.clean import Clean, CleanBlock, check_clean_output, clean_run
from tl_vzero.distance import change_form, check_finite_distances, wide_dtype
from tl_vzero.errors import InputTypeError
from tl_vzero.inputs.baselines import BaselineValues, baseline_of
from tl_vzero.models.contracts import attention_heads, check_contracts, value_heads
from tl_vzero.models.run import Beside, NamedHook, eager_attention, run_to
from tl_vzero.models.signals import Read, n_positions_of
from tl_vzero.models.turns import check_own_run, takes_turn
from tl_vzero.zeroing.request import Integers, Request, Span, Wanted

# In one run of the model, where no batch_size is given; what another value costs shows tests/bench/bench_hooks.py.
TOKENS_PER_BATCH = 768


@takes_turn
def value_zeroing_hooks(
    model: nn.Module,
    positions: Iterable[int] | int,
    layers: Integers = None,
    heads: Integers = None,
    stack: str | None = None,
    *,
    baseline: str | Tensor | BaselineValues = "zero",
) -> list[NamedHook]:
    """Hooks that zero the values of some positions, for TransformerLens's own `run_with_hooks`.

    Returns (hook name, function) pairs, one per layer; `layers` and `heads` default to all. Every sentence of a
    batch is zeroed at the same positions; negative ones count from the end. No position at all zeroes nothing.
    Under grouped-query attention `heads` are key-value heads. Of an encoder-decoder `stack` says which values:
    "encoder", "decoder", or "cross" for what the decoder's layers read at encoder positions. `baseline` is what is put
    in the place of the values, as in `value_zeroing`, from what they are in this very run; but hooks know neither
    special tokens nor padding, so that "mean" goes over all positions of the run.

    Raises InputError for layers, heads or a stack that the model lacks, what `value_zeroing` raises for a baseline,
    and in the run InputError for positions outside it, or a baseline of another length; where another thread calls
    tl_vzero on the model during such a run, that call raises InputError.

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

    stands_in = baseline_of(baseline, model, sites)
    thread = threading.get_ident()

    def hook_of(layer: int) -> NamedHook:
        def zero_values(value: Tensor, hook: Any) -> Tensor:
            check_own_run(model, hook, zero_values, thread)
            inside = chosen("positions", zeroed, value.shape[1], "the sentence has") if zeroed else ()
            stands_in.check_length(value.shape[1], "this run")
            put_in = stands_in.at(layer, value, None)
            value = value.clone()
            for position in inside or ():
                at = slice(None), position, list(zeroed_heads)
                value[at] = 0.0 if put_in is None else put_in[at]
            return value

        return sites.values[layer], zero_values

    return [hook_of(layer) for layer in chosen_layers]


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

    @classmethod
    def all(cls, n_sentences: int, spans: tuple[Span, ...], n_maps: int, device: torch.device) -> "_Copies":
        columns = torch.arange(len(spans), device=device)
        grid = torch.cartesian_prod(torch.arange(n_sentences, device=device), columns).repeat_interleave(n_maps, dim=0)
        head = torch.arange(n_maps, device=device).repeat(n_sentences * len(spans))
        # A shorter span is filled up with one of its positions: zeroing it twice is zeroing it.
        longest = max(map(len, spans))
        filled = torch.tensor([[*span, *[span[0]] * (longest - len(span))] for span in spans], device=device)
        return cls(grid[:, 0], filled[grid[:, 1]], grid[:, 1], head)

    def part(self, start: int, stop: int, n_clean: int) -> "_Copies":
        which = slice(start, stop)
        return _Copies(self.sentence[which], self.zeroed[which], self.column[which], self.head[which], n_clean)

    def __len__(self) -> int:
        return len(self.sentence)

    def rows(self, per_sentence: Tensor) -> Tensor:
        """One row per copy, the clean ones first, from one row per sentence."""
        zeroed = per_sentence[self.sentence]
        return torch.cat([per_sentence, zeroed]) if self.n_clean else zeroed


class _Hooks:
    """The hooks on each block, and the clean run that they read: the caller's, or the first batch's clean copies."""

    def __init__(
        self, request: Request, wanted: Wanted, clean: Clean | None, averaged: Tensor | None, maps: Tensor
    ) -> None:
        self.request, self.sites, self.averaged, self.maps = request, request.sites, averaged, maps
        self.dest = torch.tensor(wanted.destinations, device=maps.device)
        self.heads = torch.tensor(request.zeroed_heads, device=maps.device)
        self.clean: dict[str, Tensor] = {}
        for layer, block in (clean or {}).items():
            activations = (block.input, block.value, block.pattern, block.output)
            self.clean.update(zip(self.sites.at(layer), activations, strict=True))

    def block(self, layer: int) -> CleanBlock:
        return CleanBlock(*(self.clean[name] for name in self.sites.at(layer)))

    def stands_in(self, layer: int) -> Tensor | None:
        """What stands in for each of a layer's clean values; None for zero."""
        return self.request.baseline.at(layer, self.clean[self.sites.values[layer]], self.averaged)

    def on(self, copies: _Copies) -> list[NamedHook]:
        """All hooks for a batch of copies."""
        hooks: list[NamedHook] = []
        for index, layer in enumerate(self.request.layers):
            block_input, value, pattern, output = self.sites.at(layer)
            hooks += [
                (block_input, partial(self._clean_input, copies, block_input)),
                (value, partial(self._zero_sources, copies, value, layer)),
                (output, partial(self._measure, copies, output, layer, self.maps[:, index])),
            ]
            if copies.n_clean:
                hooks.append((pattern, partial(self._keep_clean, copies, pattern)))
        return hooks

    def _clean_of(self, copies: _Copies, site: str, activation: Tensor) -> Tensor:
        if site not in self.clean:
            self.clean[site] = activation[: copies.n_clean].detach()
            if site in self.sites.outputs:
                check_clean_output(site, self.clean[site])
        return self.clean[site]

    def _keep_clean(self, copies: _Copies, site: str, activation: Tensor, *, hook: Any) -> None:
        self._clean_of(copies, site, activation)

    def _clean_input(self, copies: _Copies, site: str, activation: Tensor, *, hook: Any) -> Tensor:
        return copies.rows(self._clean_of(copies, site, activation))

    def _zero_sources(self, copies: _Copies, site: str, layer: int, value: Tensor, *, hook: Any) -> Tensor:
        self._clean_of(copies, site, value)
        value = value.clone()
        copy = copies.n_clean + torch.arange(len(copies), device=copies.head.device)[:, None, None]
        heads = self.heads[copies.head, None] if self.request.per_head else self.heads.unsqueeze(0)
        zeroed = copy, copies.zeroed.unsqueeze(1), heads.unsqueeze(-1)
        stands_in = self.stands_in(layer)
        clean = copies.sentence[:, None, None], *zeroed[1:]
        value[zeroed] = 0.0 if stands_in is None else stands_in[clean]
        return value

    def _measure(self, copies: _Copies, site: str, layer: int, maps: Tensor, output: Tensor, *, hook: Any) -> None:
        changed = output.detach()[copies.n_clean :, self.dest]
        clean = self._clean_of(copies, site, output)[:, self.dest][copies.sentence]
        norm = self.request.norm_after(layer)
        if norm is not None:
            clean, changed = norm(clean), norm(changed)
        distances = _distances(self.request, clean, changed)
        check_finite_distances(self.request.distance_name, distances, site)
        maps[copies.sentence, copies.head, :, copies.column] = distances.to(maps.dtype)


def _distances(request: Request, clean: Tensor, changed: Tensor) -> Tensor:
    of_change = change_form(request.distance)
    if of_change is None or clean.dtype not in (torch.float32, torch.float64):
        return request.distance(clean, changed)
    # The same distance in half the passes over memory: two float32 outputs this near differ almost exactly.
    distances, little = of_change(clean, clean - changed)
    if little.any():
        distances[little] = request.distance(clean[little], changed[little])
    return distances


def hooked_maps(
    request: Request,
    ids: Read,
    wanted: Wanted,
    *,
    clean: Clean | None = None,
    averaged: Bool[Tensor, "sentence source"] | None = None,
    **beside: Unpack[Beside],
) -> Float[Tensor, "sentence layer map dest src"]:
    """Raw Value Zeroing maps of sentences of one length, in float64; the map axis is 1 long unless per head.

    `clean` is the clean run, where it is there already; `averaged` marks the positions that a mean goes over. An entry
    is exactly 0 where every zeroed head's pattern is exactly 0, or its value exactly what stands in for it.
    """
    n_maps = len(request.zeroed_heads) if request.per_head else 1
    shape = (len(ids), len(request.layers), n_maps, len(wanted.destinations), len(wanted.spans))
    maps = torch.zeros(shape, dtype=wide_dtype(ids.device), device=ids.device)
    if clean is None and request.baseline.by_position:
        # By itself, as what a run rounds depends on its batch, and the vectors may be those of the clean run.
        clean = clean_run(request.model, request.sites, ids, request.layers, **beside)
    hooks = _Hooks(request, wanted, clean, averaged, maps)
    copies = _Copies.all(len(ids), wanted.spans, n_maps, ids.device)
    length = wanted.length + (0 if beside.get("decoder_ids") is None else n_positions_of(request.model, ids[0]))
    size = request.batch_size or max(1, TOKENS_PER_BATCH // length)
    last = request.sites.outputs[max(request.layers)]
    for start in range(0, len(copies), size):
        part = copies.part(start, start + size, n_clean=len(ids) if start == 0 and clean is None else 0)
        copied: Any = {name: part.rows(rows) if isinstance(rows, Tensor) else rows for name, rows in beside.items()}
        with eager_attention(request.model) if part.n_clean else nullcontext():
            run_to(request.model, part.rows(ids), hooks.on(part), last=last, **copied)
        request.advance(len(part) / n_maps * len(request.layers))
    for index, layer in enumerate(request.layers):
        block, stands_in = hooks.block(layer), hooks.stands_in(layer)
        maps[:, index] *= wanted.affected(block.affected(request.zeroed_heads, request.per_head, stands_in))
    return maps
