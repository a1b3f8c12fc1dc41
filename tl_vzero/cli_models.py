"""tl-vzero models: the coverage table. Heavy imports stay inside the command."""

import json
from typing import Any

from tl_vzero.cli_options import CsvOption, JsonOption, errors_in_words, say


def models_command(json_file: JsonOption = None, csv_file: CsvOption = None) -> None:
    """Which architectures are covered, on which TransformerLens line, by what route, and tested to what error.

    An error is the largest one of a float32 map whose rows sum to one, on a tiny random model with eager and, where
    there is one, fused attention and both engines, against the Hugging Face model in float64 with its value projection
    zeroed by a plain hook. JSON and CSV also have the relative error of raw distances.
    """
    with errors_in_words():
        from tl_vzero.files import check_writable, write_text
        from tl_vzero.models.coverage import coverage, coverage_rows

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
