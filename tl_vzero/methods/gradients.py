"""Gradient attributions of the prediction to what each block writes, by Captum: one row a layer, the target's."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import at_least_one, chosen, one_of
from tl_vzero.errors import DependencyError, InputError, InputTypeError
from tl_vzero.inputs.encoder_decoder import described
from tl_vzero.inputs.text import Ids, Sentence, Text, encode
from tl_vzero.methods.captum_parts import (
    Prediction,
    Readout,
    check_rescale_rule,
    integrate,
    nothing_left_on,
    predict,
    rescaled_above,
    targets_of,
)
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.facts import vocabulary_size
from tl_vzero.models.run import TargetLogits, quiet
from tl_vzero.models.sites import Sites
from tl_vzero.models.turns import takes_turn
from tl_vzero.scores import Scores
from tl_vzero.targets import TargetIds, check_trained_head, target_tokens

# What an attribution starts from: zero, a vector of the caller's, or what the block writes for a token.

Baseline = int | Float[Tensor, "feature"] | None


def check_baseline(model: nn.Module, baseline: Baseline) -> None:
    """Raise InputError or InputTypeError for what is no baseline of the model."""
    if baseline is None:
        return
    if isinstance(baseline, Tensor):
        width = int(model.cfg.d_model)  # type: ignore[union-attr, arg-type]
        if list(baseline.shape) != [width] or not bool(torch.isfinite(baseline).all()):
            raise InputError(
                f"baseline has shape {list(baseline.shape)}: expected [{width}], one finite number a feature"
            )
        return
    if isinstance(baseline, bool) or not isinstance(baseline, int):
        raise InputTypeError(
            f"baseline is {type(baseline).__name__}: expected a token's id, a tensor [feature], or None for zero"
        )
    size = vocabulary_size(model)
    if not 0 <= baseline < size:
        raise InputError(f"baseline is token {baseline}: expected 0 to {size - 1}, the model's vocabulary")


def baseline_at(
    prediction: Prediction, layer: int, output: Float[Tensor, "1 position feature"], baseline: Baseline
) -> Float[Tensor, "1 position feature"]:
    """The baseline of a block's output."""
    if baseline is None:
        return torch.zeros_like(output)
    if isinstance(baseline, Tensor):
        return baseline.detach().to(output).expand_as(output)
    return prediction.output_for(baseline, layer)


def name_of(baseline: Baseline) -> str:
    """What the metadata calls it."""
    if baseline is None:
        return "zero"
    return "vector" if isinstance(baseline, Tensor) else f"token {baseline}"


Numbers = Iterable[int] | int | None
Target = int | Sequence[int] | None

STEPS = 50

# What a token's features are put together by: their size, or their sum with its sign.
AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda attribution: torch.linalg.vector_norm(attribution, dim=-1),
    "sum": lambda attribution: attribution.sum(dim=-1),
}

# (the prediction, a layer, its clean output) -> an attribution of that shape, and notes for the metadata.
Attribute = Callable[[Prediction, int, Tensor], tuple[Tensor, dict[str, Any]]]


