"""The panels of a report's page beside its heat maps: sentence, small maps and flow graph; and the page's layout."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from plotly.offline import get_plotlyjs
from support.flows import left_over, on_a_path, strongest_path, ways_down
from support.made_up import made_up_report
from support.opened import Opened, contrast, four_digits, in_percent, ramp_colour, rgb_of

import tl_vzero
from tl_vzero.plot.flows import THRESHOLDS
from tl_vzero.plot.theme import DARK, LIGHT
from tl_vzero.report import Report, make_report

pytestmark = pytest.mark.browser

THEMES = {"light": LIGHT, "dark": DARK}
SIDES = {"value_zeroing": "value_zeroing", "beside": "attention"}
DRAWN = "#map-beside .heatmaplayer image"
SHARED_PAGE_BYTES = 300_000
STEP = 3  # of 255: the page has 256 shades, and its values 4 digits
Show = Callable[..., Opened]


def colours(opened: Opened, box: str) -> list[tuple[list[float], list[float]]]:
    """Background and text colour of every token, as they are drawn; what is see-through shows the panel."""
    read: list[Any] = opened.page.evaluate(
        """id => {
            const channels = (text) => text.match(/[\\d.]+/g).map(Number);
            const panel = channels(getComputedStyle(document.querySelector('.panel')).backgroundColor);
            return [...document.getElementById(id).children].map((token) => {
                const { backgroundColor, color } = getComputedStyle(token);
                const own = channels(backgroundColor);
                return [own[3] === 0 ? panel : own, channels(color)];
            });
        }""",
        box,
    )
    return [(background[:3], ink[:3]) for background, ink in read]


def assert_shades(shown: list[Any], values: list[float], theme: str) -> None:
    for colour, value in zip(shown, values, strict=True):
        assert colour == pytest.approx(ramp_colour(THEMES[theme], value / max(values)), abs=STEP)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_tokens_have_the_colours_of_their_shares(show: Show, agreement_report: Report, scheme: str) -> None:
    opened = show(agreement_report, scheme=scheme)
    target = opened.json["target"]["position"]
    for layer in range(len(opened.json["value_zeroing"]["layers"])):
        opened.page.locator("#layer").fill(str(layer))
        for side, method in SIDES.items():
            row = opened.json[method]["pieces"]["normalized"][layer][target]
            shown = [background for background, _ in colours(opened, f"text-{side}")]
            assert_shades(shown, row, scheme)
            assert shown[row.index(max(row))] == list(rgb_of(THEMES[scheme].sequential[-1]))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_token_can_be_read(show: Show, minilm_report: Report, scheme: str) -> None:
    opened = show(minilm_report, scheme=scheme)
    for layer in (0, 5):
        opened.page.locator("#layer").fill(str(layer))
        for token in range(len(opened.json["tokens"])):
            opened.page.locator("#text-value_zeroing button").nth(token).click()
            for side in SIDES:
                assert min(contrast(*pair) for pair in colours(opened, f"text-{side}")) >= 4.5


def test_a_row_that_a_method_lacks_has_no_colours(show: Show) -> None:
    pytest.importorskip("captum")
    text = "the pictures of some hat [MASK] scaring marcus."
    opened = show(make_report(tl_vzero.load_model("agreement-mini"), text, methods=["gradient_x_input"]))
    panel = list(rgb_of(LIGHT.panel))
    assert panel not in [background for background, _ in colours(opened, "text-beside")]
    opened.page.locator("#text-value_zeroing button").nth(1).click()
    shown = colours(opened, "text-beside")
    assert {tuple(background) for background, _ in shown} == {rgb_of(LIGHT.panel)}
    assert min(contrast(*pair) for pair in shown) >= 4.5
    assert panel not in [background for background, _ in colours(opened, "text-value_zeroing")]


def nodes(opened: Opened) -> list[list[float]]:
    """The share of each token on each level of the flow graph, from the areas of its nodes; the lowest level first."""
    trace = opened.page.evaluate(
        "() => { const { x, y, marker } = document.getElementById('flow').data.at(-1); return [x, y, marker.size]; }"
    )
    levels: dict[int, dict[int, float]] = {}
    for token, level, size in zip(*trace, strict=True):
        levels.setdefault(level, {})[token] = ((size - 4) / 18) ** 2
    return [[levels[level][token] for token in sorted(levels[level])] for level in sorted(levels)]


def assert_chosen_everywhere(opened: Opened, row: int, layer: int | None = None) -> None:
    layer = opened.telling_layer if layer is None else layer
    pieces = opened.json["value_zeroing"]["pieces"]
    token = pieces["dest_tokens"][row]
    assert opened.page.locator("#destination").input_value() == str(row)
    assert opened.chosen("text-value_zeroing") == opened.chosen("text-beside") == row
    assert opened.outlined("map-value_zeroing") == opened.outlined("map-beside") == row
    assert opened.outlined("row") == layer
    assert opened.trace("row")["z"] == four_digits([values[row] for values in pieces["normalized"]])
    assert set(opened.page.locator(".chosen-name").all_text_contents()) == {f"“{token}” (position {row})"}
    assert nodes(opened)[-1] == [float(token == row) for token in range(len(pieces["dest_tokens"]))]
    assert f"Destination {token} (position {row}), layer {layer}" in (
        opened.page.locator("#numbers-caption").text_content() or ""
    )
    largest = max(pieces["normalized"][layer][row])
    source = pieces["src_tokens"][pieces["normalized"][layer][row].index(largest)]
    said = (opened.page.locator("#text-summary").text_content() or "").replace("\u2068", "").replace("\u2069", "")
    assert said.startswith(f"In layer {layer}, Value Zeroing: most from {source} ({in_percent(largest)})")


def test_a_token_is_chosen_everywhere_by_a_click_or_by_arrow_keys(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    assert_chosen_everywhere(opened, 6)
    opened.page.locator("#text-value_zeroing button").nth(3).click()
    assert_chosen_everywhere(opened, 3)
    for key, row in (("ArrowRight", 4), ("ArrowDown", 5), ("ArrowLeft", 4), ("ArrowUp", 3)):
        opened.page.keyboard.press(key)
        assert_chosen_everywhere(opened, row)
    opened.page.locator("#text-beside > *").nth(9).click()
    assert_chosen_everywhere(opened, 9)
    opened.page.locator("#text-value_zeroing button").last.click()
    opened.page.keyboard.press("ArrowRight")  # there is nothing beyond the last
    assert_chosen_everywhere(opened, 10)


def test_pieces_of_a_word_join_and_words_are_chosen_whole(show: Show, minilm_report: Report) -> None:
    opened = show(minilm_report)
    opened.page.locator("#layer").fill("0")
    tokens = opened.page.locator("#text-value_zeroing button")
    assert [text for text in tokens.all_text_contents() if text in ("scar", "ing")] == ["scar", "ing"]
    assert opened.page.locator("#text-value_zeroing .joins").all_text_contents() == ["ing"]
    opened.page.locator("label:has-text('words')").click()
    assert "scaring" in tokens.all_text_contents()
    tokens.filter(has_text="scaring").click()
    words = opened.json["value_zeroing"]["words"]
    row = words["dest_tokens"].index("scaring")
    assert opened.outlined("map-value_zeroing") == opened.chosen("text-value_zeroing") == row
    assert opened.trace("row")["z"] == four_digits([layer[row] for layer in words["normalized"]])
    assert_shades(
        [background for background, _ in colours(opened, "text-value_zeroing")], words["normalized"][0][row], "light"
    )
    opened.page.locator("label:has-text('pieces')").click()
    assert opened.chosen("text-value_zeroing") == opened.json["tokens"].index("scar")


def pixels(opened: Opened, side: str, layer: int) -> list[list[list[int]]]:
    read: list[list[list[int]]] = opened.page.evaluate(
        """([id, layer]) => {
            const canvas = document.querySelectorAll(`#${id} canvas`)[layer];
            const { width: wide, height: high } = canvas;
            const copy = Object.assign(document.createElement('canvas'), { width: wide, height: high });
            const context = copy.getContext('2d', { willReadFrequently: true });
            context.drawImage(canvas, 0, 0);
            const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
            return Array.from({ length: height }, (_, y) => Array.from({ length: width }, (_, x) => {
                const at = 4 * (y * width + x);
                return [...data.slice(at, at + 4)];
            }));
        }""",
        [f"strip-{side}", layer],
    )
    return read


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_small_picture_is_its_layers_map(show: Show, agreement_report: Report, scheme: str) -> None:
    opened = show(agreement_report, scheme=scheme)
    for view, stage in (("per layer", "normalized"), ("rollout", "rollout")):
        opened.page.locator(f"label:has-text('{view}')").click()
        for side, method in SIDES.items():
            layers = opened.json[method]["pieces"][stage]
            assert opened.page.locator(f"#strip-{side} > *").count() == len(layers)
            for layer, grid in enumerate(layers):
                shown = pixels(opened, side, layer)
                assert {pixel[3] for row in shown for pixel in row} == {255}
                flat = [value for row in grid for value in row]
                assert_shades([pixel[:3] for row in shown for pixel in row], flat, scheme)


def test_a_small_picture_chooses_its_layer(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    normalized = opened.json["value_zeroing"]["pieces"]["normalized"]
    opened.page.locator("#strip-value_zeroing button").nth(2).click()
    assert_chosen_everywhere(opened, 6, layer=2)
    assert opened.trace("map-value_zeroing")["z"] == four_digits(normalized[2])
    assert opened.page.locator("#layer").input_value() == "2"
    opened.page.keyboard.press("ArrowRight")
    assert_chosen_everywhere(opened, 6, layer=3)
    opened.page.locator("#strip-beside > *").first.click()
    assert_chosen_everywhere(opened, 6, layer=0)
    assert opened.chosen("strip-value_zeroing") == opened.chosen("strip-beside") == 0


def shares_by_loops(maps: list[list[list[float]]], row: int) -> list[list[list[float]]]:
    """How much of all that reaches a destination goes from source into dest in a layer, followed down from the top."""
    size = len(maps[0])
    reached = [float(token == row) for token in range(size)]
    shares = []
    for layer in reversed(maps):
        shares.insert(0, [[reached[dest] * value for value in layer[dest]] for dest in range(size)])
        reached = [sum(shares[0][dest][source] for dest in range(size)) for source in range(size)]
    return shares


def shown_shares(opened: Opened, row: int) -> list[list[list[float]]]:
    """The same of the page's own numbers, which have 4 digits."""
    return shares_by_loops(four_digits(opened.json["value_zeroing"]["pieces"]["normalized"]), row)


