"""Before and after training: which heads change what they mix into the target, by group of sentences.

1. Each head's row of the target, by Value Zeroing of that head alone, is divided by its sum, and summed by what lies
   there: the cue, its attractors, special tokens, the target itself, the rest. "elsewhere" is half the sum of absolute
   differences to the first model's row: what lies on other sources than there, also of the same kind.
2. Two readings. "total": each model on its own inputs. "same input": each block of a later model reads what that block
   of the first model reads, so that a head is not blamed for what changed below it. Heads are found by the second.
3. For each group and place: is the mean change over the sentences larger than `smallest`? By two one-sided t-tests.
4. A head's p is that of its best cell, corrected for all of its cells (Simes); heads pass at a false-discovery rate
   (Benjamini & Hochberg), and in a head that passed, cells at a rate as much lower as fewer heads passed.

Sources: Mohebbi et al. 2023, section 3; Benjamini & Hochberg 1995; for step 4 Benjamini & Bogomolov 2014, "Selective
inference on multiple families of hypotheses".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.api import value_zeroing
from tl_vzero.clean import CleanRun
from tl_vzero.data.examples import ALL, Example, Skipped
from tl_vzero.errors import InputError, InputTypeError
from tl_vzero.evaluate.mass import PLACES, places_of, shares_of
from tl_vzero.evaluate.results import COLUMNS, Result, Row
from tl_vzero.evaluate.rows import SENTENCES_PER_CALL
from tl_vzero.evaluate.sentences import Protocol, TokenizedExample, TokenizedSet, tokenize_examples
from tl_vzero.inputs.text import encode, same_length_batches
from tl_vzero.models.contracts import check_contracts, provenance, value_heads
from tl_vzero.models.load import load_model
from tl_vzero.models.run import NamedHook, quiet, temporary_hooks
from tl_vzero.statistics import Array, Estimate, Interval, bootstrap_means

if TYPE_CHECKING:
    import pandas as pd

Reading = Literal["same input", "total"]
Loadable = nn.Module | str | Path | Callable[[], nn.Module]
_Rows = dict[int, Float[Tensor, "layer head _"]]  # by the index of their example

RATE = 0.05
ELSEWHERE = "elsewhere"
KINDS = (*PLACES, ELSEWHERE)
SMALLEST = 0.02  # of a row: heads that stay moved by up to 0.007 where two others of their block were silenced
SHOWN = 20  # sentences that are kept to show a head


@dataclass(frozen=True)
class HeadChange(Row):
    """How a head's share on one place changed from the first model to a later one, over a group's sentences.

    `p` is the cell's, `q` its head's; `changed` says that the cell passed. All three are None for the reading "total".
    """

    checkpoint: str
    reading: Reading
    group: str
    layer: int
    head: int
    place: str
    before: float
    after: float
    change: Estimate = field(metadata={COLUMNS: ""})
    p: float | None
    q: float | None
    changed: bool | None


@dataclass(frozen=True)
class Shown(Row):
    """A sentence that shows a head's largest change.

    `rows` are the shares of each token in the target's row, to three digits: "before", "same input" and "total", which
    is that of the later model on its own inputs.
    """

    checkpoint: str
    layer: int
    head: int
    id: str
    text: str
    place: str
    before: float
    after: float
    tokens: tuple[str, ...]
    target: int
    rows: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class TrainingChanges(Result):
    """Changes by checkpoint, reading, group, layer, head and place; and sentences that show the heads that changed."""

    changes: tuple[HeadChange, ...]
    shown: tuple[Shown, ...]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table, a row per cell; `change` is the mean, `low` and `high` bound its interval."""
        return super().to_frame().rename(columns={"mean": "change"})

    def heads(self) -> "pd.DataFrame":
        """The heads that changed, a row each, with the largest of their changes; the most changed are first.

        "elsewhere" and "rest" stand only where no other place says what changed.
        """
        import pandas as pd

        largest = [next(one.records()) for one in largest_changes(self.changes).values()]
        names = [name for name in self.to_frame() if name not in ("reading", "changed")]
        return pd.DataFrame(largest).rename(columns={"mean": "change"}).reindex(columns=names)

    def examples(self, layer: int, head: int, k: int = 5) -> tuple[Shown, ...]:
        """The sentences that show best how a head changed, in any checkpoint; none for a head that did not."""
        best: dict[str, Shown] = {}
        for one in sorted(self.shown, key=lambda one: -abs(one.after - one.before)):
            if (one.layer, one.head) == (layer, head):
                best.setdefault(one.id, one)
        return tuple(best.values())[:k]


