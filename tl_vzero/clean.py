"""The clean run: what each block reads, forms and writes when nothing is zeroed.

It is run here, or taken from the caller's ActivationCache after checking that it is of the same sentences.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from operator import attrgetter
from typing import Any, Literal, Unpack
from weakref import WeakKeyDictionary

import torch
from einops import rearrange
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.distance import relative_difference
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.inputs.text import Sentence, padded, same_shape
from tl_vzero.models.blocks import SAME_BLOCK
from tl_vzero.models.changes import has_user_hooks, module_fingerprint
from tl_vzero.models.contracts import attention_heads
from tl_vzero.models.facts import context_length
from tl_vzero.models.fused import NotFused, fused_attention
from tl_vzero.models.run import Beside, NamedHook, eager_attention, has_fused_attention, remembering_hooks, run_to
from tl_vzero.models.signals import Read
from tl_vzero.models.sites import Sites

# Which axes of an activation run over positions: of destinations, of sources, or of both.
_Axes = Literal["rows", "columns", "rows and columns"]

MEMORY_MB = 256.0
SAME_SENTENCE = 1e-2  # relative; padding and precision move an activation by less, another token by more


@dataclass(frozen=True, eq=False)
class CleanBlock:
    """One block of the clean run, for sentences of one length or padded on the right.

    Where a decoder's block reads the encoder, its sources are the encoder's positions. The next four spare computing
    them again, the last three are of a decoder's other attention. They may be absent, or lie elsewhere in another
    class: whoever uses one checks that it is the right one. `destinations` are the positions that are held, where these
    are not all; values are those of every source.
    """

    input: Float[Tensor, "sentence position feature"]
    value: Float[Tensor, "sentence source value_head d_head"]
    pattern: Float[Tensor, "sentence head position source"]
    output: Float[Tensor, "sentence position feature"]
    attention_output: Float[Tensor, "sentence position feature"] | None = None
    mlp_pre: Float[Tensor, "sentence position d_mlp"] | None = None
    mlp_pre_linear: Float[Tensor, "sentence position d_mlp"] | None = None
    mlp_output: Float[Tensor, "sentence position feature"] | None = None
    other_value: Float[Tensor, "sentence other_source head d_head"] | None = None
    other_key: Float[Tensor, "sentence other_source head d_head"] | None = None
    other_pattern: Float[Tensor, "sentence head position other_source"] | None = None
    destinations: Int[Tensor, "sentence position"] | None = None

    def sentences(self, rows: Sequence[int]) -> "CleanBlock":
        """The block of some of its sentences; the block itself where these are all of them, in order."""
        if list(rows) == list(range(len(self.input))):
            return self
        parts = {part.name: getattr(self, part.name) for part in fields(self)}
        return replace(self, **{name: whole[list(rows)] for name, whole in parts.items() if whole is not None})

    def affected(
        self,
        heads: Sequence[int],
        per_head: bool,
        stands_in: Float[Tensor, "sentence source value_head d_head"] | None = None,
    ) -> Bool[Tensor, "sentence map dest src"]:
        """Mark where some zeroed value head has a pattern entry that is not 0 and a value that is not what stands in
        for it, 0 by default; elsewhere is rounding.
        """
        pattern = rearrange(
            self.pattern != 0, "s (head group) dest src -> s head group dest src", head=self.value.shape[2]
        )
        moved = self.value != (0 if stands_in is None else stands_in)
        marked = (pattern.any(2) & rearrange(moved.any(dim=-1), "s src head -> s head 1 src"))[:, list(heads)]
        return marked if per_head else marked.any(dim=1, keepdim=True)


Clean = dict[int, CleanBlock]


def visit_clean_blocks(
    model: nn.Module,
    sites: Sites,
    ids: Read,
    layers: Sequence[int],
    visit: Callable[[int, CleanBlock], None],
    *,
    mask: Bool[Tensor, "sentence position"] | None = None,
    **beside: Unpack[Beside],
) -> None:
    """Run sentences once and show each chosen block as soon as it is done, with all that the run shows inside it.

    A block's activations are let go once it has been visited, and nothing past the last block is computed. `mask` is
    False at padding; `beside` is what `run_to` takes beside the ids. Raises ModelError where an output is not finite.
    """
    activations: dict[str, Tensor] = {}

    def show(output: Tensor, *, hook: Any, layer: int) -> None:
        check_clean_output(sites.outputs[layer], output if mask is None else output[mask])
        inside = {shows: activations[name] for shows, name in sites.inside[layer].items() if name in activations}
        visit(layer, CleanBlock(*(activations[name] for name in sites.at(layer)), **inside))
        activations.clear()

    hooks: list[NamedHook] = []
    for layer in layers:
        hooks += remembering_hooks([*sites.inside[layer].values(), *sites.at(layer)], activations)
        hooks.append((sites.outputs[layer], partial(show, layer=layer)))
    with eager_attention(model):
        run_to(model, ids, hooks, last=sites.outputs[max(layers)], mask=mask, **beside)


# Rows of long inputs: the pattern of every position is never formed.

_FUSED: WeakKeyDictionary[nn.Module, tuple[object, str | None]] = WeakKeyDictionary()
PROBE_LENGTH = 8


def is_long(model: nn.Module, sites: Sites, sentence: Sentence, destinations: Sequence[int], memory_mb: float) -> bool:
    """Whether some rows of a sentence are wanted, and the whole pattern of a layer would take more memory."""
    numbers = attention_heads(model, sites.stack) * len(sentence) * len(sentence.sources)
    size = numbers * next(nn.Module.parameters(model)).element_size()
    return size > memory_mb * 2**20 and len(set(destinations)) < len(sentence)


def check_fused(model: nn.Module, sites: Sites, sentence: Sentence, weights_sha256: str) -> None:
    """Raise NotFused where a sentence cannot be run without patterns: where a probe shows another run.

    The probe's verdict stands while the model's weights and modules are the same.
    """
    if has_user_hooks(model):
        raise NotFused("hooks act on the model")
    if sites.stack is not None or sentence.signal is not None or sentence.media:
        raise NotFused("expected text, and a model with one stack of blocks")
    state = (weights_sha256, module_fingerprint(model))
    if model not in _FUSED or _FUSED[model][0] != state:
        _FUSED[model] = state, _probe_fused(model, sites, ids_of(model, [sentence]))
    if (reason := _FUSED[model][1]) is not None:
        raise NotFused(reason)


def _probe_fused(model: nn.Module, sites: Sites, ids: Tensor) -> str | None:
    ids = ids.repeat(1, PROBE_LENGTH)[:, : min(PROBE_LENGTH, context_length(model) or PROBE_LENGTH)]
    layers, fused = range(sites.n_layers), Clean()
    ordinary = Clean()
    try:
        visit_clean_blocks(model, sites, ids, layers, ordinary.__setitem__)
        visit_fused_blocks(model, sites, ids, layers, fused.__setitem__, destinations=range(ids.shape[1]))
    except (NotFused, ModelError) as error:
        return str(error)
    for layer in layers:
        for part in fields(CleanBlock):
            one, other = getattr(fused[layer], part.name), getattr(ordinary[layer], part.name)
            if not (isinstance(one, Tensor) and isinstance(other, Tensor)):
                continue
            tolerance = SAME_BLOCK.get(other.dtype, 0.0)
            if one.shape != other.shape or relative_difference(one, other) > tolerance:
                return f"on a probe it gave another {part.name} of block {layer} than the ordinary run"
    return None


def visit_fused_blocks(
    model: nn.Module,
    sites: Sites,
    ids: Read,
    layers: Sequence[int],
    visit: Callable[[int, CleanBlock], None],
    *,
    destinations: Sequence[int],
    mask: None = None,
    **beside: Unpack[Beside],
) -> None:
    """Run one sentence without forming a pattern, and show of each chosen block the chosen destinations alone.

    Raises NotFused where that is not possible, ModelError where an output is not finite.
    """
    rows, length = list(destinations), ids.shape[1]
    activations: dict[str, Tensor] = {}

    def cut(_: str, activation: Tensor) -> Tensor:
        return activation.detach()[:, rows] if activation.ndim == 3 and activation.shape[1] == length else activation

    def show(output: Tensor, *, hook: Any, layer: int) -> None:
        check_clean_output(sites.outputs[layer], output)
        if len(fused.attended) != 1:
            raise NotFused(f"block {layer} does not call the attention that Hugging Face lets one choose")
        (attended,) = fused.attended
        inside = {shows: activations[name] for shows, name in sites.inside[layer].items() if name in activations}
        block = CleanBlock(
            activations[sites.inputs[layer]], attended.value, attended.pattern, cut("", output), **inside
        )
        visit(layer, replace(block, destinations=torch.tensor([rows] * len(output), device=output.device)))
        activations.clear()

    def forget(_: Tensor, *, hook: Any) -> None:
        fused.attended.clear()

    hooks: list[NamedHook] = []
    for layer in range(max(layers) + 1):
        hooks.append((sites.inputs[layer], forget))
    for layer in layers:
        hooks += remembering_hooks([*sites.inside[layer].values(), sites.inputs[layer]], activations, cut)
        hooks.append((sites.outputs[layer], partial(show, layer=layer)))
    with fused_attention(model, rows) as fused:
        run_to(model, ids, hooks, last=sites.outputs[max(layers)], **beside)


def clean_run(model: nn.Module, sites: Sites, ids: Read, layers: Sequence[int], **beside: Unpack[Beside]) -> Clean:
    """Run sentences of one shape once and keep the chosen blocks' input, value, pattern and output."""
    clean: Clean = {}

    def keep(layer: int, block: CleanBlock) -> None:
        others = {"other_value": block.other_value, "other_pattern": block.other_pattern}
        clean[layer] = CleanBlock(block.input, block.value, block.pattern, block.output, **others)

    visit_clean_blocks(model, sites, ids, layers, keep, **beside)
    return clean


