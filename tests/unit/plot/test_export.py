"""Figures to files: whole pages, one plotly for many, and clear words where a picture cannot be drawn."""

import sys
from base64 import b64decode
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from jaxtyping import TypeCheckError
from support.made_up import made_up_scores

import tl_vzero
from tl_vzero.errors import DependencyError, InputError, InputTypeError, OutputPathError
from tl_vzero.plot import export, heatmap, method_comparison, save_figure, text_view


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A stand-in for kaleido and for a browser; collects what it is given to draw."""
    calls: list[Any] = []

    def calc_fig_sync(figure: Any, opts: Any, kopts: Any) -> bytes:
        calls.append((figure, opts, kopts))
        return b"picture"

    kaleido = ModuleType("kaleido")
    kaleido.calc_fig_sync = calc_fig_sync  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "kaleido", kaleido)
    browser = tmp_path / "chromium"
    browser.write_text("")
    monkeypatch.setenv("BROWSER_PATH", str(browser))
    return calls


def test_a_page_stands_alone(tmp_path: Path) -> None:
    path = save_figure(heatmap(made_up_scores()), tmp_path / "map.html")
    page = path.read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>") and len(page) > 4_000_000
    assert [file.name for file in tmp_path.iterdir()] == ["map.html"]


def test_pages_share_one_plotly(tmp_path: Path) -> None:
    (tmp_path / "plotly.min.js").write_text("of another version")
    for name in ("one.html", "two.html"):
        page = save_figure(heatmap(made_up_scores()), tmp_path / name, shared_plotly=True)
        assert page.stat().st_size < 100_000
        assert 'src="plotly.min.js"' in page.read_text(encoding="utf-8")
        assert (tmp_path / "plotly.min.js").stat().st_size > 3_000_000


def test_the_text_view_is_a_page_without_plotly(tmp_path: Path) -> None:
    path = save_figure(text_view(made_up_scores()), tmp_path / "text.html")
    assert path.stat().st_size < 50_000


def test_the_text_view_is_a_picture_too_and_only_some_need_a_browser(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    view = text_view(made_up_scores())
    assert save_figure(view, tmp_path / "text.svg").read_text(encoding="utf-8") == view.to_svg()
    assert save_figure(view, tmp_path / "text.tex").read_text(encoding="utf-8") == view.to_latex()
    with pytest.raises(DependencyError, match="kaleido"):
        save_figure(view, tmp_path / "text.png")
    with pytest.raises(InputError, match=r"\.html, \.png, \.svg, \.pdf$"):
        save_figure(heatmap(made_up_scores()), tmp_path / "map.tex")


def test_kaleido_draws_the_picture_of_the_text_view(drawn: list[Any], tmp_path: Path) -> None:
    view = text_view(made_up_scores(), width=500)
    save_figure(view, tmp_path / "text.png")
    ((figure, options, _),) = drawn
    kind, data = figure["layout"]["images"][0]["source"].split(",")
    assert kind == "data:image/svg+xml;base64" and b64decode(data).decode() == view.to_svg()
    assert (options["width"], options["height"]) == (500, view.placed()["height"])


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_a_picture_has_no_slider_and_names_its_layer(drawn: list[Any], tmp_path: Path, ending: str) -> None:
    figure = heatmap(made_up_scores(), layer=1)
    path = save_figure(figure, tmp_path / f"map.{ending}", scale=3)
    assert path.read_bytes() == b"picture"
    ((figure_drawn, options, browser),) = drawn
    assert "sliders" not in figure_drawn["layout"]
    assert figure_drawn["layout"]["title"]["text"] == "Value Zeroing: raw scores"
    assert figure_drawn["layout"]["title"]["subtitle"]["text"].startswith("layer 1 · [CLS] the hat")
    assert options == {
        "format": ending,
        "width": figure.layout.width,
        "height": figure.layout.height,
        "scale": 3 if ending == "png" else 1,
    }
    assert browser["path"] == str(tmp_path / "chromium")
    assert figure.layout.sliders and "layer 1" not in figure.layout.title.subtitle.text


def test_a_picture_keeps_no_room_for_a_slider(drawn: list[Any], tmp_path: Path) -> None:
    several, one = made_up_scores(), made_up_scores().at_layer(0)
    for scores in (several, one):
        save_figure(method_comparison([scores, scores]), tmp_path / "maps.png")
    (with_slider, options, _), (without, same_options, _) = drawn
    assert options == same_options
    assert with_slider["layout"]["margin"] == without["layout"]["margin"]


def test_without_kaleido_the_error_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.raises(DependencyError, match=r"pip install '.*\[images\]'"):
        save_figure(heatmap(made_up_scores()), tmp_path / "map.png")
    monkeypatch.setitem(sys.modules, "kaleido", ModuleType("kaleido"))
    with pytest.raises(DependencyError, match="kaleido 1 or newer"):
        save_figure(heatmap(made_up_scores()), tmp_path / "map.png")
    assert not list(tmp_path.iterdir())


def test_without_a_browser_the_error_says_how(
    drawn: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("BROWSER_PATH", "CHROMIUM"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(export.shutil, "which", lambda name: None)
    with pytest.raises(DependencyError, match="set BROWSER_PATH"):
        save_figure(heatmap(made_up_scores()), tmp_path / "map.svg")


def test_a_path_that_cannot_be_written_is_refused_before_anything_is_drawn(drawn: list[Any], tmp_path: Path) -> None:
    figure = heatmap(made_up_scores())
    with pytest.raises(OutputPathError, match="does not exist"):
        save_figure(figure, tmp_path / "no" / "map.png")
    with pytest.raises(InputError, match=r"\.html, \.png, \.svg, \.pdf"):
        save_figure(figure, tmp_path / "map.jpeg")
    with pytest.raises(InputError, match="1 to 10"):
        save_figure(figure, tmp_path / "map.png", scale=0)
    with pytest.raises((InputTypeError, TypeCheckError)):
        save_figure(made_up_scores(), tmp_path / "map.png")  # type: ignore[arg-type]
    assert not drawn


def test_every_name_of_the_pictures_is_there_on_first_use() -> None:
    assert "plot" in dir(tl_vzero)
    for name in tl_vzero.plot.__all__:
        assert getattr(tl_vzero.plot, name) is not None
        assert name in dir(tl_vzero.plot)
    with pytest.raises(AttributeError, match="no_such_picture"):
        tl_vzero.plot.no_such_picture  # noqa: B018
    # A module of the same name would take a function's place once it is imported.
    modules = {path.stem for path in Path(tl_vzero.plot.__file__).parent.glob("*.py")}
    assert not modules & set(tl_vzero.plot.__all__)
