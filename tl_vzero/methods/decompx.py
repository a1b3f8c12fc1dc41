"""DecompX: how large is each source's vector in a block's decomposed output?"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.choices import chosen
from tl_vzero.clean import CleanBlock, clean_from_cache, read_by, visit_clean_blocks
from tl_vzero.inputs import Ids, Sentence, Text, encode
from tl_vzero.methods.block_vectors import Vectors, carry_through, output_vectors
from tl_vzero.methods.layer import Layer
from tl_vzero.methods.method import VECTORS, LayerMethod
from tl_vzero.methods.run import labelled, layer_scores, rows_by_sentence
from tl_vzero.models.blocks import acted_on, block_weights
from tl_vzero.models.contracts import check_contracts
from tl_vzero.models.provenance import provenance, result_dtype
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites
from tl_vzero.models.turns import takes_turn
from tl_vzero.models.values import value_weights
from tl_vzero.rollout import normalize_rows
from tl_vzero.scores import Scores


@takes_turn
def decompx(
    model: nn.Module,
    inputs: Text,
    *,
    propagate: bool = False,
    share_biases: bool = True,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    cache: Any | None = None,
    layers: Iterable[int] | int | None = None,
    destinations: Iterable[int] | int | None = None,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """DecompX: sizes of the vectors that a block's output is the sum of, one a source, `[layer, dest, src]`.

    Attention, norms, MLP and both residual connections are applied to each source's vector by itself, with the clean
    run's pattern, scales and slopes act(z) / z; a bias is shared by |<vector, bias>|, so that the vectors sum to the
    real output. Each block begins with its own input; `propagate=True` carries the vectors through all layers from the
    first block's input, normalised rows that are not rolled out again. `share_biases=False` leaves out all biases but
    those of the values that are the source's own. Sizes are in the units of the residual stream.

    Two products of d_mlp x d_model a pair of tokens, fewer where `destinations` are chosen; `propagate` needs all pairs
    and holds two vectors for each. Raises ModelError for
    blocks with a gated MLP, with norms between attention and residual stream, or that weights do not explain.
    Source: Modarressi et al. 2023, "DecompX: Explaining Transformers Decisions by Propagating Token Decomposition".

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.score(model, "the authors [MASK] here.", method="decompx")
    >>> scores.normalized().values.sum(dim=-1).round(decimals=4).unique().tolist()
    [1.0]
    """
    if not propagate:
        return layer_scores(
            "decompx",
            LAYER_BY_LAYER,
            model,
            inputs,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            cache=cache,
            layers=layers,
            destinations=destinations,
            prepend_bos=prepend_bos,
            share_biases=share_biases,
        )
    sites = check_contracts(model)
    picked = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    encoded = encode(
        model, inputs, attention_mask=attention_mask, token_type_ids=token_type_ids, prepend_bos=prepend_bos
    )
    rows = rows_by_sentence(encoded, destinations)
    options = {"propagate": propagate, "share_biases": share_biases}
    metadata = provenance(model) | {"engine": "clean run", "options": options}
    scored: dict[int, Scores] = {}
    with quiet(model):
        for sentence in encoded.sentences:
            sizes = _propagated(model, sites, sentence, max(picked) + 1, cache, share_biases=share_biases)
            own = rows[sentence.row]
            values = normalize_rows(sizes[list(picked)][:, list(own)]).to(result_dtype(model))
            scored[sentence.row] = labelled("decompx", values, picked, own, sites, sentence, metadata, stage="rollout")
    return encoded.in_order(scored)


def _of_layer(layer: Layer, share_biases: bool = True) -> Float[Tensor, "sentence dest src"]:
    return _sizes(output_vectors(layer, share_biases))


def _of_rows(
    layer: Layer, destinations: Sequence[int], share_biases: bool = True
) -> Float[Tensor, "sentence dest src"]:
    return _sizes(output_vectors(layer, share_biases, destinations))


def _sizes(parts: Iterable[tuple[slice, Vectors]]) -> Float[Tensor, "sentence dest src"]:
    return torch.cat([torch.linalg.vector_norm(vectors, dim=-1) for _, vectors in parts], dim=1)


LAYER_BY_LAYER = LayerMethod(
    _of_layer,
    "size of a source's vector in the decomposed block output",
    "Modarressi et al. 2023",
    "blocks that end in a norm (BERT and its kin), or begin with norms and have no gated MLP (GPT-2)",
    VECTORS,
    rows=_of_rows,
)


def _propagated(
    model: nn.Module, sites: Sites, sentence: Sentence, n_layers: int, cache: Any | None, *, share_biases: bool
) -> Float[Tensor, "layer dest src"]:
    """The sizes after each layer, of vectors carried from the first block's input; one sentence, for its memory."""
    hooks_act = acted_on(model)
    carried: list[Vectors] = []
    sizes: list[Tensor] = []

    def visit(number: int, clean: CleanBlock) -> None:
        wide = torch.float64 if clean.output.dtype == torch.float64 else torch.float32
        layer = Layer(number, clean, wide, None if hooks_act else block_weights(model, number, wide))
        if not carried:
            carried.append(torch.cat([vectors for _, vectors in output_vectors(layer, share_biases)], dim=1))
        else:
            carry_through(layer, carried[0], value_weights(model, number, wide), share_biases)
        sizes.append(torch.linalg.vector_norm(carried[0][0], dim=-1))

    if cache is None:
        ids, beside = read_by(model, [sentence])
        visit_clean_blocks(model, sites, ids, range(n_layers), visit, **beside)
    else:
        for number, clean in clean_from_cache(cache, model, sites, [sentence], range(n_layers)).items():
            visit(number, clean)
    return torch.stack(sizes)
