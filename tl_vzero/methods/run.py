"""Running a method that reads its maps off the clean run."""

from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import chosen
from tl_vzero.clean import CleanBlock, clean_from_cache, ids_of, visit_clean_blocks
from tl_vzero.errors import InputError
from tl_vzero.inputs import Sentence, encode
from tl_vzero.methods.layer import Layer
from tl_vzero.methods.registry import LayerMethod
from tl_vzero.models.blocks import acted_on, block_weights
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.provenance import provenance, result_dtype
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites
from tl_vzero.scores import Scores, Stage


def layer_scores(
    name: str,
    method: LayerMethod,
    model: nn.Module,
    inputs: str | Sequence[str] | Tensor,
    *,
    attention_mask: Tensor | None = None,
    cache: Any | None = None,
    layers: Iterable[int] | int | None = None,
    per_head: bool = False,
    prepend_bos: bool = False,
    **options: Any,
) -> Scores | list[Scores]:
    """Scores of a method of the registry: `[layer, dest, src]`, or `[layer, head, dest, src]` with `per_head`.

    The common options are those of `value_zeroing`; a method's own are passed on to it. Raises InputError where the
    method has no heads, ModelError where it is undefined for the model, and leaves the model as it was.
    """
    if per_head and method.heads is None:
        raise InputError(f"per_head=True, and {name} has one map a layer: leave per_head out, or take attention's")
    sites = check_contracts(model)
    chosen_layers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    encoded = encode(model, inputs, attention_mask=attention_mask, prepend_bos=prepend_bos)
    metadata = provenance(model) | {"engine": "clean run", "options": {"per_head": per_head, **options}}
    metadata["rollout"] = "identity added" if method.identity else "no identity"
    read = tuple(range(max(chosen_layers) + 1)) if method.through else chosen_layers
    scored: dict[int, Scores] = {}
    with quiet(model):
        for group in (list(group) for batch in encoded.batches() for _, group in groupby(batch, key=len)):
            maps = _maps(method, model, sites, group, read, cache, per_head, options)
            for sentence, values in zip(group, maps, strict=True):
                if method.through:
                    values = method.through(values)[list(chosen_layers)]
                own = values.to(result_dtype(model))
                scored[sentence.row] = labelled(
                    name,
                    own,
                    chosen_layers,
                    sites,
                    sentence,
                    metadata,
                    identity=method.identity,
                    stage="rollout" if method.through else "raw",
                )
    return encoded.in_order(scored)


def _maps(
    method: LayerMethod,
    model: nn.Module,
    sites: Sites,
    group: list[Sentence],
    layers: tuple[int, ...],
    cache: Any | None,
    per_head: bool,
    options: dict[str, Any],
) -> Float[Tensor, "sentence layer *head dest src"]:
    by_layer: dict[int, Tensor] = {}
    hooks_act = acted_on(model)
    function = method.heads if per_head and method.heads is not None else method.maps

    def visit(layer: int, block: CleanBlock) -> None:
        wide = torch.float64 if block.output.dtype == torch.float64 else torch.float32
        weights = None if hooks_act else block_weights(model, layer, wide)
        by_layer[layer] = function(Layer(layer, block, wide, weights), **options)

    if cache is None:
        visit_clean_blocks(model, sites, ids_of(model, group), layers, visit)
    else:
        for layer, block in clean_from_cache(cache, model, sites, group, layers).items():
            visit(layer, block)
    return torch.stack([by_layer[layer] for layer in layers], dim=1)


def labelled(
    name: str,
    values: Float[Tensor, "layer *head dest src"],
    layers: tuple[int, ...],
    sites: Sites,
    sentence: Sentence,
    metadata: dict[str, Any],
    *,
    identity: bool = False,
    stage: Stage = "raw",
) -> Scores:
    """Whole maps of one sentence as Scores."""
    whole = tuple(range(len(sentence)))
    return Scores(
        values=values,
        method=name,
        layers=layers,
        heads=tuple(range(values.shape[1])) if values.ndim == 4 else None,
        dest_tokens=sentence.tokens,
        src_tokens=sentence.tokens,
        dest_positions=whole,
        src_positions=whole,
        n_layers=sites.n_layers,
        n_positions=len(sentence),
        word_ids=sentence.word_ids,
        identity=identity,
        stage=stage,
        metadata=metadata | {"special": list(sentence.special)},
    )
