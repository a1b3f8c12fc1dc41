"""The target's row of every method, for many examples: computed, or read from a corpus.

Only the target's row is computed where only it is needed: examples go in groups of one target position, and each
group asks every method for that one destination. A rollout needs whole maps.
"""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from tqdm.auto import tqdm

from tl_vzero.choices import callable_name, chosen, integer, one_of
from tl_vzero.corpus import Corpus
from tl_vzero.corpus.read import Stored
from tl_vzero.corpus.write import tokenizer_hash
from tl_vzero.data.examples import Skipped
from tl_vzero.errors import DependencyError, InputError, ModelError, unknown_name
from tl_vzero.evaluate.sentences import TokenizedExample, TokenizedSet
from tl_vzero.inputs.baselines import Baseline, BaselineValues
from tl_vzero.inputs.text import encode, same_length_batches
from tl_vzero.methods.apply import scores_on_one_run
from tl_vzero.methods.plan import Planned, plan_of
from tl_vzero.models.contracts import check_contracts, provenance
from tl_vzero.models.facts import facts_of
from tl_vzero.registry import METHODS
from tl_vzero.rollout import normalize_rows, roll_out
from tl_vzero.scores import Scores

Logit = Literal["good", "difference"]
Options = Mapping[str, Mapping[str, Any]]  # of methods, by name

SENTENCES_PER_CALL = 128  # a choice: bounds a call's padding, and the wait between two steps of the bar


@dataclass(frozen=True, eq=False)
class TargetRows:
    """The target's row of each method: `rows[method][n]` is `[layer, src]` of example n, in float64.

    `left_out` are methods that were not named and not computed, with the reason; `skipped` are examples that the
    protocol cannot hold. `settings` say of what model, and how.
    """

    examples: tuple[TokenizedExample, ...]
    layers: tuple[int, ...]
    rows: Mapping[str, tuple[Float[Tensor, "layer _"], ...]]
    left_out: Mapping[str, str]
    skipped: tuple[Skipped, ...]
    settings: Mapping[str, Any]


def target_rows(
    model: nn.Module,
    tokenized: TokenizedSet,
    methods: Sequence[str] | None = None,
    *,
    options: Options | None = None,
    layers: Iterable[int] | int | None = None,
    normalized: bool = True,
    rolled_out: bool = False,
    logit: Logit = "good",
    progress: bool = False,
) -> TargetRows:
    """The target's row of each method and layer, for every tokenized example (see `tokenize_examples`).

    `methods` are names of `METHODS`; by default all except the slow ones, and what is undefined for the model is left
    out with the reason. `options` are a method's own by its name. Rows are normalised, or rolled out to each layer, or
    as the method gives them. Gradient methods explain the logit of the right form, or its difference to the wrong one.
    `random` is drawn anew for each example.

    Raises InputError or InputTypeError for a bad argument, ModelError where a named method is undefined for the
    model, ScoresError where its rows cannot be normalised or rolled out, and leaves the model as it was.

    >>> import tl_vzero
    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import tokenize_examples
    >>> model = tl_vzero.load_model("agreement-mini")
    >>> rows = target_rows(model, tokenize_examples(model, agreement_examples()[:3]), ["value_zeroing"]).rows
    >>> [list(row.shape) for row in rows["value_zeroing"]]
    [[4, 11], [4, 10], [4, 10]]
    """
    plan, left_out = _plan(tokenized.examples, methods, options)
    n_layers = check_contracts(model).n_layers
    check_all_layers(layers, rolled_out)
    layers = chosen("layers", layers, n_layers, "the model has") or tuple(range(n_layers))
    one_of("logit", logit, get_args(Logit))
    if logit == "difference" and any("target" in planned.method.needs for planned in plan):
        check_wrong_forms(tokenized.examples, 'logit="difference"')
    total = len(tokenized.examples) * len(plan)
    with tqdm(total=total, disable=not progress, desc="target rows", unit="row", leave=False) as bar:
        computation = _Computation(model, tokenized.examples, layers, normalized, rolled_out, logit, bar)
        rows = computation.run(plan)
    named = {
        name: {key: _option_name(value) for key, value in values.items()} for name, values in (options or {}).items()
    }
    how = {"normalized": normalized, "rolled_out": rolled_out, "logit": logit, "options": named}
    return with_settings(model, tokenized, layers, rows, left_out | computation.undefined, how)


