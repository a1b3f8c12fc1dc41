"""Cues by the rule of their source beside those of a dependency parse: how often they agree, and where they do not."""

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from tl_vzero.data.filtering import ExampleSet
from tl_vzero.data.parsed_cues import cue_agreement, cue_disagreements, with_parsed_cues

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class CueCount:
    """Of one paradigm: how often the parse finds the same cue, another word, or none."""

    paradigm: str
    parsed: int
    same: int
    other: int
    none: int


@dataclass(frozen=True)
class Disagreement:
    """One example in which the parse finds another cue; cues as words, empty where the parse finds none."""

    id: str
    paradigm: str
    text: str
    cue: str
    parsed_cue: str


@dataclass(frozen=True)
class CueCheck:
    """Counts by paradigm, the last of all together, and every example in which the two differ."""

    counts: tuple[CueCount, ...]
    disagreements: tuple[Disagreement, ...]

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table of the counts, a row for each paradigm and one for all."""
        import pandas as pd

        return pd.DataFrame([asdict(each) for each in self.counts])

    def disagreements_frame(self) -> "pd.DataFrame":
        """A pandas table of the examples in which rule and parse differ."""
        import pandas as pd

        columns = ["id", "paradigm", "text", "cue", "parsed_cue"]
        return pd.DataFrame([asdict(each) for each in self.disagreements], columns=columns)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types."""
        return {
            "counts": [asdict(each) for each in self.counts],
            "disagreements": [asdict(each) for each in self.disagreements],
        }


def check_cues(examples: ExampleSet) -> CueCheck:
    """Parse each example and compare the cue found with its own, which stays the one that is evaluated.

    Raises DependencyError without an English parser.

    >>> from tl_vzero.data.embedded import agreement_examples
    >>> from tl_vzero.evaluate.sentences import limited
    >>> check_cues(limited(agreement_examples(), 2, 0)).counts[-1].parsed
    2
    """
    parsed = with_parsed_cues(examples)
    return CueCheck(
        tuple(CueCount(**row) for row in _records(cue_agreement(parsed).reset_index())),
        tuple(Disagreement(**row) for row in _records(cue_disagreements(parsed))),
    )


def _records(table: "pd.DataFrame") -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]
