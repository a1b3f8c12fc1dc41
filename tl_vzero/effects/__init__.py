"""What the same value positions do to the prediction: zeroed, patched, estimated; and how a method's scores agree."""

from tl_vzero.effects.estimated import attribution_error, attribution_patching
from tl_vzero.effects.patched import value_patching
from tl_vzero.effects.ranks import Agreement, agreement
from tl_vzero.effects.result import Effect, PatchingEffect
from tl_vzero.effects.zeroed import zero_ablation

__all__ = [
    "Agreement",
    "Effect",
    "PatchingEffect",
    "agreement",
    "attribution_error",
    "attribution_patching",
    "value_patching",
    "zero_ablation",
]
