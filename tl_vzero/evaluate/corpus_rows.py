"""The target's row of every method, read from a folder that `tl-vzero corpus` wrote.

1. The folder must be of this very model: weights and tokenizer are compared by their hashes.
2. Each example is looked up by its token ids, which a map depends on alone, and not by its name or its text. All are
   looked up before any map is read; maps are then read a few at a time, and only the target's rows are kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.choices import chosen
from tl_vzero.corpus import Corpus
from tl_vzero.corpus.read import Stored
from tl_vzero.corpus.write import tokenizer_hash
from tl_vzero.errors import InputError, ModelError, unknown_name
from tl_vzero.evaluate.rows import TargetRows, check_all_layers, random_rows, row_of, with_settings
from tl_vzero.evaluate.sentences import TokenizedExample, TokenizedSet
from tl_vzero.models.contracts import check_contracts, provenance
from tl_vzero.models.facts import facts_of
from tl_vzero.registry import METHODS

OTHER_LOGIT = (
    "the corpus explains the logit of the token that the model finds likeliest, and an evaluation asks for the right "
    "form's: leave the corpus out to have it computed"
)
Key = tuple[tuple[int, ...], int | None]


def corpus_rows(
    corpus: Corpus,
    model: nn.Module,
    tokenized: TokenizedSet,
    methods: Sequence[str] | None = None,
    *,
    options: Mapping[str, Mapping[str, Any]] | None = None,
    layers: Iterable[int] | int | None = None,
    normalized: bool = True,
    rolled_out: bool = False,
    progress: bool = False,
) -> TargetRows:
    """What `target_rows` computes, from a corpus (see `read_corpus`) of the same model and sentences.

    `methods` are by default those of the corpus; `random` is drawn anew for each example. A corpus with rows="target"
    holds enough where nothing is rolled out. The corpus may hold more sentences; of one that it holds twice the first
    is taken.

    Raises InputError or ModelError before any map is read: for another model, methods or layers that the corpus lacks,
    methods of a target (they explain another logit there), maps that it does not hold, examples that are not in it, a
    corpus of pairs; FileFormatError for a shard that cannot be read.

    >>> import tempfile, tl_vzero
    >>> from pathlib import Path
    >>> from tl_vzero.corpus import read_corpus, run_corpus
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import tokenize_examples
    >>> model, examples = tl_vzero.load_model("agreement-mini"), agreement_examples()[:3]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = Path(folder) / "three.txt"
    ...     _ = source.write_text("".join(example.with_target("[MASK]") + "\\n" for example in examples))
    ...     corpus = read_corpus(run_corpus(model, source, Path(folder) / "out").folder)
    ...     rows = corpus_rows(corpus, model, tokenize_examples(model, examples)).rows
    >>> [list(row.shape) for row in rows["value_zeroing"]]
    [[4, 11], [4, 10], [4, 10]]
    """
    if options:
        raise InputError(f"options={options!r} given with a corpus: it has the options that it was made with")
    second = (corpus.manifest.get("input") or {}).get("second_text_column")
    if second is not None:
        advice = "leave the corpus out, or give one of single sentences"
        raise InputError(f"{corpus.folder} holds pairs, with their second text in {second!r}: {advice}")
    _check_model(corpus, model)
    names, left_out = _methods(corpus, methods)
    check_all_layers(layers, rolled_out)
    read_layers = _layers(corpus, layers, names if rolled_out else (), check_contracts(model).n_layers)
    rows = _read(corpus, tokenized, names, read_layers, normalized, rolled_out, progress)
    manifest, written = corpus.manifest, corpus.manifest["options"]["methods"]
    of_methods = {name: options for name, options in written.items() if options and name in names}
    how = {"normalized": normalized, "rolled_out": rolled_out, "logit": "good", "options": of_methods}
    about = {"input": manifest.get("input"), "rows": corpus.rows, "versions": manifest["versions"]}
    return with_settings(model, tokenized, read_layers, rows, left_out, {**how, "corpus": about})


def _check_model(corpus: Corpus, model: nn.Module) -> None:
    """The folder's maps are this model's, of whatever name and in whatever place."""
    hashes = {"weights": provenance(model)["weights_sha256"], "tokenizer": tokenizer_hash(model)}
    differing = [name for name in hashes if corpus.manifest["model"].get(f"{name}_sha256") != hashes[name]]
    if differing:
        raise ModelError(
            f"{corpus.folder} is of another model, {corpus.manifest.get('model_name')!r}: its "
            f"{' and '.join(differing)} differ from those of {facts_of(model).name!r}; give the model that the corpus "
            "was made with (--model)"
        )


def _methods(corpus: Corpus, methods: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The methods to read, and those of the corpus that are left out, with the reason."""
    of_target = {name for name in corpus.methods if name in METHODS and "target" in METHODS[name].needs}
    held = ", ".join(corpus.methods)
    if methods is None:
        names = [name for name in corpus.methods if name not in of_target]
        if not names:
            raise InputError(f"{corpus.folder} holds {held} only: {OTHER_LOGIT}")
        return names, dict.fromkeys(sorted(of_target), OTHER_LOGIT)
    if not methods:
        raise InputError(f"no methods: expected some of {held}, those of {corpus.folder}")
    for name in methods:
        if name not in METHODS and name not in corpus.methods:
            raise unknown_name("method", name, METHODS)
        if name not in (*corpus.methods, "random"):
            expected = f"expected some of {held}; or write a corpus with it in another folder"
            raise InputError(f"{corpus.folder} does not hold the method {name!r}: {expected}")
        if name in of_target:
            raise InputError(f"{name}: {OTHER_LOGIT}")
    return list(dict.fromkeys(methods)), {}


