"""Computing a report: the methods from one clean run, and the effects on the prediction."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, overload

from torch import Tensor, nn

from tl_vzero.api import head_shares, score, value_zeroing
from tl_vzero.choices import Positions, flag
from tl_vzero.comparison import Comparison, compare_planned
from tl_vzero.difference import aligned
from tl_vzero.effects.ablation import predictions
from tl_vzero.effects.agreement import PATCHED, effects_named, measured_effect
from tl_vzero.effects.measure import Effect, Predictions
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.inputs.baselines import BaselineValues
from tl_vzero.inputs.encoder_decoder import DecoderInputs, encode_for
from tl_vzero.inputs.text import Pair, is_pair, warned_before
from tl_vzero.methods.plan import plan_of
from tl_vzero.models.signals import signal_of
from tl_vzero.models.sites import stacks_of
from tl_vzero.registry import BUILT_IN, METHODS
from tl_vzero.report.long_text import LongReport, make_long_report
from tl_vzero.report.report import Heads, Report
from tl_vzero.report.translation import Translation, make_translation
from tl_vzero.scores import Scores
from tl_vzero.targets import TargetIds, check_trained_head, default_target, find_target, mask_positions, predicts

LONGEST_MAPPED = 1000  # tokens; two methods of 12 layers, by layer and rolled out, take 50 MB of a page then
Subject = str | Pair | Tensor  # a sentence, a pair, or an image or sound as floats


@overload
def make_report(
    model: nn.Module,
    text: Subject,
    *,
    decoder_inputs: None = None,
    destinations: None = None,
    methods: Sequence[str] | None = None,
    target: int | str | None = None,
    target_ids: TargetIds | None = None,
    baseline: str | Tensor | BaselineValues = "zero",
    corrupted: str | Pair | None = None,
    effects: Sequence[str] | None = None,
    compare: str | Pair | None = None,
    compare_model: nn.Module | None = None,
    heads: bool = False,
    progress: bool = False,
) -> Report: ...


@overload
def make_report(
    model: nn.Module,
    text: Subject,
    *,
    decoder_inputs: DecoderInputs,
    methods: Sequence[str] | None = None,
    baseline: str = "zero",
    progress: bool = False,
) -> Translation: ...


@overload
def make_report(
    model: nn.Module,
    text: Subject,
    *,
    destinations: Iterable[int | str] | int | str,
    baseline: str | Tensor | BaselineValues = "zero",
    progress: bool = False,
) -> LongReport: ...


def make_report(
    model: nn.Module,
    text: Subject,
    *,
    decoder_inputs: DecoderInputs | None = None,
    destinations: Positions = None,
    methods: Sequence[str] | None = None,
    target: int | str | None = None,
    target_ids: TargetIds | None = None,
    baseline: str | Tensor | BaselineValues = "zero",
    corrupted: str | Pair | None = None,
    effects: Sequence[str] | None = None,
    compare: str | Pair | None = None,
    compare_model: nn.Module | None = None,
    heads: bool = False,
    progress: bool = False,
) -> Report | Translation | LongReport:
    """Compute everything that the page of one sentence or pair shows, or of one image or sound as floats.

    Of an encoder-decoder `decoder_inputs` are what its decoder reads, as in `value_zeroing`: a text, or what
    `tl_vzero.report.generate` wrote. Its page is a Translation: the maps of both stacks and between them, their joint
    rollout, and what each written token draws on; it takes `methods` and a named `baseline`, and none of the other
    options.

    Of a long text, `destinations` are positions or texts of tokens as in `value_zeroing`: the page is a LongReport,
    which has their rows by Value Zeroing, as strips to zoom into and with their largest shares listed. It takes a
    `baseline` and none of the other options. A text of more than 1,000 tokens needs them.

    `methods` are names of `METHODS` to stand beside Value Zeroing and raw attention, which are always there; by default
    those that read the clean run and are quick, where the model has them. `target` is a position (negative: from the
    end) or the text of a token; by default as in `tl_vzero.compare`, and a masked model's sentence without exactly one
    mask token has no target. `target_ids` are those of `zero_ablation`, and `baseline` is what it and Value Zeroing put
    in a value's place. `corrupted` is a sentence of as many tokens, into which the values of `text` are patched.
    `effects` are the effects to choose from beside zero ablation, by the names that `tl_vzero.compare` takes; by
    default its estimate, and value patching if there is a `corrupted`. `compare` is a second sentence,
    `compare_model` a second model: the report of that sentence by that model stands beside this one, with the same
    methods; where only one of them is given, the other is the same; its target is the token that stands against
    this one's, else its default. `heads` adds the maps of every head, which cost one map each. A model without a
    trained head gives a report without effects.
    Raises InputError or InputTypeError for what cannot be used, and ModelError where a method of `methods` is undefined
    for the model.

    >>> import tl_vzero
    >>> from tl_vzero.report import make_report
    >>> report = make_report(tl_vzero.load_model("agreement-mini"), "the authors [MASK] today.", methods=["alti"])
    >>> list(report.comparison), list(report.effects)
    (['value_zeroing', 'alti', 'attention'], ['zero_ablation', 'attribution_patching'])
    """
    if destinations is not None or decoder_inputs is not None or stacks_of(model):
        others = {
            "target": target,
            "target_ids": target_ids,
            "corrupted": corrupted,
            "effects": effects,
            "compare": compare,
            "compare_model": compare_model,
            "heads": heads or None,
        }
        if destinations is not None:
            _refuse(others | {"decoder_inputs": decoder_inputs, "methods": methods}, "chosen destinations")
            return make_long_report(model, text, destinations, baseline=baseline, progress=progress)
        return _translation(model, text, decoder_inputs, others, methods=methods, baseline=baseline, progress=progress)
    for name, value in (("text", text), ("corrupted", corrupted), ("compare", compare)):
        is_read = isinstance(value, Tensor) and signal_of(model) is not None
        if not isinstance(value, str) and not is_pair(value) and not is_read and (name == "text" or value is not None):
            raise InputTypeError(
                f"{name} is {type(value).__name__}: a report is on one sentence, given as a string, or on a pair (a, b)"
            )
    flag("heads", heads)
    signal = signal_of(model)
    if methods is None:
        quick = {name: method for name, method in BUILT_IN.items() if method.reported_up_to != 0}
        quick = {name: replace(method, compared_up_to=method.reported_up_to) for name, method in quick.items()}
        plan = plan_of(None, registry=quick)
    else:
        plan_of(methods)  # as they are, so that an error is about them
        for name in methods:
            if METHODS[name].signed:
                raise InputError(f"a report shows shares, and {name}'s scores have signs: use compare or score for it")
        plan = plan_of(list(dict.fromkeys(["value_zeroing", *methods, "attention"])))
    default = ("attribution_patching", *(("value_patching",) if corrupted is not None else ()))
    wanted = effects_named(default if effects is None else effects, corrupted=corrupted is not None)
    encoded = encode_for(model, None, text, None)
    sentence = encoded.sentences[0]
    if len(sentence) > LONGEST_MAPPED:
        raise InputError(
            f"the text has {len(sentence)} tokens, and a page has room for maps of at most {LONGEST_MAPPED}: name the "
            "destinations whose rows it shows by destinations="
        )
    masks = mask_positions(model, sentence)
    words = {i for i, token in enumerate(sentence.tokens) if any(map(str.isalnum, token)) and not sentence.special[i]}
    beside = None
    if compare is not None or compare_model is not None:
        other = model if compare_model is None else compare_model, text if compare is None else compare
        at = None if target is None else target_beside(model, text, target, *other)
        options: dict[str, Any] = {
            "target": at,
            "target_ids": target_ids,
            "baseline": baseline,
            "heads": heads,
            "progress": progress,
        }
        beside = make_report(*other, methods=methods, **options)
    with warned_before():
        if target is None and target_ids is not None:
            check_trained_head(model)
        focus = default_target(model, sentence)
        if target is not None or target_ids is not None:
            focus = find_target(model, sentence, target)
        options = {"target": focus, "target_ids": target_ids, "baseline": baseline}
        measured: dict[str, Effect] = {}
        # First, because sentences of different lengths are refused here; all effects share the other reasons.
        missing: dict[str, str] = {}
        for name in [name for name in wanted if name in PATCHED and focus is not None]:
            try:
                measured[name] = measured_effect(name, model, text, corrupted, progress=progress, **options)
            except ModelError as error:
                missing[name] = str(error)
        compared = compare_planned(plan, model, encoded, focus, target_ids, progress, baseline=baseline)
        assert isinstance(compared, Comparison)
        of_heads = _heads(model, text, baseline) if heads else None
        predicted: Predictions = ()
        predicted_ids: tuple[tuple[int, ...], ...] = ()
        if compared.effect is not None:
            predicted, predicted_ids = predictions(model, text)
            measured["zero_ablation"] = compared.effect
            for name in [name for name in wanted if name not in PATCHED and name not in measured]:
                try:
                    measured[name] = measured_effect(name, model, text, None, **options)
                except ModelError as error:
                    missing[name] = str(error)
        else:
            missing = dict.fromkeys(wanted, str(compared.no_effect_reason))
    metadata = dict(compared["value_zeroing"].metadata) | {"predicts": predicts(model), "masks": list(masks)}
    return Report(
        model=str(metadata.get("model", type(model).__name__)),
        text=str(sentence.text) if signal is None else f"{signal.named}, {len(sentence)} positions",
        comparison=compared,
        effects={name: measured[name] for name in wanted if name in measured},
        missing=missing,
        predictions=predicted,
        predicted_ids=predicted_ids,
        corrupted=corrupted if corrupted is None or isinstance(corrupted, str) else "\n".join(corrupted),
        beside=beside,
        no_word_known=set() < words.difference(masks) <= set(sentence.unknown),
        metadata=metadata,
        heads=of_heads,
    )


def _translation(
    model: nn.Module, text: Subject, decoder_inputs: DecoderInputs | None, others: dict[str, Any], **options: Any
) -> Translation:
    """The page of an encoder-decoder, where no option is set that it does not take."""
    if not stacks_of(model):
        raise InputError("decoder_inputs given, and this model reads no second sequence: leave them out")
    if isinstance(text, Tensor):
        raise InputTypeError("text is a Tensor: the page of an encoder-decoder is on a text that its encoder reads")
    if decoder_inputs is None:
        raise InputError(
            "the model is an encoder-decoder, and no decoder_inputs given: expected what its decoder reads, a text, or "
            "what tl_vzero.report.generate(model, text) writes"
        )
    _refuse(others, "an encoder-decoder")
    return make_translation(model, text, decoder_inputs, **options)


def _refuse(options: dict[str, Any], subject: str) -> None:
    """Raise for an option that is set, where a page of this kind takes none of them."""
    for name, value in options.items():
        if value is not None:
            raise InputError(f"{name} given, and the page of {subject} does not show it: leave it out")


def target_beside(
    model: nn.Module, text: Subject, target: int | str, other_model: nn.Module, other_text: Subject
) -> int | None:
    """The position in a second sentence that stands against the target of the first; None where there is none."""
    first = encode_for(model, None, text, None).sentences[0]
    second = encode_for(other_model, None, other_text, None).sentences[0]
    position = find_target(model, first, target)
    return dict(aligned(first.tokens, second.tokens)).get(-1 if position is None else position)


def _heads(model: nn.Module, text: Subject, baseline: str | Tensor | BaselineValues) -> Heads:
    """The maps of every value head, and beside them the mean pattern of the query heads that read it."""
    zeroed = value_zeroing(model, text, per_head=True, baseline=baseline)
    pattern = score(model, text, method="attention", per_head=True)
    assert isinstance(zeroed, Scores)
    assert isinstance(pattern, Scores)
    assert zeroed.heads is not None
    values = pattern.values.unflatten(1, (len(zeroed.heads), -1))
    pattern = replace(pattern, values=values.mean(dim=2), heads=zeroed.heads)
    return Heads(zeroed, pattern, head_shares([zeroed]), query_heads=values.shape[2])
