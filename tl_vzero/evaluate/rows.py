"""The target's row of every method, for many examples.

Only the target's row is computed where only it is needed: examples go in groups of one target position, and each
group asks every method for that one destination. A rollout needs whole maps.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from tl_vzero.choices import callable_name, chosen, integer, one_of
from tl_vzero.data.examples import Skipped
from tl_vzero.errors import DependencyError, InputError, ModelError
from tl_vzero.evaluate.sentences import TokenizedExample, TokenizedSet
from tl_vzero.inputs.baselines import Baseline, BaselineValues
from tl_vzero.inputs.text import encode
from tl_vzero.methods.apply import scores_on_one_run
from tl_vzero.methods.plan import Planned, plan_of
from tl_vzero.models.contracts import check_contracts, provenance
from tl_vzero.registry import METHODS
from tl_vzero.rollout import normalize_rows, roll_out
from tl_vzero.scores import Scores

Logit = Literal["good", "difference"]

SENTENCES_PER_CALL = 128  # a choice: bounds a call's padding, and the wait between two steps of the bar


@dataclass(frozen=True, eq=False)
class TargetRows:
    """The target's row of each method: `rows[method][n]` is `[layer, src]` of example n, in float64.

    `left_out` are methods that were not named and not computed, with the reason; `skipped` are examples that the
    protocol cannot hold. `settings` say of what model, and how.
    """

    examples: tuple[TokenizedExample, ...]
    layers: tuple[int, ...]
    rows: Mapping[str, tuple[Float[Tensor, "layer _"], ...]]
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]


def target_rows(
    model: nn.Module,
    tokenized: TokenizedSet,
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    layers: Iterable[int] | int | None = None,
    normalized: bool = True,
    rolled_out: bool = False,
    logit: Logit = "good",
    progress: bool = False,
) -> TargetRows:
    """The target's row of each method and layer, for every tokenized example (see `tokenize_examples`).

    `methods` are names of `METHODS`; by default all except the slow ones, and what is undefined for the model is left
    out with the reason. `options` are a method's own by its name. Rows are normalised, or rolled out to each layer, or
    as the method gives them. Gradient methods explain the logit of the right form, or its difference to the wrong one.
    `random` is drawn anew for each example.

    Raises InputError or InputTypeError for a bad argument, ModelError where a named method is undefined for the
    model, ScoresError where its rows cannot be normalised or rolled out, and leaves the model as it was.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> rows = target_rows(model, tokenize_examples(model, agreement_examples()[:3]), ["value_zeroing"]).rows
    >>> [list(row.shape) for row in rows["value_zeroing"]]
    [[4, 11], [4, 10], [4, 10]]
    """
    plan, left_out = _plan(tokenized.examples, methods, options)
    n_layers = check_contracts(model).n_layers
    check_all_layers(layers, rolled_out)
    layers = chosen("layers", layers, n_layers, "the model has") or tuple(range(n_layers))
    one_of("logit", logit, get_args(Logit))
    if logit == "difference" and any("target" in planned.method.needs for planned in plan):
        check_wrong_forms(tokenized.examples, 'logit="difference"')
    total = len(tokenized.examples) * len(plan)
    with tqdm(total=total, disable=not progress, desc="target rows", unit="row", leave=False) as bar:
        computation = _Computation(model, tokenized.examples, layers, normalized, rolled_out, logit, bar)
        rows = computation.run(plan)
    named = {
        name: {key: _option_name(value) for key, value in values.items()} for name, values in (options or {}).items()
    }
    how = {"normalized": normalized, "rolled_out": rolled_out, "logit": logit, "options": named}
    return with_settings(model, tokenized, layers, rows, left_out | computation.undefined, how)


def _option_name(value: Any) -> Any:
    """An option as a setting that JSON holds."""
    if isinstance(value, Tensor):
        return Baseline("tensor", value).identity
    if isinstance(value, BaselineValues):
        return Baseline(value.name, value.values).identity
    return callable_name(value) if callable(value) else value


def with_settings(
    model: nn.Module,
    tokenized: TokenizedSet,
    layers: tuple[int, ...],
    rows: Mapping[str, tuple[Tensor, ...]],
    left_out: Mapping[str, str],
    how: Mapping[str, Any],
) -> TargetRows:
    """Rows with their examples and settings: the model, the protocol, and how they were computed."""
    settings = {**provenance(model), "protocol": tokenized.protocol, **how}
    return TargetRows(tokenized.examples, layers, rows, left_out, tokenized.skipped, settings)


def _plan(examples: Sequence[TokenizedExample], methods: Any, options: Any) -> tuple[list[Planned], dict[str, str]]:
    if methods is not None:
        return plan_of(methods, options, METHODS), {}
    longest = max(map(len, examples))
    left_out = {
        name: method.unasked for name, method in METHODS.items() if method.unasked and name not in (options or {})
    }
    for name, method in METHODS.items():
        if longest > (method.compared_up_to or longest):
            left_out[name] = f"a sentence has {longest} tokens, and its cost grows fast past {method.compared_up_to}"
    plan = plan_of([name for name in METHODS if name not in left_out], options, METHODS)
    # Only a method with options counts as named: the others are left out where they are undefined.
    return [replace(planned, named=planned.name in (options or {})) for planned in plan], left_out


def check_wrong_forms(examples: Sequence[TokenizedExample], choice: str) -> None:
    """Raise InputError for examples without a wrong form, where a choice compares two forms."""
    without = [sentence.example.id for sentence in examples if sentence.encoding.bad_id is None]
    if without:
        raise InputError(
            f"{choice} compares two forms, and {len(without)} of {len(examples)} examples have no wrong form, "
            f"first {without[0]}: expected minimal pairs"
        )


def check_all_layers(layers: object, rolled_out: bool) -> None:
    """Raise InputError for a rollout of some layers."""
    if rolled_out and layers is not None:
        raise InputError(f"layers={layers!r} and rolled_out=True: a rollout goes through all layers; leave layers out")


def padded(
    examples: Sequence[TokenizedExample],
) -> tuple[Int[Tensor, "sentence position"], Bool[Tensor, "sentence position"]]:
    """Ids of several examples, padded on the right, and the mask that is False at padding."""
    ids = pad_sequence([sentence.encoding.ids for sentence in examples], batch_first=True)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([[len(sentence)] for sentence in examples])


@dataclass(frozen=True, eq=False)
class _Computation:
    """What all methods share, and what is there so far: rows by method and index of the example, and reasons."""

    model: nn.Module
    examples: tuple[TokenizedExample, ...]
    layers: tuple[int, ...]
    normalized: bool
    rolled_out: bool
    logit: Logit
    bar: Any
    rows: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)

    def run(self, plan: Sequence[Planned]) -> dict[str, tuple[Tensor, ...]]:
        """The rows of every method that is defined; the reasons of the others are in `undefined`."""
        self.rows.update({planned.name: {} for planned in plan})
        for planned in plan:
            if planned.name == "random":
                drawn = random_rows(self.examples, self.layers, self.normalized, self.rolled_out, **planned.options)
                self.rows["random"] = dict(enumerate(drawn))
                self.bar.update(len(self.examples))
            elif planned.method.layer is None:
                self.add_called(planned)
        shared = [planned for planned in plan if planned.method.layer is not None and planned.name != "random"]
        if shared:
            self.add_on_shared_runs(shared)
        return {
            name: tuple(rows[index] for index in range(len(self.examples)))
            for name, rows in self.rows.items()
            if name not in self.undefined
        }

    def add_on_shared_runs(self, plan: Sequence[Planned]) -> None:
        """Methods that read a layer by itself, all on the same clean runs."""
        sites = check_contracts(self.model)
        for group in self.groups(lambda sentence: sentence.dest):
            ids, mask = padded([self.examples[index] for index in group])
            encoded = encode(self.model, ids, attention_mask=mask)
            of_group = [
                replace(planned, destinations=self.destinations(planned, group))
                for planned in plan
                if planned.name not in self.undefined
            ]
            scored = scores_on_one_run(of_group, self.model, sites, encoded, self.layers)
            for planned in plan:
                by_row = scored.get(planned.name, {})
                if isinstance(by_row, ModelError):
                    self.undefined[planned.name] = planned.reason(by_row)  # raises it where the method was named
                else:
                    self.add(planned, {group[row]: scores for row, scores in by_row.items()})
            self.bar.update(len(group) * len(plan))

    def add_called(self, planned: Planned) -> None:
        """A method that is called as a user calls it."""
        needs_target = "target" in planned.method.needs
        if self.rolled_out and needs_target and not planned.named:
            self.undefined[planned.name] = "it gives the target's row only, and a rollout needs whole maps"
            self.bar.update(len(self.examples))
            return
        try:
            for group in self.groups(self.target_ids if needs_target else lambda sentence: sentence.dest):
                arguments: dict[str, Any] = {}
                if needs_target:
                    arguments["target"] = [self.examples[index].dest for index in group]
                    arguments["target_ids"] = self.target_ids(self.examples[group[0]])
                elif "destinations" in (planned.method.options or ()):
                    arguments["destinations"] = self.destinations(planned, group)
                if not self.rolled_out:
                    arguments["layers"] = self.layers
                ids, mask = padded([self.examples[index] for index in group])
                scored = planned.called(self.model, ids, len(group), attention_mask=mask, **arguments)
                self.add(planned, dict(zip(group, scored, strict=True)))
                self.bar.update(len(group))
        except (ModelError, DependencyError) as error:
            self.undefined[planned.name] = planned.reason(error)
            self.bar.update(len(self.examples))

    def add(self, planned: Planned, scored: Mapping[int, Scores]) -> None:
        """Keep the target's row of some examples' maps."""
        self.rows[planned.name] |= {
            index: row_of(scores, self.examples[index].dest, self.normalized, self.rolled_out)
            for index, scores in scored.items()
        }

    def groups(self, key: Callable[[TokenizedExample], Hashable]) -> list[list[int]]:
        """Indices of the examples that go into one call, from short to long."""
        groups: dict[Hashable, list[list[int]]] = {}
        for index in sorted(range(len(self.examples)), key=lambda index: len(self.examples[index])):
            calls = groups.setdefault(key(self.examples[index]), [[]])
            if len(calls[-1]) == SENTENCES_PER_CALL:
                calls.append([])
            calls[-1].append(index)
        return [call for calls in groups.values() for call in calls]

    def destinations(self, planned: Planned, group: Sequence[int]) -> tuple[int, ...] | None:
        """The one destination of a group; all where maps are to be multiplied, unless the method does so itself."""
        through = planned.method.layer is not None and planned.method.layer.through is not None
        return None if self.rolled_out and not through else (self.examples[group[0]].dest,)

    def target_ids(self, sentence: TokenizedExample) -> int | tuple[int, int]:
        """The token whose logit is explained, or the two whose difference is."""
        good, bad = sentence.encoding.good_id, sentence.encoding.bad_id
        return (good, bad) if self.logit == "difference" and bad is not None else good


def row_of(scores: Scores, dest: int, normalized: bool, rolled_out: bool) -> Float[Tensor, "layer src"]:
    """A destination's row in float64, rolled out, normalised or raw; what is rolled out already stays as it is."""
    if rolled_out and scores.stage != "rollout":
        scores = scores.rollout()
    elif normalized:
        scores = scores.normalized()
    return scores.row(dest).detach().cpu().double()


