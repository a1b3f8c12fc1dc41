"""Several methods side by side on one clean run, and the table that compares them.

1. Sentences go in parts, short ones together, so that little of the clean run is held at a time.
2. A part's clean run is made once, if any method reads it; the methods that read a layer by itself share its Layer.
3. Every other method is called as a user would call it, with the clean run as `cache=` where it reads it.
4. Of a part only maps and effects are kept.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import Position, chosen
from tl_vzero.clean import CleanRun
from tl_vzero.effects.agreement import agreement, agreement_table, effects_named, measured_effect, rows_predict
from tl_vzero.effects.measure import Effect
from tl_vzero.errors import HeadlessModelError, InputError, ModelError, ScoresError, escaped, shown
from tl_vzero.files import to_plain
from tl_vzero.inputs.baselines import BaselineValues, baseline_of
from tl_vzero.inputs.encoder_decoder import DecoderInputs, as_given, encode_for
from tl_vzero.inputs.text import Ids, Inputs, Sentence, Text, padded, warned_before
from tl_vzero.methods.apply import scores_on_one_run
from tl_vzero.methods.plan import Planned, plan_of, with_baseline
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites, Stack
from tl_vzero.models.turns import takes_turn
from tl_vzero.registry import SIGNED
from tl_vzero.scores import Scores
from tl_vzero.statistics import FEWEST_PAIRS, defined_mean, rank_correlation, shares_by_layer
from tl_vzero.targets import (
    TargetIds,
    check_trained_head,
    default_target,
    find_target,
    one_per_sentence,
    target_tokens,
    why_no_default,
)

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 1  # of `Comparison.to_dict`
RESAMPLES = 2000  # of a bootstrap interval
TOKENS_PER_PART = 512  # of whose clean run all is held at a time

# numpy's own types would need each step's dtype; these are float64, [layer, dest, src] or [layer, dest].
Array = Any


@dataclass(frozen=True, eq=False, repr=False)
class Comparison(Mapping[str, Scores]):
    """Raw scores of one sentence by the method's name, in the order asked for.

    `effect` is what zeroing each value position does to the prediction at `target`; where there is none,
    `no_effect_reason` says why. `effects` are all that were measured, by name, this one first. `left_out` are methods
    that were not named and not computed, with the reason.
    `special` says which positions hold special tokens.
    """

    scores: Mapping[str, Scores]
    tokens: tuple[str, ...]
    special: tuple[bool, ...]
    target: int | None
    effect: Effect | None
    no_effect_reason: str | None
    left_out: Mapping[str, str]
    effects: Mapping[str, Effect] = field(default_factory=dict)

    def __getitem__(self, method: str) -> Scores:
        return self.scores[method]

    def __iter__(self) -> Iterator[str]:
        return iter(self.scores)

    def __len__(self) -> int:
        return len(self.scores)

    def __repr__(self) -> str:
        sentence = " ".join(token.strip() for token in self.tokens)
        return escaped(f"Comparison({', '.join(self.scores)}: {sentence!r})")

    def _repr_html_(self) -> str:
        # Intervals take long, and nobody waits for them here.
        table = self.table(resamples=1).drop(columns=["rank_with_effect_low", "rank_with_effect_high"])
        return str(table.to_html(index=False, float_format="{:.3f}".format, na_rep="–"))

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
        import pandas as pd

        reference = self.scores.get("value_zeroing")
        parts = [
            pd.DataFrame(
                {"method": name, "layer": scores.layers}
                | self._shares(scores)
                | {"rank_with_value_zeroing": _rank_with(scores, reference)}
                | _rank_with_effect(scores, self.effect, resamples)
            )
            for name, scores in self.scores.items()
        ]
        return pd.concat(parts, ignore_index=True)

    def _shares(self, scores: Scores) -> dict[str, Array]:
        """Entropy and weights; where the sources are another sentence's, no token has a weight on itself."""
        rows, special = scores.dest_positions, self.special
        if scores.n_src_positions is not None:
            rows, special = (), scores.metadata["encoder_special"]
        return shares_by_layer(scores.values, rows, scores.src_positions, special)

    def agreements(self, *, resamples: int = RESAMPLES) -> "pd.DataFrame":
        """The agreement of every method with every effect: a table like `agreement_table`'s."""
        return agreement_table(self.scores.values(), self.effects.values(), resamples=resamples)

    def to_dict(self) -> dict[str, Any]:
        """Maps, effects and table as plain JSON types; NaN in the table becomes None."""
        labels = "method baseline metric clean target target_token predicted layers src_positions".split()
        effects = {
            name: to_plain({label: getattr(effect, label) for label in labels}) | {"values": effect.values.tolist()}
            for name, effect in self.effects.items()
        }
        return {
            "format": "tl_vzero.comparison",
            "format_version": FORMAT_VERSION,
            "tokens": list(self.tokens),
            "special": list(self.special),
            "target": self.target,
            "scores": {name: scores.to_dict() for name, scores in self.scores.items()},
            "effect": effects.get("zero_ablation"),
            "effects": effects,
            "no_effect_reason": self.no_effect_reason,
            "left_out": dict(self.left_out),
            "table": to_plain(self.table().to_dict("records")),
        }


