"""The flow graph: a target's rollout taken apart, checked path by path, and what the slider shows of it."""

from dataclasses import replace
from itertools import product

import pytest
import torch
from jaxtyping import TypeCheckError
from support.made_up import ODD_TOKENS, PIECES, made_up_scores
from support.pictures import plain

from tl_vzero.errors import InputError, InputTypeError, ScoresError
from tl_vzero.plot import flow_graph
from tl_vzero.plot.flows import flow_into


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


def test_the_slider_shows_the_edges_from_its_threshold_on() -> None:
    scores = made_up_scores()
    figure = plain(flow_graph(scores, "[MASK]", threshold=0.04))
    slider = figure["layout"]["sliders"][0]
    bounds = [float(step["label"].removesuffix(" %")) / 100 for step in slider["steps"]]
    assert slider["steps"][slider["active"]]["label"] == "4 %"
    edges = flow_into(scores, 4).edges
    lines = figure["data"][: len(bounds)]
    for bound, step in zip(bounds, slider["steps"], strict=True):
        (changes, _, traces) = step["args"]
        assert traces == list(range(len(bounds)))
        drawn = sum(line["x"].count(None) for line, visible in zip(lines, changes["visible"], strict=True) if visible)
        assert drawn == (edges >= bound).sum().item()
    assert [line.get("visible") for line in lines] == slider["steps"][slider["active"]]["args"][0]["visible"]


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
    with pytest.raises(ScoresError, match="compute it with all layers"):
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


def test_a_target_or_threshold_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="occurs 2 times"):
        flow_graph(made_up_scores(), "the")
    with pytest.raises((InputTypeError, TypeCheckError)):
        flow_graph(made_up_scores(), 0, threshold="3 %")  # type: ignore[arg-type]
