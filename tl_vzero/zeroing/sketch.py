"""Value Zeroing with a stated error: of most pairs a random sketch of their change, of a few the change itself.

The cosine distance of a pair is 1 - 1 / sqrt(1 + x), x the squared tangent of the angle between clean and changed
output. The tangent is the size of a vector w, what the change has perpendicular to the clean output, over what is left
along it. Of m random directions with normal entries, w shows in each a normal number: m x^ / x is chi-square with m
degrees of freedom, whatever the model. The directions go through W_out once, so that a pair costs m numbers in place
of all features.

A norm at the end divides by what depends on the size of the change before it, which directions of their own show. As
that divisor goes through its interval, w moves along a straight line: the ends of the way bound its size.

What can be large in its row is computed as it is: the size of what attention loses tells where that may be, before any
direction is drawn. Where an error turns out larger than allowed, entries of that row are computed after all.

The sum of a row's guessed entries is known far better than one of them, as groups of chunks have directions of their
own: it is a sum of independent numbers, each a mean of chi-squares up to its size.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from jaxtyping import Bool, Float, Int
from scipy.stats import chi2
from torch import Tensor

from tl_vzero.distance import LITTLE_LEFT, wide_dtype
from tl_vzero.zeroing.chunks import ROWS_PER_PRODUCT, Chunk, Column
from tl_vzero.zeroing.pairs import PairZeroing, Parts
from tl_vzero.zeroing.request import Tolerance

# What another value costs shows tests/bench/bench_tolerance.py.
CHOICES, DIRECTIONS_OF_SIZE = (24, 40, 56, 72, 88, 104), 8  # directions of w; of the change before a norm at the end
MOST_GROUPS = 96  # of chunks that share directions: folding these costs about as much as 64 pairs
NARROWEST = 256  # features, below which directions cost what they spare
COST_OF_EXACT, COST_OF_DIRECTION, LARGEST_COST = 1.15, 1.4, 0.6  # in products with W_out
SUM_HIGH, SUM_LOW = 18.0, 0.9  # how far a sum may be off above and below, in proportion to 1 / sqrt(directions)
MARGIN, MARGIN_OF_SUM = 0.9, 0.7  # of the tolerance, that entries and sums may use up by expectation
CANCELLED = 1e-4  # of what parts have by themselves: of less, float32 keeps few digits
GRID = 80  # powers of two from one to the next, wide enough for every t that may be best
STEPS = tuple(2.0**power for power in range(-6, 10))  # of Chernoff's t: the best of them is near enough
# How what may go wrong is shared out: one of the entries, one of the sizes, the sum.
OF_ENTRIES, OF_SIZES, OF_SUM = 0.6, 0.3, 0.1


Map = Float[Tensor, "dest src"]


def distance_of(x: Tensor) -> Tensor:
    """The cosine distance whose squared tangent is x, without cancellation."""
    root = (1.0 + x).sqrt()
    return x / (root * (1.0 + root))


# How far estimates may be off.


def _entry_factors(directions: int, entries: Tensor, risk: float) -> tuple[Tensor, Tensor]:
    """What x^ / x is at least and at most for all of a row's entries at once."""
    tail = (risk / 2 / entries.clamp(min=1)).cpu().numpy()
    least, most = chi2.ppf(tail, directions) / directions, chi2.isf(tail, directions) / directions
    least, most = (torch.from_numpy(factor).to(entries.dtype).to(entries.device) for factor in (least, most))
    return least, most


def _sum_at_least(estimates: Tensor, directions: int, risk: float) -> Tensor:
    """How small the sum of each row may be, of estimates [row, group].

    With X_g what the groups are in truth, exp(t (X^_g - X_g) - h(t X^_g)) is 1 on average, at most.

    h(y) = y^2 / m, up to where exp(y - h(y)) is convex and then a line; so what holds for chi-square holds for what is
    a mean of such numbers. Markov's inequality for the product over groups, and for every t of a grid, does the rest.
    """
    slack = math.log((GRID + 1) / risk)
    squares = estimates.square().sum(-1, keepdim=True)
    t = (slack * directions / _nonzero(squares)).sqrt().log2().round().clamp(-GRID / 4, 3 * GRID / 4).exp2()
    y = t * estimates
    bend = (1.0 - math.sqrt(2.0 / directions)) * directions / 2.0
    beyond = y - bend + bend**2 / directions - torch.log1p((1.0 - 2.0 * bend / directions) * (y - bend).clamp(min=0.0))
    off = torch.where(y <= bend, y.square() / directions, beyond).sum(-1, keepdim=True)
    return (estimates.sum(-1, keepdim=True) - (off + slack) / t).clamp(min=0.0)


