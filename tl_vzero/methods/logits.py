"""What is of each source in the target's logit: what attention adds to it, and what of it DecompX traces to a source.

What attention adds is defined in a model whose logits are sums of what blocks write. Of a target at position t, with U
the target's column of the unembedding:
1. F[t, j] = sum_h A[h, t, j] v[j, h] W_O[h] is what attention adds to the residual stream at t from source j.
2. The final norm with its scale held at that of the clean run is a linear map L.
3. The contribution is <L(F[t, j]), U> = <F[t, j], direction>.
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import flag
from tl_vzero.distance import relative_difference, wide_dtype
from tl_vzero.errors import ModelError
from tl_vzero.inputs.text import Ids, Sentence, Text
from tl_vzero.methods.apply import visit_layers
from tl_vzero.methods.decompx import Vectors, carry, share, slope
from tl_vzero.methods.gradients import Numbers, Prediction, Rows, Target, target_rows
from tl_vzero.methods.layer import Layer
from tl_vzero.methods.norms import alti
from tl_vzero.models.blocks import SAME_BLOCK, norm_of, weight_view
from tl_vzero.models.facts import class_head_of, facts_of
from tl_vzero.models.head_steps import SAME_LOGITS, HeadStep, head_steps
from tl_vzero.models.sites import kind_of
from tl_vzero.models.turns import takes_turn
from tl_vzero.rollout import normalize_rows
from tl_vzero.scores import Scores
from tl_vzero.targets import TargetIds


@takes_turn
def logit_contributions(
    model: nn.Module,
    inputs: Text,
    *,
    target: Target = None,
    target_ids: TargetIds | None = None,
    size: bool = False,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Numbers = None,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """What each layer's attention adds to the target's logit from each source: `[layer, 1, src]`, in logits, signed.

    The one row is that of `target`, the logit that of `target_ids` there, as in `gradient_x_input`; with a pair (good,
    bad) it is the difference of two. It is `direct_logit_attribution` as Scores. Signed scores are no shares:
    `size=True` leaves the signs out, so that they can be normalised. Costs two runs.

    Raises ModelError where a logit is no sum of what blocks write: for masked models and classifiers whose head has an
    activation, and for blocks that norm or scale what attention adds; and what `gradient_x_input` raises, but for
    Captum.
    Source: Ferrando et al. 2023, "Explaining How Transformers Use Context to Build Predictions" (Logit).

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> try:
    ...     logit_contributions(model, "the authors [MASK] today.")
    ... except tl_vzero.errors.ModelError as error:
    ...     print("refused")
    refused
    """

    def rows_of(prediction: Prediction, sentence: Sentence, layers: Sequence[int]) -> Rows:
        direction = _direction(prediction)
        rows: dict[int, Tensor] = {}

        def visit(layer: Layer) -> None:
            rows[layer.index] = added_along(direction, layer, prediction.target).sum(dim=0)

        visit_layers(model, prediction.sites, [sentence], sorted(layers), None, visit)
        return torch.stack([rows[layer] for layer in layers]), {}

    call = model, inputs, target, target_ids, attention_mask, token_type_ids, layers, prepend_bos
    return _logit_rows("logit_contributions", rows_of, size, call)


@takes_turn
def alti_logit(
    model: nn.Module,
    inputs: Text,
    *,
    target: Target = None,
    target_ids: TargetIds | None = None,
    size: bool = False,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Numbers = None,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """`logit_contributions` followed down to the input tokens by ALTI's rollout: `[layer, 1, src]`, in logits, signed.

    A layer's row holds what attention adds up to that layer, and what the target's own embedding gives: the last is
    the paper's. What MLPs and biases add is of no source. Costs two runs and an ALTI map of each layer. Arguments and
    errors are those of `logit_contributions`.

    Source: Ferrando et al. 2023, "Explaining How Transformers Use Context to Build Predictions" (ALTI-Logit).

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> try:
    ...     alti_logit(model, "the authors [MASK] today.")
    ... except tl_vzero.errors.ModelError as error:
    ...     print("refused")
    refused
    """

    def rows_of(prediction: Prediction, sentence: Sentence, layers: Sequence[int]) -> Rows:
        direction = _direction(prediction)
        rolled = torch.eye(len(sentence), dtype=direction.dtype, device=direction.device)
        rows: list[Tensor] = []

        def visit(layer: Layer) -> None:
            nonlocal rolled
            if not rows:
                rows.append(torch.zeros_like(rolled[0]))
                rows[0][prediction.target] = layer.input[0, prediction.target].to(direction) @ direction
            rows.append(rows[-1] + added_along(direction, layer, prediction.target).sum(dim=0) @ rolled)
            if layer.index < max(layers):
                rolled = normalize_rows(alti(layer))[0].to(direction) @ rolled

        visit_layers(model, prediction.sites, [sentence], range(max(layers) + 1), None, visit)
        return torch.stack(rows[1:])[list(layers)], {}

    call = model, inputs, target, target_ids, attention_mask, token_type_ids, layers, prepend_bos
    return _logit_rows("alti_logit", rows_of, size, call)


@takes_turn
def decompx_logit(
    model: nn.Module,
    inputs: Text,
    *,
    target: Target = None,
    target_ids: TargetIds | None = None,
    share_biases: bool = True,
    size: bool = False,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Numbers = None,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """The target's logit, or the logit of a class, taken apart by DecompX: `[layer, 1, src]`, in logits, signed.

    A layer's row begins with the input of that layer's block, one vector for each source, carried by the rules of
    `decompx` through that block, all behind it and the head; the first layer's is the paper's, from the embeddings.
    `target` and `target_ids` are as in `gradient_x_input`; with a pair (good, bad) it is the difference of two logits.

    Rows sum to the logit, in the metadata as "logit". With `share_biases=False` biases are of no source, and what rows
    leave is "of_no_source", one for each layer. `size=True` leaves the signs out, so that rows can be normalised. A row
    costs a run and what `decompx` with `propagate=True` costs for the blocks from its layer on.

    Raises ModelError where `decompx` does, and for a head that is no chain of linear maps, norms and activations; and
    what `gradient_x_input` raises, but for Captum.
    Source: Modarressi et al. 2023, "DecompX: Explaining Transformers Decisions by Propagating Token Decomposition".

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> parts = decompx_logit(model, "the authors near the hat [MASK] today.", target_ids=("are", "is"))
    >>> bool(abs(parts.values[0].sum() - parts.metadata["logit"]) < 1e-3)
    True
    """
    flag("share_biases", share_biases)

    def rows_of(prediction: Prediction, sentence: Sentence, layers: Sequence[int]) -> Rows:
        steps, logits = _head(prediction)
        logit = float(_of_tokens(logits, prediction.tokens))
        rows = []
        for first in layers:
            vectors = _vectors_at_target(prediction, sentence, first, share_biases)
            parts = _through_head(steps, vectors, prediction.target, share_biases)
            rows.append(_of_tokens(parts, prediction.tokens)[0, 0])
        return torch.stack(rows), {"logit": logit, "of_no_source": [logit - float(row.sum()) for row in rows]}

    call = model, inputs, target, target_ids, attention_mask, token_type_ids, layers, prepend_bos
    return _logit_rows("decompx_logit", rows_of, size, call, share_biases=share_biases)


def _vectors_at_target(prediction: Prediction, sentence: Sentence, first: int, share_biases: bool) -> Vectors:
    """The last block's output at the target, as vectors that begin with the input of block `first`."""
    carried: Vectors | None = None

    def visit(layer: Layer) -> None:
        nonlocal carried
        carried = carry(prediction.model, prediction.sites, layer, carried, share_biases)

    visit_layers(prediction.model, prediction.sites, [sentence], range(first, prediction.sites.n_layers), None, visit)
    assert carried is not None
    return carried[:, [prediction.target]]


