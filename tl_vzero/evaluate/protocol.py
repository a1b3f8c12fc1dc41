"""The whole protocol over one model: three evaluations, the mass of rows, and the controls, part by part.

1. Sentences are read, filtered for the model's tokenizer and split into halves by a seed.
2. If asked, the model is fine-tuned on the train half. Where there was a reason to split (fine-tuning, or BLiMP, as
   in the paper), the test half is evaluated, else all sentences.
3. Each part is kept in a folder as soon as it is finished; called again, the protocol goes on after the last one.

Source: Mohebbi et al. 2023, sections 4 to 7.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from torch import nn
from tqdm.auto import tqdm

from tl_vzero.choices import positive
from tl_vzero.data.examples import Example, ExampleSet, split_in_halves
from tl_vzero.data.parsed_cues import check_cues
from tl_vzero.errors import DependencyError, InputError, InputTypeError, ModelError
from tl_vzero.evaluate.controls import randomised_copy, rows_by_distance
from tl_vzero.evaluate.cue_alignment import CueAlignment, alignment_of
from tl_vzero.evaluate.faithfulness import faithfulness
from tl_vzero.evaluate.finetuning import FineTuned, accuracy, finetune
from tl_vzero.evaluate.mass import mass_of
from tl_vzero.evaluate.probing import ModeName, probe_number
from tl_vzero.evaluate.published import Training, published_of
from tl_vzero.evaluate.reproduction import (
    Controls,
    KeptAccuracy,
    KeptCueCheck,
    KeptFaithfulness,
    KeptProbing,
    KeptScores,
    Reproduction,
    links_of,
    merged_alignment,
    merged_mass,
    some_rows,
)
from tl_vzero.evaluate.rows import target_rows
from tl_vzero.evaluate.sentences import Sentences, limited, sentences_for
from tl_vzero.evaluate.statistics import Interval
from tl_vzero.evaluate.store import Store, open_store
from tl_vzero.evaluate.tokenized import TokenizedSet, tokenize_examples
from tl_vzero.models.contracts import provenance
from tl_vzero.models.facts import facts_of, library_versions

# Methods that are too dear for a default elsewhere, and on how many sentences they are evaluated here.
SLOW = {"integrated_gradients": 200, "deep_lift": 200, "hta": 50}
OF_RANDOM_WEIGHTS = ("value_zeroing", "random", "attention", "attention_norm", "alti", "gradient_x_input")
# What the parts cost beside each other, for the time left.
COSTS = {
    "scores": 10,
    **{f"scores-{name}": 15 for name in SLOW},
    "cues": 1,
    "accuracy": 1,
    "probing": 2,
    "probing-paper": 1,
    "faithfulness": 18,
    "random-scores": 3,
    "random-probing": 2,
    "distances": 6,
}

Result = TypeVar("Result")


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
    draws everything that is drawn. Finished parts are kept in `folder`, and read again from there.

    What a model or the data cannot give (a prediction without a trained head, a probe of few sentences) is None, with
    the reason in `missing`. Raises InputError for a bad argument or a folder of other options, ModelError for a causal
    model, OutputPathError for a folder that cannot be written, and leaves the model as it was.

    >>> import tl_vzero
    >>> found = reproduce(tl_vzero.load_model("agreement-mini"), limit=2)
    >>> found.missing["probing"][:37]
    'given 2 examples: expected at least 1'
    """
    if isinstance(seed, bool) or not isinstance(seed, int):
        raise InputTypeError(f"seed is {type(seed).__name__}: expected an integer")
    positive("limit", limit)
    sentences = sentences_for(model, blimp=blimp)
    split = sentences.examples if _has_halves(sentences.examples) else split_in_halves(sentences.examples, seed=seed)
    whole = not fine_tuned and blimp is None
    asked = split if whole else replace(split, examples=split.half("test"))
    evaluated = asked if limit is None else limited(asked, limit, seed)
    tokenize_examples(model, evaluated)  # a causal model is told at the door
    metadata = _metadata(model, sentences, split, evaluated, "all" if whole else "test half", seed, limit, fine_tuned)
    store = open_store(None if folder is None else Path(folder) / "parts", metadata)
    tuned = _tuned(model, split, folder, seed, progress) if fine_tuned else None
    job = _Job(
        model=model if tuned is None else tuned.load(),
        examples=evaluated,
        training=_training(model, fine_tuned),
        published=published_of(facts_of(model).name, _training(model, fine_tuned)),
        seed=seed,
        store=store,
        progress=progress,
    )
    history = None if tuned is None else [list(row) for row in tuned.to_frame().reset_index().values.tolist()]
    return job.run({**metadata, "fine_tuning": history})


