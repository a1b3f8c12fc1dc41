"""Whether TransformerLens computes what the Hugging Face model that it wraps computes."""

from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.models.run import quiet
from tl_vzero.models.signals import signal_read_by

PROBE_LENGTH = 6
# How far hidden states may be apart (root mean square, relative): another order of operations, never another function.
SAME_STATES = {torch.float64: 1e-4, torch.float32: 1e-3}
SAME_STATES_HALF = 0.1


def hidden_states(hf_model: Any) -> Tensor | None:
    """The last hidden states of a short sentence, an image or a sound; None for a model that reads none of them.

    TransformerLens puts its own modules into the model that it wraps, so that the same call shows what they do.
    """
    base, size = hf_model.base_model, getattr(hf_model.config, "vocab_size", None)
    signal = signal_read_by(hf_model)
    if signal is not None:
        read = signal.probe(PROBE_LENGTH).to(next(hf_model.parameters())).unsqueeze(0)
        seen: Tensor = base(**{signal.argument: read})[0]
        return seen.detach().clone()
    if hf_model.main_input_name != "input_ids" or not size:
        return None
    device = next(hf_model.parameters()).device
    # From the end of the vocabulary: special tokens, which a model may treat apart, are mostly at its beginning.
    ids = ((size - 1 - 7 * torch.arange(PROBE_LENGTH)) % size).unsqueeze(0).to(device)
    decoder = {"decoder_input_ids": ids} if hf_model.config.is_encoder_decoder else {}
    states: Tensor = base(input_ids=ids, **decoder)[0]
    return states.detach().clone()


def check_same_function(bridge: nn.Module, hf_model: Any, before: Tensor | None) -> None:
    """Raise ModelError where a bridged model's hidden states are not those `before` TransformerLens wrapped it."""
    if before is None:
        return
    library, name = f"TransformerLens {version('transformer-lens')}", type(hf_model).__name__
    try:
        with quiet(bridge):
            after = hidden_states(hf_model)
    except Exception as error:  # a module put in place of another may fail in any way
        raise ModelError(f"{library} cannot run {name}, which runs by itself: {error}") from error
    assert after is not None
    before, after = before.double(), after.double()
    apart = ((after - before).square().mean() / before.square().mean()).sqrt().item()
    allowed = SAME_STATES.get(next(hf_model.parameters()).dtype, SAME_STATES_HALF)
    if not apart <= allowed:
        raise ModelError(
            f"{library} computes other hidden states than {name} itself (relative difference {apart:.1g}): its scores "
            "would be those of another model; expected the same up to rounding; another version may read it"
        )
