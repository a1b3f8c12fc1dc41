"""Pictures: Scores and result dataclasses to plotly figures. Nothing here shows a figure or computes a score."""

from tl_vzero.plot.maps import effect_map, heatmap, target_row

__all__ = ["effect_map", "heatmap", "target_row"]
