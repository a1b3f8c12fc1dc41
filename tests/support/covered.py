"""What is measured of every row of the tables of architectures; the coverage table is made of it."""

import copy
from importlib.metadata import version
from itertools import product
from typing import Any

import torch
from support import mixed_rows, paired, signal_rows
from support.architecture_row import IDS, LINE, Architecture
from support.architectures import ARCHITECTURES, reference
from support.decoder_rows import MENDED
from support.engines import ENGINES
from support.mixed_rows import MIXED, Mixed
from support.models import bridge, loaded
from support.paired import HEARD, PAIRED, STACKS, WRITTEN, Paired
from support.references import row_normalized
from support.refused_rows import REFUSED
from support.signal_rows import SIGNALS, SignalRow, own_bridge
from torch import Tensor

import tl_vzero
from tl_vzero import Scores
from tl_vzero.errors import TLVZeroError

RAW_FROM = 1e-7
# A measurement is recorded as the next of these above it and a half: what another machine's rounding may bring.
STEPS = [step * 10.0**power for power in range(-8, 0) for step in (1, 2, 5)]
# What must hold, whatever was measured.
NORMALISED, RAW = 5e-6, 1e-3

Row = Architecture | Paired | SignalRow
_BRIDGED = {name: row for name, row in PAIRED.items() if row.lines}  # one is of a class of TransformerLens 3.9
ROWS: dict[str, Row] = {**ARCHITECTURES, **_BRIDGED, **HEARD, **SIGNALS, **MIXED}
ONE_STACK = ("one",)
# What tests of other classes of TransformerLens than its bridge show.
ALSO_HELD = {"T5": "a HookedEncoderDecoder of TransformerLens 3.9 is scored"}


def errors_of(scores: Scores, expected: Tensor) -> tuple[float, float]:
    """The largest error of a normalised map, and the largest relative error of raw distances of at least 1e-7."""
    measured, felt = scores.values.double(), expected >= RAW_FROM
    normalised = (scores.normalized().values.double() - row_normalized(expected)).abs().max()
    raw = ((measured - expected).abs() / expected)[felt].max()
    return normalised.item(), raw.item()


def with_attention(row: Row, attention: str) -> Any:
    """What load_model makes of a row, or a bridge of the user's own with fused attention."""
    if isinstance(row, Mixed):
        return row.loaded(attention)
    if attention == "eager":
        return loaded(row.tiny())
    if isinstance(row, SignalRow) or row.name in HEARD:
        return own_bridge(row.tiny(), attention)
    fused = copy.deepcopy(row.tiny())
    fused.set_attn_implementation(attention)
    model = loaded(row.tiny()) if row.name in MENDED else bridge(fused)
    # TransformerLens 4 boots with eager attention, whatever the model had.
    model.original_model.set_attn_implementation(attention)
    assert model.original_model.config._attn_implementation == attention
    return model


def stacks_of(row: Row) -> tuple[str, ...]:
    """The stacks of blocks that are scored."""
    return STACKS if isinstance(row, Paired) else ONE_STACK


def attentions_of(row: Row) -> tuple[str, ...]:
    """The attention implementations that are tested."""
    return ("eager", "sdpa") if row.tiny()._supports_sdpa else ("eager",)


def heads_of(row: Row) -> str:
    """What a head of the values is."""
    if not isinstance(row, Architecture):
        return "query heads"
    query_heads, value_heads = row.heads()
    return "query heads" if query_heads == value_heads else "one for all" if value_heads == 1 else "grouped"


def scored(row: Row, model: Any, stack: str, engine: str) -> tuple[Scores, Tensor]:
    """Scores of a row's sentence, and what they should be."""
    if isinstance(row, Mixed):
        scores, expected = tl_vzero.value_zeroing(model, row.read(), engine=engine), mixed_rows.reference(row.name)
    elif isinstance(row, Architecture):
        scores, expected = tl_vzero.value_zeroing(model, torch.tensor(IDS), engine=engine), reference(row.name)
    elif isinstance(row, SignalRow):
        scores, expected = tl_vzero.value_zeroing(model, row.signal, engine=engine), signal_rows.reference(row.name)
    else:
        chosen: dict[str, Any] = {} if stack == "encoder" else {"decoder_inputs": torch.tensor(WRITTEN)}
        scores = tl_vzero.value_zeroing(model, row.read, stack=stack, engine=engine, **chosen)
        expected = paired.reference(row.name, stack)
    assert isinstance(scores, Scores)
    return scores, expected


def measured(row: Row) -> dict[str, Any]:
    """A row's entry in the coverage table for this TransformerLens line."""
    worst, routes = (0.0, 0.0), set()
    for attention in attentions_of(row):
        try:
            model = with_attention(row, attention)
            results = [scored(row, model, *which) for which in product(stacks_of(row), ENGINES)]
        except TLVZeroError as error:
            return {"refused": "; ".join(filter(None, [_in_short(error), ALSO_HELD.get(row.name)]))}
        for scores, expected in results:
            worst = tuple(map(max, worst, errors_of(scores, expected)))
            if scores.metadata["options"]["engine"] == "auto":
                routes.add(route_of(scores))
    return {
        "adapter": adapter_of(row),
        "route": " or ".join(sorted(routes)),
        "attention": list(attentions_of(row)),
        "normalised": recorded(worst[0], NORMALISED),
        "raw": recorded(worst[1], RAW),
    }


def refused() -> dict[str, dict[str, Any]]:
    """The entries of what is read by TransformerLens and refused here, for this line."""
    entries = {}
    for row in REFUSED:
        hf_model = row.build()
        try:
            loaded(hf_model)
        except TLVZeroError as error:
            entries[row.name] = {"class": type(hf_model).__name__, "refused": _in_short(error)}
    return entries


def route_of(scores: Scores) -> str:
    """How `engine="auto"` computed: the closed form, its block modules, or hooks."""
    if scores.metadata["engine"] == "hooks":
        return "hooks"
    return "modules" if "modules" in scores.metadata["routes"] else "closed form"


def adapter_of(row: Row) -> str:
    """Whose adapter reads a row's class: TransformerLens's or tl_vzero's."""
    from transformer_lens.factories.architecture_adapter_factory import SUPPORTED_ARCHITECTURES

    return (
        "tl_vzero"
        if SUPPORTED_ARCHITECTURES[type(row.tiny()).__name__].__module__.startswith("tl_vzero")
        else "TransformerLens"
    )


def recorded(error: float, allowed: float) -> float:
    """The bound that is written down for a measured error."""
    assert error <= allowed, f"off by {error:.2e}, allowed {allowed:.0e}"
    return min(allowed, next(float(f"{step:.0e}") for step in STEPS if step >= 1.5 * error))


def _in_short(error: TLVZeroError) -> str:
    """The reason, without the version that gave it and what to do about it."""
    text = str(error).replace(f"TransformerLens {version('transformer-lens')}", "TransformerLens")
    return text.partition(": expected ")[0].partition("; expected")[0]


def line_entry() -> tuple[str, dict[str, str]]:
    """This TransformerLens line, and the versions that were measured with."""
    return LINE, {name: version(name) for name in ("transformer-lens", "torch", "transformers")}