def _option_name(value: Any) -> Any:
    """An option as a setting that JSON holds."""
    if isinstance(value, Tensor):
        return Baseline("tensor", value).identity
    if isinstance(value, BaselineValues):
        return Baseline(value.name, value.values).identity
    return callable_name(value) if callable(value) else value


def with_settings(
    model: nn.Module,
    tokenized: TokenizedSet,
    layers: tuple[int, ...],
    rows: Mapping[str, tuple[Tensor, ...]],
    left_out: Mapping[str, str],
    how: Mapping[str, Any],
) -> TargetRows:
    """Rows with their examples and settings: the model, the protocol, and how they were computed."""
    settings = {**provenance(model), "protocol": tokenized.protocol, **how}
    return TargetRows(tokenized.examples, layers, rows, left_out, tokenized.skipped, settings)


def _plan(examples: Sequence[TokenizedExample], methods: Any, options: Any) -> tuple[list[Planned], dict[str, str]]:
    if methods is not None:
        return plan_of(methods, options, METHODS), {}
    longest = max(map(len, examples))
    left_out = {
        name: method.unasked for name, method in METHODS.items() if method.unasked and name not in (options or {})
    }
    for name, method in METHODS.items():
        if longest > (method.compared_up_to or longest):
            left_out[name] = f"a sentence has {longest} tokens, and its cost grows fast past {method.compared_up_to}"
    plan = plan_of([name for name in METHODS if name not in left_out], options, METHODS)
    # Only a method with options counts as named: the others are left out where they are undefined.
    return [replace(planned, named=planned.name in (options or {})) for planned in plan], left_out


def check_wrong_forms(examples: Sequence[TokenizedExample], choice: str) -> None:
    """Raise InputError for examples without a wrong form, where a choice compares two forms."""
    without = [sentence.example.id for sentence in examples if sentence.encoding.bad_id is None]
    if without:
        raise InputError(
            f"{choice} compares two forms, and {len(without)} of {len(examples)} examples have no wrong form, "
            f"first {without[0]}: expected minimal pairs"
        )


def check_all_layers(layers: object, rolled_out: bool) -> None:
    """Raise InputError for a rollout of some layers."""
    if rolled_out and layers is not None:
        raise InputError(f"layers={layers!r} and rolled_out=True: a rollout goes through all layers; leave layers out")


def padded(
    examples: Sequence[TokenizedExample],
) -> tuple[Int[Tensor, "sentence position"], Bool[Tensor, "sentence position"]]:
    """Ids of several examples, padded on the right, and the mask that is False at padding."""
    ids = pad_sequence([sentence.encoding.ids for sentence in examples], batch_first=True)
    return ids, torch.arange(ids.shape[1]) < torch.tensor([[len(sentence)] for sentence in examples])


