"""Keeping memory flat over many batches."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

FULL_PRECISION = (torch.float32, torch.float64)


@contextmanager
def no_kernels_kept(model: nn.Module) -> Iterator[None]:
    """Within, torch makes no kernels of oneDNN, where they have elementwise functions to do at most.

    oneDNN compiles GELU anew for each shape and keeps 1024 of these kernels. The batches of a corpus have ever other
    shapes, and kernels kept between large blocks of memory hinder their use again: a process grew by a tenth that
    way. Matrix products are oneDNN's in half precision and where torch has no MKL; there it stays.
    """
    onednn: Any = torch.backends.mkldnn
    dispensable = torch.backends.mkl.is_available() and next(nn.Module.parameters(model)).dtype in FULL_PRECISION
    before = onednn.enabled
    onednn.enabled = before and not dispensable
    try:
        yield
    finally:
        onednn.enabled = before
