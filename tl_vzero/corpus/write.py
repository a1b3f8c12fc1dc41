"""How large a corpus will be, from its first sentences."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage
from typing import Any, get_args

import torch
from torch import nn

from tl_vzero.choices import callable_name, chosen, positive
from tl_vzero.corpus.columns import SUMMARIES, Columns, Rows, pyarrow
from tl_vzero.corpus.folder import SUFFIXES, CorpusFolder, ShardWriter, forget_shards, join_errors
from tl_vzero.corpus.hashed import InputChanged
from tl_vzero.corpus.manifest import check_shards, prove, repair, tokenizer_hash
from tl_vzero.corpus.processes import Progress, Ranks, check_free, ranks_of_launch, take_lock
from tl_vzero.corpus.read import CorpusRun
from tl_vzero.corpus.records import Refused, Source
from tl_vzero.corpus.schemas import FORMAT, FORMAT_VERSION, corpus_hash
from tl_vzero.corpus.scoring import Part, Parts, Ready, Scorer, Tokenising, one_ahead
from tl_vzero.corpus.source import check_apart, open_source
from tl_vzero.errors import (
    InputError,
    InputTypeError,
    ModelError,
    OutputPathError,
    TLVZeroError,
    foreign_errors_as,
    unknown_name,
)
from tl_vzero.files import check_writable, folder_of, path_of
from tl_vzero.methods.plan import plan_of
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.facts import facts_of
from tl_vzero.models.signals import signal_of
from tl_vzero.models.sites import stacks_of
from tl_vzero.zeroing.forms import forget_weight_cache

LABEL_BYTES = 14  # of a token: its text, its id, its word and whether it is special, compressed
UNITS = ("bytes", "kB", "MB", "GB", "TB")


@dataclass(frozen=True)
class Estimate:
    """About how many bytes `sentences` take; None where their number is not known beforehand."""

    sentences: int | None
    bytes_a_sentence: float

    @property
    def n_bytes(self) -> float | None:
        """Of all sentences together."""
        return None if self.sentences is None else self.sentences * self.bytes_a_sentence

    def in_words(self, folder: Path) -> str:
        """What a user should know before the run."""
        each = f"about {sized(self.bytes_a_sentence)} a sentence"
        free = disk_usage(folder).free
        if self.n_bytes is None:
            return f"{each}, of sentences whose number is not known beforehand; {sized(free)} are free"
        told = f"about {self.sentences} sentences, {each}, {sized(self.n_bytes)} in all; {sized(free)} are free"
        if self.n_bytes > free:
            told += ": too little. The run stops cleanly when the disk is full; rows 'target' or 'summary' need less"
        return told


def estimate_of(sample: Sequence[Ready], sentences: int | None, columns: Columns, n_layers: int) -> Estimate:
    """What the sample's sentences need, on average."""
    total = sum(_bytes_of(len(each.sentence), columns, n_layers) for each in sample)
    return Estimate(sentences, total / max(1, len(sample)))


def _bytes_of(length: int, columns: Columns, n_layers: int) -> int:
    numbers = {"all": length**2, "target": length, "summary": len(SUMMARIES)}[columns.rows]
    return n_layers * numbers * len(columns.methods) * columns.dtype.itemsize + length * LABEL_BYTES


def sized(n_bytes: int | float) -> str:
    """A number of bytes for people.

    >>> sized(3_400_000)
    '3.4 MB'
    """
    for unit in UNITS:
        if n_bytes < 1000 or unit == UNITS[-1]:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    raise AssertionError("the last unit holds everything")


# Keeping memory flat over many batches.

FULL_PRECISION = (torch.float32, torch.float64)


@contextmanager
def no_kernels_kept(model: nn.Module) -> Iterator[None]:
    """Within, torch makes no kernels of oneDNN, where they have elementwise functions to do at most.

    oneDNN compiles GELU anew for each shape and keeps 1024 of these kernels. The batches of a corpus have ever other
    shapes, and kernels kept between large blocks of memory hinder their use again: a process grew by a tenth that
    way. Matrix products are oneDNN's in half precision and where torch has no MKL; there it stays.
    """
    onednn: Any = torch.backends.mkldnn
    dispensable = torch.backends.mkl.is_available() and next(nn.Module.parameters(model)).dtype in FULL_PRECISION
    before = onednn.enabled
    onednn.enabled = before and not dispensable
    try:
        yield
    finally:
        onednn.enabled = before


