"""Looking at a model's weights: their hash, their health, and signs of processing."""

import hashlib
import warnings
from weakref import WeakKeyDictionary

import torch
import xxhash
from jaxtyping import Int
from torch import Tensor, nn

from tl_vzero.errors import ModelError, ProcessedWeightsWarning
from tl_vzero.models.sites import sites_of, stacks_of

CENTRED_BELOW = 1e-4  # mean of a centred row over its mean size; random rows are at about 1/sqrt(d_model)

INTEGER_OF_SIZE = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}

_HASHES: WeakKeyDictionary[nn.Module, tuple[str, str]] = WeakKeyDictionary()


def weights_hash(model: nn.Module) -> str:
    """SHA-256 over every parameter and buffer, name by name.

    SHA-256 takes long, so it is kept while a fingerprint of all the weights' content stands, which is read at
    the speed of memory: torch's own version counter misses an edit through `.data`.
    """
    tensors = dict(sorted(_tensors(model).items()))
    key = _fingerprint(tensors)
    known = _HASHES.get(model)
    if known is not None and known[0] == key:
        return known[1]
    digest = hashlib.sha256()
    for name, tensor in tensors.items():
        digest.update(_described(name, tensor))
        digest.update(_bytes_of(tensor.cpu()))
    result = digest.hexdigest()
    _HASHES[model] = (key, result)
    return result


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    # nn.Module's own walk: a bridge's state_dict renames, and its parameters() may leave some out.
    walk = [*nn.Module.named_parameters(model), *nn.Module.named_buffers(model)]
    return {name: tensor.detach() for name, tensor in walk if not tensor.is_meta}


def _described(name: str, tensor: Tensor) -> bytes:
    return f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode()


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data


def _fingerprint(tensors: dict[str, Tensor]) -> str:
    digest = xxhash.xxh3_128()
    storages: dict[int, tuple[int, torch.UntypedStorage]] = {}
    for name, tensor in tensors.items():
        digest.update(_described(name, tensor))
        if tensor.device.type != "cpu":
            # Summed where they are: fetching them would take longer than the scores.
            digest.update(_bytes_of(_sums(tensor).cpu()))
            continue
        # Views share a storage: its bytes are read once, as they lie, and each view says which part it shows.
        storage = tensor.untyped_storage()
        number, _ = storages.setdefault(storage.data_ptr(), (len(storages), storage))
        digest.update(f"{number} {tensor.storage_offset()} {tensor.stride()}".encode())
    for _, storage in storages.values():
        digest.update(_bytes_of(torch.empty(0, dtype=torch.uint8).set_(storage)))
    return digest.hexdigest()


def _sums(tensor: Tensor) -> Int[Tensor, "sum"]:
    """Row and column sums of a tensor's bits, which any one edit changes, and nearly any several."""
    rows = torch.atleast_2d(tensor.contiguous()).flatten(end_dim=-2)
    bits = rows.view(INTEGER_OF_SIZE[rows.element_size()])
    return torch.cat([bits.sum(dim=0), bits.sum(dim=1)])


def check_finite(model: nn.Module) -> None:
    """Raise ModelError if a parameter is NaN or infinite, naming the tensors.

    Buffers are left out: an attention mask may hold minus infinity.
    """
    bad = [
        name
        for name, tensor in nn.Module.named_parameters(model)
        if tensor.is_floating_point() and not tensor.is_meta and not torch.isfinite(tensor).all()
    ]
    if bad:
        raise ModelError(
            f"weights are NaN or infinite in {len(bad)} tensors, first {bad[0]}: expected finite numbers; "
            "load the checkpoint again or repair it"
        )


def warn_if_processed(model: nn.Module) -> None:
    """Warn where the weights show signs of processing that changes Value Zeroing."""
    reasons = [reason for reason in (_folded_value_biases(model), _centred_writing(model)) if reason]
    if reasons:
        warnings.warn(
            f"this model's weights were processed: {'; '.join(reasons)}. Normalised maps move by up to 7e-2 "
            "(measured on GPT-2). Load without processing, for instance with tl_vzero.load_model or "
            "from_pretrained_no_processing.",
            ProcessedWeightsWarning,
            stacklevel=4,
        )


def _attentions(model: nn.Module) -> list[nn.Module]:
    stacks = stacks_of(model)
    if not stacks:
        return [block.attn for block in model.blocks]  # type: ignore[union-attr]
    values = [name for stack in stacks for name in sites_of(model, stack).values]
    return [model.get_submodule(name.rpartition(".")[0]) for name in values]


def _weights(modules: list[nn.Module], name: str) -> list[Tensor]:
    found = [_weight(module, name) for module in modules]
    return [weight.detach() for weight in found if isinstance(weight, Tensor)]


def _weight(module: nn.Module, name: str) -> object:
    try:
        return getattr(module, name, None)
    except NotImplementedError:  # a bridge refuses what an attention lacks, as latent attention lacks b_V
        return None


def _folded_value_biases(model: nn.Module) -> str | None:
    attentions = _attentions(model)
    value_biases = _weights(attentions, "b_V")
    other_biases = [*_weights(attentions, "b_Q"), *_weights(attentions, "b_K")]
    # An architecture without attention biases has zeros everywhere; folding leaves only b_V at zero.
    has_biases = any(bias.any() for bias in other_biases)
    if value_biases and has_biases and not any(bias.any() for bias in value_biases):
        return "value biases are folded into b_O, so zeroing hook_v leaves them in the output"
    return None


def _centred_writing(model: nn.Module) -> str | None:
    written = _weights(_attentions(model), "W_O")
    sizes = [weight.float().abs().mean() for weight in written]
    means = [weight.float().mean(dim=-1).abs().mean() for weight in written]
    centred = [mean <= CENTRED_BELOW * size for mean, size in zip(means, sizes, strict=True) if size > 0]
    if centred and all(centred):
        return "writing weights are centred over d_model, which changes cosine distances between block outputs"
    return None
