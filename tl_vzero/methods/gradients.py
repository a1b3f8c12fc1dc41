"""Gradient attributions of the prediction to what each block writes, by Captum: one row per layer, the target's.

1. A sentence runs once: each block's clean output, and the token whose logit is explained.
2. That logit is a function of a block's output, which is put in place in further runs (`Prediction.from_block`).
3. Captum attributes the function's value to its input; a token's features are put together by their size or sum.
"""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from types import ModuleType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import Position, at_least_one, chosen, one_of
from tl_vzero.clean import check_clean_output, read_by
from tl_vzero.distance import widened
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ModelError, install_command
from tl_vzero.inputs.encoder_decoder import DecoderInputs, encode_for
from tl_vzero.inputs.text import Ids, Sentence, Text
from tl_vzero.methods.apply import labelled
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.facts import facts_of, vocabulary_size
from tl_vzero.models.run import (
    LOGITS_PER_BATCH,
    Beside,
    TargetLogits,
    quiet,
    remembering_hooks,
    run_logits,
    temporary_pre_hooks,
)
from tl_vzero.models.signals import ReadOnce, signal_of
from tl_vzero.models.sites import Sites, hf_model_of
from tl_vzero.models.turns import takes_turn, turn_on
from tl_vzero.scores import Scores
from tl_vzero.targets import TargetIds, check_trained_head, find_target, one_per_sentence, target_tokens

# What an attribution starts from: zero, a vector of the caller's, or what the block writes for a token.
Baseline = int | Float[Tensor, "feature"] | None
Numbers = Iterable[int] | int | None
Target = Position | Sequence[Position] | None

STEPS = 50  # Captum's own default

# What a token's features are put together by: their size, or their sum with its sign.
AGGREGATES: dict[str, Callable[[Tensor], Tensor]] = {
    "norm": lambda attribution: torch.linalg.vector_norm(attribution, dim=-1),
    "sum": lambda attribution: attribution.sum(dim=-1),
}


@dataclass(eq=False)
class Prediction:
    """The logit of a token at the target of one sentence, or of `tokens` (good, bad) the difference."""

    model: nn.Module
    sites: Sites
    ids: ReadOnce
    target: int
    tokens: list[int]
    logits: TargetLogits
    beside: Beside

    def run(self, layers: Sequence[int], token: int | None = None) -> tuple[dict[int, Tensor], Tensor]:
        """Some blocks' outputs, and the logits at the target; of a token, where it is all that these blocks read."""
        ids, beside = self.ids.unsqueeze(0), self.beside
        if token is not None and self.sites.stack == "decoder":
            assert beside["decoder_ids"] is not None
            beside = Beside(decoder_ids=torch.full_like(beside["decoder_ids"], token))
        elif token is not None:
            ids = torch.full_like(ids, token)
        outputs: dict[str, Tensor] = {}
        hooks = remembering_hooks([self.sites.outputs[layer] for layer in layers], outputs)
        logits = self.logits.at(ids, torch.tensor([self.target], device=ids.device), hooks, **beside)
        return {layer: outputs[self.sites.outputs[layer]] for layer in layers}, logits

    def from_block(self, layer: int) -> Callable[[Tensor], Tensor]:
        """The metric as a function of a block's output, `[copy, position, feature]` to `[copy]`."""

        def metric(outputs: Float[Tensor, "copy position feature"]) -> Float[Tensor, "copy"]:
            logits = self.logits.after(self.sites.outputs[layer], outputs, self.ids, self.target, **self.beside)
            good, *bad = (logits[:, token] for token in self.tokens)
            return good - bad[0] if bad else good

        return metric

    def baseline(self, baseline: Baseline, layer: int, output: Tensor) -> Float[Tensor, "1 position feature"]:
        """The baseline of a block's output; a token's is what the block writes where every position holds it."""
        if baseline is None:
            return torch.zeros_like(output)
        if isinstance(baseline, Tensor):
            return baseline.detach().to(output).expand_as(output)
        return self.run([layer], baseline)[0][layer]


