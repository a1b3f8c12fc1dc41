"""The command tl-vzero: parses, calls, prints. Heavy imports stay inside the commands, so that --help is quick."""

import io
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
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

app = common.app
# --help lists them in this order, the main job first.
COMMANDS = "report map compare methods explore heads models corpus reproduce".split()
ONLY_HERE = ("127.0.0.1", "localhost", "::1")
LISTED_SOURCES = 4  # of a destination: more do not fit on a line
SMALLEST_LISTED = 0.01  # share of a row
Spans = Literal["words", "noun_chunks", "subtrees"]
Stage = Literal["raw", "normalized", "rollout"]


@common.command(
    app,
    "report",
    "--open",
    '"the authors near the hat [MASK] today." --out authors.html',
    '--good are --bad is --corrupted "the picture of some hat [MASK] scaring marcus."',
    '"Paris is the [MASK] of France." --model all-MiniLM-L6-v2 --method alti',
)
def report(
    chosen: common.SentenceOptions,
    files: common.FileOptions,
    out: Annotated[Path, typer.Option(help="The HTML page to write; it works offline.")] = Path("report.html"),
    method: common.MethodsOption = None,
    good: Annotated[
        str | None, typer.Option(help="The word whose logit is measured at the target; default: the likeliest.")
    ] = None,
    bad: Annotated[str | None, typer.Option(help="The word whose logit is subtracted from that of --good.")] = None,
    corrupted: Annotated[
        str | None,
        typer.Option(help="A sentence of as many tokens, to patch values of TEXT into; --pair goes with both."),
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
    """
    check_writable(out)
    if good is None and bad is not None:
        raise InputError(f"--bad {bad!r} given without --good: expected --good WORD, or both")
    model = chosen.load(method)
    from tl_vzero.plot.export import share_plotly
    from tl_vzero.report import make_report

    computed = make_report(
        model,
        chosen.sentence(model),
        methods=method or None,
        target=chosen.target,
        target_ids=good if good is None or bad is None else (good, bad),
        corrupted=None if corrupted is None else replace(chosen, text=corrupted).sentence(model),
        heads=heads,
        progress=not chosen.quiet,
    )
    if shared_plotly:
        share_plotly(out.parent)
    write_text(out, computed.to_html(shared_plotly=shared_plotly))
    common.say(f"wrote {out}")
    files.write(computed.to_dict, computed.comparison.table)
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
    method: Annotated[str, typer.Option(help="A name that `tl-vzero methods` lists.")] = "value_zeroing",
    layer: Annotated[int | None, typer.Option(help="One layer, from 0; default: all.")] = None,
    stage: Annotated[Stage, typer.Option(help="Raw distances, rows that sum to one, or the rollout.")] = "normalized",
    words: Annotated[bool, typer.Option("--words", help="Join word pieces to words.")] = False,
    spans: Annotated[
        Spans | None, typer.Option(help="Zero words or phrases as a whole, one column each; value_zeroing only.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Zero some value heads only, such as 0,1; value_zeroing only. Default: all.")
    ] = None,
    per_head: Annotated[bool, typer.Option("--per-head", help="One map per value head; value_zeroing only.")] = False,
    stack: Annotated[
        str | None, typer.Option(help="Of an encoder-decoder: encoder, decoder, or cross (decoder on encoder).")
    ] = None,
    decoder_inputs: Annotated[
        str | None, typer.Option(help="What the decoder reads, for --stack decoder and cross.")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="Print whole maps, not each destination's top sources.")] = False,
    html: Annotated[Path | None, typer.Option(help="Also write the map as a page.")] = None,
    is_opened: common.OpenOption = False,
) -> None:
    """One map of a sentence or pair: what each token draws on, layer by layer; JSON, CSV and HTML on request.

    A line is a destination with its top sources; --full prints rows (destinations) by columns (sources).
    """
    if html is not None:
        check_writable(html)
    zeroed = {"spans": spans, "heads": _heads(heads), "per_head": per_head or None}
    for name, value in zeroed.items():
        if value is not None and method != "value_zeroing":
            raise InputError(
                f"--{name.replace('_', '-')} given, and {method} zeroes no values: leave it out, or take --method "
                "value_zeroing"
            )
    if html is not None and per_head:
        raise InputError("--html and --per-head given: a page shows one map per layer; choose a head by --heads 0")
    if html is None and is_opened:
        raise InputError("--open given without a page: add --html map.html, which writes one")
    layers = None if layer is None else [layer]
    chosen.check([method], layers)
    if chosen.target is not None and "target" not in tl_vzero.METHODS[method].needs:
        raise InputError(f"--target {chosen.target} given, and {method} needs none: leave it out")
    options = zeroed | {
        "progress": True if method == "value_zeroing" and not chosen.quiet else None,
        "stack": stack,
        "decoder_inputs": decoder_inputs,
        "target": chosen.target,
        "layers": None if stage == "rollout" else layers,
    }
    model = chosen.load()
    scores = tl_vzero.score(
        model,
        chosen.sentence(model),
        method=method,
        **{name: value for name, value in options.items() if value is not None},
    )
    assert not isinstance(scores, list)
    if stage == "normalized":
        scores = scores.normalized()
    elif stage == "rollout":
        scores = scores if scores.stage == "rollout" else scores.rollout()
        scores = scores if layer is None else scores.at_layer(layer)
    scores = scores.words() if words else scores
    common.say("\n\n".join(_full(scores) if full else _top(scores)))
    files.write(scores.to_dict, scores.to_frame)
    if html is not None:
        from tl_vzero.plot.maps import heatmap

        write_text(html, heatmap(scores).to_html(include_plotlyjs=True))
        common.say(f"wrote {html}", err=True)
    if html is not None and is_opened:
        common.open_page(html)


@common.command(
    app,
    "compare",
    "--layer 1",
    '"the authors [MASK] today." --method value_zeroing --method alti --csv table.csv',
)
def compare(
    chosen: common.SentenceOptions,
    files: common.FileOptions,
    method: common.MethodsOption = None,
    layer: common.LayersOption = None,
) -> None:
    """Methods side by side: one row per method and layer, with rank correlations. JSON has the maps too."""
    model = chosen.load(method, layer)
    compared = tl_vzero.compare(
        model,
        chosen.sentence(model),
        method or None,
        layers=layer or None,
        target=chosen.target,
        progress=not chosen.quiet,
    )
    assert not isinstance(compared, list)
    common.say(_comparison(compared))
    files.write(compared.to_dict, compared.table)


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
        explorer = Explorer(models, methods=method or None, most_tokens=max_tokens)
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
        effect = f"effect: zeroing a value at each position, on the {compared.effect.metric} {place}"
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


def _top(scores: "tl_vzero.Scores") -> Iterator[str]:
    """One line per destination: the sources that it draws on most, and what the others have together."""
    rows, columns = _labels(scores)
    width = max(map(len, rows))
    for title, values in _maps(scores):
        decimals = _decimals(values) if scores.stage == "raw" else None
        lines = (f"{row:<{width}} ← {_top_of(dest, columns, decimals)}" for row, dest in zip(rows, values, strict=True))
        yield "\n".join([title, *lines])


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
