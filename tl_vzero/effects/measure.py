"""What effects on a prediction share: the result, the metric, and the values of one sentence that are changed."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import TYPE_CHECKING, Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import LISTED_LENGTH, Position, Positions, chosen, flag, positions_in
from tl_vzero.clean import ids_of, read_by
from tl_vzero.difference import baseline_in, of_baseline
from tl_vzero.distance import wide_dtype
from tl_vzero.errors import InputError, InputTypeError, escaped, foreign_errors_as, shortened, shown, unknown_name
from tl_vzero.inputs.baselines import Baseline, BaselineValues, baseline_of, own_text
from tl_vzero.inputs.encoder_decoder import DecoderInputs, described, encode_for
from tl_vzero.inputs.text import Ids, Sentence, Text
from tl_vzero.models.contracts import check_contracts, result_dtype, value_heads
from tl_vzero.models.facts import class_head_of, facts_of
from tl_vzero.models.run import NamedHook, copied, run_logits
from tl_vzero.models.signals import Read
from tl_vzero.models.sites import Sites, Stack
from tl_vzero.scores import Drawn
from tl_vzero.targets import TargetIds, check_trained_head, find_target, predicts, target_tokens
from tl_vzero.words import encodable

if TYPE_CHECKING:
    import pandas as pd


EffectMethod = Literal[
    "zero_ablation",
    "attribution_patching",
    "value_patching",
    "resid_pre_patching",
    "attn_out_patching",
    "mlp_out_patching",
    "q_patching",
    "k_patching",
    "z_patching",
    "pattern_patching",
    "direct_path_patching",
    "attention_knockout",
    "logit_lens",
    "direct_logit_attribution",
]


@dataclass(frozen=True, eq=False, repr=False)
class Effect(Drawn):
    """What each position in each layer does to one prediction, such as when its value is changed in the running model.

    `values[layer, src]`, or `values[layer, head, src]` per head, is the metric with the position changed minus the
    metric without: where values are zeroed, negative where the source supported the prediction. `metric` names it in
    words; `clean` is its value in the clean run. `predicted` are the likeliest tokens at the target with their
    probabilities, in the clean run; of a causal model they come next (`metadata["predicts"]`). `method` says what was
    done: a logit lens changes nothing, and its values are the metric itself; a direct logit attribution's are parts of
    it. `baseline` is what took a value's place. Per head, `heads` are numbers of the heads that values have, and
    `head_kind` says which those are: under grouped-query attention those of values are key-value heads.
    """

    values: Float[Tensor, "layer *head src"]
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
    method: EffectMethod = "zero_ablation"
    heads: tuple[int, ...] | None = None
    head_kind: Literal["query", "key-value"] | None = None

    @property
    def baseline(self) -> str:
        """What took a value's place: "zero", "mean", or the name and hash of vectors."""
        return baseline_in(self.metadata)

    def of_head(self, head: int) -> "Effect":
        """One head of an effect per head, `[layer, src]`, to draw or to rank; raises InputError for one it lacks."""
        if self.heads is None or head not in self.heads:
            raise InputError(
                f"head {head} asked for, and the heads of this effect are {self.heads}: expected one of them"
            )
        metadata = dict(self.metadata) | {"head": head}
        values = self.values[:, self.heads.index(head)]
        return replace(self, values=values, heads=None, head_kind=None, metadata=metadata)

    def to_frame(self) -> "pd.DataFrame":
        """A long pandas table: layer, (head,) src, src_token, value."""
        import pandas as pd

        heads = {} if self.heads is None else {"head": self.heads}
        axes = {"layer": self.layers, **heads, "src": self.src_positions}
        frame = pd.MultiIndex.from_product(list(axes.values()), names=list(axes)).to_frame(index=False)
        frame["src_token"] = list(map(encodable, self.src_tokens)) * (len(frame) // len(self.src_tokens))
        frame["value"] = self.values.detach().float().cpu().flatten().numpy()
        return frame

    def __repr__(self) -> str:
        where = f"{self.target_token!r} at {self.target}"
        heads = "" if self.heads is None else f", {len(self.heads)} heads"
        sources = shortened(" ".join(token.strip() for token in self.src_tokens), LISTED_LENGTH)
        return escaped(
            f"{type(self).__name__}({self.method}{of_baseline(self.metadata)} on the {self.metric} of {where}: "
            f"{len(self.layers)} layers{heads} x {len(self.src_tokens)} sources: {sources!r})"
        )


@dataclass(frozen=True, eq=False, repr=False)
class PatchingEffect(Effect):
    """The effect on a corrupted sentence of each value position of a clean one.

    `values` are the metric of the patched run minus `corrupted`, the metric of the corrupted sentence. `src_tokens`
    are the clean sentence's, `corrupted_tokens` what stands at the same positions of the corrupted one.
    """

    corrupted: float = field(kw_only=True)
    corrupted_tokens: tuple[str, ...] = field(kw_only=True)

    @property
    def recovered(self) -> Float[Tensor, "layer *head src"]:
        """The share of the way from the corrupted metric to the clean one; 1 where all of it is restored.

        Raises InputError where both sentences have the same metric, so that there is no way to go.
        """
        if self.clean == self.corrupted:
            raise InputError(
                f"the {self.metric} is {self.clean:.6g} for the clean and for the corrupted sentence: expected a "
                "metric that tells them apart; look at values, or choose other target_ids"
            )
        return self.values / (self.clean - self.corrupted)


# What is measured of a prediction: a logit, a probability, or a function of the user's.

# As in TransformerLens's patching: logits [1, position, vocabulary] -> scalar.
MetricFunction = Callable[[Tensor], Tensor]

NAMES = ("logit", "probability")


@dataclass(frozen=True)
class Metric:
    """One number per copy of the sentence, from logits `[copy, position, vocabulary]`; `name` says it in words.

    `target_ids` are the tokens it is about, None for a function of the user's.
    """

    name: str
    function: Callable[[Tensor], Tensor]
    target_ids: tuple[int, ...] | None

    def __call__(self, logits: Float[Tensor, "copy position vocabulary"]) -> Float[Tensor, "copy"]:
        return self.function(logits).to(wide_dtype(logits.device))


MakeMetric = Callable[[int, Tensor], Metric]


def metric_for(model: nn.Module, metric: str | MetricFunction, target_ids: TargetIds | None) -> MakeMetric:
    """Check what is to be measured, before any run; returns what makes the metric of (target, its clean logits).

    Without `target_ids` it is about the likeliest token of the clean run. Raises InputError or InputTypeError.
    """
    if isinstance(metric, str):
        if metric not in NAMES:
            raise unknown_name("metric", metric, (*NAMES, "or a function"))
        tokens = target_tokens(model, target_ids)
        if metric == "probability" and not _has_shares(model):
            raise InputError(
                f"metric is 'probability', and the head of {facts_of(model).name} gives no probabilities of classes: "
                "expected 'logit', or a function"
            )

        def make(target: int, clean: Tensor) -> Metric:
            (good, bad), wide = tokens or (int(clean.argmax()), None), wide_dtype(clean.device)
            of_good = f"{metric} of {token_name(model, good)!r}"
            if metric == "probability":
                return Metric(of_good, lambda logits: _shares(model, logits[:, target])[:, good], (good,))
            if bad is None:
                return Metric(of_good, lambda logits: logits[:, target, good], (good,))
            return Metric(
                f"{of_good} minus logit of {token_name(model, bad)!r}",
                lambda logits: logits[:, target, good].to(wide) - logits[:, target, bad].to(wide),
                (good, bad),
            )

        return make
    if not callable(metric):
        raise InputTypeError(
            f"metric is {type(metric).__name__}: expected 'logit', 'probability', or a function from logits "
            "[1, position, vocabulary] to a scalar tensor"
        )
    if target_ids is not None:
        raise InputError(
            f"target_ids {target_ids!r} given with a function as metric: expected one of both; read the tokens' "
            "logits in the function"
        )
    name = f"metric {getattr(metric, '__name__', type(metric).__name__)}"

    def copy_by_copy(logits: Tensor) -> Tensor:
        with foreign_errors_as(InputError, f"the {name} failed"):
            return torch.stack([_scalar(metric(logits[n : n + 1])) for n in range(len(logits))])

    return lambda target, clean: Metric(name, copy_by_copy, None)


def _scalar(measured: Any) -> Tensor:
    if not isinstance(measured, Tensor):
        raise InputTypeError(f"the metric returned {type(measured).__name__}: expected a scalar tensor, shape []")
    if measured.ndim:
        raise InputError(
            f"the metric returned a tensor of shape {list(measured.shape)}: expected a scalar, shape []; it is given "
            "the logits [1, position, vocabulary] of one sentence"
        )
    return measured


def token_name(model: nn.Module, token_id: int) -> str:
    """A token of the vocabulary as text, its id where there is no tokenizer; of a classifier a class's label."""
    head = class_head_of(model)
    if head is not None:
        return head.labels[token_id]
    tokenizer = facts_of(model).tokenizer
    return str(token_id) if tokenizer is None else str(tokenizer.decode([token_id]))


# Where values are changed, checked before any run: one sentence, its target, and the value positions to act on.

PREDICTED_SHOWN = 5  # likeliest tokens

Numbers = Iterable[int] | int | None
Predictions = tuple[tuple[tuple[str, float], ...], ...]  # by position: the likeliest tokens, with probabilities
Place = tuple[int, int | None, int]  # layer, head or None for all, source


@dataclass(frozen=True, eq=False)
class Intervention:
    """Values to change in one sentence, and the target whose prediction is measured; `heads` None: in all heads.

    `baseline` is what takes a value's place; None where that is another sentence's value by the library's own patching.
    """

    model: nn.Module
    sites: Sites
    sentence: Sentence
    target: int
    layers: tuple[int, ...]
    sources: tuple[int, ...]
    heads: tuple[int, ...] | None
    baseline: Baseline | None = None

    @property
    def ids(self) -> Read:
        """The sentence, image or sound as the model reads it."""
        return ids_of(self.model, [self.sentence])

    def logits(self, hooks: Sequence[NamedHook], copies: int = 1) -> Float[Tensor, "copy position vocabulary"]:
        """The logits of copies of the sentence that run with hooks."""
        ids, beside = read_by(self.model, [self.sentence])
        return run_logits(self.model, ids.expand(copies, *ids.shape[1:]), hooks, **copied(beside, copies))

    def stands_in(
        self, layer: int, value: Float[Tensor, "copy position head d_head"]
    ) -> Float[Tensor, "copy position head d_head"]:
        """What takes the place of a layer's clean values."""
        averaged = own_text([self.sentence]).expand(len(value), -1)
        put_in = None if self.baseline is None else self.baseline.at(layer, value, averaged)
        return torch.zeros_like(value) if put_in is None else put_in

    def places(self) -> list[Place]:
        """The place of each value, in their order."""
        return list(product(self.layers, self.heads or (None,), self.sources))

    def labels(
        self, metric: Metric, clean: Float[Tensor, "1"], logits: Float[Tensor, "1 position vocabulary"]
    ) -> dict[str, Any]:
        """Everything of an Effect but its values; `clean` is the metric of the clean run, `logits` are its logits."""
        is_grouped = self.heads is not None and getattr(self.model.cfg, "n_heads", len(self.heads)) != len(self.heads)
        return {
            "clean": clean.item(),
            "metric": metric.name,
            "target": self.target,
            "target_token": self.sentence.tokens[self.target],
            "predicted": likeliest(self.model, logits[0, self.target]),
            "layers": self.layers,
            "src_tokens": tuple(self.sentence.sources.tokens[i] for i in self.sources),
            "src_positions": self.sources,
            "word_ids": self.sentence.sources.word_ids,
            "metadata": {
                "model": facts_of(self.model).name,
                "target_ids": None if metric.target_ids is None else list(metric.target_ids),
                "predicts": predicts(self.model),
                **({} if self.baseline is None else {"options": {"baseline": self.baseline.identity}}),
                **described(self.sites.stack, self.sentence),
            },
            "heads": self.heads,
            "head_kind": None if self.heads is None else "key-value" if is_grouped else "query",
        }

    def as_values(self, measured: Float[Tensor, "place"]) -> Float[Tensor, "layer *head src"]:
        """One number per place as the values of an Effect."""
        head_axis = [] if self.heads is None else [len(self.heads)]
        return measured.reshape(len(self.layers), *head_axis, len(self.sources)).to(result_dtype(self.model))


def intervene(
    model: nn.Module,
    sentence: Sentence,
    target: Position | None,
    layers: Numbers,
    sources: Positions,
    per_head: bool,
    baseline: str | Tensor | BaselineValues | None = None,
    stack: str | None = None,
    n_heads: Callable[[nn.Module, Stack | None], int] = value_heads,
) -> Intervention:
    """Check everything that does not depend on the metric."""
    sites = check_contracts(model, stack)
    check_trained_head(model)
    read = None if baseline is None else baseline_of(baseline, model, sites)
    if read is not None:
        read.check_length(len(sentence.sources), shown(" ".join(sentence.sources.tokens)))
    return Intervention(
        model,
        sites,
        sentence,
        find_target(model, sentence, target),
        layers=chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers)),
        sources=positions_in(sentence.sources.tokens, "sources", sources),
        heads=tuple(range(n_heads(model, sites.stack))) if flag("per_head", per_head) else None,
        baseline=read,
    )


