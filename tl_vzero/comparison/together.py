"""Running several methods on one clean run.

1. Sentences go in parts, short ones together, so that little of the clean run is held at a time.
2. A part's clean run is made once, if any method reads it; the methods that read a layer by itself share its Layer.
3. Every other method is called as a user would call it, with the clean run as `cache=` where it reads it.
4. Of a part only maps and effects are kept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from tl_vzero.choices import chosen
from tl_vzero.clean import CleanRun
from tl_vzero.comparison.plan import Planned, plan_of
from tl_vzero.comparison.result import Comparison
from tl_vzero.effects import Effect, zero_ablation
from tl_vzero.errors import HeadlessModelError, InputError, ModelError, PluginError
from tl_vzero.inputs import Ids, Inputs, Sentence, Text, encode, padded, warned_before
from tl_vzero.methods.method import Method
from tl_vzero.methods.run import AskedMethod, scores_on_one_run
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites
from tl_vzero.scores import Scores
from tl_vzero.targets import TargetIds, find_target, mask_positions, target_tokens

TOKENS_A_PART = 512


def compare_methods(
    known: Mapping[str, Method],
    model: nn.Module,
    inputs: Text,
    methods: Sequence[str] | None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None,
    attention_mask: Ids | None,
    token_type_ids: Ids | None,
    layers: Iterable[int] | int | None,
    target: int | Sequence[int] | None,
    target_ids: TargetIds | None,
    prepend_bos: bool,
    progress: bool,
) -> Comparison | list[Comparison]:
    """The comparison that `tl_vzero.compare` describes, of methods that are `known` by name."""
    plan = plan_of(known, methods, options)
    sites = check_contracts(model)
    numbers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    encoded = encode(
        model, inputs, attention_mask=attention_mask, token_type_ids=token_type_ids, prepend_bos=prepend_bos
    )
    target_tokens(model, target_ids)
    needed = target_ids is not None or any("target" in each.method.needs for each in plan)
    targets = _targets(model, encoded.sentences, target, needed=needed)
    short, too_long = _within_cost(plan, encoded.sentences)
    run = _Run(model, sites, numbers, targets, target_ids, prepend_bos)
    compared: dict[int, Comparison] = {}
    parts = list(_parts(encoded.sentences))
    bar = tqdm(total=len(parts) * len(short), disable=not progress, desc="compare", unit="method", leave=False)
    with warned_before(), bar:
        for part in parts:
            for comparison, sentence in zip(run.compared(short, part, too_long, bar), part, strict=True):
                compared[sentence.row] = comparison
    return encoded.in_order(compared)


def _targets(
    model: nn.Module, sentences: Sequence[Sentence], target: int | Sequence[int] | None, *, needed: bool
) -> dict[int, int | None]:
    """Each sentence's target by its row; None where none is given or needed and none is masked."""
    each: list[Any] = list(target) if isinstance(target, list | tuple) else [target] * len(sentences)
    if len(each) != len(sentences):
        raise InputError(
            f"target holds {len(each)} positions for {len(sentences)} sentences: expected one position for all, or "
            "one for each"
        )
    return {
        sentence.row: None
        if own is None and not needed and len(mask_positions(model, sentence)) != 1
        else find_target(model, sentence, own)
        for sentence, own in zip(sentences, each, strict=True)
    }


def _within_cost(plan: list[Planned], sentences: Sequence[Sentence]) -> tuple[list[Planned], dict[str, str]]:
    """The methods that are not too dear for the longest sentence, or were named; and why the others are left out."""
    longest = max(len(sentence) for sentence in sentences)
    left_out = {
        each.name: f"a sentence has {longest} tokens, and its cost grows fast past {each.method.compared_up_to}: "
        "name it among methods to have it"
        for each in plan
        if not each.named and longest > (each.method.compared_up_to or longest)
    }
    return [each for each in plan if each.name not in left_out], left_out


def _parts(sentences: Sequence[Sentence]) -> Iterator[list[Sentence]]:
    part: list[Sentence] = []
    for sentence in sorted(sentences, key=len):
        if part and sum(len(each) for each in part) + len(sentence) > TOKENS_A_PART:
            yield part
            part = []
        part.append(sentence)
    yield part


