"""Controls: a model that learned nothing, and other ways to measure how far a representation moved."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.distance import DISTANCES, Distance, cosine, distance_named, wide_dtype
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.evaluate.rows import TargetRows, target_rows
from tl_vzero.evaluate.sentences import TokenizedSet
from tl_vzero.models.facts import Facts, facts_of, remember
from tl_vzero.models.load import load_model
from tl_vzero.models.sites import hf_model_of


def randomised_copy(model: nn.Module, seed: int = 0) -> nn.Module:
    """A model of the same configuration and tokenizer with weights as before training.

    Its head counts as trained or not as the model's does. The caller's random state is left as it is.
    Raises ModelError for a model without a Hugging Face configuration inside (HookedEncoder, HookedTransformer).

    >>> import tl_vzero
    >>> from tl_vzero.models.facts import facts_of
    >>> facts_of(randomised_copy(tl_vzero.load_model("agreement-mini"))).name
    'agreement-mini, random weights'
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputTypeError(f"seed is {type(seed).__name__}: expected an integer")
    hf_model: Any = hf_model_of(model)
    if hf_model is None:
        raise ModelError(
            f"{type(model).__name__} holds no Hugging Face model, whose configuration says how weights begin: expected "
            "a model of load_model or another TransformerBridge"
        )
    facts, first = facts_of(model), next(hf_model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(hf_model)(copy.deepcopy(hf_model.config)).eval()
        untrained = load_model(fresh.to(device=first.device, dtype=first.dtype), facts.tokenizer)
    remember(untrained, Facts(name=f"{facts.name}, random weights", tokenizer=facts.tokenizer, head=facts.head))
    return untrained


def manhattan(
    clean: Float[Tensor, "*#batch feature"], changed: Float[Tensor, "*#batch feature"]
) -> Float[Tensor, "*batch"]:
    """Sum of absolute differences, in the units of the residual stream.

    >>> manhattan(torch.tensor([3.0, 0.0]), torch.tensor([0.0, -4.0])).item()
    7.0
    """
    return _difference(clean, changed).abs().sum(-1)


def unit_euclidean(
    clean: Float[Tensor, "*#batch feature"], changed: Float[Tensor, "*#batch feature"]
) -> Float[Tensor, "*batch"]:
    """Euclidean distance between the two vectors after each is brought to length 1.

    >>> unit_euclidean(torch.tensor([3.0, 0.0]), torch.tensor([7.0, 0.0])).item()
    0.0
    """
    # Half the square of this distance is the cosine distance, which is measured without cancellation.
    square: Tensor = 2 * cosine(clean, changed)
    return square.sqrt()


def standardised_euclidean(
    clean: Float[Tensor, "*#batch feature"], changed: Float[Tensor, "*#batch feature"]
) -> Float[Tensor, "*batch"]:
    """Euclidean distance between the two vectors after each is brought to mean 0 and variance 1 over its features.

    >>> standardised_euclidean(torch.tensor([3.0, 1.0]), torch.tensor([8.0, 4.0])).item()
    0.0
    """
    return (2 * clean.shape[-1] * cosine(_centred(clean), _centred(changed))).sqrt()


def _centred(vectors: Tensor) -> Tensor:
    wide = vectors.to(wide_dtype(vectors.device))
    return wide - wide.mean(dim=-1, keepdim=True)


def _difference(clean: Tensor, changed: Tensor) -> Tensor:
    difference: Tensor = clean.to(wide_dtype(clean.device)) - changed.to(wide_dtype(clean.device))
    return difference


# The paper: with other metrics, and with representations normalised before they are compared, the pattern stays.
OTHER_DISTANCES: Mapping[str, str | Distance] = MappingProxyType(
    {
        "cosine": "cosine",
        "euclidean": "euclidean",
        "manhattan": manhattan,
        "unit_euclidean": unit_euclidean,
        "standardised_euclidean": standardised_euclidean,
    }
)


def rows_by_distance(
    model: nn.Module,
    tokenized: TokenizedSet,
    distances: Mapping[str, str | Distance] | None = None,
    *,
    progress: bool = False,
) -> TargetRows:
    """Value Zeroing's rows of the target by several distances; the methods are "value_zeroing, NAME".

    `distances` are names or functions by the name to give them; by default `OTHER_DISTANCES`. For `alignment_of` and
    `mass_of`. Raises InputError for none or an unknown one.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> list(rows_by_distance(model, tokenize_examples(model, agreement_examples()[:3]), {"L2": "euclidean"}).rows)
    ['value_zeroing, L2']
    """
    wanted = OTHER_DISTANCES if distances is None else distances
    if not wanted:
        raise InputError(f"distances are empty: expected at least one, such as {', '.join(OTHER_DISTANCES)}")
    for distance in wanted.values():
        distance_named(distance)
    computed = {
        _label(name, distance): target_rows(
            model, tokenized, ["value_zeroing"], options={"value_zeroing": {"distance": distance}}, progress=progress
        )
        for name, distance in wanted.items()
    }
    first = next(iter(computed.values()))
    rows = {f"value_zeroing, {label}": by_distance.rows["value_zeroing"] for label, by_distance in computed.items()}
    return replace(first, rows=rows, settings={**first.settings, "options": {"distances": list(wanted)}})


def _label(name: str, distance: str | Distance) -> str:
    """The name, and where another distance of the library's has it, that this is not that one."""
    other = name in DISTANCES and distance_named(distance)[1] is not DISTANCES[name]
    return f"{name} (a callable)" if other else name
