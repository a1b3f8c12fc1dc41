"""tl-vzero evaluate and reproduce: the evaluations of the paper, one or all. Heavy imports stay inside the commands."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tl_vzero.cli import common
from tl_vzero.errors import InputError
from tl_vzero.files import check_writable, write_text

if TYPE_CHECKING:
    import pandas as pd
    from torch import nn

    from tl_vzero.evaluate.sentences import Sentences

evaluate_app = typer.Typer(
    name="evaluate",
    help="The evaluations of Mohebbi et al. (2023), one at a time.",
    epilog=common.below_help("evaluate cue-alignment --limit 50", "evaluate cue-alignment --examples mine.csv"),
    no_args_is_help=True,
)

ChangeOption = Annotated[Literal["signed", "absolute"], typer.Option(help="The drop with its sign, or its size.")]


@dataclass(frozen=True)
class SampleOptions(common.ModelOptions):
    """The model, and which sentences are drawn for it."""

    blimp: Annotated[
        Path | None,
        typer.Option(help="BLiMP's folder of JSONL files, or hub to fetch it. Default: embedded sentences."),
    ] = None
    limit: Annotated[int | None, typer.Option(help="This many sentences, of all paradigms. Default: all.")] = None
    seed: Annotated[int, typer.Option(help="Draws what --limit takes, shuffled cues and probes.")] = 0


@dataclass(frozen=True)
class Chosen(SampleOptions):
    """The options that every evaluation has: the model, and which sentences it reads."""

    examples: Annotated[
        Path | None, typer.Option(help="Sentences of your own, .csv or .jsonl, with the columns sentence, target, cue.")
    ] = None
    cues: Annotated[
        Literal["given", "spacy"], typer.Option(help="Of --examples: those in its column, or found by spaCy's parse.")
    ] = "given"
    protocol: Annotated[
        Literal["masked", "causal"], typer.Option(help="masked, or causal: the target is the next token.")
    ] = "masked"

    def prepared(self, methods: Sequence[str] | None = None) -> "tuple[nn.Module, Sentences]":
        """The model and the sentences; raises for everything that may be wrong with the command, before any work."""
        from tl_vzero.evaluate.sentences import sentences_for

        loaded = self.load(methods)
        options = {name: getattr(self, name) for name in ("blimp", "cues", "protocol", "limit", "seed")}
        return loaded, sentences_for(loaded, file=self.examples, **options)


@dataclass(frozen=True)
class Evaluation(common.FileOptions, Chosen):
    """The options of an evaluation whose numbers may be written."""

    def load_adapted(self, adapter: Path) -> "nn.Module":
        """The model with an adapter on it."""
        import torch

        from tl_vzero.models.load import load_adapted

        dtype = None if self.dtype is None else getattr(torch, self.dtype)
        return load_adapted(self.model, adapter, self.device, dtype)

    def save(self, numbers: dict[str, Any], sentences: "Sentences", table: "pd.DataFrame") -> None:
        """Write the numbers, with where the sentences are from and what became of them, and the table."""
        report = sentences.examples.report
        account = {
            "source": sentences.source,
            "filters": [{"name": stage.name, "kept": dict(stage.counts)} for stage in report.stages],
            "filtered_out": [
                {"id": skip.id, "paradigm": skip.paradigm, "stage": skip.stage, "reason": skip.reason}
                for skip in report.skipped
            ],
        }
        self.write(lambda: numbers | account, lambda: table)


@dataclass(frozen=True)
class EvaluationOfMaps(Evaluation):
    """The options of an evaluation of maps, which are computed or read from a corpus."""

    method: common.MethodsOption = None
    corpus: Annotated[
        Path | None,
        typer.Option(help="Read maps from a folder that `tl-vzero corpus` wrote of these sentences."),
    ] = None
    verify: Annotated[bool, typer.Option(help="Compare the shards of --corpus with what was written.")] = True

    def evaluated(self, evaluate: Callable[..., Any], **options: Any) -> "tuple[Sentences, Any]":
        """The sentences, and the result of an evaluation of their maps."""
        from tl_vzero.corpus import read_corpus

        corpus = None if self.corpus is None else read_corpus(self.corpus, verify=self.verify)
        loaded, sentences = self.prepared(self.method)
        shared = {"corpus": corpus, "protocol": self.protocol, "progress": not self.quiet}
        return sentences, evaluate(loaded, sentences.examples, self.method or None, **shared, **options)

    def report(self, sentences: "Sentences", result: Any) -> None:
        """Say what the printed means leave out, and write the numbers."""
        _say_rest(sentences, result.left_out, len(result.skipped))
        self.save(result.to_dict(), sentences, result.to_frame())


@common.command(evaluate_app, "sentences", "--blimp DIR --model all-MiniLM-L6-v2 --out blimp.jsonl")
def sentences_command(
    chosen: Chosen,
    out: Annotated[Path, typer.Option(help="The JSON lines to write: id and text of each sentence.")],
) -> None:
    """Write the sentences of an evaluation, targets masked, as `tl-vzero corpus` reads them.

    Of a causal model they end before the target: there `tl-vzero corpus --rows target` takes --target -1.
    """
    from tl_vzero.evaluate.sentences import read_texts, tokenize_examples

    check_writable(out)
    loaded, sentences = chosen.prepared()
    layout = tokenize_examples(loaded, sentences.examples, protocol=chosen.protocol)
    lines = [
        json.dumps({"id": sentence.example.id, "text": text}, ensure_ascii=False)
        for sentence, text in zip(layout.examples, read_texts(loaded, layout), strict=True)
    ]
    write_text(out, "".join(f"{line}\n" for line in lines))
    _say_rest(sentences, {}, len(layout.skipped))
    common.say(f"wrote {out}: {len(lines)} sentences")


@common.command(
    evaluate_app,
    "cue-alignment",
    "--limit 50",
    "--examples mine.csv --method value_zeroing --csv cue.csv",
    "--blimp DIR --model all-MiniLM-L6-v2 --corpus corpus",
)
def cue_alignment_command(
    chosen: EvaluationOfMaps,
    measure: Annotated[
        Literal["dot", "average_precision"], typer.Option(help="The measure that is printed; the files have both.")
    ] = "dot",
) -> None:
    """Does the target's row of each method point at the word that decides its form? By method and layer."""
    from tl_vzero.evaluate.cue_alignment import cue_alignment

    sentences, alignment = chosen.evaluated(cue_alignment, seed=chosen.seed)
    shown = alignment.to_frame().query("paradigm == 'all' and measure == @measure")
    common.say(f"{measure.replace('_', ' ')} of the target's row with the cue: mean by layer")
    common.say(_by_method(shown, "layer"))
    common.say(f"chance {shown['chance'].iloc[0]:.3f}; 95 % intervals, shuffled cues and paradigms: --csv, --json")
    chosen.report(sentences, alignment)