def drawn_edges(opened: Opened) -> dict[tuple[int, int, int], float]:
    """The edges that have a point for the pointer: (layer, dest, source) and the share that it shows."""
    edges = {}
    for percent, source, dest, layer in opened.page.evaluate(
        "() => document.getElementById('flow').data.at(-2).customdata"
    ):
        place = [int(re.search(r"position (\d+)", text)[1]) for text in (dest, source)]  # type: ignore[index]
        edges[layer, place[0], place[1]] = float(percent.removesuffix(" %")) / 100
    return edges


def curves(opened: Opened) -> int:
    """How many curves are drawn; None parts one from the next."""
    read: int = opened.page.evaluate(
        """() => document.getElementById('flow').data
            .filter(({ mode, line }) => mode === 'lines' && line.dash !== 'dot')
            .reduce((sum, { x }) => sum + [...x].filter((at) => at === null || Number.isNaN(at)).length, 0)"""
    )
    return read


def stubs(opened: Opened) -> dict[tuple[int, int], float]:
    """The stubs that are drawn: (level, token) and the share that the pointer shows."""
    x, y, shown, text = opened.page.evaluate(
        "() => (({ x, y, customdata, text }) => [[...x], [...y], customdata, text])"
        "(document.getElementById('flow').data[1])"
    )
    shares = [float(share.removesuffix(" %")) / 100 for share, _ in shown]
    written = opened.page.locator("#flow .textpoint").all_text_contents()
    assert [label.strip() for label in written] == [label.strip() for label in text]
    return {(round(at + 0.3), round(token - 0.3)): share for at, token, share in zip(y, x, shares, strict=True)}


