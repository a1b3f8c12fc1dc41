"""Controls of the evaluations: a model that learned nothing, and Value Zeroing by other distances and baselines.

The paper: with other metrics, and with representations normalised before they are compared, the pattern stays.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from tl_vzero.choices import integer
from tl_vzero.distance import DISTANCES, Distance, distance_named
from tl_vzero.errors import InputError, ModelError
from tl_vzero.evaluate.rows import TargetRows, target_rows
from tl_vzero.evaluate.sentences import TokenizedSet
from tl_vzero.inputs.baselines import BaselineValues
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
    # A function under the name of another distance of the library's must not pass for that one.
    another = {name for name in wanted if name in DISTANCES and functions[name] is not DISTANCES[name]}
    by_name = {f"{name}{' (a callable)' if name in another else ''}": distance for name, distance in wanted.items()}
    rows = _rows_by("distance", by_name, model, layout, progress)
    return replace(rows, settings={**rows.settings, "options": {"distances": list(wanted)}})


def rows_by_baseline(
    model: nn.Module,
    layout: TokenizedSet,
    baselines: Mapping[str, str | Tensor | BaselineValues],
    *,
    progress: bool = False,
) -> TargetRows:
    """Value Zeroing's rows of the target under several baselines; the methods are "value_zeroing, NAME".

    `baselines` are what `value_zeroing` takes, by the name to give them. For `alignment_of` and `mass_of`. Raises
    InputError for none, and what `value_zeroing` raises for a bad one.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> list(rows_by_baseline(model, tokenize_examples(model, agreement_examples()[:3]), {"mean": "mean"}).rows)
    ['value_zeroing, mean']
    """
    if not baselines:
        raise InputError("baselines are empty: expected at least one, such as {'mean': 'mean'}")
    rows = _rows_by("baseline", baselines, model, layout, progress)
    return replace(rows, settings={**rows.settings, "options": {"baselines": list(baselines)}})


def _rows_by(
    option: str, values: Mapping[str, Any], model: nn.Module, layout: TokenizedSet, progress: bool
) -> TargetRows:
    """Value Zeroing's rows with each value of one option, by methods of its name."""
    rows = {}
    for name, value in values.items():
        options = {"value_zeroing": {option: value}}
        measured = target_rows(model, layout, ["value_zeroing"], options=options, progress=progress)
        rows[f"value_zeroing, {name}"] = measured.rows["value_zeroing"]
    return replace(measured, rows=rows)
