"""tl-vzero heads: which heads of each layer mix. Heavy imports stay inside the command."""

import json
from typing import Annotated

import typer

from tl_vzero.cli_options import (
    DEFAULT_MODEL,
    DEFAULT_TEXT,
    CsvOption,
    JsonOption,
    ModelOption,
    QuietOption,
    errors_in_words,
    say,
)


def heads_command(
    texts: Annotated[
        list[str] | None, typer.Argument(help="Sentences to average over, each in quotes.", metavar="TEXT")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    layer: Annotated[list[int] | None, typer.Option(help="A layer, from 0; may be repeated. Default: all.")] = None,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    quiet: QuietOption = False,
) -> None:
    """How much of each layer's mixing goes when one head's value is zeroed: a row a layer and value head.

    mixing: the distance when this head alone is zeroed, summed over sources, averaged over destinations and sentences;
    share: mixing as a part of its sum over heads; lost: the part of the layer's mixing that goes without this head;
    context: the part of mixing from other positions than the destination's own.
    """
    with errors_in_words():
        from tl_vzero.files import check_writable, write_text
        from tl_vzero.models.load import load_model
        from tl_vzero.tables import head_importance

        for path in (json_file, csv_file):
            if path is not None:
                check_writable(path)
        table = head_importance(load_model(model), texts or [DEFAULT_TEXT], layers=layer or None, progress=not quiet)
        say(table.to_string(index=False, float_format="%.3g"))
        if json_file is not None:
            write_text(json_file, json.dumps({"heads": table.to_dict("records")}, ensure_ascii=False))
        if csv_file is not None:
            write_text(csv_file, table.to_csv(index=False))
