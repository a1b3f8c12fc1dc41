"""What a layer says of the prediction directly, without the layers above: logit lens and direct logit attribution.

Logit lens: the output of a block goes to the model's own head, as if there were no further block.

Direct logit attribution: what attention adds to the target's logit from each source (`tl_vzero.methods.logits`).
"""

import torch
from torch import Tensor, nn

from tl_vzero.choices import Position, Positions, one_of
from tl_vzero.clean import CleanBlock, token_types_of, visit_clean_blocks
from tl_vzero.distance import wide_dtype
from tl_vzero.effects.measure import NAMES, Effect, Numbers, intervene, metric_for, one_sentence
from tl_vzero.errors import InputError, ModelError
from tl_vzero.inputs.encoder_decoder import DecoderInputs
from tl_vzero.inputs.text import Ids, Text
from tl_vzero.methods.layer import Layer
from tl_vzero.methods.logits import added_along, logit_direction
from tl_vzero.models.blocks import block_weights
from tl_vzero.models.contracts import attention_heads
from tl_vzero.models.facts import class_head_of, facts_of
from tl_vzero.models.run import quiet, remembering_hooks
from tl_vzero.models.turns import takes_turn
from tl_vzero.targets import TargetIds


def check_head_reads(stack: str | None) -> None:
    """Raise InputError for a stack whose blocks write nothing that a head could read."""
    if stack in ("encoder", "cross"):
        raise InputError(
            f"stack={stack!r} given, and a logit lens reads what a block of the decoder writes by the model's head: "
            "expected stack='decoder'"
        )


@takes_turn
def logit_lens(
    model: nn.Module,
    inputs: Text,
    *,
    target: Position | None = None,
    target_ids: TargetIds | None = None,
    metric: str = "logit",
    layers: Numbers = None,
    sources: Positions = None,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    prepend_bos: bool = False,
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Effect:
    """Read the target's logit off each layer's output at each position, with the model's own head.

    The head is the whole of it: a causal model's final norm and unembedding, a masked model's dense layer, activation
    and norm as well. Arguments are those of `zero_ablation`; `metric` is "logit" or "probability". Values are
    `[layer, src]`, the metric read there, no difference: in the last layer at the target's position it is `clean`.
    Where TransformerLens 4's `logit_lens` is defined (no masked models) it gives the same. Two runs. Of an
    encoder-decoder the head reads the decoder alone: stack="decoder".

    Raises what `zero_ablation` raises, and ModelError for a classifier's head that reads one position for the sentence.
    Source: nostalgebraist 2020, "interpreting GPT: the logit lens".

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> effect = tl_vzero.logit_lens(model, "the authors [MASK] today.", target_ids=("are", "is"))
    >>> abs(effect.values[-1, effect.target].item() - effect.clean) < 1e-4
    True
    """
    check_head_reads(stack)
    sentence = one_sentence(model, inputs, attention_mask, token_type_ids, prepend_bos, stack, decoder_inputs)
    one = intervene(model, sentence, target, layers, sources, False, stack=stack)
    make_metric = metric_for(model, one_of("metric", metric, NAMES), target_ids)
    head = class_head_of(model)
    if head is not None and not head.reads_each:
        raise ModelError(
            f"the head of {facts_of(model).name} reads position {one.target} for the whole sentence, so nothing can be "
            "read off the others: use zero_ablation or activation_patching"
        )
    names = one.sites.outputs
    shown: dict[str, Tensor] = {}
    with quiet(model):
        logits = one.logits(remembering_hooks(names, shown, lambda _, output: output.clone()))
        # Of a single position, that of the copy: the head reads each by itself.
        measure = make_metric(0, logits[0, one.target])
        outputs = torch.cat([shown[names[layer]] for layer in one.layers])
        read = one.logits([(names[-1], lambda _, *, hook: outputs)], copies=len(one.layers))
        values = measure(read[:, list(one.sources)].flatten(0, 1).unsqueeze(1))
        labels = one.labels(measure, measure(logits[:, one.target : one.target + 1]), logits)
    return Effect(values=one.as_values(values), method="logit_lens", **labels)


@takes_turn
def direct_logit_attribution(
    model: nn.Module,
    inputs: Text,
    *,
    target: Position | None = None,
    target_ids: TargetIds | None = None,
    layers: Numbers = None,
    sources: Positions = None,
    per_head: bool = False,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    prepend_bos: bool = False,
) -> Effect:
    """What each layer's attention adds directly to the target's logit from each source, in the clean run.

    Arguments are those of `zero_ablation`; with a pair of `target_ids` the logits' difference is attributed. Values
    are `[layer, src]`, or `[layer, head, src]` with `per_head` (query heads), in units of the logit; summed over
    sources they are a head's part in TransformerLens 4's `direct_logit_attribution`, which asks for processed weights.
    What the embedding, MLPs and biases add comes from no source and is left out.

    Raises ModelError where a logit is no sum of what blocks write: for classifiers, masked models, whose head has an
    activation, and for blocks that norm or scale what attention adds; and what `zero_ablation` raises.
    Source: Ferrando et al. 2023, "Explaining How Transformers Use Context to Build Predictions" (Logit).

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> try:
    ...     tl_vzero.direct_logit_attribution(model, "the authors [MASK] today.")
    ... except tl_vzero.errors.ModelError as error:
    ...     print("refused")
    refused
    """
    sentence = one_sentence(model, inputs, attention_mask, token_type_ids, prepend_bos)
    one = intervene(model, sentence, target, layers, sources, per_head, n_heads=attention_heads)
    if class_head_of(model) is not None:
        raise ModelError(
            f"{facts_of(model).name} is a classifier, and what attention adds is attributed through an unembedding of "
            "words: use zero_ablation or activation_patching"
        )
    make_metric = metric_for(model, "logit", target_ids)
    blocks: dict[int, CleanBlock] = {}
    n_layers = one.sites.n_layers
    with quiet(model):
        logits = one.logits([])
        measure = make_metric(one.target, logits[0, one.target])
        types = token_types_of(model, [sentence])
        visit_clean_blocks(model, one.sites, one.ids, range(n_layers), blocks.__setitem__, token_types=types)
        output = blocks[n_layers - 1].output[0, one.target]
        wide = wide_dtype(output.device)
        direction = logit_direction(model, output, logits[0, one.target], measure.target_ids or ())
        added = [
            added_along(direction, Layer(layer, blocks[layer], wide, block_weights(model, layer, wide)), one.target)
            for layer in one.layers
        ]
        labels = one.labels(measure, measure(logits), logits)
    values = torch.stack(added)[..., list(one.sources)]
    values = values.sum(dim=1) if one.heads is None else values
    return Effect(values=one.as_values(values.flatten()), method="direct_logit_attribution", **labels)
