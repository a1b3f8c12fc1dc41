"""What is asked of an effect, checked at the door: one sentence, its target, and the value positions to act on."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.choices import chosen, flag
from tl_vzero.clean import ids_of, token_types_of
from tl_vzero.distance import wide_dtype
from tl_vzero.effects.metric import Metric, token_name
from tl_vzero.errors import InputTypeError
from tl_vzero.inputs import Ids, Sentence, Text, encode
from tl_vzero.models.contracts import check_contracts, value_heads
from tl_vzero.models.facts import facts_of
from tl_vzero.models.provenance import result_dtype
from tl_vzero.models.run import NamedHook, run_logits
from tl_vzero.models.sites import Sites
from tl_vzero.paired_inputs import described
from tl_vzero.targets import check_trained_head, find_target

PREDICTED_SHOWN = 5

Numbers = Iterable[int] | int | None
Place = tuple[int, int | None, int]


@dataclass(frozen=True, eq=False)
class Asked:
    """One sentence, the target whose prediction is measured, and where values are changed; `heads` None: in all."""

    model: nn.Module
    sites: Sites
    sentence: Sentence
    target: int
    layers: tuple[int, ...]
    sources: tuple[int, ...]
    heads: tuple[int, ...] | None

    @property
    def ids(self) -> Int[Tensor, "1 position"]:
        return ids_of(self.model, [self.sentence])

    def logits(self, hooks: Sequence[NamedHook], copies: int = 1) -> Float[Tensor, "copy position vocabulary"]:
        """The logits of copies of the sentence that run with hooks."""
        token_types = token_types_of(self.model, [self.sentence])
        types = None if token_types is None else token_types.expand(copies, -1)
        return run_logits(self.model, self.ids.expand(copies, -1), hooks, types)

    @property
    def shape(self) -> list[int]:
        """Of the values: layer, head if per head, source."""
        head_axis = [] if self.heads is None else [len(self.heads)]
        return [len(self.layers), *head_axis, len(self.sources)]

    def places(self) -> list[Place]:
        """(layer, head or None for all, source) of each value, in their order."""
        heads = self.heads or (None,)
        return [(layer, head, source) for layer in self.layers for head in heads for source in self.sources]

    def labels(
        self, metric: Metric, clean: Float[Tensor, "1"], logits: Float[Tensor, "1 position vocabulary"]
    ) -> dict[str, Any]:
        """Everything of an Effect but its values; `clean` is the metric of the clean run, `logits` are its logits."""
        return {
            "clean": clean.item(),
            "metric": metric.name,
            "target": self.target,
            "target_token": self.sentence.tokens[self.target],
            "predicted": _likeliest(self.model, logits[0, self.target]),
            "layers": self.layers,
            "src_tokens": tuple(self.sentence.tokens[i] for i in self.sources),
            "src_positions": self.sources,
            "word_ids": self.sentence.word_ids,
            "metadata": {
                "model": facts_of(self.model).name,
                "target_ids": None if metric.target_ids is None else list(metric.target_ids),
                **described(self.sites.stack, self.sentence),
            },
            "heads": self.heads,
            "head_kind": None if self.heads is None else _head_kind(self.model),
        }

    def as_values(self, measured: Float[Tensor, "place"]) -> Float[Tensor, "layer *head src"]:
        """One number a place as the values of an Effect."""
        return measured.reshape(self.shape).to(result_dtype(self.model))


def ask(
    model: nn.Module,
    sentence: Sentence,
    *,
    target: int | None,
    layers: Numbers,
    sources: Numbers,
    per_head: bool,
) -> Asked:
    """Check everything that does not depend on the metric.

    Raises HeadlessModelError for a model whose head was never trained, InputError for a target, layers or sources that
    are not there.
    """
    sites = check_contracts(model)
    check_trained_head(model)
    return Asked(
        model=model,
        sites=sites,
        sentence=sentence,
        target=find_target(model, sentence, target),
        layers=chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers)),
        sources=chosen("sources", sources, len(sentence), "the sentence has") or tuple(range(len(sentence))),
        heads=tuple(range(value_heads(model))) if flag("per_head", per_head) else None,
    )


def one_sentence(
    model: nn.Module,
    inputs: Text,
    *,
    attention_mask: Ids | None,
    token_type_ids: Ids | None,
    prepend_bos: bool,
) -> Sentence:
    """The one sentence or pair that is given; raises InputTypeError for several."""
    encoded = encode(
        model, inputs, attention_mask=attention_mask, token_type_ids=token_type_ids, prepend_bos=prepend_bos
    )
    is_list = isinstance(inputs, list | tuple) and not encoded.single
    if is_list or len(encoded.sentences) != 1:
        raise InputTypeError("several sentences given: expected one, as its effect has one target; call it for each")
    return encoded.sentences[0]


def _head_kind(model: nn.Module) -> Literal["query", "key-value"]:
    heads = value_heads(model)
    return "query" if getattr(model.cfg, "n_heads", heads) == heads else "key-value"


def _likeliest(model: nn.Module, logits: Float[Tensor, "vocabulary"]) -> tuple[tuple[str, float], ...]:
    top = logits.to(wide_dtype(logits.device)).softmax(dim=-1).topk(min(PREDICTED_SHOWN, len(logits)))
    pairs = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    return tuple((token_name(model, number), probability) for number, probability in pairs)