@common.command(evaluate_app, "probing", "--limit 200", "--mode paper --csv probing.csv")
def probing_command(
    chosen: Evaluation,
    corpus: Annotated[Path | None, typer.Option("--corpus", hidden=True)] = None,
    mode: Annotated[
        Literal["correct", "paper"],
        typer.Option(help="correct, or paper: the published program's sums, with its faults."),
    ] = "correct",
) -> None:
    """How much of the target's number is in its representation, by layer? Layer -1 is the embeddings."""
    from tl_vzero.evaluate.probing import probe_number
    from tl_vzero.evaluate.sentences import tokenize_examples

    if corpus is not None:
        raise InputError(
            f"--corpus {corpus} given: probing reads representations, and a corpus holds maps; leave it out"
        )
    loaded, sentences = chosen.prepared()
    layout = tokenize_examples(loaded, sentences.examples, protocol=chosen.protocol)
    result = probe_number(loaded, layout, mode=mode, seed=chosen.seed, progress=not chosen.quiet)
    table = result.to_frame()
    common.say("compression of singular or plural by the representation at the target; layer -1: embeddings")
    common.say(table.to_string(index=False, float_format="%.3f"))
    _say_rest(sentences, {}, len(layout.skipped))
    if result.n < len(layout.examples):
        common.say(f"left out: {len(layout.examples) - result.n} sentences whose target shows no number")
    chosen.save(result.to_dict(), sentences, table)