def groups_of(example: Example) -> tuple[str, ...]:
    """The groups that an example is in: all, its paradigm, and whether another noun competes with its cue."""
    return ALL, example.paradigm, "conflicting" if example.attractor else "not conflicting"


def training_changes(
    models: Mapping[str, Loadable],
    examples: Sequence[Example],
    *,
    groups: Callable[[Example], Sequence[str]] = groups_of,
    rate: float = RATE,
    smallest: float = SMALLEST,
    protocol: Protocol = "masked",
    interval: Interval | None = None,
    progress: bool = False,
) -> TrainingChanges:
    """Which heads change what they mix into the target, from the first model to each later one.

    `models` are by the names that the table gives them: loaded ones, names or folders, or functions that load one when
    its turn comes. All must have the same blocks and tokens. `groups` names the groups of an example. `rate` is the
    expected share of wrong heads among those found; a mean change of a share counts from `smallest` on, 0 to 1.
    Changes are of shares, after minus before; an empty row has all shares 0. A group of one sentence has no test.

    Raises InputError or InputTypeError for fewer than two models, models that do not fit together, a rate or a smallest
    change outside 0 to 1, and what `load_model` and `tokenize_examples` raise; leaves the models as they were.
    Source: Value Zeroing is that of Mohebbi et al. 2023, section 3; the tests are those of this module's steps.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> training_changes({"before": model, "after": model}, agreement_examples()[:8]).heads().empty
    True
    """
    _check(models, rate, smallest)
    (first, *later), interval = models, interval or Interval()
    with tqdm(total=2 * len(later) + 1, disable=not progress, desc="models", unit="reading", leave=False) as bar:
        loaded = _loaded(models[first])
        reference = _Reference(loaded, tokenize_examples(loaded, examples, protocol=protocol))
        settings = {first: provenance(loaded)}
        bar.update()
        read: dict[Reading, list[Array]] = {"same input": [], "total": []}
        rows: dict[str, list[_Rows]] = {"same input": [], "total": []}
        for name in later:
            loaded = _loaded(models[name])
            reference.check(name, loaded)
            for reading, shares in read.items():
                of_model = reference.rows(loaded, same_input=reading == "same input")
                shares.append(reference.shares(of_model))
                rows[reading].append({index: row.half() for index, row in of_model.items()})  # a few are shown
                bar.update()
            settings[name] = provenance(loaded)
    before = reference.shares(reference.before)
    same, total = (np.stack(shares) for shares in read.values())
    tokenized = reference.tokenized
    by_group: dict[str, list[int]] = {}
    for index, sentence in enumerate(tokenized.examples):
        for group in groups(sentence.example):
            by_group.setdefault(group, []).append(index)
    changes = list(_changes(later, by_group, before, total, "total", None, interval))
    # [checkpoint, layer, head, place, group]
    p = np.stack([p_values((same - before)[:, some].swapaxes(0, 1), smallest) for some in by_group.values()], axis=-1)
    q, changed = discoveries(p.reshape(*p.shape[:3], -1), rate)
    discovered = list(_changes(later, by_group, before, same, "same input", (p, q, changed.reshape(p.shape)), interval))
    by_reading = {"before": [reference.before] * len(later), **rows}
    shown = _shown(discovered, later, by_group, tokenized.examples, before, same, by_reading)
    how = {"rate": rate, "smallest": smallest, "protocol": protocol, "confidence": interval.confidence}
    return TrainingChanges((*discovered, *changes), tuple(shown), tokenized.skipped, {"models": settings, **how})


# The statistics, of changes alone.


