"""Activation patching: TransformerLens's own, from a clean sentence into a corrupted one, position by position.

1. The clean sentence runs once, and every block's activation at the site is kept.
2. The corrupted sentence runs once for each place, with the clean activation put in there; later blocks see the change.
3. The effect is the metric of the patched run minus the metric of the corrupted sentence.

`transformer_lens.patching` forwards tokens only, and in 3.9 takes away hooks that a user left behind: so it is given
a stand-in that runs one sentence without padding, segments included, with our own temporary hooks.

Writes to a pattern do nothing on many bridges. So a clean row of the pattern is put in as what it mixes: z of its
destination becomes the sum of A[clean] v[corrupted] over sources, which is what such a write would do.
"""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from importlib import import_module
from threading import RLock
from types import SimpleNamespace
from typing import Any, Literal, TypedDict, Unpack

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import Position, Positions, chosen, flag, integers, one_of, positions_in
from tl_vzero.clean import device_of
from tl_vzero.distance import relative_difference
from tl_vzero.effects.measure import (
    EffectMethod,
    Intervention,
    Metric,
    MetricFunction,
    Numbers,
    PatchingEffect,
    intervene,
    metric_for,
    one_sentence,
)
from tl_vzero.errors import InputError, ModelError, foreign_errors_as
from tl_vzero.inputs.encoder_decoder import DecoderInputs
from tl_vzero.inputs.text import Ids, Text
from tl_vzero.models.blocks import SAME_BLOCK
from tl_vzero.models.contracts import attention_heads, check_writes_act, value_heads
from tl_vzero.models.run import eager_attention, quiet, remembering_hooks
from tl_vzero.models.sites import Stack, activation_sites, kind_of
from tl_vzero.models.turns import takes_turn, turn_on
from tl_vzero.targets import TargetIds, find_target

Site = Literal["resid_pre", "attn_out", "mlp_out", "q", "k", "v", "z", "pattern"]

# How many heads an activation has; None where it is of the whole block.
SITES: dict[Site, Callable[[nn.Module, Stack | None], int] | None] = {
    "resid_pre": None,
    "attn_out": None,
    "mlp_out": None,
    "q": attention_heads,
    "k": value_heads,
    "v": value_heads,
    "z": attention_heads,
    "pattern": attention_heads,
}

_ONE_BAR = RLock()


class PatchingOptions(TypedDict, total=False):
    """The options of `value_patching`, by name: those of `activation_patching` but the site."""

    target: Position | None
    target_ids: TargetIds | None
    metric: str | MetricFunction
    layers: Numbers
    sources: Positions
    per_head: bool
    attention_mask: Ids | None
    token_type_ids: Ids | None
    corrupted_attention_mask: Ids | None
    corrupted_token_type_ids: Ids | None
    progress: bool
    prepend_bos: bool
    stack: str | None
    decoder_inputs: DecoderInputs | None
    corrupted_decoder_inputs: DecoderInputs | None


def value_patching(
    model: nn.Module, clean: Text, corrupted: Text, **options: Unpack[PatchingOptions]
) -> PatchingEffect:
    """Run the corrupted sentence with one position's value taken from the clean sentence, layer by layer.

    What `activation_patching` gives with `site="v"`, and takes its other options. Values are `[layer, src]`, or
    `[layer, head, src]` with `per_head`, in units of the metric.

    Raises what `activation_patching` raises. Source: TransformerLens, `transformer_lens.patching`.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> clean, corrupted = "the authors [MASK] today.", "the author [MASK] today."
    >>> effect = tl_vzero.value_patching(model, clean, corrupted, target_ids=("are", "is"))
    >>> effect.clean > 0 > effect.corrupted
    True
    """
    return activation_patching(model, clean, corrupted, "v", **options)