class CleanRun:
    """The whole clean run of some sentences, done once for every method that takes `cache=`.

    Sentences of one shape share a run. Blocks up to the layer `last` are held as long as this object.
    """

    def __init__(self, model: nn.Module, sites: Sites, sentences: Sequence[Sentence], last: int) -> None:
        self._places: dict[object, tuple[Clean, int]] = {}
        for group in same_shape(sorted(sentences, key=attrgetter("shape"))):
            clean = Clean()
            ids, beside = read_by(model, group)
            visit_clean_blocks(model, sites, ids, range(last + 1), clean.__setitem__, **beside)
            self._places |= {sentence.identity: (clean, row) for row, sentence in enumerate(group)}

    def blocks(self, sentences: Sequence[Sentence], layers: Sequence[int]) -> Clean:
        """The blocks of sentences of one length; raises InputError for a sentence or a layer that was not run."""
        identities = [sentence.identity for sentence in sentences]
        if any(identity not in self._places for identity in identities):
            raise InputError("cache holds the clean run of other sentences: expected those of the inputs")
        clean, rows = self._places[identities[0]][0], [self._places[identity][1] for identity in identities]
        if any(layer not in clean for layer in layers):
            raise InputError(f"cache holds the clean run of layers 0 to {max(clean)}: expected {list(layers)} in it")
        return {layer: clean[layer].sentences(rows) for layer in layers}


