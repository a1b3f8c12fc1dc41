"""Methods that take attention's output apart into one vector for each source, and measure its size.

Every map is `[sentence, dest, src]`, raw. F, U, T and T2 are the vectors of Kobayashi et al. and Modarressi et al.:
what attention writes, with the token itself, through the first norm, and through the second. Of a cross-attention no
source is the token itself: what the residual stream brings is one more column behind the sources.
"""

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor

from tl_vzero.choices import flag
from tl_vzero.distance import wide_dtype
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.methods.layer import NUMBERS_AT_A_TIME, Layer


def attention_norm(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """The size of what a source brings through attention, heads summed first (Kobayashi et al. 2020, equation 5)."""
    return _sizes(layer, layer.written)


def attention_norm_heads(layer: Layer) -> Float[Tensor, "sentence head dest src"]:
    """The same for every query head alone."""
    size: Tensor = torch.linalg.vector_norm(layer.written, dim=-1)
    return layer.pattern * size.unsqueeze(2)


def attention_norm_res(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """The same with the residual connection: a token brings itself too (Kobayashi et al. 2021)."""
    layer.check_sums("attention_norm_res")
    return _sizes(layer, layer.written, layer.input)


def attention_norm_res_ln(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """The same through the first LayerNorm, at its clean scale (Kobayashi et al. 2021)."""
    norm1 = layer.norm("norm1", "attention_norm_res_ln")
    deviation = norm1.deviation(norm1.centre(layer.middle))

    def through(vectors: Tensor) -> Tensor:
        return norm1.weight * norm1.centre(vectors)

    return _sizes(layer, through(layer.written), through(layer.input)) / deviation.unsqueeze(-1)


def globenc(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """Through all norms behind; what the MLP writes acts only by the scale of the last (Modarressi et al. 2022).

    So does what a cross-attention writes, behind a self-attention. Both maps of a decoder's block are of its output, so
    that the residual connection is in that of the self-attention alone.
    """
    norms = layer.norms_behind("globenc")
    scale = torch.stack([norm.deviation(norm.centre(read)) for norm, read in norms]).prod(dim=0)

    def through(vectors: Tensor) -> Tensor:
        for norm, _ in norms:
            vectors = norm.weight * norm.centre(vectors)
        return vectors

    residual = None if layer.before else through(layer.input)
    return _sizes(layer, through(layer.written), residual) / scale.unsqueeze(-1)


def alti(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """How much nearer, in the 1-norm, a source brings the sum of all vectors (Ferrando et al. 2022).

    The sum is what the first norm gives, or, where the norms come first, the residual stream after attention.
    """
    layer.check_sums("alti")
    if layer.order == "pre_norm":
        whole, vectors = layer.middle, layer.vectors(residual=True)
        scale = torch.ones_like(whole[..., :1])
    else:
        norm1 = layer.norm("norm1", "alti")
        # The norm's division is left for the end: once for each pair, not for each feature of each pair.
        scale = norm1.deviation(norm1.centre(layer.middle)).unsqueeze(-1)
        whole = norm1(layer.middle) * scale
        vectors = layer.vectors(lambda vector: norm1.weight * norm1.centre(vector), residual=True)
    parts = [_nearer(whole[:, dest].unsqueeze(2), vector) for dest, vector in vectors]
    return (torch.cat(parts, dim=1) / scale).clamp(min=0)


def information_flow(layer: Layer, least: float = 0.0, threshold: float = 0.0) -> Float[Tensor, "sentence dest src"]:
    """Shares of the parts that make up the residual stream after attention (Ferrando & Voita 2024).

    The parts of a destination are itself, on the diagonal, and what each head brings of each source. A part counts by
    how much nearer it brings the stream, in the 1-norm, `least` at the least (1e-5 in the authors' program). With a
    `threshold`, shares up to it are dropped and the others sum to one again.
    """
    return information_flow_rows(layer, None, least, threshold)


def information_flow_rows(
    layer: Layer, destinations: Sequence[int] | None, least: float = 0.0, threshold: float = 0.0
) -> Float[Tensor, "sentence dest src"]:
    """The same of some destinations, in proportion to their count."""
    heads, itself = _flow_shares(layer, destinations, least, threshold)
    shares = heads.sum(dim=1)
    if layer.before is not None:
        return torch.cat([shares, itself.unsqueeze(-1)], dim=-1)
    rows = slice(None) if destinations is None else list(destinations)
    sentence, dests, source = layer.at_itself(rows)
    shares[sentence, dests, source] += itself
    return shares


def information_flow_heads(
    layer: Layer, least: float = 0.0, threshold: float = 0.0
) -> Float[Tensor, "sentence head dest src"]:
    """The shares of every query head alone; all of a destination's together are what the token itself leaves."""
    return _flow_shares(layer, None, least, threshold)[0]


def _flow_shares(
    layer: Layer, destinations: Sequence[int] | None, least: float, threshold: float
) -> tuple[Float[Tensor, "sentence head dest src"], Float[Tensor, "sentence dest"]]:
    """What each head brings of each source, and what the token brings itself, as shares of both together."""
    for name, value in (("least", least), ("threshold", threshold)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputTypeError(f"{name} is {type(value).__name__}: expected a number from 0 to below 1, such as 1e-5")
        if not 0 <= value < 1:
            raise InputError(f"{name} is {value}: expected a number from 0 to below 1, such as 1e-5")
    layer.check_sums("information_flow")
    every = []
    for dest in layer.destinations(chosen=destinations):
        whole = layer.middle[:, dest].unsqueeze(2)
        of_heads = [
            _nearer(whole, pattern[:, dest].unsqueeze(-1) * written.unsqueeze(1))
            for pattern, written in zip(layer.pattern.unbind(1), layer.written.unbind(1), strict=True)
        ]
        every.append(torch.stack(of_heads, dim=1))
    rows = slice(None) if destinations is None else list(destinations)
    itself = _nearer(layer.middle[:, rows].unsqueeze(2), layer.input[:, rows].unsqueeze(2).clone()).squeeze(2)
    heads, itself = _as_shares(torch.cat(every, dim=2).clamp(min=least), itself.clamp(min=least))
    return _as_shares(heads * (heads > threshold), itself * (itself > threshold)) if threshold else (heads, itself)


def _as_shares(heads: Tensor, itself: Tensor) -> tuple[Tensor, Tensor]:
    whole = heads.sum(dim=(1, 3)) + itself
    whole = torch.where(whole == 0, 1.0, whole)
    return heads / whole[:, None, :, None], itself / whole


def contribution_weights(layer: Layer, size: bool = False) -> Float[Tensor, "sentence dest src"]:
    """How far a source's vector goes along attention's output, as a share of it (Cunningham & Muca Cirone 2026).

    <F[i, j], o[i]> / |o[i]|^2, signed; a row sums to one where attention has no bias b_O. With `size`, without signs.
    """
    weights = contribution_weights_heads(layer).sum(dim=1)
    return weights.abs() if flag("size", size) else weights


def contribution_weights_heads(layer: Layer, size: bool = False) -> Float[Tensor, "sentence head dest src"]:
    """The same for every query head alone, as a share of what all write."""
    output = layer.attended
    whole = output.square().sum(dim=-1)
    # <v W_O, o> = <v, W_O o>: no vector is formed for a pair.
    read = torch.einsum("sid,hkd->shik", output / torch.where(whole == 0, 1.0, whole).unsqueeze(-1), layer.weights.w_o)
    weights = layer.pattern * torch.einsum("shik,sjhk->shij", read, layer.value)
    return weights.abs() if flag("size", size) else weights


def _nearer(
    whole: Float[Tensor, "sentence dest 1 feature"], vectors: Float[Tensor, "sentence dest src feature"]
) -> Float[Tensor, "sentence dest src"]:
    """|whole| - |whole - vector| in the 1-norm, feature by feature: the two sums are large and nearly equal.

    With s the sign of a feature w, |w| - |w - v| = min(s v, 2 |w| - s v). Overwrites the vectors.
    """
    towards = vectors.mul_(torch.where(whole < 0, -1.0, 1.0))
    nearer: Tensor = torch.minimum(towards, 2.0 * whole.abs() - towards).sum(dim=-1)
    return nearer


def _sizes(
    layer: Layer,
    written: Float[Tensor, "sentence head src feature"],
    residual: Float[Tensor, "sentence position feature"] | None = None,
) -> Float[Tensor, "sentence dest column"]:
    """|sum_h A[h, i, j] written[h, j] + [i = j] residual[i]|, from inner products of what the heads write of a source.

    Of a cross-attention residual[i] belongs to no source: its size is one more column. A square is A[:, i, j] G
    A[:, i, j] with G the head-by-head Gram matrix of source j: no vector is formed for a pair, but on the diagonal.
    Where heads cancel, the square is a small difference of large numbers: there too.
    """
    wide = wide_dtype(written.device)
    columns = rearrange(written, "sentence head src feature -> sentence src head feature").to(wide)
    weights = rearrange(layer.pattern, "sentence head dest src -> sentence src dest head").to(wide)
    gram = columns @ columns.mT
    squares = ((weights @ gram) * weights).sum(dim=-1)
    without_cancelling = (weights @ gram.diagonal(dim1=-2, dim2=-1).sqrt().unsqueeze(-1)).squeeze(-1).square()
    # Below this share of what there would be without cancelling, half of the digits of a square are lost.
    cancelled = squares < torch.finfo(wide).eps ** 0.25 * without_cancelling
    sizes = squares.clamp(min=0).sqrt()
    if cancelled.any():
        sizes[cancelled] = _sizes_of_sums(weights, columns, cancelled)
    if residual is not None and layer.before is not None:
        sizes = torch.cat([sizes, torch.linalg.vector_norm(residual.to(wide), dim=-1).unsqueeze(1)], dim=1)
    elif residual is not None:
        sentence, dest, source = layer.at_itself()
        itself = weights[sentence, source, dest].unsqueeze(-2) @ columns[sentence, source]
        sizes[sentence, source, dest] = torch.linalg.vector_norm(itself.squeeze(-2) + residual.to(wide), dim=-1)
    return sizes.mT.to(written.dtype)


def _sizes_of_sums(
    weights: Float[Tensor, "sentence src dest head"],
    columns: Float[Tensor, "sentence src head feature"],
    pairs: Bool[Tensor, "sentence src dest"],
) -> Float[Tensor, "pair"]:
    """The size of the summed vector itself, of some pairs."""
    sentences, sources, destinations = pairs.nonzero(as_tuple=True)
    parts = []
    for some in torch.arange(len(sources), device=pairs.device).split(
        max(1, NUMBERS_AT_A_TIME // columns[0, 0].numel())
    ):
        sentence, source = sentences[some], sources[some]
        vectors = weights[sentence, source, destinations[some]].unsqueeze(1) @ columns[sentence, source]
        parts.append(torch.linalg.vector_norm(vectors.squeeze(1), dim=-1))
    return torch.cat(parts)
