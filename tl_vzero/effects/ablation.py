"""Zero ablation: the values that Value Zeroing zeroes layer by layer, zeroed in the running model.

1. A batch of copies of the sentence runs through the model; each copy zeroes one place: a layer, a source, or one head.
   Where there is another baseline than zero, its vector is put in there.
2. Nothing is restored: later blocks see the change, and it runs to the logits.
3. The effect is the metric of the copy minus the metric of the clean run.
"""

from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import Position, Positions, positive
from tl_vzero.effects.measure import (
    Effect,
    Intervention,
    MetricFunction,
    Numbers,
    Place,
    Predictions,
    intervene,
    likeliest,
    likeliest_ids,
    metric_for,
    one_sentence,
)
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.inputs.encoder_decoder import DecoderInputs
from tl_vzero.inputs.text import Ids, Text
from tl_vzero.models.facts import class_head_of, vocabulary_size
from tl_vzero.models.run import NamedHook, quiet
from tl_vzero.models.turns import takes_turn
from tl_vzero.statistics import rank_correlation
from tl_vzero.targets import TargetIds, default_target

if TYPE_CHECKING:
    import pandas as pd


LOGITS_PER_BATCH = 2**25  # numbers held at once: a vocabulary is wide, and logits come for every position
MOST_COPIES = 256  # of the sentence in one batch


