"""Zero ablation: the values that Value Zeroing zeroes layer by layer, zeroed in the running model.

1. A batch of copies of the sentence runs through the model; each copy zeroes one place: a layer, a source, or one head.
2. Nothing is restored: later blocks see the change, and it runs to the logits.
3. The effect is the metric of the copy minus the metric of the clean run.
"""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import positive
from tl_vzero.effects.asked import Asked, Numbers, Place, ask, one_sentence
from tl_vzero.effects.metric import Metric, MetricFunction, metric_for
from tl_vzero.effects.result import Effect
from tl_vzero.inputs import Ids, Text
from tl_vzero.models.facts import vocabulary_size
from tl_vzero.models.run import NamedHook, quiet
from tl_vzero.models.sites import Sites
from tl_vzero.models.turns import takes_turn
from tl_vzero.targets import TargetIds

LOGITS_A_BATCH = 2**25  # numbers held at once: a vocabulary is wide, and logits come for every position


@takes_turn
def zero_ablation(
    model: nn.Module,
    inputs: Text,
    *,
    target: int | None = None,
    target_ids: TargetIds | None = None,
    metric: str | MetricFunction = "logit",
    layers: Numbers = None,
    sources: Numbers = None,
    per_head: bool = False,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    prepend_bos: bool = False,
) -> Effect:
    """Zero each value position, layer by layer, in the running model, and follow it to the target's prediction.

    Unlike Value Zeroing, later blocks see the change. `inputs` is one sentence or pair, with `attention_mask` and
    `token_type_ids` as in `value_zeroing`; a 2-D tensor has a single row. `target` is a position (default: the only
    mask token). `target_ids` are one token or a pair (good, bad), ids or words; default: the clean run's likeliest
    token at the target. `metric` is "logit" (of a pair the difference), "probability" (of a pair the good one's), or a
    function from one sentence's logits `[1, position, vocabulary]` to a scalar, applied copy by copy as in
    TransformerLens's patching.
    Values are `[layer, src]`, or `[layer, head, src]` with `per_head`, in units of the metric; heads are those that
    values have. `layers` and `sources` choose a part, negative numbers count from the end.

    Raises HeadlessModelError for a model whose head was never trained; InputError for a bad target, a word that is
    not one token, or a metric that returns no scalar; InputTypeError for several sentences.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> effect = tl_vzero.zero_ablation(model, "the authors [MASK] here.", target_ids=("are", "is"))
    >>> effect.target_token, effect.metric
    ('[MASK]', "logit of 'are' minus logit of 'is'")
    """
    sentence = one_sentence(
        model, inputs, attention_mask=attention_mask, token_type_ids=token_type_ids, prepend_bos=prepend_bos
    )
    asked = ask(model, sentence, target=target, layers=layers, sources=sources, per_head=per_head)
    make_metric = metric_for(model, metric, target_ids)
    size = positive("batch_size", batch_size) or _batch_size(model, len(asked.sentence))
    with quiet(model):
        logits = asked.logits([])
        measure = make_metric(asked.target, logits[0, asked.target])
        clean = measure(logits)
        after = _ablated(asked, measure, size, progress)
    labels = asked.labels(measure, clean, logits)
    return Effect(values=asked.as_values(after - clean), **labels)


def _batch_size(model: nn.Module, length: int) -> int:
    return max(1, min(256, LOGITS_A_BATCH // (length * vocabulary_size(model))))


def _ablated(asked: Asked, metric: Metric, size: int, progress: bool) -> Float[Tensor, "place"]:
    """The metric with each place zeroed; copies of all layers share forward passes."""
    places, measured = asked.places(), []
    with tqdm(total=len(places), disable=not progress, desc="zero ablation", unit="source", leave=False) as bar:
        for start in range(0, len(places), size):
            part = places[start : start + size]
            logits = asked.logits(_zero_each(asked.sites, part), copies=len(part))
            measured.append(metric(logits))
            bar.update(len(part))
    return torch.cat(measured)


def _zero_each(sites: Sites, copies: list[Place]) -> list[NamedHook]:
    def zero(layer: int) -> NamedHook:
        own = [(copy, head, source) for copy, (at, head, source) in enumerate(copies) if at == layer]

        def hook_function(value: Tensor, *, hook: Any) -> Tensor:
            value = value.clone()
            for copy, head, source in own:
                value[copy, source, slice(None) if head is None else head] = 0
            return value

        return sites.values[layer], hook_function

    return [zero(layer) for layer in sorted({layer for layer, _, _ in copies})]
