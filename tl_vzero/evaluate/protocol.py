"""The whole protocol over one model: evaluations, the mass of rows, and controls, part by part, as one result.

1. Sentences are read, filtered for the model's tokenizer and split into halves by a seed.
2. If asked, the model is fine-tuned on the train half. Where there was a reason to split (fine-tuning, or BLiMP, as
   in the paper), the test half is evaluated, else all sentences.
3. Each part is stored in a folder as soon as it is finished; called again, the protocol goes on after the last one.

Source: Mohebbi et al. 2023, sections 4 to 7.
"""

import copy
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, make_dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import integer, positive
from tl_vzero.data.examples import HALVES, Example, ExampleSet, split_in_halves
from tl_vzero.data.own_file import CueCheck, check_cues
from tl_vzero.distance import DISTANCES, Distance, distance_named
from tl_vzero.effects.values import mean_values, optimised_values
from tl_vzero.errors import DependencyError, HeadlessModelError, InputError, ModelError
from tl_vzero.evaluate.cue_alignment import Alignment, CueAlignment, Measure, alignment_of
from tl_vzero.evaluate.faithfulness import Faithfulness, faithfulness, faithfulness_by_baseline
from tl_vzero.evaluate.finetuning import accuracy, finetune
from tl_vzero.evaluate.knockout_agreement import KnockoutAgreement, knockout_agreement
from tl_vzero.evaluate.mass import Mass, mass_of
from tl_vzero.evaluate.probing import ModeName, ProbingResult, probe_number
from tl_vzero.evaluate.removal import TokenRemoval, token_removal
from tl_vzero.evaluate.results import Result, Row, Store, Training, claimed, frame_of, open_store, published_of
from tl_vzero.evaluate.rows import TargetRows, target_rows
from tl_vzero.evaluate.sentences import TokenizedSet, limited, sentences_for, tokenize_examples
from tl_vzero.files import to_plain
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.models.contracts import provenance
from tl_vzero.models.facts import Facts, facts_of, library_versions, remember
from tl_vzero.models.load import load_model
from tl_vzero.models.sites import hf_model_of
from tl_vzero.statistics import FEWEST_PAIRS, Correlation, Estimate, Interval, bootstrap_pearson, bootstrap_spearman
from tl_vzero.targets import check_predicts_words

if TYPE_CHECKING:
    import pandas as pd

# The result.

FORMAT = "tl_vzero.reproduction"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Link(Row):
    """How a method's cue alignment goes with the compression, over a model's layers: few pairs, so wide intervals."""

    method: str
    measure: Measure
    pearson: Correlation
    spearman: Correlation

    def records(self) -> Iterator[dict[str, Any]]:
        """One row per kind of correlation."""
        for correlation in (self.pearson, self.spearman):
            of_link = {"method": self.method, "measure": self.measure, "kind": correlation.kind}
            yield of_link | to_plain(correlation)


@dataclass(frozen=True)
class Controls:
    """What learned nothing, and Value Zeroing by other distances; None where the model does not allow it."""

    random_alignment: CueAlignment | None
    random_probing: ProbingResult | None
    distances: CueAlignment | None