@takes_turn
def activation_patching(
    model: nn.Module,
    clean: Text,
    corrupted: Text,
    site: Site = "resid_pre",
    *,
    target: Position | None = None,
    target_ids: TargetIds | None = None,
    metric: str | MetricFunction = "logit",
    layers: Numbers = None,
    sources: Positions = None,
    per_head: bool = False,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    corrupted_attention_mask: Ids | None = None,
    corrupted_token_type_ids: Ids | None = None,
    progress: bool = False,
    prepend_bos: bool = False,
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
    corrupted_decoder_inputs: DecoderInputs | None = None,
) -> PatchingEffect:
    """Run the corrupted sentence with one position's activation taken from the clean sentence, layer by layer.

    `site` is what TransformerLens calls the activation: "resid_pre" (what a block reads), "attn_out" (what its
    attention adds, before any norm), "mlp_out", "q", "k", "v", "z" (what a head mixes), or "pattern" (a
    destination's whole row). q, attn_out, mlp_out and z are of the position that is built, k and v of the one that is
    read. Both inputs are one sentence, of as many tokens: a minimal pair is a ready one. `target` is a position, the
    same in both (default: see `zero_ablation`). `target_ids`, `metric`, `layers` and `sources` (the positions) are
    those of `zero_ablation`; the likeliest token is the clean sentence's. Values are `[layer, src]`, or
    `[layer, head, src]` with `per_head`, for the heads that the activation has, in units of the metric; `recovered`
    are shares of the way to the clean metric. Costs one forward pass per value.

    Of an encoder-decoder `stack` says whose activation it is: of "cross" that of the decoder's attention to the encoder
    ("k" and "v" are of the encoder's positions, "q", "z", "pattern" and "attn_out" of the decoder's). What the decoder
    reads are `decoder_inputs`, and `corrupted_decoder_inputs` beside the corrupted sentence (default: the same). The
    target is as in `zero_ablation`.

    Raises InputError for sentences of different length or of the same tokens, a site that is not named or has no
    heads, and what `zero_ablation` raises; ModelError for a site that the model lacks or does not hear.
    Source: TransformerLens, `transformer_lens.patching`.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> effect = tl_vzero.activation_patching(model, "the authors [MASK] today.", "the author [MASK] today.", "q")
    >>> effect.method, effect.values.shape
    ('q_patching', torch.Size([4, 7]))
    """
    n_heads = SITES[one_of("site", site, SITES)]
    if n_heads is None and flag("per_head", per_head):
        with_heads = ", ".join(name for name, heads in SITES.items() if heads is not None)
        raise InputError(f"per_head=True and site {site!r}, which heads do not have: expected one of {with_heads}")
    if stack == "cross" and site in ("resid_pre", "mlp_out"):
        raise InputError(
            f"site {site!r} and stack='cross' given, and that is the decoder block's, not of its attention to the "
            "encoder: expected stack='decoder', or another site"
        )
    beside = decoder_inputs if corrupted_decoder_inputs is None else corrupted_decoder_inputs
    from_clean, into_corrupted = _two(
        model,
        (clean, attention_mask, token_type_ids, prepend_bos, stack, decoder_inputs),
        (corrupted, corrupted_attention_mask, corrupted_token_type_ids, prepend_bos, stack, beside),
        target,
        layers,
        sources,
        per_head,
        n_heads or value_heads,
        of_rows=stack == "cross" and site not in ("k", "v"),
    )
    make_metric = metric_for(model, metric, target_ids)
    method: EffectMethod = "value_patching" if site == "v" else f"{site}_patching"  # type: ignore[assignment]
    written = "z" if site == "pattern" else site
    names = activation_sites(model, from_clean.sites, written)
    if site != "v":  # the contracts have that
        check_writes_act(model, from_clean.sites, names)
    with quiet(model), eager_attention(model) if site == "pattern" else nullcontext():
        activations = dict[str, Tensor]()
        read = activation_sites(model, from_clean.sites, site)
        logits = from_clean.logits(remembering_hooks([read[layer] for layer in from_clean.layers], activations, _copy))
        measure = make_metric(into_corrupted.target, logits[0, into_corrupted.target])
        clean_metric = measure(logits)
        before = measure(into_corrupted.logits([]))
        if site == "pattern":
            activations = _mixed(into_corrupted, read, names, activations)
        bar = partial(tqdm, disable=not progress, desc=method.replace("_", " "), unit="source", leave=False)
        after = _patched(into_corrupted, written, names, activations, measure, bar)
    return PatchingEffect(
        values=into_corrupted.as_values(after - before),
        method=method,
        corrupted=before.item(),
        corrupted_tokens=tuple(into_corrupted.sentence.sources.tokens[i] for i in into_corrupted.sources),
        **from_clean.labels(measure, clean_metric, logits),
    )


