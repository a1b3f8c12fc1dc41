"""The flow graph: a target's rollout taken apart, checked path by path, and what the slider shows of it."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from jaxtyping import TypeCheckError
from support.flows import left_over, on_a_path, strongest_path, ways_down
from support.made_up import ODD_TOKENS, PIECES, made_up_scores
from support.pictures import plain

from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.plot import LIGHT, flow_graph
from tl_vzero.plot.flows import connected, dropped, flow_into, strongest_paths


def edges_by_paths(steps: torch.Tensor, dest: int) -> torch.Tensor:
    """The slow way: every path from any input to the target, its product given to each edge that it takes."""
    layers, size, _ = steps.shape
    edges = torch.zeros_like(steps)
    for below in product(range(size), repeat=layers):
        path = (*below, dest)
        share = torch.tensor(1.0, dtype=steps.dtype)
        for layer in range(layers):
            share = share * steps[layer, path[layer + 1], path[layer]]
        for layer in range(layers):
            edges[layer, path[layer + 1], path[layer]] += share
    return edges


@pytest.mark.parametrize("identity", [False, True])
def test_the_share_of_an_edge_is_that_of_all_paths_along_it(identity: bool) -> None:
    scores = made_up_scores(("a", "b", "c", "d"), identity=identity)
    scores = replace(scores, values=scores.values.double())
    steps = scores.normalized().values
    if identity:
        steps = (steps + torch.eye(4)) / 2
    flow = flow_into(scores, 2)
    torch.testing.assert_close(flow.edges, edges_by_paths(steps, 2))
    torch.testing.assert_close(flow.edges.sum((1, 2)), torch.ones(3, dtype=torch.float64))
    torch.testing.assert_close(flow.nodes[0], scores.rollout().row(2)[-1])


@pytest.mark.parametrize("top", [1, 2, 3, None])
@pytest.mark.parametrize("threshold", [0.001, 0.03, 0.2])
@pytest.mark.parametrize("empty", [False, True])
def test_only_edges_on_an_unbroken_path_from_the_input_are_drawn(
    top: int | None, threshold: float, empty: bool
) -> None:
    scores = made_up_scores()
    if empty:  # a token that draws on nothing: what flows into it comes from no input
        scores.values[1, 2] = 0
    flow = flow_into(scores, 4)
    paths = ways_down(flow.edges.tolist(), 4, threshold, top)
    edges = connected(flow, 4, threshold, top)
    assert len(edges) == len(set(edges)) and set(edges) == on_a_path(paths)
    for layer in range(3):
        assert any(at == layer for at, *_ in edges)
    expected = left_over(flow.edges.tolist(), set(edges))
    stubs = dropped(flow, edges)
    assert stubs == pytest.approx({place: share for place, share in expected.items() if place in stubs}, abs=1e-6)
    assert all(share < 0.0011 for place, share in expected.items() if place not in stubs)
    for edge, path in zip(edges, strongest_paths(flow, edges), strict=True):
        assert path == strongest_path(flow.edges.tolist(), set(edges), edge)


def test_what_a_layer_shows_and_what_it_drops_is_the_whole() -> None:
    flow = flow_into(made_up_scores(), 4)
    edges = connected(flow, 4, 0.03, 3)
    stubs = dropped(flow, edges)
    for layer in range(3):
        reached = {dest for at, dest, _ in edges if at == layer}
        drawn = sum(flow.edges[edge].item() for edge in edges if edge[0] == layer)
        faint = sum(share for (level, _), share in stubs.items() if level == layer + 1)
        beside = sum(share for token, share in enumerate(flow.nodes[layer + 1].tolist()) if token not in reached)
        assert drawn + faint + beside == pytest.approx(1, abs=9 * 0.001)


def test_the_slider_shows_the_branches_from_its_threshold_on() -> None:
    scores = made_up_scores()
    figure = plain(flow_graph(scores, "[MASK]", threshold=0.04, top=2))
    slider = figure["layout"]["sliders"][0]
    bounds = [float(step["label"].removesuffix(" %")) / 100 for step in slider["steps"]]
    assert slider["steps"][slider["active"]]["label"] == "4 %"
    shares = flow_into(scores, 4).edges.tolist()
    for bound, step in zip(bounds, slider["steps"], strict=True):
        changes, _, traces = step["args"]
        assert traces == list(range(len(figure["data"])))
        edges = on_a_path(ways_down(shares, 4, bound, 2))
        assert sum(x.count(None) for x in changes["x"][2 : 2 + len(bounds)]) == len(edges)
        middles = changes["customdata"][-2]
        assert sorted(float(middle[0].removesuffix("%")) for middle in middles) == pytest.approx(
            sorted(100 * shares[layer][dest][src] for layer, dest, src in edges), abs=0.051
        )
        tokens = {(layer, src) for layer, _, src in edges} | {(layer + 1, dest) for layer, dest, _ in edges}
        assert changes["marker"][-1]["color"].count(LIGHT.mark) == len(tokens)
        faint = left_over(shares, edges)
        stubs = sorted(float(text.removesuffix(" %")) for text in changes["text"][1] if text.strip())
        expected = sorted(100 * share for share in faint.values() if share >= bound)
        assert stubs == pytest.approx(expected, rel=0.051)
    shown = slider["steps"][slider["active"]]["args"][0]
    assert [trace["x"] for trace in figure["data"]] == shown["x"]


def test_a_long_sentence_labels_the_tokens_on_its_paths() -> None:
    scores = made_up_scores([f"word{i}" for i in range(60)])
    figure = plain(flow_graph(scores, 33, threshold=0.05))
    slider = figure["layout"]["sliders"][0]
    for step in slider["steps"]:
        edges = connected(flow_into(scores, 33), 33, float(step["label"].removesuffix(" %")) / 100, 3)
        assert step["args"][1]["xaxis.tickvals"] == sorted({end for edge in edges for end in edge[1:]})
        assert 33 in step["args"][1]["xaxis.tickvals"]
    assert figure["layout"]["xaxis"]["tickvals"] == slider["steps"][slider["active"]]["args"][1]["xaxis.tickvals"]
    assert "tickvals" not in plain(flow_graph(made_up_scores(), 4))["layout"]["xaxis"]


def test_the_box_of_an_edge_names_its_path() -> None:
    scores = made_up_scores()
    figure = plain(flow_graph(scores, "[MASK]", top=1))
    (path,) = {middle[4] for middle in figure["data"][-2]["customdata"]}
    expected = ways_down(flow_into(scores, 4).edges.tolist(), 4, 1.0, 1)[0]
    assert path == " → ".join([PIECES[expected[-1][2]], *(PIECES[dest] for _, dest, _ in reversed(expected))])


def test_pieces_are_joined_to_words_without_losing_a_share() -> None:
    scores = made_up_scores()
    nodes = plain(flow_graph(scores, "[MASK]", words=True))["data"][-1]
    labels = [label for _, label in nodes["customdata"]][:8]
    assert labels[5] == "scaring · word 5" and len(nodes["x"]) == 8 * 4
    rolled = scores.rollout().words().row("[MASK]")[-1]
    shown = [share for share, _ in nodes["customdata"]][:8]
    assert shown == [f"{share:.1%}" for share in rolled.tolist()]


def test_odd_tokens_are_text() -> None:
    figure = plain(flow_graph(made_up_scores(ODD_TOKENS), 1))
    texts = [*figure["layout"]["xaxis"]["labelalias"].values(), figure["layout"]["title"]["text"]]
    texts += [label for _, label in figure["data"][-1]["customdata"]]
    assert not [text for text in texts if set("<>$\n") & set(text)]


def test_what_has_no_rollout_is_refused() -> None:
    scores = made_up_scores()
    with pytest.raises(ScoresError, match="per head"):
        flow_graph(made_up_scores(values=torch.rand(3, 2, len(PIECES), len(PIECES)), heads=(0, 1)), 0)
    with pytest.raises(ScoresError, match="rollout already"):
        flow_graph(scores.rollout(), 0)
    with pytest.raises(ScoresError, match="it needs all 3 layers"):
        flow_graph(scores.at_layer(1), 0)
    partial = replace(scores, values=scores.values[:, :2], dest_positions=(0, 1), dest_tokens=PIECES[:2])
    with pytest.raises(ScoresError, match="destinations and"):
        flow_graph(partial, 0)
    with pytest.raises(ScoresError, match="word"):
        flow_graph(replace(scores, word_ids=None), 0, words=True)


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, float("nan")])
def test_a_threshold_outside_0_to_1_is_refused(threshold: float) -> None:
    with pytest.raises(InputError, match="between 0 and 1"):
        flow_graph(made_up_scores(), 0, threshold=threshold)


@pytest.mark.parametrize("top", [0, -1])
def test_fewer_than_one_edge_is_refused(top: int) -> None:
    with pytest.raises(InputError, match="top is"):
        flow_graph(made_up_scores(), 0, top=top)


def test_a_target_or_threshold_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="occurs 2 times"):
        flow_graph(made_up_scores(), "the")
    with pytest.raises((InputTypeError, TypeCheckError)):
        flow_graph(made_up_scores(), 0, threshold="3 %")  # type: ignore[arg-type]
