"""tl-vzero corpus: scores of many sentences into a folder. Heavy imports stay inside the command."""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Literal

import typer

import tl_vzero
from tl_vzero.cli.common import (
    DEFAULT_MODEL,
    LayersOption,
    ModelOption,
    QuietOption,
    TargetOption,
    errors_in_words,
    say,
)

SOME_FAILED = 1
NOT_COMPLETE = 3


def corpus_command(
    source: Annotated[
        str,
        typer.Argument(
            metavar="INPUT",
            help="A file (.txt, .jsonl, .csv, .tsv, .parquet), a folder of the package datasets, or with "
            "--format datasets a name on the hub.",
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder to write; started again with it, the command goes on.")],
    model: ModelOption = DEFAULT_MODEL,
    methods: Annotated[
        list[str] | None,
        typer.Option(
            "--methods", "--method", help="Names that `tl-vzero methods` lists, between commas; may be repeated."
        ),
    ] = None,
    rows: Annotated[
        Literal["all", "target", "summary"],
        typer.Option(help="Whole maps, the target's row of each layer, or means over rows."),
    ] = "all",
    layer: LayersOption = None,
    target: TargetOption = None,
    input_format: Annotated[
        Literal["text", "jsonl", "csv", "parquet", "datasets"] | None,
        typer.Option("--format", help="How INPUT is read. Default: by its suffix."),
    ] = None,
    text_column: Annotated[str | None, typer.Option(help="The column with the sentence. Default: text.")] = None,
    second_text_column: Annotated[
        str | None, typer.Option(help="The column with the second text of pairs. Default: no pairs.")
    ] = None,
    id_column: Annotated[str | None, typer.Option(help="The column with the ids. Default: id.")] = None,
    config: Annotated[str | None, typer.Option(help="The configuration of a dataset.")] = None,
    split: Annotated[str | None, typer.Option(help="The split of a dataset.")] = None,
    shard_size: Annotated[int, typer.Option(help="Records of INPUT in a shard: what an interruption may cost.")] = 1000,
    json_log: Annotated[Path | None, typer.Option(help="Add JSON lines about the progress to this file.")] = None,
    quiet: QuietOption = False,
) -> None:
    """Scores of every sentence of a corpus, as Parquet shards in a folder; streamed, and resumed where it was.

    Sentences that cannot be scored go to errors.jsonl in the folder, with their id and the reason; the code of the
    exit is then 1. Started by torchrun or accelerate launch, processes share the shards; code 3 says that one of them
    ended early.
    """
    with errors_in_words(), _terminated_as_interrupted():
        from tl_vzero.corpus import run_corpus

        run = run_corpus(
            tl_vzero.load_model(model, device=_device()),
            source,
            out,
            [name.strip() for names in methods or ["value_zeroing"] for name in names.split(",")],
            rows=rows,
            layers=layer or None,
            target=target,
            input_format=input_format,
            text_column=text_column,
            second_text_column=second_text_column,
            id_column=id_column,
            config=config,
            split=split,
            shard_size=shard_size,
            progress=not quiet,
            json_log=json_log,
            say=say,
        )
        if os.environ.get("RANK", "0") == "0":
            say(str(run))
    if not run.complete:
        raise typer.Exit(NOT_COMPLETE)
    # A launcher takes a code for the failure of a process, and ends the others: many processes say it in words only.
    if run.failed and os.environ.get("WORLD_SIZE", "1") == "1":
        raise typer.Exit(SOME_FAILED)


def _device() -> str | None:
    """The GPU of this process, where a launcher started several."""
    local = os.environ.get("LOCAL_RANK")
    if local is None:
        return None
    import torch

    return f"cuda:{int(local) % torch.cuda.device_count()}" if torch.cuda.is_available() else None


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """Within, SIGTERM ends the work as Ctrl-C does: launchers and schedulers send it."""
    with ExitStack() as before:
        with suppress(ValueError):  # not the main thread
            before.callback(signal.signal, signal.SIGTERM, signal.signal(signal.SIGTERM, signal.default_int_handler))
        yield
