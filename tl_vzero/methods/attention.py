"""Raw attention, and what it gives when it is followed through the layers."""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow
from torch import Tensor

from tl_vzero.choices import integer
from tl_vzero.methods.layer import Layer
from tl_vzero.rollout import normalize_rows, roll_out

# Scipy's flows and nodes are 32-bit integers. A row of capacities sums to 1, so no flow is larger than this.
UNITS_OF_FLOW = 2**30


def attention(layer: Layer) -> Float[Tensor, "sentence dest src"]:
    """The attention pattern, averaged over heads (Vaswani et al. 2017)."""
    return layer.pattern.mean(dim=1)


def attention_heads(layer: Layer) -> Float[Tensor, "sentence head dest src"]:
    """The attention pattern of every query head."""
    return layer.pattern


def attention_rollout(
    maps: Float[Tensor, "layer position position"], destinations: Sequence[int]
) -> Float[Tensor, "layer dest position"]:
    """Attention multiplied through the layers; half of each token stays (Abnar & Zuidema 2020, section 3)."""
    return roll_out(normalize_rows(maps), identity=True)[:, list(destinations)]


def attention_flow(
    maps: Float[Tensor, "layer position position"], destinations: Sequence[int]
) -> Float[Tensor, "layer dest position"]:
    """The largest flow from a destination down to each input token, as a share of the row (Abnar & Zuidema 2020).

    Attention with half of each token staying is the capacity of a pipe. Solves one flow problem per entry, T per
    layer and destination, on T nodes for each layer below.
    """
    n_layers, length = len(maps), maps.shape[-1]
    held = normalize_rows(normalize_rows(maps) + torch.eye(length, dtype=maps.dtype, device=maps.device))
    pipes = (held.cpu().double().numpy() * UNITS_OF_FLOW).round().astype(np.int32)
    flows = np.zeros((n_layers, len(destinations), length))
    for layer in range(n_layers):
        graph = _graph(pipes[: layer + 1])
        for row, dest in enumerate(destinations):
            for source in range(length):
                flow = maximum_flow(graph, (layer + 1) * length + dest, source).flow_value
                flows[layer, row, source] = flow / UNITS_OF_FLOW
    return normalize_rows(torch.from_numpy(flows)).to(maps)


def _graph(pipes: np.ndarray) -> csr_array:
    """A node for each token of the input and of each layer's output; pipes lead from a layer to the one below."""
    n_layers, length, _ = pipes.shape
    layer, dest, source = (index.astype(np.int32) for index in np.nonzero(pipes))
    size = (n_layers + 1) * length
    ends = ((layer + 1) * length + dest, layer * length + source)
    return csr_array((pipes[layer, dest, source], ends), shape=(size, size))


# Random scores: what a method must beat.


def random(layer: Layer, seed: int = 0) -> Float[Tensor, "sentence dest src"]:
    """Uniform between 0 and 1 where attention can reach at all; the same for a sentence alone and in a batch."""
    integer("seed", seed)
    generator = torch.Generator().manual_seed(seed * 10_007 + layer.index)
    one = torch.rand(*layer.pattern.shape[-2:], generator=generator, dtype=torch.float64).to(layer.pattern)
    return one * (layer.pattern != 0).any(dim=1)
