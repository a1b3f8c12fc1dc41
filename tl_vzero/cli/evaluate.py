"""tl-vzero evaluate and reproduce: the evaluations of the paper, one or all. Heavy imports stay inside the commands."""

import json
import time
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tl_vzero.cli.common import DEFAULT_MODEL, CsvOption, JsonOption, ModelOption, QuietOption, errors_in_words, say

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from tl_vzero.corpus import Corpus
    from tl_vzero.evaluate.sentences import Sentences, TokenizedSet


class ProtocolName(StrEnum):
    """How sentences are laid out."""

    masked = "masked"
    causal = "causal"


class MeasureName(StrEnum):
    """What is printed of cue alignment; the files have both."""

    dot = "dot"
    average_precision = "average_precision"


class ProbingMode(StrEnum):
    """How a code length is measured."""

    correct = "correct"
    paper = "paper"


class ReplacementName(StrEnum):
    """What stands for a blanked token."""

    mask = "mask"
    unk = "unk"
    pad = "pad"
    removed = "removed"


class ChangeName(StrEnum):
    """How the drop of p(right form) counts."""

    signed = "signed"
    absolute = "absolute"


class OverName(StrEnum):
    """What p is a share of."""

    vocabulary = "vocabulary"
    forms = "forms"


class CuesName(StrEnum):
    """Where the cues of the user's own sentences come from."""

    given = "given"
    spacy = "spacy"


evaluate_app = typer.Typer(
    help="The evaluations of Mohebbi et al. (2023), one at a time.", no_args_is_help=True, add_completion=False
)

