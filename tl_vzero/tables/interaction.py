"""Interaction within a span: zeroing positions jointly against the sum of zeroing each."""

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from tl_vzero.errors import InputTypeError
from tl_vzero.inputs import Text
from tl_vzero.models.turns import takes_turn
from tl_vzero.scores import Scores
from tl_vzero.tables.maps import options_without, raw_maps

if TYPE_CHECKING:
    import pandas as pd

TAKEN = {"sources": "the table has a row for each span, and compares it with its own positions"}


@takes_turn
def span_interaction(
    model: nn.Module, inputs: Text, spans: str | Iterable[Iterable[int] | int], **options: Any
) -> "pd.DataFrame":
    """How far zeroing a span jointly is from the sum of zeroing its positions one by one, as a pandas table.

    A row for each sentence, layer, destination and span; `spans` are as in `value_zeroing`. Columns: `sentence`,
    `layer`, (`head` with `per_head`,) `dest`, `dest_token`, `span` (its words), `positions`, and raw distances:

    - `joint`: the distance when the values of all its positions are zeroed together;
    - `sum`: the sum of the distances when each is zeroed by itself;
    - `interaction`: `joint` - `sum`: above 0 where the positions' parts add up, below 0 where they stand in for one
      another or cancel, and 0 for a span of one position, but for rounding. A cosine distance grows with about the
      square of a small change, so that two positions that bring the same have `joint` at twice the `sum`.

    `options` are those of `value_zeroing` but `sources`. Raises what `value_zeroing` raises, and leaves the model as
    it was. Source: the maps are those of Mohebbi et al. 2023, section 3, with several positions zeroed.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> table = tl_vzero.span_interaction(model, "the authors [MASK] here.", [[1, 2], [4]], layers=[1])
    >>> table["span"].unique().tolist(), len(table)
    (['the authors', 'here'], 14)
    >>> bool((table["interaction"] == table["joint"] - table["sum"]).all())
    True
    """
    import pandas as pd

    if spans is None:
        raise InputTypeError(
            'spans is None: expected positions, such as [[1, 2], [4]], or "words", "noun_chunks" or "subtrees"'
        )
    options = options_without(options, TAKEN)
    joint = raw_maps(model, inputs, spans=spans, **options)
    apart = raw_maps(model, inputs, **options)
    tables = [_of_sentence(n, *both) for n, both in enumerate(zip(joint, apart, strict=True))]
    return pd.concat(tables, ignore_index=True)


def _of_sentence(number: int, joint: Scores, apart: Scores) -> "pd.DataFrame":
    spans = joint.src_spans
    assert spans is not None
    joint = replace(joint, values=joint.values.double())
    single = apart.values.double()
    summed = torch.stack([single[..., list(span)].sum(dim=-1) for span in spans], dim=-1)
    table = joint.to_frame()
    n_rows = len(table) // len(spans)
    table.insert(0, "sentence", number)
    table["positions"] = list(spans) * n_rows
    table["sum"] = replace(joint, values=summed).to_frame()["value"]
    table["interaction"] = table["value"] - table["sum"]
    table = table.drop(columns=["src", "method", "stage"]).rename(columns={"value": "joint", "src_token": "span"})
    first = [name for name in ("sentence", "layer", "head", "dest", "dest_token") if name in table]
    return table[[*first, "span", "positions", "joint", "sum", "interaction"]]
