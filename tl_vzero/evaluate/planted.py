"""Does a method find the flows of a model in which they are known? Planted truth.

1. A claimed flow (layer, dest, source) is checked by exchange: the value that the destination reads from the source in
   this layer is taken from the run of another input, all other destinations of the block are left alone, and the
   answer has to change. Where a source is claimed not to flow, the answer has to stay. Sources that always agree are
   exchanged together. The destination's own part, where it is claimed, is its whole block input.
2. In each row with a known source the sources are ranked by a method's score: average precision (AP) and the area under
   the ROC curve (AUROC), the mean over the rows of an input, and over inputs with a bootstrap interval. The destination
   itself is left out, except where the model says otherwise. A rollout is held against the flows composed over layers.

Source: Geiger et al. 2021 (interchange interventions); Tracr, Lindner et al. 2023 (models with known mechanisms).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import nan
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import at_least_one, integer, one_of
from tl_vzero.effects.values import mean_values, optimised_values
from tl_vzero.errors import DependencyError, ModelError
from tl_vzero.evaluate.planted_models import Drawn, Planted, planted_models, title_of
from tl_vzero.evaluate.results import COLUMNS, Result, Row, open_store
from tl_vzero.methods.plan import plan_of
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.load import load_model
from tl_vzero.models.run import NamedHook, temporary_hooks
from tl_vzero.models.sites import Sites
from tl_vzero.registry import METHODS, label_of
from tl_vzero.scores import Scores
from tl_vzero.statistics import Array, Estimate, Interval, estimates

if TYPE_CHECKING:
    import pandas as pd

HOLDS, STAYS, ANSWERS = 0.9, 0.05, 0.99  # of the exchanges and of the answers; the rest is chance among few answers
ORACLE = "oracle"
N_INPUTS = 32
FALLEN = 0.9  # of average precision: below it a source is not first in at least one of ten inputs
ZERO = "zero"
Measure = Literal["ap", "auroc"]


@dataclass(frozen=True)
class Recovered(Row):
    """How well one method finds the flows of one layer; `baseline` is what Value Zeroing puts in, "" for the others.

    `ap` and `auroc` are None where the method has no row with a known source. `random` is what chance gives, and the
    method "oracle" has the flows themselves as its scores.
    """

    model: str
    architecture: str
    kind: str
    layer: int
    method: str
    baseline: str
    ap: Estimate | None = field(metadata={COLUMNS: "ap_"})
    auroc: Estimate | None = field(metadata={COLUMNS: "auroc_"})

    @property
    def title(self) -> str:
        """The model's title."""
        return title_of(self.model, self.architecture, self.kind)

    @property
    def method_in_words(self) -> str:
        """The method, and its baseline where it has one."""
        return f"{label_of(self.method)} ({self.baseline})" if self.baseline else label_of(self.method)


@dataclass(frozen=True)
class PlantedTruth(Result):
    """Rows by model, layer and method.

    `checks` are each model's accuracy, and the shares of answers that an exchange changed where a flow is claimed and
    where none is; a model that fails its check does not count, and is in `rejected` with the reason. `left_out` are
    the methods that are undefined for a model, by model, with the reason.
    """

    recovered: tuple[Recovered, ...]
    checks: Mapping[str, Mapping[str, float]]
    rejected: Mapping[str, str]
    left_out: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]

    def summary(self, measure: Measure = "ap") -> "pd.DataFrame":
        """Means over a model's layers: rows by method and baseline, columns by model.

        The first columns are the means over all models, over tasks and over traps.
        Raises InputError for another measure.
        """
        one_of("measure", measure, get_args(Measure))
        frame = self.to_frame().assign(
            method=[row.method_in_words for row in self.recovered], model=[row.title for row in self.recovered]
        )
        table = frame.pivot_table(index="method", columns="model", values=f"{measure}_mean", sort=False)
        table = table.reindex(index=frame.method.unique(), columns=frame.model.unique())
        traps = [row.kind == "trap" for row in {row.title: row for row in self.recovered}.values()]
        means = {"mean": table, "tasks": table.loc[:, [not trap for trap in traps]], "traps": table.loc[:, traps]}
        for place, (name, part) in enumerate({name: part.mean(axis=1) for name, part in means.items()}.items()):
            table.insert(place, name, part)
        return table

    def falls(self) -> dict[str, dict[str, bool]]:
        """By trap and method: whether the method falls for it, the interval of its AP being below FALLEN."""
        falls: dict[str, dict[str, bool]] = {}
        for row in self.recovered:
            if row.kind == "trap" and row.ap is not None and row.method not in (ORACLE, "random"):
                falls.setdefault(row.title, {})[row.method_in_words] = row.ap.high < FALLEN
        return falls


