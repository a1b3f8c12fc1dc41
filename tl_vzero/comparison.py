"""Several methods on one sentence, from one clean run, and the table that sets them side by side."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import chosen, one_of
from tl_vzero.clean import CleanRun
from tl_vzero.effects.ablation import zero_ablation
from tl_vzero.effects.agreement import FEWEST_SOURCES, agreement
from tl_vzero.effects.measure import Effect
from tl_vzero.errors import (
    HeadlessModelError,
    InputError,
    InputTypeError,
    ModelError,
    PluginError,
    ScoresError,
    escaped,
    shown,
    unknown_name,
)
from tl_vzero.inputs.text import Ids, Inputs, Sentence, Text, encode, padded, warned_before
from tl_vzero.methods.apply import AskedMethod, scores_on_one_run
from tl_vzero.methods.method import Method
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites
from tl_vzero.scores import Scores
from tl_vzero.targets import TargetIds, find_target, mask_positions, target_tokens

if TYPE_CHECKING:
    import pandas as pd


# What a comparison is to compute, checked before any work.

BY_COMPARE = ("attention_mask", "cache", "layers", "prepend_bos", "progress", "target", "target_ids", "token_type_ids")
OTHER_AXES = ("per_head", "spans")


@dataclass(frozen=True)
class Planned:
    """A method with its own options; one that was not named is left out where it is undefined."""

    name: str
    method: Method
    named: bool
    options: Mapping[str, Any]

    def read(self, sentences: Sequence[Sentence]) -> tuple[Tensor, dict[str, Tensor]]:
        """Sentences as ids to call the method with, padded, and their mask and segments where it needs them.

        Raises InputError for segments that another package's method does not take.
        """
        ids, mask, token_types = padded(sentences)
        beside = {} if bool(mask.all()) else {"attention_mask": mask}
        takes, has_segments = self.method.options, bool(token_types.any())
        if "token_type_ids" in (takes or ()) or (takes is None and has_segments):
            # Also where all are 0: that says that one segment is meant.
            beside["token_type_ids"] = token_types
        elif has_segments:
            raise InputError(
                f"the method {self.name!r} takes no token_type_ids, and a sentence has several segments: leave the "
                "method out, or give sentences of one segment"
            )
        return ids, beside


def plan_of(
    known: Mapping[str, Method], methods: Sequence[str] | None, options: Mapping[str, Mapping[str, Any]] | None
) -> list[Planned]:
    """The methods in order, by default all that read the clean run; raises InputError or InputTypeError."""
    names = _named(known, methods)
    own = _checked_options(known, names, options)
    # Value Zeroing is what the others are compared with: where it is undefined, there is nothing to leave it out of.
    return [
        Planned(name, known[name], methods is not None or name == "value_zeroing", own.get(name, {})) for name in names
    ]


def _named(known: Mapping[str, Method], methods: Any) -> list[str]:
    if methods is None:
        return [name for name, method in known.items() if "clean run" in method.needs]
    if isinstance(methods, str) or not isinstance(methods, Sequence):
        raise InputTypeError(
            f"methods is {shown(methods)}: expected a list of names, such as ['value_zeroing', 'alti']"
        )
    if not methods:
        raise InputError(f"methods is empty: expected some of {', '.join(known)}, or None for those of the clean run")
    for name in methods:
        one_of("method", name, known)
    repeated = sorted({name for name in methods if list(methods).count(name) > 1})
    if repeated:
        raise InputError(f"methods holds {', '.join(repeated)} more than once: expected each at most once")
    return list(methods)


def _checked_options(known: Mapping[str, Method], names: list[str], options: Any) -> dict[str, Mapping[str, Any]]:
    if options is None:
        return {}
    if not isinstance(options, Mapping) or not all(isinstance(own, Mapping) for own in options.values()):
        raise InputTypeError(
            f"options is {options!r}: expected each method's own by its name, such as {{'hta': {{'to': 'embeddings'}}}}"
        )
    for name, own in options.items():
        one_of("method in options", name, names)
        for option in own:
            _check_option(name, known[name], option)
    return dict(options)


def _check_option(name: str, method: Method, option: str) -> None:
    if option in BY_COMPARE:
        raise InputError(f"options of {name} hold {option!r}: it is one for all methods; give it to compare itself")
    if option in OTHER_AXES:
        raise InputError(
            f"options of {name} hold {option!r}: expected none, as methods are compared by one map a layer; call "
            f"score(model, inputs, {name!r}, {option}=...) for it"
        )
    takes = method.options
    if takes is not None and option not in takes:
        raise unknown_name(f"option of {name}", option, [each for each in takes if each not in BY_COMPARE + OTHER_AXES])


# A comparison as a table: what each method's maps are like, layer by layer, and how their ranks agree.

RESAMPLES = 2000

# numpy's own types would need each step's dtype; these are float64, [layer, dest, src] or [layer, dest].
Array = Any


def summarised(
    by_method: Mapping[str, Scores], special: Sequence[bool], effect: Effect | None, *, resamples: int
) -> "pd.DataFrame":
    """One row for each method and layer; the columns are those that `Comparison.table` describes."""
    import pandas as pd

    reference = by_method.get("value_zeroing")
    parts = [
        pd.DataFrame(
            {"method": name, "layer": scores.layers}
            | shares_by_layer(scores, special)
            | {"rank_with_value_zeroing": _rank_with(scores, reference)}
            | _rank_with_effect(scores, effect, resamples)
        )
        for name, scores in by_method.items()
    ]
    return pd.concat(parts, ignore_index=True)


def shares_by_layer(scores: Scores, special: Sequence[bool]) -> dict[str, Array]:
    """Entropy in bits, weight on the token itself and on special tokens: of each layer, its rows' mean."""
    shares = _shares(scores)
    held = shares > 0
    entropy = np.where(np.isnan(shares), np.nan, -shares * np.log2(shares, where=held, out=np.zeros_like(shares)))
    own = [
        (row, scores.src_positions.index(p)) for row, p in enumerate(scores.dest_positions) if p in scores.src_positions
    ]
    rows, columns = [row for row, _ in own], [column for _, column in own]
    is_special = [special[position] for position in scores.src_positions]
    return {
        "entropy": _mean(entropy.sum(axis=-1)),
        "self_weight": _mean(shares[:, rows, columns]),
        "special_weight": _mean(shares[:, :, is_special].sum(axis=-1)),
    }


