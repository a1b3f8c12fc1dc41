"""Running a model with hooks, and leaving it as it was found."""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from tl_vzero.errors import EndsRun, ModelError, foreign_errors_as
from tl_vzero.models.signals import Read
from tl_vzero.models.sites import hf_model_of, hook_points, kind_of, stacks_of
from tl_vzero.models.turns import interrupts_wait, leave_modes, turn_on

HookFunction = Callable[..., Tensor | None]
NamedHook = tuple[str, HookFunction]


class _EndOfRun(EndsRun):
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
    with turn_on(model) as turn:
        turn.runs_model = True
        with interrupts_wait():
            for name, function in hooks:
                if name not in points:
                    raise ModelError(f"the model has no hook {name!r}: expected a name in model.hook_dict")
                in_this_thread = partial(_act_in, threading.get_ident(), function)
                turn.undo_by(partial(_take_away, points[name], in_this_thread))
                points[name].add_hook(in_this_thread)
        yield


def _act_in(thread: int, function: HookFunction, activation: Tensor, *, hook: Any) -> Tensor | None:
    """A hook of ours on a run of ours; another thread may run the model by itself meanwhile."""
    return function(activation, hook=hook) if threading.get_ident() == thread else None


def _take_away(point: Any, function: HookFunction) -> None:
    for handle in [handle for handle in point.fwd_hooks if handle.user_hook is function]:
        handle.hook.remove()
        point.fwd_hooks.remove(handle)


@contextmanager
def temporary_pre_hooks(
    model: nn.Module, modules: Iterable[nn.Module], function: Callable[[nn.Module, Any], None]
) -> Iterator[None]:
    """Let a function see what modules of a model are given, by hooks of torch's own."""
    handles: list[Any] = []
    with turn_on(model) as turn:
        turn.undo_by(lambda: [handle.remove() for handle in handles])
        with interrupts_wait():
            for module in modules:
                handles.append(module.register_forward_pre_hook(function))
        yield


@contextmanager
def quiet(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, no gradients and the weights' own dtype; each module's own mode again afterwards.

    Under the caller's autocast, products would be rounded to another dtype than the one that scores name. Inference
    mode is left within: what is kept between calls must be of use to calls outside it.
    """
    device = next((weight.device.type for weight in nn.Module.parameters(model)), "cpu")
    with turn_on(model) as turn:
        with interrupts_wait():
            modes = [(module, module.training) for module in _all_modules(model)]
            turn.undo_by(partial(_set_modes, modes))
            _set_modes((module, False) for module, _ in modes)
            turn.undo_by(partial(torch.set_grad_enabled, torch.is_grad_enabled()))
            left = ExitStack()
            turn.undo_by(left.close)
            leave_modes(left, device)
            torch.set_grad_enabled(False)
        yield


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
    with turn_on(model) as turn:
        with interrupts_wait():
            for config in configs:
                turn.undo_by(partial(setattr, config, "_attn_implementation", config._attn_implementation))
                config._attn_implementation = "eager"
        yield


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
    arguments = _mask_argument(model, mask) | _segment_argument(token_types)
    arguments |= decoder_arguments(model, ids, decoder_ids)
    with temporary_hooks(model, [*hooks, (last, _end_run)]), told_by_us(model):
        try:
            model(ids, return_type=None, **arguments)
        except _EndOfRun:
            return
    raise ModelError(f"hook {last!r} never fired: this model's forward pass does not reach it")


def told_by_us(model: nn.Module) -> AbstractContextManager[None]:
    """Within, what fails in a model, or in a hook on it, is told as a ModelError with its cause."""
    return foreign_errors_as(ModelError, f"running this {kind_of(model)}, or a hook on it, failed")


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
    with temporary_hooks(model, hooks), told_by_us(model):
        logits = model(ids, return_type="logits", **_segment_argument(token_types))
    assert isinstance(logits, Tensor)
    return logits
