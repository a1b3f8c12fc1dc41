"""Running a model with hooks, and leaving it as it was found."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from tl_vzero.errors import ModelError
from tl_vzero.models.signals import Read
from tl_vzero.models.sites import hf_model_of, hook_points, kind_of, stacks_of

HookFunction = Callable[..., Tensor | None]
NamedHook = tuple[str, HookFunction]


class _EndOfRun(Exception):
    """Ends a run at the last activation that is needed, before logits are computed."""


def _end_run(_: Tensor, **__: Any) -> None:
    raise _EndOfRun


@contextmanager
def temporary_hooks(model: nn.Module, hooks: Sequence[NamedHook]) -> Iterator[None]:
    """Add forward hooks and take just these away again, whatever happens.

    TransformerLens's own context manager removes by nesting level, and so would also take hooks that a
    user left behind with `reset_hooks_end=False`.
    """
    points = hook_points(model)
    with ExitStack() as undo:
        for name, function in hooks:
            if name not in points:
                raise ModelError(f"the model has no hook {name!r}: expected a name in model.hook_dict")
            point = points[name]
            point.add_hook(function)
            undo.callback(_remove, point, point.fwd_hooks[-1])
        yield


def _remove(point: Any, handle: Any) -> None:
    handle.hook.remove()
    point.fwd_hooks[:] = [other for other in point.fwd_hooks if other is not handle]


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradients, and each module's own mode again afterwards."""
    modes = [(module, module.training) for module in _all_modules(model)]
    try:
        _set_modes((module, False) for module, _ in modes)
        with torch.no_grad():
            yield
    finally:
        _set_modes(modes)


def _set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    for module, training in modes:
        if module.training != training:  # reading an attribute of a module is cheap, setting it is not
            module.training = training


def _all_modules(model: nn.Module) -> list[nn.Module]:
    # A bridge's own tree leaves out parts of the Hugging Face model that it wraps.
    roots = [root for root in (model, hf_model_of(model)) if root is not None]
    return list({id(module): module for root in roots for module in root.modules()}.values())


@contextmanager
def eager_attention(model: nn.Module) -> Iterator[None]:
    """Let a bridge compute its attention patterns: fused attention never forms them."""
    hf_model = hf_model_of(model)
    configs = [] if hf_model is None else _attention_configs(hf_model)
    before = [(config, config._attn_implementation) for config in configs]
    try:
        for config in configs:
            config._attn_implementation = "eager"
        yield
    finally:
        for config, implementation in before:
            config._attn_implementation = implementation


def has_fused_attention(model: nn.Module) -> bool:
    """Whether a bridge runs an attention that never forms its pattern, such as sdpa."""
    hf_model = hf_model_of(model)
    return hf_model is not None and bool(_attention_configs(hf_model))


def _attention_configs(hf_model: nn.Module) -> list[Any]:
    found = {id(module.config): module.config for module in hf_model.modules() if hasattr(module, "config")}
    return [c for c in found.values() if getattr(c, "_attn_implementation", "eager") != "eager"]


def run_to(
    model: nn.Module,
    ids: Read,
    hooks: Sequence[NamedHook],
    *,
    last: str,
    mask: Bool[Tensor, "batch position"] | None = None,
    decoder_ids: Int[Tensor, "batch decoder_position"] | None = None,
    token_types: Int[Tensor, "batch position"] | None = None,
) -> None:
    """Run a batch of sentences, with hooks, and stop once the hook `last` has fired.

    `mask` is False at padding; None says that there is none. `decoder_ids` are what the decoder of an encoder-decoder
    reads; a run that ends in its encoder needs none. `token_types` are segments; None says that all are of segment 0.
    """
    with temporary_hooks(model, [*hooks, (last, _end_run)]):
        try:
            model(
                ids,
                return_type=None,
                **_mask_argument(model, mask),
                **_segment_argument(token_types),
                **decoder_arguments(model, ids, decoder_ids),
            )
        except _EndOfRun:
            return
    raise ModelError(f"hook {last!r} never fired: this model's forward pass does not reach it")


def _mask_argument(model: nn.Module, mask: Tensor | None) -> dict[str, Tensor]:
    if mask is None:
        return {}
    name = "one_zero_attention_mask" if kind_of(model) == "HookedEncoder" else "attention_mask"
    return {name: mask.long()}


def _segment_argument(token_types: Tensor | None) -> dict[str, Tensor]:
    # Every class that tells segments apart takes them by this name, and without it all for segment 0.
    return {} if token_types is None else {"token_type_ids": token_types}


def decoder_arguments(model: nn.Module, ids: Tensor, decoder_ids: Tensor | None) -> dict[str, Tensor]:
    """The further arguments by which an encoder-decoder takes what its decoder reads; none for another model."""
    if not stacks_of(model):
        return {}
    # Where only the encoder is looked at, any token will do.
    arguments = {"decoder_input": ids[:, :1] if decoder_ids is None else decoder_ids}
    if kind_of(model) == "HookedEncoderDecoder":
        # Without a mask it logs a warning at every run; of integers it would make 0 times minus infinity in float64.
        arguments["one_zero_attention_mask"] = torch.ones_like(ids, dtype=next(nn.Module.parameters(model)).dtype)
    return arguments


def run_logits(
    model: nn.Module,
    ids: Int[Tensor, "batch position"],
    hooks: Sequence[NamedHook],
    token_types: Int[Tensor, "batch position"] | None = None,
) -> Tensor:
    """Run a batch of sentences of one length, with hooks, to the logits `[batch, position, vocabulary]`."""
    with temporary_hooks(model, hooks):
        logits = model(ids, return_type="logits", **_segment_argument(token_types))
    assert isinstance(logits, Tensor)
    return logits