@dataclass(frozen=True, eq=False)
class Inputs:
    """Inputs of a planted model as tensors: `[input, position]`, and the claimed flows `[input, layer, dest, src]`.

    `together[n, j]` are the positions that are exchanged with j; `answered` are rows and positions of the answers.
    """

    ids: Int[Tensor, "input position"]
    other: Int[Tensor, "input position"]
    answered: tuple[Tensor, Tensor]
    answers: Int[Tensor, "answer"]
    flows: Bool[Tensor, "input layer dest src"]
    together: Bool[Tensor, "input src position"]

    @classmethod
    def of(cls, drawn: Sequence[Drawn], n_layers: int) -> "Inputs":
        """What was drawn, as tensors."""
        length = len(drawn[0].ids)
        flows = torch.zeros(len(drawn), n_layers, length, length, dtype=torch.bool)
        together = torch.eye(length, dtype=torch.bool).repeat(len(drawn), 1, 1)
        for row, one in enumerate(drawn):
            for layer, dest, *sources in one.flows:
                flows[row, layer, dest, sources] = True
            for unit in (*one.units, *(sources for _, _, *sources in one.flows)):
                for member in unit:
                    together[row, member, list(unit)] = True
        places = [(row, position, answer) for row, one in enumerate(drawn) for position, answer in one.answers.items()]
        rows, positions, answers = torch.tensor(places).unbind(1)
        ids, other = (torch.tensor([getattr(one, side) for one in drawn]) for side in ("ids", "other"))
        return cls(ids, other, (rows, positions), answers, flows, together)


def inputs_of(planted: Planted, count: int, seed: int) -> Inputs:
    """Inputs of a model's task, drawn by a seed."""
    random = Random(seed)
    return Inputs.of([planted.drawn(random) for _ in range(count)], planted.n_layers)


def planted_truth(
    methods: Sequence[str] | None = None,
    models: Sequence[Planted] | None = None,
    *,
    n_inputs: int = N_INPUTS,
    seed: int = 0,
    interval: Interval | None = None,
    folder: str | Path | None = None,
    progress: bool = False,
) -> PlantedTruth:
    """How well methods find the flows that are known in models made for it.

    `methods` are names of `METHODS`, by default all; signed ones count by size, and Value Zeroing is there with every
    baseline. `models` default to all of `planted_models`, each checked before it counts. What is finished stays in
    `folder`, and a call with it goes on there. A method that is undefined for a model is left out there.

    Raises InputError or InputTypeError for a bad argument.

    >>> from tl_vzero.evaluate.planted_models import planted_models
    >>> result = planted_truth(["value_zeroing", "attention"], planted_models()[:1], n_inputs=4)
    >>> result.summary().loc["Value Zeroing (zero)", "mean"]
    np.float64(1.0)
    """
    names = tuple(METHODS) if methods is None else tuple(planned.name for planned in plan_of(methods, None, METHODS))
    models = planted_models() if models is None else tuple(models)
    n_inputs, seed, interval = at_least_one("n_inputs", n_inputs), integer("seed", seed), interval or Interval()
    settings = {"methods": names, "n_inputs": n_inputs, "seed": seed, **interval.settings}
    store = open_store(folder, {**settings, "models": [planted.title for planted in models]})
    parts = {
        planted.title: store.part(
            planted.title.replace(" ", "-").replace(",", ""),
            _OfModel,
            partial(_of_model, planted, names, n_inputs, seed, interval),
        )
        for planted in tqdm(models, disable=not progress, desc="planted truth", unit="model")
    }
    return PlantedTruth(
        tuple(row for part in parts.values() for row in part.recovered),
        {title: part.checks for title, part in parts.items() if part.checks},
        {title: part.rejected for title, part in parts.items() if part.rejected},
        {title: part.left_out for title, part in parts.items() if part.left_out},
        settings,
    )