def _layers(
    corpus: Corpus, layers: Iterable[int] | int | None, rolled_out: Sequence[str], n_layers: int
) -> tuple[int, ...]:
    """The layers to read; raises InputError where those that are there do not do, also for a rollout of methods."""
    to_multiply = [name for name in rolled_out if name != "random" and corpus.stage(name) != "rollout"]
    if to_multiply and corpus.rows == "target":
        raise InputError(
            f"{corpus.folder} holds the target's rows only, and the rollout of {', '.join(to_multiply)} needs whole "
            "maps: write a corpus with rows='all' (--rows all), or leave the corpus out"
        )
    if to_multiply and corpus.layers != tuple(range(n_layers)):
        raise InputError(
            f"{corpus.folder} holds the layers {list(corpus.layers)}, and the rollout of {', '.join(to_multiply)} "
            f"needs all {n_layers} in order: write a corpus of all layers, or leave the corpus out"
        )
    wanted = chosen("layers", layers, n_layers, "the model has") or corpus.layers
    missing = [layer for layer in wanted if layer not in corpus.layers]
    if missing:
        layers_there = f"{corpus.folder} holds the layers {list(corpus.layers)}"
        raise InputError(f"{layers_there}, and not {missing}: leave the corpus out, or write one of all layers")
    return wanted


def _read(
    corpus: Corpus,
    tokenized: TokenizedSet,
    names: Sequence[str],
    layers: tuple[int, ...],
    normalized: bool,
    rolled_out: bool,
    progress: bool,
) -> dict[str, tuple[Tensor, ...]]:
    places = _places(corpus, tokenized.examples)
    indices = {(stored.shard, stored.row): of_examples for stored, of_examples in places}
    rows: dict[str, dict[int, Tensor]] = {name: {} for name in names}
    to_read = [name for name in names if name != "random"]
    with tqdm(total=len(indices), disable=not progress, desc="corpus", unit="sentence", leave=False) as bar:
        for stored, scored in corpus.scores_of([stored for stored, _ in places], to_read):
            for index in indices[stored.shard, stored.row]:
                for name, scores in scored.items():
                    row = row_of(scores, tokenized.examples[index].dest, normalized, rolled_out)
                    rows[name][index] = row[[list(scores.layers).index(layer) for layer in layers]]
            bar.update()
    if "random" in names:
        rows["random"] = dict(enumerate(random_rows(tokenized.examples, layers, normalized, rolled_out)))
    return {name: tuple(rows[name][index] for index in sorted(rows[name])) for name in names}


def _places(corpus: Corpus, examples: Sequence[TokenizedExample]) -> list[tuple[Stored, list[int]]]:
    """Where the examples are in the corpus, with their indices; raises InputError, with counts, where some are not."""
    if corpus.rows == "summary":
        raise InputError(f"{corpus.folder} holds summaries, and no maps: write a corpus with rows='all' or 'target'")
    of_target = corpus.rows == "target"
    indices: dict[Key, list[int]] = {}
    for index, sentence in enumerate(examples):
        key = tuple(sentence.encoding.ids.tolist()), sentence.dest if of_target else None
        indices.setdefault(key, []).append(index)
    names = {sentence.example.id for sentence in examples}
    by_key: dict[Key, Stored] = {}
    by_name: dict[str, Stored] = {}  # sentences of an example's name that are not the example's
    n_stored = 0
    for stored in corpus.sentences():
        n_stored += 1
        key = stored.token_ids, stored.target if of_target else None
        if key in indices:
            by_key.setdefault(key, stored)
        elif stored.id in names:
            by_name.setdefault(stored.id, stored)
    absent = [examples[index] for key in indices if key not in by_key for index in indices[key]]
    if absent:
        said = f"{len(absent)} of {len(examples)} examples are not among the {n_stored} sentences of {corpus.folder}"
        raise InputError(
            f"{said}, such as {_difference(absent, by_name)}: expected a corpus of what `tl-vzero evaluate sentences` "
            "writes for these examples and this protocol"
        )
    return [(by_key[key], indices[key]) for key in indices]


def _difference(absent: Sequence[TokenizedExample], by_name: Mapping[str, Stored]) -> str:
    """What is wrong with the first example that is not there; better with one of which the corpus has the name."""
    first = next((sentence for sentence in absent if sentence.example.id in by_name), absent[0])
    named = f"{first.example.id!r}, {' '.join(first.encoding.tokens)!r}"
    stored = by_name.get(first.example.id)
    if stored is None:
        return named
    if stored.token_ids == tuple(first.encoding.ids.tolist()):
        return f"{named}, of which it holds the row of position {stored.target} and not {first.dest}"
    return f"{named}, whose tokens differ in the sentence of that id ({len(stored.token_ids)} for {len(first)})"
