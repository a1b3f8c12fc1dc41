"""tl-vzero explore: the live page. Heavy imports stay inside the command."""

import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from tl_vzero.cli.common import (
    DEFAULT_MODEL,
    DEFAULT_TEXT,
    CsvOption,
    JsonOption,
    ModelOption,
    PairOption,
    QuietOption,
    errors_in_words,
    say,
)
from tl_vzero.cli.corpus import corpus_command
from tl_vzero.cli.evaluate import evaluate_app, reproduce_command
from tl_vzero.cli.listings import heads_command, models_command
from tl_vzero.errors import DependencyError, InputError, escaped

if TYPE_CHECKING:
    from tl_vzero.comparison import Comparison
    from tl_vzero.scores import Scores


ONLY_HERE = ("127.0.0.1", "localhost", "::1")


def explore_command(
    text: Annotated[str, typer.Argument(help="The sentence that the page opens with.")] = DEFAULT_TEXT,
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
    with errors_in_words():
        try:
            from tl_vzero.explore import Explorer, bound_socket, explorer_app, hosts_of, serve
        except ModuleNotFoundError as error:
            if error.name not in ("starlette", "uvicorn"):
                raise
            raise DependencyError(
                f"the explorer needs {error.name}, which is not installed: pip install 'tl-vzero[explore]'"
            ) from error
        from tl_vzero.models.load import load_model

        with bound_socket(host, port) as bound:
            names = list(dict.fromkeys(model or [DEFAULT_MODEL]))
            explorer = Explorer(
                {name: load_model(name) for name in names}, methods=method or None, most_tokens=max_tokens
            )
            app = explorer_app(explorer, first_text=text, hosts=hosts_of(host))
            address, free_port = bound.getsockname()[:2]
            say(f"http://{f'[{address}]' if ':' in address else address}:{free_port}/  (Ctrl-C ends)")
            if host not in ONLY_HERE:
                say(f"everyone who reaches {host} can use these models", err=True)
            try:
                serve(app, bound)
            except KeyboardInterrupt:
                if not explorer.answering:
                    raise
                say("stopped; the sentence that was being computed is given up", err=True)
                # Not by an exception: Python would take torch down while a thread still computes with it.
                os._exit(130)


# The command tl-vzero: parses, calls, prints. Heavy imports stay inside the commands, so that --help is quick.


class _Commands(TyperGroup):
    """The commands; what one is called wrongly with is told escaped."""

    def make_context(self, *arguments: Any, **options: Any) -> Any:
        with _usage_errors_escaped():
            return super().make_context(*arguments, **options)

    def invoke(self, *arguments: Any, **options: Any) -> Any:
        with _usage_errors_escaped():
            return super().invoke(*arguments, **options)


@contextmanager
def _usage_errors_escaped() -> Iterator[None]:
    try:
        yield
    except UsageError as error:
        error.message = escaped(error.message)
        raise


app = typer.Typer(
    name="tl-vzero",
    cls=_Commands,
    help="Which tokens does a Transformer layer really mix into a token? Value Zeroing (Mohebbi et al. 2023).",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


# Click's own class; newer releases of typer hold a copy of click, older ones the package.
UsageError: Any = typer.BadParameter.__base__


class SpanName(StrEnum):
    """What is zeroed together."""

    words = "words"
    noun_chunks = "noun_chunks"
    subtrees = "subtrees"


class Stage(StrEnum):
    """What is shown of a map."""

    raw = "raw"
    normalized = "normalized"
    rollout = "rollout"


def _sentence(text: str, pair: str | None) -> str | tuple[str, str]:
    return text if pair is None else (text, pair)


TextArgument = Annotated[str, typer.Argument(help="The sentence; [MASK] marks the target of a masked model.")]


@app.callback()
def _root() -> None:
    """Keeps single commands as subcommands."""


@app.command()
def report(
    text: TextArgument = DEFAULT_TEXT,
    pair: PairOption = None,
    model: ModelOption = DEFAULT_MODEL,
    out: Annotated[Path, typer.Option(help="The HTML page to write; it works offline.")] = Path("report.html"),
    json_file: JsonOption = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="A name that `tl-vzero methods` lists, to stand beside Value Zeroing and raw attention; may be "
            "repeated. Default: the quick ones."
        ),
    ] = None,
    target: Annotated[int | None, typer.Option(help="Position of the target; default: the only [MASK].")] = None,
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
    quiet: QuietOption = False,
) -> None:
    """Value Zeroing beside other methods, rollout and effects on the prediction, as one HTML page."""
    with errors_in_words():
        from tl_vzero.files import check_writable, write_text
        from tl_vzero.models.load import load_model
        from tl_vzero.plot.export import share_plotly
        from tl_vzero.report import make_report

        for path in (out, json_file):
            if path is not None:
                check_writable(path)
        made = make_report(
            load_model(model),
            _sentence(text, pair),
            methods=method or None,
            target=target,
            target_ids=_words(good, bad),
            corrupted=None if corrupted is None else _sentence(corrupted, pair),
            progress=not quiet,
        )
        if shared_plotly:
            share_plotly(out.parent)
        write_text(out, made.to_html(shared_plotly=shared_plotly))
        say(f"wrote {out}")
        if json_file is not None:
            write_text(json_file, json.dumps(made.to_dict(), ensure_ascii=False))
            say(f"wrote {json_file}")