def _sum_at_most(estimates: Tensor, limits: Tensor, directions: int, risk: float) -> Tensor:
    """How large it may be, where no group is above its limit.

    By Chernoff's bound sum_g ln(1 + 2 t X_g / m) stays below a line in t. Of all X below their limits the sum is
    farthest out where few groups, the largest, have all of it.
    """
    limits = limits.sort(dim=-1, descending=True).values
    largest, half, unlikely = limits[:, :1], directions / 2, -math.log(risk)
    high, estimate = limits.sum(-1, keepdim=True), estimates.sum(-1, keepdim=True)
    for step in STEPS:
        t = step * half / _nonzero(largest)
        shown = torch.log1p(limits * t / half)
        high = torch.minimum(high, _filled(limits, shown, (t * estimate + unlikely) / half))
    return high


def _filled(limits: Tensor, shown: Tensor, level: Tensor) -> Tensor:
    """The sum of limits, the largest first and the last in part, that together show as much as the level."""
    before = shown.cumsum(-1) - shown
    part = ((level - before) / _nonzero(shown)).clamp(0.0, 1.0)
    return (limits * part).sum(-1, keepdim=True)


@dataclass(eq=False)
class Guesses:
    """One sentence's pairs: distances where they are exact, elsewhere the estimate of x and its range along the way.

    `drawn` are the pairs that were to be guessed before a direction was drawn: what the directions show must not choose
    them. `group` says which pairs share directions.
    """

    directions: int
    tolerance: Tolerance
    drawn: Bool[Tensor, "dest src"]
    exact: Bool[Tensor, "dest src"]
    values: Map
    x: Map
    least: Map
    most: Map
    group: Int[Tensor, "dest src"]

    def __post_init__(self) -> None:
        risk = self.tolerance.risk
        entries = self.drawn.sum(-1, keepdim=True).to(self.x)
        self.lowest, self.highest = _entry_factors(self.directions, entries, risk * OF_ENTRIES)
        sums = self.x.new_zeros(2, len(self.x), int(self.group.max()) + 1)
        for of_groups, part in zip(sums, (self.least, self.most), strict=True):
            of_groups.scatter_add_(1, self.group, torch.where(self.drawn, part, 0.0))
        (least, most), of_sum = sums, risk * OF_SUM / 2
        self.sums = (
            _sum_at_least(least, self.directions, of_sum),
            _sum_at_most(most, most / self.lowest, self.directions, of_sum),
        )

    def bounded(self) -> tuple[Map, Map]:
        """Raw values and how far the share of each may be off."""
        guessed = ~self.exact
        x_high = self.most / self.lowest
        values = torch.where(guessed, distance_of(self.x), self.values)
        low = torch.where(guessed, distance_of(self.least / self.highest), self.values)
        high = torch.where(guessed, distance_of(x_high), self.values)
        # The distance is x / 2 where x is small, and less from there on.
        bend = torch.where(guessed & (x_high > 0), 2 * distance_of(x_high) / x_high, 1.0).amin(-1, keepdim=True)
        # Near a right angle a distance no longer tells x: then it is at least this, and nothing is left for sure.
        left, since = 1.0 - self.values, self.drawn & self.exact
        of_since = torch.where(since, left.clamp(min=LITTLE_LEFT) ** -2 - 1.0, 0.0).sum(-1, keepdim=True)
        sum_low, sum_high = ((of_drawn - of_since).clamp(min=0.0) for of_drawn in self.sums)
        sum_low = torch.where((since & (left < LITTLE_LEFT)).any(-1, keepdim=True), 0.0, sum_low)
        exactly = torch.where(guessed, 0.0, self.values).sum(-1, keepdim=True)
        whole_low = exactly + torch.maximum(torch.where(guessed, low, 0.0).sum(-1, keepdim=True), bend * sum_low / 2)
        whole_high = exactly + torch.minimum(torch.where(guessed, high, 0.0).sum(-1, keepdim=True), sum_high / 2)
        whole = values.sum(-1, keepdim=True)
        shares = values / _nonzero(whole)
        # A guessed entry is a part of its own row: where it is high, so is the row.
        share_high = high / _nonzero(torch.maximum(whole_low, torch.where(guessed, exactly + high, 0.0)))
        share_low = low / _nonzero(whole_high)
        error = torch.maximum(share_high - shares, shares - share_low).clamp(min=0.0, max=1.0)
        return values, torch.where(whole > 0, error, 0.0)

    def too_far(self, error: Map) -> Bool[Tensor, "dest src"]:
        """Guesses that have to be exact, so that no share of their row may be off too far.

        Of a row whose sum is not known well enough these are the largest, which make up half of what is guessed.
        """
        guessed = ~self.exact
        off = guessed & (error > self.tolerance.share)
        rows = (error > self.tolerance.share).any(-1, keepdim=True) & ~off.any(-1, keepdim=True)
        sizes, order = torch.where(guessed & rows, self.x, 0.0).sort(dim=-1, descending=True)
        half = sizes.cumsum(-1) - sizes <= sizes.sum(-1, keepdim=True) / 2
        return off | torch.zeros_like(off).scatter_(1, order, half & (sizes > 0)) | (guessed & rows & (self.x == 0))


