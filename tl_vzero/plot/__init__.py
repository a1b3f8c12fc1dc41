"""Pictures: Scores and result dataclasses to plotly figures. Nothing here shows a figure or computes a score.

The names are resolved on first use, so that a picture of a map does not wait for the modules of the evaluations.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tl_vzero.plot.evaluations import (
        alignment_curves,
        compression_curves,
        control_curves,
        faithfulness_bars,
        mass_bars,
    )
    from tl_vzero.plot.export import save_figure
    from tl_vzero.plot.flows import flow_graph
    from tl_vzero.plot.maps import effect_map, heatmap, target_row
    from tl_vzero.plot.overlays import patch_overlay, time_map
    from tl_vzero.plot.sentence_view import text_view
    from tl_vzero.plot.small_maps import head_grid, layer_grid, method_comparison
    from tl_vzero.plot.theme import DARK, LIGHT, Theme

_HOMES = {
    "DARK": "theme",
    "LIGHT": "theme",
    "Theme": "theme",
    "alignment_curves": "evaluations",
    "compression_curves": "evaluations",
    "control_curves": "evaluations",
    "effect_map": "maps",
    "faithfulness_bars": "evaluations",
    "flow_graph": "flows",
    "head_grid": "small_maps",
    "heatmap": "maps",
    "layer_grid": "small_maps",
    "mass_bars": "evaluations",
    "method_comparison": "small_maps",
    "patch_overlay": "overlays",
    "save_figure": "export",
    "target_row": "maps",
    "text_view": "sentence_view",
    "time_map": "overlays",
}

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
    if name not in _HOMES:
        raise AttributeError(f"module 'tl_vzero.plot' has no attribute {name!r}")
    value = getattr(import_module(f"tl_vzero.plot.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