def _shares(scores: Scores) -> Array:
    """Rows that sum to one; NaN where a row is empty or holds negative scores."""
    values = scores.values.detach().cpu().double().numpy()
    total = values.sum(axis=-1, keepdims=True)
    is_distribution = (values >= 0).all(axis=-1, keepdims=True) & (total > 0)
    return np.where(is_distribution, values / np.where(is_distribution, total, 1), np.nan)


def _mean(values: Array) -> Array:
    """Mean over the last axis of what is not NaN; NaN where nothing is left."""
    known = ~np.isnan(values)
    count = known.sum(axis=-1)
    total = np.where(known, values, 0).sum(axis=-1)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _rank_with(scores: Scores, reference: Scores | None) -> Array:
    """Spearman correlation with the reference's rows, averaged over destinations, layer by layer."""
    undefined = np.full(len(scores.layers), np.nan)
    if reference is None:
        return undefined
    if scores.stage == "rollout":
        try:
            reference = reference.rollout()
        except ScoresError:
            return undefined
    dest = [p for p in scores.dest_positions if p in reference.dest_positions]
    src = [p for p in scores.src_positions if p in reference.src_positions]
    layers = [layer for layer in scores.layers if layer in reference.layers]
    if not dest or len(src) < FEWEST_SOURCES or not layers:
        return undefined
    found = _mean(_spearman(*(_picked(each, layers, dest, src) for each in (scores, reference))))
    by_layer = dict(zip(layers, found, strict=True))
    return np.array([by_layer.get(layer, np.nan) for layer in scores.layers])


def _picked(scores: Scores, layers: list[int], dest: list[int], src: list[int]) -> Array:
    values = scores.values.detach().cpu().double().numpy()
    axes = (scores.layers, layers), (scores.dest_positions, dest), (scores.src_positions, src)
    return values[np.ix_(*([known.index(each) for each in wanted] for known, wanted in axes))]


