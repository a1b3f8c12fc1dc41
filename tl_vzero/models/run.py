"""Runs of a model with hooks, to an activation or to its logits, that leave the model as it was."""

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from functools import partial
from typing import Any, TypedDict, Unpack, cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from tl_vzero.distance import relative_difference, wide_dtype
from tl_vzero.errors import EndsRun, InputError, ModelError, foreign_errors_as
from tl_vzero.models.blocks import SAME_BLOCK, norm_of
from tl_vzero.models.changes import walk
from tl_vzero.models.facts import class_head_of
from tl_vzero.models.signals import Read, n_positions_of
from tl_vzero.models.sites import Sites, hf_model_of, hook_points, kind_of, roots_of, stacks_of
from tl_vzero.models.turns import interrupts_wait, leave_modes, turn_on

HookFunction = Callable[..., Tensor | None]
NamedHook = tuple[str, HookFunction]
NO_MEDIA: Mapping[str, Tensor] = {}


class Beside(TypedDict, total=False):
    """What a model reads beside the ids of a run: what an encoder-decoder's decoder reads, segments, and of one
    sentence the images and sounds, by argument.
    """

    decoder_ids: Int[Tensor, "sentence decoder_position"] | None
    token_types: Int[Tensor, "sentence position"] | None
    media: Mapping[str, Tensor]


class _EndOfRun(EndsRun):
    """Ends a run as soon as what is needed of it is there, before logits are computed."""


def _end_run(_: Tensor, **__: Any) -> None:
    raise _EndOfRun


def remembering_hooks(
    names: Iterable[str],
    activations: dict[str, Tensor],
    take: Callable[[str, Tensor], Tensor] = lambda name, activation: activation.detach(),
) -> list[NamedHook]:
    """Hooks that put what `take` makes of the activation at each name into `activations`, under that name."""

    def hook_function(activation: Tensor, *, hook: Any, name: str) -> None:
        activations[name] = take(name, activation)

    return [(name, partial(hook_function, name=name)) for name in names]


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
    model: nn.Module, modules: Iterable[nn.Module], function: Callable[[nn.Module, Any, Any], Any]
) -> Iterator[None]:
    """Let a function see what modules of a model are given, or return others in place, by hooks of torch's own."""
    handles: list[Any] = []
    with turn_on(model) as turn:
        turn.undo_by(lambda: [handle.remove() for handle in handles])
        with interrupts_wait():
            for module in modules:
                handles.append(module.register_forward_pre_hook(function, with_kwargs=True))
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
            modes = [(module, module.training) for module in walk(roots_of(model))]
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


@contextmanager
def tf32_products(model: nn.Module) -> Iterator[None]:
    """Let float32 products on CUDA read 10 bits of each number; the setting is of the whole process."""
    matmul = torch.backends.cuda.matmul
    with turn_on(model) as turn:
        with interrupts_wait():
            if hasattr(matmul, "fp32_precision"):
                turn.undo_by(partial(setattr, matmul, "fp32_precision", matmul.fp32_precision))
                matmul.fp32_precision = "tf32"
            else:  # before torch 2.9
                turn.undo_by(partial(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision()))
                torch.set_float32_matmul_precision("high")
        yield


def has_fused_attention(model: nn.Module) -> bool:
    """Whether a bridge runs an attention that never forms its pattern, such as sdpa."""
    hf_model = hf_model_of(model)
    return hf_model is not None and bool(_attention_configs(hf_model))


def _attention_configs(hf_model: nn.Module) -> list[Any]:
    return [config for config in hf_configs(hf_model) if getattr(config, "_attn_implementation", "eager") != "eager"]


def hf_configs(hf_model: nn.Module) -> list[Any]:
    """The configurations of a Hugging Face model and its modules."""
    return list(
        {id(module.config): module.config for module in hf_model.modules() if hasattr(module, "config")}.values()
    )


