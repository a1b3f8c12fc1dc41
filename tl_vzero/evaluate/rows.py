"""The target's row of every method, for many examples.

Only the target's row is computed where only it is needed: examples go in groups of one target position, and each
group asks every method for that one destination. A rollout needs whole maps.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.api import METHODS
from tl_vzero.choices import callable_name, chosen
from tl_vzero.comparison import Planned, plan_of
from tl_vzero.data.examples import Skipped
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ModelError, PluginError, unknown_name
from tl_vzero.evaluate.statistics import random_row
from tl_vzero.evaluate.tokenized import TokenizedExample, TokenizedSet
from tl_vzero.inputs.text import encode
from tl_vzero.methods.apply import AskedMethod, scores_on_one_run
from tl_vzero.models.contracts import check_contracts, provenance
from tl_vzero.scores import Scores

Logit = Literal["good", "difference"]

SENTENCES_PER_CALL = 128
# Methods that are left out unless they are named.
SLOW = {
    "hta": "it costs a backward pass for each feature of each target: name it among methods to have it",
    "integrated_gradients": "it costs passes of 50 copies of the sentence and more a layer: name it to have it",
    "deep_lift": "it costs twice what gradient_x_input does, and equals it in models without ReLU and its kin: name it",
}


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
    layout: TokenizedSet,
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    layers: Iterable[int] | int | None = None,
    normalized: bool = True,
    rolled_out: bool = False,
    logit: Logit = "good",
    progress: bool = False,
) -> TargetRows:
    """The target's row of each method and layer, for every example of a layout (see `tokenize_examples`).

    `methods` are names of `METHODS`; by default all but the dearest, and what is undefined for the model is left out
    with the reason. `options` are a method's own by its name. Rows are normalised, or rolled out to each layer, or as
    the method gives them. Gradient methods explain the logit of the right form, or its difference to the wrong one.
    `random` is drawn anew for each example.

    Raises InputError or InputTypeError for a bad argument, ModelError where a named method is undefined for the
    model, ScoresError where its rows cannot be normalised or rolled out, and leaves the model as it was.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.tokenized import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> found = target_rows(model, tokenize_examples(model, agreement_examples()[:3]), ["value_zeroing"])
    >>> [list(row.shape) for row in found.rows["value_zeroing"]]
    [[4, 11], [4, 10], [4, 10]]
    """
    plan, left_out = _plan(layout, methods, options)
    sites = check_contracts(model)
    check_all_layers(layers, rolled_out)
    numbers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    _check_logit(layout, plan, logit)
    asked = _Asked(model, layout.examples, numbers, normalized, rolled_out, logit)
    total = len(layout.examples) * len(plan)
    with tqdm(total=total, disable=not progress, desc="target rows", unit="row", leave=False) as bar:
        rows, undefined = asked.run(plan, bar)
    return TargetRows(
        examples=layout.examples,
        layers=numbers,
        rows={each.name: rows[each.name] for each in plan if each.name in rows},
        left_out=left_out | undefined,
        skipped=layout.skipped,
        settings={
            **provenance(model),
            "protocol": layout.protocol,
            "normalized": normalized,
            "rolled_out": rolled_out,
            "logit": logit,
            "options": {
                name: {key: _named(own) for key, own in each.items()} for name, each in (options or {}).items()
            },
        },
    )


def _named(option: Any) -> Any:
    """An option as plain data: a function by its name."""
    return callable_name(option) if callable(option) else option


def _plan(layout: TokenizedSet, methods: Any, options: Any) -> tuple[list[Planned], dict[str, str]]:
    if methods is not None:
        return plan_of(METHODS, methods, options), {}
    longest = max(len(each) for each in layout.examples)
    left_out = {name: reason for name, reason in SLOW.items() if name not in (options or {})}
    for name, method in METHODS.items():
        if longest > (method.compared_up_to or longest):
            left_out[name] = f"a sentence has {longest} tokens, and its cost grows fast past {method.compared_up_to}"
    plan = plan_of(METHODS, [name for name in METHODS if name not in left_out], options)
    return [Planned(each.name, each.method, each.name in (options or {}), each.options) for each in plan], left_out


def _check_logit(layout: TokenizedSet, plan: Sequence[Planned], logit: Any) -> None:
    if logit not in get_args(Logit):
        raise unknown_name("logit", logit, get_args(Logit))
    if logit == "difference" and any("target" in each.method.needs for each in plan):
        check_wrong_forms(layout.examples, 'logit="difference"')


def check_wrong_forms(examples: Sequence[TokenizedExample], asked: str) -> None:
    """Raise InputError for examples without a wrong form, where one was asked for."""
    without = [each.example.id for each in examples if each.encoding.bad_id is None]
    if without:
        raise InputError(
            f"{asked} compares two forms, and {len(without)} of {len(examples)} examples have no wrong form, "
            f"first {without[0]}: expected minimal pairs"
        )


def padded(
    examples: Sequence[TokenizedExample],
) -> tuple[Int[Tensor, "sentence position"], Bool[Tensor, "sentence position"]]:
    """Ids of several examples, padded on the right, and the mask that is False at padding."""
    longest = max(len(each) for each in examples)
    ids = torch.zeros(len(examples), longest, dtype=torch.long)
    mask = torch.zeros(len(examples), longest, dtype=torch.bool)
    for row, each in enumerate(examples):
        ids[row, : len(each)] = each.encoding.ids
        mask[row, : len(each)] = True
    return ids, mask


@dataclass(frozen=True, eq=False)
class _Asked:
    """What is asked of every method alike."""

    model: nn.Module
    examples: tuple[TokenizedExample, ...]
    layers: tuple[int, ...]
    normalized: bool
    rolled_out: bool
    logit: Logit

    def run(self, plan: Sequence[Planned], bar: Any) -> tuple[dict[str, tuple[Tensor, ...]], dict[str, str]]:
        """Rows by method, and the reasons of those that are undefined."""
        rows: dict[str, tuple[Tensor, ...]] = {}
        undefined: dict[str, str] = {}
        drawn = [each for each in plan if each.name == "random"]
        of_layers = [each for each in plan if each.method.layer is not None and each.name != "random"]
        called = [each for each in plan if each.method.layer is None]
        rows |= {each.name: self._random(**each.options) for each in drawn}
        bar.update(len(drawn) * len(self.examples))
        if of_layers:
            self._on_shared_runs(of_layers, rows, undefined, bar)
        for each in called:
            if self.rolled_out and "target" in each.method.needs and not each.named:
                undefined[each.name] = "it gives the target's row only, and a rollout needs whole maps"
                bar.update(len(self.examples))
                continue
            try:
                rows[each.name] = self._called(each, bar)
            except (ModelError, DependencyError) as error:
                undefined[each.name] = _reason(each, error)
                bar.update(len(self.examples))
        return rows, undefined

    def _groups(self, key: Callable[[TokenizedExample], Hashable]) -> list[list[int]]:
        """Numbers of examples that go into one call, from short to long."""
        groups: dict[Hashable, list[list[int]]] = {}
        for number in sorted(range(len(self.examples)), key=lambda number: len(self.examples[number])):
            calls = groups.setdefault(key(self.examples[number]), [[]])
            if len(calls[-1]) == SENTENCES_PER_CALL:
                calls.append([])
            calls[-1].append(number)
        return [call for calls in groups.values() for call in calls]

    def _destinations(self, planned: Planned, group: Sequence[int]) -> tuple[int, ...] | None:
        """The one destination of a group; all where maps are to be multiplied, unless the method does so itself."""
        through = planned.method.layer is not None and planned.method.layer.through is not None
        return None if self.rolled_out and not through else (self.examples[group[0]].dest,)

    def _on_shared_runs(
        self,
        plan: Sequence[Planned],
        rows: dict[str, tuple[Tensor, ...]],
        undefined: dict[str, str],
        bar: Any,
    ) -> None:
        """Methods that read a layer by itself, all on the same clean runs."""
        sites = check_contracts(self.model)
        found: dict[str, dict[int, Tensor]] = {each.name: {} for each in plan}
        for group in self._groups(lambda each: each.dest):
            ids, mask = padded([self.examples[number] for number in group])
            encoded = encode(self.model, ids, attention_mask=mask)
            asked = [
                AskedMethod(
                    each.name, each.method.layer, destinations=self._destinations(each, group), options=each.options
                )
                for each in plan
                if each.method.layer is not None and each.name not in undefined
            ]
            scored = scores_on_one_run(asked, self.model, sites, encoded, self.layers, None)
            for each in plan:
                by_row = scored.get(each.name, {})
                if isinstance(by_row, ModelError):
                    undefined[each.name] = _reason(each, by_row)
                else:
                    found[each.name] |= {group[row]: self._row(own, group[row]) for row, own in by_row.items()}
            bar.update(len(group) * len(plan))
        rows |= {name: _in_order(own) for name, own in found.items() if name not in undefined}

    def _called(self, planned: Planned, bar: Any) -> tuple[Tensor, ...]:
        """A method that is called as a user calls it."""
        needs_target = "target" in planned.method.needs
        found: dict[int, Tensor] = {}
        for group in self._groups(self._target_ids if needs_target else lambda each: each.dest):
            arguments: dict[str, Any] = dict(planned.options)
            if needs_target:
                target_ids = self._target_ids(self.examples[group[0]])
                arguments |= {"target": [self.examples[number].dest for number in group], "target_ids": target_ids}
            elif "destinations" in (planned.method.options or ()):
                arguments["destinations"] = self._destinations(planned, group)
            if not self.rolled_out:
                arguments["layers"] = self.layers
            ids, mask = padded([self.examples[number] for number in group])
            scored = planned.method(self.model, ids, attention_mask=mask, **arguments)
            found |= {
                number: self._row(own, number)
                for number, own in zip(group, _one_each(planned.name, scored, len(group)), strict=True)
            }
            bar.update(len(group))
        return _in_order(found)

    def _target_ids(self, each: TokenizedExample) -> int | tuple[int, int]:
        good, bad = each.encoding.good_id, each.encoding.bad_id
        return (good, bad) if self.logit == "difference" and bad is not None else good

    def _row(self, scores: Scores, number: int) -> Float[Tensor, "layer src"]:
        return row_of(scores, self.examples[number].dest, self.normalized, self.rolled_out)

    def _random(self, seed: int = 0) -> tuple[Tensor, ...]:
        return random_rows(
            self.examples, self.layers, rolled_out=self.rolled_out, normalized=self.normalized, seed=seed
        )


def check_all_layers(layers: object, rolled_out: bool) -> None:
    """Raise InputError for a rollout of some layers."""
    if rolled_out and layers is not None:
        raise InputError(f"layers={layers!r} and rolled_out=True: a rollout goes through all layers; leave layers out")


def row_of(scores: Scores, dest: int, normalized: bool, rolled_out: bool) -> Float[Tensor, "layer src"]:
    """A destination's row in float64, rolled out, normalised or raw; what is rolled out already stays as it is."""
    if rolled_out and scores.stage != "rollout":
        scores = scores.rollout()
    elif normalized:
        scores = scores.normalized()
    return scores.row(dest).detach().cpu().double()


