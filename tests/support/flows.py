"""The slow, obvious way to the lines of a flow graph: every path from the chosen token to the input, written out."""

from collections.abc import Sequence

Edge = tuple[int, int, int]
Shares = Sequence[Sequence[Sequence[float]]]


def ways_down(shares: Shares, row: int, threshold: float, top: int | None) -> list[list[Edge]]:
    """All whole paths, as edges (layer, dest, src) from the top down.

    A path goes on along an edge that is one of the `top` largest from its token and at least `threshold`, or the
    largest of all.
    """

    def ways(layer: int, dest: int) -> list[list[Edge]]:
        if layer < 0:
            return [[]]
        row_of = shares[layer][dest]
        ranked = sorted((src for src in range(len(row_of)) if row_of[src] > 0), key=lambda src: row_of[src])[::-1]
        chosen = [src for src in ranked[:top] if row_of[src] >= threshold or src == ranked[0]]
        return [[(layer, dest, src), *below] for src in chosen for below in ways(layer - 1, src)]

    return ways(len(shares) - 1, row)


def on_a_path(paths: Sequence[Sequence[Edge]]) -> set[Edge]:
    return {edge for path in paths for edge in path}


def left_over(shares: Shares, edges: set[Edge]) -> dict[tuple[int, int], float]:
    """By (level, token): the sum of the edges that go on from a token on a path and are not drawn."""
    return {
        (layer + 1, dest): sum(
            share for src, share in enumerate(shares[layer][dest]) if (layer, dest, src) not in edges
        )
        for layer, dest, _ in edges
    }


def strongest_path(shares: Shares, edges: set[Edge], edge: Edge) -> list[int]:
    """The tokens from the input up, along the strongest drawn edge at each token above and below an edge."""
    share = {(layer, dest, src): shares[layer][dest][src] for layer, dest, src in edges}
    path = [edge]
    while path[0][0] > 0:
        below = [other for other in edges if other[0] == path[0][0] - 1 and other[1] == path[0][2]]
        path.insert(0, max(below, key=lambda other: share[other]))
    while path[-1][0] < len(shares) - 1:
        above = [other for other in edges if other[0] == path[-1][0] + 1 and other[2] == path[-1][1]]
        path.append(max(above, key=lambda other: share[other]))
    return [path[0][2], *(dest for _, dest, _ in path)]
