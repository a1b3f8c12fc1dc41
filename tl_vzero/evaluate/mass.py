"""Where the mass of the target's row goes: to the cue, to what competes with it, to special tokens, to the target.

The paper's reading of its maps: Value Zeroing lies on the subject, gradients on the attractor, attention on [CLS].
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tl_vzero.data.examples import Example, Skipped
from tl_vzero.data.tokens import WhichPieces
from tl_vzero.errors import InputError, unknown_name
from tl_vzero.evaluate.rows import TargetRows, target_rows
from tl_vzero.evaluate.statistics import Estimate, Interval, columns_of, estimates, paradigms_of, plain_skip
from tl_vzero.evaluate.tokenized import Protocol, TokenizedExample, tokenize_examples

if TYPE_CHECKING:
    import pandas as pd

Place = Literal["cue", "attractor", "special", "target", "rest"]
PLACES: tuple[Place, ...] = get_args(Place)


@dataclass(frozen=True)
class Share:
    """The mean share of the target's row that lies on one place, of one method in one layer.

    `n_with` counts the examples that have such a place at all: few sentences have an attractor.
    """

    method: str
    layer: int
    paradigm: str
    place: Place
    share: Estimate
    n_with: int


@dataclass(frozen=True)
class Mass:
    """Shares by method, layer, paradigm (or "all") and place; those of the five places sum to one.

    A row in which nothing moved has no mass: its shares are all 0, and `empty_rows` counts such rows by method.
    """

    shares: tuple[Share, ...]
    empty_rows: Mapping[str, int]
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table, a row a share: mean, low, high and n, and how many examples have such a place."""
        import pandas as pd

        return pd.DataFrame([_record(each) for each in self.shares])

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain JSON types."""
        return {
            "shares": [_record(each) for each in self.shares],
            "empty_rows": dict(self.empty_rows),
            "left_out": dict(self.left_out),
            "skipped": [plain_skip(each) for each in self.skipped],
            "settings": dict(self.settings),
        }


def _record(each: Share) -> dict[str, Any]:
    return {
        "method": each.method,
        "layer": each.layer,
        "paradigm": each.paradigm,
        "place": each.place,
        **columns_of(each.share),
        "n_with": each.n_with,
    }


def mass(
    model: nn.Module,
    examples: Sequence[Example],
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    which: WhichPieces = "all",
    protocol: Protocol = "masked",
    interval: Interval | None = None,
    progress: bool = False,
) -> Mass:
    """Where each method's mass goes in the target's row, by layer and paradigm.

    `methods` and `options` are as in `target_rows`. Cue and attractor are all pieces of their words, or
    `which="first"`. Raises what `tokenize_examples` and `target_rows` raise, and leaves the model as it was.
    Source: Mohebbi et al. 2023, section 5, the example maps.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> table = mass(model, agreement_examples()[:20], ["attention"]).to_frame()
    >>> table.query("paradigm == 'all' and layer == 0")["mean"].sum().round(6).item()
    1.0
    """
    layout = tokenize_examples(model, examples, protocol=protocol)
    rows = target_rows(model, layout, methods, options=options, progress=progress)
    return mass_of(rows, which=which, interval=interval)


def mass_of(rows: TargetRows, *, which: WhichPieces = "all", interval: Interval | None = None) -> Mass:
    """The mass of rows that are there already; raises InputError for rows that are not normalised."""
    if which not in get_args(WhichPieces):
        raise unknown_name("choice of pieces", which, get_args(WhichPieces))
    if not (rows.settings["normalized"] or rows.settings["rolled_out"]):
        raise InputError("these rows are not normalised, so they have no shares: expected normalized=True")
    interval = interval or Interval()
    places = [places_of(each, which) for each in rows.examples]
    paradigms = paradigms_of(rows.examples)
    found: list[Share] = []
    for method, own in rows.rows.items():
        # [example, layer, place]
        lying = torch.stack([_shares(row, place) for row, place in zip(own, places, strict=True)])
        means = {
            paradigm: estimates(lying[numbers].flatten(1).numpy(), interval) for paradigm, numbers in paradigms.items()
        }
        for index, layer in enumerate(rows.layers):
            for paradigm, numbers in paradigms.items():
                for which_place, place in enumerate(PLACES):
                    share = means[paradigm][index * len(PLACES) + which_place]
                    assert share is not None, "rows hold numbers only"
                    n_with = sum(place in places[number] for number in numbers)
                    found.append(Share(method, layer, paradigm, place, share, n_with))
    empty = {method: sum(int((row == 0).all(dim=-1).sum()) for row in own) for method, own in rows.rows.items()}
    settings = {
        **rows.settings,
        "which": which,
        "confidence": interval.confidence,
        "resamples": interval.resamples,
    }
    return Mass(tuple(found), empty, rows.left_out, rows.skipped, settings)


def places_of(each: TokenizedExample, which: WhichPieces) -> tuple[Place, ...]:
    """What each position of an example is; a cue that is the last position before a target stays a cue."""
    cue, attractor = set(each.cue(which)), set(each.attractor(which))

    def place(position: int) -> Place:
        if position in cue:
            return "cue"
        if position in attractor:
            return "attractor"
        if each.encoding.special[position]:
            return "special"
        return "target" if position == each.dest else "rest"

    return tuple(place(position) for position in range(len(each)))


def _shares(row: Float[Tensor, "layer src"], places: Sequence[Place]) -> Float[Tensor, "layer place"]:
    return torch.stack(
        [row[:, [position for position, each in enumerate(places) if each == place]].sum(dim=1) for place in PLACES],
        dim=1,
    )