def _spearman(first: Array, second: Array) -> Array:
    """Of each row, over the sources at which not both are zero: where attention cannot reach, all methods agree."""
    from scipy.stats import rankdata

    kept = (first != 0) | (second != 0)
    count = np.maximum(kept.sum(axis=-1, keepdims=True), 1)

    def centred_ranks(rows: Array) -> Array:
        # What is not kept comes first in both, and so moves all other ranks alike.
        ranks = np.where(kept, rankdata(np.where(kept, rows, -np.inf), axis=-1), 0)
        return np.where(kept, ranks - ranks.sum(axis=-1, keepdims=True) / count, 0)

    one, other = centred_ranks(first), centred_ranks(second)
    spread = np.sqrt((one**2).sum(axis=-1) * (other**2).sum(axis=-1))
    defined = (spread > 0) & (kept.sum(axis=-1) >= FEWEST_SOURCES)
    return np.where(defined, (one * other).sum(axis=-1) / np.where(defined, spread, 1), np.nan)


def _rank_with_effect(scores: Scores, effect: Effect | None, resamples: int) -> dict[str, Array]:
    names = ("rank_with_effect", "rank_with_effect_low", "rank_with_effect_high")
    if effect is None or effect.target not in scores.dest_positions:
        return dict.fromkeys(names, np.nan)
    found = agreement(scores, effect, resamples=resamples)
    by_layer = dict(zip(found.layers, zip(found.rho, found.low, found.high, strict=True), strict=True))
    columns = zip(*(by_layer.get(layer, (np.nan,) * 3) for layer in scores.layers), strict=True)
    return dict(zip(names, columns, strict=True))


# What a comparison found for one sentence.

FORMAT_VERSION = 1


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Mapping[str, Scores]):
    """Raw scores of one sentence by the method's name, in the order asked for.

    `effect` is what zeroing each value position does to the prediction at `target`; where there is none,
    `no_effect_reason` says why. `left_out` are methods that were not named and not computed, with the reason.
    `special` says which positions hold special tokens.
    """

    scores: Mapping[str, Scores]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    target: int | None
    effect: Effect | None
    no_effect_reason: str | None
    left_out: Mapping[str, str]

    def __getitem__(self, method: str) -> Scores:
        return self.scores[method]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        sentence = " ".join(token.strip() for token in self.tokens)
        return escaped(f"Comparison({', '.join(self.scores)}: {sentence!r})")

    def table(self, *, resamples: int = RESAMPLES) -> "pd.DataFrame":
        """One row for each method and layer, in plain numbers; NaN where one is undefined.

        - `entropy`: of a normalised row, in bits, averaged over destinations
        - `self_weight`: what a normalised row has of its own token, averaged
        - `special_weight`: what it has of special tokens together, averaged
        - `rank_with_value_zeroing`: Spearman correlation of a row with the same row of Value Zeroing, over sources
          that either of them reaches, averaged over rows of at least three such sources. A map that is rolled out is
          compared with Value Zeroing rolled out, which needs all layers.
        - `rank_with_effect`, `_low`, `_high`: of the target's row with the size of the effect, see `agreement`; with
          a bootstrap interval of 95 % from so many `resamples`

        Empty rows are left out of averages, and so are rows with negative scores, which are no shares.
        """
        return summarised(self.scores, self.special, self.effect, resamples=resamples)

    def to_dict(self) -> dict[str, Any]:
        """Maps, effect and table as plain JSON types; NaN in the table becomes None."""
        return {
            "format": "tl_vzero.comparison",
            "format_version": FORMAT_VERSION,
            "tokens": list(self.tokens),
            "special": list(self.special),
            "target": self.target,
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "effect": None if self.effect is None else _effect_dict(self.effect),
            "no_effect_reason": self.no_effect_reason,
            "left_out": dict(self.left_out),
            "table": [_without_nan(row) for row in self.table().to_dict("records")],
        }


def _without_nan(row: Mapping[Any, Any]) -> dict[str, Any]:
    return {str(name): None if isinstance(value, float) and isnan(value) else value for name, value in row.items()}


def _effect_dict(effect: Effect) -> dict[str, Any]:
    return {
        "method": effect.method,
        "metric": effect.metric,
        "clean": effect.clean,
        "target": effect.target,
        "target_token": effect.target_token,
        "predicted": [list(pair) for pair in effect.predicted],
        "layers": list(effect.layers),
        "src_positions": list(effect.src_positions),
        "values": effect.values.tolist(),
    }


# Running several methods on one clean run.
#
# 1. Sentences go in parts, short ones together, so that little of the clean run is held at a time.
# 2. A part's clean run is made once, if any method reads it; the methods that read a layer by itself share its Layer.
# 3. Every other method is called as a user would call it, with the clean run as `cache=` where it reads it.
# 4. Of a part only maps and effects are kept.

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