def p_values(changes: Array, smallest: float) -> Array:
    """Of changes `[example, ...]`: how surprising is their mean, were the true one not beyond `smallest` either way?

    Twice the smaller of two one-sided t-tests, at most 1; also 1 for one example, and where nothing changes.

    >>> p_values(np.array([[0.0, 0.31, 0.04], [0.0, 0.29, 0.06], [0.0, 0.3, 0.05]]), 0.05).round(3).tolist()
    [1.0, 0.001, 1.0]
    """
    from scipy.special import stdtr

    n = len(changes)
    if n < 2:
        return np.ones(changes.shape[1:])
    beyond = np.abs(changes.mean(axis=0)) - smallest
    error = changes.std(axis=0, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        statistic = np.where(beyond > 0, beyond / error, 0)
    return np.asarray(np.minimum(1, 2 * stdtr(n - 1, -statistic)))


def discoveries(p: Array, rate: float) -> tuple[Array, Array]:
    """Of p `[..., cell]`, one family of cells per head: each head's q, and which cells changed, by step 4.

    A head's q is at most `rate` just where one of its cells changed.

    >>> q, changed = discoveries(np.array([[0.001, 0.9], [0.4, 0.9]]), 0.05)
    >>> q.tolist(), changed.tolist()
    ([0.004, 0.8], [[True, False], [False, False]])
    """
    from scipy.stats import false_discovery_control

    within = false_discovery_control(p, axis=-1)
    of_head = within.min(axis=-1)
    q = false_discovery_control(of_head, axis=None).reshape(of_head.shape)
    passed = q <= rate
    # A little slack: q compares the same numbers, multiplied in another order.
    return q, passed[..., None] & (within <= rate * passed.mean() * (1 + 1e-9))


# The shares of every head, on the model's own inputs or on the first model's.


@dataclass(frozen=True, eq=False)
class _Part:
    """Examples of one length and target position, by their indices, and what each block of the first model reads."""

    which: Sequence[int]
    ids: Tensor
    dest: int
    inputs: tuple[Tensor, ...]


class _Reference:
    """The first model's tokens, and what each of its blocks reads of them."""

    def __init__(self, model: nn.Module, tokenized: TokenizedSet) -> None:
        self.tokenized, self.shape = tokenized, _shape_of(model)
        examples = tokenized.examples
        # Not too many at a time: what blocks read of them is held.
        alike = same_length_batches(
            range(len(examples)), lambda at: (len(examples[at]), examples[at].dest), lambda _: SENTENCES_PER_CALL
        )
        self.parts = [self._part(model, which) for which in alike]
        self.before = self.rows(model)

    def _part(self, model: nn.Module, which: Sequence[int]) -> _Part:
        examples = [self.tokenized.examples[index] for index in which]
        ids = torch.stack([sentence.encoding.ids for sentence in examples])
        blocks = _clean(model, ids).blocks(encode(model, ids).sentences, range(self.shape["layers"]))
        return _Part(which, ids, examples[0].dest, tuple(block.input for block in blocks.values()))

    def check(self, name: str, model: nn.Module) -> None:
        """Raise InputError for a model that cannot take the first one's tokens or inputs."""
        shape = _shape_of(model)
        if shape != self.shape:
            raise InputError(f"{name!r} has {_listed(shape)}: expected {_listed(self.shape)}, as the first model")
        examples = [sentence.example for sentence in self.tokenized.examples]
        read = tokenize_examples(model, examples, protocol=self.tokenized.protocol).examples
        for one, other in zip(self.tokenized.examples, read, strict=False):
            if not torch.equal(one.encoding.ids, other.encoding.ids):
                raise InputError(
                    f"{name!r} reads other tokens than the first model, at {one.example.id}: expected models with one "
                    "tokenizer, such as checkpoints of one training"
                )

    def rows(self, model: nn.Module, *, same_input: bool = False) -> _Rows:
        """The target's row of each head by itself, divided by its sum, of each example by its index."""
        rows: dict[int, Tensor] = {}
        for part in self.parts:
            cache = _clean(model, part.ids, part.inputs) if same_input else None
            scored: Any = value_zeroing(model, part.ids, cache=cache, per_head=True, destinations=part.dest)
            for index, scores in zip(part.which, scored, strict=True):
                rows[index] = scores.normalized().values[:, :, 0].detach().cpu().double()
        return rows

    def shares(self, rows: _Rows) -> Float[Array, "example layer head kind"]:
        """What of the rows lies on each place, and what lies elsewhere than in the first model."""
        shares = []
        for index, sentence in enumerate(self.tokenized.examples):
            elsewhere = (rows[index] - self.before[index]).abs().sum(dim=-1, keepdim=True) / 2
            shares.append(torch.cat([shares_of(rows[index], places_of(sentence, "all")), elsewhere], dim=-1))
        return torch.stack(shares).numpy()


def _clean(model: nn.Module, ids: Tensor, inputs: Sequence[Tensor] = ()) -> CleanRun:
    """The clean run of sentences of one length; each block reads of `inputs` where they are given."""
    sites = check_contracts(model)
    hooks: list[NamedHook] = [
        (site, lambda activation, *, hook, read=read: read.to(activation))
        for site, read in zip(sites.inputs, inputs, strict=False)
    ]
    with quiet(model), temporary_hooks(model, hooks):
        return CleanRun(model, sites, encode(model, ids).sentences, last=sites.n_layers - 1)


def _shape_of(model: nn.Module) -> dict[str, int]:
    config: Any = model.cfg
    return {
        "layers": check_contracts(model).n_layers,
        "value heads": value_heads(model),
        "features": int(config.d_model),
    }


def _listed(shape: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {what}" for what, count in shape.items())


def _loaded(model: Loadable) -> nn.Module:
    if isinstance(model, nn.Module):
        return model
    return load_model(model) if isinstance(model, str | Path) else model()


def _check(models: object, rate: object, smallest: object) -> None:
    if not isinstance(models, Mapping):
        raise InputTypeError(f"models is {type(models).__name__}: expected a mapping from names to models or folders")
    for name, model in models.items():
        if not (isinstance(model, nn.Module | str | Path) or callable(model)):
            raise InputTypeError(
                f"models[{name!r}] is {type(model).__name__}: expected a model, a name or folder, or a function that "
                "loads one"
            )
    if len(models) < 2:
        raise InputError(f"models has {len(models)}: expected at least two, the one before and the ones after")
    for what, value in (("rate", rate), ("smallest", smallest)):
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise InputTypeError(f"{what} is {type(value).__name__}: expected a number from 0 to below 1")
        if not (isfinite(value) and 0 <= value < 1):
            raise InputError(f"{what} is {value}: expected a number from 0 to below 1")


# The rows of the result.


def _changes(
    later: Sequence[str],
    by_group: Mapping[str, Sequence[int]],
    before: Array,
    after: Array,
    reading: Reading,
    tests: tuple[Array, Array, Array] | None,
    interval: Interval,
) -> Iterator[HeadChange]:
    """A row per checkpoint, group, layer, head and place; `after` is `[checkpoint, example, layer, head, place]`."""
    for (c, name), (g, (group, rows)) in product(enumerate(later), enumerate(by_group.items())):
        change = (after[c] - before)[rows]
        estimates = bootstrap_means(change.reshape(len(rows), -1), **vars(interval))
        cells = product(range(change.shape[1]), range(change.shape[2]), range(len(KINDS)))
        was, now = (shares[rows].mean(axis=0) for shares in (before, after[c]))
        for (layer, head, at), estimate in zip(cells, estimates, strict=True):
            tested: dict[str, Any] = {"p": None, "q": None, "changed": None}
            if tests is not None:
                p, q, changed = tests
                cell = c, layer, head, at, g
                tested = {"p": float(p[cell]), "q": float(q[cell[:3]]), "changed": bool(changed[cell])}
            place = (layer, head, KINDS[at], float(was[layer, head, at]), float(now[layer, head, at]), estimate)
            yield HeadChange(name, reading, group, *place, **tested)


def largest_changes(changes: Sequence[HeadChange]) -> dict[tuple[str, int, int], HeadChange]:
    """The largest change of each head that changed, the most changed first; "rest" and "elsewhere" say least."""
    largest: dict[tuple[str, int, int], HeadChange] = {}
    vague = {"rest": 1, ELSEWHERE: 2}
    passed = [one for one in changes if one.changed]
    for one in sorted(passed, key=lambda one: (vague.get(one.place, 0), -abs(one.change.mean))):
        largest.setdefault((one.checkpoint, one.layer, one.head), one)
    return dict(sorted(largest.items(), key=lambda item: -abs(item[1].change.mean)))


def _shown(
    changes: Sequence[HeadChange],
    later: Sequence[str],
    by_group: Mapping[str, Sequence[int]],
    examples: Sequence[TokenizedExample],
    before: Array,
    after: Array,
    rows: Mapping[str, Sequence[_Rows]],
) -> Iterator[Shown]:
    """The sentences that changed most, in its direction, of each head's largest change."""
    for (name, layer, head), largest in largest_changes(changes).items():
        c, of_group, at = later.index(name), by_group[largest.group], (layer, head, KINDS.index(largest.place))
        was, now = (shares[of_group][:, *at] for shares in (before, after[c]))
        for place in np.argsort(-np.sign(largest.change.mean) * (now - was), kind="stable")[:SHOWN]:
            sentence, example = examples[of_group[place]], examples[of_group[place]].example
            numbers = float(was[place]), float(now[place])
            shares = {
                reading: tuple(round(share, 3) for share in models[c][of_group[place]][layer, head].tolist())
                for reading, models in rows.items()
            }
            tokens = tuple(sentence.encoding.tokens)
            yield Shown(
                name, layer, head, example.id, example.text, largest.place, *numbers, tokens, sentence.dest, shares
            )
