"""Methods that take attention's output apart into one vector for each source, and measure its size.

Every map is `[sentence, dest, src]`, raw. F, U, T and T2 are the vectors of Kobayashi et al. and Modarressi et al.:
what attention writes, with the token itself, through the first norm, and through the second.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from tl_vzero.methods.layer import Layer


def _size(vectors: Tensor, dest: slice) -> Tensor:
    size: Tensor = torch.linalg.vector_norm(vectors, dim=-1)
    return size


def attention_norm(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """The size of what a source brings through attention, heads summed first (Kobayashi et al. 2020, equation 5)."""
    return layer.over_vectors(_size, residual=False)


def attention_norm_heads(layer: Layer) -> Float[Tensor, "sentence head dest src"]:
    """The same for every query head alone."""
    size: Tensor = torch.linalg.vector_norm(layer.written, dim=-1)
    return layer.pattern * size.unsqueeze(2)


def attention_norm_res(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """The same with the residual connection: a token brings itself too (Kobayashi et al. 2021)."""
    layer.check_sums("attention_norm_res")
    return layer.over_vectors(_size, residual=True)


def attention_norm_res_ln(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """The same through the first LayerNorm, at its clean scale (Kobayashi et al. 2021)."""
    norm1 = layer.norm("norm1", "attention_norm_res_ln")
    deviation = norm1.deviation(norm1.centre(layer.middle))

    def measure(vectors: Tensor, dest: slice) -> Tensor:
        return _size(norm1.weight * norm1.centre(vectors), dest) / deviation[:, dest].unsqueeze(-1)

    return layer.over_vectors(measure, residual=True)


def globenc(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """Through both norms; the MLP acts only by the scale of the second (Modarressi et al. 2022)."""
    norm1, norm2 = layer.norm("norm1", "globenc"), layer.norm("norm2", "globenc")
    first = norm1.deviation(norm1.centre(layer.middle))
    second = norm2.deviation(norm2.centre(layer.last_norm_input))

    def measure(vectors: Tensor, dest: slice) -> Tensor:
        through = norm2.weight * norm2.centre(norm1.weight * norm1.centre(vectors))
        return _size(through, dest) / (first * second)[:, dest].unsqueeze(-1)

    return layer.over_vectors(measure, residual=True)


def alti(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """How much nearer, in the 1-norm, a source brings the sum of all vectors (Ferrando et al. 2022).

    The sum is what the first norm gives, or, where the norms come first, the residual stream after attention.
    """
    layer.check_sums("alti")
    if layer.order == "pre_norm":
        whole, scale = layer.middle, None
    else:
        norm1 = layer.norm("norm1", "alti")
        whole, scale = norm1(layer.middle), norm1.deviation(norm1.centre(layer.middle))

    def measure(vectors: Tensor, dest: slice) -> Tensor:
        if scale is not None:
            vectors = norm1.weight * norm1.centre(vectors) / scale[:, dest, None, None]
        total = whole[:, dest].unsqueeze(2)
        nearer = total.abs().sum(dim=-1) - (total - vectors).abs().sum(dim=-1)
        return nearer.clamp(min=0)

    return layer.over_vectors(measure, residual=True)
