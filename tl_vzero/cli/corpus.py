"""tl-vzero corpus and values: scores of many sentences into a folder, and their mean values into a file.

Heavy imports stay inside the commands.
"""

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import typer

import tl_vzero
from tl_vzero.cli.common import (
    BaselineOptions,
    LayersOption,
    ModelOptions,
    StackOption,
    TargetOption,
    app,
    command,
    say,
)
from tl_vzero.errors import InputError
from tl_vzero.files import check_writable

SOME_FAILED = 1
NOT_COMPLETE = 3


@dataclass(frozen=True)
class InputOptions:
    """How the input is read, as `run_corpus` calls it."""

    input_format: Annotated[
        Literal["text", "jsonl", "csv", "parquet", "datasets"] | None,
        typer.Option("--format", help="How INPUT is read. Default: by its suffix."),
    ] = None
    text_column: Annotated[str | None, typer.Option(help="The column with the sentence. Default: text.")] = None
    second_text_column: Annotated[
        str | None, typer.Option(help="The column with the second text of pairs, or with what a decoder reads.")
    ] = None
    id_column: Annotated[str | None, typer.Option(help="The column with the ids. Default: id.")] = None
    config: Annotated[str | None, typer.Option(help="The configuration of a dataset.")] = None
    split: Annotated[str | None, typer.Option(help="The split of a dataset.")] = None


InputArgument = Annotated[
    str,
    typer.Argument(
        metavar="INPUT",
        help="A file (.txt, .jsonl, .csv, .tsv, .parquet), a folder of the package datasets, or with --format datasets "
        "a name on the hub.",
    ),
]


@command(
    app,
    "corpus",
    "sentences.txt --out corpus",
    "reviews.csv --text-column review --out corpus --methods value_zeroing,alti",
)
def corpus_command(
    chosen: ModelOptions,
    read: InputOptions,
    replaced: BaselineOptions,
    source: InputArgument,
    out: Annotated[Path, typer.Option(help="The folder to write; started again with it, the command goes on.")],
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
    shard_size: Annotated[int, typer.Option(help="Records of INPUT in a shard: what an interruption may cost.")] = 1000,
    json_log: Annotated[Path | None, typer.Option(help="Add JSON lines about the progress to this file.")] = None,
    stack: StackOption = None,
) -> None:
    """Scores of every sentence of a corpus, as Parquet shards in a folder; streamed, and resumed where it was.

    Sentences that cannot be scored go to errors.jsonl in the folder, with their id and the reason; the code of the
    exit is then 1. Started by torchrun or accelerate launch, processes share the shards; code 3 says that one of them
    ended early.
    """
    names = [name.strip() for listed in methods or ["value_zeroing"] for name in listed.split(",")]
    baseline = replaced.read()
    with _terminated_as_interrupted():
        from tl_vzero.corpus import run_corpus

        run = run_corpus(
            chosen.load(names, layer, device=_device()),
            source,
            out,
            names,
            rows=rows,
            layers=layer or None,
            target=target,
            baseline=baseline,
            shard_size=shard_size,
            **vars(read),
            progress=not chosen.quiet,
            json_log=json_log,
            stack=stack,
            say=say,
        )
        if os.environ.get("RANK", "0") == "0":
            say(str(run))
    if not run.complete:
        raise typer.Exit(NOT_COMPLETE)
    # A launcher takes a code for the failure of a process, and ends the others: many processes say it in words only.
    if run.failed and os.environ.get("WORLD_SIZE", "1") == "1":
        raise typer.Exit(SOME_FAILED)


@command(
    app,
    "values",
    "sentences.txt --out mean.safetensors",
    "sentences.txt --optimise --steps 50 --out constants.safetensors",
)
def values_command(
    chosen: ModelOptions,
    read: InputOptions,
    source: InputArgument,
    out: Annotated[Path, typer.Option(help="The file to write, which --baseline takes; it ends in .safetensors.")],
    optimise: Annotated[
        bool, typer.Option("--optimise", help="Optimise constants from the mean on, which takes many runs.")
    ] = False,
    target: TargetOption = None,
    steps: Annotated[int, typer.Option(help="Steps of --optimise.")] = 20,
    seed: Annotated[int, typer.Option(help="Draws the sentences of each step of --optimise.")] = 0,
) -> None:
    """Vectors to put in a value's place, for --baseline: the mean of all values of a corpus, by layer and head.

    Special tokens are left out. With --optimise they are those that hurt the prediction at the target least.
    """
    if target is not None and not optimise:
        raise InputError("--target given without --optimise: a mean needs none; leave it out")
    check_writable(out)
    if out.suffix != ".safetensors":
        raise InputError(f"--out {out}: expected a name that ends in .safetensors")
    from tl_vzero.corpus.source import open_source

    texts = open_source(source, **vars(read)).texts()
    model = chosen.load()
    if optimise:
        values = tl_vzero.optimised_values(model, texts, target, steps=steps, seed=seed, progress=not chosen.quiet)
    else:
        values = tl_vzero.mean_values(model, texts, progress=not chosen.quiet)
    values.save(out)
    say(f"wrote {out}: {values.name}, {values.metadata['positions']:,} positions")


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