@takes_turn
def gradient_x_input(
    model: nn.Module,
    inputs: Text,
    *,
    target: Target = None,
    target_ids: TargetIds | None = None,
    aggregate: str = "norm",
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Numbers = None,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """Gradient of the target's logit by each block's output, times that output: `[layer, 1, src]`, in logits.

    The one row is that of `target`: a position (default: the only mask token), or a list with one for each sentence.
    The logit is that of `target_ids` there, one token or a pair (good, bad) for a difference of logits; by default of
    the clean run's likeliest token. `aggregate` puts a token's features together: "norm" is their Euclidean size,
    "sum" their sum, which has a sign and must not be normalised. Costs a forward and a backward pass a layer.

    Raises HeadlessModelError for a model whose head was never trained, DependencyError without Captum, InputError or
    InputTypeError for arguments that cannot be used, and leaves the model as it was.
    Source: Shrikumar et al. 2016, "Not Just a Black Box"; Captum's InputXGradient.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = gradient_x_input(model, "the authors [MASK] here.", target_ids=("are", "is"))
    >>> scores.values.shape, scores.dest_tokens
    (torch.Size([4, 1, 7]), ('[MASK]',))
    """
    captum = _captum()

    def attribute(prediction: Prediction, layer: int, output: Tensor) -> tuple[Tensor, dict[str, Any]]:
        explained = captum.InputXGradient(prediction.from_block(layer))
        return explained.attribute(output.clone().requires_grad_()), {}

    return _target_rows(
        "gradient_x_input",
        _Asked(target, target_ids, aggregate, attention_mask, token_type_ids, layers, prepend_bos),
        model,
        inputs,
        attribute,
    )


@takes_turn
def integrated_gradients(
    model: nn.Module,
    inputs: Text,
    *,
    target: Target = None,
    target_ids: TargetIds | None = None,
    aggregate: str = "norm",
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Numbers = None,
    prepend_bos: bool = False,
    steps: int = STEPS,
    baseline: Baseline = None,
) -> Scores | list[Scores]:
    """Gradients of the target's logit integrated from a baseline to each block's output: `[layer, 1, src]`, in logits.

    With `aggregate="sum"` a row sums to the logit minus the logit at the baseline. `baseline` is the zero vector, a
    vector `[feature]` for every position, or a token's id: then it is what the block writes where every position holds
    that token. The other options are those of `gradient_x_input`.

    The path is integrated by Gauss and Legendre's rule with `steps` points. Where the attributions then miss more than
    a thousandth of the change (a norm near the zero vector does that), the path is cut into pieces of `steps` points
    each, at most 16. `metadata` has the pieces and what is missed, `convergence_delta`, for each layer.
    Costs forward and backward passes of `steps` copies of the sentence a layer, and twice that for each cut.

    Raises what `gradient_x_input` raises, and InputError for less than one step.
    Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equation 1; Captum's
    IntegratedGradients.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = integrated_gradients(model, "the authors [MASK] here.", aggregate="sum", layers=0)
    >>> abs(scores.metadata["convergence_delta"][0]) < 0.01 * abs(scores.values.sum().item())
    True
    """
    captum = _captum()
    _check_steps(steps)
    check_baseline(model, baseline)

    def attribute(prediction: Prediction, layer: int, output: Tensor) -> tuple[Tensor, dict[str, Any]]:
        attribution, error, pieces = integrate(
            captum.IntegratedGradients,
            prediction.from_block(layer),
            output,
            baseline_at(prediction, layer, output, baseline),
            steps=steps,
            copies=prediction.copies,
        )
        return attribution, {"convergence_delta": error, "pieces": pieces}

    return _target_rows(
        "integrated_gradients",
        _Asked(target, target_ids, aggregate, attention_mask, token_type_ids, layers, prepend_bos),
        model,
        inputs,
        attribute,
        steps=steps,
        baseline=name_of(baseline),
    )


@takes_turn
def deep_lift(
    model: nn.Module,
    inputs: Text,
    *,
    target: Target = None,
    target_ids: TargetIds | None = None,
    aggregate: str = "norm",
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Numbers = None,
    prepend_bos: bool = False,
    baseline: Baseline = None,
) -> Scores | list[Scores]:
    """DeepLIFT's contributions of each block's output to the target's logit: `[layer, 1, src]`, in logits.

    As Captum computes it: the rescale rule at activations that it knows as modules (ReLU, tanh and their kin), plain
    gradients elsewhere (attention, norms, GELU, SiLU). `metadata["rescaled"]` names those modules for each layer;
    where there are none, as in BERT and GPT-2, this is gradient times (output - baseline), and with the zero vector
    for a baseline it equals `gradient_x_input`. `metadata["convergence_delta"]` is what the contributions miss of the
    change from the baseline, which plain gradients may leave large. `baseline` and the other options are those of
    `integrated_gradients`. Costs forward and backward passes of two copies of the sentence a layer.

    Raises what `gradient_x_input` raises, and ModelError where the model computes an activation with a rescale rule
    by a function, which Captum cannot see, or runs one module in several blocks.
    Source: Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences";
    Captum's DeepLift.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = deep_lift(model, "the authors [MASK] here.", target_ids=("are", "is"))
    >>> scores.values.shape, scores.metadata["rescaled"]
    (torch.Size([4, 1, 7]), [[], [], [], []])
    """
    captum = _captum()
    check_contracts(model)
    check_rescale_rule(model)
    check_baseline(model, baseline)

    def attribute(prediction: Prediction, layer: int, output: Tensor) -> tuple[Tensor, dict[str, Any]]:
        rescaled = rescaled_above(prediction, layer)
        explained = captum.DeepLift(Readout(prediction.from_block(layer), rescaled))
        with nothing_left_on(prediction.model, rescaled):
            attribution, error = explained.attribute(
                output.clone().requires_grad_(),
                baselines=baseline_at(prediction, layer, output, baseline),
                return_convergence_delta=True,
            )
        names = [type(module).__name__ for module in rescaled]
        return attribution, {"convergence_delta": error.item(), "rescaled": names}

    return _target_rows(
        "deep_lift",
        _Asked(target, target_ids, aggregate, attention_mask, token_type_ids, layers, prepend_bos),
        model,
        inputs,
        attribute,
        baseline=name_of(baseline),
    )


@dataclass(frozen=True, eq=False)
class _Asked:
    """The options that the three methods share."""

    target: Target
    target_ids: TargetIds | None
    aggregate: str
    attention_mask: Ids | None
    token_type_ids: Ids | None
    layers: Numbers
    prepend_bos: bool


def _target_rows(
    method: str, asked: _Asked, model: nn.Module, inputs: Text, attribute: Attribute, **options: Any
) -> Scores | list[Scores]:
    sites = check_contracts(model)
    one_of("aggregate", asked.aggregate, AGGREGATES)
    check_trained_head(model)
    picked = chosen("layers", asked.layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    encoded = encode(
        model,
        inputs,
        attention_mask=asked.attention_mask,
        token_type_ids=asked.token_type_ids,
        prepend_bos=asked.prepend_bos,
    )
    targets = targets_of(model, encoded, asked.target)
    tokens = target_tokens(model, asked.target_ids)
    metadata = provenance(model) | {"engine": "captum", "options": {"aggregate": asked.aggregate, **options}}
    metadata["rollout"] = "undefined: one row a layer"
    metadata["versions"] = metadata["versions"] | {"captum": version("captum")}
    scored: dict[int, Scores] = {}
    target_logits = TargetLogits(model)
    with quiet(model):
        for sentence, target in zip(encoded.sentences, targets, strict=True):
            prediction, outputs = predict(model, target_logits, sites, sentence, target, tokens, picked)
            rows, notes = [], []
            for layer in picked:
                attribution, noted = attribute(prediction, layer, outputs.pop(layer))
                rows.append(AGGREGATES[asked.aggregate](attribution.detach().double()))
                notes.append(noted)
            values = torch.stack(rows).to(result_dtype(model))
            noted_by_layer = {name: [noted[name] for noted in notes] for name in notes[0]}
            told = metadata | {"target_ids": prediction.tokens} | noted_by_layer
            scored[sentence.row] = _target_row(method, values, picked, sites, sentence, target, told)
    return encoded.in_order(scored)


def _target_row(
    method: str,
    values: Float[Tensor, "layer 1 src"],
    layers: tuple[int, ...],
    sites: Sites,
    sentence: Sentence,
    target: int,
    metadata: dict[str, Any],
) -> Scores:
    return Scores(
        values=values,
        method=method,
        layers=layers,
        dest_tokens=(sentence.tokens[target],),
        src_tokens=sentence.tokens,
        dest_positions=(target,),
        src_positions=tuple(range(len(sentence))),
        n_layers=sites.n_layers,
        n_positions=len(sentence),
        word_ids=sentence.word_ids,
        metadata=metadata | {"special": list(sentence.special)} | described(sites.stack, sentence),
    )


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ModuleNotFoundError as error:
        raise DependencyError(
            "the gradient methods are Captum's, and it is not installed: pip install 'tl-vzero[gradients]'"
        ) from error
    attributions: ModuleType = captum.attr
    return attributions


def _check_steps(steps: int) -> None:
    expected = f"an integer of at least 1, such as {STEPS}"
    at_least_one("steps", steps, expected, otherwise=f"; {STEPS} are the default")
