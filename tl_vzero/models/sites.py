"""The TransformerLens classes, and the hooks at which each shows a block's input, values, pattern and output."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast
from weakref import WeakKeyDictionary

from torch import nn

from tl_vzero.choices import one_of
from tl_vzero.errors import InputError, InputTypeError, ModelError

# Which blocks of an encoder-decoder, and which values: "cross" is the decoder's blocks reading encoder positions.
Stack = Literal["encoder", "decoder", "cross"]
STACKS: tuple[Stack, ...] = ("encoder", "decoder", "cross")


@dataclass(frozen=True)
class Sites:
    """Hook names of every block, from the first to the last.

    `inside` are a block's further hooks, by what they show, as far as the model has them. `stack` is which blocks of an
    encoder-decoder these are, None for a model that has one stack of blocks.
    """

    inputs: tuple[str, ...]
    values: tuple[str, ...]
    patterns: tuple[str, ...]
    outputs: tuple[str, ...]
    inside: tuple[Mapping[str, str], ...]
    stack: Stack | None = None

    @property
    def n_layers(self) -> int:
        return len(self.values)

    def at(self, layer: int) -> tuple[str, str, str, str]:
        """The names of one block's input, value, pattern and output."""
        return self.inputs[layer], self.values[layer], self.patterns[layer], self.outputs[layer]


@dataclass(frozen=True)
class _Names:
    """`other` is the attention of the same block whose values are not zeroed, as a decoder has two."""

    input: str
    output: str
    attention: str = "attn"
    other: str | None = None
    blocks: str = "blocks"

    @property
    def value(self) -> str:
        return f"{self.attention}.hook_v"

    @property
    def pattern(self) -> str:
        return f"{self.attention}.hook_pattern"


# One entry per TransformerLens class; the names are relative to `blocks.l.`. HookedEncoder's block ends in a
# LayerNorm, and its hook_resid_post lies before it.
_NAMES = {
    "HookedEncoder": _Names("hook_resid_pre", "hook_normalized_resid_post"),
    "HookedTransformer": _Names("hook_resid_pre", "hook_resid_post"),
    "TransformerBridge": _Names("hook_in", "hook_out"),
}


def _of_stacks(start: str, end: str, encoder: str, decoder: str, self_attention: str) -> dict[Stack, _Names]:
    return {
        "encoder": _Names(start, end, blocks=encoder),
        "decoder": _Names(start, end, self_attention, "cross_attn", decoder),
        "cross": _Names(start, end, "cross_attn", self_attention, decoder),
    }


# The same for encoder-decoders, one entry per class that holds them.
_STACKED = {
    "HookedEncoderDecoder": _of_stacks("hook_resid_pre", "hook_resid_post", "encoder", "decoder", "attn"),
    "TransformerBridge": _of_stacks("hook_in", "hook_out", "encoder_blocks", "decoder_blocks", "self_attn"),
}
_CLASSES = tuple(dict.fromkeys([*_NAMES, *_STACKED]))
_STACKS: WeakKeyDictionary[nn.Module, tuple[Stack, ...]] = WeakKeyDictionary()

# What may be seen inside a block, and under what names, the first that there is: a bridged BERT's hook_attn_out lies
# behind a norm. Of a decoder's two attentions each shows what the other's form needs.
_INSIDE = {
    "attention_output": ("attn.o.hook_out", "hook_attn_out"),
    "mlp_pre": ("mlp.hook_pre",),
    "mlp_pre_linear": ("mlp.hook_pre_linear",),
    "mlp_output": ("hook_mlp_out",),
}
_INSIDE_OTHER = {"other_value": "hook_v", "other_key": "hook_k", "other_pattern": "hook_pattern"}

# Activations of a block besides those of Sites, by what TransformerLens calls them.
_ACTIVATIONS = {
    "attn_out": _INSIDE["attention_output"],
    "mlp_out": _INSIDE["mlp_output"],
    "q": ("attn.hook_q",),
    "k": ("attn.hook_k",),
    "z": ("attn.hook_z",),
}


def kind_of(model: object) -> str:
    """Name the TransformerLens class of a model; raises InputTypeError for anything else.

    Subclasses count as what they derive from.
    """
    for cls in type(model).__mro__:
        if cls.__module__.partition(".")[0] == "transformer_lens" and cls.__name__ in _CLASSES:
            return cls.__name__
    hint = (
        f"; to load one by its name: model = tl_vzero.load_model({str(model)!r})"
        if isinstance(model, str | Path)
        else ""
    )
    if any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__):
        hint = "; this is a Hugging Face model: wrap it with tl_vzero.load_model(model, tokenizer)"
    raise InputTypeError(
        f"model is {type(model).__module__}.{type(model).__name__}: expected a TransformerLens model "
        f"({', '.join(_CLASSES)}){hint}"
    )


def hook_points(model: nn.Module) -> dict[str, Any]:
    """Every hook name of a model, aliases included, with its HookPoint."""
    return cast(dict[str, Any], model.hook_dict)


def stacks_of(model: nn.Module) -> tuple[Stack, ...]:
    """The stacks of an encoder-decoder; none for a model that has one stack of blocks."""
    if model not in _STACKS:  # every run asks, and a bridge takes its time to name its hooks
        stacks, points = _STACKED.get(kind_of(model), {}), hook_points(model)
        present = (stack for stack, names in stacks.items() if f"{names.blocks}.0.{names.value}" in points)
        _STACKS[model] = tuple(present)
    return _STACKS[model]