# A sentence as it was given: inputs, mask, segments, prepend_bos, stack, decoder_inputs.
_Given = tuple[Text, Ids | None, Ids | None, bool, str | None, DecoderInputs | None]


def _two(
    model: nn.Module,
    clean: _Given,
    corrupted: _Given,
    target: Position | None,
    layers: Numbers,
    sources: Positions,
    per_head: bool,
    n_heads: Callable[[nn.Module, Stack | None], int],
    of_rows: bool = False,
) -> tuple[Intervention, Intervention]:
    """The same places of two sentences, checked: of as many tokens, not the same, one target.

    `of_rows`: the places are of what the decoder reads, also where it reads the encoder.
    """
    first, second = both = [one_sentence(model, *of_text) for of_text in (clean, corrupted)]
    if of_rows:
        first, second = both = [replace(one, cross=False) for one in both]
    # Before targets are looked for: that of a shorter corrupted sentence may be outside of it.
    for one, other in ((first, second), (first.encoder, second.encoder)):
        if one is not None and other is not None and len(one) != len(other):
            raise InputError(
                f"the clean sentence has {len(one)} tokens and the corrupted one {len(other)}: expected as many, so "
                f"that each position has its counterpart; clean {list(one.tokens)}, corrupted {list(other.tokens)}"
            )
    tokens = f"clean {list(first.sources.tokens)}, corrupted {list(second.sources.tokens)}"
    # A text is of the clean sentence: where the two differ, the corrupted one has another there.
    layers, sources = integers("layers", layers), positions_in(first.sources.tokens, "sources", sources)
    target = find_target(model, first, target) if isinstance(target, str) else target
    from_clean, into_corrupted = (
        intervene(model, one, target, layers, sources, per_head, stack=clean[4], n_heads=n_heads) for one in both
    )
    if first.identity == second.identity:
        raise InputError(f"clean and corrupted are the same tokens: expected two sentences that differ; {tokens}")
    if from_clean.target != into_corrupted.target:
        raise InputError(
            f"the target is position {from_clean.target} of the clean and {into_corrupted.target} of the corrupted "
            f"sentence: expected the same; give a target; {tokens}"
        )
    return from_clean, into_corrupted


def _copy(_: str, activation: Tensor) -> Tensor:
    """A model may go on to write into what a hook shows."""
    return activation.detach().clone()


