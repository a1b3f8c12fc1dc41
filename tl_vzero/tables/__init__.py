"""Tables made of Value Zeroing maps: which heads mix, and how a span differs from the sum of its positions."""

from tl_vzero.tables.heads import head_importance
from tl_vzero.tables.interaction import span_interaction

__all__ = ["head_importance", "span_interaction"]