def _through_head(
    steps: Sequence[HeadStep], vectors: Vectors, target: int, share_biases: bool
) -> Float[Tensor, "sentence dest src logit"]:
    """The vectors of every logit, by the rules of a block's parts."""
    for step in steps:
        if step.activation is not None:
            vectors = vectors * slope(step.activation, step.read)
        vectors = step.linear(vectors)
        if share_biases and step.bias is not None:
            vectors = share(vectors, step.bias, torch.tensor([[target]], device=vectors.device))
    return vectors


def _head(prediction: Prediction) -> tuple[list[HeadStep], Float[Tensor, "logit"]]:
    """The steps of the head, and the logits at the target; settles which token is explained."""
    last, logits = prediction.sites.n_layers - 1, torch.empty(0)

    def run() -> tuple[Tensor, Tensor]:
        nonlocal logits
        outputs, rows = prediction.run([last])
        logits = rows[0]
        return outputs[last][0, prediction.target], logits

    steps = head_steps(prediction.model, run)
    prediction.tokens = prediction.tokens or [int(logits.argmax())]
    return steps, logits


def _of_tokens(logits: Float[Tensor, "*rows logit"], tokens: Sequence[int]) -> Float[Tensor, "*rows"]:
    good, *bad = (logits[..., token] for token in tokens)
    return good - bad[0] if bad else good