@dataclass(frozen=True, eq=False)
class _Run:
    """What all parts and methods of one comparison have in common."""

    model: nn.Module
    sites: Sites
    layers: tuple[int, ...]
    targets: Mapping[int, int | None]
    target_ids: TargetIds | None
    prepend_bos: bool

    def compared(
        self, plan: list[Planned], part: list[Sentence], too_long: Mapping[str, str], bar: Any
    ) -> list[Comparison]:
        clean = self._clean_run(part) if any("clean run" in each.method.needs for each in plan) else None
        scored, left_out = self._of_layers(plan, part, clean)
        bar.update(len(scored) + len(left_out))
        for each in plan:
            if each.method.layer is None:
                try:
                    scored[each.name] = self._called(each, part, clean)
                except ModelError as error:
                    left_out[each.name] = _reason(each, error)
                bar.update()
        del clean
        effects = [self._effect(sentence) for sentence in part]
        return [
            Comparison(
                scores={each.name: scored[each.name][index] for each in plan if each.name in scored},
                tokens=sentence.tokens,
                special=sentence.special,
                target=self.targets[sentence.row],
                effect=effect,
                no_effect_reason=reason,
                left_out={**too_long, **left_out},
            )
            for index, (sentence, (effect, reason)) in enumerate(zip(part, effects, strict=True))
        ]

    def _clean_run(self, part: list[Sentence]) -> CleanRun:
        with quiet(self.model):
            return CleanRun(self.model, self.sites, part, last=max(self.layers))

    def _of_layers(
        self, plan: list[Planned], part: list[Sentence], clean: CleanRun | None
    ) -> tuple[dict[str, list[Scores]], dict[str, str]]:
        """Scores of the methods that read a layer by itself, and the reasons of those that are undefined."""
        planned = {each.name: each for each in plan}
        asked = [
            AskedMethod(each.name, each.method.layer, options=each.options)
            for each in plan
            if each.method.layer is not None
        ]
        scored: dict[str, list[Scores]] = {}
        undefined: dict[str, str] = {}
        if asked:
            encoded = Inputs(tuple(part), single=False)
            found = scores_on_one_run(asked, self.model, self.sites, encoded, self.layers, clean)
            for name, by_row in found.items():
                if isinstance(by_row, ModelError):
                    undefined[name] = _reason(planned[name], by_row)
                else:
                    scored[name] = [by_row[sentence.row] for sentence in part]
        return scored, undefined

    def _called(self, planned: Planned, part: list[Sentence], clean: CleanRun | None) -> list[Scores]:
        inputs, beside = self._inputs_of(planned, part)
        arguments: dict[str, Any] = {**planned.options, **beside}
        if self.prepend_bos:
            arguments["prepend_bos"] = True
        if self.layers != tuple(range(self.sites.n_layers)):
            arguments["layers"] = self.layers
        if "clean run" in planned.method.needs:
            arguments["cache"] = clean
        if "target" in planned.method.needs:
            arguments |= {"target": [self.targets[each.row] for each in part], "target_ids": self.target_ids}
        return _one_each(planned.name, planned.method(self.model, inputs, **arguments), part)

    def _inputs_of(self, planned: Planned, part: list[Sentence]) -> tuple[Text, Mapping[str, Any]]:
        """Some sentences as the caller gave them, for a method to read: text, or ids and what stands beside them."""
        texts = [sentence.original for sentence in part]
        return planned.read(part) if None in texts else (texts, {})

    def _effect(self, sentence: Sentence) -> tuple[Effect | None, str | None]:
        target = self.targets[sentence.row]
        if target is None:
            masks = len(mask_positions(self.model, sentence))
            return None, f"the sentence has {masks} mask tokens, and no target was given"
        (ids,), _, (token_types,) = padded([sentence])
        alone = {"inputs": ids, "token_type_ids": token_types}
        if sentence.original is not None:
            alone = {"inputs": sentence.original}
        try:
            effect = zero_ablation(
                self.model,
                **alone,
                target=target,
                target_ids=self.target_ids,
                layers=self.layers,
                prepend_bos=self.prepend_bos,
            )
        except HeadlessModelError as error:
            return None, str(error)
        return effect, None


def _reason(planned: Planned, error: ModelError) -> str:
    """Why a method is left out; raises the error where it was named."""
    if planned.named:
        raise error
    return str(error)


def _one_each(name: str, scored: Any, part: list[Sentence]) -> list[Scores]:
    """A method's answers to several sentences; another package's may be of another kind."""
    given = scored if isinstance(scored, list) else []
    fitting = [each for each in given if isinstance(each, Scores) and each.heads is None]
    if len(fitting) != len(part) or len(given) != len(part):
        raise PluginError(
            f"the method {name!r} gave {type(scored).__name__} for {len(part)} sentences: expected a list of one "
            "Scores each, without heads"
        )
    return fitting
