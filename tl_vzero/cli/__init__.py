"""The command tl-vzero: parses, calls, prints. Heavy imports stay inside the commands, so that --help is quick."""

import io
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from typer.core import TyperGroup

import tl_vzero
from tl_vzero.cli import common
from tl_vzero.cli.corpus import corpus_command
from tl_vzero.cli.evaluate import evaluate_app, reproduce_command
from tl_vzero.cli.listings import heads_command, methods_command, models_command
from tl_vzero.errors import DependencyError, InputError, escaped
from tl_vzero.files import write_text

if TYPE_CHECKING:
    from torch.nn import Module

ONLY_HERE = ("127.0.0.1", "localhost", "::1")
# Click's own class; newer releases of typer hold a copy of click, older ones the package.
UsageError: Any = typer.BadParameter.__base__
Spans = Literal["words", "noun_chunks", "subtrees"]
Stage = Literal["raw", "normalized", "rollout"]


@contextmanager
def _usage_errors_escaped() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        error.message = escaped(error.message)
        raise


class _Commands(TyperGroup):
    """The commands; what one is called wrongly with is written escaped."""

    make_context = _usage_errors_escaped()(TyperGroup.make_context)
    invoke = _usage_errors_escaped()(TyperGroup.invoke)


app = typer.Typer(
    name="tl-vzero",
    cls=_Commands,
    help="Which tokens does a Transformer layer really mix into a token? Value Zeroing (Mohebbi et al. 2023).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command()
@common.errors_in_words()
def report(
    text: common.TextArgument = None,
    pair: common.PairOption = None,
    model: common.ModelOption = common.DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="The HTML page to write; it works offline.")] = Path("report.html"),
    json_file: common.JsonOption = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that `tl-vzero methods` lists, to stand beside Value Zeroing and raw attention; may be "
            "repeated. Default: the quick ones."
        ),
    ] = None,
    target: common.TargetOption = None,
    good: Annotated[
        str | None, typer.Option(help="The word whose logit is measured at the target; default: the likeliest.")
    ] = None,
    bad: Annotated[str | None, typer.Option(help="The word whose logit is subtracted from that of --good.")] = None,
    corrupted: Annotated[
        str | None,
        typer.Option(
            help="A sentence of as many tokens, into which values of TEXT are patched; --pair goes with both."
        ),
    ] = None,
    shared_plotly: Annotated[
        bool, typer.Option("--shared-plotly", help="Let the page read plotly.min.js, written beside it: a small page.")
    ] = False,
    quiet: common.QuietOption = False,
) -> None:
    """Value Zeroing beside other methods, rollout and effects on the prediction, as one HTML page."""
    from tl_vzero.plot.export import share_plotly
    from tl_vzero.report import make_report

    common.check_files(out, json_file)
    if good is None and bad is not None:
        raise InputError(f"--bad {bad!r} given without --good: expected --good WORD, or both")
    loaded = tl_vzero.load_model(model)
    computed = make_report(
        loaded,
        _sentence(loaded, text, pair),
        methods=method or None,
        target=target,
        target_ids=good if good is None or bad is None else (good, bad),
        corrupted=None if corrupted is None else _sentence(loaded, corrupted, pair),
        progress=not quiet,
    )
    if shared_plotly:
        share_plotly(out.parent)
    write_text(out, computed.to_html(shared_plotly=shared_plotly))
    common.say(f"wrote {out}")
    if json_file is not None:
        common.write_numbers(json_file, computed.to_dict())
        common.say(f"wrote {json_file}")


@app.command("map")
@common.errors_in_words()
def show_map(
    text: common.TextArgument = None,
    pair: common.PairOption = None,
    model: common.ModelOption = common.DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="A name that `tl-vzero methods` lists.")] = "value_zeroing",
    layer: Annotated[int | None, typer.Option(help="One layer, from 0; default: all.")] = None,
    stage: Annotated[Stage, typer.Option(help="Raw distances, rows that sum to one, or the rollout.")] = "normalized",
    words: Annotated[bool, typer.Option("--words", help="Join word pieces to words.")] = False,
    target: common.TargetOption = None,
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
    json_file: common.JsonOption = None,
    html: Annotated[Path | None, typer.Option(help="Also write the map as a page.")] = None,
    quiet: common.QuietOption = False,
) -> None:
    """One map of a sentence or pair: a table here; JSON and HTML on request. Rows are destinations, columns sources."""
    from tl_vzero.plot.maps import heatmap

    common.check_files(json_file, html)
    zeroed = {"spans": spans, "heads": _heads(heads), "per_head": per_head or None}
    for name, value in zeroed.items():
        if value is not None and method != "value_zeroing":
            raise InputError(
                f"--{name.replace('_', '-')} given, and {method} zeroes no values: leave it out, or take --method "
                "value_zeroing"
            )
    if html is not None and per_head:
        raise InputError("--html and --per-head given: a page shows one map per layer; choose a head by --heads 0")
    if target is not None and method in tl_vzero.METHODS and "target" not in tl_vzero.METHODS[method].needs:
        raise InputError(f"--target {target} given, and {method} needs none: leave it out")
    progress = True if method == "value_zeroing" and not quiet else None
    options = zeroed | {"progress": progress, "stack": stack, "decoder_inputs": decoder_inputs, "target": target}
    loaded = tl_vzero.load_model(model)
    scores = tl_vzero.score(
        loaded,
        _sentence(loaded, text, pair),
        method=method,
        **{name: value for name, value in options.items() if value is not None},
    )
    assert not isinstance(scores, list)
    if stage == "normalized":
        scores = scores.normalized()
    elif stage == "rollout" and scores.stage != "rollout":
        scores = scores.rollout()
    scores = scores if layer is None else scores.at_layer(layer)
    scores = scores.words() if words else scores
    common.say(_table(scores))
    common.write_numbers(json_file, scores.to_dict())
    if html is not None:
        write_text(html, heatmap(scores).to_html(include_plotlyjs=True))


