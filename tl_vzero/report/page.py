"""The report as one HTML page that works offline: text in HTML, maps drawn in the browser from packed numbers. The
explorer shows the same page, and fills its blocks with one report after the other."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tl_vzero.difference import HASHED, aligned
from tl_vzero.effects.ablation import attribution_error
from tl_vzero.plot.export import SHARED
from tl_vzero.plot.maps import EFFECT_NAMES, PATCHED_NAMES
from tl_vzero.plot.pages import asset, rendered, rendered_blocks
from tl_vzero.plot.parts import short, visible
from tl_vzero.plot.sentence_view import coloured
from tl_vzero.registry import label_of
from tl_vzero.report.figures import (
    ALWAYS_DRAWN,
    decimal_codes,
    drawn_heads,
    drawn_methods,
    first_destination,
    pack,
    packed_plotly,
    page_data,
    room_of,
)
from tl_vzero.report.report import Report

PAGE = "report/page.html"
SCRIPTS = "numbers choices figures shades tables finding texts strips beside heads flow leave page".split()
EMPTY_ROWS_NAMED = 6
SCORE_OPTIONS = (
    "distance",
    "baseline",
    "heads",
    "final_norm",
)  # those that change the scores; memory and batches do not
Json = dict[str, Any]


def render_page(report: Report, *, shared_plotly: bool = False) -> str:
    """The report as a page of its own. Tokens and names are text wherever they appear, never markup.

    Numbers are embedded with the 4 significant digits that the page shows. The maps and plotly.js are
    packed (gzip, base64) and unpacked by the browser: a page of 128 tokens and 12 layers stays under 6 MB, and of two
    such sentences under 7 MB.
    With `shared_plotly` the page reads plotly.min.js from its folder.
    """
    data, maps, texts = _contents(report)
    if report.beside is not None:
        data = data | {"beside": beside_payload({"data": data}, _payload_beside(report.beside))}
    return rendered(
        PAGE,
        title=f"{short(visible(report.text), 60)} · {report.model} · tl_vzero",
        brand="tl_vzero report",
        models=None,
        data=data,
        maps=maps,
        scripts=[SHARED] if shared_plotly else [],
        packed_plotly=None if shared_plotly else packed_plotly(),
        program=page_script("whole"),
        **texts,
    )


def explorer_page(
    texts: Mapping[str, str], examples: Mapping[str, Sequence[str]], first_text: str | None, script: str
) -> str:
    """The page before any answer. `texts` are a sentence for each model, for an address that names none; `first_text`
    stands in their place. `examples` are sentences to try.
    """
    model = next(iter(texts))
    return rendered(
        PAGE,
        title="tl_vzero explorer",
        brand="tl_vzero explorer",
        models=list(texts),
        data={
            "model": model,
            "text": texts[model] if first_text is None else first_text,
            "texts": texts,
            "examples": examples,
        },
        maps="",
        scripts=[SHARED, script],
        packed_plotly=None,
        program=None,
        report=None,
    )


def page_payload(report: Report) -> Json:
    """What the page's script shows: "data", "maps" (packed), and "parts", the HTML of the page's blocks; where a report
    stands beside it, "beside" of `beside_payload`."""
    data, maps, texts = _contents(report)
    payload = {"data": data, "maps": maps, "parts": rendered_blocks(PAGE, **texts)}
    if report.beside is not None:
        payload["beside"] = beside_payload(payload, _payload_beside(report.beside))
    return payload


def _payload_beside(report: Report) -> Json:
    """What is shown of a second report: Value Zeroing."""
    data, maps, _ = _contents(report, sides=2, always=1)
    return {"data": data, "maps": maps}


def beside_payload(first: Json, second: Json) -> Json:
    """What a page needs of the payload that stands beside its own: "data", "maps", and "pairs", by unit the rows of
    the first and of the second that stand against each other."""
    units = [unit for unit in first["data"]["units"] if unit in second["data"]["units"]]
    names = {unit: [side["data"]["units"][unit]["names"] for side in (first, second)] for unit in units}
    pairs = {unit: aligned(*both) for unit, both in names.items()}
    words = [side["data"]["wordOf"] for side in (first, second)]
    if "words" in pairs and words[0] != words[1]:
        # Cut into other pieces: they stand against each other where their words do.
        pairs["pieces"] = tuple(pair for both in pairs["words"] for pair in _pieces_of(both, words, names["pieces"]))
    return {"data": second["data"], "maps": second["maps"], "pairs": pairs}


def _pieces_of(
    pair: tuple[int, int], words: Sequence[Sequence[int]], names: Sequence[Sequence[str]]
) -> Iterator[tuple[int, int]]:
    """The pieces of two words that stand against each other, by their places in the sentences."""
    places = [[place for place, word in enumerate(of) if word == one] for one, of in zip(pair, words, strict=True)]
    texts = [[of[place] for place in at] for of, at in zip(names, places, strict=True)]
    return ((places[0][one], places[1][other]) for one, other in aligned(texts[0], texts[1]))


def page_script(last: str, scripts: Sequence[str] = SCRIPTS) -> str:
    """The page's script, which ends with the part that says where reports come from."""
    parts = "\n".join(asset(f"report/{name}.js") for name in (*scripts, last))
    return f'"use strict";\n(async () => {{\n{parts}}})();\n'