def assert_flow(opened: Opened, row: int, threshold: float, top: int | None) -> None:
    """Lines, stubs and coloured tokens are those of the rule, written out path by path."""
    shares = shown_shares(opened, row)
    edges = on_a_path(ways_down(shares, row, threshold, top))
    shown = drawn_edges(opened)
    assert set(shown) == edges and curves(opened) == len(edges)
    for (layer, dest, source), share in shown.items():
        assert share == pytest.approx(shares[layer][dest][source], rel=7e-3)
    expected = left_over(shares, edges)
    drawn = stubs(opened)
    assert drawn == pytest.approx({place: expected[place] for place in drawn}, rel=7e-3)
    assert all(share < 0.00101 for place, share in expected.items() if place not in drawn)


def test_the_flow_is_the_rollout_taken_apart(show: Show, minilm_report: Report) -> None:
    opened = show(minilm_report)
    data = opened.json["value_zeroing"]
    row = opened.json["tokens"].index("scar")
    opened.page.locator("#text-value_zeroing button").nth(row).click()
    assert nodes(opened)[0] == pytest.approx(data["pieces"]["rollout"][-1][row], abs=2e-4)
    for level in nodes(opened):
        assert sum(level) == pytest.approx(1, abs=1e-3)
    for layer in shares_by_loops(data["pieces"]["normalized"], row):
        assert sum(map(sum, layer)) == pytest.approx(1, abs=1e-5)
    assert_flow(opened, row, 0.03, 3)
    opened.page.locator("label:has-text('words')").click()
    word = data["words"]["dest_tokens"].index("scaring")
    assert nodes(opened)[0] == pytest.approx(data["words"]["rollout"][-1][word], abs=2e-4)


