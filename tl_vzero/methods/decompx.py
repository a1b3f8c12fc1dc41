"""DecompX: how large is each source's vector in a block's output, taken apart into one vector for each source?

A residual stream is held as vectors `[sentence, dest, src, feature]` that sum over sources to the stream itself. The
clean run fixes what is not linear: the attention pattern, the norms' scales, and the slope act(z) / z of each neuron.
A bias b is shared over the sources by |<u, b>|, u being the vectors that it is added to (Modarressi et al. 2023,
section 3).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.choices import Positions, chosen
from tl_vzero.distance import relative_difference, wide_dtype
from tl_vzero.errors import InputError, ModelError
from tl_vzero.inputs.encoder_decoder import DecoderInputs, encode_for
from tl_vzero.inputs.text import Ids, Sentence, Text
from tl_vzero.methods.apply import labelled, layer_scores, rows_by_sentence, visit_layers
from tl_vzero.methods.layer import Layer
from tl_vzero.models.blocks import SAME_BLOCK, Activation, Norm, ValueWeights, value_weights
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.run import quiet
from tl_vzero.models.sites import Sites
from tl_vzero.models.turns import takes_turn
from tl_vzero.registry import METHODS, LayerMaps
from tl_vzero.rollout import normalize_rows
from tl_vzero.scores import Scores

SMALLEST_INPUT = 1e-12  # to an activation, where its slope is taken; 0 has no act(z) / z

Vectors = Float[Tensor, "sentence dest src feature"]
# A norm with its scale of the clean run: linear but for the bias.
Fixed = tuple[Norm, Float[Tensor, "sentence position"]]


def output_vectors(
    layer: Layer, share_biases: bool, chosen: Sequence[int] | None = None
) -> Iterator[tuple[slice, Vectors]]:
    """A block's output as vectors, where each source begins with its own input; some destinations at a time."""
    rest = layer.behind or layer
    block, itself = BlockVectors(rest, share_biases), rest.before or layer
    for dest, vectors in itself.vectors(residual=True, width=block.width, chosen=chosen):
        if rest.before is not None:
            n_dest = vectors.shape[2]
            vectors = block.with_cross_attention(vectors, dest)
            vectors = block.after_attention(vectors, rest.weights.b_o, dest)
            yield dest, vectors[:, :, n_dest:] if layer is rest else vectors[:, :, :n_dest]
        else:
            yield dest, block.after_attention(vectors, layer.weights.b_o, dest)


def carry(
    model: nn.Module, sites: Sites, layer: Layer, vectors: Vectors | None, share_biases: bool
) -> Float[Tensor, "sentence dest src feature"]:
    """A block's output as vectors: those of its input carried through it, or each source's own input where None."""
    if vectors is None:
        return torch.cat([part for _, part in output_vectors(layer, share_biases)], dim=1)
    carry_through(layer, vectors, value_weights(model, layer.index, layer.dtype, sites.stack), share_biases)
    return vectors


def carry_through(layer: Layer, vectors: Vectors, weights: ValueWeights | None, share_biases: bool) -> None:
    """Turn the vectors of a block's input into those of its output, in place."""
    block = BlockVectors(layer, share_biases)
    bias = block.attend(vectors, block.checked(weights))
    for dest in layer.destinations(block.width):
        vectors[:, dest] = block.after_attention(vectors[:, dest], bias, dest)


