"""What training changed, as one HTML page without scripts: curves by layer, the heads that changed, and sentences that
show it."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

from tl_vzero.evaluate.mass import PLACES
from tl_vzero.evaluate.training import KINDS, HeadChange, Reading, Shown, TrainingChanges, largest_changes
from tl_vzero.plot.evaluations import COLOURS
from tl_vzero.plot.pages import rendered
from tl_vzero.plot.parts import short, texts_of
from tl_vzero.report.reproduction_page import Table

HEADS_SHOWN, SENTENCES_SHOWN, NAMED = 6, 3, 4  # NAMED: lines with a colour in a chart
VAGUE = ("rest", "elsewhere")
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 300, 170, 30, 244, 10, 146  # of a chart, and of its lines within
LABEL_STEP = 12  # from a line's name to the next
PLACES_IN_WORDS = {  # a name, and what explains it
    "cue": ("the cue", ", which is the word that decides the target's form"),
    "attractor": ("attractors", ", which are nouns of the other number that compete with the cue"),
    "special": ("special tokens", " such as [CLS] and [SEP], which are no words"),
    "target": ("the target itself", ""),
    "rest": ("other words", ""),
    "elsewhere": ("other tokens than before", ": half the sum of the row's absolute differences"),
}
READINGS: dict[Reading, str] = {
    "total": "Each model on its own inputs (not tested)",
    "same input": "Each block on what that block of the first model reads (tested)",
}
ROWS_IN_WORDS = {"before": "first model", "same input": "later, same inputs", "total": "later, its own inputs"}


@dataclass(frozen=True)
class Line:
    """A head's line in a chart; one that is named has a colour, a band for its interval, and its name at `label`."""

    points: str
    summary: str
    colour: str | None = None
    band: str = ""
    name: str = ""
    label: float = 0


@dataclass(frozen=True)
class Chart:
    """The lines of a layer; `words` say the same."""

    layer: int
    lines: Sequence[Line]
    ticks: Sequence[tuple[float, str]]
    words: str


@dataclass(frozen=True)
class Head:
    """A head that changed: its largest change in the last model that it passed in, the models it passed in, that change
    by group, sentences, and its shares by place: before, on the same inputs, and on the model's own inputs."""

    change: HeadChange
    places: Mapping[str, Sequence[float]]
    passed: Sequence[str]
    groups: Table
    sentences: Sequence[tuple[str, Sequence[tuple[str, Sequence[tuple[str, float, float, bool]]]]]]


def render_training(changes: TrainingChanges, *, source: str = "") -> str:
    """Fill the page's template; `source` says where the sentences are from. Names and tokens are text, never markup."""
    names = list(changes.settings["models"])
    main = changes.changes[0].group
    sizes = {one.group: one.change.n for one in changes.changes}
    heads = list(_heads(changes))
    facts = {
        "Before": names[0],
        "After": names[1] if len(names) == 2 else f"{len(names) - 1} models, {names[1]} to {names[-1]}",
        "Sentences": f"{sizes[main]}{f': {source}' if source else ''}",
        "Groups": ", ".join(f"{group} ({n})" for group, n in sizes.items()),
    }
    return rendered(
        "training/page.html",
        facts=facts,
        names=names,
        ends=[short(names[0], 20), short(names[-1], 20)],
        group=main,
        settings=changes.settings,
        tested=len({(one.layer, one.head) for one in changes.changes}),
        found=len(largest_changes(changes.changes)),
        heads=heads,
        shown=[head for head in heads if head.sentences][:HEADS_SHOWN],
        table=_table(heads, len(names) - 1),
        charts=_charts(changes.changes, main),
        places=PLACES_IN_WORDS,
        readings=READINGS,
        rows=ROWS_IN_WORDS,
        box={"width": WIDTH, "height": HEIGHT, "left": LEFT, "right": RIGHT, "bottom": BOTTOM},
    )


def _heads(changes: TrainingChanges) -> Iterator[Head]:
    """The heads that changed in any model; first those of which a place says what they mix, most changed first."""
    largest = largest_changes(changes.changes)
    models = list(changes.settings["models"])
    passed: dict[tuple[int, int], list[str]] = {}
    for name, layer, head in sorted(largest, key=lambda at: models.index(at[0])):
        passed.setdefault((layer, head), []).append(name)
    best = [largest[names[-1], *at] for at, names in passed.items()]
    cells = {(c.reading, c.checkpoint, c.group, c.layer, c.head, c.place): c for c in changes.changes}
    groups = list(dict.fromkeys(one.group for one in changes.changes))
    for one in sorted(best, key=lambda one: (one.place in VAGUE, -abs(one.change.mean))):
        at = (one.layer, one.head)
        of_head = (*at, one.place)
        by_group = [cells["same input", one.checkpoint, group, *of_head] for group in groups]
        places: dict[str, list[float]] = {}
        for place in PLACES:
            same, total = (cells.get((r, one.checkpoint, one.group, *at, place)) for r in ("same input", "total"))
            if same is not None and total is not None and max(same.before, same.after, total.after) >= 0.005:
                places[place] = [same.before, same.after, total.after]
        shown = (
            sentence
            for sentence in changes.shown
            if (sentence.checkpoint, sentence.layer, sentence.head) == (one.checkpoint, *at)
        )
        sentences = [
            (sentence.text, _rows(sentence)) for sentence, _ in zip(shown, range(SENTENCES_SHOWN), strict=False)
        ]
        yield Head(one, places, passed[at], _groups(by_group), sentences)