def one_sentence(
    model: nn.Module,
    inputs: Text,
    mask: Ids | None,
    token_types: Ids | None,
    prepend_bos: bool,
    stack: str | None = None,
    decoder_inputs: DecoderInputs | None = None,
) -> Sentence:
    """The only sentence or pair of the inputs, of an encoder-decoder the decoder's; InputTypeError for several."""
    beside: Any = {"attention_mask": mask, "token_type_ids": token_types, "prepend_bos": prepend_bos}
    checked = check_contracts(model, stack).stack
    encoded = encode_for(model, checked, inputs, decoder_inputs, predicting=True, **beside)
    is_list = isinstance(inputs, list | tuple) and not encoded.single
    if is_list or len(encoded.sentences) != 1:
        raise InputTypeError("several sentences given: expected one, as its effect has one target; call it for each")
    return encoded.sentences[0]


def _has_shares(model: nn.Module) -> bool:
    """Whether what the model predicts are probabilities of tokens or classes."""
    head = class_head_of(model)
    return head is None or head.has_probabilities


def _shares(model: nn.Module, logits: Float[Tensor, "*rows vocabulary"]) -> Float[Tensor, "*rows vocabulary"]:
    """The probabilities of tokens or classes."""
    logits = logits.to(wide_dtype(logits.device))
    head = class_head_of(model)
    return logits.softmax(dim=-1) if head is None else head.probabilities(logits)


def likeliest(model: nn.Module, logits: Float[Tensor, "vocabulary"]) -> tuple[tuple[str, float], ...]:
    """The likeliest tokens or classes of a prediction, with their probabilities; none where it has none."""
    if not _has_shares(model):
        return ()
    shares = _shares(model, logits)
    return tuple((token_name(model, token_id), shares[token_id].item()) for token_id in likeliest_ids(logits))


def likeliest_ids(logits: Float[Tensor, "vocabulary"]) -> tuple[int, ...]:
    """The ids of the likeliest tokens: what two of them say may be one text."""
    return tuple(logits.to(wide_dtype(logits.device)).topk(min(PREDICTED_SHOWN, len(logits))).indices.tolist())