def _logit_rows(method: str, rows_of: Any, size: bool, call: tuple[Any, ...], **options: bool) -> Scores | list[Scores]:
    flag("size", size)

    def sized(*arguments: Any) -> Rows:
        rows, notes = rows_of(*arguments)
        return rows.abs() if size else rows, notes

    return target_rows(method, sized, {"engine": "clean run", "options": {"size": size} | options}, *call)


def _direction(prediction: Prediction) -> Float[Tensor, "feature"]:
    """What a vector at the target is multiplied by to give its logit; settles which token is explained."""
    if class_head_of(prediction.model) is not None:
        return _class_direction(prediction)
    last = prediction.sites.n_layers - 1
    outputs, logits = prediction.run([last])
    prediction.tokens = prediction.tokens or [int(logits[0].argmax())]
    return logit_direction(prediction.model, outputs[last][0, prediction.target], logits[0], prediction.tokens)


def _class_direction(prediction: Prediction) -> Float[Tensor, "feature"]:
    """That of a class; raises ModelError where an activation stands in the head."""
    steps, _ = _head(prediction)
    if any(step.activation is not None for step in steps):
        raise ModelError(
            f"the head of {facts_of(prediction.model).name} has an activation between its linear maps, so the logit of "
            "a class is no sum of what blocks write: use decompx_logit, which takes the head apart, or "
            "activation_patching"
        )
    each_feature = torch.eye(len(steps[0].read), dtype=steps[0].read.dtype, device=steps[0].read.device)
    for step in steps:
        each_feature = step.linear(each_feature)
    return _of_tokens(each_feature, prediction.tokens).to(wide_dtype(each_feature.device))


def logit_direction(
    model: nn.Module,
    output: Float[Tensor, "feature"],
    logits: Float[Tensor, "vocabulary"],
    target_ids: Sequence[int],
) -> Float[Tensor, "feature"]:
    """The target's column of the unembedding (of a pair the difference), seen through the final norm of `output`.

    Raises ModelError where norm and unembedding do not give the model's logits.
    """
    wide = wide_dtype(output.device)
    norm, weight, bias = norm_of(model, model, "ln_final", wide), weight_view(model, "W_U"), weight_view(model, "b_U")
    expected = None
    if norm is not None and weight is not None and weight.shape == (len(output), len(logits)):
        expected = norm(output.to(wide)).to(weight.dtype) @ weight + (0 if bias is None else bias)
    tolerance = SAME_LOGITS * SAME_BLOCK.get(logits.dtype, SAME_BLOCK[torch.float16])
    if norm is None or weight is None or expected is None or relative_difference(expected, logits) > tolerance:
        raise ModelError(
            f"the head of this {kind_of(model)} is not a final norm and one unembedding (a masked model's has a dense "
            "layer and an activation, some cap their logits, a hook may act), so a logit is no sum of what "
            "blocks write: use logit_lens, which reads through the whole head, or activation_patching"
        )
    good, *bad = (weight[:, token_id].to(wide) for token_id in target_ids)
    # <L(z), u> = <z, centre(weight u)> / sigma
    read = norm.centre(norm.weight * (good - bad[0] if bad else good))
    return read / norm.deviation(norm.centre(output.to(wide)))


def added_along(direction: Float[Tensor, "feature"], layer: Layer, target: int) -> Float[Tensor, "head src"]:
    """What each head adds of each source to the target; raises ModelError where a block adds something else."""
    weights, block, wide = layer.readable, layer.block, direction.dtype
    written = None
    if weights is not None and block.mlp_output is not None and len(weights.w_o) == layer.pattern.shape[1]:
        written = layer.middle + block.mlp_output.to(layer.dtype)
    tolerance = SAME_BLOCK.get(block.output.dtype, SAME_BLOCK[torch.float16])
    if weights is None or written is None or relative_difference(written, block.output.to(layer.dtype)) > tolerance:
        raise ModelError(
            f"block {layer.index} does not add what its attention writes to the residual stream as it is (a norm or a "
            "scale lies between, or a hook acts), so no logit is a sum of it: use logit_lens or activation_patching"
        )
    read = weights.w_o.to(wide) @ direction
    return torch.einsum("hj,jhd,hd->hj", layer.pattern[0, :, target].to(wide), layer.value[0].to(wide), read)