@dataclass(frozen=True)
class _OfModel:
    recovered: tuple[Recovered, ...]
    checks: dict[str, float]
    left_out: dict[str, str]
    rejected: str = ""


def _of_model(planted: Planted, names: Sequence[str], n_inputs: int, seed: int, interval: Interval) -> _OfModel:
    """All rows of one model, which is built and checked for it."""
    model, inputs = load_model(planted.built(seed)), inputs_of(planted, n_inputs, seed + 1)
    try:
        checks = check_truth(planted, model, inputs)
    except ModelError as reason:
        return _OfModel((), {}, {}, str(reason))
    candidates, left_out = candidates_of(planted, inputs), {}
    rows = []

    def add(name: str, baseline: str, scores: Sequence[Mapping[int, Tensor]], truth: Tensor) -> None:
        measured = _measured(inputs, candidates, scores, truth)
        for layer in range(measured.shape[1]):
            ap, auroc = estimates(measured[:, layer], interval)
            at = (planted.name, planted.architecture, planted.kind, layer)
            rows.append(Recovered(*at, name, baseline, ap, auroc))

    add(ORACLE, "", [dict(enumerate(flows.transpose(0, 1).float())) for flows in inputs.flows], inputs.flows)
    for name in names:
        try:
            for baseline, options in _options_of(name, model, planted, n_inputs, seed):
                scores, rolled_out = _rows_of(name, model, inputs, seed, **options)
                add(name, baseline, scores, composed(inputs.flows) if rolled_out else inputs.flows)
        except (ModelError, DependencyError) as error:
            left_out[name] = str(error)
    return _OfModel(tuple(rows), checks, left_out)


