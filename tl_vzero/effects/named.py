"""Effects by their names, for who shows several of one prediction."""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn

from tl_vzero.choices import listed, one_of
from tl_vzero.effects.ablation import attribution_patching, zero_ablation
from tl_vzero.effects.direct import check_head_reads, direct_logit_attribution, logit_lens
from tl_vzero.effects.knockout import attention_knockout
from tl_vzero.effects.measure import Effect
from tl_vzero.effects.patching import SITES, Site, activation_patching
from tl_vzero.errors import InputError
from tl_vzero.inputs.text import Text

OF_ONE: dict[str, Callable[..., Effect]] = {
    "zero_ablation": zero_ablation,
    "attribution_patching": attribution_patching,
    "attention_knockout": attention_knockout,
    "logit_lens": logit_lens,
    "direct_logit_attribution": direct_logit_attribution,
}
WITH_BASELINE = ("zero_ablation", "attribution_patching")
# Into a corrupted sentence.
PATCHED: dict[str, Site] = {"value_patching" if site == "v" else f"{site}_patching": site for site in SITES}


def effects_named(names: Sequence[str], *, corrupted: bool, stack: str | None = None) -> tuple[str, ...]:
    """The names checked, each once, zero ablation first.

    Raises InputError for a name that there is not, for one that needs a corrupted sentence where there is none, and
    for one that an encoder-decoder's stack has not.
    """
    read = listed("effects", names)
    wanted = ("zero_ablation", *(read if isinstance(read, list) else [read]))
    named = tuple(dict.fromkeys(one_of("effect", name, (*OF_ONE, *PATCHED)) for name in wanted))
    if "logit_lens" in named:
        check_head_reads(stack)
    if stack is not None and "direct_logit_attribution" in named:
        raise InputError("effects hold direct_logit_attribution, which is for models with one stack: leave it out")
    patched = [name for name in named if name in PATCHED]
    if patched and not corrupted:
        raise InputError(f"effects hold {patched[0]}, which patches into another sentence: give it as corrupted")
    return named


def measured_effect(name: str, model: nn.Module, inputs: Text, corrupted: Text | None, **options: Any) -> Effect:
    """The effect of that name, without heads; `options` are those of `zero_ablation`."""
    if name not in WITH_BASELINE:
        options = {key: value for key, value in options.items() if key != "baseline"}
    if name in OF_ONE:
        return OF_ONE[name](model, inputs, **options)
    assert corrupted is not None
    return activation_patching(model, inputs, corrupted, PATCHED[name], **options)