# The columns of the table: what each method's maps are like, layer by layer, and how their ranks agree.


def _rank_with(scores: Scores, reference: Scores | None) -> Array:
    """Spearman correlation with the reference's rows, averaged over destinations, layer by layer."""
    undefined = np.full(len(scores.layers), np.nan)
    if reference is None or (scores.n_src_positions is None) != (reference.n_src_positions is None):
        return undefined
    if scores.stage == "rollout":
        try:
            reference = reference.rollout()
        except ScoresError:
            return undefined
    dest = [p for p in scores.dest_positions if p in reference.dest_positions]
    src = [p for p in scores.src_positions if p in reference.src_positions]
    layers = [layer for layer in scores.layers if layer in reference.layers]
    if not dest or len(src) < FEWEST_PAIRS or not layers:
        return undefined
    means = defined_mean(_spearman(_picked(scores, layers, dest, src), _picked(reference, layers, dest, src)))
    by_layer = dict(zip(layers, means, strict=True))
    return np.array([by_layer.get(layer, np.nan) for layer in scores.layers])


def _picked(scores: Scores, layers: list[int], dest: list[int], src: list[int]) -> Array:
    values = scores.values.detach().cpu().double().numpy()
    axes = (scores.layers, layers), (scores.dest_positions, dest), (scores.src_positions, src)
    return values[np.ix_(*([present.index(label) for label in wanted] for present, wanted in axes))]


def _spearman(first: Array, second: Array) -> Array:
    """Of each row, over the sources at which not both are zero: where attention cannot reach, all methods agree."""
    reached = (first != 0) | (second != 0)
    rho = rank_correlation(first, second, where=reached)
    return np.where(reached.sum(axis=-1) >= FEWEST_PAIRS, rho, np.nan)


def _rank_with_effect(scores: Scores, effect: Effect | None, resamples: int) -> dict[str, Array]:
    names = ("rank_with_effect", "rank_with_effect_low", "rank_with_effect_high")
    if effect is None or effect.target not in scores.dest_positions or not rows_predict(scores, effect):
        return dict.fromkeys(names, np.nan)
    ranks = agreement(scores, effect, resamples=resamples)
    by_layer = dict(zip(ranks.layers, zip(ranks.rho, ranks.low, ranks.high, strict=True), strict=True))
    columns = zip(*(by_layer.get(layer, (np.nan,) * 3) for layer in scores.layers), strict=True)
    return dict(zip(names, columns, strict=True))


# Running the methods.


@takes_turn
def compare(
    model: nn.Module,
    inputs: Text,
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    layers: Iterable[int] | int | None = None,
    target: Position | Sequence[Position] | None = None,
    target_ids: TargetIds | None = None,
    baseline: str | Tensor | BaselineValues = "zero",
    effects: Sequence[str] = (),
    corrupted: Text | None = None,
    prepend_bos: bool = False,
    progress: bool = False,
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Comparison | list[Comparison]:
    """Several methods side by side, from one clean run, with effects on the prediction.

    `methods` are names of `METHODS`; by default Value Zeroing and every method that reads the clean run, is defined for
    the model and is not too slow for the sentence (`left_out` says which are not, and why). `options` are a method's
    own by its name, such as `{"hta": {"to": "embeddings"}}`. `inputs`, `attention_mask`, `token_type_ids` and `layers`
    are as in `value_zeroing`; a list of sentences gives a list. `target` is a position, or one for each sentence
    (default: the only mask, a causal model's last position, where a classifier's head reads), and `target_ids` are as
    in `zero_ablation`; `baseline` is that of Value Zeroing and of zero ablation.
    `effects` are names of effects beside zero ablation: "attribution_patching", "logit_lens",
    "direct_logit_attribution", and, from `inputs` into the `corrupted` sentence (a list for several), "value_patching"
    and "resid_pre_patching" and the other sites of `activation_patching`. A Comparison is a mapping from a method's
    name to its raw Scores, `[layer, dest, src]`, with `effect`, `effects`, `table()` and `agreements()`.

    Of an encoder-decoder `stack` and `decoder_inputs` are as in `value_zeroing`, and effects are on the decoder's
    prediction, as in `zero_ablation`: `target` is a position of what the decoder reads (default: the last), which is
    the same beside the `corrupted` sentence. For stack="encoder" the maps need no `decoder_inputs`, and without them
    there is no effect; a map's rows are the encoder's positions then, and none of them is the target.

    Raises InputError or InputTypeError for a bad argument, ModelError where a method that was named is undefined for
    or an effect that was named is undefined for the model, and leaves the model as it was.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> compared = tl_vzero.compare(model, "the authors [MASK] today.", ["value_zeroing", "attention"], layers=[1])
    >>> compared["attention"].values.shape
    torch.Size([1, 7, 7])
    >>> compared.table()[["method", "layer"]].to_dict("records")
    [{'method': 'value_zeroing', 'layer': 1}, {'method': 'attention', 'layer': 1}]
    """
    plan = plan_of(methods, options)
    checked = check_contracts(model, stack).stack
    named = effects_named(effects, corrupted=corrupted is not None, stack=checked)
    beside: Any = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "prepend_bos": prepend_bos}
    named_one = any(option is not None for option in (decoder_inputs, target, target_ids, corrupted)) or len(named) > 1
    predicting = named_one or any("target" in planned.method.needs for planned in plan)
    encoded = encode_for(model, checked, inputs, decoder_inputs, predicting=predicting, **beside)
    return compare_planned(
        plan,
        model,
        encoded,
        target,
        target_ids,
        progress,
        layers,
        prepend_bos,
        baseline,
        named,
        _corrupted(corrupted, encoded),
        checked,
    )