def _contents(report: Report, *, sides: int | None = None, always: int = ALWAYS_DRAWN) -> tuple[Json, str, Json]:
    """The data of the page's script, the packed maps, and what the blocks of the page's template are filled with.

    One of `sides` sentences or models; by default as many as the report holds.
    """
    scores = report.value_zeroing
    units = ("pieces",) if scores.word_ids is None else ("pieces", "words")
    # Where every word is one piece, the maps over words are those over pieces.
    mapped = units if len(units) == 2 and scores.words().n_positions < scores.n_positions else ("pieces",)
    room = room_of(sides or (1 if report.beside is None else 2))
    of_heads, heads = drawn_heads(report, mapped, room, always)
    drawn, absent = drawn_methods(report, mapped, room - sum(values.numel() for values in of_heads), always)
    maps = [values for unit in mapped for method in drawn for values in method.maps(unit)]
    data = page_data(report, drawn, units, mapped) | {"heads": heads}
    estimate, errors = report.effects.get("attribution_patching"), None
    if estimate is not None:
        errors = attribution_error(estimate, report.effects["zero_ablation"]).to_dict("records")
    shares, first = scores.normalized(), first_destination(report)
    texts = {
        "report": report,
        "scores": scores,
        "sentence": _sentence(report),
        "options": _options(report),
        "baseline": scores.baseline.partition(HASHED)[0],
        "absent": {label_of(name): reason for name, reason in absent.items()},
        "empty_rows": scores.empty_rows,
        "empty_rows_named": EMPTY_ROWS_NAMED,
        "effect_names": EFFECT_NAMES,
        "patched": PATCHED_NAMES,
        "errors": errors,
        "still_name": scores.dest_tokens[first],
        "still_rows": [
            (layer, coloured(shares, at, first)[-1][-1], shares.values[at, first].tolist())
            for at, layer in enumerate(scores.layers)
        ],
        "predicted": data["predictions"][report.target] if data["predictions"] else None,
    }
    return data, pack(decimal_codes([*maps, *of_heads])), texts


def _sentence(report: Report) -> list[tuple[str, list[str]]]:
    """The text as it was written, in parts: "target" if it is there once, "unknown" words and the rest; their lines."""
    tokens = [token.strip() for token in report.value_zeroing.dest_tokens]
    kinds = {tokens[position]: "unknown" for position in report.value_zeroing.unknown_positions}
    if report.target is not None and len(_cut(report.text, [tokens[report.target]])) == 3:
        kinds[tokens[report.target]] = "target"
    # Between bars, as `visible` drops plain spaces at the ends of a token.
    parts = enumerate(_cut(report.text, list(kinds)))
    return [(kinds[p] if i % 2 else "", [visible(f"|{line}|")[1:-1] for line in p.split("\n")]) for i, p in parts]


def _cut(text: str, words: list[str]) -> list[str]:
    """A text cut around each occurrence of some words, which are every second part."""
    either = "|".join(re.escape(word) for word in words if word)
    return re.split(rf"(?<!\w)({either})(?!\w)", text) if either else [text]


def _options(report: Report) -> str:
    options = {name: report.metadata.get("options", {}).get(name) for name in SCORE_OPTIONS}
    options |= {"engine": report.metadata.get("engine"), "dtype": report.metadata.get("dtype")}
    shown = {name.replace("_", " "): value for name, value in options.items() if value not in (None, False, "zero")}
    return ", ".join(f"{name} {value}" for name, value in shown.items())
