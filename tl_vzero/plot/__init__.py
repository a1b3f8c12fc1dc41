"""Pictures: Scores and result dataclasses to plotly figures. Nothing here shows a figure or computes a score.

The names are those of __init__.pyi, loaded at first use: a picture of a map does not wait for the evaluations' modules.
"""

from lazy_loader import attach_stub

__getattr__, __dir__, __all__ = attach_stub(__name__, __file__)
