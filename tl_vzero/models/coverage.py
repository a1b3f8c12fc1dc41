"""Which architectures are covered, by what route and to what error: as tests/bench/measure_coverage.py measured it."""

import json
from functools import cache
from importlib.resources import files
from typing import Any


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
