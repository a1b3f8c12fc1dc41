"""Controls of the evaluations: a model that learned nothing, and Value Zeroing by every distance of the library.

The paper: with other metrics, and with representations normalised before they are compared, the pattern stays.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from tl_vzero.choices import integer
from tl_vzero.distance import DISTANCES, Distance, distance_named
from tl_vzero.errors import InputError, ModelError
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
    integer("seed", seed)
    hf_model: Any = hf_model_of(model)
    if hf_model is None:
        expected = "expected a model of load_model or another TransformerBridge, whose configuration says how it begins"
        raise ModelError(f"{type(model).__name__} holds no Hugging Face model: {expected}")
    facts, first = facts_of(model), next(hf_model.parameters())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        fresh = type(hf_model)(copy.deepcopy(hf_model.config)).eval()
        control = load_model(fresh.to(device=first.device, dtype=first.dtype), facts.tokenizer)
    remember(control, Facts(name=f"{facts.name}, random weights", tokenizer=facts.tokenizer, head=facts.head))
    return control


def rows_by_distance(
    model: nn.Module,
    layout: TokenizedSet,
    distances: Mapping[str, str | Distance] | None = None,
    *,
    progress: bool = False,
) -> TargetRows:
    """Value Zeroing's rows of the target by several distances; the methods are "value_zeroing, NAME".

    `distances` are names or functions by the name to give them; by default all of `DISTANCES`. For `alignment_of` and
    `mass_of`. Raises InputError for none or an unknown one.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> list(rows_by_distance(model, tokenize_examples(model, agreement_examples()[:3]), {"L2": "euclidean"}).rows)
    ['value_zeroing, L2']
    """
    wanted = DISTANCES if distances is None else distances
    if not wanted:
        raise InputError(f"distances are empty: expected at least one, such as {', '.join(DISTANCES)}")
    functions = {name: distance_named(distance)[1] for name, distance in wanted.items()}
    rows = {}
    for name, distance in wanted.items():
        options = {"value_zeroing": {"distance": distance}}
        measured = target_rows(model, layout, ["value_zeroing"], options=options, progress=progress)
        # A function under the name of another distance of the library's must not pass for that one.
        another = name in DISTANCES and functions[name] is not DISTANCES[name]
        rows[f"value_zeroing, {name}{' (a callable)' if another else ''}"] = measured.rows["value_zeroing"]
    return replace(measured, rows=rows, settings={**measured.settings, "options": {"distances": list(wanted)}})
