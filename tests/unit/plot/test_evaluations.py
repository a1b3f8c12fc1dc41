"""Figures of the evaluations, and the reproduction's page."""

import json
import re
from itertools import pairwise
from typing import Any

import pytest
from support.evaluated import alignment, faithfulness, knockout, mass, probing, removal, reproduction, training
from support.page import Page
from support.state import type_checks_off

from tl_vzero.errors import InputError
from tl_vzero.evaluate.findings import findings
from tl_vzero.plot.evaluations import (
    alignment_curves,
    compression_curves,
    control_curves,
    faithfulness_bars,
    knockout_curves,
    mass_bars,
    removal_curves,
    training_curves,
)
from tl_vzero.plot.theme import DARK
from tl_vzero.report.reproduction_page import render_reproduction

MEANS = {"value_zeroing": [0.1, 0.2], "attention": [0.3, 0.4]}


def test_alignment_curves_show_means_intervals_chance_and_published_figures() -> None:
    figure = alignment_curves(alignment(MEANS, published={"value_zeroing": [0.5, 0.6], "attention": [0.7, 0.8]}))
    by_name = {trace.name: trace for trace in figure.data}
    assert list(by_name["Value Zeroing"].y) == [0.1, 0.2]
    assert list(by_name["Value Zeroing"].error_y.array) == pytest.approx([0.01, 0.01])
    assert list(by_name["Raw attention, published"].y) == [0.7, 0.8]
    assert by_name["Raw attention, published"].line.dash == "dash"
    assert by_name["Raw attention, published"].line.color == by_name["Raw attention"].line.color
    assert list(by_name["chance"].y) == [0.1, 0.1]
    with pytest.raises(InputError, match="expected one of one, all"):
        alignment_curves(alignment(MEANS), paradigm="two")


def test_one_of_many_methods_stands_out_and_all_are_named_at_their_ends() -> None:
    names = [f"method_{n}" for n in range(20)]
    many = alignment(
        {name: [0.1, 0.1 + n / 1000] for n, name in enumerate(names)}, published={name: [0.2, 0.3] for name in names}
    )
    figure = alignment_curves(many, highlight="method_3")
    *greys, line, published, chance = figure.data
    greys = greys[::2]
    assert (line.name, published.name, chance.name) == ("Method 3", "Method 3, published", "chance")
    assert len({grey.line.color for grey in greys}) == 1 and line.line.color == published.line.color
    assert line.line.color != greys[0].line.color and line.line.width > greys[0].line.width
    labels = sorted(figure.layout.annotations, key=lambda label: label.ay)
    assert [label.text for label in labels if "<b>" in label.text] == ["<b>Method 3</b>"]
    assert len({label.text for label in labels}) == 21 and figure.layout.showlegend is False
    # As many pixels apart as their text is high, and below the top of the axis.
    a_pixel = figure.layout.yaxis.range[1] / (figure.layout.height - 60)
    assert all(high.ay - low.ay >= 12 * a_pixel for low, high in pairwise(labels))
    assert labels[-1].ay <= figure.layout.yaxis.range[1]
    assert [label.y for label in labels] == sorted(label.y for label in labels)


def test_as_many_methods_as_colours_keep_theirs() -> None:
    means = {f"method_{n}": [0.1] for n in range(8)}
    figure = alignment_curves(alignment(means))
    assert len({trace.line.color for trace in figure.data}) == 9 and not figure.layout.annotations
    assert len(alignment_curves(alignment(means), highlight="method_1").layout.annotations) == 9
    with pytest.raises(InputError, match="method_9"):
        alignment_curves(alignment(means), highlight="method_9")


def test_controls_stand_beside_value_zeroing() -> None:
    distances = alignment({"value_zeroing, cosine": [0.1, 0.2], "value_zeroing, unit_euclidean": [0.3, 0.4]})
    figure = control_curves(alignment(MEANS), alignment({"value_zeroing": [0.0, 0.0]}), distances, theme=DARK)
    names = [trace.name for trace in figure.data]
    assert names == ["Value Zeroing", "shuffled cues", "random weights", "unit euclidean distance", "chance"]
    assert len(control_curves(alignment(MEANS), None, None).data) == 3


def test_compression_curves_name_the_embeddings() -> None:
    figure = compression_curves([("this", probing([1.0, 1.5, 2.0]))], [1.4, 1.9])
    assert list(figure.layout.xaxis.ticktext) == ["embeddings", "0", "1"]
    assert list(figure.data[0].x) == [-1, 0, 1] and list(figure.data[1].y) == [1.4, 1.9]


def test_knockout_curves_leave_a_gap_where_nothing_is_defined() -> None:
    line, _ = knockout_curves(knockout({"value_zeroing": [0.4, None, -0.2], "attention": [0.1] * 3})).data
    assert (line.name, line.x, line.y) == ("Value Zeroing", (0, 1, 2), (0.4, None, -0.2))
    assert line.customdata[1] == "undefined"
    with pytest.raises(InputError, match="unknown paradigm 'two'"):
        knockout_curves(knockout({"value_zeroing": [0.4]}), paradigm="two")


