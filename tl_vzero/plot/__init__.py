"""Pictures: Scores and result dataclasses to plotly figures. Nothing here shows a figure or computes a score.

The figures of the evaluations are resolved on first use, so that a picture of a map does not wait for their modules.
"""

from typing import TYPE_CHECKING, Any

from tl_vzero.plot.export import save_figure
from tl_vzero.plot.flows import flow_graph
from tl_vzero.plot.maps import effect_map, heatmap, target_row
from tl_vzero.plot.overlays import patch_overlay, time_map
from tl_vzero.plot.sentence_view import text_view
from tl_vzero.plot.small_maps import head_grid, layer_grid, method_comparison
from tl_vzero.plot.theme import DARK, LIGHT, Theme

if TYPE_CHECKING:
    from tl_vzero.plot.evaluations import (
        alignment_curves,
        compression_curves,
        control_curves,
        faithfulness_bars,
        mass_bars,
    )

__all__ = [
    "DARK",
    "LIGHT",
    "Theme",
    "alignment_curves",
    "compression_curves",
    "control_curves",
    "effect_map",
    "faithfulness_bars",
    "flow_graph",
    "head_grid",
    "heatmap",
    "layer_grid",
    "mass_bars",
    "method_comparison",
    "patch_overlay",
    "save_figure",
    "target_row",
    "text_view",
    "time_map",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'tl_vzero.plot' has no attribute {name!r}")
    from tl_vzero.plot import evaluations

    return getattr(evaluations, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