def run_to(
    model: nn.Module,
    ids: Read,
    hooks: Sequence[NamedHook],
    *,
    last: str,
    mask: Bool[Tensor, "batch position"] | None = None,
    decoder_ids: Int[Tensor, "batch decoder_position"] | None = None,
    token_types: Int[Tensor, "batch position"] | None = None,
    media: Mapping[str, Tensor] = NO_MEDIA,
) -> None:
    """Run a batch of sentences, with hooks, and stop once the hook `last` has fired.

    `mask` is False at padding; None says that there is none. `decoder_ids` are what the decoder of an encoder-decoder
    reads; a run that ends in its encoder needs none. `token_types` are segments; None says that all are of segment 0.
    `media` are the images and sounds of one sentence, by argument: the batch is of its copies.
    """
    arguments = _arguments(model, ids, decoder_ids, token_types, media)
    if mask is not None:
        name = "one_zero_attention_mask" if kind_of(model) == "HookedEncoder" else "attention_mask"
        arguments[name] = mask.long()
    with temporary_hooks(model, [*hooks, (last, _end_run)]), model_errors(model):
        try:
            model(ids, return_type=None, **arguments)
        except _EndOfRun:
            return
    raise ModelError(f"hook {last!r} never fired: this model's forward pass does not reach it")


def model_errors(model: nn.Module) -> AbstractContextManager[None]:
    """Within, what fails in a model, or in a hook on it, becomes a ModelError with its cause."""
    return foreign_errors_as(ModelError, f"running this {kind_of(model)}, or a hook on it, failed")