# (the prediction, a layer, its clean output) -> an attribution of that shape, and notes for the metadata.
Attribution = tuple[Tensor, dict[str, Any]]
Attribute = Callable[[Prediction, int, Tensor], Attribution]
Rows = tuple[Float[Tensor, "layer src"], dict[str, Any]]  # the target's, and notes for the metadata


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
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Scores | list[Scores]:
    """Gradient of the target's logit by each block's output, times that output: `[layer, 1, src]`, in logits.

    The one row is that of `target`: a position (default: that of `zero_ablation`), or a list with one for each
    sentence. The logit is that of `target_ids` there, one token or a pair (good, bad) for a difference of logits; by
    default of the clean run's likeliest token. `aggregate` puts a token's features together: "norm" is their Euclidean
    size, "sum" their sum, which has a sign and must not be normalised. Costs a forward and a backward pass per layer.

    Of an encoder-decoder the logit is the decoder's, at a position of `decoder_inputs` (default: the last), and `stack`
    says whose blocks' outputs it is attributed to: with "encoder" the sources are the encoder's positions, with
    "decoder" the decoder's. `decoder_inputs` are as in `value_zeroing`.

    Raises HeadlessModelError for a model whose head was never trained, DependencyError without Captum, InputError or
    InputTypeError for arguments that cannot be used, and leaves the model as it was.
    Source: Shrikumar et al. 2016, "Not Just a Black Box"; Captum's InputXGradient.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = gradient_x_input(model, "the authors [MASK] today.", target_ids=("are", "is"))
    >>> scores.values.shape, scores.dest_tokens
    (torch.Size([4, 1, 7]), ('[MASK]',))
    """
    captum = _captum()

    def attribute(prediction: Prediction, layer: int, output: Tensor) -> Attribution:
        explained = captum.InputXGradient(prediction.from_block(layer))
        return explained.attribute(output.clone().requires_grad_()), {}

    of_stack = stack, decoder_inputs
    call = model, inputs, target, target_ids, aggregate, attention_mask, token_type_ids, layers, prepend_bos, *of_stack
    return _target_rows("gradient_x_input", attribute, {}, *call)


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
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Scores | list[Scores]:
    """Gradients of the target's logit integrated from a baseline to each block's output: `[layer, 1, src]`, in logits.

    With `aggregate="sum"` a row sums to the logit minus the logit at the baseline. `baseline` is the zero vector, a
    vector `[feature]` for every position, or a token's id: then it is what the block writes where every position holds
    that token. The other options are those of `gradient_x_input`.

    The path is integrated by Gauss and Legendre's rule with `steps` points. Where the attributions then miss more than
    a thousandth of the change (a norm near the zero vector does that), the path is cut into pieces of `steps` points
    each, at most 16. `metadata` has the pieces and what is missed, `convergence_delta`, for each layer.
    Costs forward and backward passes of `steps` copies of the sentence per layer, and twice that for each cut.

    Raises what `gradient_x_input` raises, and InputError for less than one step.
    Source: Sundararajan et al. 2017, "Axiomatic Attribution for Deep Networks", equation 1; Captum's
    IntegratedGradients.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = integrated_gradients(model, "the authors [MASK] today.", aggregate="sum", layers=0)
    >>> abs(scores.metadata["convergence_delta"][0]) < 0.01 * abs(scores.values.sum().item())
    True
    """
    captum = _captum()
    expected = f"an integer of at least 1, such as {STEPS}"
    at_least_one("steps", steps, expected, otherwise=f"; {STEPS} are the default")
    name = _checked_baseline(model, baseline)

    def attribute(prediction: Prediction, layer: int, output: Tensor) -> Attribution:
        positions = prediction.logits.positions_unembedded(prediction.ids.unsqueeze(0), **prediction.beside)
        unembedded = positions * vocabulary_size(model)
        explained = captum.IntegratedGradients(prediction.from_block(layer))
        integrated = partial(
            explained.attribute,
            n_steps=steps,
            method="gausslegendre",
            internal_batch_size=max(1, LOGITS_PER_BATCH // unembedded),
        )
        return _integrate(integrated, explained.forward_func, output, prediction.baseline(baseline, layer, output))

    of_stack = stack, decoder_inputs
    call = model, inputs, target, target_ids, aggregate, attention_mask, token_type_ids, layers, prepend_bos, *of_stack
    return _target_rows("integrated_gradients", attribute, {"steps": steps, "baseline": name}, *call)


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
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Scores | list[Scores]:
    """DeepLIFT's contributions of each block's output to the target's logit: `[layer, 1, src]`, in logits.

    As Captum computes it: the rescale rule at activations that it knows as modules (ReLU, tanh and their kin), plain
    gradients elsewhere (attention, norms, GELU, SiLU). `metadata["rescaled"]` names those modules for each layer;
    where there are none, as in BERT and GPT-2, this is gradient times (output - baseline), and with the zero vector
    for a baseline it equals `gradient_x_input`. `metadata["convergence_delta"]` is what the contributions miss of the
    change from the baseline, which plain gradients may leave large. `baseline` and the other options are those of
    `integrated_gradients`. Costs forward and backward passes of two copies of the sentence per layer.

    Raises what `gradient_x_input` raises, and ModelError where the model computes an activation with a rescale rule
    by a function, which Captum cannot see, or runs one module in several blocks.
    Source: Shrikumar et al. 2017, "Learning Important Features Through Propagating Activation Differences";
    Captum's DeepLift.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = deep_lift(model, "the authors [MASK] today.", target_ids=("are", "is"))
    >>> scores.values.shape, scores.metadata["rescaled"]
    (torch.Size([4, 1, 7]), [[], [], [], []])
    """
    captum = _captum()
    check_contracts(model, stack)
    _check_rescale_rule(model)
    name = _checked_baseline(model, baseline)

    def attribute(prediction: Prediction, layer: int, output: Tensor) -> Attribution:
        rescaled = _rescaled_above(prediction, layer)
        explained = captum.DeepLift(_Readout(prediction.from_block(layer), rescaled))
        with _nothing_left_on(prediction.model, rescaled):
            attribution, error = explained.attribute(
                output.clone().requires_grad_(),
                baselines=prediction.baseline(baseline, layer, output),
                return_convergence_delta=True,
            )
        names = [type(module).__name__ for module in rescaled]
        return attribution, {"convergence_delta": error.item(), "rescaled": names}

    of_stack = stack, decoder_inputs
    call = model, inputs, target, target_ids, aggregate, attention_mask, token_type_ids, layers, prepend_bos, *of_stack
    return _target_rows("deep_lift", attribute, {"baseline": name}, *call)


def _target_rows(
    method: str,
    attribute: Attribute,
    options: dict[str, Any],
    model: nn.Module,
    inputs: Text,
    target: Target,
    target_ids: TargetIds | None,
    aggregate: str,
    *common: Any,
) -> Scores | list[Scores]:
    one_of("aggregate", aggregate, AGGREGATES)

    def rows_of(prediction: Prediction, _: Sentence, layers: Sequence[int]) -> Rows:
        outputs, logits = prediction.run(layers)
        for layer, output in outputs.items():
            check_clean_output(prediction.sites.outputs[layer], output)
        prediction.tokens = prediction.tokens or [int(logits[0].argmax())]
        # Now, and not in a run on which Captum has put hooks of its own, is found out what may be left out.
        prediction.from_block(layers[0])(outputs[layers[0]])
        rows, notes = [], []
        for layer in layers:
            attribution, note = attribute(prediction, layer, outputs.pop(layer))
            rows.append(AGGREGATES[aggregate](widened(attribution.detach()))[0])
            notes.append(note)
        return torch.stack(rows), {name: [note[name] for note in notes] for name in notes[0]}

    how = {
        "engine": "captum",
        "options": {"aggregate": aggregate, **options},
        "versions": {"captum": version("captum")},
    }
    return target_rows(method, rows_of, how, model, inputs, target, target_ids, *common)


def target_rows(
    method: str,
    rows_of: Callable[[Prediction, Sentence, Sequence[int]], Rows],
    how: dict[str, Any],
    model: nn.Module,
    inputs: Text,
    target: Target,
    target_ids: TargetIds | None,
    mask: Ids | None,
    token_types: Ids | None,
    layers: Numbers,
    prepend_bos: bool,
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Scores | list[Scores]:
    """Scores of a method that gives the row of a sentence's target; `how` is for the metadata."""
    sites = check_contracts(model, stack)
    if sites.stack == "cross":
        raise InputError(
            f"stack='cross' given, and {method} attributes to what a block writes: expected 'encoder' or 'decoder', "
            "whose blocks write"
        )
    check_trained_head(model)
    chosen_layers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    beside: Any = {"attention_mask": mask, "token_type_ids": token_types, "prepend_bos": prepend_bos}
    encoded = encode_for(model, sites.stack, inputs, decoder_inputs, predicting=True, **beside)
    positions = one_per_sentence(target, len(encoded.sentences))
    targets = list(map(partial(find_target, model), encoded.sentences, positions))
    tokens = [token for token in target_tokens(model, target_ids) or () if token is not None]
    metadata = provenance(model, sites.stack)
    metadata |= how | {"versions": metadata["versions"] | how.get("versions", {})}
    metadata["rollout"] = "undefined: one row a layer"
    scored: dict[int, Scores] = {}
    target_logits = TargetLogits(model)
    with quiet(model):
        for sentence, position in zip(encoded.sentences, targets, strict=True):
            (ids,), read_beside = read_by(model, [sentence])
            prediction = Prediction(model, sites, ids, position, list(tokens), target_logits, read_beside)
            rows, notes = rows_of(prediction, sentence, chosen_layers)
            values = rows.unsqueeze(1).to(result_dtype(model))
            all_notes = metadata | {"target_ids": prediction.tokens} | notes
            scored[sentence.row] = labelled(method, values, chosen_layers, (position,), sites, sentence, all_notes)
    return encoded.in_order(scored)


def _captum() -> ModuleType:
    try:
        import captum.attr
    except ModuleNotFoundError as error:
        raise DependencyError(
            f"the gradient methods are Captum's, and it is not installed: {install_command('gradients')}"
        ) from error
    attributions: ModuleType = captum.attr
    return attributions


def _checked_baseline(model: nn.Module, baseline: Baseline) -> str:
    """What the metadata calls a baseline; raises InputError or InputTypeError."""
    if isinstance(baseline, Tensor):
        width = int(model.cfg.d_model)  # type: ignore[union-attr, arg-type]
        if list(baseline.shape) != [width] or not bool(torch.isfinite(baseline).all()):
            raise InputError(
                f"baseline has shape {list(baseline.shape)}: expected [{width}], one finite number per feature"
            )
    elif isinstance(baseline, bool) or not isinstance(baseline, int | None):
        raise InputTypeError(
            f"baseline is {type(baseline).__name__}: expected a token's id, a tensor [feature], or None for zero"
        )
    elif baseline is not None and signal_of(model) is not None:
        raise InputError(f"baseline is token {baseline}, and this model reads no tokens: expected a tensor [feature]")
    elif baseline is not None and not 0 <= baseline < vocabulary_size(model):
        raise InputError(
            f"baseline is token {baseline}: expected 0 to {vocabulary_size(model) - 1}, the model's vocabulary"
        )
    if baseline is None:
        return "zero"
    return "vector" if isinstance(baseline, Tensor) else f"token {baseline}"


# Integrated gradients along a straight path, in as many pieces as completeness asks for.

# What the attributions may miss of the change of the metric, as a share of it, before a piece is cut.
ACCURACY = 1e-3
MOST_PIECES = 16
ROUNDING = 8  # machine epsilons of the metric, which no cut can win back
# A norm turns a vector round most sharply where it is near zero, the usual baseline.
FIRST_CUT = 1 / 32


def _integrate(
    integrated: Callable[..., Tensor],
    metric: Callable[[Tensor], Tensor],
    output: Float[Tensor, "1 position feature"],
    baseline: Float[Tensor, "1 position feature"],
) -> Attribution:
    """Integrated gradients of a metric, `integrated` on each piece of the path: their attributions add up.

    The piece with the largest error is cut until the errors are small, or there are too many pieces.
    """
    pieces: dict[tuple[float, float], Tensor] = {}
    errors: dict[tuple[float, float], float] = {}  # what a piece's attributions sum to above the metric's change

    def at(share: float) -> Tensor:
        return torch.lerp(baseline, output, share)

    def add_piece(start: float, end: float) -> None:
        """Attribute a part of the path, in shares of the way from the baseline."""
        piece = pieces[start, end] = widened(integrated(at(end), baselines=at(start)).detach())
        errors[start, end] = piece.sum().item() - (metric_at[end] - metric_at[start])

    at_output, at_baseline = metric(output).item(), metric(baseline).item()
    # Captum's own check of completeness would compute each end again.
    metric_at = {0.0: at_baseline, 1.0: at_output}
    rounding = ROUNDING * torch.finfo(output.dtype).eps * max(abs(at_output), abs(at_baseline))
    allowed = max(ACCURACY * abs(at_output - at_baseline), rounding)
    add_piece(0.0, 1.0)
    while sum(map(abs, errors.values())) > allowed and len(pieces) < MOST_PIECES:
        start, end = worst = max(errors, key=lambda piece: abs(errors[piece]))
        del pieces[worst], errors[worst]
        cut = end * FIRST_CUT if start == 0 else (start + end) / 2
        metric_at[cut] = metric(at(cut)).item()
        add_piece(start, cut)
        add_piece(cut, end)
    attribution = torch.stack(list(pieces.values())).sum(dim=0)
    missed = attribution.sum().item() - (at_output - at_baseline)
    return attribution, {"convergence_delta": missed, "pieces": len(pieces)}


# DeepLIFT's rescale rule, by Captum: at which activations of a model it acts, and what it leaves behind there.
#
# Captum changes the backward pass of modules of the types that it knows, and of nothing else: attention, norms, GELU
# and SiLU pass plain gradients. What it cannot see, because the model calls a function, it cannot change either.

RESCALED = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softmax)
HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def _check_rescale_rule(model: nn.Module) -> None:
    """Raise ModelError where the activation has a rescale rule and is no module that Captum could see."""
    name = str(getattr(model.cfg, "act_fn", "")).lower()
    # Configurations write "leaky_relu".
    kinds = [kind for kind in RESCALED if kind.__name__.lower() == name.replace("_", "")]
    if kinds and not any(type(module) in kinds for module in _modules_with_a_rule(model)):
        raise ModelError(
            f"deep_lift is undefined for {facts_of(model).name}: it computes {name} by a function, and Captum's "
            "rescale rule acts on modules only; load the Hugging Face model by tl_vzero.load_model, or take "
            "integrated_gradients"
        )


def _rescaled_above(prediction: Prediction, layer: int) -> list[nn.Module]:
    """The modules that the rescale rule acts on between a block's output and the logits, in order."""
    calls: list[nn.Module] = []

    def note(module: nn.Module, inputs: Any, named: Any) -> None:
        calls.append(module)

    def begin(_: Tensor, *, hook: Any) -> None:
        calls.clear()

    with temporary_pre_hooks(prediction.model, _modules_with_a_rule(prediction.model), note):
        hooks = [(prediction.sites.outputs[layer], begin)]
        run_logits(prediction.model, prediction.ids.unsqueeze(0), hooks, **prediction.beside)
    if len(set(calls)) < len(calls):
        raise ModelError(
            f"deep_lift is undefined for {facts_of(prediction.model).name}: blocks share an activation module, and the "
            "rescale rule needs one for each; take integrated_gradients"
        )
    return calls


def _modules_with_a_rule(model: nn.Module) -> list[nn.Module]:
    # A bridge's own tree leaves out parts of the Hugging Face model that it wraps.
    roots = [root for root in (model, hf_model_of(model)) if root is not None]
    return list(
        {id(module): module for root in roots for module in root.modules() if type(module) in RESCALED}.values()
    )


class _Readout(nn.Module):
    """A metric as the module that Captum asks for, holding what it is to rescale and nothing else."""

    def __init__(self, metric: Callable[[Tensor], Tensor], rescaled: Sequence[nn.Module]) -> None:
        super().__init__()
        self.metric = metric
        self.rescaled = nn.ModuleList(rescaled)

    def forward(self, outputs: Float[Tensor, "copy position feature"]) -> Float[Tensor, "copy"]:
        return self.metric(outputs)


@contextmanager
def _nothing_left_on(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Take away what Captum leaves on modules: activations that no gradient reached, hooks after an interrupt."""
    with turn_on(model) as turn, warnings.catch_warnings():
        for module in modules:
            hooks = {table: set(getattr(module, table)) for table in HOOK_TABLES}
            turn.undo_by(partial(_take_away_what_is_new, module, set(vars(module)), hooks))
        # It announces its hooks, which it takes away again.
        warnings.filterwarnings("ignore", message=r"Setting forward, backward hooks", category=UserWarning)
        yield


def _take_away_what_is_new(module: nn.Module, attributes: set[str], hooks: dict[str, set[int]]) -> None:
    for name in set(vars(module)) - attributes:
        delattr(module, name)
    for table, before_call in hooks.items():
        for hook_id in set(getattr(module, table)) - before_call:
            del getattr(module, table)[hook_id]