def _nonzero(divisor: Tensor) -> Tensor:
    return torch.where(divisor == 0, 1.0, divisor)


# What is exact from the start.


@dataclass(frozen=True, eq=False)
class Plan:
    """How many directions to draw, and of each sentence the pairs that are exact from the start."""

    directions: int
    exact: list[Bool[Tensor, "_ _"]]


def plan_of(likely: Sequence[Float[Tensor, "_ _"]], tolerance: Tolerance, features: int) -> Plan | None:
    """What costs least by likely shares, in products with W_out for each pair; None where all of them cost less."""
    total, cheapest, best = sum(shares.numel() for shares in likely), LARGEST_COST, None
    ordered = [_Ordered.of(shares) for shares in likely]
    groups = min(MOST_GROUPS, max(1.0, total / ROWS_PER_PRODUCT))
    for directions in CHOICES:
        exact = [one.exact(tolerance, directions, groups) for one in ordered]
        share = sum(int(mask.sum()) for mask in exact) / total
        cost = COST_OF_EXACT * share + COST_OF_DIRECTION * (directions + DIRECTIONS_OF_SIZE) / features
        if cost < cheapest:
            cheapest, best = cost, Plan(directions, exact)
    return best


@dataclass(frozen=True, eq=False)
class _Ordered:
    """Likely shares of rows from large to small, where they stand, and what of a row is not before them."""

    shares: Map
    order: Int[Tensor, "dest src"]
    left: Map

    @classmethod
    def of(cls, likely: Map) -> "_Ordered":
        shares, order = likely.sort(dim=-1, descending=True)
        return cls(shares, order, (1.0 - shares.cumsum(-1) + shares).clamp(min=0.0))

    def exact(self, tolerance: Tolerance, directions: int, groups: float) -> Bool[Tensor, "dest src"]:
        """The shares so large, or so much together, that a row would be off too far if they were guessed."""
        entries = torch.tensor([float(self.shares.shape[-1])], dtype=torch.float64)
        lowest = float(_entry_factors(directions, entries, tolerance.risk * OF_ENTRIES)[0])
        of_sum = self.shares[:, :1] * self.left * SUM_HIGH / math.sqrt(directions * lowest * groups)
        of_entry = self.shares * (1.0 / (lowest * (1.0 - SUM_LOW / math.sqrt(directions) * self.left)) - 1.0)
        enough = (of_sum <= MARGIN_OF_SUM * tolerance.share) & (of_entry <= MARGIN * tolerance.share)
        before = (enough.cumsum(-1) == 0) & (self.shares > 0)
        return torch.zeros_like(before).scatter_(1, self.order, before)


def likely_shares(pairs: PairZeroing) -> list[Float[Tensor, "_ _"]]:
    """Of each sentence, the squared size of what attention loses at a pair, as a share of its row."""
    zeroed, form, w_o = pairs.zeroed, pairs.form, pairs.lost.w_o
    if form.first is not None and not form.reads_change_itself:
        w_o = w_o * form.first.norm.weight
    written = torch.einsum("chk,hkd->chd", zeroed.values, w_o)
    grams, shares = (written @ written.mT).to(wide_dtype(written.device)), []
    for part in zeroed.parts:
        pattern = part.pattern.to(grams)
        gram = grams[part.first_column : part.first_column + len(pattern)]
        squares = ((pattern @ gram) * pattern).sum(-1).clamp(min=0.0).mT
        shares.append(squares / _nonzero(squares.sum(-1, keepdim=True)))
    return shares


# The sketch itself.