@dataclass(frozen=True)
class Baselines:
    """Value Zeroing under other baselines than zero: methods "value_zeroing, BASELINE"; None where not measured."""

    alignment: CueAlignment | None = None
    mass: Mass | None = None
    mass_with_attractor: Mass | None = None
    faithfulness: Faithfulness | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The baselines, in order."""
        cells = () if self.alignment is None else self.alignment.cells
        return tuple(dict.fromkeys(cell.method.removeprefix(OURS) for cell in cells))


@dataclass(frozen=True)
class Reproduction:
    """Cue alignment, mass, probing, faithfulness, knockout, removal, controls and other baselines of one model.

    `metadata` has the model, the sentences with their counts at each filter, the split, seeds and versions.
    `mass_with_attractor` is over the sentences that have an attractor alone, None if none has.
    `missing` says of each part that is None why. `published_compression` is the paper's, where the model is the same.
    """

    metadata: Mapping[str, Any]
    accuracy: Estimate | None
    alignment: CueAlignment
    cue_check: CueCheck | None
    mass: Mass
    mass_with_attractor: Mass | None
    probing: ProbingResult | None
    probing_paper: ProbingResult | None
    links: tuple[Link, ...]
    faithfulness: Faithfulness | None
    knockout: KnockoutAgreement | None
    removal: TokenRemoval | None
    controls: Controls
    published_compression: tuple[float, ...]
    missing: Mapping[str, str]
    baselines: Baselines = field(default_factory=Baselines)

    def under(self, baseline: str) -> "Reproduction":
        """The same with Value Zeroing's figures under another baseline; without controls, which are under zero."""
        other = self.baselines
        alignment = _under(baseline, self.alignment, other.alignment, "cells")
        return replace(
            self,
            alignment=alignment,
            mass=_under(baseline, self.mass, other.mass, "shares"),
            mass_with_attractor=_under(baseline, self.mass_with_attractor, other.mass_with_attractor, "shares"),
            links=links_of(alignment, self.probing, self.metadata["seed"]),
            faithfulness=_under(baseline, self.faithfulness, other.faithfulness, "correlations"),
            controls=Controls(None, None, None),
        )

    def _parts(self) -> dict[str, Result | CueCheck | ProbingResult | None]:
        """The results of the parts, by the names that they have in files."""
        return {
            "cue_alignment": self.alignment,
            "mass": self.mass,
            "probing": self.probing,
            "probing_paper_mode": self.probing_paper,
            "cue_check": self.cue_check,
            "mass_with_attractor": self.mass_with_attractor,
            "faithfulness": self.faithfulness,
            "knockout": self.knockout,
            "token_removal": self.removal,
            "control_random_weights": self.controls.random_alignment,
            "control_random_weights_probing": self.controls.random_probing,
            "control_distances": self.controls.distances,
            "baselines_cue_alignment": self.baselines.alignment,
            "baselines_mass": self.baselines.mass,
            "baselines_mass_with_attractor": self.baselines.mass_with_attractor,
            "baselines_faithfulness": self.baselines.faithfulness,
        }

    def frames(self) -> "dict[str, pd.DataFrame]":
        """Every table, by the name of its CSV file."""
        tables = {name: part.to_frame() for name, part in self._parts().items() if part is not None}
        if self.cue_check is not None:
            tables["cue_disagreements"] = self.cue_check.disagreements_frame()
        if self.links:
            tables["alignment_with_compression"] = frame_of(self.links)
        if self.faithfulness is not None:
            tables["erasure_curves"] = self.faithfulness.curves_frame()
        if self.removal is not None:
            tables["token_removal_times"] = frame_of(self.removal.times)
        return tables

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types; numbers that do not exist are None."""
        return {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "metadata": to_plain(self.metadata),
            "accuracy": to_plain(self.accuracy),
            **{name: None if part is None else to_plain(part.to_dict()) for name, part in self._parts().items()},
            "alignment_with_compression": to_plain(self.links),
            "published_compression": list(self.published_compression),
            "missing": dict(self.missing),
        }


OURS = "value_zeroing, "  # then the name of a baseline


def _under(baseline: str, ours: Any, other: Any, rows: str) -> Any:
    """A part whose rows of Value Zeroing are those of another baseline; without any where that was not measured."""
    if ours is None:
        return None
    under = [row for row in getattr(other, rows, ()) if row.method == OURS + baseline]
    others = [row for row in getattr(ours, rows) if row.method != "value_zeroing"]
    return replace(ours, **{rows: (*(replace(row, method="value_zeroing") for row in under), *others)})


def links_of(alignment: CueAlignment, probing: ProbingResult | None, seed: int) -> tuple[Link, ...]:
    """The correlation, over blocks, of each method's cue alignment with the compression after the same block."""
    compression = {} if probing is None else dict(zip(probing.layers, probing.compression, strict=True))
    by_measure: dict[tuple[str, Measure], list[Alignment]] = {}
    for cell in alignment.cells:
        if cell.paradigm == "all" and cell.layer in compression:
            by_measure.setdefault((cell.method, cell.measure), []).append(cell)
    links = []
    for (method, measure), cells in by_measure.items():
        if len(cells) >= FEWEST_PAIRS:
            pairs = [cell.aligned.mean for cell in cells], [compression[cell.layer] for cell in cells]
            correlations = (correlate(*pairs, seed=seed) for correlate in (bootstrap_pearson, bootstrap_spearman))
            links.append(Link(method, measure, *correlations))
    return tuple(links)