@app.command()
@common.errors_in_words()
def compare(
    text: common.TextArgument = None,
    pair: common.PairOption = None,
    model: common.ModelOption = common.DEFAULT_MODEL,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A name that `tl-vzero methods` lists; may be repeated. Default: all of the clean run."),
    ] = None,
    layer: common.LayersOption = None,
    target: common.TargetOption = None,
    json_file: common.JsonOption = None,
    csv_file: common.CsvOption = None,
    quiet: common.QuietOption = False,
) -> None:
    """Methods side by side: one row per method and layer, with rank correlations. JSON has the maps too."""

    common.check_files(json_file, csv_file)
    loaded = tl_vzero.load_model(model)
    compared = tl_vzero.compare(
        loaded,
        _sentence(loaded, text, pair),
        method or None,
        layers=layer or None,
        target=target,
        progress=not quiet,
    )
    assert not isinstance(compared, list)
    common.say(_comparison(compared))
    common.write_numbers(json_file, compared.to_dict())
    common.write_table(csv_file, compared.table())


@common.errors_in_words()
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
    method: Annotated[
        list[str] | None,
        typer.Option(help="A name that `tl-vzero methods` lists; may be repeated. Default: the quick ones."),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=2, max=512, help="The longest sentence that is answered.")] = 128,
    host: Annotated[str, typer.Option(help="The address to listen at; default: this machine only.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any free one.")] = 8050,
) -> None:
    """A live page: type a sentence, choose model, method, layer and token, and see the report's panels at once.

    It works offline, on this machine only unless --host says otherwise; its address holds the sentence and the choices.
    Ctrl-C ends it.
    """
    try:
        from tl_vzero.explore import Explorer, bound_socket, explorer_app, hosts_of, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise DependencyError(
            f"the explorer needs {error.name}, which is not installed: pip install 'tl-vzero[explore]'"
        ) from error

    with bound_socket(host, port) as bound:
        models = {name: tl_vzero.load_model(name) for name in dict.fromkeys(model or [common.DEFAULT_MODEL])}
        explorer = Explorer(models, methods=method or None, most_tokens=max_tokens)
        page = explorer_app(explorer, first_text=text, hosts=hosts_of(host))
        address, free_port = bound.getsockname()[:2]
        common.say(f"http://{f'[{address}]' if ':' in address else address}:{free_port}/  (Ctrl-C ends)")
        if host not in ONLY_HERE:
            common.say(f"everyone who reaches {host} can use these models", err=True)
        try:
            serve(page, bound)
        except KeyboardInterrupt:
            if not explorer.answering:
                raise
            common.say("stopped; the sentence that was being computed is given up", err=True)
            # Not by an exception: Python would take torch down while a thread still computes with it.
            os._exit(130)


# --help lists them in this order, the main job first.
app.command("methods")(methods_command)
app.command("explore")(explore)
app.command("heads")(heads_command)
app.command("models")(models_command)
app.command("corpus")(corpus_command)
app.command("reproduce")(reproduce_command)
app.add_typer(evaluate_app, name="evaluate")


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A terminal or pipe that cannot show a character gets its number.
            stream.reconfigure(errors="backslashreplace")
    app(prog_name="tl-vzero")


def _sentence(model: "Module", text: str | None, pair: str | None) -> str | tuple[str, str]:
    text = common.text_for(model, text)
    return text if pair is None else (text, pair)


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


def _table(scores: "tl_vzero.Scores") -> str:
    import pandas as pd

    rows = [f"{at} {token.strip()}" for at, token in zip(scores.dest_positions, scores.dest_tokens, strict=True)]
    columns = [token.strip() for token in scores.src_tokens]
    heads = [""] if scores.heads is None else [f", head {head}" for head in scores.heads]
    maps = scores.values.flatten(0, -3).numpy()
    blocks = []
    for (layer, head), values in zip(product(scores.layers, heads), maps, strict=True):
        frame = pd.DataFrame(values, index=rows, columns=columns)
        blocks.append(f"layer {layer}{head}, {scores.method}, {scores.stage}\n{frame.to_string(float_format='%.3g')}")
    return "\n\n".join(blocks)