def check_clean_output(name: str, output: Tensor) -> None:
    """Raise ModelError where a block's clean output is not finite."""
    if not torch.isfinite(output).all():
        raise ModelError(
            f"{name} is NaN or infinite in the clean run: check the weights, and the model's dtype (float16 "
            "overflows easily)"
        )


def clean_from_cache(
    cache: Any, model: nn.Module, sites: Sites, sentences: Sequence[Sentence], layers: Sequence[int]
) -> Clean:
    """Take the clean run from the caller's own ActivationCache, padding taken away, or from a CleanRun.

    Raises InputTypeError for what is no cache, InputError for one that lacks an activation or is of other sentences.
    """
    if isinstance(cache, CleanRun):
        return cache.blocks(sentences, layers)
    if not hasattr(cache, "__getitem__") or not hasattr(cache, "keys"):
        raise InputTypeError(
            f"cache is {type(cache).__name__}: expected the ActivationCache that model.run_with_cache returns"
        )

    def activation(name: str, axes: _Axes, sentences: Sequence[Sentence] = sentences) -> Tensor:
        if name not in cache:
            raise InputError(
                f"cache lacks {name}: expected the whole clean run; call model.run_with_cache without "
                "names_filter, or with it kept for blocks' input, output, attn.hook_v and attn.hook_pattern"
            )
        whole = cache[name]
        if getattr(cache, "has_batch_dim", True) is False:
            whole = whole.unsqueeze(0)
        return torch.stack([_cut(name, whole, sentence, axes) for sentence in sentences]).to(device_of(model))

    # A decoder's first input does not say what its encoder read; its block's output does.
    first = min(layers)
    site = sites.inputs[first] if sites.stack in (None, "encoder") else sites.outputs[first]
    _check_same_sentences(model, site, sentences, activation(site, "rows"))
    # A run with fused attention forms no pattern to cache, so the patterns are those of a run of our own.
    lacks_patterns = sites.patterns[first] not in cache and has_fused_attention(model)
    ids, beside = read_by(model, sentences)
    rerun = clean_run(model, sites, ids, layers, **beside) if lacks_patterns else {}
    crossed = [replace(sentence, cross=not sentence.cross) for sentence in sentences]

    def others(layer: int) -> dict[str, Tensor | None]:
        axes: dict[str, _Axes] = {"other_value": "columns", "other_key": "columns", "other_pattern": "rows and columns"}
        names = {shows: name for shows, name in sites.inside[layer].items() if shows in axes}
        if layer in rerun:
            return {shows: getattr(rerun[layer], shows) for shows in names}
        if not all(name in cache for name in names.values()):
            return {}  # only some methods need them
        return {shows: activation(name, axes[shows], crossed) for shows, name in names.items()}

    return {
        layer: CleanBlock(
            activation(sites.inputs[layer], "rows"),
            activation(sites.values[layer], "columns"),
            rerun[layer].pattern if layer in rerun else activation(sites.patterns[layer], "rows and columns"),
            activation(sites.outputs[layer], "rows"),
            **others(layer),
        )
        for layer in layers
    }