# On how many sentences the methods are evaluated that are too slow for a default elsewhere.
SLOW = {"integrated_gradients": 200, "deep_lift": 200, "hta": 50}
KNOCKED_OUT = 200  # sentences, with a run of the model per token and layer
# One method of each kind, for the control with random weights.
OF_RANDOM_WEIGHTS = ("value_zeroing", "random", "attention", "attention_norm", "alti", "gradient_x_input")
# On how many sentences the baseline is found that hurts the prediction least.
OPTIMISED_ON = 32
# What the parts cost beside each other, for the time left; a rough guess.
COSTS = {
    "scores": 10,
    **{f"scores-{name}": 15 for name in SLOW},
    "cues": 1,
    "accuracy": 1,
    "probing": 2,
    "probing-paper": 1,
    "faithfulness": 18,
    "knockout": 30,
    "removal": 12,
    "random-scores": 3,
    "random-probing": 2,
    "distances": 6,
    "baselines": 3,
    "baselines-faithfulness": 4,
}
# What a model, the data or the installed packages cannot give: a part that ends so is missing, with the reason.
UNAVAILABLE = (ModelError, InputError, DependencyError)

Value = TypeVar("Value")


def reproduce(
    model: nn.Module,
    *,
    blimp: str | Path | None = None,
    fine_tuned: bool = False,
    limit: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    progress: bool = False,
) -> Reproduction:
    """The paper's evaluations of a masked model, with controls.

    Sentences are those of BLiMP in the folder `blimp` ("hub" fetches them), or the embedded ones. `fine_tuned` trains
    a copy of the model on the train half first. `limit` evaluates so many sentences, spread over the paradigms. `seed`
    draws everything that is drawn. Finished parts are stored in `folder`, and read again from there.

    What a model or the data cannot give (a prediction without a trained head, a probe of few sentences) is None, with
    the reason in `missing`. Raises InputError for a bad argument or a folder of other options, ModelError for a causal
    model, OutputPathError for a folder that cannot be written, and leaves the model as it was.

    >>> import tl_vzero
    >>> reproduction = reproduce(tl_vzero.load_model("agreement-mini"), limit=2)
    >>> reproduction.missing["probing"][:37]
    'given 2 examples: expected at least 1'
    """
    integer("seed", seed)
    positive("limit", limit)
    sentences = sentences_for(model, blimp=blimp)
    split = split_in_halves(sentences.examples, seed=seed)
    whole = not fine_tuned and blimp is None
    evaluated = split if whole else replace(split, examples=split.half("test"))
    evaluated = evaluated if limit is None else limited(evaluated, limit, seed)
    tokenize_examples(model, evaluated)  # a causal model is refused at the door
    metadata = {
        "model": provenance(model)["model"],
        "weights_sha256": provenance(model)["weights_sha256"],
        "fine_tuned": fine_tuned,
        "sentences": sentences.source,
        # Which sentences are evaluated, and how many there were at each filter.
        "filters": [{"name": stage.name, "kept": dict(stage.counts)} for stage in split.report.stages],
        "split_seed": split.split_seed,
        "halves": {half: len(split.half(half)) for half in HALVES},
        "evaluated": "all" if whole else "test half",
        "evaluated_counts": evaluated.counts(),
        "evaluated_n": len(evaluated),
        "evaluated_sha256": _hash_of(evaluated),
        "limit": limit,
        "dear_methods": {name: min(len(evaluated), most) for name, most in SLOW.items()},
        "seed": seed,
        "versions": library_versions(),
    }
    with claimed(folder):
        store = open_store(None if folder is None else Path(folder) / "parts", metadata)
        name = facts_of(model).name
        training: Training | None = "finetuned" if fine_tuned and published_of(name, None) is not None else None
        history = None
        if fine_tuned:
            if folder is None:
                raise InputError("fine-tuning without a folder: expected folder=, to keep the fine-tuned model in")
            tuned = finetune(model, split.examples, Path(folder) / "fine-tuned", seed=seed, progress=progress)
            model, history = tuned.load(), tuned.to_frame().reset_index().values.tolist()
        total = sum(cost for part, cost in COSTS.items() if not store.has(part))
        layout = "{desc}{percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left"
        with tqdm(total=total, disable=not progress, desc="reproduce", bar_format=layout) as bar:
            parts = _Parts(model, evaluated, training, seed, store, progress, bar)
            figures = published_of(name, training)
            return parts.run({**metadata, "fine_tuning": history}, figures.compression if figures else ())


def _hash_of(examples: Sequence[Example]) -> str:
    rows = [(one.id, one.words, one.target, one.bad, one.cue, one.attractor, one.number) for one in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True)
class _Scored:
    """Cue alignment and mass of some methods; the mass also over the sentences that have an attractor, if any has."""

    reason: str | None
    alignment: CueAlignment | None = None
    mass: Mass | None = None
    mass_with_attractor: Mass | None = None


