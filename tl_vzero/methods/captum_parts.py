"""One sentence's prediction as a function of what a block writes: what the gradient methods differentiate."""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.clean import check_clean_output, ids_of, token_types_of
from tl_vzero.errors import InputError, ModelError
from tl_vzero.inputs.text import Inputs, Sentence
from tl_vzero.models.facts import facts_of, vocabulary_size
from tl_vzero.models.run import (
    LOGITS_PER_BATCH,
    TargetLogits,
    remembering_hooks,
    run_logits,
    temporary_pre_hooks,
)
from tl_vzero.models.sites import Sites, hf_model_of
from tl_vzero.models.turns import turn_on
from tl_vzero.targets import find_target


@dataclass(frozen=True, eq=False)
class Prediction:
    """The logit of a token at the target, or the difference of two, in one sentence."""

    model: nn.Module
    sites: Sites
    ids: Int[Tensor, "position"]
    target: int
    good: int
    bad: int | None
    logits: TargetLogits
    token_types: Int[Tensor, "1 position"] | None

    @property
    def copies(self) -> int:
        """How many copies of the sentence share a forward pass."""
        unembedded = self.logits.positions_unembedded(self.ids.unsqueeze(0)) * vocabulary_size(self.model)
        return max(1, LOGITS_PER_BATCH // unembedded)

    @property
    def tokens(self) -> list[int]:
        """The token whose logit it is, or the pair (good, bad)."""
        return [self.good] if self.bad is None else [self.good, self.bad]

    def from_block(self, layer: int) -> Callable[[Tensor], Tensor]:
        """The metric as a function of a block's output, `[copy, position, feature]` to `[copy]`."""

        def metric(outputs: Float[Tensor, "copy position feature"]) -> Float[Tensor, "copy"]:
            logits = self.logits.after(self.sites.outputs[layer], outputs, self.ids, self.target, self.token_types)
            return logits[:, self.good] if self.bad is None else logits[:, self.good] - logits[:, self.bad]

        return metric

    def output_for(self, token: int, layer: int) -> Float[Tensor, "1 position feature"]:
        """What a block writes where every position holds one token."""
        ids = torch.full_like(self.ids, token)
        outputs, _ = _outputs_and_logits(self.logits, self.sites, [layer], ids, self.target, self.token_types)
        return outputs[layer]


def predict(
    model: nn.Module,
    target_logits: TargetLogits,
    sites: Sites,
    sentence: Sentence,
    target: int,
    tokens: tuple[int, int | None] | None,
    layers: Sequence[int],
) -> tuple[Prediction, dict[int, Tensor]]:
    """A sentence's prediction, by default of its likeliest token, and the chosen blocks' clean outputs."""
    (ids,), token_types = ids_of(model, [sentence]), token_types_of(model, [sentence])
    outputs, logits = _outputs_and_logits(target_logits, sites, layers, ids, target, token_types)
    for layer, output in outputs.items():
        check_clean_output(sites.outputs[layer], output)
    # Now, and not in a run on which Captum has put hooks of its own, is found out what may be left out.
    target_logits.after(sites.outputs[layers[0]], outputs[layers[0]], ids, target, token_types)
    good, bad = tokens or (int(logits[0].argmax()), None)
    return Prediction(model, sites, ids, target, good, bad, target_logits, token_types), outputs


def _outputs_and_logits(
    target_logits: TargetLogits,
    sites: Sites,
    layers: Sequence[int],
    ids: Tensor,
    target: int,
    token_types: Tensor | None,
) -> tuple[dict[int, Tensor], Tensor]:
    outputs: dict[str, Tensor] = {}
    hooks = remembering_hooks([sites.outputs[layer] for layer in layers], outputs)
    logits = target_logits.at(ids.unsqueeze(0), torch.tensor([target], device=ids.device), hooks, token_types)
    return {layer: outputs[sites.outputs[layer]] for layer in layers}, logits


def targets_of(model: nn.Module, encoded: Inputs, target: int | Sequence[int] | None) -> list[int]:
    """Each sentence's target: one position for all, or one for each sentence, or by default the only mask token."""
    sentences = encoded.sentences
    each: list[Any] = list(target) if isinstance(target, list | tuple | range) else [target] * len(sentences)
    if len(each) != len(sentences):
        raise InputError(
            f"target holds {len(each)} positions for {len(sentences)} sentences: expected one position for all, or "
            "one for each"
        )
    return [find_target(model, sentence, own) for sentence, own in zip(sentences, each, strict=True)]


# DeepLIFT's rescale rule, by Captum: at which activations of a model it acts, and what it leaves behind there.
#
# Captum changes the backward pass of modules of the types that it knows, and of nothing else: attention, norms, GELU
# and SiLU pass plain gradients. What it cannot see, because the model calls a function, it cannot change either.

RESCALED = (nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus, nn.Softmax)
HOOK_TABLES = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
# The names that configurations have for them.
NAMES = {
    "relu": nn.ReLU,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
    "softplus": nn.Softplus,
}


def check_rescale_rule(model: nn.Module) -> None:
    """Raise ModelError where the activation has a rescale rule and is no module that Captum could see."""
    name = str(getattr(model.cfg, "act_fn", "")).lower()
    kind = NAMES.get(name)
    if kind is not None and not any(type(module) is kind for module in _modules_with_a_rule(model)):
        raise ModelError(
            f"deep_lift is undefined for {facts_of(model).name}: it computes {name} by a function, and Captum's "
            "rescale rule acts on modules only; load the Hugging Face model by tl_vzero.load_model, or take "
            "integrated_gradients"
        )


def rescaled_above(prediction: Prediction, layer: int) -> list[nn.Module]:
    """The modules that the rescale rule acts on between a block's output and the logits, in order.

    Raises ModelError for one that runs twice: it would need a rule for each run.
    """
    calls: list[nn.Module] = []

    def note(module: nn.Module, _: Any) -> None:
        calls.append(module)

    def begin(_: Tensor, *, hook: Any) -> None:
        calls.clear()

    with temporary_pre_hooks(prediction.model, _modules_with_a_rule(prediction.model), note):
        hooks = [(prediction.sites.outputs[layer], begin)]
        run_logits(prediction.model, prediction.ids.unsqueeze(0), hooks, prediction.token_types)
    if len(set(calls)) < len(calls):
        raise ModelError(
            f"deep_lift is undefined for {facts_of(prediction.model).name}: blocks share an activation module, and the "
            "rescale rule needs one for each; take integrated_gradients"
        )
    return calls


def _modules_with_a_rule(model: nn.Module) -> list[nn.Module]:
    # A bridge's own tree leaves out parts of the Hugging Face model that it wraps.
    roots = [root for root in (model, hf_model_of(model)) if root is not None]
    found = {id(module): module for root in roots for module in root.modules() if type(module) in RESCALED}
    return list(found.values())


class Readout(nn.Module):
    """A metric as the module that Captum asks for, holding what it is to rescale and nothing else."""

    def __init__(self, metric: Callable[[Tensor], Tensor], rescaled: Sequence[nn.Module]) -> None:
        super().__init__()
        self.metric = metric
        self.rescaled = nn.ModuleList(rescaled)

    def forward(self, outputs: Float[Tensor, "copy position feature"]) -> Float[Tensor, "copy"]:
        return self.metric(outputs)


@contextmanager
def nothing_left_on(model: nn.Module, modules: Sequence[nn.Module]) -> Iterator[None]:
    """Take away what Captum leaves on modules: activations that no gradient reached, hooks after an interrupt."""
    with turn_on(model) as turn, warnings.catch_warnings():
        for module in modules:
            turn.undo_by(partial(_take_away_what_is_new, module, _attributes_and_hooks(module)))
        # It announces its hooks, which it takes away again.
        warnings.filterwarnings("ignore", message=r"Setting forward, backward hooks", category=UserWarning)
        yield


def _attributes_and_hooks(module: nn.Module) -> tuple[set[str], dict[str, set[int]]]:
    return set(vars(module)), {table: set(getattr(module, table)) for table in HOOK_TABLES}


def _take_away_what_is_new(module: nn.Module, before: tuple[set[str], dict[str, set[int]]]) -> None:
    attributes, hooks = before
    for name in set(vars(module)) - attributes:
        delattr(module, name)
    for table, numbers in hooks.items():
        for number in set(getattr(module, table)) - numbers:
            del getattr(module, table)[number]


# Integrated gradients along a straight path, in as many pieces as completeness asks for.

# What the attributions may miss of the change of the metric, as a share of it, before a piece is cut.
ACCURACY = 1e-3
MOST_PIECES = 16
ROUNDING = 8  # machine epsilons of the metric that no cut can win back
# A norm turns a vector round most sharply where it is near zero, the usual baseline.
FIRST_CUT = 1 / 32


@dataclass(frozen=True, eq=False)
class Piece:
    """A part of the path, in shares of the way from the baseline, and what was found on it.

    `error` is what its attributions sum to above the change of the metric.
    """

    start: float
    end: float
    attribution: Float[Tensor, "1 position feature"]
    error: float

    @property
    def cut(self) -> float:
        """Where to cut it in two."""
        return self.end * FIRST_CUT if self.start == 0 else (self.start + self.end) / 2


def integrate(
    integrated_gradients: Any,
    metric: Callable[[Tensor], Tensor],
    output: Float[Tensor, "1 position feature"],
    baseline: Float[Tensor, "1 position feature"],
    *,
    steps: int,
    copies: int,
) -> tuple[Float[Tensor, "1 position feature"], float, int]:
    """Integrated gradients of a metric: the attributions, their error and the number of pieces.

    Captum's Gauss-Legendre rule with `steps` points does each piece. The attributions of the pieces add up, as the path
    does. The piece with the largest error is cut until the errors are small, or there are too many pieces.
    """

    def at(share: float) -> Tensor:
        return torch.lerp(baseline, output, share)

    def on(start: float, end: float) -> Piece:
        attribution = integrated_gradients(metric).attribute(
            at(end), baselines=at(start), n_steps=steps, method="gausslegendre", internal_batch_size=copies
        )
        found = attribution.detach().double()
        return Piece(start, end, found, found.sum().item() - (reached[end] - reached[start]))

    at_output, at_baseline = metric(output).item(), metric(baseline).item()
    # Captum's own check of completeness would compute each end again.
    reached = {0.0: at_baseline, 1.0: at_output}
    rounding = ROUNDING * torch.finfo(output.dtype).eps * max(abs(at_output), abs(at_baseline))
    allowed = max(ACCURACY * abs(at_output - at_baseline), rounding)
    pieces = [on(0.0, 1.0)]
    while sum(abs(piece.error) for piece in pieces) > allowed and len(pieces) < MOST_PIECES:
        worst = max(pieces, key=lambda piece: abs(piece.error))
        pieces.remove(worst)
        reached[worst.cut] = metric(at(worst.cut)).item()
        pieces += [on(worst.start, worst.cut), on(worst.cut, worst.end)]
    attribution = torch.stack([piece.attribution for piece in pieces]).sum(dim=0)
    return attribution, attribution.sum().item() - (at_output - at_baseline), len(pieces)
