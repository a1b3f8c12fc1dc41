"""The command tl-vzero: parses, calls, prints. Heavy imports stay inside the commands, so that --help is quick."""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import product
from math import floor, log10
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

import tl_vzero
from tl_vzero.cli import common, corpus, evaluate, listings  # noqa: F401 - commands register themselves
from tl_vzero.errors import DependencyError, InputError, install_command
from tl_vzero.files import check_writable, write_text

if TYPE_CHECKING:
    import numpy.typing as npt
    from torch import nn

    from tl_vzero.targets import TargetIds

app = common.app
# --help lists them in this order, the main job first.
COMMANDS = "report map compare diff methods explore heads models corpus values reproduce".split()
ONLY_HERE = ("127.0.0.1", "localhost", "::1")
LISTED_SOURCES = 4  # of a destination: more do not fit on a line
SMALLEST_LISTED = 0.01  # share of a row
CorruptedOption = Annotated[
    str | None,
    typer.Option(help="A sentence of as many tokens, to patch values of TEXT into; --pair goes with both."),
]
GoodOption = Annotated[
    str | None,
    typer.Option(
        help="The word, or the label of a class, whose logit is measured at the target (#NUMBER: by its id); default: "
        "the likeliest."
    ),
]
BadOption = Annotated[str | None, typer.Option(help="The word or label whose logit is subtracted from that of --good.")]
CompareOption = Annotated[
    str | None, typer.Option("--compare", help="A second sentence to compare with TEXT; --pair goes with both.")
]
CompareModelOption = Annotated[
    str | None,
    typer.Option("--compare-model", help="A second model, as for --model; without --compare, it reads TEXT, too."),
]
HtmlOption = Annotated[Path | None, typer.Option("--html", help="Also write the map as a page.")]
WordsOption = Annotated[bool, typer.Option("--words", help="Join word pieces to words.")]
LayerOption = Annotated[int | None, typer.Option("--layer", help="One layer, from 0; default: all.")]
MethodOption = Annotated[str, typer.Option("--method", help="A name that `tl-vzero methods` lists.")]
Spans = Literal["words", "noun_chunks", "subtrees"]
Stage = Literal["raw", "normalized", "rollout"]


@common.command(
    app,
    "report",
    "--open",
    '"the authors near the hat [MASK] today." --out authors.html',
    '--good are --bad is --corrupted "the picture of some hat [MASK] scaring marcus."',
    '"Paris is the [MASK] of France." --model all-MiniLM-L6-v2 --method alti',
    '"the authors [MASK] today." --compare "the author [MASK] today."',
    '"the authors near the hat [MASK] today." --destination "[MASK]" --destination hat',
)
def report(
    chosen: common.SentenceOptions,
    files: common.FileOptions,
    replaced: common.BaselineOptions,
    out: Annotated[Path, typer.Option(help="The HTML page to write; it works offline.")] = Path("report.html"),
    method: common.MethodsOption = None,
    good: GoodOption = None,
    bad: BadOption = None,
    corrupted: CorruptedOption = None,
    effect: common.EffectsOption = None,
    compare_text: CompareOption = None,
    compare_model: CompareModelOption = None,
    decoder_inputs: common.DecoderInputsOption = None,
    destination: Annotated[
        list[Any] | None,
        typer.Option(
            parser=common.position,
            metavar="POSITION|TOKEN",
            help="Show the row of this token alone, for long texts; may be repeated.",
        ),
    ] = None,
    heads: Annotated[
        bool, typer.Option("--heads", help="Add every head's maps, and its share of its layer's mixing.")
    ] = False,
    shared_plotly: Annotated[
        bool, typer.Option("--shared-plotly", help="Let the page read plotly.min.js, written beside it: a small page.")
    ] = False,
    is_opened: common.OpenOption = False,
) -> None:
    """Value Zeroing beside other methods, rollout and effects on the prediction, as one HTML page.

    Value Zeroing and raw attention stand there in any case; --csv has the table of the methods, layer by layer.

    Of an encoder-decoder: a translation step by step, of --decoder-inputs or else of what the model itself writes.
    """
    check_writable(out)
    target_ids = _target_ids(good, bad)
    _check_compared(compare_text)
    baseline = replaced.read()
    model = chosen.load(method)
    second = None if compare_model is None else replace(chosen, model=compare_model).load(method)
    from tl_vzero.models.sites import stacks_of
    from tl_vzero.plot.export import share_plotly
    from tl_vzero.report import Report, generate, make_report

    sentence = chosen.sentence(model)
    options: dict[str, Any] = {
        "destinations": destination or None,
        "methods": method or None,
        "target": chosen.target,
        "target_ids": target_ids,
        "baseline": baseline,
        "corrupted": None if corrupted is None else replace(chosen, text=corrupted).sentence(model),
        "effects": effect or None,
        "compare": None if compare_text is None else replace(chosen, text=compare_text).sentence(model),
        "compare_model": second,
        "heads": heads,
        "progress": not chosen.quiet,
    }
    needs_text = decoder_inputs is None and not destination and stacks_of(model)
    written = generate(model, sentence) if needs_text else decoder_inputs
    computed: Any = make_report(model, sentence, decoder_inputs=written, **options)
    if shared_plotly:
        share_plotly(out.parent)
    write_text(out, computed.to_html(shared_plotly=shared_plotly))
    common.say(f"wrote {out}")
    files.write(computed.to_dict, computed.comparison.table if isinstance(computed, Report) else computed.to_frame)
    if is_opened:
        common.open_page(out)