def test_faithfulness_bars_leave_a_gap_where_nothing_is_defined() -> None:
    figure = faithfulness_bars(faithfulness({"value_zeroing": 0.4, "attention": None}))
    assert list(figure.data[0].x) == [0.4, None]
    assert list(figure.data[0].customdata) == ["0.400, 95 % interval 0.390 to 0.410, n = 50", "undefined"]
    with pytest.raises(InputError, match="unknown paradigm"):
        faithfulness_bars(faithfulness({"value_zeroing": 0.4}), paradigm="two")


def test_removal_curves_go_by_share_and_leave_a_gap_where_nothing_is_defined() -> None:
    result = removal({"value_zeroing": 0.8, "attention": None})
    figure = removal_curves(result, measure="accuracy")
    assert [trace.name for trace in figure.data] == ["Value Zeroing", "Raw attention"]
    assert [list(trace.x) for trace in figure.data] == [[0, 50]] * 2
    assert [list(trace.y) for trace in figure.data] == [[0.9, 0.8], [0.9, None]]
    assert figure.layout.xaxis.title.text == "% of tokens left out from block 2 on"
    assert removal_curves(removal({"random": 0.7})).data[0].line.dash == "dot"
    for wrong, said in (({"paradigm": "two"}, "unknown paradigm"), ({"measure": "p_form"}, "did you mean 'p_forms'")):
        with type_checks_off(), pytest.raises(InputError, match=said):
            removal_curves(result, **wrong)


def test_training_curves_follow_each_head_of_a_layer_over_the_models() -> None:
    changes = training({"step <1>": 0.1, "step 2": -0.3})
    figure = training_curves(changes, 1)
    assert [trace.name for trace in figure.data] == ["head 0", "head 1"]
    assert list(figure.data[0].y) == [0.1, -0.3]
    assert list(figure.data[0].error_y.array) == pytest.approx([0.01, 0.01])
    assert figure.layout.xaxis.ticktext[1] == "step 2" and "<1>" not in figure.layout.xaxis.ticktext[0]
    with pytest.raises(InputError, match="unknown layer '7': expected one of 0, 1"):
        training_curves(changes, 7)
    with pytest.raises(InputError, match="unknown place 'queue'"):
        training_curves(changes, 0, place="queue")


def test_mass_bars_stack_the_places() -> None:
    figure = mass_bars(mass({"attention": (0.1, 0.2, 0.3, 0.3, 0.1)}), 1)
    assert [(trace.name, trace.x[0]) for trace in figure.data] == [
        ("cue", 0.1),
        ("attractor", 0.2),
        ("special", 0.3),
        ("target", 0.3),
        ("rest", 0.1),
    ]
    with pytest.raises(InputError, match="nothing of layer 5"):
        mass_bars(mass({"attention": (0.2,) * 5}), 5)


def page_data(page: Page) -> Any:
    return json.loads(page.scripts["page-data"])


def test_the_page_holds_every_finding_and_figure() -> None:
    run = reproduction()
    page = Page(render_reproduction(run))
    for finding in findings(run):
        assert finding.claim in page.text and finding.evidence in page.text
    figures = page_data(page)["figures"]
    assert set(figures) == {
        "alignment",
        "mass",
        "controls",
        "compression",
        "compression-paper",
        "faithfulness",
        "knockout",
        "removal",
    }
    assert set(figures["alignment"]) == {f"{m}|{p}" for m in ("dot", "average_precision") for p in ("one", "all")}
    assert all(set(drawn) == {"light", "dark"} for variants in figures.values() for drawn in variants.values())


def test_texts_are_text_and_nothing_is_fetched() -> None:
    page = Page(render_reproduction(reproduction()))
    assert not [tag for tag, _ in page.tags if tag == "img"]
    assert "<img src=x onerror=hit()>" in page.text and "</script>{{data}}" in page.text
    assert "it was <b>not</b> asked for" in page.text
    assert not [value for _, attributes in page.tags for name, value in attributes.items() if name in ("src", "href")]
    assert "{{" not in page.text.replace("</script>{{data}}", "")


def test_every_table_has_a_heading_for_each_cell() -> None:
    html = render_reproduction(reproduction())
    tables = re.findall(r"<table><caption>.*?</table>", html)
    assert len(tables) == 8
    for table in tables:
        rows = [len(re.findall(r"<t[hd][ >]", row)) for row in re.findall(r"<tr>.*?</tr>", table)]
        assert len(rows) > 1 and len(set(rows)) == 1, table


def test_what_is_missing_is_said_on_the_page() -> None:
    missing = {"faithfulness": "the head was never trained", "probing": "too few"}
    page = Page(render_reproduction(reproduction(faithfulness=None, probing=None, missing=missing, accuracy=None)))
    assert "Not measured: the head was never trained" in page.text and "too few" in page.text
    assert "faithfulness" not in page_data(page)["figures"]