# Scores of a whole corpus, in a folder: streamed, resumable, by one process or many.
#
# 1. At the door: options, input and model are checked; the input is hashed, its first sentence scored by every method.
# 2. Rank 0 proves that the folder is this run's, locks it, and finds what is finished; every process holds a lock.
# 3. Of the shards that are not finished, every process takes each so-manyth. While a part is scored, the next is read.
# 4. A shard is written aside, synced and named; only then it counts. Where the input changed meanwhile, the shards of
#    this run count no more.

SHARD_SIZE = 1000
CELLS_A_PART = 2**24  # of maps, over layers and methods: 64 MB in float32

# Enough sentences to tell the size of all by.
SAMPLE, SAMPLED_FROM = 64, 1000


def run_corpus(
    model: nn.Module,
    source: str | Path,
    folder: str | Path,
    methods: Sequence[str] = ("value_zeroing",),
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    rows: str = "all",
    layers: Sequence[int] | int | None = None,
    target: int | None = None,
    input_format: str | None = None,
    text_column: str | None = None,
    second_text_column: str | None = None,
    id_column: str | None = None,
    config: str | None = None,
    split: str | None = None,
    shard_size: int = SHARD_SIZE,
    prepend_bos: bool = False,
    progress: bool = False,
    json_log: str | Path | None = None,
    say: Callable[[str], object] = lambda told: None,
) -> CorpusRun:
    """Scores of every sentence of a corpus, as Parquet shards in a folder; a run that was interrupted goes on.

    `source` is a file or dataset as `open_source` takes it; with `second_text_column` each record is a pair of texts,
    and one whose second text is missing or empty is an error. `methods` are names of `METHODS`, `options` their own by
    name, as in `compare`. `rows` is what is kept of each raw map `[layer, dest, src]`: "all"; "target", the row of
    `target` (a position, negative: from the end; default: the only mask token); or "summary", of each layer the mean
    entropy (bits), weight on the token itself and on special tokens. Each shard holds `shard_size` records of the
    input. Sentences that cannot be scored go to an errors file with their id and a reason. `say` is told the size
    before the work, and what was amiss; `json_log` is a file of JSON lines for machines.

    Run again on the same folder, it computes what is missing; the values are those of an uninterrupted run, exactly
    so on the same machine with as many threads. Started by `torchrun` or `accelerate launch`, each process takes its
    share of the shards.

    A folder is new, empty, or proven to be of this very run before anything in it is touched; files of others in it
    are never changed, and no link in it is followed.

    Raises InputError, InputTypeError, ModelError, FileFormatError or DependencyError before any work; InputError for
    a folder in use, that the input lies in, or of another input, model or options, with the difference;
    OutputPathError for a folder of others, or when the disk is full, with what is finished kept; FileFormatError where
    the input changes during the run, whose shards then do not count. The model is left as it was.

    >>> import tempfile, tl_vzero
    >>> from tl_vzero.corpus import read_corpus
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = Path(folder) / "two.txt"
    ...     _ = source.write_text("the authors [MASK] here.\\nthe author near the lakes [MASK] here.\\n")
    ...     run = run_corpus(model, source, Path(folder) / "out")
    ...     dict(read_corpus(run.folder).scores())["1"].values.shape
    torch.Size([4, 10, 10])
    """
    pyarrow()
    has_pairs = second_text_column is not None
    job = _job(model, folder, methods, options, rows, layers, target, shard_size, prepend_bos, json_log, has_pairs)
    check_apart(source, job.folder.root, job.json_log)
    opened = open_source(
        source,
        input_format=input_format,
        text_column=text_column,
        second_text_column=second_text_column,
        id_column=id_column,
        config=config,
        split=split,
    )
    ranks = ranks_of_launch()
    try:
        with no_kernels_kept(model):
            return _run(job, opened, ranks, progress, say)
    finally:
        forget_weight_cache(model)
        ranks.leave()


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be done with every sentence, checked."""

    model: nn.Module
    scorer: Scorer
    columns: Columns
    tokenising: Tokenising
    shard_size: int
    folder: CorpusFolder
    json_log: Path | None
    n_layers: int

    def identity(self, source: Source) -> dict[str, Any]:
        """What the corpus is of, as plain data: a run with any of it changed is another corpus."""
        origin, about = source.origin, provenance(self.model)
        versions = about.pop("versions")
        del about["model"]  # a model may have moved, and is the same
        identity = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "input": {
                "format": origin.format,
                "sha256": origin.sha256,
                "bytes": origin.n_bytes,
                "text_column": origin.text_column,
                "second_text_column": origin.second_text_column,
                "id_column": origin.id_column,
                "split": origin.split,
            },
            "model": about
            | {
                "tokenizer_sha256": tokenizer_hash(self.model),
                "device": next(nn.Module.parameters(self.model)).device.type,
            },
            "layers": list(self.scorer.layers),
            "options": {
                "methods": {each.name: dict(each.options) for each in self.scorer.plan},
                "rows": self.columns.rows,
                "target": self.tokenising.target,
                "shard_size": self.shard_size,
                "prepend_bos": self.tokenising.prepend_bos,
            },
            "versions": versions,
        }
        return dict(json.loads(json.dumps(identity, default=_named)))  # as the manifest gives it back


def _job(
    model: nn.Module,
    folder: str | Path,
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, Any]] | None,
    rows: str,
    layers: Sequence[int] | int | None,
    target: int | None,
    shard_size: int,
    prepend_bos: bool,
    json_log: str | Path | None,
    has_pairs: bool,
) -> Job:
    if rows not in get_args(Rows):
        raise unknown_name("rows", rows, get_args(Rows))
    plan = plan_of(list(methods) if isinstance(methods, tuple) else methods, options)
    _check_reads_text(model)
    sites = check_contracts(model)
    numbers = chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers))
    needs_target = rows == "target" or any("target" in each.method.needs for each in plan)
    if target is not None and not needs_target:
        raise InputError(f"target={target} given, and nothing asks for one: expected rows='target', or no target")
    if target is not None and (isinstance(target, bool) or not isinstance(target, int)):
        raise InputTypeError(f"target is {type(target).__name__}: expected a position (int)")
    names = tuple(each.name for each in plan)
    return Job(
        model=model,
        scorer=Scorer(model, plan, numbers, only_target=rows == "target"),
        columns=Columns(names, rows, needs_target, has_pairs, result_dtype(model)),  # type: ignore[arg-type]
        tokenising=Tokenising(model, needs_target, target, prepend_bos),
        shard_size=positive("shard_size", shard_size) or SHARD_SIZE,
        folder=CorpusFolder(_folder(folder)),
        json_log=None if json_log is None else _log(json_log, CorpusFolder(_folder(folder))),
        n_layers=sites.n_layers,
    )


def _check_reads_text(model: nn.Module) -> None:
    """Raise ModelError for a model that a line of text is no input of."""
    stacks = stacks_of(model)
    if stacks:
        raise ModelError(
            f"{facts_of(model).name} is an encoder-decoder, and a corpus has one map of one text: expected a model "
            f"with one stack; call value_zeroing with stack= ({', '.join(stacks)}) and lists of sentences instead"
        )
    signal = signal_of(model)
    if signal is not None:
        raise ModelError(
            f"{facts_of(model).name} reads {signal.named}, and a corpus is text: expected a model that reads tokens; "
            "call value_zeroing with a batch of yours instead"
        )


def _named(option: object) -> str:
    """An option that is no plain data: a function by its name."""
    return callable_name(option) if callable(option) else repr(option)


def _folder(given: str | Path) -> Path:
    """The folder, which is not made before it is proven to be new."""
    folder = folder_of(given)
    with foreign_errors_as(OutputPathError, f"cannot make the folder {folder}"):
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            raise OutputPathError(f"cannot make the folder {folder}: it is a file; choose another one")
    return folder


def _log(given: str | Path, folder: CorpusFolder) -> Path:
    """The file of the JSON log, which may lie in a folder that is yet to be made, and is none of its own files."""
    path = path_of(given)
    with foreign_errors_as(OutputPathError, f"cannot write the log {path}"):  # links in a circle
        where, named = path.resolve(), CorpusFolder(folder.root.resolve())
    parts = {named.root / part for part in SUFFIXES} | {named.manifest, named.all_errors}
    if parts & {where, *where.parents}:
        raise OutputPathError(
            f"cannot write the log {path}: it has the name of a file of the corpus; choose another one"
        )
    return path if where.parent == named.root and not path.parent.exists() else check_writable(path)


def _run(job: Job, source: Source, ranks: Ranks, shown: bool, say: Callable[[str], object]) -> CorpusRun:
    sample = _sample(job, source)
    forget_weight_cache(job.model)
    # Also makes the engines' one comparison on a sentence that does not depend on where a run goes on.
    tried = job.scorer.trial(sample[0]) if sample else {}
    identity = job.identity(source)
    with ExitStack() as undo:
        settled = ranks.agree(lambda: _settle(job, identity, source, undo))
        if not ranks.meet(lambda: _join(job, identity, settled, ranks, undo)):
            raise TLVZeroError("another process of this launch ended before the work began: start it again")
        done = set(settled["done"])
        estimate = estimate_of(sample, source.origin.records, job.columns, len(job.scorer.layers))
        if ranks.rank == 0:
            for each in settled["notes"]:
                say(f"note: {each}")
            say(_told_before(job, estimate, done))
        about = {"methods": {name: _stage(own) for name, own in tried.items()}, "n_layers": job.n_layers}
        parts = _parts(job, source, ranks, done)
        bar = Progress(
            _share(estimate, done, job, ranks), rank=ranks.rank, shown=shown and not ranks.rank, json_log=job.json_log
        )
        undo.callback(bar.close)
        bar.log("begin", estimated_bytes=estimate.n_bytes, notes=settled["notes"], done=len(done))
        computed: list[int] = []
        try:
            _write_shards(job, parts, {"manifest": identity, **about}, bar, computed)
            noticed = _noticed(parts)
            for note in noticed:
                say(f"note: {note}")
            everyone = ranks.meet(lambda: source.check(contents=True))
        except InputChanged:
            forget_shards(job.folder, computed)
            raise
        corpus, notes = corpus_hash(identity), (*settled["notes"], *noticed)
        run = _summary(job, corpus, parts.records or 0, len(computed), bar.seconds, notes)
        if run.complete and ranks.rank == 0:
            with _writing(job.folder):
                join_errors(job.folder, corpus)
        bar.log("end", complete=run.complete, all_ranks=everyone, total=run.sentences, total_failed=run.failed)
        return run


def _sample(job: Job, source: Source) -> list[Ready]:
    """The first sentences that can be read."""
    sample: list[Ready] = []
    for position, raw in enumerate(source.raws()):
        record = source.record(position, raw)
        ready = record if isinstance(record, Refused) else job.tokenising.ready(record)
        if isinstance(ready, Ready):
            sample.append(ready)
        if len(sample) == SAMPLE or (sample and position >= SAMPLED_FROM):
            break
    return sample


def _settle(job: Job, identity: dict[str, Any], source: Source, undo: ExitStack) -> dict[str, Any]:
    """Prove that the folder is this run's, lock it, and list its finished shards."""
    folder = job.folder
    names = {"input_name": _text(source.origin.name), "model_name": facts_of(job.model).name}
    with _writing(folder):
        prove(folder, identity, names)
        folder.make()
        take_lock(folder.lock(0), undo)
        check_free([folder.lock(rank) for rank in folder.numbers("locks") if rank])
        notes = repair(folder, identity, names) + check_shards(folder, identity)
        done = folder.done(corpus_hash(identity))
    return {"identity": identity, "notes": notes, "done": sorted(done)}


