"""tl-vzero methods, models and heads: tables of what there is, and of which heads mix. The coverage table is as
tests/bench/measure_coverage.py measured it. Heavy imports stay inside the commands."""

import json
from collections.abc import Iterable
from functools import cache
from importlib import resources
from typing import TYPE_CHECKING, Annotated, Any

import typer

import tl_vzero
from tl_vzero.cli import common

if TYPE_CHECKING:
    import pandas as pd


@common.command(common.app, "methods", "", "--csv methods.csv")
def methods_command(files: common.FileOptions) -> None:
    """The context-mixing methods there are: what each measures, its paper, what it is defined for and what it needs."""
    for name, method in tl_vzero.METHODS.items():
        common.say(f"{name}\n    {method.summary} ({method.reference}); for {method.defined_for}")
        common.say(f"    needs: {', '.join(method.needs) or 'not said'}")
        for stack, reason in method.refused_stacks.items():
            common.say(f"    not for {stack!r} of an encoder-decoder: {reason}")
    parts = ("summary", "reference", "defined_for", "needs", "refused_stacks")
    described = {name: {part: getattr(m, part) for part in parts} for name, m in tl_vzero.METHODS.items()}
    rows = (
        {"method": name, **m, "needs": ", ".join(m["needs"]), "refused_stacks": ", ".join(m["refused_stacks"])}
        for name, m in described.items()
    )
    files.write(lambda: described, lambda: _frame(rows))


@common.command(
    common.app,
    "heads",
    "--layer 1",
    '"the authors [MASK] today." "the hat near the authors [MASK] today." --csv heads.csv',
)
def heads_command(
    chosen: common.ModelOptions,
    files: common.FileOptions,
    replaced: common.BaselineOptions,
    texts: Annotated[
        list[str] | None, typer.Argument(help="Sentences to average over, each in quotes.", metavar="TEXT")
    ] = None,
    layer: common.LayersOption = None,
) -> None:
    """How much of each layer's mixing goes when one head's value is zeroed: one row per layer and value head.

    mixing: the distance when this head alone is zeroed, summed over sources, averaged over destinations and sentences;
    share: mixing as a part of its sum over heads; lost: the part of the layer's mixing that goes without this head;
    context: the part of mixing from other positions than the destination's own.
    """
    from tl_vzero.targets import default_text

    baseline = replaced.read()
    model = chosen.load(layers=layer)
    options: Any = {"layers": layer or None, "baseline": baseline, "progress": not chosen.quiet}
    table = tl_vzero.head_importance(model, texts or [default_text(model)], **options)
    common.say(table.to_string(index=False, float_format="%.3g"))
    files.write(lambda: {"heads": table.to_dict("records")}, lambda: table)


@common.command(common.app, "models", "", "--csv models.csv")
def models_command(files: common.FileOptions) -> None:
    """Which architectures are covered, on which TransformerLens line, by what route, and tested to what error.

    An error is the largest one of a float32 map whose rows sum to one, on a tiny random model with eager and, where
    there is one, fused attention and both engines, against the Hugging Face model in float64 with its value projection
    zeroed by a plain hook. JSON and CSV also have the relative error of raw distances.
    """
    common.say(_table(coverage()))
    files.write(coverage, lambda: _frame(coverage_rows()))


def _frame(rows: Iterable[dict[str, Any]]) -> "pd.DataFrame":
    """Rows as a table."""
    import pandas as pd

    return pd.DataFrame(rows)


@cache
def coverage() -> dict[str, Any]:
    """The coverage table, as plain data.

    `architectures` are by what people call them: the Hugging Face class, what a head of the values is, the stacks, and
    by TransformerLens line either the route with the largest errors against a float64 reference (`normalised`:
    absolute, of float32 maps whose rows sum to one; `raw`: relative, of distances from 1e-7 on), or `refused`, why
    not. `refused` are architectures that no line scores, with the reasons.
    """
    text = resources.files("tl_vzero").joinpath("assets", "coverage.json").read_text(encoding="utf-8")
    measured: dict[str, Any] = json.loads(text)
    return measured


def coverage_rows() -> list[dict[str, Any]]:
    """One flat row per architecture and TransformerLens line, those without scores last."""
    table = coverage()
    return [
        {
            "architecture": name,
            "class": architecture["class"],
            "transformer_lens": line,
            "adapter": result.get("adapter"),
            "route": result.get("route"),
            "attention": " ".join(result.get("attention", [])),
            "heads": architecture.get("heads"),
            "cross": "cross" in architecture.get("stacks", []),
            "normalised": result.get("normalised"),
            "raw": result.get("raw"),
            "refused": result.get("refused"),
        }
        for architectures in (table["architectures"], table["refused"])
        for name, architecture in architectures.items()
        for line, result in architecture["lines"].items()
    ]


DIFFUSION = "LLaDA, LLaDA 2, Dream, BD3LM, GIDD"
OF_OWN_CODE = (
    "transformers has no class for them, and the code in a model's own folder is run only with trust_remote_code=True; "
    "no map of one was measured"
)


def _table(covered: dict[str, Any]) -> str:
    lines = list(covered["measured_with"])
    rows = [["architecture", "Hugging Face class", "heads of values", "stacks", *lines]]
    for name, architecture in covered["architectures"].items():
        cells = [_cell(architecture["lines"][line]) for line in lines]
        rows.append([name, architecture["class"], architecture["heads"], " ".join(architecture["stacks"]), *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    shown = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    shown += [
        "",
        "3.9, 4.3: TransformerLens; route, largest error; * read by an adapter of tl_vzero's",
        "",
        "not scored:",
    ]
    for name, architecture in (covered["architectures"] | covered["refused"]).items():
        lines_by_reason: dict[str, list[str]] = {}
        for line, result in architecture["lines"].items():
            if "refused" in result:
                lines_by_reason.setdefault(result["refused"], []).append(line)
        for reason, refusing in lines_by_reason.items():
            shown.append(f"    {name} ({architecture['class']}), {', '.join(refusing)}: {reason}")
    shown.append(f"    diffusion language models ({DIFFUSION}), 3.9, 4.3: {OF_OWN_CODE}")
    return "\n".join(shown)


def _cell(result: dict[str, Any]) -> str:
    if "refused" in result:
        return "no"
    return f"{result['route']}, {result['normalised']:.0e}{'' if result['adapter'] == 'TransformerLens' else '*'}"
