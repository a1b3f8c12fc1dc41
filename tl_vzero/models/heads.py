"""A model's weights as a plain Hugging Face model that can be trained, with a fresh head where it has none."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.models.contracts import PROBE_LENGTH, check_contracts
from tl_vzero.models.facts import facts_of, vocabulary_size
from tl_vzero.models.run import quiet, run_logits
from tl_vzero.models.sites import hf_model_of, kind_of

# What TransformerLens puts between a module's name and its weights.
_WRAPPED = "_original_component."
_SAME = 1e-3  # relative; two orders of summing differ by far less, another model by far more
_NORMAL = 0.02  # BERT's own spread, where a config names none


@dataclass(frozen=True, eq=False)
class Trainable:
    """A Hugging Face masked language model of its own weights; `fresh` names the parameters that start untrained."""

    model: Any
    fresh: frozenset[str]


def trainable_copy(model: nn.Module, *, seed: int = 0) -> Trainable:
    """Copy the masked language model inside a bridge, to train it; one without a trained head gets a fresh one.

    The copy has its own weights, in float64 or else float32, and the model is left as it was. A fresh head is tied to
    the embeddings. Its square matrix starts as the identity, so that the head first compares the representation
    itself with the embeddings; only a matrix of another shape is drawn, by `seed`.

    Raises InputTypeError for what is no TransformerLens model, ModelError for one that is not masked, has no Hugging
    Face weights inside, or computes something else than those (hooks of the user's, processed weights).
    """
    inside = _masked_model_in(model)
    # Its constructor draws random weights, and the user's own draws must not change by that.
    with torch.random.fork_rng():
        own: Any = type(inside)(copy.deepcopy(inside.config))
    first = next(inside.parameters())
    own.to(device=first.device, dtype=first.dtype)
    weights = {name.replace(_WRAPPED, ""): tensor for name, tensor in inside.state_dict().items()}
    missing = sorted(set(own.state_dict()) - set(weights))
    if missing:
        raise ModelError(
            f"the Hugging Face model inside {facts_of(model).name} has no {missing[0]}: expected the weights of a "
            f"{type(inside).__name__}, as tl_vzero.load_model gives"
        )
    own.load_state_dict({name: weights[name] for name in own.state_dict()})
    own.tie_weights()
    _check_same(model, own.eval())
    own.to(torch.float64 if first.dtype == torch.float64 else torch.float32).requires_grad_(True)
    is_headless = facts_of(model).head == "absent"
    return Trainable(own, _give_fresh_head(own, seed) if is_headless else frozenset())


def _masked_model_in(model: nn.Module) -> Any:
    from transformers import PreTrainedModel
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING

    inside = hf_model_of(model)
    name = facts_of(model).name
    if not isinstance(inside, PreTrainedModel):
        raise ModelError(
            f"{name} ({kind_of(model)}) holds no Hugging Face model to fine-tune: expected what tl_vzero.load_model "
            "gives for a name, a folder or a Hugging Face model"
        )
    masked: Any = MODEL_FOR_MASKED_LM_MAPPING
    config = type(inside.config)
    if config not in masked or not isinstance(inside, masked[config]):
        raise ModelError(
            f"{name} is a {type(inside).__name__}, and fine-tuning asks for two words at a mask: expected a masked "
            "language model; a causal model is evaluated as it is, with the target as the next token "
            '(protocol="causal")'
        )
    return inside


def _check_same(model: nn.Module, own: Any) -> None:
    """Compare the copy with what the model really computes: the last block's input, and the logits."""
    sites = check_contracts(model)
    device = next(nn.Module.parameters(model)).device
    ids = (torch.arange(PROBE_LENGTH, device=device) % vocabulary_size(model)).unsqueeze(0)
    seen: list[Tensor] = []

    def look(activation: Tensor, *, hook: Any) -> None:
        seen.append(activation.detach())

    with quiet(model):
        logits = run_logits(model, ids, [(sites.inputs[-1], look)])
        copied = own(input_ids=ids, output_hidden_states=True)
    hidden = copied.hidden_states[sites.n_layers - 1]
    if not (_close(seen[0], hidden) and _close(logits, copied.logits)):
        raise ModelError(
            f"{facts_of(model).name} computes something else than the Hugging Face weights inside it: hooks act on it, "
            "or its weights were processed; expected a model fresh from tl_vzero.load_model"
        )


def _close(one: Tensor, other: Tensor) -> bool:
    # One model in half precision, or with fused attention, adds up in another order.
    size = max(one.abs().max().item(), torch.finfo(torch.float32).tiny)
    allowed = max(_SAME, 10 * torch.finfo(one.dtype).eps)
    return (one - other).abs().max().item() <= allowed * size


def _give_fresh_head(own: Any, seed: int) -> frozenset[str]:
    """Fill every parameter outside the base model; returns their names."""
    own.config.tie_word_embeddings = True
    own.tie_weights()
    of_base = {id(parameter) for parameter in getattr(own, own.base_model_prefix).parameters()}
    fresh = {name: each for name, each in own.named_parameters() if id(each) not in of_base}
    generator = torch.Generator().manual_seed(seed)
    spread = getattr(own.config, "initializer_range", _NORMAL)
    with torch.no_grad():
        for name, parameter in fresh.items():
            parameter.copy_(_start_of(name, parameter, spread, generator))
    return frozenset(fresh)


def _start_of(name: str, parameter: Tensor, spread: float, generator: torch.Generator) -> Tensor:
    if parameter.ndim == 1:
        return torch.zeros(parameter.shape) if name.endswith("bias") else torch.ones(parameter.shape)
    if parameter.ndim == 2 and parameter.shape[0] == parameter.shape[1]:
        return torch.eye(len(parameter))
    return spread * torch.randn(parameter.shape, generator=generator)