@dataclass(frozen=True, eq=False)
class _Directions:
    """Random directions of one group, `plain`, and what is needed to see a change in them.

    `through` takes what a norm at the end reads less, `folded` a row of hidden units; their last columns are for its
    size. `output` is what clean outputs show, `scaled` a last norm's weighted clean rows, less their part along these.
    """

    plain: Float[Tensor, "feature direction"]
    through: Float[Tensor, "feature more_directions"]
    folded: Float[Tensor, "d_mlp more_directions"]
    output: Float[Tensor, "row direction"]
    scaled: Float[Tensor, "row direction"] | None


@dataclass(frozen=True, eq=False)
class Tangents:
    """x of a chunk's pairs, with its least and most as a last norm's divisor may be.

    It `fails` where a divisor or what is left of the output nearly vanishes, and is `cancelled` where parts of a change
    do in what is shown of them.
    """

    x: Float[Tensor, "row"]
    least: Float[Tensor, "row"]
    most: Float[Tensor, "row"]
    fails: Bool[Tensor, "row"]
    cancelled: Bool[Tensor, "row"]


class Sketch:
    """A layer's pairs with some heads zeroed, seen in random directions.

    Where a norm ends the block or the MLP, the change is r + weight * (a z + s e): r goes past the norm, e is what the
    norm reads less, z the centred clean row, s one over the changed divisor, and a one over the clean one minus s.
    """

    def __init__(
        self,
        pairs: PairZeroing,
        outputs: Float[Tensor, "row feature"],
        n_columns: int,
        directions: int,
        tolerance: Tolerance,
    ) -> None:
        assert pairs.weights.w_out is not None
        self.directions = directions
        self.pairs, self.last, self.outputs, self.w_out = pairs, pairs.form.last, outputs, pairs.weights.w_out
        self.past_norm = pairs.form.name == "sandwich"
        self.generator, self.wide = torch.Generator().manual_seed(tolerance.seed), wide_dtype(outputs.device)
        self.square = outputs.to(self.wide).square().sum(-1)
        probes = [outputs]
        if self.last is not None:
            norm = self.last.norm
            self.scaled = self.last.centred * norm.weight
            self.scaled_along = (self.scaled.to(self.wide) * outputs.to(self.wide)).sum(-1)
            probes = [self.last.centred, norm.centre(outputs * norm.weight)]
            factors = _entry_factors(DIRECTIONS_OF_SIZE, torch.tensor([float(n_columns)]), tolerance.risk * OF_SIZES)
            self.least, self.most = map(float, factors)
        self.probes = torch.stack(probes, dim=1)
        self.hidden_probes = self.probes @ self.w_out.T

    def pieces(self, columns: Sequence[Column]) -> Iterator[tuple[Chunk, Parts, Tangents, int]]:
        """Of each chunk its parts, its tangents, and its group."""
        drawn: list[_Directions] = []
        for index, (chunk, parts) in enumerate(self.pairs.parts(columns)):
            # Neighbours, whose entries are alike, are of several groups.
            group = index % MOST_GROUPS
            if group == len(drawn):
                drawn.append(self._directions())
            yield chunk, parts, self._tangents(chunk, parts, drawn[group]), group

    def _directions(self) -> _Directions:
        features, count = self.outputs.shape[-1], self.directions + (DIRECTIONS_OF_SIZE if self.last else 0)
        through = torch.randn(features, count, generator=self.generator, dtype=torch.float32).to(self.outputs)
        plain = through[:, : self.directions]
        output, scaled = self.outputs @ plain, None
        if self.last is not None:
            norm, through = self.last.norm, through.clone()
            along = (self.scaled_along / self.square).to(output).unsqueeze(-1)
            scaled = torch.addcmul(self.scaled @ plain, along, output, value=-1.0)
            through[:, : self.directions] *= norm.weight.unsqueeze(-1)
            through = norm.centre(through.T).T.contiguous()
        return _Directions(plain, through, self.w_out @ through, output, scaled)

    def _tangents(self, chunk: Chunk, parts: Parts, directions: _Directions) -> Tangents:
        residual, hidden, rows, square = parts.residual, parts.hidden, chunk.clean, self.square[chunk.clean]
        assert hidden is not None
        shown, along = hidden @ directions.folded, _along(chunk, hidden, self.hidden_probes).to(self.wide)
        if not self.past_norm:
            shown.addmm_(residual, directions.through)
            along += _along(chunk, residual, self.probes)
        output = chunk.clean_rows("clean sketches", directions.output)
        changed = _without_part(chunk, shown[:, : self.directions], along[:, -1] / square, output)
        if self.last is None:
            left = 1.0 - along[:, 0] / square
            size = _products(chunk, [changed])[0, 0]
            x = size / (square * left.square())
            cancelled = size < CANCELLED * _products(chunk, [chunk.grid(shown)])[0, 0]
            # What is left by rounding may be more than there is.
            least = torch.where(cancelled, 0.0, x)
            return Tangents(x, least, x, ~(left >= LITTLE_LEFT) | parts.vanishing, cancelled)
        assert directions.scaled is not None
        # The change perpendicular to the output is s changed + a scaled (+ past), of vectors that ways differ in by s.
        vectors = [changed, chunk.clean_rows("scaled sketches", directions.scaled)]
        parts_along = [along[:, 1], self.scaled_along[rows]]
        if self.past_norm:
            past_along = _along(chunk, residual, self.outputs.unsqueeze(1)).squeeze(-1).to(self.wide)
            vectors.append(_without_part(chunk, residual @ directions.plain, past_along / square, output))
            parts_along.append(past_along)
        ways, vanishing = self._ways(rows, shown[:, self.directions :], along[:, 0])
        ways, products = ways[:, : len(vectors)], _products(chunk, vectors)
        left = 1.0 - (ways * torch.stack(parts_along)).sum(1) / square
        through = (ways.unsqueeze(2) * products).sum(1)
        first, second = [0, 1, 2, 0], [0, 1, 2, 2]
        sizes = square * left[first] * left[second]
        start, middle, end, both = (through[first] * ways[second]).sum(1) / sizes
        # Of the straight way from start to end, its point nearest to nothing.
        way = (start - 2.0 * both + end).clamp(min=0.0)
        nearest = ((start - both) / _nonzero(way)).clamp(0.0, 1.0)
        least = (start - 2.0 * nearest * (start - both) + nearest.square() * way).clamp(min=0.0)
        alone = (ways[1].square() * products.diagonal().mT).sum(0) / sizes[1]
        cancelled = torch.minimum(torch.minimum(start, end), middle) < CANCELLED * alone
        start, middle, end = (part.clamp(min=0.0) for part in (start, middle, end))
        least = torch.where(cancelled, 0.0, torch.minimum(least, middle))
        fails = ~(left >= LITTLE_LEFT).all(0) | vanishing | parts.vanishing  # also where it is NaN
        most = torch.maximum(torch.maximum(start, end), middle)
        return Tangents(middle, least, most, fails, cancelled)

    def _ways(
        self, rows: Int[Tensor, "row"], shown: Float[Tensor, "row direction"], along: Float[Tensor, "row"]
    ) -> tuple[Float[Tensor, "way coefficient row"], Bool[Tensor, "row"]]:
        """s, a and 1, where what the last norm reads less is as small as it may be, as it shows, and as large."""
        assert self.last is not None
        features, deviation = self.outputs.shape[-1], self.last.deviation.to(self.wide)[rows]
        estimate = torch.linalg.vector_norm(shown, dim=-1).to(self.wide).square() / DIRECTIONS_OF_SIZE
        # By Cauchy and Schwarz no less than its part along the clean row.
        least = along.square() / (features * deviation.square())
        lowest = max(self.last.norm.eps, torch.finfo(torch.float32).tiny)
        size = torch.maximum(torch.stack([estimate / self.most, estimate, estimate / self.least]), least)
        step = torch.maximum((size - 2.0 * along) / features, lowest - deviation.square())
        changed = (deviation.square() + step).clamp(min=lowest).sqrt()
        of_clean = step / (deviation * changed * (deviation + changed))
        ways = torch.stack([1.0 / changed, of_clean, torch.ones_like(changed)], dim=1)
        return ways, (changed < LITTLE_LEFT * deviation).any(0)