def _join(job: Job, identity: dict[str, Any], settled: dict[str, Any], ranks: Ranks, undo: ExitStack) -> None:
    """Hold this rank's own lock, if it does the same as rank 0."""
    if settled["identity"] != identity:
        raise InputError("the processes of this launch have different models, inputs or options: expected one")
    if ranks.rank:
        with _writing(job.folder):
            take_lock(job.folder.lock(ranks.rank), undo)


def _text(name: str) -> str:
    """A name as text that can be written: that of a file may be any bytes."""
    return name.encode("utf-8", "backslashreplace").decode()


def _parts(job: Job, source: Source, ranks: Ranks, done: set[int]) -> Parts:
    def wanted(shard: int) -> bool:
        # The so-manyth of those that are not finished, so that all processes have as many, whatever is left.
        return shard not in done and (shard - sum(each < shard for each in done)) % ranks.world == ranks.rank

    cells = CELLS_A_PART // (len(job.scorer.layers) * len(job.scorer.plan))
    return Parts(source, job.tokenising, job.shard_size, wanted, cells)


def _write_shards(job: Job, parts: Parts, about: dict[str, Any], bar: Progress, computed: list[int]) -> None:
    """Score and write every part; the numbers of shards that were finished are added to those `computed`."""
    writer: ShardWriter | None = None
    corpus = corpus_hash(about["manifest"])
    try:
        for part in one_ahead(iter(parts)):
            if writer is None:
                # What is kept from one shard to the next would let the last digits depend on which came before.
                forget_weight_cache(job.model)
                with _writing(job.folder):
                    schema = job.columns.schema({**about, "shard": part.shard})
                    writer = ShardWriter(job.folder, corpus, part.shard, schema)
            _write_part(job, part, writer, bar)
            if part.closes:
                parts.source.check(contents=False)
                with _writing(job.folder):
                    done = writer.finish()
                writer = None
                computed.append(done.shard)
                bar.log("shard", shard=done.shard, rows=done.rows, errors=done.failed, bytes=done.scores.n_bytes)
    finally:
        if writer is not None:
            writer.abandon()


