"""Examples, and the account of how many were left after each filter and why the others were not."""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, overload

from tl_vzero.data.examples import HALVES, Example
from tl_vzero.errors import InputError, escaped, unknown_name

if TYPE_CHECKING:
    import pandas as pd

ALL = "all"


@dataclass(frozen=True, slots=True)
class Stage:
    """A filter by its name, and how many of each paradigm were left after it."""

    name: str
    kept: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Skipped:
    """One example that a filter took out, and the reason."""

    id: str
    paradigm: str
    stage: str
    reason: str


@dataclass(frozen=True, slots=True)
class FilterReport:
    """The filters in their order; the first stage counts what was read."""

    stages: tuple[Stage, ...]
    skipped: tuple[Skipped, ...] = ()

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table: a row for each paradigm and one for all, a column for each stage, counts."""
        import pandas as pd

        table = pd.DataFrame({stage.name: pd.Series(dict(stage.kept), dtype="int64") for stage in self.stages})
        table.index.name = "paradigm"
        table.loc[ALL] = table.sum()
        return table

    def skipped_frame(self) -> "pd.DataFrame":
        """A pandas table of what was taken out: id, paradigm, stage, reason."""
        import pandas as pd

        columns = ["id", "paradigm", "stage", "reason"]
        return pd.DataFrame([[getattr(each, name) for name in columns] for each in self.skipped], columns=columns)

    def after(self, stage: Stage, skipped: Iterable[Skipped]) -> "FilterReport":
        """The report with one more stage."""
        return FilterReport((*self.stages, stage), (*self.skipped, *skipped))


@dataclass(frozen=True, repr=False)
class ExampleSet(Sequence[Example]):
    """Examples in the order of their source, with the report of the filters they passed.

    `split_seed` is the seed of the split into halves; None if there is no split, or the source gave it.
    """

    examples: tuple[Example, ...]
    report: FilterReport
    split_seed: int | None = None

    @overload
    def __getitem__(self, index: int) -> Example: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Example, ...]: ...
    def __getitem__(self, index: int | slice) -> Example | tuple[Example, ...]:
        return self.examples[index]

    def __len__(self) -> int:
        return len(self.examples)

    def __repr__(self) -> str:
        counts = ", ".join(f"{paradigm}: {count}" for paradigm, count in self.counts().items())
        return escaped(f"ExampleSet({len(self)} examples; {counts})")

    def counts(self) -> dict[str, int]:
        """How many examples each paradigm has, in the order of their first example."""
        return dict(Counter(example.paradigm for example in self.examples))

    def half(self, split: str) -> tuple[Example, ...]:
        """The examples of one half.

        Raises InputError for an unknown half, and where the examples were never split.
        """
        if split not in HALVES:
            raise unknown_name("half", split, HALVES)
        if all(example.split is None for example in self.examples):
            raise InputError("these examples have no halves: expected split_in_halves(examples, seed=...) before")
        return tuple(example for example in self.examples if example.split == split)

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table, one row for each example, with all its fields."""
        import pandas as pd

        columns = [field.name for field in fields(Example)]
        return pd.DataFrame([[getattr(each, name) for name in columns] for each in self.examples], columns=columns)

    def filtered(self, stage: str, why_not: Callable[[Example], str | None]) -> "ExampleSet":
        """The examples for which `why_not` gives no reason; the others are listed in the report with theirs."""
        reasons = [why_not(example) for example in self.examples]
        kept = tuple(each for each, reason in zip(self.examples, reasons, strict=True) if reason is None)
        skipped = [
            Skipped(each.id, each.paradigm, stage, reason)
            for each, reason in zip(self.examples, reasons, strict=True)
            if reason is not None
        ]
        counts = Counter(each.paradigm for each in kept)
        # A paradigm of which nothing is left still counts, with 0.
        paradigms = self.report.stages[0].kept
        report = self.report.after(Stage(stage, {paradigm: counts[paradigm] for paradigm in paradigms}), skipped)
        return replace(self, examples=kept, report=report)
