"""Several methods on one sentence, from one clean run, and the table that sets them side by side."""

from tl_vzero.comparison.result import Comparison

__all__ = ["Comparison"]