def sites_of(model: nn.Module, stack: str | None = None) -> Sites:
    """Find a model's hook names, of an encoder-decoder those of one stack.

    Raises ModelError where there are no blocks with values to zero, InputError for a stack that the model lacks or
    one that is not named.
    """
    checked = _checked_stack(model, stack)
    kind, points, names = kind_of(model), hook_points(model), _names_of(model, checked)
    blocks = {name.split(".")[1] for name in points if name.startswith(f"{names.blocks}.")}
    layers = range(sum(map(str.isdigit, blocks)))

    def named(site: str) -> tuple[str, ...]:
        return tuple(f"{names.blocks}.{layer}.{site}" for layer in layers)

    inside = tuple(_inside(f"{names.blocks}.{layer}", names, points) for layer in layers)
    sites = Sites(named(names.input), named(names.value), named(names.pattern), named(names.output), inside, checked)
    for required in (sites.inputs, sites.values, sites.patterns, sites.outputs):
        missing = [name for name in required if name not in points]
        if missing or not required:
            wanted = missing[0] if missing else f"{names.blocks}.0.{names.value}"
            without = f" ({len(missing)} of {len(required)} blocks lack it)" if missing else ""
            raise ModelError(
                f"this {kind} has no hook {wanted}{without}: Value Zeroing needs an attention whose values can be "
                "zeroed in every block; state-space, convolution and linear-attention blocks have none, blocks that "
                "read an earlier block's values (Gemma 4) none of their own, and of some attentions TransformerLens "
                "shows none"
            )
    return sites


def _checked_stack(model: nn.Module, stack: str | None) -> Stack | None:
    if stack is not None and not isinstance(stack, str):
        raise InputTypeError(f"stack is {type(stack).__name__}: expected one of {', '.join(STACKS)}, or None")
    present = stacks_of(model)
    if stack is None:
        if present:
            raise InputError(
                f"no stack named, and this {kind_of(model)} is an encoder-decoder: expected stack="
                f"{' or '.join(map(repr, present))}; a function that does not take it is for models with one stack of "
                "blocks"
            )
        return None
    one_of("stack", stack, STACKS)
    if not present:
        raise InputError(
            f"stack={stack!r} given, and this {kind_of(model)} has one stack of blocks: leave stack out; only "
            "encoder-decoders (T5, BART) have several"
        )
    if stack not in present:
        raise InputError(
            f"stack={stack!r} given, and this {kind_of(model)} has {', '.join(present)}: expected one of these"
        )
    return stack


def _names_of(model: nn.Module, stack: Stack | None) -> _Names:
    kind = kind_of(model)
    return _NAMES[kind] if stack is None else _STACKED[kind][stack]


def _inside(block: str, names: _Names, points: dict[str, Any]) -> dict[str, str]:
    candidates = dict(_INSIDE)
    if names.other is not None:
        candidates.pop("attention_output", None)  # the names do not say which attention they are of
        candidates |= {shows: (f"{names.other}.{name}",) for shows, name in _INSIDE_OTHER.items()}
    present = {
        shows: [f"{block}.{name}" for name in sites if f"{block}.{name}" in points]
        for shows, sites in candidates.items()
    }
    return {shows: sites[0] for shows, sites in present.items() if sites}


@dataclass(frozen=True)
class BlockParts:
    """A block, the attention in it whose values are zeroed, and of a decoder's block the other one."""

    block: Any
    attention: Any
    other: Any | None


def block_parts(model: nn.Module, layer: int, stack: Stack | None = None) -> BlockParts:
    """Find a block of a stack by the names that TransformerLens gives its modules."""
    names = _names_of(model, stack)
    block = getattr(model, names.blocks)[layer]
    return BlockParts(block, getattr(block, names.attention), names.other and getattr(block, names.other))


def activation_sites(model: nn.Module, sites: Sites, name: str) -> tuple[str, ...]:
    """The hooks of an activation that TransformerLens calls by `name`, block by block; of a stack, its attention's.

    Raises ModelError where a block has none.
    """
    if name in ("resid_pre", "v", "pattern"):
        return {"resid_pre": sites.inputs, "v": sites.values, "pattern": sites.patterns}[name]
    points, candidates = hook_points(model), _ACTIVATIONS[name]

    def at(layer: int, site: str) -> str:
        attention = sites.values[layer].removesuffix("hook_v")
        if site.startswith("attn."):
            return attention + site.removeprefix("attn.")
        block = attention.rsplit(".", 2)[0]
        return f"{block}.{'hook_cross_attn_out' if sites.stack == 'cross' and site == 'hook_attn_out' else site}"

    first = [
        next((hook for site in candidates if (hook := at(layer, site)) in points), None)
        for layer in range(sites.n_layers)
    ]
    if None in first:
        raise ModelError(
            f"block {first.index(None)} of this {kind_of(model)} has no hook {' or '.join(candidates)}: expected one, "
            f"to read and write {name}; value zeroing and v need none"
        )
    return tuple(hook for hook in first if hook is not None)


def hf_model_of(model: nn.Module) -> nn.Module | None:
    """The Hugging Face model inside a TransformerBridge; None for other models."""
    if kind_of(model) != "TransformerBridge":
        return None
    original = model.original_model
    return original if isinstance(original, nn.Module) else None


def roots_of(model: nn.Module) -> list[nn.Module]:
    """A model, and the Hugging Face model inside it: a bridge's own tree leaves out parts of that."""
    inside = hf_model_of(model)
    return [model] if inside is None else [model, inside]