@takes_turn
def zero_ablation(
    model: nn.Module,
    inputs: Text,
    *,
    target: Position | None = None,
    target_ids: TargetIds | None = None,
    metric: str | MetricFunction = "logit",
    layers: Numbers = None,
    sources: Positions = None,
    per_head: bool = False,
    baseline: str | Tensor | BaselineValues = "zero",
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    prepend_bos: bool = False,
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Effect:
    """Zero each value position, layer by layer, in the running model, and follow it to the target's prediction.

    Unlike Value Zeroing, later blocks see the change. `inputs` is one sentence or pair, with `attention_mask` and
    `token_type_ids` as in `value_zeroing`; a 2-D tensor has a single row. `target` is a position (default: the only
    mask token, a causal model's last position, or where a classifier's head reads). `target_ids` are one token or a
    pair (good, bad), ids or words, of a classifier numbers or labels of classes; default: the clean run's likeliest.
    `metric` is "logit" (of a pair the difference), "probability" (of a pair the good one's), or a function from one
    sentence's logits `[1, position, vocabulary]` to a scalar, applied copy by copy as in TransformerLens's patching.
    Values are `[layer, src]`, or `[layer, head, src]` with `per_head`, in units of the metric; heads are those that
    values have. `layers` and `sources` choose a part, negative numbers count from the end. A position may be named by
    its token, as in `value_zeroing`. `baseline` is what is put in a value's place, as there; "mean" is the mean of the
    clean run's values.

    Of an encoder-decoder the prediction is always the decoder's: `target` is a position of `decoder_inputs` (default:
    the last), and it predicts the next token. `stack` says whose values are zeroed, and so whose positions are the
    sources: "encoder" and "cross" the encoder's, "decoder" the decoder's; `decoder_inputs` are as in `value_zeroing`.

    Raises HeadlessModelError for a model whose head was never trained; InputError for a bad target, a word that is
    not one token, a metric that returns no scalar, or a baseline that does not fit; InputTypeError for several
    sentences.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> effect = tl_vzero.zero_ablation(model, "the authors [MASK] today.", target_ids=("are", "is"))
    >>> effect.target_token, effect.metric
    ('[MASK]', "logit of 'are' minus logit of 'is'")
    """
    sentence = one_sentence(model, inputs, attention_mask, token_type_ids, prepend_bos, stack, decoder_inputs)
    intervention = intervene(model, sentence, target, layers, sources, per_head, baseline, stack)
    make_metric = metric_for(model, metric, target_ids)
    fitting = LOGITS_PER_BATCH // (len(sentence) * vocabulary_size(model))
    size = positive("batch_size", batch_size) or max(1, min(MOST_COPIES, fitting))
    places, after = intervention.places(), []
    bar = tqdm(total=len(places), disable=not progress, desc="zero ablation", unit="source", leave=False)
    with quiet(model), bar:
        logits = intervention.logits([])
        measure = make_metric(intervention.target, logits[0, intervention.target])
        clean = measure(logits)
        for start in range(0, len(places), size):
            part = places[start : start + size]  # copies of all layers share a forward pass
            after.append(measure(intervention.logits(_replace_each(intervention, part), copies=len(part))))
            bar.update(len(part))
    labels = intervention.labels(measure, clean, logits)
    return Effect(values=intervention.as_values(torch.cat(after) - clean), **labels)


@takes_turn
def predictions(model: nn.Module, inputs: Text) -> tuple[Predictions, tuple[tuple[int, ...], ...]]:
    """The likeliest tokens at every position of one sentence, with their probabilities, and their ids: one clean run.

    Of a classifier the likeliest classes, with their numbers, where its head reads; none of a regression or a span.

    Raises HeadlessModelError for a model whose head was never trained, InputTypeError for several sentences.

    >>> import tl_vzero
    >>> likely, ids = predictions(tl_vzero.load_model("agreement-mini"), "the authors [MASK] today.")
    >>> likely[3][0][0], len(ids[3])
    ('disappear', 5)
    """
    sentence = one_sentence(model, inputs, None, None, False)
    one = intervene(model, sentence, default_target(model, sentence) or 0, None, None, False)
    head = class_head_of(model)
    read = range(len(sentence)) if head is None or head.reads == "each" else (one.target,)
    with quiet(model):
        rows = one.logits([])[0]
        likely = tuple(likeliest(model, row) if position in read else () for position, row in enumerate(rows))
        return likely, tuple(likeliest_ids(row) if of_row else () for row, of_row in zip(rows, likely, strict=True))


def _replace_each(intervention: Intervention, copies: list[Place]) -> list[NamedHook]:
    def replace(layer: int) -> NamedHook:
        of_layer = [(copy, head, source) for copy, (at, head, source) in enumerate(copies) if at == layer]

        def hook_function(value: Tensor, *, hook: Any) -> Tensor:
            # A copy changes no layer but this one, so that what comes in is clean.
            put_in, value = intervention.stands_in(layer, value), value.clone()
            for copy, head, source in of_layer:
                at = copy, source, slice(None) if head is None else head
                value[at] = put_in[at]
            return value

        return intervention.sites.values[layer], hook_function

    return [replace(layer) for layer in sorted({layer for layer, _, _ in copies})]


# Attribution patching: zero ablation of every value position estimated by one backward pass.
#
# The metric m is taken as linear in each value v[l,j]: putting v* in its place, 0 by default, changes m by about
# <dm/dv[l,j], v*[l,j] - v[l,j]>, gradients running through all later blocks. Its error against zero ablation is
# `attribution_error`.


@takes_turn
def attribution_patching(
    model: nn.Module,
    inputs: Text,
    *,
    target: Position | None = None,
    target_ids: TargetIds | None = None,
    metric: str | MetricFunction = "logit",
    layers: Numbers = None,
    sources: Positions = None,
    per_head: bool = False,
    baseline: str | Tensor | BaselineValues = "zero",
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    prepend_bos: bool = False,
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Effect:
    """Estimate `zero_ablation` of all value positions to first order, by one forward and one backward pass.

    Takes what `zero_ablation` takes and gives an Effect of the same shape and unit: `[layer, src]`, or
    `[layer, head, src]` with `per_head`, where heads sum to the whole. A function as metric must be differentiable.
    `attribution_error` tells how far the estimate is off.

    Raises what `zero_ablation` raises, and InputError for a metric without a gradient.
    Source: Nanda 2023, "Attribution Patching: Activation Patching At Industrial Scale".

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> tl_vzero.attribution_patching(model, "the authors [MASK] today.", target_ids=("are", "is")).values.shape
    torch.Size([4, 7])
    """
    sentence = one_sentence(model, inputs, attention_mask, token_type_ids, prepend_bos, stack, decoder_inputs)
    intervention = intervene(model, sentence, target, layers, sources, per_head, baseline, stack)
    make_metric = metric_for(model, metric, target_ids)
    changes: dict[int, Tensor] = {}
    added: dict[int, Tensor] = {}

    def add_zero(value: Tensor, *, hook: Any, layer: int) -> Tensor:
        """Weights may be frozen, and their gradients stay as they are: so a zero is added that needs a gradient."""
        clean = value.detach()
        changes[layer] = intervention.stands_in(layer, clean) - clean
        added[layer] = torch.zeros_like(clean).requires_grad_()
        return value + added[layer]

    with quiet(model), torch.enable_grad():
        sites = intervention.sites.values
        logits = intervention.logits([(sites[layer], partial(add_zero, layer=layer)) for layer in intervention.layers])
        measure = make_metric(intervention.target, logits[0, intervention.target].detach())
        measured = measure(logits)
        if not measured.requires_grad:
            raise InputError(
                f"the {measure.name} has no gradient: expected a differentiable function of the logits (no argmax, "
                "item or detach); zero_ablation takes any function"
            )
        leaves = [added[layer] for layer in intervention.layers]
        gradients = torch.autograd.grad(measured.sum(), leaves, allow_unused=True, materialize_grads=True)
        labels = intervention.labels(measure, measured.detach(), logits.detach())
    wide, pairs = measured.dtype, zip(intervention.layers, gradients, strict=True)
    # [layer, position, head]; the sum over heads is the effect of the whole position.
    products = torch.stack([(changes[layer].to(wide) * of.detach().to(wide)).sum(dim=-1)[0] for layer, of in pairs])
    at = products[:, list(intervention.sources)]
    estimate = at.sum(dim=-1) if intervention.heads is None else at.transpose(1, 2)
    return Effect(values=intervention.as_values(estimate.flatten()), method="attribution_patching", **labels)


def attribution_error(approximate: Effect, exact: Effect) -> "pd.DataFrame":
    """How far an estimated effect is off, layer by layer: a table of layer, max_abs, relative_rms, spearman.

    `max_abs` is the largest difference, in units of the metric; `relative_rms` the root mean square of the
    differences over that of the exact effect (0 where both are 0 everywhere); `spearman` the rank correlation of
    the signed effects, NaN where one is constant. Per head, a layer's heads count together.
    Raises InputError where the two are effects of different things, InputTypeError for what is no Effect.

    >>> import tl_vzero
    >>> model, text = tl_vzero.load_model("agreement-mini"), "the authors [MASK] today."
    >>> exact, estimate = tl_vzero.zero_ablation(model, text), tl_vzero.attribution_patching(model, text)
    >>> tl_vzero.attribution_error(estimate, exact).columns.tolist()
    ['layer', 'max_abs', 'relative_rms', 'spearman']
    """
    import pandas as pd

    for name, effect in (("approximate", approximate), ("exact", exact)):
        if not isinstance(effect, Effect):
            raise InputTypeError(f"{name} is {type(effect).__name__}: expected an Effect")
    names = ("layers", "heads", "src_positions", "src_tokens", "target", "metric", "baseline")
    estimated, measured = (
        {name: getattr(effect, name) for name in names}
        | {name: effect.metadata.get(name) for name in ("token_types", "stack")}
        for effect in (approximate, exact)
    )
    for name, expected in measured.items():
        if estimated[name] != expected:
            raise InputError(
                f"{name}: {estimated[name]!r} in the approximate and {expected!r} in the exact effect: expected two "
                "effects of one sentence, with the same segments, on one prediction, computed with the same options"
            )
    guessed, true = (effect.values.detach().cpu().double().flatten(1) for effect in (approximate, exact))
    off = guessed - true
    rms, size = off.square().mean(-1).sqrt(), true.square().mean(-1).sqrt()
    return pd.DataFrame(
        {
            "layer": exact.layers,
            "max_abs": off.abs().amax(-1).numpy(),
            "relative_rms": torch.where(rms == 0, rms, rms / size).numpy(),
            "spearman": rank_correlation(guessed.numpy(), true.numpy()),
        }
    )
