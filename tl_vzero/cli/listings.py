"""Which architectures are covered, by what route and to what error: as tests/bench/measure_coverage.py measured it."""

import json
from functools import cache
from importlib.resources import files
from typing import Annotated, Any

import typer

from tl_vzero.cli.common import (
    DEFAULT_MODEL,
    DEFAULT_TEXT,
    CsvOption,
    JsonOption,
    ModelOption,
    QuietOption,
    errors_in_words,
    say,
)


@cache
def coverage() -> dict[str, Any]:
    """The coverage table, as plain data.

    `architectures` are by what people call them: the Hugging Face class, what a head of the values is, the stacks, and
    by TransformerLens line either the route with the largest errors against a float64 reference (`normalised`:
    absolute, of float32 maps whose rows sum to one; `raw`: relative, of distances from 1e-7 on), or `refused`, why
    not. `refused` are architectures that no line scores, with the reasons.

    >>> coverage()["architectures"]["GPT-2"]["class"]
    'GPT2LMHeadModel'
    """
    text = files("tl_vzero").joinpath("assets", "coverage.json").read_text(encoding="utf-8")
    measured: dict[str, Any] = json.loads(text)
    return measured


def coverage_rows() -> list[dict[str, Any]]:
    """One flat row an architecture and TransformerLens line, those without scores last.

    >>> sorted(coverage_rows()[0])[:4]
    ['adapter', 'architecture', 'attention', 'class']
    """
    table = coverage()
    rows = [_row(name, each, line) for name, each in table["architectures"].items() for line in each["lines"]]
    return rows + [_row(name, each, line) for name, each in table["refused"].items() for line in each["lines"]]


def _row(name: str, architecture: dict[str, Any], line: str) -> dict[str, Any]:
    found = architecture["lines"][line]
    return {
        "architecture": name,
        "class": architecture["class"],
        "transformer_lens": line,
        "adapter": found.get("adapter"),
        "route": found.get("route"),
        "attention": " ".join(found.get("attention", [])),
        "heads": architecture.get("heads"),
        "cross": "cross" in architecture.get("stacks", []),
        "normalised": found.get("normalised"),
        "raw": found.get("raw"),
        "refused": found.get("refused"),
    }


# tl-vzero heads: which heads of each layer mix. Heavy imports stay inside the command.


def heads_command(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Sentences to average over, each in quotes.", metavar="TEXT")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    layer: Annotated[list[int] | None, typer.Option(help="A layer, from 0; may be repeated. Default: all.")] = None,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    quiet: QuietOption = False,
) -> None:
    """How much of each layer's mixing goes when one head's value is zeroed: a row a layer and value head.

    mixing: the distance when this head alone is zeroed, summed over sources, averaged over destinations and sentences;
    share: mixing as a part of its sum over heads; lost: the part of the layer's mixing that goes without this head;
    context: the part of mixing from other positions than the destination's own.
    """
    with errors_in_words():
        from tl_vzero.api import head_importance
        from tl_vzero.files import check_writable, write_text
        from tl_vzero.models.load import load_model

        for path in (json_file, csv_file):
            if path is not None:
                check_writable(path)
        table = head_importance(load_model(model), texts or [DEFAULT_TEXT], layers=layer or None, progress=not quiet)
        say(table.to_string(index=False, float_format="%.3g"))
        if json_file is not None:
            write_text(json_file, json.dumps({"heads": table.to_dict("records")}, ensure_ascii=False))
        if csv_file is not None:
            write_text(csv_file, table.to_csv(index=False))


# tl-vzero models: the coverage table. Heavy imports stay inside the command.


def models_command(json_file: JsonOption = None, csv_file: CsvOption = None) -> None:
    """Which architectures are covered, on which TransformerLens line, by what route, and tested to what error.

    An error is the largest one of a float32 map whose rows sum to one, on a tiny random model with eager and, where
    there is one, fused attention and both engines, against the Hugging Face model in float64 with its value projection
    zeroed by a plain hook. JSON and CSV also have the relative error of raw distances.
    """
    with errors_in_words():
        from tl_vzero.files import check_writable, write_text

        for path in (json_file, csv_file):
            if path is not None:
                check_writable(path)
        say(_table(coverage()))
        if json_file is not None:
            write_text(json_file, json.dumps(coverage(), ensure_ascii=False))
        if csv_file is not None:
            import pandas as pd

            write_text(csv_file, pd.DataFrame(coverage_rows()).to_csv(index=False))


def _table(covered: dict[str, Any]) -> str:
    lines = list(covered["measured_with"])
    head = ["architecture", "Hugging Face class", "heads of values", "stacks", *lines]
    rows = [
        [name, each["class"], each["heads"], " ".join(each["stacks"]), *(_cell(each["lines"][line]) for line in lines)]
        for name, each in covered["architectures"].items()
    ]
    widths = [max(map(len, column)) for column in zip(head, *rows, strict=True)]
    shown = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in (head, *rows)]
    shown += [
        "",
        "3.9, 4.3: TransformerLens; route, largest error; * read by an adapter of tl_vzero's",
        "",
        "not scored:",
    ]
    for name, each in (covered["architectures"] | covered["refused"]).items():
        for reason, where in _reasons(each["lines"]).items():
            shown.append(f"    {name} ({each['class']}), {', '.join(where)}: {reason}")
    return "\n".join(shown)


def _cell(found: dict[str, Any]) -> str:
    if "refused" in found:
        return "no"
    own = "" if found["adapter"] == "TransformerLens" else "*"
    return f"{found['route']}, {found['normalised']:.0e}{own}"


def _reasons(lines: dict[str, Any]) -> dict[str, list[str]]:
    """Why there are no scores, and on which lines."""
    found: dict[str, list[str]] = {}
    for line, each in lines.items():
        if "refused" in each:
            found.setdefault(each["refused"], []).append(line)
    return found
