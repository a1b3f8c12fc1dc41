"""Where each kind of TransformerLens model keeps a block's input, values, pattern and output."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from torch import nn

from tl_vzero.errors import InputTypeError, ModelError


@dataclass(frozen=True)
class Sites:
    """Hook names of every block, from the first to the last.

    `inside` are a block's further hooks, by what they show, as far as the model has them.
    """

    inputs: tuple[str, ...]
    values: tuple[str, ...]
    patterns: tuple[str, ...]
    outputs: tuple[str, ...]
    inside: tuple[Mapping[str, str], ...]

    @property
    def n_layers(self) -> int:
        return len(self.values)

    def at(self, layer: int) -> tuple[str, str, str, str]:
        """The names of one block's input, value, pattern and output."""
        return self.inputs[layer], self.values[layer], self.patterns[layer], self.outputs[layer]


@dataclass(frozen=True)
class _Names:
    input: str
    output: str
    value: str = "attn.hook_v"
    pattern: str = "attn.hook_pattern"


# One entry a TransformerLens class; the names are relative to `blocks.l.`. HookedEncoder's block ends in a
# LayerNorm, and its hook_resid_post lies before it.
_NAMES = {
    "HookedEncoder": _Names("hook_resid_pre", "hook_normalized_resid_post"),
    "HookedTransformer": _Names("hook_resid_pre", "hook_resid_post"),
    "TransformerBridge": _Names("hook_in", "hook_out"),
}

# What may be seen inside a block, and under what names, the first that there is: a bridged BERT's hook_attn_out lies
# behind a norm.
_INSIDE = {
    "attention_output": ("attn.o.hook_out", "hook_attn_out"),
    "mlp_pre": ("mlp.hook_pre",),
    "mlp_pre_linear": ("mlp.hook_pre_linear",),
    "mlp_output": ("hook_mlp_out",),
}


def kind_of(model: object) -> str:
    """Name the TransformerLens class of a model; raises InputTypeError for anything else.

    Subclasses count as what they derive from.
    """
    for cls in type(model).__mro__:
        if cls.__module__.partition(".")[0] == "transformer_lens" and cls.__name__ in _NAMES:
            return cls.__name__
    hint = ""
    if any(cls.__module__.startswith("transformers.") for cls in type(model).__mro__):
        hint = "; this is a Hugging Face model: wrap it with tl_vzero.load_model(model, tokenizer)"
    raise InputTypeError(
        f"model is {type(model).__module__}.{type(model).__name__}: expected a TransformerLens model "
        f"({', '.join(_NAMES)}){hint}"
    )


def hook_points(model: nn.Module) -> dict[str, Any]:
    """Every hook name of a model, aliases included, with its HookPoint."""
    return cast(dict[str, Any], model.hook_dict)


def sites_of(model: nn.Module) -> Sites:
    """Find a model's hook names; raises ModelError where it has no blocks with values to zero."""
    kind = kind_of(model)
    names, known = _NAMES[kind], hook_points(model)
    layers = range(_count_blocks(known))

    def named(site: str) -> tuple[str, ...]:
        return tuple(f"blocks.{layer}.{site}" for layer in layers)

    inside = tuple(_inside(f"blocks.{layer}", known) for layer in layers)
    sites = Sites(named(names.input), named(names.value), named(names.pattern), named(names.output), inside)
    for required in (sites.inputs, sites.values, sites.patterns, sites.outputs):
        missing = [name for name in required if name not in known]
        if missing or not required:
            wanted = missing[0] if missing else f"blocks.0.{names.value}"
            raise ModelError(
                f"this {kind} has no hook {wanted}: Value Zeroing needs blocks with an attention whose values "
                "can be zeroed (state-space and attention-free models have none)"
            )
    return sites


def _inside(block: str, known: dict[str, Any]) -> dict[str, str]:
    found = {
        shows: [f"{block}.{name}" for name in names if f"{block}.{name}" in known] for shows, names in _INSIDE.items()
    }
    return {shows: names[0] for shows, names in found.items() if names}


def _count_blocks(known: dict[str, Any]) -> int:
    numbers = {name.split(".")[1] for name in known if name.startswith("blocks.")}
    return sum(number.isdigit() for number in numbers)


def hf_model_of(model: nn.Module) -> nn.Module | None:
    """The Hugging Face model inside a TransformerBridge; None for other models."""
    if kind_of(model) != "TransformerBridge":
        return None
    original = model.original_model
    return original if isinstance(original, nn.Module) else None