@dataclass(frozen=True, eq=False)
class _Parts:
    """The parts of one protocol, each computed or read."""

    model: nn.Module
    examples: ExampleSet
    training: Training | None
    seed: int
    store: Store
    progress: bool
    bar: Any
    missing: dict[str, str] = field(default_factory=dict)

    def run(self, metadata: Mapping[str, Any], published_compression: tuple[float, ...]) -> Reproduction:
        """The parts in order, then together."""
        tokenized = tokenize_examples(self.model, self.examples)
        scored = [self.part("scores", _Scored, partial(self.scored, self.model, tokenized, None))]
        for name, most in SLOW.items():
            few = tokenize_examples(self.model, limited(self.examples, most, self.seed))
            scored.append(self.optional(f"scores-{name}", _Scored, partial(self.scored, self.model, few, [name])))
        alignment = _merged_alignment(scored)
        mass = _merged_mass([part.mass for part in scored])
        assert mass is not None, "the default methods leave out what is undefined, one by one"
        check = self.single("cues", "check", CueCheck, partial(check_cues, self.examples))
        prefers = partial(accuracy, self.model, self.examples, half=None)
        how: dict[str, Any] = {"interval": self.interval, "progress": self.progress}
        ranked = partial(faithfulness, self.model, self.examples, training=self.training, **how)
        removed = partial(token_removal, self.model, self.examples, **how)
        probing = self.probed("probing", lambda: self.model, tokenized)
        return Reproduction(
            metadata=metadata,
            cue_check=check,
            accuracy=self.single("accuracy", "accuracy", Estimate, prefers),
            alignment=alignment,
            mass=mass,
            mass_with_attractor=_merged_mass([part.mass_with_attractor for part in scored]),
            probing=probing,
            probing_paper=self.probed("probing-paper", lambda: self.model, tokenized, "paper"),
            links=links_of(alignment, probing, self.seed),
            faithfulness=self.single("faithfulness", "faithfulness", Faithfulness, ranked),
            knockout=self.single("knockout", "knockout", KnockoutAgreement, self.knocked_out),
            removal=self.single("removal", "removal", TokenRemoval, removed),
            controls=self.controls(tokenized, {cell.method for cell in alignment.cells}),
            published_compression=published_compression,
            baselines=self.under_baselines(tokenized),
            missing=dict(self.missing),
        )

    def part(self, name: str, kind: type[Value], compute: Callable[[], Value]) -> Value:
        """A part that is computed or read; the bar moves on by what it costs."""
        self.bar.set_description(f"reproduce, {name}")
        cost = 0 if self.store.has(name) else COSTS[name]
        stored = self.store.part(name, kind, compute)
        reason = getattr(stored, "reason", None)
        if reason is not None:
            self.missing[name] = reason
        self.bar.update(cost)
        return stored

    def optional(self, name: str, kind: Any, compute: Callable[[], Any]) -> Any:
        """A part of a kind that begins with the reason why it is missing, or None."""

        def computed() -> Any:
            try:
                return compute()
            except UNAVAILABLE as error:
                return kind(str(error))

        return self.part(name, kind, computed)

    def single(self, name: str, key: str, kind: type[Value], compute: Callable[[], Value]) -> Value | None:
        """A part of one result, which stands in its file under a key, beside the reason why it is missing."""
        stored: Any = make_dataclass(kind.__name__, [("reason", str | None), (key, kind | None, None)], frozen=True)
        result: Value | None = getattr(self.optional(name, stored, lambda: stored(None, compute())), key)
        return result

    def scored(self, model: nn.Module, tokenized: TokenizedSet, methods: Sequence[str] | None) -> _Scored:
        """Cue alignment and mass of some methods, by default all except the slow ones."""
        rows = target_rows(model, tokenized, methods, progress=self.progress)
        return self.of_rows(rows, self.training if model is self.model else None)

    def of_rows(self, rows: TargetRows, training: Training | None = None) -> _Scored:
        """Cue alignment and mass of rows that are there."""
        with_attractor = [index for index, sentence in enumerate(rows.examples) if sentence.attractor("all")]
        return _Scored(
            None,
            self.aligned(rows, training),
            mass_of(rows, interval=self.interval),
            mass_of(_some_rows(rows, with_attractor), interval=self.interval) if with_attractor else None,
        )

    @property
    def interval(self) -> Interval:
        return Interval(seed=self.seed)

    def aligned(self, rows: TargetRows, training: Training | None = None) -> CueAlignment:
        """The cue alignment of rows, drawn by the protocol's seed."""
        return alignment_of(rows, training=training, interval=self.interval, seed=self.seed)

    def probed(
        self, name: str, model: Callable[[], nn.Module], tokenized: TokenizedSet, mode: ModeName = "correct"
    ) -> ProbingResult | None:
        """The compression of the target's grammatical number, by layer."""
        probe = partial(probe_number, mode=mode, seed=self.seed, progress=self.progress)
        return self.single(name, "probing", ProbingResult, lambda: probe(model(), tokenized))

    def knocked_out(self) -> KnockoutAgreement:
        """Rolled-out rows against knockout, on not too many sentences."""
        few = limited(self.examples, KNOCKED_OUT, self.seed)
        return knockout_agreement(self.model, few, interval=self.interval, progress=self.progress)

    def controls(self, tokenized: TokenizedSet, methods: set[str]) -> Controls:
        """Random weights, and other distances."""
        of_random = [name for name in OF_RANDOM_WEIGHTS if name in methods]
        untrained = partial(randomised_copy, self.model, self.seed)
        by_distance = partial(rows_by_distance, self.model, tokenized, progress=self.progress)
        return Controls(
            self.optional("random-scores", _Scored, lambda: self.scored(untrained(), tokenized, of_random)).alignment,
            self.probed("random-probing", untrained, tokenized),
            self.part("distances", _Scored, lambda: _Scored(None, self.aligned(by_distance()))).alignment,
        )

    def under_baselines(self, tokenized: TokenizedSet) -> Baselines:
        """Value Zeroing under the other baselines: of the sentence, of the corpus, and the one that hurts least."""
        few = tokenize_examples(self.model, limited(self.examples, OPTIMISED_ON, self.seed))
        named = cache(partial(_baselines, self.model, tokenized, few, self.seed))
        zeroing = partial(rows_by_baseline, self.model, tokenized, progress=self.progress)
        ranking = partial(faithfulness_by_baseline, self.model, self.examples, interval=self.interval)
        scored = self.optional("baselines", _Scored, lambda: self.of_rows(zeroing(named())))
        ranked = self.single(
            "baselines-faithfulness", "faithfulness", Faithfulness, lambda: ranking(named(), progress=self.progress)
        )
        return Baselines(scored.alignment, scored.mass, scored.mass_with_attractor, ranked)