@app.command("map")
def show_map(
    text: TextArgument = DEFAULT_TEXT,
    pair: PairOption = None,
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[str, typer.Option(help="A name that `tl-vzero methods` lists.")] = "value_zeroing",
    layer: Annotated[int | None, typer.Option(help="One layer, from 0; default: all.")] = None,
    stage: Annotated[
        Stage, typer.Option(help="Raw distances, rows that sum to one, or the rollout.")
    ] = Stage.normalized,
    words: Annotated[bool, typer.Option("--words", help="Join word pieces to words.")] = False,
    target: Annotated[
        int | None, typer.Option(help="Position of the target, for a method that needs one; default: the only [MASK].")
    ] = None,
    spans: Annotated[
        SpanName | None, typer.Option(help="Zero words or phrases as a whole, one column each; value_zeroing only.")
    ] = None,
    heads: Annotated[
        str | None, typer.Option(help="Zero some value heads only, such as 0,1; value_zeroing only. Default: all.")
    ] = None,
    per_head: Annotated[bool, typer.Option("--per-head", help="One map a value head; value_zeroing only.")] = False,
    stack: Annotated[
        str | None, typer.Option(help="Of an encoder-decoder: encoder, decoder, or cross (decoder on encoder).")
    ] = None,
    decoder_inputs: Annotated[
        str | None, typer.Option(help="What the decoder reads, for --stack decoder and cross.")
    ] = None,
    json_file: JsonOption = None,
    html: Annotated[Path | None, typer.Option(help="Also write the map as a page.")] = None,
    quiet: QuietOption = False,
) -> None:
    """One map of a sentence or pair: a table here; JSON and HTML on request. Rows are destinations, columns sources."""
    with errors_in_words():
        from tl_vzero.api import score
        from tl_vzero.files import check_writable, write_text
        from tl_vzero.models.load import load_model
        from tl_vzero.plot.maps import heatmap
        from tl_vzero.registry import METHODS

        for path in (json_file, html):
            if path is not None:
                check_writable(path)
        options: dict[str, Any] = {} if quiet or method != "value_zeroing" else {"progress": True}
        options |= _zeroed_parts(method, spans, heads, per_head)
        paired = {"stack": stack, "decoder_inputs": decoder_inputs}
        options |= {name: given for name, given in paired.items() if given is not None}
        if html is not None and per_head:
            raise InputError("--html and --per-head given: a page shows one map a layer; choose a head by --heads 0")
        if target is not None:
            if method in METHODS and "target" not in METHODS[method].needs:
                raise InputError(f"--target {target} given, and {method} needs none: leave it out")
            options["target"] = target
        scored = score(load_model(model), _sentence(text, pair), method=method, **options)
        assert not isinstance(scored, list)
        chosen = _choose(scored, stage, layer, words)
        say(_table(chosen))
        if json_file is not None:
            write_text(json_file, json.dumps(chosen.to_dict(), ensure_ascii=False))
        if html is not None:
            write_text(html, heatmap(chosen).to_html(include_plotlyjs=True))


@app.command()
def compare(
    text: TextArgument = DEFAULT_TEXT,
    pair: PairOption = None,
    model: ModelOption = DEFAULT_MODEL,
    method: Annotated[
        list[str] | None,
        typer.Option(help="A name that `tl-vzero methods` lists; may be repeated. Default: all of the clean run."),
    ] = None,
    layer: Annotated[list[int] | None, typer.Option(help="A layer, from 0; may be repeated. Default: all.")] = None,
    target: Annotated[int | None, typer.Option(help="Position of the target; default: the only [MASK].")] = None,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    quiet: QuietOption = False,
) -> None:
    """Methods side by side: a row a method and layer, with rank correlations. JSON has the maps too."""
    with errors_in_words():
        from tl_vzero.comparison import compare as compare_methods
        from tl_vzero.files import check_writable, write_text
        from tl_vzero.models.load import load_model

        for path in (json_file, csv_file):
            if path is not None:
                check_writable(path)
        compared = compare_methods(
            load_model(model),
            _sentence(text, pair),
            method or None,
            layers=layer or None,
            target=target,
            progress=not quiet,
        )
        assert not isinstance(compared, list)
        say(_comparison(compared))
        if json_file is not None:
            write_text(json_file, json.dumps(compared.to_dict(), ensure_ascii=False))
        if csv_file is not None:
            write_text(csv_file, compared.table().to_csv(index=False))