@common.command(evaluate_app, "faithfulness", "--limit 20", "--method value_zeroing --method alti --json faith.json")
def faithfulness_command(
    chosen: EvaluationOfMaps,
    replacement: Annotated[
        Literal["mask", "unk", "pad", "removed"], typer.Option(help="What stands for a blanked token.")
    ] = "mask",
    change: ChangeOption = "signed",
    over: Annotated[
        Literal["vocabulary", "forms"] | None,
        typer.Option(help="p over the vocabulary, or over the two forms [default: as the head was trained]."),
    ] = None,
    special_tokens: Annotated[bool, typer.Option("--special-tokens", help="Blank special tokens too.")] = False,
) -> None:
    """Does each method rank tokens as the prediction depends on them? Spearman correlation with blank-out."""
    from tl_vzero.evaluate.faithfulness import Conventions, faithfulness

    conventions = Conventions(replacement, change, over, special_tokens)
    sentences, result = chosen.evaluated(faithfulness, conventions=conventions)
    shown = result.to_frame().query("paradigm == 'all'").drop(columns=["paradigm", "published"])
    common.say("Spearman correlation of the target's row, rolled out, with the change that blanking a token makes")
    common.say(shown.to_string(index=False, float_format="%.3f", na_rep="-"))
    chosen.report(sentences, result)


@common.command(evaluate_app, "knockout", "--limit 20", "--method value_zeroing --method alti --csv knockout.csv")
def knockout_command(
    chosen: EvaluationOfMaps,
    change: ChangeOption = "signed",
    over: Annotated[
        Literal["vocabulary", "forms"], typer.Option(help="p over the vocabulary, or over the two forms.")
    ] = "vocabulary",
    special_tokens: Annotated[bool, typer.Option("--special-tokens", help="Rank special tokens too.")] = False,
    renormalise: Annotated[
        bool, typer.Option("--renormalise", help="Scale what is left of an attention row to its sum.")
    ] = False,
) -> None:
    """Does a rollout tell the truth? Spearman correlation with cutting the target off from a token, from a layer on."""
    from tl_vzero.evaluate.knockout_agreement import knockout_agreement

    conventions = {"change": change, "over": over, "special_tokens": special_tokens, "renormalise": renormalise}
    sentences, result = chosen.evaluated(knockout_agreement, **conventions)
    shown = result.to_frame().query("paradigm == 'all'")
    common.say("Spearman correlation of the target's row, rolled out, with cutting it off from a token: mean, by the")
    common.say("layer from which the token is cut off")
    common.say(_by_method(shown, "from_layer"))
    common.say("95 % intervals and paradigms: --csv, --json")
    chosen.report(sentences, result)


@common.command(
    evaluate_app, "removal", "--limit 100", "--layer 1 --share 0.5 --method value_zeroing --csv removal.csv"
)
def removal_command(
    chosen: EvaluationOfMaps,
    layer: Annotated[int | None, typer.Option(help="Leave tokens out from this block on. Default: the middle.")] = None,
    share: Annotated[
        list[float] | None, typer.Option(help="Of the tokens that may go, 0 to 1; may be repeated. Default: eighths.")
    ] = None,
    rolled_out: Annotated[
        bool, typer.Option("--rolled-out/--own-layer", help="Rank by rows rolled out to that block, or by its own.")
    ] = True,
    repeats: Annotated[int, typer.Option(help="So often the time is measured; 0: not.")] = 11,
) -> None:
    """What stays of the prediction without the tokens that each method ranks lowest, and how much time that saves?

    Their positions are neither attended to nor computed. The target and special tokens always stay.
    """
    from tl_vzero.evaluate.removal import SHARES, token_removal

    chosen.check(chosen.method, None if layer is None else [layer])
    options = {"layer": layer, "shares": share or SHARES, "rolled_out": rolled_out, "repeats": repeats}
    sentences, result = chosen.evaluated(token_removal, **options)
    shown = result.to_frame().query("paradigm == 'all'")
    common.say(f"tokens left out from block {result.settings['layer']} on, by the share of those that may go")
    for measure, title in (("accuracy", "accuracy"), ("p_forms", "p(right form) over the two forms")):
        common.say(f"{title}:\n{_by_method(shown, 'share', f'{measure}_mean')}")
    common.say("95 % intervals, p over the vocabulary, differences from random removal, paradigms: --csv, --json")
    for timed in result.times:
        common.say(
            f"{timed.removed} of {timed.tokens} tokens left out take {timed.ratio:.2f} of the time of whole sentences "
            f"(median of {timed.repeats}, quartiles {timed.low:.2f} to {timed.high:.2f}; {timed.sentences} sentences)"
        )
    chosen.report(sentences, result)


