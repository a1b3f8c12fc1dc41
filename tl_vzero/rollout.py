"""Row normalisation and rollout, on plain tensors. Rows are destinations, columns are sources.

Rollout follows the maps through the layers, after Abnar & Zuidema 2020 and, for two stacks, Ferrando et al. 2022.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_vzero.distance import wide_dtype


def empty_rows(maps: Float[Tensor, "*axes dest src"]) -> Bool[Tensor, "*axes dest"]:
    """Mark the rows in which every entry is exactly 0; no threshold is involved.

    >>> import torch
    >>> empty_rows(torch.tensor([[0.0, 0.0], [1e-30, 0.0]])).tolist()
    [True, False]
    """
    return (maps == 0).all(dim=-1)


def normalize_rows(maps: Float[Tensor, "*axes dest src"]) -> Float[Tensor, "*axes dest src"]:
    """Divide each row by its sum, so that rows sum to 1; an empty row stays zero.

    >>> import torch
    >>> normalize_rows(torch.tensor([[1.0, 3.0], [0.0, 0.0]])).tolist()
    [[0.25, 0.75], [0.0, 0.0]]
    """
    wide = maps.to(wide_dtype(maps.device))
    # The row's largest entry goes first, so that a sum of tiny entries cannot underflow.
    largest = wide.amax(dim=-1, keepdim=True)
    scaled = wide / torch.where(largest == 0, 1.0, largest)
    total = scaled.sum(dim=-1, keepdim=True)
    return (scaled / torch.where(total == 0, 1.0, total)).to(maps.dtype)


def roll_out(
    normalized: Float[Tensor, "layer position position"], *, identity: bool
) -> Float[Tensor, "layer position position"]:
    """Multiply row-normalised maps through the layers: R_1 = N_1, R_l = N_l @ R_{l-1}.

    With `identity`, half of every token is taken to stay where it is: each map becomes
    (N + I) / 2 before the product, the rule for scores that do not hold the residual stream
    (Abnar & Zuidema 2020). Value Zeroing holds it already (Mohebbi et al. 2023, section 3).

    >>> import torch
    >>> half = torch.full((2, 2, 2), 0.5)
    >>> roll_out(half, identity=True)[1].tolist()
    [[0.625, 0.375], [0.375, 0.625]]
    """
    steps = normalized.to(wide_dtype(normalized.device))
    if identity:
        steps = normalize_rows(steps + torch.eye(steps.shape[-1], dtype=steps.dtype, device=steps.device))
    rolled = [steps[0]]
    for step in steps[1:]:
        rolled.append(step @ rolled[-1])
    return torch.stack(rolled).to(normalized.dtype)


def roll_out_jointly(
    decoder: Float[Tensor, "layer dest dest"],
    cross: Float[Tensor, "layer dest src"],
    encoder: Float[Tensor, "src src"],
    *,
    identity: bool,
    residual: Float[Tensor, "layer dest"] | None = None,
) -> Float[Tensor, "layer dest both"]:
    """Follow a decoder's raw maps down to what decoder and encoder read, columns `[decoder | encoder]`.

    A decoder block draws on decoder positions, S, and on the encoder's output, C, by one measure, so a row of [S | C]
    is divided by its one sum. With E, the last layer of the encoder's rollout:

        R_l = S_l @ R_{l-1} + C_l @ [0 | E],   R_0 = [1 | 0]

    Rows sum to 1 where those of E do. With `identity`, half of every decoder token stays where it is in each layer.
    `residual` is of maps that each stand for their own sublayer: what the residual stream brings to a cross-attention
    is what S drew on. A row of [r | C] has the one sum then, and S_l, with rows of its own, is weighed by r.
    After Ferrando et al. 2022, "Towards Opening the Black Box of Neural Machine Translation", section 3.

    >>> import torch
    >>> decoder, cross = torch.ones(2, 1, 1), torch.ones(2, 1, 1)
    >>> roll_out_jointly(decoder, cross, torch.ones(1, 1), identity=False).tolist()
    [[[0.5, 0.5]], [[0.25, 0.75]]]
    """
    n_dest, n_src = cross.shape[-2:]
    wide = wide_dtype(decoder.device)
    steps = normalize_rows(torch.cat([decoder, cross], dim=-1).to(wide))
    if residual is not None:
        parts = normalize_rows(torch.cat([residual.unsqueeze(-1), cross], dim=-1).to(wide))
        steps = torch.cat([parts[..., :1] * normalize_rows(decoder.to(wide)), parts[..., 1:]], dim=-1)
    rolled = torch.eye(n_dest, n_dest + n_src, dtype=wide, device=decoder.device)
    if identity:
        steps = normalize_rows(steps + rolled)
    through_encoder = torch.nn.functional.pad(encoder.to(wide), (n_dest, 0))
    layers = []
    for step in steps:
        rolled = step[:, :n_dest] @ rolled + step[:, n_dest:] @ through_encoder
        layers.append(rolled)
    return torch.stack(layers).to(decoder.dtype)
