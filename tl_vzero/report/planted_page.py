"""Planted truth as one HTML page without scripts: tables of every method and model, and who falls for which trap."""

from tl_vzero.evaluate.planted import FALLEN, Measure, PlantedTruth
from tl_vzero.evaluate.planted_models import planted_models
from tl_vzero.plot.pages import rendered
from tl_vzero.registry import label_of
from tl_vzero.report.reproduction_page import Table

MEASURES: dict[Measure, str] = {"ap": "Average precision", "auroc": "Area under the ROC curve; chance is 0.5"}
KINDS = {
    "hand-written": ("Tasks, written by hand", "Nothing misleads here: a score that fails fails for itself."),
    "trap": ("Traps, written by hand", "Each model has something that invites a wrong score; their stories are below."),
    "trained": ("Tasks, trained", "Random weights trained on the same tasks, with one block where one is enough."),
}
MEASURED = (
    "Means over the inputs, and over the layers that have a known flow; the first column is the mean over models."
)


def render_planted(truth: PlantedTruth) -> str:
    """The page of a result."""
    kinds = {row.title: row.kind for row in truth.recovered}
    sections = []
    for kind, (title, how) in KINDS.items():
        columns = [model for model, of_model in kinds.items() if of_model == kind]
        if columns:
            sections.append((title, f"{how} {MEASURED}", [_table(truth, measure, columns) for measure in MEASURES]))
    stories = {planted.title: planted.story for planted in planted_models()}
    traps = [
        (
            title,
            stories[title],
            *([name for name, falls in by_method.items() if falls is is_fallen] for is_fallen in (True, False)),
        )
        for title, by_method in truth.falls().items()
    ]
    head = ("Model", "Right answers", "Changed where a flow is claimed", "Changed elsewhere")
    checked = Table(
        "Each model's check, shares of inputs",
        head,
        [(title, *(f"{share:.3f}" for share in shares.values())) for title, shares in truth.checks.items()],
    )
    left_out = {label_of(name): reason for reasons in truth.left_out.values() for name, reason in reasons.items()}
    facts = {
        "models": str(len(truth.checks)),
        "methods": str(len(truth.settings["methods"])),
        "inputs of each model": str(truth.settings["n_inputs"]),
        "seed": str(truth.settings["seed"]),
    }
    return rendered(
        "planted/page.html",
        checks=truth.checks,
        facts=facts,
        sections=sections,
        traps=traps,
        fallen=FALLEN,
        checked=checked,
        rejected=truth.rejected,
        left_out=left_out,
    )


def _table(
    truth: PlantedTruth, measure: Measure, columns: list[str]
) -> tuple[str, list[str], list[tuple[str, list[float]]]]:
    frame = truth.summary(measure)[columns]
    frame.insert(0, "mean", frame.mean(axis=1))
    return (
        MEASURES[measure],
        list(frame.columns),
        [(str(name), list(row)) for name, row in zip(frame.index, frame.to_numpy(), strict=True)],
    )
