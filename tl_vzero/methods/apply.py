"""Running methods that read their maps off the clean run, several on one run."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import chosen, flag, integers
from tl_vzero.clean import CleanBlock, clean_from_cache, read_by, visit_clean_blocks
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.inputs.encoder_decoder import DecoderInputs, described, encode_for
from tl_vzero.inputs.media import Signals
from tl_vzero.inputs.text import Ids, Inputs, Sentence, Text
from tl_vzero.methods.layer import Layer
from tl_vzero.methods.method import LayerMethod
from tl_vzero.models.blocks import block_weights
from tl_vzero.models.changes import has_user_hooks
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites
from tl_vzero.scores import Scores, Stage


@dataclass(frozen=True)
class AskedMethod:
    """A method with the options that it is asked for with; raises InputError or InputTypeError for bad ones."""

    name: str
    method: LayerMethod
    per_head: bool = False
    destinations: tuple[int, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.per_head and self.method.heads is None:
            raise InputError(
                f"per_head=True, and {self.name} has one map a layer: leave per_head out, or take attention's"
            )
        unknown = [option for option in self.options if option not in self.method.options]
        if unknown:
            own = ", ".join(self.method.options) or "none"
            raise InputTypeError(f"{self.name} has no option {unknown[0]!r}: expected one of its own ({own})")

    def rows_in(self, length: int) -> tuple[int, ...]:
        """The destinations of a sentence; raises InputError for positions outside it."""
        return chosen("destinations", self.destinations, length, "the sentence has") or tuple(range(length))

    def map_of(self, layer: Layer) -> Float[Tensor, "sentence *head dest src"]:
        """The raw map of a layer, or with `per_head` each head's; whole where it is to be followed through layers."""
        rows = self.rows_in(layer.block.input.shape[1])
        if self.per_head and self.method.heads is not None:
            return self.method.heads(layer)[..., list(rows), :]
        if self.destinations is not None and self.method.rows is not None:
            return self.method.rows(layer, rows, **self.options)
        whole = self.method.maps(layer, **self.options)
        return whole if self.method.through or self.destinations is None else whole[..., list(rows), :]


def layer_scores(
    name: str,
    method: LayerMethod,
    model: nn.Module,
    inputs: Text | Signals,
    *,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    decoder_inputs: DecoderInputs | None = None,
    sampling_rate: int | None = None,
    stack: str | None = None,
    cache: Any | None = None,
    layers: Iterable[int] | int | None = None,
    destinations: Iterable[int] | int | None = None,
    per_head: bool = False,
    prepend_bos: bool = False,
    **options: Any,
) -> Scores | list[Scores]:
    """Scores of a method of the registry: `[layer, dest, src]`, or `[layer, head, dest, src]` with `per_head`.

    The common options are those of `value_zeroing`; a method's own are passed on to it. Raises InputError where the
    method has no heads, ModelError where it is undefined for the model, and leaves the model as it was.
    """
    asked = AskedMethod(name, method, flag("per_head", per_head), integers("destinations", destinations), options)
    sites = check_contracts(model, stack)
    if sites.stack == "cross" and method.through is not None:
        raise ModelError(
            f"{name} is undefined for a cross map: it follows maps from layer to layer, and this one joins two "
            'sequences; take the map itself, or stack="encoder" or "decoder"'
        )
    numbers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    encoded = encode_for(
        model,
        sites.stack,
        inputs,
        decoder_inputs,
        attention_mask=attention_mask,
        token_type_ids=token_type_ids,
        prepend_bos=prepend_bos,
        sampling_rate=sampling_rate,
    )
    found = scores_on_one_run([asked], model, sites, encoded, numbers, cache)[name]
    if isinstance(found, ModelError):
        raise found
    return encoded.in_order(found)


def scores_on_one_run(
    asked: Sequence[AskedMethod],
    model: nn.Module,
    sites: Sites,
    encoded: Inputs,
    layers: tuple[int, ...],
    cache: Any | None,
) -> dict[str, dict[int, Scores] | ModelError]:
    """Of each method its scores, by the sentence's row, or why it is undefined for the model.

    All methods read the same run, and the same Layer of it; of a layer only maps are kept.
    """
    for sentence, each in product(encoded.sentences, asked):
        each.rows_in(len(sentence))
    metadata = provenance(model, sites.stack) | {"engine": "clean run"}
    read = {each.name: tuple(range(max(layers) + 1)) if each.method.through else layers for each in asked}
    found: dict[str, dict[int, Scores] | ModelError] = {each.name: {} for each in asked}
    with quiet(model):
        for group in encoded.alike():
            for each, maps in _maps(asked, model, sites, group, read, cache):
                scored = found[each.name]
                if isinstance(maps, ModelError) or isinstance(scored, ModelError):
                    found[each.name] = maps if isinstance(maps, ModelError) else scored
                    continue
                for sentence, values in zip(group, maps, strict=True):
                    rows = each.rows_in(len(sentence))
                    own = values if each.method.through is None else each.method.through(values, rows)
                    picked = own[[read[each.name].index(layer) for layer in layers]].to(result_dtype(model))
                    scored[sentence.row] = _own_scores(each, picked, layers, sites, sentence, metadata)
    return found