def _along(
    chunk: Chunk, rows: Float[Tensor, "row width"], probes: Float[Tensor, "clean_row probe width"]
) -> Float[Tensor, "row probe"]:
    """The products of each pair's row with its destination's probes."""
    along = rows.new_empty(len(rows), probes.shape[1])
    for place in chunk.places:
        of_sentences = probes[place.clean].unflatten(0, (place.n_sentences, -1))
        for into, grid, probe in zip(place.grid(along), place.grid(rows), of_sentences, strict=True):
            into.copy_(torch.bmm(probe, grid.permute(1, 2, 0)).permute(2, 0, 1))
    return along


def _without_part(
    chunk: Chunk,
    shown: Float[Tensor, "row direction"],
    share: Float[Tensor, "row"],
    output: Float[Tensor, "*_pairs direction"],
) -> Float[Tensor, "*_pairs direction"]:
    """What a change shows without its part along the clean output."""
    return torch.addcmul(chunk.grid(shown), chunk.grid(share.to(shown).unsqueeze(-1)), output, value=-1.0)


def _products(
    chunk: Chunk, vectors: Sequence[Float[Tensor, "*_pairs direction"]]
) -> Float[Tensor, "vector vector row"]:
    """The products of vectors by what they show, of each pair; some are the same for all pairs of a destination."""
    count, grid = len(vectors), chunk.grid(chunk.pattern).shape[:-1]
    products = vectors[0].new_empty(count, count, *grid)
    for n, one in enumerate(vectors):
        for m in range(n + 1):
            products[n, m] = products[m, n] = (one * vectors[m]).sum(-1) / one.shape[-1]
    return products.flatten(2).to(wide_dtype(products.device))


