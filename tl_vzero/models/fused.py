"""Attention without a pattern: Hugging Face's own, run on a bridge some queries at a time, and chosen rows of it.

TransformerLens's bridge forms the pattern of every position. Within `fused_attention` its attentions are those of
Hugging Face again, which hand their queries, keys and values, rotated and normed, to a function of ours.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from tl_vzero.distance import relative_difference
from tl_vzero.errors import EndsRun
from tl_vzero.models.blocks import SAME_BLOCK
from tl_vzero.models.run import hf_configs
from tl_vzero.models.sites import block_parts, hf_model_of, sites_of, stacks_of
from tl_vzero.models.turns import interrupts_wait, turn_on

IMPLEMENTATION = "tl_vzero_rows"
NUMBERS_AT_A_TIME = 2**23  # of the pattern, where some rows of it must be formed: 32 MB in float32
LONGEST_PART = 1024  # queries, where a window is narrow
WITHOUT_PATTERN = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION]
# What models hand on that changes nothing in the attention of a clean run: positions are in the queries already.
_PASSED_ON = {"position_ids", "cache_position", "position_embeddings", "use_cache", "output_attentions", "dropout"}
_PASSED_ON |= {"is_causal", "sliding_window", "output_hidden_states", "output_router_logits", "deterministic"}


class NotFused(EndsRun):
    """Raised mid-run where attention cannot be run without its pattern, with the reason."""


@dataclass(frozen=True)
class Attended:
    """Of one attention the values that it read, and the rows of its pattern at the chosen destinations."""

    value: Float[Tensor, "sentence source value_head d_head"]
    pattern: Float[Tensor, "sentence head dest source"]


@dataclass
class Rows:
    """What to keep of each attention of a run; `attended` is for whoever reads it after a block, to be emptied."""

    destinations: Sequence[int]
    attended: list[Attended] = field(default_factory=list)


class _OfThread(threading.local):
    rows: Rows | None = None


_THREAD = _OfThread()


@contextmanager
def fused_attention(model: nn.Module, destinations: Sequence[int]) -> Iterator[Rows]:
    """Within, a bridge runs Hugging Face's attention without ever forming its pattern; raises NotFused where it cannot.

    The attentions' hooks show nothing but what a projection reads and writes.
    """
    hf_model = hf_model_of(model)
    if hf_model is None or stacks_of(model):
        raise NotFused("expected a TransformerBridge with one stack of blocks")
    attentions, rows = _attentions_of(model), Rows(destinations)
    with turn_on(model) as turn:
        with interrupts_wait():
            _register()
            turn.undo_by(partial(setattr, _THREAD, "rows", _THREAD.rows))
            _THREAD.rows = rows
            for config in hf_configs(hf_model):
                # Keys and values of earlier layers would be held for a next token.
                for name, value in (("_attn_implementation", IMPLEMENTATION), ("use_cache", False)):
                    if getattr(config, name, None) not in (None, value):
                        turn.undo_by(partial(setattr, config, name, getattr(config, name)))
                        setattr(config, name, value)
            for module in [part for attention in attentions for part in attention.modules()]:
                # What a bridge notes of a projection that its own attention goes past.
                turn.undo_by(partial(_forget_all_but, module.__dict__, set(module.__dict__)))
            for attention in attentions:
                # The attribute itself: a bridge's own way to set one looks at what it wraps.
                turn.undo_by(partial(_put_back, attention, attention.__dict__.get("forward")))
                attention.__dict__["forward"] = partial(_forward, attention.forward, attention.original_component)
        yield rows


def _attentions_of(model: nn.Module) -> list[Any]:
    attentions: list[Any] = [block_parts(model, layer).attention for layer in range(sites_of(model).n_layers)]
    if any(not isinstance(getattr(one, "original_component", None), nn.Module) for one in attentions):
        raise NotFused("its attention is not that of Hugging Face")
    return attentions


def _forward(usual: Callable[..., Any], hugging_face: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Hugging Face's attention; the usual one in another thread, which may run the model by itself meanwhile."""
    return (usual if _THREAD.rows is None else hugging_face)(*args, **kwargs)


