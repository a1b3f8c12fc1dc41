"""The table of architectures: one row each, which the tests and tests/bench/measure_coverage.py read.

A new architecture costs a row, in the file of its kind.
"""

from functools import cache

from support.architecture_row import LINE
from support.decoder_rows import DECODERS
from support.encoder_rows import ENCODERS
from torch import Tensor

ARCHITECTURES = {row.name: row for row in (*ENCODERS, *DECODERS)}
ON_THIS_LINE = [name for name, row in ARCHITECTURES.items() if LINE in row.lines]


@cache
def reference(name: str) -> Tensor:
    """A row's raw maps of its sentence, `[layer, dest, src]`, by plain hooks in float64."""
    return ARCHITECTURES[name].reference()
