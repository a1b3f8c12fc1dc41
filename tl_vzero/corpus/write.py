"""Scores of a whole corpus, in a folder: streamed, resumable, by one process or many.

1. At the door: options, input and model are checked; the input is hashed, its first sentence scored by every method.
2. Rank 0 proves that the folder is this run's, locks it and lists its finished shards; every process holds a lock.
3. Unfinished shards are dealt round-robin to the processes. While a part is scored, the next is read.
4. A shard is written aside, synced and named; only then it counts. Where the input changed meanwhile, the shards of
   this run count no more.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from shutil import disk_usage
from typing import Any, get_args

import torch
from torch import Tensor, nn
from tqdm import tqdm

from tl_vzero.choices import A_POSITION, callable_name, chosen, integer, one_of, positive
from tl_vzero.corpus.checked import FORMAT, FORMAT_VERSION, InputChanged, corpus_hash
from tl_vzero.corpus.folder import SUFFIXES, CorpusFolder, check_shards, join_errors, prove, repair
from tl_vzero.corpus.processes import Progress, Ranks, check_free, ranks_of_launch, take_lock
from tl_vzero.corpus.shards import SUMMARIES, Part, Parts, Ready, Rows, Scorer, ShardWriter, one_ahead
from tl_vzero.corpus.source import Source, check_apart, open_source
from tl_vzero.errors import InputError, ModelError, OutputPathError, TLVZeroError, foreign_errors_as
from tl_vzero.files import check_writable, folder_of, path_of
from tl_vzero.inputs.baselines import BaselineValues, baseline_of
from tl_vzero.methods.plan import Planned, plan_of, with_baseline
from tl_vzero.models.contracts import check_contracts, provenance, result_dtype
from tl_vzero.models.facts import facts_of
from tl_vzero.models.signals import signal_of
from tl_vzero.models.sites import Stack
from tl_vzero.zeroing.forms import forget_weight_cache

SHARD_SIZE = 1000
CELLS_PER_PART = 2**24  # of maps, over layers and methods: 64 MB in float32
LABEL_BYTES = 14  # of a token: its text, its id, its word and whether it is special, compressed
FULL_PRECISION = (torch.float32, torch.float64)

# Enough sentences to tell the size of all by.
SAMPLE, SAMPLED_FROM = 64, 1000


@dataclass(frozen=True)
class CorpusRun:
    """What is in the folder after a run: `sentences` with scores, `failed` ones in the errors file.

    `computed` is how many shards this process computed now. `notes` say what was amiss of earlier runs.
    `complete` is False where another process of the launch ended early: the same command again goes on.
    """

    folder: Path
    sentences: int
    failed: int
    shards: int
    computed: int
    seconds: float
    complete: bool
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        done = f"{self.sentences} sentences in {self.shards} shards, {self.computed} of them computed now"
        lines = [f"{self.folder}: {done} in {self.seconds:.1f} s"]
        if self.failed:
            lines.append(f"failed: {self.failed} sentences; ids and reasons: {self.folder / 'errors.jsonl'}")
        if not self.complete:
            lines.append("not complete: another process of this launch ended early; the same command goes on")
        return "\n".join(lines)


def run_corpus(
    model: nn.Module,
    source: str | Path,
    folder: str | Path,
    methods: Sequence[str] = ("value_zeroing",),
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    rows: str = "all",
    layers: Sequence[int] | int | None = None,
    target: int | str | None = None,
    baseline: str | Tensor | BaselineValues = "zero",
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
    stack: str | None = None,
    say: Callable[[str], object] = lambda message: None,
) -> CorpusRun:
    """Scores of every sentence of a corpus, as Parquet shards in a folder; a run that was interrupted goes on.

    `source` is a file or dataset as `open_source` takes it; with `second_text_column` each record is a pair of texts,
    and one whose second text is missing or empty is an error. `methods` are names of `METHODS`, `options` their own by
    name, as in `compare`. `rows` is what is kept of each raw map `[layer, dest, src]`: "all"; "target", the row of
    `target` (a position, negative: from the end, or a token's text; default: that of `compare`); or "summary", of each
    layer the mean entropy (bits), weight on the token itself and on special tokens. Each shard holds `shard_size`
    records of the input. `baseline` is that of Value Zeroing, the same at every position. Sentences that cannot be
    scored go to an errors file with their id and a reason. `say` gets messages: the size before the work, and what was
    amiss; `json_log` is a file of JSON lines for machines. Of an encoder-decoder `stack` is as in `value_zeroing`; for
    "decoder" and "cross" the second text of a record is what the decoder reads.

    Run again on the same folder, it computes what is missing; the values are those of an uninterrupted run, exactly
    so on the same machine with as many threads. Started by `torchrun` or `accelerate launch`, each process takes its
    share of the shards.

    A folder is new, empty, or proven to be of this very run before anything in it is touched; files of others in it
    are never changed, and no link in it is followed.

    Raises InputError, InputTypeError, ModelError or FileFormatError before any work; InputError for a folder in use,
    that the input lies in, or of another input, model or options, with the difference; OutputPathError for a folder of
    others, or when the disk is full, with what is finished kept; FileFormatError where the input changes during the
    run, whose shards then do not count. The model is left as it was.

    >>> import tempfile, tl_vzero
    >>> from tl_vzero.corpus import read_corpus
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = Path(folder) / "two.txt"
    ...     _ = source.write_text("the authors [MASK] today.\\nthe author near the hats [MASK] today.\\n")
    ...     run = run_corpus(model, source, Path(folder) / "out")
    ...     dict(read_corpus(run.folder).scores())["1"].values.shape
    torch.Size([4, 10, 10])
    """
    stored_rows: Rows = one_of("rows", rows, get_args(Rows))
    plan = with_baseline(plan_of(list(methods) if isinstance(methods, tuple) else methods, options), baseline)
    _check_reads_text(model)
    sites = check_contracts(model, stack)
    _check_second(sites.stack, second_text_column)
    read = baseline_of(baseline, model, sites)
    if read.name != "zero" and "value_zeroing" not in [planned.name for planned in plan]:
        raise InputError(
            f"baseline {read.name!r} given, and no method replaces values: take value_zeroing, or leave it"
        )
    if read.by_position:
        raise InputError(
            "baseline is of the positions of one sentence: expected the same for all, [layer, head, d_head]"
        )
    needs_target = stored_rows == "target" or any("target" in planned.method.needs for planned in plan)
    if needs_target and sites.stack == "encoder":
        raise InputError(
            "stack='encoder' given with rows='target' or a method of a target, and no row of an encoder's map is the "
            "prediction's: expected other rows and methods, or stack='decoder' or 'cross'"
        )
    for planned in plan if sites.stack is not None else ():
        if planned.layer is None:
            planned.of_stack((), sites.stack)
    if target is not None:
        if not needs_target:
            raise InputError(f"target={target} given, and nothing asks for one: expected rows='target', or no target")
        if not isinstance(target, str):
            integer("target", target, A_POSITION)
    scorer = Scorer(
        model=model,
        plan=plan,
        layers=chosen("layers", layers, sites.n_layers, "the model has") or tuple(range(sites.n_layers)),
        rows=stored_rows,
        target=target,
        needs_target=needs_target,
        has_pairs=second_text_column is not None and sites.stack is None,
        prepend_bos=prepend_bos,
        stack=sites.stack,
    )
    where = CorpusFolder(_folder(folder))
    log = None if json_log is None else _log(json_log, where)
    job = Job(scorer, positive("shard_size", shard_size) or SHARD_SIZE, where, log)
    check_apart(source, where.root, log)
    opened = open_source(source, input_format, text_column, second_text_column, id_column, config, split)
    ranks = ranks_of_launch()
    try:
        with no_kernels_kept(model):
            return _run(job, opened, ranks, progress, say)
    finally:
        forget_weight_cache(model)
        ranks.leave()


@dataclass(frozen=True, eq=False)
class Job:
    """What is to be done, checked."""

    scorer: Scorer
    shard_size: int
    folder: CorpusFolder
    json_log: Path | None

    def identity(self, source: Source) -> dict[str, Any]:
        """What the corpus is of, as plain data: a run with any of it changed is another corpus."""
        origin, scorer, about = source.origin, self.scorer, provenance(self.scorer.model, self.scorer.stack)
        versions = about.pop("versions")
        del about["model"]  # a model may have moved, and is the same
        identity = {
            "format": FORMAT,
            "version": FORMAT_VERSION,
            "input": {
                **{name: value for name, value in asdict(origin).items() if name not in ("name", "n_bytes", "records")},
                "bytes": origin.n_bytes,
            },
            "model": about
            | {
                "tokenizer_sha256": tokenizer_hash(scorer.model),
                "device": next(nn.Module.parameters(scorer.model)).device.type,
            },
            "layers": list(scorer.layers),
            "options": {
                "methods": {planned.name: self._named(planned) for planned in scorer.plan},
                "rows": scorer.rows,
                "target": scorer.target,
                "shard_size": self.shard_size,
                "prepend_bos": scorer.prepend_bos,
                **({} if scorer.stack is None else {"stack": scorer.stack}),
            },
            "versions": versions,
        }
        # As the manifest gives it back; a function by its name.
        plain = json.dumps(identity, default=lambda value: callable_name(value) if callable(value) else repr(value))
        return dict(json.loads(plain))

    def _named(self, planned: Planned) -> dict[str, Any]:
        """A method's options, the vectors that Value Zeroing puts in by their name and hash."""
        options = dict(planned.options)
        if planned.name == "value_zeroing" and "baseline" in options:
            options["baseline"] = baseline_of(options["baseline"], self.scorer.model, self.scorer.sites).identity
        return options


def tokenizer_hash(model: nn.Module) -> str | None:
    """SHA-256 of how a model's tokenizer cuts text; None where it has none."""
    tokenizer = facts_of(model).tokenizer
    if tokenizer is None:
        return None
    if getattr(tokenizer, "is_fast", False):
        parts = json.loads(tokenizer.backend_tokenizer.to_str())
        # Calls set these two as they need them.
        described = {name: part for name, part in parts.items() if name not in ("truncation", "padding")}
    else:
        described = {"vocabulary": tokenizer.get_vocab(), "special": sorted(tokenizer.all_special_tokens)}
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _check_reads_text(model: nn.Module) -> None:
    """Raise ModelError for a model that a line of text is no input of."""
    signal = signal_of(model)
    if signal is not None:
        raise ModelError(
            f"{facts_of(model).name} reads {signal.named}, and a corpus is text: expected a model that reads tokens; "
            "call value_zeroing with a batch of yours instead"
        )


def _check_second(stack: Stack | None, second_text_column: str | None) -> None:
    """Raise InputError where a record of an encoder-decoder's corpus has not the texts that its stack reads."""
    if stack in ("decoder", "cross") and second_text_column is None:
        raise InputError(
            f"stack={stack!r} given without second_text_column: expected the column with what the decoder reads"
        )
    if stack == "encoder" and second_text_column is not None:
        raise InputError(
            "second_text_column given with stack='encoder', which reads one text: leave it out; it is what the decoder "
            "reads"
        )


def _folder(path: str | Path) -> Path:
    """The folder, which is not made before it is proven to be new."""
    folder = folder_of(path)
    with foreign_errors_as(OutputPathError, f"cannot make the folder {folder}"):
        if (folder.exists() or folder.is_symlink()) and not folder.is_dir():
            raise OutputPathError(
                f"cannot make the folder {folder}: it is a file, or a link to nothing; choose another one"
            )
    return folder


def _log(log: str | Path, folder: CorpusFolder) -> Path:
    """The file of the JSON log, which may lie in a folder that is yet to be made, and is none of its own files."""
    path = path_of(log)
    with foreign_errors_as(OutputPathError, f"cannot write the log {path}"):  # links in a circle
        where, resolved = path.resolve(), CorpusFolder(folder.root.resolve())
    parts = {resolved.root / part for part in SUFFIXES} | {resolved.manifest, resolved.all_errors}
    if parts & {where, *where.parents}:
        raise OutputPathError(
            f"cannot write the log {path}: it has the name of a file of the corpus; choose another one"
        )
    return path if where.parent == resolved.root and not path.parent.exists() else check_writable(path)


@contextmanager
def no_kernels_kept(model: nn.Module) -> Iterator[None]:
    """Within, torch makes no kernels of oneDNN, where they have elementwise functions to do at most.

    oneDNN compiles GELU anew for each shape and keeps 1024 of these kernels: a process grew by a tenth that way. Matrix
    products are oneDNN's in half precision and where torch has no MKL; there it stays.
    """
    onednn: Any = torch.backends.mkldnn
    is_dispensable = torch.backends.mkl.is_available() and next(nn.Module.parameters(model)).dtype in FULL_PRECISION
    before = onednn.enabled
    onednn.enabled = before and not is_dispensable
    try:
        yield
    finally:
        onednn.enabled = before


def _run(job: Job, source: Source, ranks: Ranks, shown: bool, say: Callable[[str], object]) -> CorpusRun:
    sample = _sample(job, source)
    forget_weight_cache(job.scorer.model)
    # Also makes the engines' one comparison on a sentence that does not depend on where a run goes on.
    tried = job.scorer.together(sample[:1]) if sample else {}
    identity = job.identity(source)
    with ExitStack() as undo:
        settled = ranks.agree(lambda: _settle(job, identity, source, undo))
        if not ranks.meet(lambda: _join(job, identity, settled, ranks, undo)):
            raise TLVZeroError("another process of this launch ended before the work began: start it again")
        done, notes, records = set(settled["done"]), settled["notes"], source.origin.records
        bytes_per_sentence = _bytes_per_sentence(job.scorer, sample)
        if ranks.rank == 0:
            for note in notes:
                say(f"note: {note}")
            finished = f"; {len(done)} shards of {job.shard_size} are finished already" if done else ""
            say(_size_in_words(job.folder.root, records, bytes_per_sentence) + finished)
        left = None if records is None else max(0, records - len(done) * job.shard_size) // ranks.world
        progress = Progress(left, ranks.rank, shown and not ranks.rank, job.json_log)
        undo.callback(progress.close)
        estimated_bytes = None if records is None else records * bytes_per_sentence
        progress.log("begin", estimated_bytes=estimated_bytes, notes=notes, done=len(done))
        stages = {name: {"stage": scores.stage, "identity": scores.identity} for name, (scores,) in tried.items()}
        about = {"manifest": identity, "methods": stages, "n_layers": job.scorer.sites.n_layers}
        parts = _parts(job, source, ranks, done)
        computed: list[int] = []
        try:
            _write_shards(job, parts, about, progress, computed)
            if parts.noticed:
                first = parts.first_noticed
                noticed = f"{parts.noticed} sentences were scored as given and may not be what was meant, first {first}"
                say(f"note: {noticed}")
                notes = [*notes, noticed]
            are_all_there = ranks.meet(lambda: source.check(contents=True))
        except InputChanged:
            for shard in computed:  # counts as finished no more
                job.folder.path("done", shard).unlink(missing_ok=True)
            raise
        run = _summary(job, corpus_hash(identity), parts.records or 0, len(computed), progress.seconds, tuple(notes))
        if run.complete and ranks.rank == 0:
            with _disk_errors_in_words(job.folder):
                join_errors(job.folder, corpus_hash(identity))
        progress.log(
            "end", complete=run.complete, all_ranks=are_all_there, total=run.sentences, total_failed=run.failed
        )
        return run


def _sample(job: Job, source: Source) -> list[Ready]:
    """The first sentences that can be read."""
    sample: list[Ready] = []
    for position, raw in enumerate(source.raws()):
        ready = job.scorer.ready(source.record(position, raw))
        if isinstance(ready, Ready):
            sample.append(ready)
        if len(sample) == SAMPLE or (sample and position >= SAMPLED_FROM):
            break
    return sample


def _settle(job: Job, identity: dict[str, Any], source: Source, undo: ExitStack) -> dict[str, Any]:
    """Prove that the folder is this run's, lock it, and list its finished shards."""
    folder = job.folder
    input_name = source.origin.name.encode("utf-8", "backslashreplace").decode()  # that of a file may be any bytes
    names = {"input_name": input_name, "model_name": facts_of(job.scorer.model).name}
    with _disk_errors_in_words(folder):
        prove(folder, identity, names)
        folder.make()
        take_lock(folder.path("locks", 0), undo)
        for rank in folder.indices("locks"):
            if rank:
                check_free(folder.path("locks", rank))
        notes = repair(folder, identity, names) + check_shards(folder, identity)
        return {"identity": identity, "notes": notes, "done": sorted(folder.done(corpus_hash(identity)))}


def _join(job: Job, identity: dict[str, Any], settled: dict[str, Any], ranks: Ranks, undo: ExitStack) -> None:
    """Hold this rank's own lock, if it does the same as rank 0."""
    if settled["identity"] != identity:
        raise InputError("the processes of this launch have different models, inputs or options: expected one")
    if ranks.rank:
        with _disk_errors_in_words(job.folder):
            take_lock(job.folder.path("locks", ranks.rank), undo)


def _bytes_per_sentence(scorer: Scorer, sample: Sequence[Ready]) -> float:
    """About how many a sentence takes on the disk, from the first ones."""
    bytes_per_value = len(scorer.layers) * len(scorer.plan) * result_dtype(scorer.model).itemsize
    shapes = [(len(ready.sentence), len(ready.sentence.sources)) for ready in sample]
    values = [{"all": n * m, "target": m, "summary": len(SUMMARIES)}[scorer.rows] for n, m in shapes]
    labels = sum(sum(ready.sentence.shape[:2]) for ready in sample)
    return (sum(values) * bytes_per_value + labels * LABEL_BYTES) / max(1, len(sample))


def _size_in_words(folder: Path, sentences: int | None, bytes_per_sentence: float) -> str:
    """What a user should know before the run."""
    sized, free = partial(tqdm.format_sizeof, suffix="B"), disk_usage(folder).free
    per_sentence = f"about {sized(bytes_per_sentence)} per sentence"
    if sentences is None:
        return f"{per_sentence}, of sentences that cannot be counted beforehand; {sized(free)} are free"
    n_bytes = sentences * bytes_per_sentence
    words = f"about {sentences} sentences, {per_sentence}, {sized(n_bytes)} in all; {sized(free)} are free"
    if n_bytes > free:
        words += ": too little. The run stops cleanly when the disk is full; rows 'target' or 'summary' need less"
    return words


def _parts(job: Job, source: Source, ranks: Ranks, done: set[int]) -> Parts:
    def wanted(shard: int) -> bool:
        # Counted among the unfinished, so that all processes have as many, whatever is left.
        return shard not in done and (shard - sum(finished < shard for finished in done)) % ranks.world == ranks.rank

    cells = CELLS_PER_PART // (len(job.scorer.layers) * len(job.scorer.plan))
    return Parts(source, job.scorer, job.shard_size, wanted, cells)


def _write_shards(job: Job, parts: Parts, about: dict[str, Any], progress: Progress, computed: list[int]) -> None:
    """Score and write every part; the indices of shards that were finished are added to those `computed`."""
    writer: ShardWriter | None = None
    corpus = corpus_hash(about["manifest"])
    try:
        for part in one_ahead(iter(parts)):
            if writer is None:
                # What is kept from one shard to the next would let the last digits depend on which came before.
                forget_weight_cache(job.scorer.model)
                with _disk_errors_in_words(job.folder):
                    writer = ShardWriter(job.folder, corpus, part.shard, job.scorer, about)
            _write_part(job, part, writer, progress)
            if part.closes:
                parts.source.check(contents=False)
                with _disk_errors_in_words(job.folder):
                    done = writer.finish()
                writer = None
                computed.append(done.shard)
                progress.log("shard", shard=done.shard, rows=done.rows, errors=done.failed, bytes=done.scores.n_bytes)
    finally:
        if writer is not None:
            writer.abandon()


def _write_part(job: Job, part: Part, writer: ShardWriter, progress: Progress) -> None:
    scored = job.scorer.scored(part.ready)
    refused = [*part.refused, *scored.refused]
    with _disk_errors_in_words(job.folder):
        writer.add(scored, refused)
    progress.part(len(scored.ready), len(refused))


@contextmanager
def _disk_errors_in_words(folder: CorpusFolder) -> Iterator[None]:
    """Within, an error of the disk becomes an OutputPathError."""
    try:
        yield
    except OSError as error:
        if isinstance(error, TLVZeroError):
            raise
        if folder.all_errors.is_file():
            advice = "it was finished once: read it by read_corpus, or make the folder writable to have it checked"
        else:
            advice = "make room, and the same command goes on from there"
        n_done = len(folder.indices("done"))
        raise OutputPathError(
            f"cannot write in {folder.root}: {error}; {n_done} finished shards are kept: {advice}"
        ) from error


def _summary(job: Job, corpus: str, records: int, computed: int, seconds: float, notes: tuple[str, ...]) -> CorpusRun:
    done = job.folder.done(corpus)
    shards = -(-records // job.shard_size)
    return CorpusRun(
        folder=job.folder.root,
        sentences=sum(note.rows for note in done.values()),
        failed=sum(note.failed for note in done.values()),
        shards=shards,
        computed=computed,
        seconds=seconds,
        complete=set(range(shards)) <= done.keys(),
        notes=notes,
    )