@common.command(evaluate_app, "planted", "--quick --open", "--out planted --seed 1")
def planted_command(
    method: Annotated[
        list[str] | None, typer.Option(help="A name that `tl-vzero methods` lists; may be repeated. Default: all.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="A third of the inputs, and no trained models.")] = False,
    seed: Annotated[int, typer.Option(help="Draws weights and inputs.")] = 0,
    out: Annotated[
        Path, typer.Option(help="The folder to write; started again with it, the command goes on where it was.")
    ] = Path("planted"),
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress bar.")] = False,
    is_opened: common.OpenOption = False,
) -> None:
    """Which methods find the flows of models in which they are known? JSON, CSV and one HTML page.

    By default all methods, and Value Zeroing with every baseline.
    """
    from tl_vzero.evaluate.planted import N_INPUTS, planted_truth
    from tl_vzero.evaluate.planted_models import planted_models
    from tl_vzero.report.planted_page import render_planted

    models = [planted for planted in planted_models() if not (quick and planted.kind == "trained")]
    n_inputs = N_INPUTS // 3 if quick else N_INPUTS
    truth = planted_truth(method or None, models, n_inputs=n_inputs, seed=seed, folder=out, progress=not quiet)
    write_text(out / "planted.json", json.dumps(truth.to_dict(), ensure_ascii=False, allow_nan=False))
    write_text(out / "planted.csv", truth.to_frame().to_csv(index=False))
    write_text(out / "planted.html", render_planted(truth))
    ap, auroc = truth.summary("ap").sort_values("mean", ascending=False), truth.summary("auroc")["mean"]
    for name in map(str, ap.index):
        means, every = ap.loc[name], truth.falls().values()
        falls = [by_method[name] for by_method in every if name in by_method]
        common.say(
            f"{name}: AP {means['mean']:.3f}, AUROC {auroc[name]:.3f}, falls for {sum(falls)} traps of {len(falls)}; "
            f"AP {means['tasks']:.2f} in tasks, {means['traps']:.2f} in traps"
        )
    common.say(f"wrote {out / 'planted.html'}, planted.json and planted.csv")
    if is_opened:
        common.open_page(out / "planted.html")


@common.command(
    evaluate_app,
    "training",
    "--model base --checkpoint step-100 --page training.html --open",
    "--model all-MiniLM-L6-v2 --adapter lora --heads heads.csv",
)
def training_command(
    chosen: Evaluation,
    checkpoint: Annotated[
        list[str] | None, typer.Option(help="A model after training, a folder or name; may be repeated.")
    ] = None,
    adapter: Annotated[
        list[Path] | None, typer.Option(help="A folder of PEFT with an adapter of --model; may be repeated.")
    ] = None,
    rate: Annotated[float, typer.Option(help="The share of wrong heads that is allowed among those found.")] = 0.05,
    smallest: Annotated[float, typer.Option(help="The smallest change that counts, of a row, 0 to 1.")] = 0.02,
    page: Annotated[Path | None, typer.Option(help="Also write one HTML page: curves, heads, sentences.")] = None,
    heads_file: Annotated[
        Path | None, typer.Option("--heads", help="Also write the heads that changed to this CSV file.")
    ] = None,
    is_opened: common.OpenOption = False,
) -> None:
    """Which heads change what they mix into the target, from --model to each --checkpoint and --adapter?

    Each head's row by Value Zeroing is split into cue, attractor, special tokens, target, rest, and what lies elsewhere
    than before. Each block of a later model reads what that block of --model reads.
    """
    from tl_vzero.evaluate.training import training_changes
    from tl_vzero.models.hub import find_source
    from tl_vzero.report.training_page import render_training

    if is_opened and page is None:
        raise InputError("--open without --page: expected --page FILE.html, the page to open")
    for file in (page, heads_file):
        if file is not None:
            check_writable(file)
    later = {name: replace(chosen, model=name).load for name in checkpoint or ()}
    for name in later:
        find_source(name)
    later |= {str(folder): partial(chosen.load_adapted, folder) for folder in adapter or ()}
    if len(later) < len(checkpoint or ()) + len(adapter or ()) or chosen.model in later or not later:
        raise InputError(
            f"--model {chosen.model} with {', '.join(later) or 'no --checkpoint and no --adapter'}: expected at least "
            "one --checkpoint or --adapter, each another folder or name"
        )
    loaded, sentences = chosen.prepared()
    changes = training_changes(
        {chosen.model: loaded, **later},
        sentences.examples,
        rate=rate,
        smallest=smallest,
        protocol=chosen.protocol,
        progress=not chosen.quiet,
    )
    heads = changes.heads()
    tested = changes.to_frame().groupby(["checkpoint", "layer", "head"]).ngroups
    common.say(f"heads that changed what they mix into the target: {len(heads)} of {tested}")
    if len(heads):
        shown = ["checkpoint", "layer", "head", "group", "place", "before", "after", "change", "low", "high", "q"]
        common.say(heads[shown].to_string(index=False, float_format="%.3f"))
    common.say(f"at a false-discovery rate of {rate:g}, by more than {smallest:g} of a row; every cell: --csv, --json")
    for one in changes.shown[:1]:
        common.say(
            f"for one, layer {one.layer}, head {one.head}, {one.place} {one.before:.2f} to {one.after:.2f}: {one.text}"
        )
    _say_rest(sentences, {}, len(changes.skipped))
    chosen.save(changes.to_dict(), sentences, changes.to_frame())
    if heads_file is not None:
        write_text(heads_file, heads.to_csv(index=False))
    if page is not None:
        write_text(page, render_training(changes, source=sentences.source))
    for file in (heads_file, page):
        if file is not None:
            common.say(f"wrote {file}", err=True)
    if page is not None and is_opened:
        common.open_page(page)


@common.command(common.app, "reproduce", "--limit 100 --open", "--model all-MiniLM-L6-v2 --finetune --out minilm")
def reproduce_command(
    chosen: SampleOptions,
    finetune: Annotated[
        bool, typer.Option("--finetune", help="Fine-tune on the train half first, as the paper.")
    ] = False,
    out: Annotated[
        Path, typer.Option(help="The folder to write; started again with it, the command goes on where it was.")
    ] = Path("reproduction"),
    is_opened: common.OpenOption = False,
) -> None:
    """The paper's three evaluations with controls: JSON, CSV tables and one HTML page that says what agrees."""
    start = time.monotonic()
    from tl_vzero.evaluate.findings import findings, findings_by_baseline
    from tl_vzero.evaluate.protocol import reproduce
    from tl_vzero.report.reproduction_page import render_reproduction

    run = reproduce(
        chosen.load(),
        blimp=chosen.blimp,
        fine_tuned=finetune,
        limit=chosen.limit,
        seed=chosen.seed,
        folder=out,
        progress=not chosen.quiet,
    )
    write_text(out / "reproduction.json", json.dumps(run.to_dict(), ensure_ascii=False, allow_nan=False))
    for name, table in run.frames().items():
        write_text(out / f"{name}.csv", table.to_csv(index=False))
    write_text(out / "reproduction.html", render_reproduction(run))
    for claim in findings(run):
        common.say(f"{claim.verdict}{' (control)' if claim.control else ''}: {claim.claim}: {claim.evidence}")
    for row in findings_by_baseline(run):
        verdicts = ", ".join(f"{name} {verdict}" for name, verdict in row.verdicts.items())
        common.say(f"{'hangs on the baseline' if row.flips else 'under every baseline'}: {row.claim}: {verdicts}")
    minutes, seconds = divmod(round(time.monotonic() - start), 60)
    common.say(f"wrote {out / 'reproduction.html'}, reproduction.json and {len(run.frames())} CSV tables")
    common.say(f"took {minutes} min {seconds} s")
    if is_opened:
        common.open_page(out / "reproduction.html")


def _by_method(table: "pd.DataFrame", columns: str, means: str = "mean") -> str:
    """Means as text: a row per method, in the table's order."""
    by_method = table.pivot(index="method", columns=columns, values=means)
    return by_method.reindex(list(dict.fromkeys(table["method"]))).to_string(float_format="%.3f", na_rep="-")


def _say_rest(sentences: "Sentences", left_out: Any, skipped: int) -> None:
    """Which sentences these are, how many each filter left, and which methods are not there."""
    stages = ", ".join(f"{stage.name} {sum(stage.counts.values())}" for stage in sentences.examples.report.stages)
    common.say(f"sentences: {sentences.source}; {stages}")
    if skipped:
        common.say(f"skipped: {skipped} sentences that the protocol cannot hold; reasons: --json")
    for name, reason in left_out.items():
        common.say(f"left out: {name}: {reason}")