@common.command(
    app,
    "map",
    "--layer 1",
    "--layer 1 --full",
    "--stage rollout --html map.html --open",
    '"Paris is the capital of France." --model all-MiniLM-L6-v2 --words --csv map.csv',
    "--method alti --dtype float64 --json map.json",
)
def show_map(
    chosen: common.SentenceOptions,
    files: common.FileOptions,
    replaced: common.BaselineOptions,
    method: MethodOption = "value_zeroing",
    layer: LayerOption = None,
    stage: Annotated[Stage, typer.Option(help="Raw distances, rows that sum to one, or the rollout.")] = "normalized",
    words: WordsOption = False,
    spans: Annotated[
        Spans | None, typer.Option(help="Zero words or phrases as a whole, one column each; value_zeroing only.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Zero some value heads only, such as 0,1; value_zeroing only. Default: all.")
    ] = None,
    per_head: Annotated[bool, typer.Option("--per-head", help="One map per value head; value_zeroing only.")] = False,
    stack: common.StackOption = None,
    decoder_inputs: common.DecoderInputsOption = None,
    full: Annotated[bool, typer.Option("--full", help="Print whole maps, not each destination's top sources.")] = False,
    html: HtmlOption = None,
    is_opened: common.OpenOption = False,
) -> None:
    """One map of a sentence or pair: what each token draws on, layer by layer; JSON, CSV and HTML on request.

    A line is a destination with its top sources; --full prints rows (destinations) by columns (sources).
    """
    _check_page(html, is_opened)
    baseline = replaced.read()
    zeroed: dict[str, Any] = {"spans": spans, "heads": _heads(heads), "per_head": per_head or None}
    zeroed["baseline"] = None if baseline == "zero" else baseline
    for name, value in zeroed.items():
        if value is not None and method != "value_zeroing":
            raise InputError(
                f"--{name.replace('_', '-')} given, and {method} zeroes no values: leave it out, or take --method "
                "value_zeroing"
            )
    if html is not None and per_head:
        raise InputError("--html and --per-head given: a page shows one map per layer; choose a head by --heads 0")
    layers = None if layer is None else [layer]
    chosen.check([method], layers)
    if chosen.target is not None and "target" not in tl_vzero.METHODS[method].needs:
        raise InputError(f"--target {chosen.target} given, and {method} needs none: leave it out")
    options = zeroed | {
        "stack": stack,
        "decoder_inputs": decoder_inputs,
        "layers": None if stage == "rollout" else layers,
    }
    scores = _scores(chosen, chosen.load(), method, **options)
    if stage == "normalized":
        scores = scores.normalized()
    elif stage == "rollout":
        scores = scores if scores.stage == "rollout" else scores.rollout()
        scores = scores if layer is None else scores.at_layer(layer)
    scores = scores.words() if words else scores
    common.say("\n\n".join(_full(scores) if full else _top(scores)))
    files.write(scores.to_dict, scores.to_frame)
    _write_page(scores, html, is_opened)