# All of it together.


def can_be_sketched(pairs: object) -> TypeGuard[PairZeroing]:
    """Whether there is a second product of the MLP to spare, larger than what the directions cost."""
    if not isinstance(pairs, PairZeroing) or pairs.form.mlp is None or pairs.weights.w_out is None:
        return False
    return pairs.weights.w_out.shape[-1] >= NARROWEST


def sketched_maps(
    pairs: PairZeroing,
    columns: Sequence[Column],
    affected: Sequence[Bool[Tensor, "_ _"]],
    outputs: Float[Tensor, "row feature"],
    measure: Callable[[Chunk, Parts], Float[Tensor, "row"]],
    tolerance: Tolerance,
) -> tuple[Float[Tensor, "cell"], Float[Tensor, "cell"]] | None:
    """Raw values and how far each share may be off, of all sentences in one axis; None where that spares nothing.

    `measure` gives a chunk's exact distances.
    """
    likely = [shares * reached for shares, reached in zip(likely_shares(pairs), affected, strict=True)]
    plan = plan_of(likely, tolerance, outputs.shape[-1])
    if plan is None:
        return None
    wanted = torch.cat([mask.flatten() for mask in plan.exact])
    drawn = torch.cat([reached.flatten() for reached in affected])
    exact = ~drawn
    sketch = Sketch(pairs, outputs, max(reached.shape[1] for reached in affected), plan.directions, tolerance)
    values, x, least, most = torch.zeros(4, len(exact), dtype=sketch.wide, device=exact.device)
    group = torch.zeros(len(exact), dtype=torch.long, device=exact.device)
    waiting: list[tuple[Chunk, Parts]] = []

    def measure_waiting() -> None:
        if any(some.rows for some, _ in waiting):
            chunks, several = zip(*waiting, strict=True)
            chunk = Chunk.joined(chunks)
            values[chunk.cells] = measure(chunk, Parts.joined(several))
        waiting.clear()

    for chunk, parts, shown, of_group in sketch.pieces(columns):
        cells, group[chunk.cells] = chunk.cells, of_group
        x[cells], least[cells], most[cells] = shown.x, shown.least, shown.most
        drawn[cells] &= ~(wanted[cells] | shown.fails)
        at = (~(exact[cells] | drawn[cells]) | (shown.cancelled & drawn[cells])).nonzero().squeeze(-1)
        exact[cells[at]] = True
        waiting.append((chunk.some(at), parts.some(at)))
        # One long product takes less time than many short ones.
        if sum(some.rows for some, _ in waiting) >= ROWS_PER_PRODUCT:
            measure_waiting()
    measure_waiting()
    sizes = [reached.numel() for reached in affected]
    by_sentence = zip(*(part.split(sizes) for part in (drawn, exact, values, x, least, most, group)), strict=True)
    results = []
    for part, reached, of_sentence in zip(pairs.zeroed.parts, affected, by_sentence, strict=True):
        guesses = Guesses(plan.directions, tolerance, *(one.view(reached.shape) for one in of_sentence))
        values_there, error = guesses.bounded()
        while (far := guesses.too_far(error)).any():
            for chunk, parts in pairs.scattered(part, far):
                guesses.values.view(-1)[chunk.cells - part.first_cell] = measure(chunk, parts)
            guesses.exact |= far
            values_there, error = guesses.bounded()
        results.append((values_there.flatten(), error.flatten()))
    of_values, of_errors = (torch.cat(parts) for parts in zip(*results, strict=True))
    return of_values, of_errors
