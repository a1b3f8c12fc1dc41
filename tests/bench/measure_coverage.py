"""Measure architectures on this TransformerLens line, and write them into tl_vzero/assets/coverage.json.

    python tests/bench/measure_coverage.py              all of them, and what is refused
    python tests/bench/measure_coverage.py "OLMo 3"     this row alone

Run it once in an environment of each line (`tox exec -e tl3 -- python ...`). It fails where an error is too large.
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))

from support.covered import ROWS, heads_of, line_entry, measured, refused, stacks_of  # noqa: E402

FILE = ROOT / "tl_vzero" / "assets" / "coverage.json"


def main() -> None:
    """Measure, print, and write."""
    before = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    line, versions = line_entry()
    table: dict[str, Any] = {
        "measured_with": _sorted(before.get("measured_with", {}) | {line: versions}),
        "architectures": {},
        "refused": {},
    }
    names = sys.argv[1:] or [*ROWS]
    for name, row in ROWS.items():
        if name not in names:
            table["architectures"][name] = before["architectures"][name]
            continue
        of_line = measured(row)
        print(name, of_line)
        others = before.get("architectures", {}).get(name, {}).get("lines", {})
        table["architectures"][name] = {
            "class": type(row.tiny()).__name__,
            "heads": heads_of(row),
            "stacks": list(stacks_of(row)),
            "lines": _sorted(others | {line: of_line}),
        }
    if sys.argv[1:]:
        table["refused"] = before["refused"]
    for name, case in refused().items() if not sys.argv[1:] else ():
        others = before.get("refused", {}).get(name, {}).get("lines", {})
        lines = _sorted(others | {line: {"refused": case["refused"]}})
        table["refused"][name] = {"class": case["class"], "lines": lines}
    FILE.write_text(json.dumps(table, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _sorted(by_line: dict[str, Any]) -> dict[str, Any]:
    return dict(sorted(by_line.items()))


if __name__ == "__main__":
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        main()
