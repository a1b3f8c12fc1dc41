"""The target's row of every method, read from a folder that `tl-vzero corpus` wrote.

1. The folder must be of this very model: weights and tokenizer are compared by their hashes.
2. Each example is found by its token ids, which a map depends on alone, and not by its name or its text. All are looked
   for before any map is read; maps are then read a few at a time, and only the target's rows are kept.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from tl_vzero.api import METHODS
from tl_vzero.choices import chosen
from tl_vzero.corpus import Corpus
from tl_vzero.corpus.folder import Stored
from tl_vzero.corpus.manifest import tokenizer_hash
from tl_vzero.errors import InputError, ModelError, unknown_name
from tl_vzero.evaluate.rows import TargetRows, check_all_layers, random_rows, row_of
from tl_vzero.evaluate.tokenized import TokenizedExample, TokenizedSet
from tl_vzero.models.contracts import check_contracts, provenance
from tl_vzero.models.facts import facts_of

OTHER_LOGIT = (
    "the corpus explains the logit of the token that the model finds likeliest, and an evaluation asks for the right "
    "form's: leave the corpus out to have it computed"
)
Key = tuple[tuple[int, ...], int | None]


def corpus_rows(
    corpus: Corpus,
    model: nn.Module,
    layout: TokenizedSet,
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
    >>> from tl_vzero.evaluate.tokenized import tokenize_examples
    >>> model, examples = tl_vzero.load_model("agreement-mini"), agreement_examples()[:3]
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     source = Path(folder) / "three.txt"
    ...     _ = source.write_text("".join(each.with_target("[MASK]") + "\\n" for each in examples))
    ...     run = run_corpus(model, source, Path(folder) / "out")
    ...     found = corpus_rows(read_corpus(run.folder), model, tokenize_examples(model, examples))
    >>> [list(row.shape) for row in found.rows["value_zeroing"]]
    [[4, 11], [4, 10], [4, 10]]
    """
    if options:
        raise InputError(f"options={options!r} given with a corpus: it has the options that it was made with")
    n_layers = check_contracts(model).n_layers
    second = (corpus.manifest.get("input") or {}).get("second_text_column")
    if second is not None:
        raise InputError(
            f"{corpus.folder} holds pairs, with their second text in {second!r}, and examples are one sentence each: "
            "leave the corpus out, or give one of single sentences"
        )
    _check_model(corpus, model)
    names, left_out = _methods(corpus, methods)
    check_all_layers(layers, rolled_out)
    if rolled_out:
        _check_rollouts(corpus, names, n_layers)
    numbers = chosen("layers", layers, n_layers, "the model has") or corpus.layers
    missing = [number for number in numbers if number not in corpus.layers]
    if missing:
        raise InputError(
            f"{corpus.folder} holds the layers {list(corpus.layers)}, and not {missing}: leave the corpus out, or "
            "write one of all layers"
        )
    stored = _found(corpus, layout)
    rows: dict[str, dict[int, Tensor]] = {name: {} for name in names if name != "random"}
    by_place = {(each.shard, each.row): own for each, own in stored}
    with tqdm(total=len(by_place), disable=not progress, desc="corpus", unit="sentence", leave=False) as bar:
        for each, scored in corpus.scores_of([each for each, _ in stored], [*rows]):
            for number in by_place[each.shard, each.row]:
                for name, scores in scored.items():
                    own = row_of(scores, layout.examples[number].dest, normalized, rolled_out)
                    rows[name][number] = _of_layers(own, scores.layers, numbers)
            bar.update()
    in_order = {name: tuple(own[number] for number in sorted(own)) for name, own in rows.items()}
    if "random" in names:
        in_order["random"] = random_rows(layout.examples, numbers, rolled_out=rolled_out, normalized=normalized)
    manifest = corpus.manifest
    return TargetRows(
        examples=layout.examples,
        layers=numbers,
        rows={name: in_order[name] for name in names},
        left_out=left_out,
        skipped=layout.skipped,
        settings={
            **provenance(model),
            "protocol": layout.protocol,
            "normalized": normalized,
            "rolled_out": rolled_out,
            "logit": "good",
            "options": {name: own for name, own in manifest["options"]["methods"].items() if name in names and own},
            "corpus": {"input": manifest.get("input"), "rows": corpus.rows, "versions": manifest["versions"]},
        },
    )


def _check_model(corpus: Corpus, model: nn.Module) -> None:
    """The folder's maps are this model's, of whatever name and in whatever place."""
    of = corpus.manifest["model"]
    now = {"weights_sha256": provenance(model)["weights_sha256"], "tokenizer_sha256": tokenizer_hash(model)}
    differing = [name.removesuffix("_sha256") for name in now if of.get(name) != now[name]]
    if differing:
        raise ModelError(
            f"{corpus.folder} is of another model, {corpus.manifest.get('model_name')!r}: its "
            f"{' and '.join(differing)} differ from those of {facts_of(model).name!r}; give the model that the corpus "
            "was made with (--model)"
        )


