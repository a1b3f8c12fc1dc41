"""Where the mass of the target's row goes: to the cue, to what competes with it, to special tokens, to the target.

The paper's reading of its maps: Value Zeroing lies on the subject, gradients on the attractor, attention on [CLS].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.data.examples import Example, Skipped
from tl_vzero.errors import InputError
from tl_vzero.evaluate.results import COLUMNS, Result, Row, means_by_paradigm
from tl_vzero.evaluate.rows import Options, TargetRows, target_rows
from tl_vzero.evaluate.sentences import Protocol, TokenizedExample, WhichPieces, tokenize_examples
from tl_vzero.statistics import Estimate, Interval

Place = Literal["cue", "attractor", "special", "target", "rest"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Share(Row):
    """The mean share of the target's row that lies on one place, of one method in one layer.

    `n_with` counts the examples that have such a place at all: few sentences have an attractor.
    """

    method: str
    layer: int
    paradigm: str
    place: Place
    share: Estimate = field(metadata={COLUMNS: ""})
    n_with: int


@dataclass(frozen=True)
class Mass(Result):
    """Shares by method, layer, paradigm (or "all") and place; those of the five places sum to one.

    A row in which nothing moved has no mass: its shares are all 0, and `empty_rows` counts such rows by method.
    """

    shares: tuple[Share, ...]
    empty_rows: Mapping[str, int]
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]


def mass(
    model: nn.Module,
    examples: Sequence[Example],
    methods: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    which: WhichPieces = "all",
    protocol: Protocol = "masked",
    interval: Interval | None = None,
    progress: bool = False,
) -> Mass:
    """Where each method's mass goes in the target's row, by layer and paradigm.

    `methods` and `options` are as in `target_rows`. Cue and attractor are all tokens of their words, or
    `which="first"`. Raises what `tokenize_examples` and `target_rows` raise, and leaves the model as it was.
    Source: Mohebbi et al. 2023, section 5, the example maps.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> table = mass(model, agreement_examples()[:20], ["attention"]).to_frame()
    >>> table.query("paradigm == 'all' and layer == 0")["mean"].sum().round(6).item()
    1.0
    """
    tokenized = tokenize_examples(model, examples, protocol=protocol)
    rows = target_rows(model, tokenized, methods, options=options, progress=progress)
    return mass_of(rows, which=which, interval=interval)


def mass_of(rows: TargetRows, *, which: WhichPieces = "all", interval: Interval | None = None) -> Mass:
    """The mass of rows that are there already; raises InputError for rows that are not normalised."""
    if not (rows.settings["normalized"] or rows.settings["rolled_out"]):
        raise InputError("these rows are not normalised, so they have no shares: expected normalized=True")
    interval = interval or Interval()
    places = [places_of(sentence, which) for sentence in rows.examples]
    shares: list[Share] = []
    for method, of_method in rows.rows.items():
        # [example, layer, place]
        lying = torch.stack([shares_of(row, place) for row, place in zip(of_method, places, strict=True)])
        means = means_by_paradigm(lying.numpy(), rows.examples, interval)
        for (layer_index, layer), (paradigm, (indices, mean)), (place_index, place) in product(
            enumerate(rows.layers), means.items(), enumerate(PLACES)
        ):
            n_with = sum(place in places[index] for index in indices)
            shares.append(Share(method, layer, paradigm, place, mean[layer_index, place_index], n_with))
    empty = {
        method: sum(int((row == 0).all(dim=-1).sum()) for row in of_method) for method, of_method in rows.rows.items()
    }
    settings = {**rows.settings, "which": which, **interval.settings}
    return Mass(tuple(shares), empty, rows.left_out, rows.skipped, settings)


def places_of(sentence: TokenizedExample, which: WhichPieces) -> tuple[Place, ...]:
    """What each position of an example is; a cue that is the last position before a target stays a cue."""
    positions: dict[Place, Sequence[int]] = {
        "cue": sentence.cue(which),
        "attractor": sentence.attractor(which),
        "special": [index for index, is_special in enumerate(sentence.encoding.special) if is_special],
        "target": [sentence.dest],
        "rest": range(len(sentence)),
    }
    return tuple(next(place for place in PLACES if index in positions[place]) for index in range(len(sentence)))


def shares_of(row: Float[Tensor, "*axes src"], places: Sequence[Place]) -> Float[Tensor, "*axes place"]:
    """What lies on each of the five places, in rows of an example."""
    masks = [torch.tensor([place == wanted for place in places]) for wanted in PLACES]
    return torch.stack([row[..., mask].sum(dim=-1) for mask in masks], dim=-1)