def _options_of(
    name: str, model: nn.Module, planted: Planted, n_inputs: int, seed: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    """A method's options by baseline: Value Zeroing has four, whose constants come from further inputs."""
    if name != "value_zeroing":
        yield "", {}
        return
    further = inputs_of(planted, n_inputs, seed + 2)
    texts = list(further.ids)
    last = dict(zip(further.answered[0].tolist(), further.answered[1].tolist(), strict=True))
    yield ZERO, {}
    yield "mean", {"baseline": "mean"}
    yield "corpus mean", {"baseline": mean_values(model, texts)}
    yield "optimised", {"baseline": optimised_values(model, texts, [last[row] for row in range(n_inputs)], seed=seed)}


# The truth.


def exchanged(model: nn.Module, inputs: Inputs) -> Bool[Tensor, "input layer dest src"]:
    """Whether the answer changes when the value that a destination reads from a source comes from the other input.

    On the diagonal the destination's whole block input comes from there.
    """
    sites = check_contracts(model)
    n, length = inputs.ids.shape
    clean, other = (_activations(model, sites, ids) for ids in (inputs.ids, inputs.other))
    right = _answers(model, inputs, inputs.ids, 1)
    changed = torch.zeros(n, sites.n_layers, length, length, dtype=torch.bool)
    copies = inputs.ids.repeat_interleave(length, 0)  # one copy for each source
    for layer in range(sites.n_layers):
        for dest in range(length):
            exchange = _Exchange(inputs, clean, other, sites.at(layer), dest)
            with temporary_hooks(model, exchange.hooks()):
                answers = _answers(model, inputs, copies, length)
            rows = inputs.answered[0]
            differs = (answers != right[:, None]).int()
            changed[:, layer, dest] = torch.zeros(n, length, dtype=torch.int).index_add_(0, rows, differs) > 0
    return changed


@dataclass(frozen=True, eq=False)
class _Exchange:
    """Hooks on one block of copies, one for each source, of which one destination reads another input."""

    inputs: Inputs
    clean: Mapping[str, Tensor]
    other: Mapping[str, Tensor]
    names: tuple[str, str, str, str]
    dest: int

    def hooks(self) -> list[NamedHook]:
        start, value, _, end = self.names
        return [(start, self.exchange_input), (value, self.exchange_values), (end, self.leave_others)]

    def exchange_input(self, whole: Tensor, *, hook: Any) -> Tensor:
        """The destination's own input, in the copies whose source it is."""
        whole = whole.clone()
        whole[self.dest :: whole.shape[1], self.dest] = self.other[self.names[0]][:, self.dest]
        return whole

    def exchange_values(self, value: Tensor, *, hook: Any) -> Tensor:
        length = value.shape[1]
        moved = self.inputs.together.clone()
        moved[:, self.dest] = False
        return torch.where(
            moved.reshape(-1, length)[..., None, None], self.other[self.names[1]].repeat_interleave(length, 0), value
        )

    def leave_others(self, output: Tensor, *, hook: Any) -> Tensor:
        left = self.clean[self.names[3]].repeat_interleave(output.shape[1], 0)
        left[:, self.dest] = output[:, self.dest]
        return left


def _activations(model: Any, sites: Sites, ids: Tensor) -> dict[str, Tensor]:
    names = {*sites.inputs, *sites.values, *sites.outputs}
    with torch.no_grad():
        _, cache = model.run_with_cache(ids, names_filter=lambda name: name in names)
    return {name: cache[name] for name in names}


def _answers(model: Any, inputs: Inputs, ids: Tensor, copies: int) -> Tensor:
    """The predicted tokens where answers stand, `[answer]` or, of several copies of an input, `[answer, copy]`."""
    with torch.no_grad():
        predicted: Tensor = model(ids).argmax(-1)
    if copies == 1:
        return predicted[inputs.answered]
    return predicted.reshape(len(inputs.ids), copies, -1)[inputs.answered[0], :, inputs.answered[1]]


def check_truth(planted: Planted, model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """The model's accuracy, and the shares of answers that an exchange changes with and without a claimed flow.

    Raises ModelError where the model does not answer its task, or where the claims are not true of it.
    """
    changed = exchanged(model, inputs)
    candidates = candidates_of(planted, inputs)
    checks = {
        "accuracy": (_answers(model, inputs, inputs.ids, 1) == inputs.answers).float().mean().item(),
        "changed by a flow": changed[inputs.flows].float().mean().item(),
        "changed by none": changed[candidates & ~inputs.flows].float().mean().item(),
    }
    answers, holds, stays = checks.values()
    if answers < ANSWERS or holds < HOLDS or stays > STAYS:
        raise ModelError(
            f"the flows planted in {planted.name!r} ({planted.architecture}, {planted.kind}) are not true of its "
            f"weights: expected an accuracy of at least {ANSWERS}, exchanges that change the answer at least {HOLDS} "
            f"of the time with a flow and at most {STAYS} without; measured {answers:.2f}, {holds:.2f}, {stays:.2f}"
        )
    return checks


def candidates_of(planted: Planted, inputs: Inputs) -> Bool[Tensor, "input layer dest src"]:
    """The pairs that may flow: not from later tokens where attention is causal, nor, unless claimed, from itself."""
    length = inputs.ids.shape[1]
    pairs = torch.ones(length, length, dtype=torch.bool)
    if planted.architecture == "gpt2":
        pairs = pairs.tril()
    if not inputs.flows.diagonal(dim1=-2, dim2=-1).any():
        pairs &= ~torch.eye(length, dtype=torch.bool)
    return pairs.expand_as(inputs.flows)


# How well a map finds it.


def average_precision(true: Array, scores: Array) -> float:
    """Of a ranking by score: the mean precision at each true entry; entries of one score count as one step."""
    order = np.argsort(-scores, kind="stable")
    hits, ranked = np.cumsum(true[order]), scores[order]
    ends = np.append(ranked[1:] != ranked[:-1], True)
    steps = np.diff(hits[ends], prepend=0)
    return float((steps * hits[ends] / (np.flatnonzero(ends) + 1)).sum() / hits[-1])


def area_under_roc(true: Array, scores: Array) -> float:
    """How often a true entry is above a false one; half where both have the same score."""
    above = scores[true][:, None] - scores[~true][None]
    return float(((above > 0) + 0.5 * (above == 0)).mean())


def composed(flows: Bool[Tensor, "input layer dest src"]) -> Bool[Tensor, "input layer dest src"]:
    """Flows from the input tokens to each layer, through the layers below and the residual stream."""
    stay = torch.eye(flows.shape[-1], dtype=torch.bool)
    through = [flows[:, 0]]
    for layer in range(1, flows.shape[1]):
        below = (through[-1] | stay).float()
        through.append(((flows[:, layer] | stay).float() @ below > 0) & ~stay | flows[:, layer])
    return torch.stack(through, dim=1)


def _measured(inputs: Inputs, candidates: Tensor, rows: Sequence[Mapping[int, Tensor]], truth: Tensor) -> Array:
    """AP and AUROC, `[input, layer, measure]`: means over the rows that have a known source; NaN without one."""
    n, n_layers = inputs.flows.shape[:2]
    values = np.full((n, n_layers, 2), np.nan)
    for index in range(n):
        for layer in range(n_layers):
            measures = []
            for dest, scores in rows[index].items():
                may = candidates[index, layer, dest].numpy()
                true = truth[index, layer, dest].numpy()[may]
                row = scores[layer].double().numpy()[may]
                is_known = inputs.flows[index, layer, dest].any() and 0 < true.sum() < len(true)
                if is_known and not np.isnan(row).any():
                    measures.append((average_precision(true, row), area_under_roc(true, row)))
            if measures:
                values[index, layer] = np.mean(measures, axis=0)
    return values


def _rows_of(
    name: str, model: nn.Module, inputs: Inputs, seed: int, **options: Any
) -> tuple[list[dict[int, Tensor]], bool]:
    """A method's rows `[layer, src]` by destination, input by input, and whether they are a rollout."""
    method = METHODS[name]
    if method.signed:
        options["size"] = True
    if "target" in method.needs:
        return _rows_of_targets(name, model, inputs, options)
    if name == "random":  # one map for each input, as for examples of an evaluation
        scores = [
            *chain.from_iterable(_called(name, model, ids[None], seed=seed + row) for row, ids in enumerate(inputs.ids))
        ]
    else:
        scores = _called(name, model, inputs.ids, **options)
    length = inputs.ids.shape[1]
    return [{dest: one.row(dest) for dest in range(length)} for one in scores], scores[0].stage == "rollout"


def _called(name: str, model: nn.Module, ids: Tensor, **options: Any) -> list[Scores]:
    scores = METHODS[name](model, ids, **options)
    return scores if isinstance(scores, list) else [scores]


def _rows_of_targets(
    name: str, model: nn.Module, inputs: Inputs, options: Mapping[str, Any]
) -> tuple[list[dict[int, Tensor]], bool]:
    """The row of each input's last answer: its logit is what the method explains.

    What a gradient says of the output of the block below is about what this block reads: it counts one layer up.
    """
    last = {
        int(row): (int(position), int(answer))
        for row, position, answer in zip(*inputs.answered, inputs.answers, strict=True)
    }
    by_target: dict[tuple[int, int], list[int]] = {}
    for row, target in last.items():
        by_target.setdefault(target, []).append(row)
    rows: list[dict[int, Tensor]] = [{} for _ in last]
    stage = ""
    for (position, answer), members in by_target.items():
        scored = _called(name, model, inputs.ids[members], target=position, target_ids=answer, **options)
        for row, scores in zip(members, scored, strict=True):
            of_layers, stage = scores.row(position), scores.stage
            if "gradients" in METHODS[name].needs:
                of_layers = torch.cat([torch.full_like(of_layers[:1], nan), of_layers[:-1]])
            rows[row] = {position: of_layers}
    return rows, stage == "rollout"
