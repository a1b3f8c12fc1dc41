"""Numbers and scripts in as few bytes as a page can hold them, unpacked by the browser."""

import base64
import gzip
import json
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from plotly.offline import get_plotlyjs
from torch import Tensor

SHOWN_DIGITS = 4


def pack(data: bytes) -> str:
    """Pack bytes for a browser to unpack.

    >>> gzip.decompress(base64.b64decode(pack(b"maps")))
    b'maps'
    """
    return base64.b64encode(gzip.compress(data, compresslevel=6, mtime=0)).decode()


def decimal_codes(maps: Sequence[Float[Tensor, "..."]]) -> bytes:
    """Write numbers as 16-bit decimal mantissas of 4 digits, one after the other, then their 16-bit exponents.

    Less than half of what digits or float32 take once packed, and exactly what the page shows.

    >>> import torch
    >>> list(memoryview(decimal_codes([torch.tensor([[0.1, 0.0]])])).cast("h"))
    [1000, 0, -4, 0]
    """
    numbers = torch.cat([values.detach().cpu().flatten() for values in maps]).double()
    sizes = torch.where(numbers == 0, 1.0, numbers.abs())
    exponents = torch.floor(torch.log10(sizes)) - (SHOWN_DIGITS - 1)
    mantissas = torch.round(numbers / 10.0**exponents)
    exponents = torch.where(numbers == 0, 0.0, exponents)
    return torch.cat([mantissas, exponents]).to(torch.int16).numpy().astype("<i2").tobytes()


@cache
def packed_plotly() -> str:
    """The plotly.js that the installed plotly has."""
    return pack(get_plotlyjs().encode())


def script_json(data: dict[str, Any]) -> str:
    """JSON that no HTML parser can take for anything else, whatever a token holds; ASCII only."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