def _baselines(
    model: nn.Module, tokenized: TokenizedSet, few: TokenizedSet, seed: int
) -> dict[str, str | BaselineValues]:
    """The baselines beside zero by name; without a head for words none is the one that hurts the prediction least."""
    named: dict[str, str | BaselineValues] = {
        "mean": "mean",
        "corpus mean": mean_values(model, [one.encoding.ids for one in tokenized.examples]),
    }
    with suppress(HeadlessModelError):
        check_predicts_words(model)
        targets = [one.dest for one in few.examples]
        named["optimised"] = optimised_values(model, [one.encoding.ids for one in few.examples], targets, seed=seed)
    return named


def _some_rows(rows: TargetRows, indices: list[int]) -> TargetRows:
    """The rows of some of the examples."""
    return replace(
        rows,
        examples=tuple(rows.examples[index] for index in indices),
        rows={method: tuple(of_method[index] for index in indices) for method, of_method in rows.rows.items()},
    )


def _merged_alignment(scored: Sequence[_Scored]) -> CueAlignment:
    """The methods of several parts as one result; what a part could not give is left out with its reason."""
    alignments = [part.alignment for part in scored if part.alignment is not None]
    reasons = {name: part.reason for name, part in zip(SLOW, scored[1:], strict=True) if part.reason is not None}
    left_out = {name: reason for name, reason in alignments[0].left_out.items() if name not in SLOW} | reasons
    cells = tuple(cell for alignment in alignments for cell in alignment.cells)
    return replace(alignments[0], cells=cells, left_out=left_out)


def _merged_mass(masses: Sequence[Mass | None]) -> Mass | None:
    """The methods of several parts as one result; None where no part has any."""
    present = [mass for mass in masses if mass is not None]
    shares = tuple(share for mass in present for share in mass.shares)
    empty_rows = {name: count for mass in present for name, count in mass.empty_rows.items()}
    return replace(present[0], shares=shares, empty_rows=empty_rows) if present else None


# Controls: a model that learned nothing, and Value Zeroing by other distances and baselines.
# The paper: with other metrics, and with representations normalised before they are compared, the pattern stays.


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
