"""Row normalisation, joins and rollout, on plain tensors. Rows are destinations, columns are sources.

Rollout follows the maps through the layers, after Abnar & Zuidema 2020 and, for two stacks, Ferrando et al. 2022.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tl_vzero.distance import wide_dtype

Groups = Sequence[Sequence[int]]
# "values" `[*axes, dest, src]`, and where there are: "error", how far their shares may be off, of the same shape, and
# "omitted" `[*axes, dest]`, what rows have in columns that were left out.
Parts = dict[str, Tensor]


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


def shares(parts: Parts) -> Parts:
    """Divide rows by their sums, of which what was left out is a part."""
    if "omitted" not in parts:
        return parts | {"values": normalize_rows(parts["values"])}
    whole = normalize_rows(torch.cat([parts["values"], parts["omitted"].unsqueeze(-1)], dim=-1))
    return parts | {"values": whole[..., :-1], "omitted": whole[..., -1]}


def strongest(parts: Parts, k: int) -> tuple[Parts, list[int]]:
    """The k largest entries of each row, of equal ones the first, and the columns that these are in.

    All other entries are 0, and their sum is left out; how far the share of an entry may be off covers that 0.

    >>> import torch
    >>> cut, columns = strongest({"values": torch.tensor([[1.0, 4.0, 2.0, 2.0]])}, 2)
    >>> cut["values"].tolist(), cut["omitted"].tolist(), columns
    ([[4.0, 2.0]], [3.0], [1, 2])
    """
    values = parts["values"]
    largest = values.sort(dim=-1, descending=True, stable=True).indices[..., :k]
    cut = torch.zeros_like(values).scatter(-1, largest, values.gather(-1, largest))
    omitted = (values - cut).sum(dim=-1, dtype=wide_dtype(values.device)).to(values.dtype)
    columns = (cut != 0).flatten(end_dim=-2).any(dim=0).nonzero().flatten().tolist() or [0]
    left = {"values": cut[..., columns], "omitted": omitted + parts.get("omitted", 0)}
    if "error" in parts:
        off = parts["error"]
        left["error"] = torch.where(cut == values, off, off + shares(parts)["values"])[..., columns]
    return left, columns


def join(parts: Parts, dests: Groups, sources: Groups, *, raw: bool) -> Parts:
    """Join rows and columns into groups: summed over the sources of a group, averaged over its destinations.

    So is how far shares may be off, where the rows are shares. `raw` rows are weighed by their sums in the mean, which
    may be off too: a true share of theirs lies between the least and the largest that one of the rows allows.
    """
    counts = torch.tensor([len(group) for group in dests], dtype=parts["values"].dtype, device=parts["values"].device)
    joined = {"values": _summed(_summed(parts["values"], sources, -1), dests, -2) / counts.unsqueeze(-1)}
    if "error" in parts:
        off = _summed(parts["error"], sources, -1)
        joined["error"] = _summed(off, dests, -2) / counts.unsqueeze(-1)
        if raw:
            stated, of_pieces = shares(joined)["values"], _summed(shares(parts)["values"], sources, -1)
            rows = [torch.tensor([*group], device=off.device) for group in dests]
            high = torch.stack([(of_pieces + off).index_select(-2, at).amax(dim=-2) for at in rows], dim=-2)
            low = torch.stack([(of_pieces - off).index_select(-2, at).amin(dim=-2) for at in rows], dim=-2)
            joined["error"] = torch.maximum(high - stated, stated - low)
    return joined


def _summed(maps: Tensor, groups: Groups, dim: int) -> Tensor:
    indices = [torch.tensor([*group], device=maps.device) for group in groups]
    return torch.stack([maps.index_select(dim, index).sum(dim) for index in indices], dim=dim)


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


def rollout_error(
    normalized: Float[Tensor, "layer position position"],
    error: Float[Tensor, "layer position position"],
    *,
    identity: bool,
) -> Float[Tensor, "layer position position"]:
    """How far the entries of `roll_out` may be off where those of the normalised maps may be off by `error`.

    For products of maps that are nowhere negative, where |N' - N| <= E and |R' - R| <= F, N' and R' being the stated
    ones: |N' R' - N R| <= E R' + N' F + E F. No entry lies outside [0, 1], so no bound is above 1.

    >>> import torch
    >>> half = torch.full((2, 2, 2), 0.5)
    >>> rollout_error(half, torch.full_like(half, 0.01), identity=False)[1]
    tensor([[0.0202, 0.0202],
            [0.0202, 0.0202]])
    """
    wide = wide_dtype(normalized.device)
    steps, off = normalized.to(wide), error.to(wide)
    if identity:
        # Of a row that is empty, whole and not half of it stays where it is.
        may_be_empty = (steps <= off).all(dim=-1, keepdim=True) & (off > 0).any(dim=-1, keepdim=True)
        off = torch.where(may_be_empty, 1.0, off / 2)
        steps = normalize_rows(steps + torch.eye(steps.shape[-1], dtype=wide, device=steps.device))
    rolled, bounds = steps[0], [off[0].clamp(max=1)]
    for step, reach in zip(steps[1:], off[1:], strict=True):
        bounds.append((reach @ (rolled + bounds[-1]) + step @ bounds[-1]).clamp(max=1))
        rolled = step @ rolled
    return torch.stack(bounds).to(error.dtype)


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