def _mixed(
    corrupted: Intervention, patterns: tuple[str, ...], names: tuple[str, ...], clean: dict[str, Tensor]
) -> dict[str, Tensor]:
    """z by its hook's name: the clean patterns with the corrupted sentence's values.

    Raises ModelError where z is no such sum, as with a gate behind it or a hook in between.
    """
    values = corrupted.sites.values
    shown: dict[str, Tensor] = {}
    at = [name for layer in corrupted.layers for name in (patterns[layer], values[layer], names[layer])]
    corrupted.logits(remembering_hooks(at, shown, _copy))
    mixed: dict[str, Tensor] = {}
    for layer in corrupted.layers:
        value, z = shown[values[layer]], shown[names[layer]]
        read = value.repeat_interleave(clean[patterns[layer]].shape[1] // value.shape[2], dim=2)
        again, mixed[names[layer]] = (
            torch.einsum("shij,sjhd->sihd", pattern.to(value.dtype), read)
            for pattern in (shown[patterns[layer]], clean[patterns[layer]])
        )
        if again.shape != z.shape or relative_difference(again, z) > SAME_BLOCK.get(z.dtype, SAME_BLOCK[torch.float16]):
            raise ModelError(
                f"{names[layer]} is not the pattern's mean of {values[layer]} here (a gate, a norm or a hook acts in "
                "between), so a row of the pattern cannot be put in: patch v or z"
            )
    return mixed


def _patched(
    intervention: Intervention,
    site: str,
    names: tuple[str, ...],
    activations: dict[str, Tensor],
    metric: Metric,
    bar: Any,
) -> Float[Tensor, "place"]:
    import pandas as pd

    patching: Any = import_module("transformer_lens.patching")  # its types ask for more than it uses
    places = pd.DataFrame(intervention.places(), columns=["layer", "head", "pos"])
    by_position = places[["layer", "pos"]] if intervention.heads is None else places[["layer", "pos", "head"]]
    setter = (
        patching.layer_pos_patch_setter if intervention.heads is None else patching.layer_pos_head_vector_patch_setter
    )
    measured: list[Tensor] = []

    def measure(logits: Tensor) -> Tensor:
        """Keep the number itself: the library's table is float32 whatever the model is."""
        measured.append(metric(logits)[0])
        return measured[-1]

    # The library's name of a hook may be another one's here: a bridged BERT's hook_attn_out lies behind a norm.
    ours = {patching.utils.get_act_name(site, layer): names[layer] for layer in intervention.layers}
    # What the library uses of a model: it runs the one sentence, and a user's own hooks on the model stay.
    of_sentence: Any = SimpleNamespace(
        cfg=SimpleNamespace(device=device_of(intervention.model)),
        run_with_hooks=lambda ids, fwd_hooks: intervention.logits([(ours[name], hook) for name, hook in fwd_hooks]),
    )
    cache = {theirs: activations[name] for theirs, name in ours.items()}
    # Its bar, always shown, gives way to ours; there is one place for the bars of all models, so patchings take turns.
    with _ONE_BAR, turn_on(intervention.model) as turn:
        turn.undo_by(partial(setattr, patching, "tqdm", patching.tqdm))
        patching.tqdm = bar
        patching.generic_activation_patch(
            of_sentence, intervention.ids, cache, measure, setter, site, index_df=by_position
        )
    return torch.stack(measured)


# One head's path into another head.


@takes_turn
def direct_path_patching(
    model: nn.Module,
    clean: Text,
    corrupted: Text,
    source_head: tuple[int, int],
    component: Literal["q", "k", "v"] = "q",
    *,
    target: Position | None = None,
    target_ids: TargetIds | None = None,
    metric: str | MetricFunction = "logit",
    sources: Positions = None,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    corrupted_attention_mask: Ids | None = None,
    corrupted_token_type_ids: Ids | None = None,
    prepend_bos: bool = False,
) -> PatchingEffect:
    """Run the corrupted sentence with what one head writes at one position taken from the clean one, for one reader.

    `source_head` is (layer, head). Of the head's output at a position, the clean minus the corrupted is added to what
    a single later head reads as `component` ("q", "k" or "v"); everything else reads the corrupted sentence. Values
    are `[layer, head, src]`, the reading head's layer and head and the position written to, in units of the metric;
    `of_head` takes one reader. The other options are those of `activation_patching`. Costs one forward pass per value.

    Raises ModelError on TransformerLens 3.9, which cannot do it, and for a model whose heads do not write into the
    residual stream as they are (BERT's norm lies between), or, for "k" and "v", with grouped queries; InputError for a
    head that the model lacks, and what `activation_patching` raises.
    Source: Wang et al. 2022, "Interpretability in the Wild"; TransformerLens 4, `get_act_patch_direct_path`.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> try:
    ...     tl_vzero.direct_path_patching(model, "the authors [MASK] today.", "the author [MASK] today.", (0, 1))
    ... except tl_vzero.errors.ModelError as error:
    ...     print("refused")
    refused
    """
    patching: Any = import_module("transformer_lens.patching")
    if not hasattr(patching, "get_act_patch_direct_path"):
        raise ModelError(
            "direct-path patching needs TransformerLens 4, and this one cannot give a single head its input; use "
            "activation_patching"
        )
    one_of("component", component, ("q", "k", "v"))
    from_clean, into_corrupted = _two(
        model,
        (clean, attention_mask, token_type_ids, prepend_bos, None, None),
        (corrupted, corrupted_attention_mask, corrupted_token_type_ids, prepend_bos, None, None),
        target,
        None,
        sources,
        True,
        attention_heads,
    )
    layer, head = _source_head(into_corrupted, source_head)
    make_metric = metric_for(model, metric, target_ids)
    site = activation_sites(model, from_clean.sites, "z")[layer]
    shown: dict[str, Tensor] = {}
    with quiet(model):
        logits = from_clean.logits(remembering_hooks([site], shown, _copy))
        measure = make_metric(into_corrupted.target, logits[0, into_corrupted.target])
        clean_z, clean_metric = shown[site], measure(logits)
        before = measure(into_corrupted.logits(remembering_hooks([site], shown, _copy)))
        after = _by_path(patching, into_corrupted, (layer, head), component, (clean_z, shown[site]), measure)
    readers = replace(into_corrupted, layers=into_corrupted.layers[layer + 1 :])
    labels = from_clean.labels(measure, clean_metric, logits)
    labels["metadata"] |= {"source_head": [layer, head], "component": component}
    return PatchingEffect(
        # [src, layer, head] as they were measured
        values=readers.as_values((after - before).unflatten(0, (len(readers.sources), -1)).T.flatten()),
        method="direct_path_patching",
        corrupted=before.item(),
        corrupted_tokens=tuple(into_corrupted.sentence.sources.tokens[i] for i in into_corrupted.sources),
        **labels | {"layers": readers.layers},
    )


def _source_head(one: Intervention, source_head: Any) -> tuple[int, int]:
    pair = integers("source_head", source_head)
    if pair is None or len(pair) != 2:
        raise InputError(f"source_head is {source_head!r}: expected (layer, head)")
    last = one.sites.n_layers - 2
    (layer,) = chosen("source_head's layer", pair[0], last + 1, "heads read of") or ()
    (head,) = chosen("source_head's head", pair[1], len(one.heads or ()), "the layer has") or ()
    return layer, head


def _by_path(
    patching: Any,
    corrupted: Intervention,
    source_head: tuple[int, int],
    component: str,
    z: tuple[Tensor, Tensor],
    metric: Metric,
) -> Float[Tensor, "place"]:
    """The library's own, with a clean head that differs from the corrupted one at a single position."""
    model: Any = corrupted.model
    measured: list[Tensor] = []

    def measure(logits: Tensor) -> Tensor:
        measured.append(metric(logits)[0])
        return measured[-1]

    of_sentence = SimpleNamespace(
        cfg=model.cfg,
        blocks=model.blocks,
        set_use_attn_in=getattr(model, "set_use_attn_in", None),
        set_use_split_qkv_input=getattr(model, "set_use_split_qkv_input", None),
        run_with_hooks=lambda ids, fwd_hooks: corrupted.logits(fwd_hooks),
    )
    name = f"blocks.{source_head[0]}.attn.hook_z"
    for source in corrupted.sources:
        clean_there = z[1].clone()
        clean_there[:, source] = z[0][:, source]
        with foreign_errors_as(ModelError, f"TransformerLens cannot patch a path of this {kind_of(model)}"):
            patching.get_act_patch_direct_path(
                of_sentence,
                corrupted.ids,
                {name: clean_there},
                {name: z[1]},
                measure,
                *source_head,
                component=component,
                verbose=False,
            )
    return torch.stack(measured)
