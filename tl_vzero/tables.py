"""Tables made of Value Zeroing maps: which heads mix, and how a span differs from the sum of its positions."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tl_vzero.api import value_zeroing
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.inputs.text import Text
from tl_vzero.models.contracts import attention_heads
from tl_vzero.models.turns import takes_turn
from tl_vzero.scores import Scores

if TYPE_CHECKING:
    import pandas as pd


# The maps behind a table: several calls of Value Zeroing with the same options.


def options_without(options: Mapping[str, Any], taken: Mapping[str, str]) -> dict[str, Any]:
    """Options that several calls can read; raises InputError, with its reason, for one that the table sets itself."""
    for name, reason in taken.items():
        if name in options:
            raise InputError(f"{name}={options[name]!r} given: {reason}; leave it out")
    return {name: list(value) if isinstance(value, Iterator) else value for name, value in options.items()}


def raw_maps(model: nn.Module, inputs: Text, **options: Any) -> list[Scores]:
    """The map of each sentence, also of one alone."""
    scores = value_zeroing(model, inputs, **options)
    return scores if isinstance(scores, list) else [scores]


# Head importance: how much of a layer's mixing goes when a head's value is zeroed.

TAKEN_BY_HEADS = dict.fromkeys(("heads", "per_head"), "the table has a row for each head of each layer")


@takes_turn
def head_importance(model: nn.Module, inputs: Text, **options: Any) -> "pd.DataFrame":
    """How much of each layer's mixing goes when one head's value is zeroed, as a pandas table.

    A row for each layer and value head. Let D(H) be a layer's raw map where only the heads H are zeroed, and |D| its
    mixing: the sum over sources, averaged over destinations, then over sentences. Columns:

    - `mixing`: |D({h})|, in units of the distance: what zeroing this head alone moves;
    - `share`: `mixing` divided by its sum over the layer's heads;
    - `lost`: 1 - |D(all but h)| / |D(all)|, the part of the layer's mixing that goes without this head. Distances are
      not additive, so that `lost` need not sum to one, and is negative where the other heads mix more without it;
    - `context`: the part of `mixing` that comes from other positions than the destination's own;
    - `query_heads`: how many query heads read this value head: 1, or more under grouped-query attention;
    - `n`: the number of sentences.

    A part of nothing is 0. `options` are those of `value_zeroing` but `heads` and `per_head`. It costs about two maps
    a head. Raises what `value_zeroing` raises, and leaves the model as it was.
    Source: the maps are those of Mohebbi et al. 2023, section 3, with some heads zeroed.

    >>> import tl_vzero
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> table = tl_vzero.head_importance(model, "the authors [MASK] here.", layers=[1])
    >>> list(table.columns)
    ['layer', 'head', 'query_heads', 'mixing', 'share', 'lost', 'context', 'n']
    >>> round(float(table["share"].sum()), 6)
    1.0
    """
    import pandas as pd

    options = options_without(options, TAKEN_BY_HEADS)
    of_heads = raw_maps(model, inputs, per_head=True, **options)
    layers, heads = of_heads[0].layers, of_heads[0].heads
    assert heads is not None
    mixing, context = _mixing(of_heads), _mixing(of_heads, elsewhere=True)
    whole = _mixing(raw_maps(model, inputs, **options)).unsqueeze(1)
    without = torch.stack([_mixing_without(head, heads, whole, model, inputs, options) for head in heads], dim=1)
    table = pd.MultiIndex.from_product([layers, heads], names=["layer", "head"]).to_frame(index=False)
    table["query_heads"] = attention_heads(model, options.get("stack")) // len(heads)
    columns = {
        "mixing": mixing,
        "share": _part(mixing, mixing.sum(dim=1, keepdim=True)),
        "lost": _part(whole - without, whole),
        "context": _part(context, mixing),
    }
    for name, values in columns.items():
        table[name] = values.flatten().numpy()
    table["n"] = len(of_heads)
    return table


def _mixing_without(
    head: int, heads: Sequence[int], whole: Tensor, model: nn.Module, inputs: Text, options: dict[str, Any]
) -> Float[Tensor, "layer"]:
    others = [each for each in heads if each != head]
    if not others:
        return torch.zeros_like(whole).squeeze(1)
    return _mixing(raw_maps(model, inputs, heads=others, **options))


def _mixing(maps: Sequence[Scores], *, elsewhere: bool = False) -> Float[Tensor, "layer *head"]:
    """Summed over sources, averaged over destinations, then over sentences; `elsewhere` leaves out a row's own."""
    sums = []
    for each in maps:
        values = each.values.detach().cpu().double()
        kept = values * _is_elsewhere(each) if elsewhere else values
        sums.append(kept.sum(dim=-1).mean(dim=-1))
    return torch.stack(sums).mean(dim=0)


def _is_elsewhere(scores: Scores) -> Bool[Tensor, "dest src"]:
    """Whether a column leaves the destination's own value in; all do where the sources are another sequence."""
    columns = scores.src_spans or [(position,) for position in scores.src_positions]
    apart = scores.metadata.get("stack") == "cross"
    return torch.tensor([[apart or dest not in column for column in columns] for dest in scores.dest_positions])


def _part(values: Tensor, whole: Tensor) -> Tensor:
    """Values as parts of a whole; of a whole that is exactly 0, 0."""
    return torch.where(whole == 0, torch.zeros_like(values), values / whole)


# Interaction within a span: zeroing positions jointly against the sum of zeroing each.

TAKEN_BY_SPANS = {"sources": "the table has a row for each span, and compares it with its own positions"}


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
    options = options_without(options, TAKEN_BY_SPANS)
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