def _methods(corpus: Corpus, methods: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
    """The methods to read, and those of the corpus that are left out, with the reason."""
    of_target = {name for name in corpus.methods if name in METHODS and "target" in METHODS[name].needs}
    if methods is None:
        names = [name for name in corpus.methods if name not in of_target]
        if not names:
            raise InputError(f"{corpus.folder} holds {', '.join(corpus.methods)} only: {OTHER_LOGIT}")
        return names, dict.fromkeys(sorted(of_target), OTHER_LOGIT)
    if not methods:
        raise InputError(f"no methods: expected some of {', '.join(corpus.methods)}, those of {corpus.folder}")
    for name in methods:
        if name not in METHODS and name not in corpus.methods:
            raise unknown_name("method", name, METHODS)
        if name not in (*corpus.methods, "random"):
            raise InputError(
                f"{corpus.folder} does not hold the method {name!r}: expected some of {', '.join(corpus.methods)}; or "
                "write a corpus with it in another folder"
            )
        if name in of_target:
            raise InputError(f"{name}: {OTHER_LOGIT}")
    return list(dict.fromkeys(methods)), {}


def _check_rollouts(corpus: Corpus, names: Sequence[str], n_layers: int) -> None:
    to_multiply = [name for name in names if name != "random" and corpus.stage(name) != "rollout"]
    if not to_multiply:
        return
    if corpus.rows == "target":
        raise InputError(
            f"{corpus.folder} holds the target's rows only, and the rollout of {', '.join(to_multiply)} needs whole "
            "maps: write a corpus with rows='all' (--rows all), or leave the corpus out"
        )
    if corpus.layers != tuple(range(n_layers)):
        raise InputError(
            f"{corpus.folder} holds the layers {list(corpus.layers)}, and the rollout of {', '.join(to_multiply)} "
            f"needs all {n_layers} in order: write a corpus of all layers, or leave the corpus out"
        )


def _found(corpus: Corpus, layout: TokenizedSet) -> list[tuple[Stored, list[int]]]:
    """Where each example is in the corpus, with the numbers of the examples that are there.

    Raises InputError, with counts, where some are not.
    """
    if corpus.rows == "summary":
        raise InputError(f"{corpus.folder} holds summaries, and no maps: write a corpus with rows='all' or 'target'")
    wanted: dict[Key, list[int]] = {}
    for number, each in enumerate(layout.examples):
        wanted.setdefault(_key(each, corpus), []).append(number)
    named = {each.example.id: each for each in layout.examples}
    found: dict[Key, Stored] = {}
    otherwise: dict[str, Stored] = {}
    held = 0
    for stored in corpus.sentences():
        held += 1
        key = (stored.token_ids, stored.target if corpus.rows == "target" else None)
        if key in wanted:
            found.setdefault(key, stored)
        elif stored.id in named:
            otherwise.setdefault(stored.id, stored)
    absent = [layout.examples[number] for key, numbers in wanted.items() if key not in found for number in numbers]
    if absent:
        raise _absent(corpus, layout, absent, held, otherwise)
    return [(found[key], numbers) for key, numbers in wanted.items()]


def _key(each: TokenizedExample, corpus: Corpus) -> Key:
    """What a row of the corpus must be of to be the example's."""
    return tuple(each.encoding.ids.tolist()), each.dest if corpus.rows == "target" else None


def _absent(
    corpus: Corpus, layout: TokenizedSet, absent: Sequence[TokenizedExample], held: int, otherwise: Mapping[str, Stored]
) -> InputError:
    """What is wrong, by the first example that is not there; better one of which the corpus has the name."""
    first = next((each for each in absent if each.example.id in otherwise), absent[0])
    told = f"{len(absent)} of {len(layout.examples)} examples are not among the {held} sentences of {corpus.folder}"
    told += f", such as {first.example.id!r}, {' '.join(first.encoding.tokens)!r}"
    stored = otherwise.get(first.example.id)
    if stored is not None and stored.token_ids == tuple(first.encoding.ids.tolist()):
        told += f", of which it holds the row of position {stored.target} and not {first.dest}"
    elif stored is not None:
        told += f", whose tokens differ in the sentence of that id ({len(stored.token_ids)} for {len(first)})"
    return InputError(
        f"{told}: expected a corpus of what `tl-vzero evaluate sentences` writes for these examples and this protocol"
    )


def _of_layers(row: Float[Tensor, "own src"], own: Sequence[int], numbers: Sequence[int]) -> Float[Tensor, "layer src"]:
    return row if tuple(own) == tuple(numbers) else row[torch.tensor([own.index(number) for number in numbers])]