BlimpOption = Annotated[
    Path | None,
    typer.Option(
        "--blimp", help="The folder with BLiMP's JSONL files, or hub to fetch them. Default: the embedded sentences."
    ),
]
ExamplesOption = Annotated[
    Path | None,
    typer.Option("--examples", help="Sentences of your own, .csv or .jsonl, with the columns sentence, target, cue."),
]
CuesOption = Annotated[
    CuesName, typer.Option("--cues", help="Of --examples: given in its column, or found by spaCy's dependency parse.")
]
MethodOption = Annotated[
    list[str] | None,
    typer.Option(
        "--method", help="A name that `tl-vzero methods` lists; may be repeated. Default: all except the slow ones."
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", help="Take so many sentences, spread over the paradigms. Default: all.")
]
SeedOption = Annotated[int, typer.Option("--seed", help="Draws what --limit takes, shuffled cues and probes.")]
ProtocolOption = Annotated[
    ProtocolName, typer.Option("--protocol", help="masked, or causal: the target is the next token.")
]


CorpusOption = Annotated[
    Path | None,
    typer.Option(
        "--corpus",
        help="A folder that `tl-vzero corpus` wrote of these sentences (see `evaluate sentences`): maps are read, not "
        "computed. Default methods: those it holds.",
    ),
]
VerifyOption = Annotated[
    bool, typer.Option("--verify/--no-verify", help="Compare the shards of --corpus with what was written.")
]


@evaluate_app.command("sentences")
def sentences_command(
    out: Annotated[Path, typer.Option(help="The JSON lines to write: id and text of each sentence.")],
    model: ModelOption = DEFAULT_MODEL,
    blimp: BlimpOption = None,
    examples: ExamplesOption = None,
    cues: CuesOption = CuesName.given,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    protocol: ProtocolOption = ProtocolName.masked,
) -> None:
    """Write the sentences of an evaluation, targets masked, as `tl-vzero corpus` reads them.

    Of a causal model they end before the target: there `tl-vzero corpus --rows target` takes --target -1.
    """
    with errors_in_words():
        from tl_vzero.evaluate.sentences import read_texts
        from tl_vzero.files import write_text

        loaded, sentences = _prepared(model, blimp, examples, cues, protocol, limit, seed, (out,))
        layout = _laid_out(loaded, sentences, protocol)
        texts = read_texts(loaded, layout)
        lines = [
            json.dumps({"id": each.example.id, "text": text}, ensure_ascii=False)
            for each, text in zip(layout.examples, texts, strict=True)
        ]
        write_text(out, "".join(f"{line}\n" for line in lines))
        _say_rest(sentences, {}, len(layout.skipped))
        say(f"wrote {out}: {len(lines)} sentences")


@evaluate_app.command("cue-alignment")
def cue_alignment_command(
    model: ModelOption = DEFAULT_MODEL,
    blimp: BlimpOption = None,
    examples: ExamplesOption = None,
    cues: CuesOption = CuesName.given,
    corpus: CorpusOption = None,
    verify: VerifyOption = True,
    method: MethodOption = None,
    measure: Annotated[MeasureName, typer.Option(help="The measure that is printed.")] = MeasureName.dot,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    protocol: ProtocolOption = ProtocolName.masked,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    quiet: QuietOption = False,
) -> None:
    """Does the target's row of each method point at the word that decides its form? By method and layer."""
    with errors_in_words():
        from tl_vzero.evaluate.cue_alignment import cue_alignment

        opened = _opened(corpus, verify)
        loaded, sentences = _prepared(model, blimp, examples, cues, protocol, limit, seed, (json_file, csv_file))
        found = cue_alignment(
            loaded,
            sentences.examples,
            method or None,
            corpus=opened,
            protocol=protocol.value,
            seed=seed,
            progress=not quiet,
        )
        table = found.to_frame()
        shown = table[(table["paradigm"] == "all") & (table["measure"] == measure.value)]
        say(f"{measure.value.replace('_', ' ')} of the target's row with the cue: mean by layer")
        say(
            shown.pivot(index="method", columns="layer", values="mean")
            .reindex(list(dict.fromkeys(shown["method"])))
            .to_string(float_format="%.3f")
        )
        say(f"chance {shown['chance'].iloc[0]:.3f}; 95 % intervals, shuffled cues and paradigms: --csv, --json")
        _say_rest(sentences, found.left_out, len(found.skipped))
        _write(json_file, csv_file, found.to_dict() | _account(sentences), table)


@evaluate_app.command("probing")
def probing_command(
    model: ModelOption = DEFAULT_MODEL,
    blimp: BlimpOption = None,
    examples: ExamplesOption = None,
    cues: CuesOption = CuesName.given,
    corpus: Annotated[Path | None, typer.Option("--corpus", hidden=True)] = None,
    mode: Annotated[
        ProbingMode, typer.Option(help="correct, or paper: the published program's sums, with its faults.")
    ] = ProbingMode.correct,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    protocol: ProtocolOption = ProtocolName.masked,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    quiet: QuietOption = False,
) -> None:
    """How much of the target's number is in its representation, by layer? Layer -1 is the embeddings."""
    with errors_in_words():
        from tl_vzero.errors import InputError
        from tl_vzero.evaluate.probing import probe_number

        if corpus is not None:
            raise InputError(
                f"--corpus {corpus} given: probing reads representations, and a corpus holds maps; leave it out"
            )
        loaded, sentences = _prepared(model, blimp, examples, cues, protocol, limit, seed, (json_file, csv_file))
        layout = _laid_out(loaded, sentences, protocol)
        found = probe_number(loaded, layout, mode=mode.value, seed=seed, progress=not quiet)
        table = found.to_frame()
        say("compression of singular or plural by the representation at the target; layer -1: embeddings")
        say(table.to_string(index=False, float_format="%.3f"))
        _say_rest(sentences, {}, len(layout.skipped))
        if found.n < len(layout.examples):
            say(f"left out: {len(layout.examples) - found.n} sentences whose target shows no number")
        _write(json_file, csv_file, found.to_dict() | _account(sentences), table)


@evaluate_app.command("faithfulness")
def faithfulness_command(
    model: ModelOption = DEFAULT_MODEL,
    blimp: BlimpOption = None,
    examples: ExamplesOption = None,
    cues: CuesOption = CuesName.given,
    corpus: CorpusOption = None,
    verify: VerifyOption = True,
    method: MethodOption = None,
    replacement: Annotated[
        ReplacementName, typer.Option(help="What stands for a blanked token.")
    ] = ReplacementName.mask,
    change: Annotated[ChangeName, typer.Option(help="The drop with its sign, or its size.")] = ChangeName.signed,
    over: Annotated[OverName, typer.Option(help="p over the vocabulary, or over the two forms.")] = OverName.vocabulary,
    special_tokens: Annotated[bool, typer.Option("--special-tokens", help="Blank special tokens too.")] = False,
    limit: LimitOption = None,
    seed: SeedOption = 0,
    protocol: ProtocolOption = ProtocolName.masked,
    json_file: JsonOption = None,
    csv_file: CsvOption = None,
    quiet: QuietOption = False,
) -> None:
    """Does each method rank tokens as the prediction depends on them? Spearman correlation with blank-out."""
    with errors_in_words():
        from tl_vzero.evaluate.blanking import Conventions
        from tl_vzero.evaluate.faithfulness import faithfulness

        conventions = Conventions(replacement.value, change.value, over.value, special_tokens)
        opened = _opened(corpus, verify)
        loaded, sentences = _prepared(model, blimp, examples, cues, protocol, limit, seed, (json_file, csv_file))
        found = faithfulness(
            loaded,
            sentences.examples,
            method or None,
            corpus=opened,
            conventions=conventions,
            protocol=protocol.value,
            progress=not quiet,
        )
        table = found.to_frame()
        shown = table[table["paradigm"] == "all"].drop(columns=["paradigm", "published"])
        say("Spearman correlation of the target's row, rolled out, with the change that blanking a token makes")
        say(shown.to_string(index=False, float_format="%.3f", na_rep="-"))
        _say_rest(sentences, found.left_out, len(found.skipped))
        _write(json_file, csv_file, found.to_dict() | _account(sentences), table)


def reproduce_command(
    model: ModelOption = DEFAULT_MODEL,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Fine-tune on the train half first, as the paper.")
    ] = False,
    blimp: BlimpOption = None,
    out: Annotated[
        Path, typer.Option(help="The folder to write; started again with it, the command goes on where it was.")
    ] = Path("reproduction"),
    limit: LimitOption = None,
    seed: SeedOption = 0,
    quiet: QuietOption = False,
) -> None:
    """The paper's three evaluations with controls: JSON, CSV tables and one HTML page that says what agrees."""
    with errors_in_words():
        start = time.monotonic()
        from tl_vzero.evaluate.findings import findings
        from tl_vzero.evaluate.protocol import reproduce
        from tl_vzero.files import write_text
        from tl_vzero.models.load import load_model
        from tl_vzero.report.reproduction_page import render_reproduction

        found = reproduce(
            load_model(model),
            blimp=blimp,
            fine_tuned=finetune,
            limit=limit,
            seed=seed,
            folder=out,
            progress=not quiet,
        )
        written = json.dumps(found.to_dict(), ensure_ascii=False, allow_nan=False)
        write_text(out / "reproduction.json", written)
        for name, table in found.frames().items():
            write_text(out / f"{name}.csv", table.to_csv(index=False))
        write_text(out / "reproduction.html", render_reproduction(found))
        for each in findings(found):
            say(f"{each.verdict}{' (control)' if each.control else ''}: {each.claim}: {each.evidence}")
        minutes, seconds = divmod(round(time.monotonic() - start), 60)
        say(f"wrote {out / 'reproduction.html'}, reproduction.json and {len(found.frames())} CSV tables")
        say(f"took {minutes} min {seconds} s")


