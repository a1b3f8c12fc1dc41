"""Choosing between the two engines: the closed form where it is known to be right, else hooks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from tl_vzero.clean import Clean, clean_run
from tl_vzero.errors import ModelError, unknown_name
from tl_vzero.models.blocks import acted_on, block_weights, structure
from tl_vzero.models.sites import Sites
from tl_vzero.zeroing.closed_form import Group, closed_form_layer, compute_dtype
from tl_vzero.zeroing.hooked import hooked_maps
from tl_vzero.zeroing.pairs import Workspace
from tl_vzero.zeroing.request import Request, default_request

EngineName = Literal["auto", "hooks", "closed_form"]
ENGINES: tuple[EngineName, ...] = ("auto", "hooks", "closed_form")

PROBE_LENGTH = 8
# How far the engines may be apart on a probe. The hook engine's float32 outputs keep few digits of a small
# distance, so only entries above `above` are compared, relatively.
SAME_SCORE = {torch.float64: (1e-4, 1e-9), torch.float32: (1e-2, 1e-6)}
SAME_SCORE_HALF = (0.3, 1e-3)

_VERIFIED: WeakKeyDictionary[nn.Module, tuple[object, bool]] = WeakKeyDictionary()


@dataclass(frozen=True, eq=False)
class Batch:
    """Sentences of one length: ids, clean run where it is known, and which of their positions are asked for."""

    ids: Int[Tensor, "sentence position"]
    clean: Clean | None
    sources: tuple[int, ...]
    destinations: tuple[int, ...]

    @property
    def n_copies(self) -> int:
        return len(self.ids) * len(self.sources)


@dataclass(frozen=True)
class Used:
    """Which engine ran, why not the other one, and the closed form's routes by layer."""

    engine: str
    reason: str | None = None
    routes: tuple[str, ...] = ()


def check_engine(engine: str) -> None:
    """Raise InputError for an engine that does not exist."""
    if engine not in ENGINES:
        raise unknown_name("engine", engine, ENGINES)


def zeroed_maps(
    model: nn.Module,
    sites: Sites,
    batches: Sequence[Batch],
    request: Request,
    engine: str,
    *,
    final_norm: nn.Module | None,
    advance: Callable[[float], object],
) -> tuple[list[Float[Tensor, "sentence layer map dest src"]], Used]:
    """Raw maps of each batch, and which engine computed them; `advance` is told of sources times layers done.

    Raises ModelError where engine="closed_form" is asked for and cannot be had.
    """
    reason: str | None = None
    if engine != "hooks":
        reason = _why_not_closed(model, sites, batches[0])
        if reason is None:
            cleans = [batch.clean or clean_run(model, sites, batch.ids, request.layers) for batch in batches]
            made = _closed_maps(model, sites, batches, cleans, request, final_norm, advance)
            if not isinstance(made, str):
                return made[0], Used("closed_form", routes=made[1])
            reason = made
        if engine == "closed_form":
            raise ModelError(f'engine="closed_form" cannot be used: {reason}; use engine="auto" or "hooks"')
    maps = [
        hooked_maps(
            model,
            sites,
            batch.ids,
            request,
            batch.sources,
            batch.destinations,
            clean=batch.clean,
            final_norm=final_norm,
            advance=lambda sources: advance(sources * len(request.layers)),
        )
        for batch in batches
    ]
    return maps, Used("hooks", reason=reason)


def _closed_maps(
    model: nn.Module,
    sites: Sites,
    batches: Sequence[Batch],
    cleans: Sequence[Clean],
    request: Request,
    final_norm: nn.Module | None,
    advance: Callable[[float], object],
) -> tuple[list[Tensor], tuple[str, ...]] | str:
    """Maps and routes, or the reason why there are none."""
    by_layer: list[list[Tensor]] = []
    routes: list[str] = []
    workspace = Workspace()
    for layer in request.layers:
        blocks = [clean[layer] for clean in cleans]
        weights = block_weights(model, layer, compute_dtype(blocks[0].output))
        if weights is None:
            return f"the weights of block {layer} cannot be read in TransformerLens's layout"
        groups = [Group(block, b.sources, b.destinations) for block, b in zip(blocks, batches, strict=True)]
        heads = request.heads if request.heads is not None else tuple(range(blocks[0].value.shape[2]))
        norm = final_norm if layer == sites.n_layers - 1 else None
        made = closed_form_layer(
            weights, groups, heads, request, memory_mb=request.memory_mb, workspace=workspace, final_norm=norm
        )
        if made is None:
            return f"block {layer} is of no known form: its weights do not explain its output"
        by_layer.append(made[0])
        routes.append(made[1])
        advance(sum(batch.n_copies for batch in batches))
    return [torch.stack(maps, dim=1) for maps in zip(*by_layer, strict=True)], tuple(routes)


def _why_not_closed(model: nn.Module, sites: Sites, batch: Batch) -> str | None:
    if acted_on(model):
        return "hooks act on the model, and the closed form would not see them"
    known = _VERIFIED.get(model)
    built = structure(model)
    if known is None or known[0] != built:
        known = (built, _agrees(model, sites, batch.ids[:1, :PROBE_LENGTH]))
        _VERIFIED[model] = known
    return None if known[1] else "on a probe it did not give what the hook engine gives"


def _agrees(model: nn.Module, sites: Sites, ids: Int[Tensor, "1 position"]) -> bool:
    """Whether both engines give the same raw maps of a few tokens, in every layer."""
    request = default_request(sites.n_layers)
    whole = tuple(range(ids.shape[1]))
    clean = clean_run(model, sites, ids, request.layers)
    batch = Batch(ids, clean, whole, whole)
    made = _closed_maps(model, sites, [batch], [clean], request, None, lambda _: None)
    if isinstance(made, str):
        return True  # not recognised: said where it is used, with the block's number
    hooked = hooked_maps(model, sites, ids, request, whole, whole, clean=clean)
    relative, above = SAME_SCORE.get(clean[0].output.dtype, SAME_SCORE_HALF)
    closed = made[0][0]
    large = torch.maximum(hooked, closed) > above
    return bool(((closed - hooked).abs() <= relative * torch.maximum(hooked, closed))[large].all())