@pytest.mark.parametrize("top", ["1", "2", "3", "5", "all"])
def test_every_line_is_on_an_unbroken_path(show: Show, agreement_report: Report, top: str) -> None:
    opened = show(agreement_report)
    opened.page.locator("#top").select_option(top)
    for at in (0, 3, 9):
        opened.page.locator("#threshold").fill(str(at))
        assert_flow(opened, 6, THRESHOLDS[at], None if top == "all" else int(top))


def test_the_threshold_and_the_lines_of_a_token_are_chosen_by_keyboard(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    opened.page.locator("#threshold").focus()
    opened.page.keyboard.press("Home")
    for bound in THRESHOLDS:
        assert opened.page.locator("#threshold-name").text_content() == f"{100 * bound:g} %"
        assert_flow(opened, 6, bound, 3)
        opened.page.keyboard.press("ArrowRight")
    opened.page.locator("#top").focus()
    opened.page.keyboard.press("ArrowUp")
    assert_flow(opened, 6, THRESHOLDS[-1], 2)
    opened.page.locator("#text-value_zeroing button").nth(2).click()
    assert opened.page.locator("#threshold-name").text_content() == "50 %"  # another token leaves it as it is
    assert_flow(opened, 2, THRESHOLDS[-1], 2)


def lit(opened: Opened) -> list[tuple[int, int, int]]:
    """The edges that are lit: (layer, dest, source), the lowest first."""
    shapes = opened.page.evaluate("() => (document.getElementById('flow').layout.shapes ?? []).map(({ path }) => path)")
    ends = [re.fullmatch(r"M (\d+),(\d+) C .* (\d+),\d+", path) for path in shapes]
    return [(int(end[2]), int(end[3]), int(end[1])) for end in ends if end is not None]


def test_a_path_lights_up_where_the_pointer_is(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    shares = shown_shares(opened, 6)
    edges = on_a_path(ways_down(shares, 6, 0.03, 3))
    opened.page.locator("#flow").scroll_into_view_if_needed()
    # Where no other point is near: an edge into a token of its own.
    edge = min(edges, key=lambda one: (abs(one[1] - one[2]) != 1, one))
    layer, dest, source = edge
    place = opened.page.evaluate(
        """([x, y]) => {
            const flow = document.getElementById('flow');
            const { xaxis, yaxis } = flow._fullLayout;
            const { left, top } = flow.getBoundingClientRect();
            return [left + xaxis._offset + xaxis.l2p(x), top + yaxis._offset + yaxis.l2p(y)];
        }""",
        [(dest + source) / 2, layer + 0.5],
    )
    opened.page.mouse.move(*place)
    opened.page.wait_for_selector("#flow .hovertext")
    path = strongest_path(shares, edges, edge)
    assert lit(opened) == [(at, path[at + 1], path[at]) for at in range(len(shares))]
    assert opened.page.locator("#flow .hovertext").count() == 1  # the box stays
    opened.page.mouse.move(0, 0)
    opened.page.wait_for_function("document.getElementById('flow').layout.shapes.length === 0")


def test_a_path_lights_up_by_keyboard_and_is_read(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    shares = shown_shares(opened, 6)
    edges = on_a_path(ways_down(shares, 6, 0.03, 3))
    rolled = opened.json["value_zeroing"]["pieces"]["rollout"][-1][6]
    inputs = sorted({source for layer, _, source in edges if layer == 0}, key=lambda one: -rolled[one])[:4]
    tokens = opened.json["tokens"]
    buttons = opened.page.locator("#flow-paths button")
    assert [text.rsplit(" ", 2)[0] for text in buttons.all_text_contents()] == [tokens[one] for one in inputs]
    opened.page.locator("#top").focus()
    for token in inputs:
        opened.page.keyboard.press("Tab")
        first = max(
            (edge for edge in edges if edge[0] == 0 and edge[2] == token), key=lambda one: shares[0][one[1]][token]
        )
        path = strongest_path(shares, edges, first)
        assert lit(opened) == [(at, path[at + 1], path[at]) for at in range(len(shares))]
        told = (opened.page.locator("#flow-lit").text_content() or "").replace("\u2068", "").replace("\u2069", "")
        assert told == f"From the input up: {' → '.join(tokens[one] for one in path)}"
    opened.page.locator("#top").focus()
    assert lit(opened) == [] and opened.page.locator("#flow-lit").text_content() == ""


def test_a_node_chooses_its_token(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    opened.page.locator("#flow").scroll_into_view_if_needed()
    place = opened.page.evaluate(
        """() => {
            const flow = document.getElementById('flow');
            const { xaxis, yaxis } = flow._fullLayout;
            const { left, top } = flow.getBoundingClientRect();
            return [left + xaxis._offset + xaxis.l2p(2), top + yaxis._offset + yaxis.l2p(0)];
        }"""
    )
    opened.page.mouse.move(*place)
    box = opened.page.wait_for_selector("#flow .hovertext")
    assert "pictures · position 2" in box.text_content().replace("\xa0", " ")
    opened.page.mouse.click(*place)
    opened.page.wait_for_function("document.getElementById('destination').value === '2'")
    assert_chosen_everywhere(opened, 2)


def test_a_page_beside_plotly_is_small_and_works(
    open_page: Callable[..., tuple[Any, list[str]]], tmp_path: Path, agreement_report: Report
) -> None:
    html = agreement_report.to_html(shared_plotly=True)
    assert len(html.encode()) < SHARED_PAGE_BYTES
    (tmp_path / "plotly.min.js").write_text(get_plotlyjs(), encoding="utf-8")
    page, complaints = open_page(html, wait_for=DRAWN)
    assert_chosen_everywhere(Opened(page, agreement_report.to_dict(), complaints), 6)
    assert page.locator("#status").is_hidden()


def test_a_page_without_its_plotly_says_so(
    open_page: Callable[..., tuple[Any, list[str]]], agreement_report: Report
) -> None:
    page, complaints = open_page(agreement_report.to_html(shared_plotly=True), wait_for="#status:has-text('missing')")
    assert "plotly.min.js, which belongs beside this page, is missing" in page.locator("#status").text_content()
    assert page.locator(".panel:visible").count() == 0
    assert len(complaints) == 1 and "ERR_FILE_NOT_FOUND" in complaints[0]
    complaints.clear()


def test_every_choice_is_one_stop_of_the_tab_key(show: Show, agreement_report: Report) -> None:
    opened = show(agreement_report)
    stops = []
    for _ in range(130):
        opened.page.keyboard.press("Tab")
        stops.append(
            opened.page.evaluate(
                """() => {
                    const { activeElement: at } = document;
                    return at.closest('.tokens, .strip')?.id ?? (at.id || at.name || at.tagName.toLowerCase());
                }"""
            )
        )
        if stops[-1] == "body":
            break
    expected = [
        *("layer view unit destination itself special scale window text-value_zeroing method".split()),
        *("strip-value_zeroing summary effect threshold top".split()),
    ]
    assert [stop for stop in stops if stop in expected] == expected
    assert not {"text-beside", "strip-beside"} & set(stops)


LONG = [f"word{i}" if i % 3 else "an" for i in range(100)]


@pytest.fixture(scope="module")
def long_report() -> Report:
    return made_up_report(["[CLS]", *LONG, "[MASK]", "[SEP]"], layers=12)


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [420, 1280])
@pytest.mark.parametrize("which", ["agreement_report", "minilm_report", "long_report"])
def test_nothing_overlaps_or_leaves_its_panel(
    show: Show, request: pytest.FixtureRequest, which: str, width: int, scheme: str
) -> None:
    opened = show(request.getfixturevalue(which), width=width, scheme=scheme)
    assert opened.page.evaluate("document.documentElement.scrollWidth") <= width
    wrong = opened.page.evaluate(
        """() => {
            const name = (e) => e.id || e.className || e.textContent.slice(0, 20);
            const touch = ([a, one], [b, other]) => (!a.contains(b) && !b.contains(a) && one.left < other.right - 1
                && other.left < one.right - 1 && one.top < other.bottom - 1 && other.top < one.bottom - 1);
            const boxes = (selector) => [...document.querySelectorAll(selector)]
                .map((e) => [e, e.getBoundingClientRect()]).filter(([, box]) => box.width > 0);
            const overlaps = (selector) => boxes(selector).flatMap((one, i, all) => all.slice(i + 1)
                .filter((other) => touch(one, other)).map(([other]) => `${name(one[0])} and ${name(other)}`));
            const leaves = boxes('.panel :is(.token, .strip > *, .plot, p, h2, h3, dt, input, select)')
                .filter(([e, box]) => {
                    const panel = e.closest('.scroll, .panel').getBoundingClientRect();
                    return box.left < panel.left || box.right > panel.right + 1;
                }).map(([e]) => `${name(e)} leaves its panel`);
            const alone = ['header, main > :not(noscript), footer', '.token', '.strip > *', '.panel > *, .pair > *'];
            return [...leaves, ...alone.flatMap(overlaps)];
        }"""
    )
    assert wrong == []