def _prepared(
    model: str,
    blimp: Path | None,
    examples: Path | None,
    cues: CuesName,
    protocol: ProtocolName,
    limit: int | None,
    seed: int,
    files: tuple[Path | None, ...],
) -> "tuple[nn.Module, Sentences]":
    """Everything that may be wrong with the command, before any work."""
    from tl_vzero.evaluate.sentences import sentences_for
    from tl_vzero.files import check_writable
    from tl_vzero.models.load import load_model

    for path in files:
        if path is not None:
            check_writable(path)
    loaded = load_model(model)
    sentences = sentences_for(
        loaded, blimp=blimp, file=examples, cues=cues.value, protocol=protocol.value, limit=limit, seed=seed
    )
    return loaded, sentences


def _opened(folder: Path | None, verify: bool) -> "Corpus | None":
    from tl_vzero.corpus import read_corpus

    return None if folder is None else read_corpus(folder, verify=verify)


def _laid_out(model: "nn.Module", sentences: "Sentences", protocol: ProtocolName) -> "TokenizedSet":
    from tl_vzero.evaluate.sentences import tokenize_examples

    return tokenize_examples(model, sentences.examples, protocol=protocol.value)


def _say_rest(sentences: "Sentences", left_out: Any, skipped: int) -> None:
    """Which sentences these are, how many each filter left, and which methods are not there."""
    stages = ", ".join(f"{stage.name} {sum(stage.counts.values())}" for stage in sentences.examples.report.stages)
    say(f"sentences: {sentences.source}; {stages}")
    if skipped:
        say(f"skipped: {skipped} sentences that the protocol cannot hold; reasons: --json")
    for name, reason in left_out.items():
        say(f"left out: {name}: {reason}")


def _account(sentences: "Sentences") -> dict[str, Any]:
    report = sentences.examples.report
    return {
        "source": sentences.source,
        "filters": [{"name": stage.name, "kept": dict(stage.counts)} for stage in report.stages],
        "filtered_out": [
            {"id": each.id, "paradigm": each.paradigm, "stage": each.stage, "reason": each.reason}
            for each in report.skipped
        ],
    }


def _write(json_file: Path | None, csv_file: Path | None, numbers: dict[str, Any], table: "pd.DataFrame") -> None:
    from tl_vzero.files import write_text

    if json_file is not None:
        write_text(json_file, json.dumps(numbers, ensure_ascii=False))
        say(f"wrote {json_file}")
    if csv_file is not None:
        write_text(csv_file, table.to_csv(index=False))
        say(f"wrote {csv_file}")