def _arguments(
    model: nn.Module,
    ids: Read,
    decoder_ids: Tensor | None,
    token_types: Tensor | None,
    media: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    # A processor joins the images of all sentences on the first axis.
    arguments = {name: torch.cat([tensor] * len(ids)) for name, tensor in media.items()}
    if token_types is not None:  # every class that tells segments apart takes them so, and without them all for 0
        arguments["token_type_ids"] = token_types
    return arguments | decoder_arguments(model, ids, decoder_ids)


def decoder_arguments(model: nn.Module, ids: Tensor, decoder_ids: Tensor | None) -> dict[str, Tensor]:
    """The further arguments by which an encoder-decoder takes what its decoder reads; none for another model."""
    if not stacks_of(model):
        return {}
    # Where only the encoder is looked at, any token will do.
    any_token = torch.zeros(len(ids), 1, dtype=torch.long, device=ids.device)
    arguments = {"decoder_input": any_token if decoder_ids is None else decoder_ids}
    if kind_of(model) == "HookedEncoderDecoder":
        # Without a mask it logs a warning at every run; of integers it would make 0 times minus infinity in float64.
        arguments["one_zero_attention_mask"] = torch.ones_like(ids, dtype=next(nn.Module.parameters(model)).dtype)
    return arguments


def run_logits(
    model: nn.Module,
    ids: Read,
    hooks: Sequence[NamedHook],
    token_types: Int[Tensor, "batch position"] | None = None,
    decoder_ids: Int[Tensor, "batch decoder_position"] | None = None,
    media: Mapping[str, Tensor] = NO_MEDIA,
) -> Tensor:
    """Run a batch of sentences of one length, with hooks, to what the model was trained to predict.

    The logits are `[batch, position, vocabulary]`, or a classifier's `[batch, position, class]`.
    """
    head = class_head_of(model)
    if head is None:
        return run_word_logits(model, ids, hooks, token_types, decoder_ids, media)
    with temporary_hooks(model, hooks), model_errors(model):
        return head.logits(ids, token_types)


def run_word_logits(
    model: nn.Module,
    ids: Read,
    hooks: Sequence[NamedHook],
    token_types: Int[Tensor, "batch position"] | None = None,
    decoder_ids: Int[Tensor, "batch decoder_position"] | None = None,
    media: Mapping[str, Tensor] = NO_MEDIA,
) -> Tensor:
    """Run a batch of sentences of one length, with hooks, to the logits of words `[batch, position, vocabulary]`."""
    arguments = _arguments(model, ids, decoder_ids, token_types, media)
    with temporary_hooks(model, hooks), model_errors(model):
        logits = model(ids, return_type="logits", **arguments)
    assert isinstance(logits, Tensor)
    return logits


# The norm after the last block, where a model has one: what the classes call it, by stack. In a speech encoder one name
# stands for a norm behind the embeddings or, where the blocks are pre-norm, behind the blocks.
_FINAL_NORMS = {
    None: ("ln_final", "embed_ln"),
    "encoder": ("encoder_ln_final", "encoder_final_ln"),
    "decoder": ("decoder_ln_final", "decoder_final_ln"),
    "cross": ("decoder_ln_final", "decoder_final_ln"),
}


# The norm as a function of rows in any float dtype; its results are in the widest.
FinalNorm = Callable[[Float[Tensor, "*rows feature"]], Float[Tensor, "*rows feature"]]


def final_norm_of(
    model: nn.Module,
    sites: Sites,
    ids: Read,
    decoder_ids: Int[Tensor, "batch decoder_position"] | None = None,
) -> FinalNorm:
    """Find the norm that reads the output of a stack's last block directly, and give what it computes.

    A module called `ln_final` is not enough: in a bridged BERT it is the norm inside the prediction head. So the model
    is run once on `ids`, and the norm must read the last block's output. Where its weights explain what it does they
    are taken, in the widest dtype: two float32 results differ by their rounding, and a small distance between them
    would be lost. Raises InputError where there is no such norm.
    """
    arguments = decoder_arguments(model, ids, decoder_ids)
    for name in _FINAL_NORMS[sites.stack]:
        norm = getattr(model, name, None)
        if isinstance(norm, nn.Module):
            read = _last_output_as_read(model, sites, norm, ids, arguments)
            if read is not None:
                return _function_of(model, name, norm, read)
    raise InputError(
        f"final_norm=True, and this {kind_of(model)} has no norm after its last block (its block outputs "
        "are what the head reads): leave final_norm=False"
    )


def _function_of(model: nn.Module, name: str, norm: nn.Module, read: Float[Tensor, "*rows feature"]) -> FinalNorm:
    """By the norm's weights where they explain what it does to `read`, else by the module itself."""
    wide = wide_dtype(read.device)
    exact = norm_of(model, model, name, wide)
    expected = norm(read).to(wide)
    tolerance = SAME_BLOCK.get(read.dtype, SAME_BLOCK[torch.float32])
    if exact is not None and relative_difference(exact(read.to(wide)), expected) <= tolerance:
        return lambda rows: exact(rows.to(wide))
    return lambda rows: norm(rows.to(read.dtype)).to(wide)


def _last_output_as_read(
    model: nn.Module, sites: Sites, norm: nn.Module, ids: Tensor, arguments: dict[str, Tensor]
) -> Float[Tensor, "*rows feature"] | None:
    """The last block's output, if that is what the norm reads."""
    activations: dict[str, Tensor] = {}
    norm_inputs: list[Tensor] = []

    def remember_input(_: nn.Module, inputs: tuple[Tensor, ...], named: Any) -> None:
        norm_inputs.append(inputs[0])
        raise _EndOfRun

    with (
        suppress(_EndOfRun),
        temporary_pre_hooks(model, [norm], remember_input),
        temporary_hooks(model, remembering_hooks(sites.outputs[-1:], activations)),
        model_errors(model),
    ):
        model(ids, return_type="logits", **arguments)
    output = activations.get(sites.outputs[-1])
    return output if output is not None and norm_inputs and torch.equal(output, norm_inputs[0]) else None


# Logits at one position of each copy of a sentence, at no more cost than the model makes necessary.

UNEMBEDDED = "unembed.hook_in"
LOGITS_PER_BATCH = 2**24  # numbers in memory at once, 64 MB in float32; a gradient keeps several such tensors
SAME = 1e-3  # two orders of summing differ by less in a logit; other tokens' logits differ by far more


class TargetLogits:
    """Runs copies of sentences to the logits at one position of each.

    What the unembedding reads is cut to that position, and blocks below one whose output is overwritten run once for
    all copies, wherever a first run shows that the model gives the same logits so.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._cuts: bool | None = None
        self._spreads: bool | None = None

    def positions_unembedded(self, ids: Read, **beside: Unpack[Beside]) -> int:
        """The positions of a sentence at which logits are computed: one, or all of them."""
        return 1 if self._may_cut(ids, beside) else _n_predicting(self._model, ids, beside)

    def at(
        self,
        ids: Read,
        positions: Int[Tensor, "copy"],
        hooks: Sequence[NamedHook] = (),
        **beside: Unpack[Beside],
    ) -> Float[Tensor, "copy vocabulary"]:
        """The logits of each copy at its position; hooks may turn one run into several copies."""
        if self._may_cut(ids, beside):
            return self._cut_logits(ids, positions, hooks, beside)[:, 0]
        logits = run_logits(self._model, ids, hooks, **beside)
        return logits[torch.arange(len(logits), device=logits.device), positions]

    def after(
        self,
        site: str,
        outputs: Float[Tensor, "copy position feature"],
        ids: Int[Tensor, "read"] | Float[Tensor, "*signal"],
        position: int,
        **beside: Unpack[Beside],
    ) -> Float[Tensor, "copy vocabulary"]:
        """The logits at one position of a sentence, with the activation at a hook overwritten by each of several."""

        runs = 1 if self._may_spread(site, outputs, ids, position, beside) else len(outputs)
        positions = torch.full((len(outputs),), position, device=ids.device)
        hooks: list[NamedHook] = [(site, lambda _, *, hook: outputs)]
        return self.at(ids.expand(runs, *ids.shape), positions, hooks, **copied(beside, runs))

    def _cut_logits(self, ids: Tensor, positions: Tensor, hooks: Sequence[NamedHook], beside: Beside) -> Tensor:
        def cut(final: Tensor, *, hook: Any) -> Tensor:
            return final[torch.arange(len(final), device=final.device), positions].unsqueeze(1)

        return run_logits(self._model, ids, [*hooks, (UNEMBEDDED, cut)], **beside)

    def _may_cut(self, ids: Read, beside: Beside) -> bool:
        """Whether the model unembeds each position by itself where its hook says so."""
        if self._cuts is None:
            first = copied(beside, 1)
            last = torch.tensor([_n_predicting(self._model, ids, beside) - 1], device=ids.device)
            self._cuts = UNEMBEDDED in hook_points(self._model) and _same(
                lambda: self._cut_logits(ids[:1], last, [], first),
                lambda: run_logits(self._model, ids[:1], [], **first)[:, -1:],
            )
        return self._cuts

    def _may_spread(self, site: str, outputs: Tensor, ids: Tensor, position: int, beside: Beside) -> bool:
        """Whether blocks above a hook take more copies than there were below it."""
        if self._spreads is None:
            two = torch.cat([outputs[:1], outputs[:1] / 2]).detach()
            self._spreads = False
            plain = self.after(site, two, ids, position, **beside)
            self._spreads = True
            self._spreads = _same(lambda: self.after(site, two, ids, position, **beside), lambda: plain)
        return self._spreads


def copied(beside: Beside, copies: int) -> Beside:
    """What a model reads beside the ids of one sentence, for as many copies of it."""
    every = {name: rows[:1].expand(copies, -1) for name, rows in beside.items() if isinstance(rows, Tensor)}
    return cast(Beside, every | {"media": beside.get("media", NO_MEDIA)})


def _n_predicting(model: nn.Module, ids: Read, beside: Beside) -> int:
    """At how many positions there are logits."""
    decoder_ids = beside.get("decoder_ids")
    return n_positions_of(model, ids[0]) if decoder_ids is None else decoder_ids.shape[1]


def _same(quick: Callable[[], Tensor], plain: Callable[[], Tensor]) -> bool:
    with torch.no_grad():
        try:
            logits = quick()
        except (RuntimeError, IndexError, ValueError):  # something in the model counts on the whole
            return False
        expected = plain()
    return logits.shape == expected.shape and torch.allclose(logits, expected, rtol=SAME, atol=SAME)