def _rows(shown: Shown) -> list[tuple[str, list[tuple[str, float, float, bool]]]]:
    """By reading, each token with its share, its part of the sentence's largest share, and whether it is the target."""
    most = max(max(row) for row in shown.rows.values()) or 1
    texts = texts_of(shown.tokens)
    return [
        (reading, [(texts[at], share, share / most, at == shown.target) for at, share in enumerate(row)])
        for reading, row in shown.rows.items()
    ]


def _interval(one: HeadChange) -> str:
    change = one.change
    return f"{change.mean:+.2f} [{change.low:+.2f}, {change.high:+.2f}]"


def _groups(cells: Sequence[HeadChange]) -> Table:
    return Table(
        f"Share on {cells[0].place} in {cells[0].checkpoint}, same inputs: mean change and its interval",
        ["group", "sentences", "before", "after", "change", "passed"],
        [
            [one.group, str(one.change.n), f"{one.before:.2f}", f"{one.after:.2f}", _interval(one), _yes(one.changed)]
            for one in cells
        ],
    )


def _yes(passed: bool | None) -> str:
    return "yes" if passed else "no"


def _table(heads: Sequence[Head], later: int) -> Table:
    """A row for each head that changed."""
    rows = []
    for head in heads:
        one = head.change
        where = [f"layer {one.layer}, head {one.head}", one.place, one.group, one.checkpoint]
        q = "< 0.001" if (one.q or 0) < 0.001 else f"{one.q:.3f}"
        passed = f"{len(head.passed)} of {later}"
        rows.append([*where, f"{one.before:.2f}", f"{one.after:.2f}", _interval(one), q, passed])
    return Table(
        "The largest change of each head in the last model that it passed in, on the first model's inputs",
        ["head", "place", "group", "model", "before", "after", "change", "q", "models it passed in"],
        rows,
    )


def _charts(changes: Sequence[HeadChange], group: str) -> dict[str, dict[Reading, list[Chart]]]:
    """The charts of a group by place and reading, a layer each; places that no row has are left out."""
    lines: dict[str, dict[Reading, dict[int, dict[int, list[HeadChange]]]]] = {}
    for one in changes:
        if one.group == group:
            of_layer = lines.setdefault(one.place, {}).setdefault(one.reading, {}).setdefault(one.layer, {})
            of_layer.setdefault(one.head, []).append(one)
    charts: dict[str, dict[Reading, list[Chart]]] = {}
    for place in (place for place in KINDS if place in lines):
        heads = [line for of_place in lines[place].values() for layer in of_place.values() for line in layer.values()]
        most = max(max(one.before, one.before + one.change.high) for line in heads for one in line)
        if most <= 0:
            continue
        passed = {(line[0].layer, line[0].head) for line in heads if any(one.changed for one in line)}
        moved: dict[tuple[int, int], float] = {}
        for line in heads:
            at = (line[0].layer, line[0].head)
            if at in passed:
                moved[at] = max(moved.get(at, 0.0), *(abs(one.change.mean) for one in line))
        # The same heads have the same colours in both readings.
        named = {
            layer: sorted(sorted((h for at, h in moved if at == layer), key=lambda h: -moved[layer, h])[:NAMED])
            for layer in {layer for layer, _ in moved}
        }
        top = ceil(10 * min(most, 1)) / 10
        charts[place] = {
            reading: [_chart(layer, of_layer, named.get(layer, []), top) for layer, of_layer in by.items()]
            for reading in READINGS
            if (by := lines[place].get(reading))
        }
    return charts


def _chart(layer: int, heads: Mapping[int, Sequence[HeadChange]], named: Sequence[int], top: float) -> Chart:
    """A chart of shares from 0 to `top`; `named` heads have names and colours."""

    def y(share: float) -> float:
        return round(BOTTOM - (BOTTOM - TOP) * min(max(share, 0), top) / top, 1)

    steps = len(next(iter(heads.values())))
    xs = [round(LEFT + (RIGHT - LEFT) * step / steps, 1) for step in range(steps + 1)]
    labels: dict[int, float] = {}
    floor = float("-inf")
    for head in sorted(named, key=lambda head: y(heads[head][-1].after)):
        labels[head] = floor = max(y(heads[head][-1].after), floor + LABEL_STEP)
    over = max(0.0, floor - BOTTOM)
    lines = []
    for head in sorted(heads, key=named.__contains__):  # what is drawn last lies on top
        line = heads[head]
        start = line[0].before
        points = _points(xs, [y(start), *(y(one.after) for one in line)])
        summary = f"head {head}: {start:.2f} to {line[-1].after:.2f}"
        if head not in named:
            lines.append(Line(points, summary))
            continue
        low, high = ([y(start), *(y(one.before + getattr(one.change, end)) for one in line)] for end in ("low", "high"))
        band = f"{_points(xs, high)} {_points(xs[::-1], low[::-1])}"
        lines.append(
            Line(points, summary, COLOURS[named.index(head)], band, f"head {head}", round(labels[head] - over, 1))
        )
    words = f"layer {layer}: " + "; ".join(line.summary for line in lines)
    return Chart(layer, lines, [(y(share), f"{share:.2g}") for share in (0.0, top / 2, top)], words)


def _points(xs: Sequence[float], ys: Sequence[float]) -> str:
    return " ".join(f"{x:g},{y:g}" for x, y in zip(xs, ys, strict=True))