@dataclass(frozen=True, eq=False)
class _Computation:
    """What all methods share, and what is there so far: rows by method and index of the example, and reasons."""

    model: nn.Module
    examples: tuple[TokenizedExample, ...]
    layers: tuple[int, ...]
    normalized: bool
    rolled_out: bool
    logit: Logit
    bar: Any
    rows: dict[str, dict[int, Tensor]] = field(default_factory=dict)
    undefined: dict[str, str] = field(default_factory=dict)

    def run(self, plan: Sequence[Planned]) -> dict[str, tuple[Tensor, ...]]:
        """The rows of every method that is defined; the reasons of the others are in `undefined`."""
        self.rows.update({planned.name: {} for planned in plan})
        for planned in plan:
            if planned.name == "random":
                drawn = random_rows(self.examples, self.layers, self.normalized, self.rolled_out, **planned.options)
                self.rows["random"] = dict(enumerate(drawn))
                self.bar.update(len(self.examples))
            elif planned.method.layer is None:
                self.add_called(planned)
        shared = [planned for planned in plan if planned.method.layer is not None and planned.name != "random"]
        if shared:
            self.add_on_shared_runs(shared)
        return {
            name: tuple(rows[index] for index in range(len(self.examples)))
            for name, rows in self.rows.items()
            if name not in self.undefined
        }

    def add_on_shared_runs(self, plan: Sequence[Planned]) -> None:
        """Methods that read a layer by itself, all on the same clean runs."""
        sites = check_contracts(self.model)
        for group in self.groups(lambda sentence: sentence.dest):
            ids, mask = padded([self.examples[index] for index in group])
            encoded = encode(self.model, ids, attention_mask=mask)
            of_group = [
                replace(planned, destinations=self.destinations(planned, group))
                for planned in plan
                if planned.name not in self.undefined
            ]
            scored = scores_on_one_run(of_group, self.model, sites, encoded, self.layers)
            for planned in plan:
                by_row = scored.get(planned.name, {})
                if isinstance(by_row, ModelError):
                    self.undefined[planned.name] = planned.reason(by_row)  # raises it where the method was named
                else:
                    self.add(planned, {group[row]: scores for row, scores in by_row.items()})
            self.bar.update(len(group) * len(plan))

    def add_called(self, planned: Planned) -> None:
        """A method that is called as a user calls it."""
        needs_target = "target" in planned.method.needs
        if self.rolled_out and needs_target and not planned.named:
            self.undefined[planned.name] = "it gives the target's row only, and a rollout needs whole maps"
            self.bar.update(len(self.examples))
            return
        try:
            for group in self.groups(self.target_ids if needs_target else lambda sentence: sentence.dest):
                arguments: dict[str, Any] = {}
                if needs_target:
                    arguments["target"] = [self.examples[index].dest for index in group]
                    arguments["target_ids"] = self.target_ids(self.examples[group[0]])
                elif "destinations" in (planned.method.options or ()):
                    arguments["destinations"] = self.destinations(planned, group)
                if not self.rolled_out:
                    arguments["layers"] = self.layers
                ids, mask = padded([self.examples[index] for index in group])
                scored = planned.called(self.model, ids, len(group), attention_mask=mask, **arguments)
                self.add(planned, dict(zip(group, scored, strict=True)))
                self.bar.update(len(group))
        except (ModelError, DependencyError) as error:
            self.undefined[planned.name] = planned.reason(error)
            self.bar.update(len(self.examples))

    def add(self, planned: Planned, scored: Mapping[int, Scores]) -> None:
        """Keep the target's row of some examples' maps."""
        self.rows[planned.name] |= {
            index: row_of(scores, self.examples[index].dest, self.normalized, self.rolled_out)
            for index, scores in scored.items()
        }

    def groups(self, key: Callable[[TokenizedExample], Hashable]) -> Iterator[list[int]]:
        """Examples of one key, by their indices; those of near lengths share a call, which pads them."""
        by_length = sorted(range(len(self.examples)), key=lambda index: len(self.examples[index]))
        return same_length_batches(by_length, lambda index: key(self.examples[index]), lambda _: SENTENCES_PER_CALL)

    def destinations(self, planned: Planned, group: Sequence[int]) -> tuple[int, ...] | None:
        """The one destination of a group; all where maps are to be multiplied, unless the method does so itself."""
        through = planned.method.layer is not None and planned.method.layer.through is not None
        return None if self.rolled_out and not through else (self.examples[group[0]].dest,)

    def target_ids(self, sentence: TokenizedExample) -> int | tuple[int, int]:
        """The token whose logit is explained, or the two whose difference is."""
        good, bad = sentence.encoding.good_id, sentence.encoding.bad_id
        return (good, bad) if self.logit == "difference" and bad is not None else good


