"""Attention knockout: against one run for each source and window, laws, choices, and what is refused."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
import torch
from support.effects import TARGET, TEXT, double_model, ids_of_text
from support.models import MOST_ROUTES, is_causal
from support.state import left_as_found, type_checks_off
from torch import Tensor

import tl_vzero
from tl_vzero.errors import InputError
from tl_vzero.models.run import eager_attention

IDS = ids_of_text(TEXT)
GOOD = 16
SOURCES = [0, 3, TARGET, 7]
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
each_route = pytest.mark.parametrize(("route", "architecture"), MOST_ROUTES)


@torch.no_grad()
def one_by_one(
    model: Any, sources: Sequence[int], destinations: Sequence[int], window: Sequence[int], renormalise: bool = False
) -> Tensor:
    """The logits with the destinations cut off from the sources: block after block, each in runs of its own.

    z of a block without sources is read where their values are zeroed, the weight that is left from the pattern.
    """
    rows: dict[int, Tensor] = {}

    def put(z: Tensor, hook: Any, layer: int) -> Tensor:
        z = z.clone()
        z[:, destinations] = rows[layer]
        return z

    def zero(value: Tensor, hook: Any) -> Tensor:
        value = value.clone()
        value[:, sources] = 0
        return value

    def run(*hooks: Any) -> Tensor:
        earlier = [(f"blocks.{layer}.attn.hook_z", partial(put, layer=layer)) for layer in rows]
        with eager_attention(model):
            return model.run_with_hooks(IDS.reshape(1, -1), fwd_hooks=[*earlier, *hooks])

    for layer in window:
        z, pattern = [], []
        name = f"blocks.{layer}.attn"
        run(
            (f"{name}.hook_v", zero),
            (f"{name}.hook_z", lambda activation, hook, z=z: z.append(activation.clone())),
            (f"{name}.hook_pattern", lambda activation, hook, pattern=pattern: pattern.append(activation.clone())),
        )
        rows[layer] = z[0][:, destinations]
        if renormalise:
            gone = pattern[0][:, :, destinations][..., sources].sum(-1)
            rows[layer] = rows[layer] / (1 - gone).transpose(1, 2)[..., None]
    return run()


def table(model: Any, window: int | None, destinations: Sequence[int] = (TARGET,), **options: Any) -> Tensor:
    """The effects on the logit of SOURCES, `[layer, src]`."""
    clean = one_by_one(model, [], [TARGET], [])[0, TARGET, GOOD]
    stops = [(layer, 3 if window is None else layer + window) for layer in range(3)]
    return torch.stack(
        [
            torch.stack(
                [
                    one_by_one(model, [source], destinations, range(layer, stop), **options)[0, TARGET, GOOD] - clean
                    for source in SOURCES
                ]
            )
            for layer, stop in stops
            if stop <= 3
        ]
    )


@pytest.mark.parametrize("window", [1, 2, None])
@each_route
def test_each_source_and_window_as_in_a_run_of_its_own(route: str, architecture: str, window: int | None) -> None:
    model = double_model(route, architecture)
    with left_as_found(model):
        effect = tl_vzero.attention_knockout(model, TEXT, target=TARGET, target_ids=GOOD, window=window)
    torch.testing.assert_close(effect.values[:, SOURCES], table(model, window), **CLOSE)
    assert effect.layers == tuple(range(2 if window == 2 else 3))
    assert (effect.method, effect.metadata["window"]) == ("attention_knockout", window)
    assert not is_causal(architecture) or not effect.values[:, TARGET + 1 :].any()


@each_route
def test_renormalised(route: str, architecture: str) -> None:
    model, behind = double_model(route, architecture), [TARGET, len(IDS) - 1]
    options: dict[str, Any] = {"target": TARGET, "target_ids": GOOD, "renormalise": True}
    effect = tl_vzero.attention_knockout(model, TEXT, destinations=behind, window=None, **options)
    torch.testing.assert_close(effect.values[:, SOURCES], table(model, None, behind, renormalise=True), **CLOSE)


@each_route
def test_cut_off_from_all_but_itself_and_renormalised_a_token_reads_its_value_alone(
    route: str, architecture: str
) -> None:
    model = double_model(route, architecture)
    others = [position for position in range(len(IDS)) if position != TARGET]
    options: dict[str, Any] = {"spans": [others], "layers": 0, "window": None, "renormalise": True}
    effect = tl_vzero.attention_knockout(model, TEXT, target=TARGET, target_ids=GOOD, **options)
    hooks: list[Any] = []
    for layer in range(3):
        values: list[Tensor] = []

        def keep(value: Tensor, hook: Any, values: list[Tensor] = values) -> None:
            values.append(value[:, TARGET])

        def read_itself(z: Tensor, hook: Any, values: list[Tensor] = values) -> Tensor:
            z = z.clone()
            z[:, TARGET] = values[0].repeat_interleave(z.shape[2] // values[0].shape[1], dim=1)
            return z

        hooks += [(f"blocks.{layer}.attn.hook_v", keep), (f"blocks.{layer}.attn.hook_z", read_itself)]
    with torch.no_grad():
        restricted = model.run_with_hooks(IDS.reshape(1, -1), fwd_hooks=hooks)[0, TARGET, GOOD].item()
    assert effect.values.shape == (1, 1)
    assert effect.clean + effect.values.item() == pytest.approx(restricted, abs=1e-5)
    assert effect.metadata["src_spans"] == [others]


def test_values_of_nothing_are_cut_without_an_effect() -> None:
    model = double_model("load_model", "gpt2")
    hooks = [(f"blocks.{layer}.attn.hook_v", lambda value, hook: 0 * value) for layer in range(3)]
    with model.hooks(fwd_hooks=hooks):
        effect = tl_vzero.attention_knockout(model, TEXT, target=TARGET, target_ids=GOOD, window=None)
    torch.testing.assert_close(effect.values, torch.zeros_like(effect.values), **CLOSE)


@pytest.mark.parametrize("architecture", ["bert", "gpt2"])
@pytest.mark.parametrize("window", [1, None])
def test_the_way_makes_no_difference(architecture: str, window: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of any size, a metric that reads all logits, and copies that run from the first block on."""
    model = double_model("load_model", architecture)
    options: dict[str, Any] = {"target": TARGET, "window": window, "destinations": [TARGET, 7]}
    expected = tl_vzero.attention_knockout(model, TEXT, target_ids=GOOD, **options).values

    def good(logits: Tensor) -> Tensor:
        assert logits.shape[:2] == (1, len(IDS))
        return logits[0, TARGET, GOOD]

    for way in ({"target_ids": GOOD, "batch_size": 7}, {"metric": good}):
        torch.testing.assert_close(tl_vzero.attention_knockout(model, TEXT, **way, **options).values, expected, **CLOSE)
    monkeypatch.setattr("tl_vzero.effects.knockout.has_user_hooks", lambda model: True)
    plain = tl_vzero.attention_knockout(model, TEXT, target_ids=GOOD, **options).values
    torch.testing.assert_close(plain, expected, **CLOSE)


