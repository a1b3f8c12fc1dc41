"""What the same value positions do to the prediction, when zeroed in the running model."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.clean import ids_of
from tl_vzero.errors import HeadlessModelError, InputError, InputTypeError
from tl_vzero.inputs import Sentence, encode, find_target
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.facts import facts_of, vocabulary_size
from tl_vzero.models.run import NamedHook, quiet, run_logits
from tl_vzero.models.sites import Sites

LOGITS_A_BATCH = 2**25  # numbers held at once: a vocabulary is wide, and logits come for every position
PREDICTED_SHOWN = 5


@dataclass(frozen=True, eq=False)
class Effect:
    """The effect on one prediction of zeroing each value position in each layer of the running model.

    `values[layer, src]` is the metric with the position zeroed minus the clean metric: negative where
    the source supported the prediction. `metric` names it in words; `clean` is its value in the clean run.
    `predicted` are the likeliest tokens at the target with their probabilities, in the clean run.
    """

    values: Float[Tensor, "layer src"]
    clean: float
    metric: str
    target: int
    target_token: str
    predicted: tuple[tuple[str, float], ...]
    layers: tuple[int, ...]
    src_tokens: tuple[str, ...]
    src_positions: tuple[int, ...]
    word_ids: tuple[int | None, ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


def zero_ablation(
    model: nn.Module,
    inputs: str | Tensor,
    *,
    target: int | None = None,
    target_ids: int | tuple[int, int] | None = None,
    batch_size: int | None = None,
    progress: bool = False,
    prepend_bos: bool = False,
) -> Effect:
    """Zero each value position, layer by layer, in the running model, and follow it to the target's logit.

    Unlike Value Zeroing, later blocks see the change. `target` is a position (default: the only mask token).
    The metric is the logit of `target_ids` there, or the logit difference of a pair (good, bad); by default
    the logit of the clean run's likeliest token. Values are `[layer, src]`, in logits.

    Raises HeadlessModelError for a model whose head was never trained, InputError for a bad target.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> effect = tl_vzero.zero_ablation(model, "the authors [MASK] here.")
    >>> effect.target_token
    '[MASK]'
    """
    sites = check_contracts(model)
    if facts_of(model).head == "absent":
        raise HeadlessModelError(
            f"{facts_of(model).name} has no trained prediction head, so its logits mean nothing: expected a model "
            "with a trained head for an effect on the prediction; the context-mixing scores need none"
        )
    encoded = encode(model, inputs, prepend_bos=prepend_bos)
    if not encoded.single:
        raise InputTypeError("several sentences given: expected one, as its effect has one target; call it for each")
    sentence = encoded.sentences[0]
    position = find_target(model, sentence, target)
    wanted = _check_target_ids(model, target_ids)
    with quiet(model):
        clean = run_logits(model, ids_of(model, [sentence]), [])[0, position].double()
        good, bad = wanted or (int(clean.argmax()), None)
        after = _ablated(model, sites, sentence, position, (good, bad), batch_size, progress)
    clean_metric = _metric(clean, good, bad)
    names = [_token_name(model, number) for number in (good, bad) if number is not None]
    return Effect(
        values=(after - clean_metric).float(),
        clean=clean_metric.item(),
        metric=f"logit of {names[0]!r}" if bad is None else f"logit of {names[0]!r} minus logit of {names[1]!r}",
        target=position,
        target_token=sentence.tokens[position],
        predicted=_likeliest(model, clean),
        layers=tuple(range(sites.n_layers)),
        src_tokens=sentence.tokens,
        src_positions=tuple(range(len(sentence))),
        word_ids=sentence.word_ids,
        metadata={"model": facts_of(model).name, "target_ids": [good] if bad is None else [good, bad]},
    )


def _check_target_ids(model: nn.Module, target_ids: int | tuple[int, int] | None) -> tuple[int, int | None] | None:
    if target_ids is None:
        return None
    pair = (target_ids,) if isinstance(target_ids, int) else tuple(target_ids)
    if len(pair) not in (1, 2) or any(isinstance(i, bool) or not isinstance(i, int) for i in pair):
        raise InputTypeError(f"target_ids are {target_ids!r}: expected one token id, or a pair (good, bad)")
    size = vocabulary_size(model)
    for number in pair:
        if not 0 <= number < size:
            raise InputError(f"target_ids hold {number}: expected 0 to {size - 1}, the model's vocabulary")
    return pair[0], pair[1] if len(pair) == 2 else None


def _metric(logits: Float[Tensor, "*copy vocabulary"], good: int, bad: int | None) -> Float[Tensor, "*copy"]:
    return logits[..., good] if bad is None else logits[..., good] - logits[..., bad]


def _ablated(
    model: nn.Module,
    sites: Sites,
    sentence: Sentence,
    position: int,
    pair: tuple[int, int | None],
    batch_size: int | None,
    progress: bool,
) -> Float[Tensor, "layer src"]:
    """The metric with each (layer, source) zeroed; copies of all layers share forward passes."""
    length = len(sentence)
    size = batch_size or max(1, min(256, LOGITS_A_BATCH // (length * vocabulary_size(model))))
    ids = ids_of(model, [sentence])
    copies = [(layer, source) for layer in range(sites.n_layers) for source in range(length)]
    measured = []
    bar = tqdm(total=len(copies), disable=not progress, desc="zero ablation", unit="source", leave=False)
    with bar:
        for start in range(0, len(copies), size):
            part = copies[start : start + size]
            logits = run_logits(model, ids.expand(len(part), -1), _zero_each(sites, part))
            measured.append(_metric(logits[:, position].double(), *pair))
            bar.update(len(part))
    return torch.cat(measured).reshape(sites.n_layers, length)


def _zero_each(sites: Sites, copies: list[tuple[int, int]]) -> list[NamedHook]:
    def zero(layer: int) -> NamedHook:
        own = [(copy, source) for copy, (at, source) in enumerate(copies) if at == layer]

        def hook_function(value: Tensor, *, hook: Any) -> Tensor:
            value = value.clone()
            for copy, source in own:
                value[copy, source] = 0
            return value

        return sites.values[layer], hook_function

    return [zero(layer) for layer in sorted({layer for layer, _ in copies})]


def _likeliest(model: nn.Module, logits: Float[Tensor, "vocabulary"]) -> tuple[tuple[str, float], ...]:
    top = logits.softmax(dim=-1).topk(min(PREDICTED_SHOWN, len(logits)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return tuple((_token_name(model, number), probability) for number, probability in pairs)


def _token_name(model: nn.Module, number: int) -> str:
    tokenizer = facts_of(model).tokenizer
    return str(number) if tokenizer is None else str(tokenizer.decode([number]))