def _corrupted(corrupted: Any, encoded: Inputs) -> Sequence[Text | None]:
    """The corrupted sentence of each sentence; None where there is none."""
    count = len(encoded.sentences)
    if corrupted is None or encoded.single:
        return [corrupted] * count
    if not isinstance(corrupted, list | tuple) or len(corrupted) != count:
        raise InputError(f"corrupted are {shown(corrupted)} for {count} sentences: expected a list with one for each")
    return corrupted


def compare_planned(
    plan: Sequence[Planned],
    model: nn.Module,
    encoded: Inputs,
    target: Position | Sequence[Position] | None,
    target_ids: TargetIds | None,
    progress: bool,
    layers: Iterable[int] | int | None = None,
    prepend_bos: bool = False,
    baseline: str | Tensor | BaselineValues = "zero",
    effects: Sequence[str] = ("zero_ablation",),
    corrupted: Sequence[Text | None] | None = None,
    stack: Stack | None = None,
) -> Comparison | list[Comparison]:
    """What `compare` gives, of a plan and effects by name; `corrupted` has one for each sentence."""
    sites = check_contracts(model, stack)
    baseline_of(baseline, model, sites)
    plan = with_baseline(plan, baseline)
    chosen_layers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    target_tokens(model, target_ids)
    needed = target_ids is not None or any("target" in planned.method.needs for planned in plan)
    if needed and target is None:
        check_trained_head(model)
    # An encoder that was given alone predicts nothing.
    predicting = [sentence for sentence in encoded.sentences if stack != "encoder" or sentence.encoder is not None]
    targets = _targets(model, predicting, target, needed=needed)
    short, too_long = _within_cost(plan, encoded.sentences)
    into = corrupted or [None] * len(encoded.sentences)
    run = _Run(model, sites, chosen_layers, targets, target_ids, prepend_bos, baseline, effects, into)
    compared: dict[int, Comparison] = {}
    parts = list(encoded.batches(TOKENS_PER_PART))
    bar = tqdm(total=len(parts) * len(short), disable=not progress, desc="compare", unit="method", leave=False)
    with warned_before(), bar:
        for part in parts:
            for comparison, sentence in zip(run.compared(short, part, too_long, bar), part, strict=True):
                compared[sentence.row] = comparison
    return encoded.in_order(compared)


def _targets(
    model: nn.Module, sentences: Sequence[Sentence], target: Position | Sequence[Position] | None, *, needed: bool
) -> dict[int, int | None]:
    """Each sentence's target by its row; None where none is given or needed and there is no default."""
    return {
        sentence.row: find_target(model, sentence, position)
        if needed or position is not None
        else default_target(model, sentence)
        for sentence, position in zip(sentences, one_per_sentence(target, len(sentences)), strict=True)
    }


