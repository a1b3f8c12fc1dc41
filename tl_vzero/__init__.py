"""tl_vzero: which tokens does a Transformer layer really mix into a token?

The public names are resolved on first use, so that importing the package does not import torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_vzero.api import METHODS, compare, score, value_zeroing
    from tl_vzero.comparison import Comparison
    from tl_vzero.effects.ablation import attribution_error, attribution_patching, zero_ablation
    from tl_vzero.effects.agreement import Agreement, agreement
    from tl_vzero.effects.measure import Effect
    from tl_vzero.effects.patching import value_patching
    from tl_vzero.errors import TLVZeroError
    from tl_vzero.inputs.media import frames
    from tl_vzero.models.load import load_model
    from tl_vzero.scores import Scores, joint_rollout
    from tl_vzero.tables import head_importance, span_interaction
    from tl_vzero.zeroing.hooked import value_zeroing_hooks

__version__ = "0.1.0"

_HOMES = {
    "METHODS": "tl_vzero.api",
    "Agreement": "tl_vzero.effects.agreement",
    "Comparison": "tl_vzero.comparison",
    "Effect": "tl_vzero.effects.measure",
    "Scores": "tl_vzero.scores",
    "TLVZeroError": "tl_vzero.errors",
    "agreement": "tl_vzero.effects.agreement",
    "attribution_error": "tl_vzero.effects.ablation",
    "attribution_patching": "tl_vzero.effects.ablation",
    "compare": "tl_vzero.api",
    "frames": "tl_vzero.inputs.media",
    "head_importance": "tl_vzero.tables",
    "joint_rollout": "tl_vzero.scores",
    "load_model": "tl_vzero.models.load",
    "score": "tl_vzero.api",
    "span_interaction": "tl_vzero.tables",
    "value_patching": "tl_vzero.effects.patching",
    "value_zeroing": "tl_vzero.api",
    "value_zeroing_hooks": "tl_vzero.zeroing.hooked",
    "zero_ablation": "tl_vzero.effects.ablation",
}

__all__ = [
    "METHODS",
    "Agreement",
    "Comparison",
    "Effect",
    "Scores",
    "TLVZeroError",
    "agreement",
    "attribution_error",
    "attribution_patching",
    "compare",
    "frames",
    "head_importance",
    "joint_rollout",
    "load_model",
    "score",
    "span_interaction",
    "value_patching",
    "value_zeroing",
    "value_zeroing_hooks",
    "zero_ablation",
]

_ROOMS = ("plot",)  # a module whose own names are used through it: tl_vzero.plot.heatmap


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return import_module(f"tl_vzero.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module 'tl_vzero' has no attribute {name!r}")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_ROOMS})