def test_a_part_of_a_pair() -> None:
    """Segments are read by all copies; chosen windows and sources are parts of the whole."""
    model, pair = tl_vzero.load_model("agreement-mini"), ("the hat is near.", "the authors [MASK] today.")
    whole = tl_vzero.attention_knockout(model, pair, window=2)
    part = tl_vzero.attention_knockout(model, pair, window=2, layers=[2, 0], sources=["authors", -1, 1])
    place = list(whole.src_tokens).index("authors")
    expected = whole.values[[2, 0]][:, [place, len(whole.src_tokens) - 1, 1]]
    torch.testing.assert_close(part.values, expected, rtol=1e-4, atol=1e-5)
    assert (part.layers, part.metadata["window"], part.metadata["destinations"]) == ((2, 0), 2, [part.target])
    assert part.metadata["token_types"] and "Attention knockout" in part.plot().layout.title.text


BAD: list[tuple[str, dict[str, Any], tuple[str, ...]]] = [
    ("later_source", {"sources": [2, 9]}, ("[[9]]", "not attended to", "destinations [5]")),
    ("long_window", {"window": 4}, ("window of 4 layers", "3 layers")),
    ("window_past_the_end", {"window": 2, "layers": [0, 2]}, ("2 layers", "at layer 2", "0 to 1")),
    ("no_window", {"window": 0}, ("window is 0", "at least 1")),
    ("both", {"sources": 1, "spans": [[1, 2]]}, ("sources and spans",)),
    ("nothing_left", {"spans": [[0, 1, 2, 3, 4, 5]], "renormalise": True}, ("nothing is left", "destination 5")),
    ("no_span", {"spans": [None]}, ("spans is [None]", "at least one span")),
    ("no_source", {"sources": []}, ("sources is empty",)),
    ("no_destination", {"destinations": []}, ("destinations is empty",)),
    ("destination", {"destinations": [99]}, ("destinations holds 99", "0 to 9")),
]


@pytest.mark.parametrize(("options", "mentions"), [pytest.param(*rest, id=name) for name, *rest in BAD])
def test_refused(options: dict[str, Any], mentions: tuple[str, ...]) -> None:
    model = double_model("load_model", "gpt2")
    with type_checks_off(), left_as_found(model), pytest.raises(InputError) as caught:
        tl_vzero.attention_knockout(model, TEXT, target=TARGET, **options)
    for mention in mentions:
        assert mention in str(caught.value)