def _has_halves(examples: ExampleSet) -> bool:
    return all(each.split is not None for each in examples)


def _training(model: nn.Module, fine_tuned: bool) -> Training | None:
    known = published_of(facts_of(model).name, None) is not None
    return "finetuned" if known and fine_tuned else None


def _tuned(model: nn.Module, split: ExampleSet, folder: str | Path | None, seed: int, progress: bool) -> FineTuned:
    if folder is None:
        raise InputError("fine-tuning asked for without a folder: expected folder=, to keep the fine-tuned model in")
    return finetune(model, split.examples, Path(folder) / "fine-tuned", seed=seed, progress=progress)


def _metadata(
    model: nn.Module,
    sentences: Sentences,
    split: ExampleSet,
    evaluated: ExampleSet,
    which: str,
    seed: int,
    limit: int | None,
    fine_tuned: bool,
) -> dict[str, Any]:
    own = provenance(model)
    halves = {half: sum(each.split == half for each in split) for half in ("train", "test")}
    return {
        "model": own["model"],
        "weights_sha256": own["weights_sha256"],
        "fine_tuned": fine_tuned,
        "sentences": sentences.source,
        "filters": [{"name": stage.name, "kept": dict(stage.kept)} for stage in split.report.stages],
        "split_seed": split.split_seed,
        "halves": halves,
        "evaluated": which,
        "evaluated_counts": evaluated.counts(),
        "evaluated_n": len(evaluated),
        "evaluated_sha256": _hash_of(evaluated.examples),
        "limit": limit,
        "dear_methods": {name: min(len(evaluated), most) for name, most in SLOW.items()},
        "seed": seed,
        "versions": library_versions(),
    }


