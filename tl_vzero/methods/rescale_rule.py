"""DeepLIFT's rescale rule, by Captum: at which activations of a model it acts, and what it leaves behind there.

Captum changes the backward pass of modules of the types that it knows, and of nothing else: attention, norms, GELU and
SiLU pass plain gradients. What it cannot see, because the model calls a function, it cannot change either.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.methods.prediction import Prediction
from tl_vzero.models.facts import facts_of
from tl_vzero.models.run import run_logits, temporary_pre_hooks
from tl_vzero.models.sites import hf_model_of
from tl_vzero.models.turns import turn_on

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