def random_rows(
    examples: Sequence[TokenizedExample], layers: Sequence[int], normalized: bool, rolled_out: bool, seed: int = 0
) -> tuple[Tensor, ...]:
    """Each example's row of random maps, drawn for it alone; raises InputTypeError for a seed that is no integer."""
    integer("seed", seed)
    draw = partial(random_row, n_layers=max(layers) + 1, rolled_out=rolled_out, normalized=normalized)
    return tuple(
        draw(len(one), one.dest, causal=one.target_position is None, seed=(seed, index))[list(layers)]
        for index, one in enumerate(examples)
    )


def random_row(
    length: int, dest: int, n_layers: int, *, causal: bool, rolled_out: bool, normalized: bool, seed: Sequence[int]
) -> Float[Tensor, "layer src"]:
    """A destination's row of uniform random maps, drawn anew for each seed.

    The method `random` gives every sentence of one length the same map; as a sample of examples that is one draw, and
    its mean may be far from what chance gives.
    """
    drawn = torch.from_numpy(np.random.default_rng(seed).random((n_layers, length, length)))
    maps = drawn.tril() if causal else drawn
    if rolled_out:
        maps = roll_out(normalize_rows(maps), identity=False)
    elif normalized:
        maps = normalize_rows(maps)
    return maps[:, dest]
