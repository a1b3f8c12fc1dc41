"""Running methods that read their maps off the clean run, several on one run."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import Positions, chosen, flag, positions, positions_in
from tl_vzero.clean import (
    MEMORY_MB,
    CleanBlock,
    check_fused,
    clean_from_cache,
    is_long,
    read_by,
    visit_clean_blocks,
    visit_fused_blocks,
)
from tl_vzero.errors import InputError, InputTypeError, ModelError
from tl_vzero.inputs.encoder_decoder import DecoderInputs, described, encode_for
from tl_vzero.inputs.media import Signals
from tl_vzero.inputs.text import Ids, Inputs, Sentence, Text
from tl_vzero.labels import Stage
from tl_vzero.methods.layer import Layer, layer_of
from tl_vzero.methods.plan import Planned
from tl_vzero.models.blocks import BlockWeights, block_weights
from tl_vzero.models.changes import has_user_hooks
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.fused import NotFused
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites, Stack
from tl_vzero.registry import Method, resolved
from tl_vzero.scores import Scores


def layer_scores(
    model: nn.Module,
    inputs: Text | Signals,
    *,
    method: Method,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    decoder_inputs: DecoderInputs | None = None,
    sampling_rate: int | None = None,
    stack: str | None = None,
    cache: Any | None = None,
    layers: Iterable[int] | int | None = None,
    destinations: Positions = None,
    per_head: bool = False,
    prepend_bos: bool = False,
    **options: Any,
) -> Scores | list[Scores]:
    """Scores of a method that is LayerMaps: `[layer, dest, src]`, or `[layer, head, dest, src]` with `per_head`.

    The common options are those of `value_zeroing`; a method's own are passed on to it. Raises InputError where the
    method has no heads, ModelError where it is undefined for the model, and leaves the model as it was.
    """
    planned = Planned(
        method, options, per_head=flag("per_head", per_head), destinations=positions("destinations", destinations)
    )
    assert planned.layer is not None
    if planned.per_head and planned.layer.heads is None:
        raise InputError(
            f"per_head=True, and {planned.name} has one map per layer: leave per_head out, or take attention's"
        )
    takes = method.options or ()
    for option in options:
        if option not in takes:
            raise InputTypeError(
                f"{planned.name} has no option {option!r}: expected one of its own ({', '.join(takes) or 'none'})"
            )
    sites = check_contracts(model, stack)
    chosen_layers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
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
    scored = scores_on_one_run([planned], model, sites, encoded, chosen_layers, cache)[method.name]
    if isinstance(scored, ModelError):
        raise scored
    return encoded.in_order(scored)


def scores_on_one_run(
    plan: Sequence[Planned],
    model: nn.Module,
    sites: Sites,
    encoded: Inputs,
    layers: tuple[int, ...],
    cache: Any | None = None,
) -> dict[str, dict[int, Scores] | ModelError]:
    """Of each method that reads a layer by itself its scores by the sentence's row, or why it is undefined.

    All these methods read the same run, and the same Layer of it; of a layer only maps are kept. The plan's other
    methods are passed over.
    """
    plan = [planned for planned in plan if planned.layer is not None]
    refusals = {planned.name: planned.method.refusal(sites.stack) for planned in plan}
    undefined = {name: ModelError(refusal) for name, refusal in refusals.items() if refusal}
    plan = [planned for planned in plan if planned.name not in undefined]
    for sentence, planned in product(encoded.sentences, plan):
        planned.rows_in(sentence)
    if not plan:
        return dict(undefined)
    metadata = provenance(model, sites.stack) | {"engine": "clean run"}
    scored: dict[str, dict[int, Scores]] = {planned.name: {} for planned in plan}
    read = {planned.name: planned.layers_read(layers) for planned in plan}
    maps: dict[str, dict[int, Float[Tensor, "sentence *head dest src"]]] = {}
    rows: dict[str, tuple[int, ...]] = {}

    def visit(layer: Layer) -> None:
        for planned in plan:
            if layer.index in read[planned.name] and planned.name not in undefined:
                held = rows[planned.name]
                held = held if layer.block.destinations is None else tuple(range(len(held)))
                try:
                    maps[planned.name][layer.index] = planned.map_of(layer, held)
                except ModelError as error:
                    undefined[planned.name] = error
                    del maps[planned.name]

    def label(planned: Planned, group: list[Sentence], through: Any, attention: dict[str, str]) -> None:
        by_layer, how = maps.pop(planned.name), {"options": {"per_head": planned.per_head, **planned.options}}
        stacked = torch.stack([by_layer[layer] for layer in read[planned.name]], dim=1)
        for sentence, values in zip(group, stacked, strict=True):
            dests, n_sources = rows[planned.name], len(sentence.sources)
            if values.shape[-1] > n_sources:  # the last column is the residual stream's, which is of no source
                how |= {"residual": values[..., n_sources].tolist()}
                values = values[..., :n_sources]
            followed = values if through is None else resolved(through)(values, dests)
            followed = followed[[read[planned.name].index(layer) for layer in layers]].to(result_dtype(model))
            rules: Any = {"identity": planned.method.identity, "stage": "rollout" if through else "raw"}
            labels = layers, dests, sites, sentence, metadata | how | attention
            scored[planned.name][sentence.row] = labelled(planned.name, followed, *labels, **rules)

    def run(group: list[Sentence], cut: tuple[int, ...] | None) -> dict[str, str]:
        """Fill `maps`; gives what metadata says of the attention of a long input, of which `cut` are the rows."""
        needed, attention = sorted(set[int]().union(*read.values())), {}
        if cut is not None:
            try:
                check_fused(model, sites, group[0], metadata["weights_sha256"])
                visit_layers(model, sites, group, needed, cache, visit, destinations=cut)
                return {"attention": "fused"}
            except (NotFused, ModelError) as error:  # what fails for another reason fails again
                attention = {"attention_reason": str(error)}
        visit_layers(model, sites, group, needed, cache, visit)
        return attention

    with quiet(model):
        for alike in _with_the_same_rows(plan, encoded):
            rows |= {planned.name: planned.rows_in(alike[0]) for planned in plan}
            cut = _cut(plan, set(rows.values())) if cache is None else None
            cut = cut if cut is not None and is_long(model, sites, alike[0], cut, MEMORY_MB) else None
            for group in [alike] if cut is None else [[sentence] for sentence in alike]:
                maps |= {name: {} for name in read if name not in undefined}
                attention = run(group, cut)
                for planned in plan:
                    if planned.name in maps and planned.layer is not None:
                        label(planned, group, planned.layer.through, attention)
    return {**scored, **undefined}


def _cut(plan: Sequence[Planned], rows: set[tuple[int, ...]]) -> tuple[int, ...] | None:
    """The rows that all methods of a plan need, where these are the same and each method can do with them alone."""
    cuts = len(rows) == 1 and all(planned.layer is not None and planned.layer.cut for planned in plan)
    return next(iter(rows)) if cuts else None


def _with_the_same_rows(plan: Sequence[Planned], encoded: Inputs) -> Iterator[list[Sentence]]:
    """Sentences that share a run without padding, and rows: the text of a token is at another position in each."""

    def rows_of(sentence: Sentence) -> list[tuple[int, ...]]:
        return [planned.rows_in(sentence) for planned in plan]

    for alike in encoded.alike():
        yield from (list(group) for _, group in groupby(sorted(alike, key=rows_of), key=rows_of))


def visit_layers(
    model: nn.Module,
    sites: Sites,
    group: list[Sentence],
    layers: Sequence[int],
    cache: Any | None,
    visit: Callable[[Layer], None],
    destinations: Sequence[int] | None = None,
) -> None:
    """Show chosen layers of the clean run of sentences of one shape, in order, run now or read from a cache.

    Where `destinations` are chosen no pattern is formed, and Layers hold these alone; raises NotFused where it must be.
    """
    hooks_act = has_user_hooks(model)

    def weights(index: int, dtype: torch.dtype, stack: Stack | None) -> BlockWeights | None:
        read = None if hooks_act else block_weights(model, index, dtype, stack)
        # Of a decoder's block a Layer is one sublayer, whose own norm is its first.
        return replace(read, norm1=read.norm0) if read is not None and stack == "decoder" else read

    def show(index: int, block: CleanBlock) -> None:
        dtype = torch.float64 if block.output.dtype == torch.float64 else torch.float32
        itself, other = weights(index, dtype, sites.stack), None
        if sites.stack in ("decoder", "cross"):
            other = weights(index, dtype, "cross" if sites.stack == "decoder" else "decoder")
        visit(layer_of(index, block, dtype, itself, other, sites.stack))

    if cache is None:
        ids, beside = read_by(model, group)
        if destinations is None:
            visit_clean_blocks(model, sites, ids, layers, show, **beside)
        else:
            visit_fused_blocks(model, sites, ids, layers, show, destinations=destinations, **beside)
    else:
        for index, block in clean_from_cache(cache, model, sites, group, layers).items():
            show(index, block)


def rows_by_sentence(encoded: Inputs, destinations: Positions) -> dict[int, tuple[int, ...]]:
    """The destinations chosen in each sentence, by its row; raises InputError for positions outside it."""
    wanted = positions("destinations", destinations)
    return {sentence.row: positions_in(sentence.tokens, "destinations", wanted) for sentence in encoded.sentences}


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
    **columns: Any,
) -> Scores:
    """Maps of one sentence as Scores, over all sources and heads; `columns` are the labels where they are others."""
    sources = sentence.sources
    labels: dict[str, Any] = {
        "heads": tuple(range(values.shape[1])) if values.ndim == 4 else None,
        "src_tokens": sources.tokens,
        "src_positions": tuple(range(len(sources))),
    }
    rule = "identity added" if identity else "no identity"
    return Scores(
        values=values,
        method=name,
        layers=layers,
        dest_tokens=tuple(sentence.tokens[i] for i in destinations),
        dest_positions=destinations,
        n_layers=sites.n_layers,
        n_positions=len(sentence),
        word_ids=sentence.word_ids,
        n_src_positions=len(sources) if sentence.cross else None,
        src_word_ids=sources.word_ids if sentence.cross else None,
        identity=identity,
        stage=stage,
        metadata={"rollout": rule} | metadata | {"special": list(sentence.special)} | described(sites.stack, sentence),
        **(labels | columns),
    )