def _own_scores(
    asked: AskedMethod,
    values: Tensor,
    layers: tuple[int, ...],
    sites: Sites,
    sentence: Sentence,
    metadata: dict[str, Any],
) -> Scores:
    return labelled(
        asked.name,
        values,
        layers,
        asked.rows_in(len(sentence)),
        sites,
        sentence,
        metadata | {"options": {"per_head": asked.per_head, **asked.options}},
        identity=asked.method.identity,
        stage="rollout" if asked.method.through else "raw",
    )


def _maps(
    asked: Sequence[AskedMethod],
    model: nn.Module,
    sites: Sites,
    group: list[Sentence],
    read: Mapping[str, tuple[int, ...]],
    cache: Any | None,
) -> Iterator[tuple[AskedMethod, Float[Tensor, "sentence layer *head dest src"] | ModelError]]:
    by_layer: dict[str, dict[int, Tensor]] = {each.name: {} for each in asked}
    undefined: dict[str, ModelError] = {}
    hooks_act = has_user_hooks(model)

    def visit(number: int, block: CleanBlock) -> None:
        wide = torch.float64 if block.output.dtype == torch.float64 else torch.float32
        weights = None if hooks_act or sites.stack is not None else block_weights(model, number, wide)
        layer = Layer(number, block, wide, weights)
        for each in asked:
            if number in read[each.name] and each.name not in undefined:
                try:
                    by_layer[each.name][number] = each.map_of(layer)
                except ModelError as error:
                    undefined[each.name] = error
                    del by_layer[each.name]

    layers = sorted({number for numbers in read.values() for number in numbers})
    if cache is None:
        ids, beside = read_by(model, group)
        visit_clean_blocks(model, sites, ids, layers, visit, **beside)
    else:
        for number, block in clean_from_cache(cache, model, sites, group, layers).items():
            visit(number, block)
    for each in asked:
        maps = by_layer.pop(each.name, {})
        yield each, undefined.get(each.name) or torch.stack([maps[number] for number in read[each.name]], dim=1)


def rows_by_sentence(encoded: Inputs, destinations: Iterable[int] | int | None) -> dict[int, tuple[int, ...]]:
    """The destinations chosen in each sentence, by its row; raises InputError for positions outside it."""
    numbers = integers("destinations", destinations)
    return {
        sentence.row: chosen("destinations", numbers, len(sentence), "the sentence has") or tuple(range(len(sentence)))
        for sentence in encoded.sentences
    }


def labelled(
    name: str,
    values: Float[Tensor, "layer *head dest src"],
    layers: tuple[int, ...],
    destinations: tuple[int, ...],
    sites: Sites,
    sentence: Sentence,
    metadata: dict[str, Any],
    *,
    identity: bool = False,
    stage: Stage = "raw",
) -> Scores:
    """Maps of one sentence as Scores, over all sources."""
    sources = sentence.sources
    return Scores(
        values=values,
        method=name,
        layers=layers,
        heads=tuple(range(values.shape[1])) if values.ndim == 4 else None,
        dest_tokens=tuple(sentence.tokens[i] for i in destinations),
        src_tokens=sources.tokens,
        dest_positions=destinations,
        src_positions=tuple(range(len(sources))),
        n_layers=sites.n_layers,
        n_positions=len(sentence),
        word_ids=sentence.word_ids,
        n_src_positions=len(sources) if sentence.cross else None,
        src_word_ids=sources.word_ids if sentence.cross else None,
        identity=identity,
        stage=stage,
        metadata=metadata
        | {"special": list(sentence.special), "rollout": rollout_rule(identity)}
        | described(sites.stack, sentence),
    )


def rollout_rule(identity: bool) -> str:
    """A method's residual convention in words, as its metadata names it."""
    return "identity added" if identity else "no identity"