def _write_part(job: Job, part: Part, writer: ShardWriter, bar: Progress) -> None:
    scored = job.scorer.scored(part.ready)
    refused = [*part.refused, *scored.refused]
    with _writing(job.folder):
        writer.add(job.columns, scored, refused)
    bar.part(len(scored.ready), len(refused))


@contextmanager
def _writing(folder: CorpusFolder) -> Iterator[None]:
    """Within, an error of the disk is told in words."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TLVZeroError):
            raise
        if folder.all_errors.is_file():
            advice = "it was finished once: read it by read_corpus, or make the folder writable to have it checked"
        else:
            advice = "make room, and the same command goes on from there"
        raise OutputPathError(
            f"cannot write in {folder.root}: {error}; {len(folder.numbers('done'))} finished shards are kept: {advice}"
        ) from error


def _noticed(parts: Parts) -> list[str]:
    """What was noticed of sentences that were scored as given, in one line."""
    if not parts.noticed:
        return []
    return [
        f"{parts.noticed} sentences were scored as given and may not be what was meant, first {parts.first_noticed}"
    ]


def _share(estimate: Estimate, done: set[int], job: Job, ranks: Ranks) -> int | None:
    if estimate.sentences is None:
        return None
    return max(0, estimate.sentences - len(done) * job.shard_size) // ranks.world


def _told_before(job: Job, estimate: Estimate, done: set[int]) -> str:
    told = estimate.in_words(job.folder.root)
    return f"{told}; {len(done)} shards of {job.shard_size} are finished already" if done else told


def _stage(scores: Any) -> dict[str, Any]:
    return {"stage": scores.stage, "identity": scores.identity}


def _summary(job: Job, corpus: str, records: int, computed: int, seconds: float, notes: tuple[str, ...]) -> CorpusRun:
    done = job.folder.done(corpus)
    shards = -(-records // job.shard_size)
    return CorpusRun(
        folder=job.folder.root,
        sentences=sum(each.rows for each in done.values()),
        failed=sum(each.failed for each in done.values()),
        shards=shards,
        computed=computed,
        seconds=seconds,
        complete=set(range(shards)) <= done.keys(),
        notes=notes,
    )
