"""What a Scores hands to a notebook, a terminal and plain Python."""

import re
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import plotly.io as pio
import pytest
import torch
from support.made_up import ODD_TOKENS, PIECES, made_up_effect, made_up_scores

from tl_vzero.plot import export
from tl_vzero.plot.export import notebook_bundle

PLOTLY_MIME = "application/vnd.plotly.v1+json"


@pytest.fixture
def ipython(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a stand-in for IPython in place, whose shell the test chooses; counts plotly.js being loaded."""
    loads: list[str] = []

    class Renderer:
        def activate(self) -> None:
            loads.append("plotly.js")

    def run_in(shell: object) -> list[str]:
        module = ModuleType("IPython")
        module.get_ipython = lambda: shell  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "IPython", module)
        return loads

    renderers = {"notebook": Renderer(), "plotly_mimetype": pio.renderers["plotly_mimetype"]}
    monkeypatch.setattr(export, "pio", SimpleNamespace(renderers=renderers))
    monkeypatch.setattr(export, "_loaded_for", set())
    return run_in


def scripts_from_elsewhere(html: str) -> list[str]:
    return re.findall(r"<script[^>]*\ssrc=|<link\b|@import", html)


def test_plain_python_gets_html_that_stands_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "IPython", raising=False)
    scores = made_up_scores()
    bundle = notebook_bundle(scores)
    assert bundle["text/plain"] == repr(scores)
    assert len(bundle[PLOTLY_MIME]["layout"]["sliders"][0]["steps"]) == 3
    assert len(bundle["text/html"]) > 1_000_000
    assert not scripts_from_elsewhere(bundle["text/html"])


def test_a_notebook_gets_plotly_once_and_small_html_each_time(ipython: Any) -> None:
    loads = ipython(SimpleNamespace(kernel=object()))
    bundles = [notebook_bundle(made_up_scores()) for _ in range(3)]
    assert loads == ["plotly.js"]
    for bundle in bundles:
        assert len(bundle["text/html"]) < 50_000
        assert "Plotly.newPlot" in bundle["text/html"]
        assert not scripts_from_elsewhere(bundle["text/html"])
        assert PLOTLY_MIME in bundle


def test_a_terminal_gets_text_only(ipython: Any) -> None:
    loads = ipython(SimpleNamespace())
    assert set(notebook_bundle(made_up_scores())) == {"text/plain"}
    assert not loads


def test_scores_per_head_show_all_heads_of_a_layer() -> None:
    scores = made_up_scores(values=torch.rand(3, 2, len(PIECES), len(PIECES)), heads=(0, 1))
    figure = notebook_bundle(scores)[PLOTLY_MIME]
    assert [annotation["text"] for annotation in figure["layout"]["annotations"]] == ["head 0", "head 1"]


def test_scores_show_themselves(ipython: Any) -> None:
    ipython(SimpleNamespace(kernel=object()))
    assert set(made_up_scores()._repr_mimebundle_()) == {"text/plain", "text/html", PLOTLY_MIME}


def test_scores_show_shares_on_their_most_telling_layer() -> None:
    values = torch.full((3, len(PIECES), len(PIECES)), 0.1)
    values[1, 4, 2] = 7
    layout = notebook_bundle(made_up_scores(values=values, metadata={"model": "<b>mini"}))[PLOTLY_MIME]["layout"]
    assert layout["sliders"][0]["active"] == 1
    assert layout["title"]["text"] == "Value Zeroing: shares of each row, &lt;b&gt;mini"
    signed = notebook_bundle(made_up_scores(values=values - 0.5))[PLOTLY_MIME]["layout"]
    assert signed["title"]["text"].startswith("Value Zeroing: raw") and signed["coloraxis"]["cmin"] < 0


def test_effects_show_themselves(ipython: Any) -> None:
    scores = made_up_scores(ODD_TOKENS)
    effect = made_up_effect(scores, 4)
    bundle = effect._repr_mimebundle_()
    assert bundle["text/plain"] == repr(effect) and len(repr(effect)) < 400
    assert bundle[PLOTLY_MIME]["layout"]["title"]["text"] == "Effect of zeroing a value on the prediction"
    ipython(SimpleNamespace(kernel=object()))
    by_head = made_up_effect(scores, 4, values=torch.rand(3, 2, len(ODD_TOKENS)), heads=(0, 1))
    html = by_head._repr_mimebundle_()["text/html"]
    assert "<table" in html and "&lt;script&gt;" in html and "<script" not in html
    assert by_head.to_frame()["value"].tolist() == by_head.values.flatten().tolist()
