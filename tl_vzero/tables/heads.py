"""Head importance: how much of a layer's mixing goes when a head's value is zeroed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from tl_vzero.inputs import Text
from tl_vzero.models.contracts import attention_heads
from tl_vzero.models.turns import takes_turn
from tl_vzero.scores import Scores
from tl_vzero.tables.maps import options_without, raw_maps

if TYPE_CHECKING:
    import pandas as pd

TAKEN = dict.fromkeys(("heads", "per_head"), "the table has a row for each head of each layer")


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

    options = options_without(options, TAKEN)
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