@common.command(
    app,
    "compare",
    "--layer 1",
    '"the authors [MASK] today." --method value_zeroing --method alti --csv table.csv',
)
def compare(
    chosen: common.SentenceOptions,
    files: common.FileOptions,
    replaced: common.BaselineOptions,
    method: common.MethodsOption = None,
    layer: common.LayersOption = None,
    good: GoodOption = None,
    bad: BadOption = None,
    effect: common.EffectsOption = None,
    corrupted: CorruptedOption = None,
    stack: common.StackOption = None,
    decoder_inputs: common.DecoderInputsOption = None,
) -> None:
    """Methods side by side: one row per method and layer, with rank correlations. JSON has the maps too.

    With --effect, the rank correlation of every method with every effect is printed below.
    """
    target_ids = _target_ids(good, bad)
    baseline = replaced.read()
    model = chosen.load(method, layer)
    compared = tl_vzero.compare(
        model,
        chosen.sentence(model),
        method or None,
        layers=layer or None,
        target=chosen.target,
        target_ids=target_ids,
        baseline=baseline,
        effects=effect or (),
        corrupted=None if corrupted is None else replace(chosen, text=corrupted).sentence(model),
        progress=not chosen.quiet,
        stack=stack,
        decoder_inputs=decoder_inputs,
    )
    assert not isinstance(compared, list)
    common.say(_comparison(compared))
    if len(compared.effects) > 1:
        rho = compared.agreements(resamples=1).pivot(index=["method", "layer"], columns="effect", values="rho")
        common.say("rank correlation of the target's row with the sizes of:")
        common.say(rho.loc[list(compared), list(compared.effects)].to_string(float_format="%.3f", na_rep="-"))
    files.write(compared.to_dict, compared.table)