def device_of(model: nn.Module) -> torch.device:
    """The device that a model reads its ids on."""
    return next(nn.Module.parameters(model)).device


def ids_of(model: nn.Module, sentences: Sequence[Sentence]) -> Read:
    """The ids of sentences of one length, or images or sounds of one shape, as the model takes them."""
    first = next(nn.Module.parameters(model))
    read = torch.stack([sentence.read for sentence in sentences])
    return read.to(device=first.device, dtype=first.dtype if read.is_floating_point() else read.dtype)


def token_types_of(model: nn.Module, sentences: Sequence[Sentence]) -> Int[Tensor, "sentence position"] | None:
    """The segments of sentences that share a run, padded on the right; None where all are of segment 0."""
    if all(sentence.token_types is None for sentence in sentences):
        return None
    return padded(sentences)[2].to(device_of(model))


def read_by(model: nn.Module, sentences: Sequence[Sentence]) -> tuple[Read, Beside]:
    """What the model reads of sentences of one shape: the ids, the encoder's where there is one, and what is beside."""
    encoders = [sentence.encoder for sentence in sentences if sentence.encoder is not None]
    if encoders:
        return ids_of(model, encoders), Beside(decoder_ids=ids_of(model, sentences))
    return ids_of(model, sentences), beside_ids(model, sentences)


def beside_ids(model: nn.Module, sentences: Sequence[Sentence]) -> Beside:
    """What a model with one stack reads beside the ids of sentences that share a run, padded on the right.

    All have the media of the first one: one with media shares a run with copies of itself alone.
    """
    first = next(nn.Module.parameters(model))
    media = {
        name: tensor.to(device=first.device, dtype=first.dtype if tensor.is_floating_point() else tensor.dtype)
        for name, tensor in sentences[0].media.items()
    }
    return Beside(token_types=token_types_of(model, sentences), media=media)


def _check_same_sentences(model: nn.Module, site: str, sentences: Sequence[Sentence], cached: Tensor) -> None:
    """A cache of other sentences of the same length would pass unseen; one run to the first block shows it."""
    activations: dict[str, Tensor] = {}
    ids, beside = read_by(model, sentences)
    run_to(model, ids, remembering_hooks([site], activations), last=site, **beside)
    activation = activations[site].float()
    if (activation - cached.float()).abs().max() > SAME_SENTENCE * activation.abs().max():
        raise InputError(
            f"cache holds another activation at {site} than the inputs give: expected the clean run of these "
            "inputs by this model"
        )


def _cut(name: str, whole: Tensor, sentence: Sentence, axes: _Axes) -> Tensor:
    """One sentence's part of a cached activation, padding taken away on the axes that run over positions."""
    by_axis = {"rows": {1: sentence}, "columns": {1: sentence.sources}}.get(axes, {2: sentence, 3: sentence.sources})
    for axis, positions in by_axis.items():
        n_rows, n_positions = whole.shape[0], whole.shape[axis]
        if sentence.row >= n_rows or positions.columns[-1] >= n_positions:
            raise InputError(
                f"cache holds {n_rows} sentences of {n_positions} positions at {name}: expected those of the inputs "
                f"(row {sentence.row}, positions to {positions.columns[-1]})"
            )
        whole = whole.narrow(axis, positions.columns[0], len(positions.columns))
    return whole[sentence.row].detach()