def row_of(scores: Scores, dest: int, normalized: bool, rolled_out: bool) -> Float[Tensor, "layer src"]:
    """A destination's row in float64, rolled out, normalised or raw; what is rolled out already stays as it is."""
    if rolled_out and scores.stage != "rollout":
        scores = scores.rollout()
    elif normalized:
        scores = scores.normalized()
    return scores.row(dest).detach().cpu().double()


def random_rows(
    examples: Sequence[TokenizedExample], layers: Sequence[int], normalized: bool, rolled_out: bool, seed: int = 0
) -> tuple[Tensor, ...]:
    """Each example's row of random maps, drawn for it alone; raises InputTypeError for a seed that is no integer."""
    integer("seed", seed)
    draw = partial(random_row, n_layers=max(layers) + 1, rolled_out=rolled_out, normalized=normalized)
    return tuple(
        draw(len(one), one.dest, causal=one.target_position is None, seed=(seed, index))[list(layers)]
        for index, one in enumerate(examples)
    )


def random_row(
    length: int, dest: int, n_layers: int, *, causal: bool, rolled_out: bool, normalized: bool, seed: Sequence[int]
) -> Float[Tensor, "layer src"]:
    """A destination's row of uniform random maps, drawn anew for each seed.

    The method `random` gives every sentence of one length the same map; as a sample of examples that is one draw, and
    its mean may be far from what chance gives.
    """
    drawn = torch.from_numpy(np.random.default_rng(seed).random((n_layers, length, length)))
    maps = drawn.tril() if causal else drawn
    if rolled_out:
        maps = roll_out(normalize_rows(maps), identity=False)
    elif normalized:
        maps = normalize_rows(maps)
    return maps[:, dest]


# The same rows, read from a folder that `tl-vzero corpus` wrote.
# 1. The folder must be of this very model: weights and tokenizer are compared by their hashes.
# 2. Each example is looked up by its token ids, which a map depends on alone, and not by its name or its text. All are
#    looked up before any map is read; maps are then read a few at a time, and only the target's rows are kept.

OTHER_LOGIT = (
    "the corpus explains the logit of the token that the model finds likeliest, and an evaluation asks for the right "
    "form's: leave the corpus out to have it computed"
)
Key = tuple[tuple[int, ...], int | None]


def rows_from(corpus: Corpus | None) -> Callable[..., TargetRows]:
    """What gives the rows of a model's examples: `target_rows`, or `corpus_rows` of a corpus."""
    return target_rows if corpus is None else partial(corpus_rows, corpus)


def corpus_rows(
    corpus: Corpus,
    model: nn.Module,
    tokenized: TokenizedSet,
    methods: Sequence[str] | None = None,
    *,
    options: Options | None = None,
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
    names, left_out = _stored_methods(corpus, methods)
    check_all_layers(layers, rolled_out)
    read_layers = _stored_layers(corpus, layers, names if rolled_out else (), check_contracts(model).n_layers)
    rows = _stored_rows(corpus, tokenized, names, read_layers, normalized, rolled_out, progress)
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


def _stored_methods(corpus: Corpus, methods: Sequence[str] | None) -> tuple[list[str], dict[str, str]]:
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


def _stored_layers(
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


def _stored_rows(
    corpus: Corpus,
    tokenized: TokenizedSet,
    names: Sequence[str],
    layers: tuple[int, ...],
    normalized: bool,
    rolled_out: bool,
    progress: bool,
) -> dict[str, tuple[Tensor, ...]]:
    places = _stored_places(corpus, tokenized.examples)
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


def _stored_places(corpus: Corpus, examples: Sequence[TokenizedExample]) -> list[tuple[Stored, list[int]]]:
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