def _within_cost(plan: Sequence[Planned], sentences: Sequence[Sentence]) -> tuple[list[Planned], dict[str, str]]:
    """The methods that are quick enough for the longest sentence, or were named; and why the others are left out."""
    longest = max(max(sentence.shape[:2]) for sentence in sentences)
    left_out = {
        planned.name: f"a sentence has {longest} tokens, and its cost grows fast past {planned.method.compared_up_to}: "
        "name it among methods to have it"
        for planned in plan
        if not planned.named and longest > (planned.method.compared_up_to or longest)
    }
    left_out |= {planned.name: SIGNED for planned in plan if planned.method.signed and not planned.named}
    return [planned for planned in plan if planned.name not in left_out], left_out


@dataclass(frozen=True, eq=False)
class _Run:
    """What all parts and methods of one comparison have in common."""

    model: nn.Module
    sites: Sites
    layers: tuple[int, ...]
    targets: Mapping[int, int | None]
    target_ids: TargetIds | None
    prepend_bos: bool
    baseline: str | Tensor | BaselineValues
    effects: Sequence[str]
    corrupted: Sequence[Text | None]

    def compared(
        self, plan: list[Planned], part: list[Sentence], too_long: Mapping[str, str], bar: Any
    ) -> list[Comparison]:
        mapped, clean = [self._mapped(sentence) for sentence in part], None
        if any("clean run" in planned.method.needs for planned in plan):
            with quiet(self.model):
                clean = CleanRun(self.model, self.sites, mapped, last=max(self.layers))
        encoded = Inputs(tuple(mapped), single=False)
        of_layers = scores_on_one_run(plan, self.model, self.sites, encoded, self.layers, clean)
        scored: dict[str, list[Scores]] = {}
        left_out = dict(too_long)
        for planned in plan:
            by_row = of_layers.get(planned.name)
            try:
                if isinstance(by_row, ModelError):
                    raise by_row
                scored[planned.name] = (
                    [by_row[sentence.row] for sentence in part] if by_row else self._called(planned, part, clean)
                )
            except ModelError as error:
                left_out[planned.name] = planned.reason(error)
            bar.update()
        del clean, of_layers
        effects = [self._effects(sentence) for sentence in part]
        return [
            Comparison(
                scores={name: scores[index] for name, scores in scored.items()},
                tokens=sentence.tokens,
                special=sentence.special,
                target=self.targets.get(sentence.row),
                effect=measured.get("zero_ablation"),
                no_effect_reason=reason,
                left_out=left_out,
                effects=measured,
            )
            for index, (sentence, (measured, reason)) in enumerate(zip(mapped, effects, strict=True))
        ]

    def _mapped(self, sentence: Sentence) -> Sentence:
        """The sentence whose positions are a map's rows: those of an encoder's map are not the decoder's."""
        return sentence.encoder if self.sites.stack == "encoder" and sentence.encoder is not None else sentence

    def _called(self, planned: Planned, part: list[Sentence], clean: CleanRun | None) -> list[Scores]:
        """A method's scores, called with the sentences as the caller gave them: text, or ids and what is beside."""
        beside = planned.of_stack(part, self.sites.stack)
        read = [sentence.encoder or sentence for sentence in part]
        inputs: Any = [sentence.original for sentence in read]
        arguments: dict[str, Any] = {}
        if None in inputs:
            inputs, arguments = planned.read(read)
        arguments |= beside
        if self.prepend_bos:
            arguments["prepend_bos"] = True
        if self.layers != tuple(range(self.sites.n_layers)):
            arguments["layers"] = self.layers
        if "clean run" in planned.method.needs:
            arguments["cache"] = clean
        if "target" in planned.method.needs:
            targets = [self.targets[sentence.row] for sentence in part]
            arguments |= {"target": targets, "target_ids": self.target_ids}
        return planned.called(self.model, inputs, len(part), **arguments)

    def _effects(self, sentence: Sentence) -> tuple[dict[str, Effect], str | None]:
        target, read = self.targets.get(sentence.row), sentence.encoder or sentence
        options: Any = {"target_ids": self.target_ids, "layers": self.layers, "prepend_bos": self.prepend_bos}
        options["baseline"] = self.baseline
        if self.sites.stack is not None:
            if sentence.encoder is None:
                return {}, "no decoder_inputs were given, and the prediction is the decoder's"
            options |= {"stack": self.sites.stack, "decoder_inputs": as_given(sentence)}
        inputs: Any = read.original
        if read.signal is not None:
            inputs = read.signal
        elif inputs is None:
            (inputs,), _, (options["token_type_ids"],) = padded([read])
        try:
            check_trained_head(self.model)  # before a mask is asked for, which would be in vain
            if target is None:
                return {}, f"{why_no_default(self.model, sentence)}, and no target was given"
            corrupted = self.corrupted[sentence.row]
            return {
                name: measured_effect(name, self.model, inputs, corrupted, target=target, **options)
                for name in self.effects
            }, None
        except HeadlessModelError as error:
            return {}, str(error)