def random_rows(
    examples: Sequence[TokenizedExample], layers: Sequence[int], *, rolled_out: bool, normalized: bool, seed: int = 0
) -> tuple[Tensor, ...]:
    """Each example's row of random maps, drawn for it alone; raises InputTypeError for a seed that is no integer."""
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputTypeError(f"seed is {type(seed).__name__}: expected an integer")
    n_layers = max(layers) + 1
    return tuple(
        random_row(
            len(each),
            each.dest,
            n_layers,
            causal=each.target_position is None,
            rolled_out=rolled_out,
            normalized=normalized,
            seed=(seed, number),
        )[list(layers)]
        for number, each in enumerate(examples)
    )


def _in_order(found: Mapping[int, Tensor]) -> tuple[Tensor, ...]:
    return tuple(found[number] for number in sorted(found))


def _reason(planned: Planned, error: ModelError | DependencyError) -> str:
    """Why a method is left out; raises the error where it was named."""
    if planned.named:
        raise error
    return str(error)


def _one_each(name: str, scored: Any, count: int) -> list[Scores]:
    """A method's answers to several sentences; another package's may be of another kind."""
    if isinstance(scored, list) and len(scored) == count and all(isinstance(each, Scores) for each in scored):
        return scored
    raise PluginError(
        f"the method {name!r} gave {type(scored).__name__} for {count} sentences: expected a list of one Scores each"
    )
