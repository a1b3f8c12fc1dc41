"""The closed form of a whole clean run: layer by layer, while the model runs."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Unpack

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.clean import Beside, Clean, CleanBlock, visit_clean_blocks
from tl_vzero.errors import EndsRun, ModelError, foreign_errors_as
from tl_vzero.models.blocks import block_weights
from tl_vzero.models.final_norm import FinalNorm
from tl_vzero.models.modules import block_modules
from tl_vzero.models.sites import Sites
from tl_vzero.zeroing.closed_form import closed_form_layer, compute_dtype, pairs_bytes
from tl_vzero.zeroing.kept import Kept, workspace_of
from tl_vzero.zeroing.layout import Run
from tl_vzero.zeroing.request import Request, Wanted


class NotInClosedForm(EndsRun):
    """Why a model's maps cannot be had in closed form; ends the run that found out."""


class _AlgebraError(ModelError):
    """A foreign exception within the closed form."""


class PaddingMatters(NotInClosedForm):
    """What a padded run gives is not what its sentences alone give."""


def closed_maps(
    model: nn.Module,
    sites: Sites,
    ids: Sequence[Int[Tensor, "_"] | Float[Tensor, "..."]],
    wanted: Sequence[Wanted],
    request: Request,
    kept: Kept,
    *,
    clean: Clean | None = None,
    final_norm: FinalNorm | None = None,
    advance: Callable[[float], object] = lambda sources: None,
    **beside: Unpack[Beside],
) -> tuple[list[Float[Tensor, "layer map _ _"]], tuple[str, ...]]:
    """Raw maps of sentences that share one run, padded on the right to the longest, and each layer's route.

    `beside` is what goes beside the ids, padded likewise; `clean` is their clean run, where it is known. Each block's
    maps are computed as soon as the run reaches its end, so that the activations of one block are held at a time.
    Raises NotInClosedForm for a block of no known form, PaddingMatters where the sentences must run by themselves.
    """
    by_layer: dict[int, list[Tensor]] = {}
    routes: dict[int, str] = {}
    mask = _mask(ids)
    padding_from_token = None if mask is None else mask[:, None, :, None] & ~mask[:, None, None, :]

    def visit(layer: int, block: CleanBlock) -> None:
        if padding_from_token is not None and bool(((block.pattern != 0) & padding_from_token).any()):
            raise PaddingMatters(f"attention in block {layer} reads padding")
        norm = final_norm if layer == sites.n_layers - 1 else None
        try:
            # The algebra is ours: where a block has parts that it does not fit, the model itself may run well.
            with foreign_errors_as(_AlgebraError, f"its algebra failed on block {layer}"):
                weights = block_weights(model, layer, compute_dtype(block.output))
                if weights is None:
                    raise NotInClosedForm(f"the weights of block {layer} cannot be read in TransformerLens's layout")
                modules = partial(block_modules, model, layer)
                made = closed_form_layer(weights, modules, block, run, layer, final_norm=norm)
        except _AlgebraError as error:
            raise NotInClosedForm(str(error)) from error
        if made is None:
            raise NotInClosedForm(
                f"block {layer} is of no known form: neither its weights nor its modules explain its output"
            )
        by_layer[layer], routes[layer] = made
        advance(len(run.columns))

    with workspace_of(model, pairs_bytes(request)) as workspace:
        run = Run.of(wanted, request, workspace, kept)
        if clean is None:
            padded = nn.utils.rnn.pad_sequence(list(ids), batch_first=True)
            try:
                visit_clean_blocks(model, sites, padded, request.layers, visit, mask=mask, **beside)
            except ModelError as error:
                if mask is None:
                    raise
                # A row of padding may attend to nothing at all; its NaN then spreads to the next block's values.
                raise PaddingMatters(str(error)) from error
        else:
            for layer in request.layers:
                visit(layer, clean[layer])
    maps = [torch.stack(each) for each in zip(*(by_layer[layer] for layer in request.layers), strict=True)]
    return maps, tuple(routes[layer] for layer in request.layers)


def _mask(ids: Sequence[Tensor]) -> Bool[Tensor, "sentence position"] | None:
    """True where a sentence has a token, of sentences padded on the right; None if there is no padding."""
    lengths = torch.tensor([len(each) for each in ids], device=ids[0].device)
    longest = int(lengths.max())
    if bool((lengths == longest).all()):
        return None
    return torch.arange(longest, device=lengths.device) < lengths.unsqueeze(1)