def _put_back(module: nn.Module, forward: Any) -> None:
    module.__dict__.pop("forward", None)
    if forward is not None:
        module.__dict__["forward"] = forward


def _forget_all_but(attributes: dict[str, Any], names: set[str]) -> None:
    for name in set(attributes) - names:
        del attributes[name]


def _register() -> None:
    """Let Hugging Face know our attention by its name; it stays, and acts nowhere but within `fused_attention`."""
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(IMPLEMENTATION, _mask)


# Masks, some queries at a time.


@dataclass(frozen=True, eq=False)
class _Mask:
    """Which keys each query may read, as Hugging Face says it: a function of two positions."""

    may_read: Callable[..., Tensor]
    length: int
    device: torch.device

    def rows(self, queries: Tensor, low: int, high: int) -> Bool[Tensor, "query key"]:
        """True where some queries may read the keys of a range."""
        keys = torch.arange(low, high, device=self.device)
        first = torch.zeros((), dtype=torch.long, device=self.device)
        marked = self.may_read(first, first, queries.to(self.device).unsqueeze(1), keys.unsqueeze(0))
        return marked.expand(len(queries), high - low)

    @cached_property
    def _reach(self) -> Int[Tensor, "what query"]:
        """Of each query the first key that it may read, the one behind the last, and how many it may read."""
        parts = []
        for queries in torch.arange(self.length).split(max(1, NUMBERS_AT_A_TIME // self.length)):
            marked = self.rows(queries, 0, self.length).to(torch.uint8)
            high = self.length - marked.flip(1).argmax(dim=1)
            parts.append(torch.stack([marked.argmax(dim=1), high, marked.sum(dim=1)]).cpu())
        return torch.cat(parts, dim=1)

    @cached_property
    def reads(self) -> str:
        """What each query may read: "all" keys, those "up to itself", or "other" ones."""
        low, high, count = self._reach
        if bool(low.any()) or not torch.equal(count, high):
            return "other"
        if torch.equal(high, torch.arange(1, self.length + 1)):
            return "up to itself"
        return "all" if bool((high == self.length).all()) else "other"

    def parts(self, n_heads: int) -> Iterator[tuple[Int[Tensor, "query"], int, int]]:
        """Queries a few at a time, with the range of keys that they may read, so that few numbers are in a part."""
        low, high, _ = self._reach
        step = NUMBERS_AT_A_TIME // (n_heads * int((high - low).max()))
        for queries in torch.arange(self.length).split(min(max(1, step), LONGEST_PART)):
            yield queries, int(low[queries].min()), int(high[queries].max())


def _mask(**about: Any) -> Any:
    """What Hugging Face calls for a mask; see `transformers.masking_utils`."""
    if _THREAD.rows is None:
        from transformers.masking_utils import eager_mask

        return eager_mask(**about)
    if about.get("use_vmap"):
        raise NotFused("its mask is of its own kind, which nothing says some rows at a time")
    padding = about.get("attention_mask")
    if padding is not None and not bool(padding.all()):
        raise NotFused("the input is padded")
    if about["q_length"] != about["kv_length"] or about.get("q_offset") or about.get("kv_offset"):
        raise NotFused("its attention reads more keys than there are positions")
    return _Mask(about["mask_function"], about["q_length"], torch.device(about.get("device", "cpu")))


# Attention.


def _attend(
    module: nn.Module,
    query: Float[Tensor, "sentence head position d_key"],
    key: Float[Tensor, "sentence key_head position d_key"],
    value: Float[Tensor, "sentence key_head position d_head"],
    attention_mask: Any,
    scaling: float | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **others: Any,
) -> tuple[Float[Tensor, "sentence position head d_head"], None]:
    rows = _THREAD.rows
    if rows is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        output: Tensor = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)[0]
        return output, None
    unknown = [name for name, value in others.items() if value is not None and name not in _PASSED_ON]
    if unknown:
        raise NotFused(f"its attention reads {', '.join(unknown)} too")
    if key.shape[2] != query.shape[2]:
        raise NotFused("its attention reads more keys than there are positions")
    mask = attention_mask
    if mask is None:
        mask = _Mask(lambda _, __, queries, keys: (queries >= 0) & (keys >= 0), key.shape[2], key.device)
    if not isinstance(mask, _Mask):
        raise NotFused("it makes a mask of every pair of positions itself")
    scores = _Scores(query, key, mask, query.shape[-1] ** -0.5 if scaling is None else scaling, softcap, s_aux)
    mixed = _output(scores, value)
    chosen = torch.tensor(list(rows.destinations), device=query.device)
    pattern = scores.pattern(chosen, 0, key.shape[2])
    _check(pattern @ _spread(value, query), mixed[:, :, chosen])
    rows.attended.append(Attended(value.transpose(1, 2), pattern))
    return mixed.transpose(1, 2).contiguous(), None


@dataclass(frozen=True, eq=False)
class _Scores:
    """What says how far each query attends to each key, any rows of it by themselves."""

    query: Tensor
    key: Tensor
    mask: _Mask
    scaling: float
    softcap: float | None
    sinks: Tensor | None

    def pattern(self, chosen: Tensor, low: int, high: int) -> Float[Tensor, "sentence head query key"]:
        """The pattern of some queries over a range of keys, which holds all that they may read."""
        n_sentences, n_heads, _, width = self.query.shape
        key = self.key[:, :, low:high]
        grouped = self.query[:, :, chosen].reshape(n_sentences, key.shape[1], -1, width)
        scores = (grouped @ key.mT).view(n_sentences, n_heads, len(chosen), high - low) * self.scaling
        if self.softcap is not None:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        scores = scores.masked_fill(~self.mask.rows(chosen, low, high), float("-inf"))
        if self.sinks is not None:
            sinks = self.sinks.view(1, -1, 1, 1).expand(n_sentences, -1, len(chosen), 1)
            scores = torch.cat([scores, sinks.to(scores)], dim=-1)
        pattern = scores.softmax(dim=-1, dtype=None if scores.dtype == torch.float64 else torch.float32)
        return pattern[..., : high - low].to(self.query.dtype)


def _output(scores: _Scores, value: Tensor) -> Float[Tensor, "sentence head position d_head"]:
    """What the heads mix, without the pattern: by a fused kernel, or some queries at a time."""
    query, key, mask = scores.query, _spread(scores.key, scores.query), scores.mask
    value, plain = _spread(value, query), scores.softcap is None and scores.sinks is None
    if plain and mask.reads != "other":
        try:
            with sdpa_kernel(WITHOUT_PATTERN):
                causal = mask.reads == "up to itself"
                return F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=scores.scaling)
        except RuntimeError:  # there is no such kernel for the device, the dtype or the shape
            pass
    parts = []
    for queries, low, high in mask.parts(query.shape[1]):
        if plain:
            some = query[:, :, queries[0] : queries[-1] + 1], key[:, :, low:high], value[:, :, low:high]
            allowed = mask.rows(queries, low, high)
            parts.append(F.scaled_dot_product_attention(*some, attn_mask=allowed, scale=scores.scaling))
        else:
            parts.append(scores.pattern(queries.to(query.device), low, high) @ value[:, :, low:high])
    return torch.cat(parts, dim=2)


def _spread(grouped: Tensor, query: Tensor) -> Tensor:
    """Keys or values for every query head."""
    return grouped.repeat_interleave(query.shape[1] // grouped.shape[1], dim=1)


def _check(by_pattern: Tensor, output: Tensor) -> None:
    """Raise NotFused where the rows of the pattern do not give what the attention mixed."""
    if relative_difference(by_pattern, output) > SAME_BLOCK.get(output.dtype, 0.0):
        raise NotFused("the rows of its pattern, computed again, do not give what its attention mixed")