@app.command()
def methods(json_file: JsonOption = None) -> None:
    """The context-mixing methods there are: what each measures, its paper, what it is defined for and what it needs."""
    with errors_in_words():
        from tl_vzero.files import check_writable, write_text
        from tl_vzero.registry import METHODS

        if json_file is not None:
            check_writable(json_file)
        described = {
            name: {
                "summary": method.summary,
                "reference": method.reference,
                "defined_for": method.defined_for,
                "needs": list(method.needs),
            }
            for name, method in METHODS.items()
        }
        for name, each in METHODS.items():
            say(f"{name}\n    {each.summary} ({each.reference}); for {each.defined_for}")
            say(f"    needs: {', '.join(each.needs) or 'not said'}")
        if json_file is not None:
            write_text(json_file, json.dumps(described, ensure_ascii=False))


def _words(good: str | None, bad: str | None) -> str | tuple[str, str] | None:
    if good is None and bad is not None:
        raise InputError(f"--bad {bad!r} given without --good: expected --good WORD, or both")
    return good if good is None or bad is None else (good, bad)


def _zeroed_parts(method: str, spans: SpanName | None, heads: str | None, per_head: bool) -> dict[str, Any]:
    """The options of value_zeroing that are given; raises InputError where another method gets them."""
    numbers = None if heads is None else _numbers("--heads", heads)
    asked = {"spans": spans and spans.value, "heads": numbers, "per_head": per_head or None}
    given = {name: value for name, value in asked.items() if value is not None}
    if given and method != "value_zeroing":
        name = next(iter(given)).replace("_", "-")
        raise InputError(f"--{name} given, and {method} zeroes no values: leave it out, or take --method value_zeroing")
    return given


def _numbers(name: str, given: str) -> list[int]:
    try:
        return [int(number) for number in given.split(",")]
    except ValueError:
        raise InputError(f"{name} {given!r}: expected numbers with commas between them, such as 0,1") from None


def _choose(scores: "Scores", stage: Stage, layer: int | None, words: bool) -> "Scores":
    if stage is Stage.normalized:
        scores = scores.normalized()
    elif stage is Stage.rollout and scores.stage != "rollout":
        scores = scores.rollout()
    if layer is not None:
        scores = scores.at_layer(layer)
    return scores.words() if words else scores


def _comparison(compared: "Comparison") -> str:
    """The table, and below it what was predicted and what was left out."""
    table = compared.table().set_index(["method", "layer"])
    table.columns = [str(name).replace("rank_with_", "rank ").replace("_", " ") for name in table.columns]
    lines = [table.to_string(float_format="%.3f", na_rep="-")]
    if compared.effect is not None:
        effect = compared.effect
        lines.append(
            f"effect: zeroing a value at each position, on the {effect.metric} at {effect.target} {effect.target_token}"
        )
    else:
        lines.append(f"no effect on a prediction: {compared.no_effect_reason}")
    lines += [f"left out: {name}: {reason}" for name, reason in compared.left_out.items()]
    return "\n".join(lines)


def _table(scores: "Scores") -> str:
    import pandas as pd

    rows = [
        f"{position} {token.strip()}" for position, token in zip(scores.dest_positions, scores.dest_tokens, strict=True)
    ]
    columns = [token.strip() for token in scores.src_tokens]
    blocks = []
    heads = [""] if scores.heads is None else [f", head {head}" for head in scores.heads]
    maps = scores.values.flatten(0, -3).numpy()
    for (layer, head), values in zip(product(scores.layers, heads), maps, strict=True):
        frame = pd.DataFrame(values, index=rows, columns=columns)
        blocks.append(f"layer {layer}{head}, {scores.method}, {scores.stage}\n{frame.to_string(float_format='%.3g')}")
    return "\n\n".join(blocks)


# After the commands above: help lists them in this order, the main job first.
app.command("explore")(explore_command)
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