def _hash_of(examples: tuple[Example, ...]) -> str:
    rows = [(each.id, each.words, each.target, each.bad, each.cue, each.attractor, each.number) for each in examples]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class _Job:
    """The parts of one protocol, each computed or read."""

    model: nn.Module
    examples: ExampleSet
    training: Training | None
    published: Any
    seed: int
    store: Store
    progress: bool
    missing: dict[str, str] = field(default_factory=dict)

    def run(self, metadata: Mapping[str, Any]) -> Reproduction:
        layout = tokenize_examples(self.model, self.examples)
        with self._bar() as part:
            scored = [part("scores", KeptScores, lambda: self._scores(self.model, layout, None))]
            scored += [
                part(f"scores-{name}", KeptScores, lambda name=name: self._scores(self.model, self._few(name), [name]))
                for name in SLOW
            ]
            alignment = merged_alignment(scored, tuple(SLOW))
            checked = part("cues", KeptCueCheck, self._checked_cues).check
            mass = merged_mass([each.mass for each in scored])
            assert mass is not None, "the default methods leave out what is undefined, one by one"
            right = part("accuracy", KeptAccuracy, self._accuracy).accuracy
            probing = part("probing", KeptProbing, lambda: self._probed(self.model, layout, "correct")).probing
            paper = part("probing-paper", KeptProbing, lambda: self._probed(self.model, layout, "paper")).probing
            faithful = part("faithfulness", KeptFaithfulness, self._faithfulness).faithfulness
            controls = self._controls(layout, alignment, part)
        return Reproduction(
            metadata=metadata,
            accuracy=right,
            alignment=alignment,
            cue_check=checked,
            mass=mass,
            mass_with_attractor=merged_mass([each.mass_with_attractor for each in scored]),
            probing=probing,
            probing_paper=paper,
            links=links_of(alignment, probing, self.seed),
            faithfulness=faithful,
            controls=controls,
            published_compression=() if self.published is None else self.published.compression,
            missing=dict(self.missing),
        )

    @contextmanager
    def _bar(self) -> Iterator[Callable[..., Any]]:
        """What computes a part or reads it, and moves the bar on by what parts cost."""
        left = [name for name in COSTS if not self.store.has(name)]
        total = sum(COSTS[name] for name in left)
        layout = "{desc}{percentage:3.0f}%|{bar}| {elapsed} so far, {remaining} left"
        with tqdm(total=total, disable=not self.progress, desc="reproduce", bar_format=layout) as bar:

            def part(name: str, kind: type[Result], compute: Callable[[], Result]) -> Result:
                bar.set_description(f"reproduce, {name}")
                new = not self.store.has(name)
                kept = self.store.part(name, kind, compute)
                reason = getattr(kept, "reason", None)
                if reason is not None:
                    self.missing[name] = reason
                bar.update(COSTS[name] if new else 0)
                return kept

            yield part

    @property
    def _interval(self) -> Interval:
        return Interval(seed=self.seed)

    def _scores(self, model: nn.Module, layout: TokenizedSet, methods: list[str] | None) -> KeptScores:
        try:
            rows = target_rows(model, layout, methods, progress=self.progress)
        except (ModelError, DependencyError) as error:
            if methods is None:
                raise
            return KeptScores(str(error))
        training = self.training if model is self.model else None
        aligned = alignment_of(rows, training=training, interval=self._interval, seed=self.seed)
        attracted = [number for number, each in enumerate(rows.examples) if each.attractor("all")]
        return KeptScores(
            None,
            aligned,
            mass_of(rows, interval=self._interval),
            mass_of(some_rows(rows, attracted), interval=self._interval) if attracted else None,
        )

    def _few(self, name: str) -> TokenizedSet:
        return tokenize_examples(self.model, limited(self.examples, SLOW[name], self.seed))

    def _checked_cues(self) -> KeptCueCheck:
        try:
            return KeptCueCheck(None, check_cues(self.examples))
        except DependencyError as error:
            return KeptCueCheck(str(error))

    def _accuracy(self) -> KeptAccuracy:
        try:
            return KeptAccuracy(None, accuracy(self.model, self.examples, half=None))
        except (ModelError, InputError) as error:
            return KeptAccuracy(str(error))

    def _probed(self, model: nn.Module, layout: TokenizedSet, mode: ModeName) -> KeptProbing:
        try:
            return KeptProbing(None, probe_number(model, layout, mode=mode, seed=self.seed, progress=self.progress))
        except InputError as error:
            return KeptProbing(str(error))

    def _faithfulness(self) -> KeptFaithfulness:
        try:
            found = faithfulness(
                self.model,
                self.examples,
                training=self.training,
                interval=self._interval,
                progress=self.progress,
            )
        except ModelError as error:
            return KeptFaithfulness(str(error))
        return KeptFaithfulness(None, found)

    def _controls(self, layout: TokenizedSet, alignment: CueAlignment, part: Callable[..., Any]) -> Controls:
        known = {cell.method for cell in alignment.cells}
        methods = [name for name in OF_RANDOM_WEIGHTS if name in known]

        def scored() -> KeptScores:
            try:
                return self._scores(randomised_copy(self.model, self.seed), layout, methods)
            except ModelError as error:
                return KeptScores(str(error))

        def probed() -> KeptProbing:
            try:
                return self._probed(randomised_copy(self.model, self.seed), layout, "correct")
            except ModelError as error:
                return KeptProbing(str(error))

        def by_distance() -> KeptScores:
            rows = rows_by_distance(self.model, layout, progress=self.progress)
            return KeptScores(None, alignment_of(rows, interval=self._interval, seed=self.seed))

        return Controls(
            part("random-scores", KeptScores, scored).alignment,
            part("random-probing", KeptProbing, probed).probing,
            part("distances", KeptScores, by_distance).alignment,
        )