@common.command(
    app,
    "diff",
    '"the authors [MASK] today." --compare "the author [MASK] today." --layer 1',
    '"the authors [MASK] today." --compare-method attention --full',
    "--compare-model all-MiniLM-L6-v2 --layer 1 --words --csv diff.csv",
)
def diff(
    chosen: common.SentenceOptions,
    files: common.FileOptions,
    replaced: common.BaselineOptions,
    compare_text: CompareOption = None,
    compare_model: CompareModelOption = None,
    compare_method: Annotated[str | None, typer.Option(help="A second method, as for --method.")] = None,
    method: MethodOption = "value_zeroing",
    layer: LayerOption = None,
    words: WordsOption = False,
    alignment: Annotated[
        Literal["tokens"] | None,
        typer.Option(help="Compare the tokens that both sentences have, and leave out the others."),
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print whole maps, not the target's row.")] = False,
    html: HtmlOption = None,
    is_opened: common.OpenOption = False,
) -> None:
    """Two sentences, models or methods: where a token draws on other sources, in points of percent, layer by layer.

    A line is the target's: the sources whose shares differ most, + where the first has more. --full prints whole maps.
    """
    if (compare_text, compare_model, compare_method) == (None, None, None):
        raise InputError(
            "nothing given to compare with: expected --compare TEXT, --compare-model NAME or --compare-method NAME"
        )
    _check_compared(compare_text)
    _check_page(html, is_opened)
    other = replace(chosen, model=compare_model or chosen.model)
    other_method, baseline = compare_method or method, replaced.read()
    if baseline != "zero" and "value_zeroing" not in (method, other_method):
        raise InputError("--baseline given, and neither method replaces values: leave it out, or take value_zeroing")
    layers = None if layer is None else [layer]
    chosen.check([method], layers)
    other.check([other_method], layers)
    model = chosen.load()
    from tl_vzero.targets import default_text

    text = default_text(model) if chosen.text is None else chosen.text
    chosen, other = replace(chosen, text=text), replace(other, text=text if compare_text is None else compare_text)
    other_model = model if compare_model is None else other.load()
    options = {"layers": layers, "baseline": None if baseline == "zero" else baseline}
    first = _scores(chosen, model, method, **options).normalized()
    second = _scores(other, other_model, other_method, **options).normalized()
    if words:
        first, second = first.words(), second.words()
    scores = first.difference(second, alignment=alignment)
    common.say("\n\n".join(_full(scores) if full else _top(scores, _row_of(first, scores, chosen.target))))
    files.write(scores.to_dict, scores.to_frame)
    _write_page(scores, html, is_opened)


@common.command(
    app, "explore", "--open", "--model agreement-mini --model all-MiniLM-L6-v2 --open", "--port 0 --max-tokens 64"
)
def explore(
    text: Annotated[
        str | None,
        typer.Argument(
            help="The sentence that the page opens with. Default: one that fits the model.", show_default=False
        ),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(help="A model to choose from, as for the other commands; may be repeated. No other is loaded."),
    ] = None,
    device: common.DeviceOption = None,
    dtype: common.DtypeOption = None,
    method: common.MethodsOption = None,
    effect: common.EffectsOption = None,
    max_tokens: Annotated[int, typer.Option(min=2, max=512, help="The longest sentence that is answered.")] = 128,
    host: Annotated[str, typer.Option(help="The address to listen at; default: this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8050,
    is_opened: common.OpenOption = False,
) -> None:
    """A live page: type a sentence, choose model, method, layer and token, and see the report's panels at once.

    It works offline, on this machine only unless --host says otherwise; its address holds the sentence and the choices.
    Ctrl-C ends it.
    """
    try:
        from tl_vzero.explore import Explorer, bound_socket, explorer_app, hosts_of, serve
        from tl_vzero.models.hub import find_source
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise DependencyError(
            f"the explorer needs {error.name}, which is not installed: {install_command('explore')}"
        ) from error

    with bound_socket(host, port) as bound:
        chosen = [common.ModelOptions(name, device, dtype) for name in dict.fromkeys(model or [common.DEFAULT_MODEL])]
        for one in chosen:
            one.check(method)
            find_source(one.model)
        models = {one.model: one.load() for one in chosen}
        explorer = Explorer(models, methods=method or None, effects=effect or None, most_tokens=max_tokens)
        page = explorer_app(explorer, first_text=text, hosts=hosts_of(host))
        name, free_port = bound.getsockname()[:2]
        address = f"http://{f'[{name}]' if ':' in name else name}:{free_port}/"
        common.say(f"{address}  (Ctrl-C ends)")
        if host not in ONLY_HERE:
            common.say(f"everyone who reaches {host} can use these models", err=True)
        if is_opened:  # beside the server: a browser may wait for the page, or stay until it is closed
            Thread(target=common.open_page, args=[address], daemon=True).start()
        try:
            serve(page, bound)
        except KeyboardInterrupt:
            if not explorer.answering:
                raise
            common.say("stopped; the sentence that was being computed is given up", err=True)
            # Not by an exception: Python would take torch down while a thread still computes with it.
            os._exit(130)


app.registered_commands.sort(key=lambda one: COMMANDS.index(str(one.name)))
app.add_typer(evaluate.evaluate_app)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal or pipe that cannot show a character gets its number.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="tl-vzero")


def _check_compared(text: str | None) -> None:
    """Raise before any work for a second sentence that says nothing."""
    if text is not None and not text.strip():
        raise InputError("--compare is an empty text: expected a sentence, or another --compare option alone")


def _check_page(html: Path | None, is_opened: bool) -> None:
    """Raise before any work for a page that cannot be written, or that is to be opened and is not written."""
    if html is not None:
        check_writable(html)
    elif is_opened:
        raise InputError("--open given without a page: add --html map.html, which writes one")


def _write_page(scores: "tl_vzero.Scores", html: Path | None, is_opened: bool) -> None:
    """A map as a page, where one is wanted."""
    if html is None:
        return
    from tl_vzero.plot.maps import heatmap

    write_text(html, heatmap(scores).to_html(include_plotlyjs=True))
    common.say(f"wrote {html}", err=True)
    if is_opened:
        common.open_page(html)


def _scores(chosen: common.SentenceOptions, model: "nn.Module", method: str, **options: Any) -> "tl_vzero.Scores":
    """What a method says of the chosen sentence; options that are None are left out."""
    options |= {
        "progress": True if method == "value_zeroing" and not chosen.quiet else None,
        "target": chosen.target if "target" in tl_vzero.METHODS[method].needs else None,
    }
    if method != "value_zeroing":
        options.pop("baseline", None)
    options = {name: value for name, value in options.items() if value is not None}
    scores = tl_vzero.score(model, chosen.sentence(model), method=method, **options)
    assert not isinstance(scores, list)
    return scores


def _target_ids(good: str | None, bad: str | None) -> "TargetIds | None":
    """What two options say of a prediction's tokens or classes; raises InputError for --bad alone."""
    from tl_vzero.choices import good_and_bad
    from tl_vzero.targets import written_token

    right, wrong = (None if word is None else written_token(word) for word in (good, bad))
    return good_and_bad(right, wrong, ("--good", "--bad"))


def _heads(heads: str | None) -> list[int] | None:
    try:
        return None if heads is None else [int(head) for head in heads.split(",")]
    except ValueError:
        raise InputError(f"--heads {heads!r}: expected numbers with commas between them, such as 0,1") from None


def _comparison(compared: "tl_vzero.Comparison") -> str:
    """The table, and below it what was predicted and what was left out."""
    table = compared.table().set_index(["method", "layer"])
    table.columns = [str(name).replace("rank_with_", "rank ").replace("_", " ") for name in table.columns]
    effect = f"no effect on a prediction: {compared.no_effect_reason}"
    if compared.effect is not None:
        preposition = "as the next token after" if compared.effect.metadata["predicts"] == "next token" else "at"
        place = f"{preposition} {compared.effect.target} {compared.effect.target_token.strip()}"
        baseline = compared.effect.baseline
        done = "zeroing a value" if baseline == "zero" else f"replacing a value ({baseline})"
        effect = f"effect: {done} at each position, on the {compared.effect.metric} {place}"
    left_out = [f"left out: {name}: {reason}" for name, reason in compared.left_out.items()]
    return "\n".join([table.to_string(float_format="%.3f", na_rep="-"), effect, *left_out])


def _maps(scores: "tl_vzero.Scores") -> "Iterator[tuple[str, npt.NDArray[Any]]]":
    """A title and the map `[dest, src]` of each layer, or of each of its heads."""
    heads = [""] if scores.heads is None else [f", head {head}" for head in scores.heads]
    maps = scores.values.detach().cpu().double().flatten(0, -3).numpy()
    for (layer, head), values in zip(product(scores.layers, heads), maps, strict=True):
        yield f"layer {layer}{head}, {scores.method}, {scores.stage}", values


def _labels(scores: "tl_vzero.Scores") -> tuple[list[str], list[str]]:
    """Destinations with their positions, and sources, with theirs where a token occurs twice."""
    from tl_vzero.plot.parts import visible
    from tl_vzero.words import marked

    dest_tokens = map(visible, marked(scores.dest_tokens, scores.unknown_dests))
    rows = [f"{at} {token}" for at, token in zip(scores.dest_positions, dest_tokens, strict=True)]
    tokens = [visible(token) for token in marked(scores.src_tokens, scores.unknown_sources)]
    placed = zip(scores.src_positions, tokens, strict=True)
    return rows, [token if tokens.count(token) == 1 else f"{at} {token}" for at, token in placed]


def _full(scores: "tl_vzero.Scores") -> Iterator[str]:
    """Whole maps, in as many decimals as show three digits of the largest value."""
    import pandas as pd

    rows, columns = _labels(scores)
    for title, values in _maps(scores):
        frame = pd.DataFrame(values, index=rows, columns=columns)
        yield f"{title}\n{frame.to_string(float_format=f'%.{_decimals(values)}f')}"


def _decimals(values: "npt.NDArray[Any]") -> int:
    largest = abs(values).max(initial=0)
    return 3 if largest == 0 else max(3, 2 - floor(log10(largest)))


def _row_of(first: "tl_vzero.Scores", scores: "tl_vzero.Scores", target: int | str | None) -> list[int]:
    """The target's row in a difference, whose labels may be those of two tokens: sought in the first map."""
    first = first.words() if scores.unit == "word" else first
    return [scores.dest_index(first.shown_dest if target is None else first.dest_positions[first.dest_index(target)])]


def _top(scores: "tl_vzero.Scores", dests: Iterable[int] | None = None) -> Iterator[str]:
    """One line per destination: the sources that it draws on most, and what the others have together."""
    rows, columns = _labels(scores)
    width = max(map(len, rows))
    for title, values in _maps(scores):
        decimals = _decimals(values) if scores.stage == "raw" else None
        said = _most_different if scores.stage == "difference" else partial(_top_of, decimals=decimals)
        listed = range(len(rows)) if dests is None else dests
        yield "\n".join([title, *(f"{rows[dest]:<{width}} ← {said(values[dest], columns)}" for dest in listed)])


def _most_different(row: "npt.NDArray[Any]", columns: list[str]) -> str:
    """The largest differences of shares, in points of percent with their sign."""
    order = sorted(range(len(row)), key=lambda source: -abs(row[source]))
    top = [source for source in order[:LISTED_SOURCES] if abs(row[source]) >= SMALLEST_LISTED]
    return ", ".join(f"{columns[source]} {100 * row[source]:+.0f} %" for source in top) or "no share differs by 1 %"


def _top_of(row: "npt.NDArray[Any]", columns: list[str], decimals: int | None) -> str:
    """The largest scores of a row, in percent where there are no decimals: then they are shares."""
    sizes = abs(row) / (abs(row).sum() or 1)
    order = sorted(range(len(row)), key=lambda source: -sizes[source])
    top = [source for source in order[:LISTED_SOURCES] if sizes[source] >= SMALLEST_LISTED] or order[:1]
    if not sizes.any():
        return "nothing"
    if decimals is not None:
        return ", ".join(f"{columns[source]} {row[source]:.{decimals}f}" for source in top)
    rest = 1 - sizes[top].sum()
    shares = [f"{columns[source]} {100 * sizes[source]:.0f} %" for source in top]
    return ", ".join([*shares, *([f"rest {100 * rest:.0f} %"] if rest >= SMALLEST_LISTED / 2 else [])])