class BlockVectors:
    """One block's way with vectors. Raises ModelError where the block is of a kind that has no such way.

    Published for blocks that end in a norm (BERT). Blocks that begin with norms follow the same rules, the MLP's norm
    and the attention's taken at their clean scales; a gated MLP multiplies two parts of its input and has no slope.
    """

    def __init__(self, layer: Layer, share_biases: bool) -> None:
        layer.check_sums("decompx")
        self.layer, self.share_biases = layer, share_biases
        weights = layer.weights
        if weights.w_gate is not None:
            raise _undefined(layer, "its MLP is gated: a product of two parts of its input has no share of one source")
        if weights.w_in is None or weights.w_out is None or weights.activation is None or weights.norm2 is None:
            raise _undefined(layer, "its MLP is not two matrices around an activation that tl_vzero knows")
        self.w_in, self.b_in, self.w_out, self.b_out = weights.w_in, weights.b_in, weights.w_out, weights.b_out
        middle = layer.middle
        self.post_norm = layer.order == "post_norm"
        self.norm1 = _fixed(weights.norm1, middle if self.post_norm else layer.input) if weights.norm1 else None
        read = weights.norm1(middle) if self.post_norm and weights.norm1 else weights.norm2(middle)
        linear = F.linear(read, self.w_in.T, self.b_in)
        hidden = weights.activation(linear.clone())
        stream = (read if self.post_norm else middle) + F.linear(hidden, self.w_out.T, self.b_out)
        self.norm2 = _fixed(weights.norm2, stream if self.post_norm else middle)
        self.slope = slope(weights.activation, linear)
        output = layer.block.output
        explained = weights.norm2(stream) if self.post_norm else stream
        if relative_difference(explained, output.to(layer.dtype)) > SAME_BLOCK.get(output.dtype, 0.0):
            raise _undefined(layer, "an MLP of its weights after attention does not give its output")
        if not self.post_norm and self._is_beside_attention():
            raise _undefined(layer, "its MLP reads what attention reads")

    def _is_beside_attention(self) -> bool:
        """Whether an MLP beside attention is nearer to the output than one after it; in a large stream both fit."""
        layer, weights = self.layer, self.layer.weights
        wide = wide_dtype(layer.input.device)
        written = layer.block.output.to(wide) - layer.middle.to(wide)

        def off(norm: Norm, rows: Tensor) -> float:
            return float((self._mlp_of(norm(rows)).to(wide) - written).square().sum())

        beside = [off(norm, layer.input) for norm in (weights.norm2, weights.norm1) if norm is not None]
        assert weights.norm2 is not None
        return min(beside) < off(weights.norm2, layer.middle)

    def _mlp_of(self, read: Float[Tensor, "*rows feature"]) -> Float[Tensor, "*rows feature"]:
        assert self.layer.weights.activation is not None
        hidden = self.layer.weights.activation(F.linear(read, self.w_in.T, self.b_in))
        return F.linear(hidden, self.w_out.T, self.b_out)

    @property
    def width(self) -> int:
        """The largest feature axis of a vector inside the block."""
        return max(self.w_in.shape)

    def after_attention(self, vectors: Vectors, bias: Float[Tensor, "feature"], dest: slice) -> Vectors:
        """From the residual stream after attention, without its bias, to the block's output; may overwrite."""
        vectors = self._shared(vectors, bias, dest)
        if not self.post_norm:
            return vectors.add_(self._mlp(self._through(self.norm2, vectors, dest), dest))
        assert self.norm1 is not None
        vectors = self._through(self.norm1, vectors, dest)
        vectors = self._mlp(vectors, dest).add_(vectors)
        return self._through(self.norm2, vectors, dest)

    def with_cross_attention(
        self, vectors: Float[Tensor, "sentence dest itself feature"], dest: slice
    ) -> Float[Tensor, "sentence dest both feature"]:
        """From the stream after a decoder's self-attention, without its bias, to that after the cross-attention.

        Sources are the decoder's positions, then the encoder's.
        """
        before = self.layer.before
        assert before is not None
        brought = torch.einsum("shij,shjd->sijd", self.layer.pattern[:, :, dest], self.layer.written)
        vectors = self._shared(torch.cat([vectors, torch.zeros_like(brought)], dim=2), before.weights.b_o, dest)
        if self.post_norm:
            vectors = self._through(_fixed(before.norm("norm1", "decompx"), before.middle), vectors, dest)
        vectors[:, :, -brought.shape[2] :] += brought
        return vectors

    def checked(self, weights: ValueWeights | None) -> ValueWeights:
        """The weights of the values; raises ModelError where they do not give the values of the clean run."""
        layer = self.layer
        if weights is not None:
            norm1 = None if self.post_norm else layer.weights.norm1
            read = layer.input if norm1 is None else norm1(layer.input)
            value, clean = torch.einsum("sjd,hdk->sjhk", read, weights[0]) + weights[1], layer.block.value
            same = value.shape == clean.shape
            if same and relative_difference(value, clean.to(layer.dtype)) <= SAME_BLOCK.get(clean.dtype, 0.0):
                return weights
        raise _undefined(layer, "its value weights do not give its values, so that it carries no vectors through")

    def attend(self, vectors: Vectors, weights: ValueWeights) -> Float[Tensor, "feature"]:
        """Add in place what attention brings of each vector; gives the bias that is still to be shared."""
        w_v, b_v = weights
        value = self._values(vectors, w_v)
        w_o = self.layer.weights.w_o
        members = len(w_o) // len(w_v)
        flat = vectors.view(-1, vectors.shape[-1])
        for head, of_head in enumerate(w_o):
            of_value_head = value[..., head // members, :].flatten(start_dim=2)
            flat.addmm_((self.layer.pattern[:, head] @ of_value_head).view(-1, w_o.shape[1]), of_head)
        return self.layer.weights.b_o + torch.einsum("hk,hkd->d", b_v.repeat_interleave(members, dim=0), w_o)

    def _values(self, vectors: Vectors, w_v: Tensor) -> Float[Tensor, "sentence dest src value_head d_head"]:
        n_heads, features, d_head = w_v.shape
        together = w_v.transpose(0, 1).reshape(features, n_heads * d_head)
        value = vectors.new_empty(*vectors.shape[:3], n_heads, d_head)
        for token in self.layer.destinations():
            read = vectors[:, token]
            if not self.post_norm and self.norm1 is not None:
                read = self._through(self.norm1, read, token)
            value[:, token] = (read @ together).unflatten(-1, (n_heads, d_head))
        return value

    def _mlp(self, vectors: Vectors, dest: slice) -> Vectors:
        hidden = self._shared(vectors @ self.w_in, self.b_in, dest).mul_(self.slope[:, dest].unsqueeze(2))
        return self._shared(hidden @ self.w_out, self.b_out, dest)

    def _through(self, fixed: Fixed, vectors: Vectors, dest: slice) -> Vectors:
        norm, scale = fixed
        scaled = (norm.weight * norm.centre(vectors)).div_(scale[:, dest, None, None])
        return self._shared(scaled, norm.bias, dest)

    def _shared(self, vectors: Vectors, bias: Float[Tensor, "feature"] | None, dest: slice) -> Vectors:
        if bias is None or not self.share_biases:
            return vectors
        return share(vectors, bias, self.layer.itself[:, dest])


def share(vectors: Vectors, bias: Float[Tensor, "feature"], itself: Int[Tensor, "sentence dest"]) -> Vectors:
    """Add a bias to the vectors of some destinations, in place, to each source its part."""
    is_itself = torch.arange(vectors.shape[2], device=vectors.device) == itself.unsqueeze(-1)
    return vectors.addcmul_(shares(vectors, bias, is_itself).unsqueeze(-1), bias)


def shares(
    vectors: Vectors, bias: Float[Tensor, "feature"], is_itself: Bool[Tensor, "*sentence dest src"]
) -> Float[Tensor, "sentence dest src"]:
    """Each source's part of a bias; rows sum to one. A bias that no vector points along is the destination's own."""
    along = (vectors @ bias).abs()
    whole = along.sum(dim=-1, keepdim=True)
    return torch.where(whole == 0, is_itself.to(along), along / torch.where(whole == 0, 1.0, whole))


def slope(activation: Activation, before: Float[Tensor, "*rows neuron"]) -> Float[Tensor, "*rows neuron"]:
    """act(z) / z, and at 0 its limit from above."""
    safe = torch.where(before.abs() < SMALLEST_INPUT, SMALLEST_INPUT, before)
    return activation(safe.clone()) / safe


def _fixed(norm: Norm, clean: Float[Tensor, "sentence position feature"]) -> Fixed:
    return norm, norm.deviation(norm.centre(clean))


def _undefined(layer: Layer, reason: str) -> ModelError:
    return ModelError(f"decompx is undefined for this model: block {layer.index} cannot be taken apart, {reason}")


@takes_turn
def decompx(
    model: nn.Module,
    inputs: Text,
    *,
    propagate: bool = False,
    share_biases: bool = True,
    attention_mask: Ids | None = None,
    token_type_ids: Ids | None = None,
    decoder_inputs: DecoderInputs | None = None,
    stack: str | None = None,
    cache: Any | None = None,
    layers: Iterable[int] | int | None = None,
    destinations: Positions = None,
    prepend_bos: bool = False,
) -> Scores | list[Scores]:
    """DecompX: sizes of the vectors that sum to a block's output, one per source, `[layer, dest, src]`.

    Attention, norms, MLP and both residual connections are applied to each source's vector by itself, with the clean
    run's pattern, scales and slopes act(z) / z; a bias is shared by |<vector, bias>|, so that the vectors sum to the
    real output. Each block begins with its own input; `propagate=True` carries the vectors through all layers from the
    first block's input, normalised rows that are not rolled out again. `share_biases=False` leaves out all biases but
    those of the values that are the source's own. Sizes are in the units of the residual stream.

    A decoder's block beside an encoder has one sum for both its maps: with stack="decoder" the vectors of decoder
    positions, with "cross" those of encoder positions, all measured in the block's output, which is what both sum to.

    Costs two products of d_mlp x d_model per pair of tokens, fewer pairs where `destinations` are chosen; `propagate`
    needs all pairs and holds two vectors for each. Raises ModelError for blocks with a gated MLP, with norms between
    attention and residual stream, or that weights do not explain.
    Source: Modarressi et al. 2023, "DecompX: Explaining Transformers Decisions by Propagating Token Decomposition".

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> scores = tl_vzero.score(model, "the authors [MASK] today.", method="decompx")
    >>> scores.normalized().values.sum(dim=-1).round(decimals=4).unique().tolist()
    [1.0]
    """
    if not propagate:
        return layer_scores(
            model,
            inputs,
            method=replace(METHODS["decompx"], function=LayerMaps(_of_layer, rows=_of_rows, cut=True)),
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            decoder_inputs=decoder_inputs,
            stack=stack,
            cache=cache,
            layers=layers,
            destinations=destinations,
            prepend_bos=prepend_bos,
            share_biases=share_biases,
        )
    sites = check_contracts(model, stack)
    if sites.stack in ("decoder", "cross"):
        raise InputError(
            f"propagate=True with stack={sites.stack!r}: expected it for one sequence; a decoder's vectors are also of "
            "the encoder's positions, which other blocks carry; leave propagate out, or take the encoder"
        )
    picked = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    reading: Any = {"attention_mask": attention_mask, "token_type_ids": token_type_ids, "prepend_bos": prepend_bos}
    encoded = encode_for(model, sites.stack, inputs, decoder_inputs, **reading)
    rows = rows_by_sentence(encoded, destinations)
    options = {"propagate": propagate, "share_biases": share_biases}
    metadata = provenance(model, sites.stack) | {"engine": "clean run", "options": options}
    scored: dict[int, Scores] = {}
    with quiet(model):
        for sentence in encoded.sentences:
            sizes = _propagated(model, sites, sentence, max(picked) + 1, cache, share_biases=share_biases)
            dests = rows[sentence.row]
            values = normalize_rows(sizes[list(picked)][:, list(dests)]).to(result_dtype(model))
            labels = picked, dests, sites, sentence, metadata
            scored[sentence.row] = labelled("decompx", values, *labels, stage="rollout")
    return encoded.in_order(scored)


def _of_layer(layer: Layer, share_biases: bool = True) -> Float[Tensor, "sentence dest src"]:
    return _of_rows(layer, None, share_biases)


def _of_rows(
    layer: Layer, destinations: Sequence[int] | None, share_biases: bool = True
) -> Float[Tensor, "sentence dest src"]:
    parts = output_vectors(layer, share_biases, destinations)
    return torch.cat([torch.linalg.vector_norm(vectors, dim=-1) for _, vectors in parts], dim=1)


def _propagated(
    model: nn.Module, sites: Sites, sentence: Sentence, n_layers: int, cache: Any | None, *, share_biases: bool
) -> Float[Tensor, "layer dest src"]:
    """The sizes after each layer, of vectors carried from the first block's input; one sentence, for its memory."""
    carried: Vectors | None = None
    sizes: list[Tensor] = []

    def visit(layer: Layer) -> None:
        nonlocal carried
        carried = carry(model, sites, layer, carried, share_biases)
        sizes.append(torch.linalg.vector_norm(carried[0], dim=-1))

    visit_layers(model, sites, [sentence], range(n_layers), cache, visit)
    return torch.stack(sizes)
