"""BLiMP as examples: contractions written out, the one word that differs as target, its cue by template.

Data: Warstadt et al. (2020), *BLiMP: The Benchmark of Linguistic Minimal Pairs for English*, TACL. The five
paradigms are those of Mohebbi et al. (2023).
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from tl_vzero.choices import one_of
from tl_vzero.data.examples import (
    CANNOT,
    CLOSING_MARKS,
    Example,
    ExampleSet,
    FilterReport,
    Skipped,
    Stage,
    expand_contractions,
    number_of,
    split_words,
)
from tl_vzero.errors import FileFormatError, InputError, InputTypeError, OfflineError, unknown_name
from tl_vzero.files import parse_row, read_text

# Cues of BLiMP sentences by the template that they were generated from: rules on the surface, no parser.
#
# Indices count words after contractions are written out. Where a noun is a compound ("college campuses"), the cue is
# its last word, the one with the ending.

DETERMINERS = frozenset("a an the this that these those some many most all every each no".split())
DEMONSTRATIVES = frozenset({"this", "that", "these", "those"})
LINKS = frozenset({"of", "about"})
QUANTIFIER = ("a", "lot", "of")


@dataclass(frozen=True, slots=True)
class TemplateCue:
    """The cue's words, and the nouns between cue and target that have the other number."""

    cue: tuple[int, ...]
    attractor: tuple[int, ...] = ()


def cue_by_template(paradigm: str, words: Sequence[str], target: int) -> TemplateCue:
    """The cue of a BLiMP sentence.

    - ana: the head of the noun phrase at the start of the sentence
    - dna, dnaa: the head of the noun phrase that the determiner begins and the sentence ends with
    - darn: the noun before the first "of" or "about"; the noun before the verb is its attractor
    - rpsv: the noun before the verb

    "a lot of" is a determiner. Raises InputError where the sentence is not of its paradigm's template.

    >>> cue_by_template("darn", "The pictures of a lot of hats are old .".split(), 7)
    TemplateCue(cue=(1,), attractor=(6,))
    """
    return _RULES[paradigm](tuple(words), target)


def _head_of_first_phrase(words: tuple[str, ...], target: int) -> TemplateCue:
    if not words[target].lower().endswith(("self", "selves")):
        raise InputError(f"the target {words[target]!r} is no reflexive pronoun")
    head = _after_determiner(words)
    # A name of several words: Harvard University.
    while head + 1 < target and words[head][0].isupper() and words[head + 1][0].isupper():
        head += 1
    if head >= target:
        raise InputError("no noun phrase before the target")
    return TemplateCue((head,))


def _after_determiner(words: tuple[str, ...]) -> int:
    if _is_quantifier(words, 0):
        return len(QUANTIFIER)
    return int(words[0].lower() in DETERMINERS)


def _is_quantifier(words: tuple[str, ...], start: int) -> bool:
    return tuple(word.lower() for word in words[start : start + len(QUANTIFIER)]) == QUANTIFIER


def _head_of_last_phrase(words: tuple[str, ...], target: int) -> TemplateCue:
    if words[target].lower() not in DEMONSTRATIVES:
        raise InputError(f"the target {words[target]!r} is no demonstrative")
    last = max(index for index, word in enumerate(words) if word.strip(CLOSING_MARKS))
    if last <= target:
        raise InputError("no noun after the target")
    return TemplateCue((last,))


def _noun_before_link(words: tuple[str, ...], target: int) -> TemplateCue:
    for index in range(1, target - 1):
        of_quantifier = index >= 2 and _is_quantifier(words, index - 2)
        if words[index].lower() in LINKS and not of_quantifier:
            return TemplateCue((index - 1,), (target - 1,))
    raise InputError(f"no {' or '.join(sorted(LINKS))} with a noun on either side before the target")


def _noun_before_target(words: tuple[str, ...], target: int) -> TemplateCue:
    if target <= _after_determiner(words):
        raise InputError("no noun before the target")
    return TemplateCue((target - 1,))


_RULES: Mapping[str, Callable[[tuple[str, ...], int], TemplateCue]] = MappingProxyType(
    {
        "ana": _head_of_first_phrase,
        "dna": _head_of_last_phrase,
        "dnaa": _head_of_last_phrase,
        "darn": _noun_before_link,
        "rpsv": _noun_before_target,
    }
)


# BLiMP's minimal pairs as published: from a folder of JSONL files, or from the Hugging Face hub.

# The paper's short names, and the names that BLiMP's files and its configurations on the hub have.
PARADIGM_FILES: Mapping[str, str] = MappingProxyType(
    {
        "ana": "anaphor_number_agreement",
        "dna": "determiner_noun_agreement_2",
        "dnaa": "determiner_noun_agreement_with_adj_2",
        "darn": "distractor_agreement_relational_noun",
        "rpsv": "regular_plural_subject_verb_agreement_1",
    }
)
PAIRS_A_PARADIGM = 1000
HUB_NAME = "nyu-mll/blimp"
PROBE_SECONDS = 1.5
# The published files and the hub's tables name the pair differently.
_PAIR_COLUMNS = ("pairID", "pair_id")
_OTHER_WAY = "or give folder=, where BLiMP's JSONL files lie (data/ of github.com/alexwarstadt/blimp)"


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two sentences as published, alike but for one word; `pair` is the number within the paradigm."""

    paradigm: str
    pair: str
    good: str
    bad: str


def pairs_in_folder(folder: str | Path, paradigm: str) -> list[MinimalPair]:
    """Read a paradigm's file, `<name>.jsonl`.

    Raises FileFormatError for a folder or file that is not there, a line that is no JSON or lacks a column, a pair
    that occurs twice, and a count other than the published 1000.
    """
    where = Path(folder)
    if not where.is_dir():
        raise FileFormatError(f"no folder {where}: expected the folder with BLiMP's JSONL files")
    path = where / f"{PARADIGM_FILES[paradigm]}.jsonl"
    if not path.is_file():
        raise FileFormatError(
            f"no file {path.name} in {where}: expected BLiMP's JSONL files as published, for the paradigm {paradigm}"
        )
    # Not splitlines: JSON may hold what separates lines elsewhere.
    lines = read_text(path).removesuffix("\n").split("\n")
    records = [(f"{path}, line {number}", _parsed(path, number, line)) for number, line in enumerate(lines, start=1)]
    return _pairs(records, paradigm, str(path))


def _parsed(path: Path, number: int, line: str) -> dict[str, Any]:
    try:
        record = parse_row(line)
    except ValueError as error:
        raise FileFormatError(f"{path}, line {number} is no JSON ({error}): expected one pair on each line") from error
    if not isinstance(record, dict):
        raise FileFormatError(
            f"{path}, line {number} is {type(record).__name__}: expected an object with named columns"
        )
    return record


def _pairs(records: Iterable[tuple[str, Mapping[str, Any]]], paradigm: str, source: str) -> list[MinimalPair]:
    pairs = [_pair(record, paradigm, place) for place, record in records]
    if len(pairs) != PAIRS_A_PARADIGM:
        raise FileFormatError(
            f"{source} holds {len(pairs)} pairs: expected the published {PAIRS_A_PARADIGM}; fetch it again"
        )
    if len({pair.pair for pair in pairs}) != len(pairs):
        raise FileFormatError(f"{source} holds a pair number twice: expected the published file; fetch it again")
    return pairs


def _pair(record: Mapping[str, Any], paradigm: str, place: str) -> MinimalPair:
    number = next((name for name in _PAIR_COLUMNS if name in record), _PAIR_COLUMNS[0])
    missing = [name for name in ("sentence_good", "sentence_bad", "UID", number) if name not in record]
    if missing:
        raise FileFormatError(f"{place} has no column {', '.join(missing)}: expected BLiMP's columns as published")
    if record["UID"] != PARADIGM_FILES[paradigm]:
        raise FileFormatError(
            f"{place} is of the paradigm {record['UID']}: expected {PARADIGM_FILES[paradigm]}, as the name says"
        )
    good, bad = record["sentence_good"], record["sentence_bad"]
    if not isinstance(good, str) or not isinstance(bad, str) or type(record[number]) not in (str, int):
        raise FileFormatError(
            f"{place} has {number}={record[number]!r}, sentence_good={good!r}, sentence_bad={bad!r}: expected a number "
            "and two texts, as published"
        )
    return MinimalPair(paradigm, str(record[number]), good, bad)


def pairs_on_hub(paradigm: str) -> list[MinimalPair]:
    """Read a paradigm of `nyu-mll/blimp` by `datasets`, from its cache or over the network.

    Raises OfflineError where the hub is not reached and nothing is cached, FileFormatError for another count than the
    published 1000.
    """
    _check_reachable(paradigm)
    from datasets import load_dataset

    name = PARADIGM_FILES[paradigm]
    try:
        table = load_dataset(HUB_NAME, name, split="train")
    except OSError as error:
        raise OfflineError(f"cannot load {HUB_NAME} ({name}) from the hub: {error}; try again, {_OTHER_WAY}") from error
    source = f"{HUB_NAME} ({name})"
    return _pairs([(f"{source}, row {row}", record) for row, record in enumerate(table)], paradigm, source)


def _check_reachable(paradigm: str) -> None:
    """Ask the hub once, briefly: the library's own retries take 23 seconds to say no."""
    reason = "HF_HUB_OFFLINE is set" if _switched_off() else _why_unreachable()
    if reason is not None and not _is_cached(paradigm):
        raise OfflineError(
            f"cannot load {HUB_NAME} ({PARADIGM_FILES[paradigm]}) from the Hugging Face hub: {reason}, and it is not "
            f"in the local cache; try again with a network, {_OTHER_WAY}"
        )


def _switched_off() -> bool:
    variables = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE")
    return any(os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE") for name in variables)


def _why_unreachable() -> str | None:
    import httpx
    from huggingface_hub import constants

    try:
        httpx.head(f"{constants.ENDPOINT}/datasets/{HUB_NAME}", timeout=PROBE_SECONDS)
    except httpx.HTTPError as error:
        return f"the hub cannot be reached ({type(error).__name__})"
    return None


def _is_cached(paradigm: str) -> bool:
    from datasets import config

    prepared = Path(config.HF_DATASETS_CACHE) / HUB_NAME.replace("/", "___") / PARADIGM_FILES[paradigm]
    return prepared.is_dir()


FIVE = tuple(PARADIGM_FILES)
# In the order in which a pair passes them; another tokenizer's filter comes later, see `pieces`.
READ, EXPANDED, ONE_WORD, CUE = "read", "contractions expanded", "differ in one word", "cue found"


class _NotUsable(Exception):
    """A pair stops at a stage; the reason goes into the report."""

    def __init__(self, stage: str, reason: str) -> None:
        super().__init__(reason)
        self.stage = stage


def read_blimp(
    folder: str | Path | None = None, *, paradigms: Sequence[str] = FIVE, cannot: str = "cannot"
) -> ExampleSet:
    """BLiMP's minimal pairs as examples, from a folder of its JSONL files or, without one, from the hub.

    `paradigms` are the paper's short names or the files' names. `cannot` says how "can't" is written out, as one
    word or two. Pairs that differ in no or several words, or are not of their paradigm's template, are listed in the
    report with the reason.

    Raises InputError for an unknown paradigm, FileFormatError for files that are not BLiMP's, OfflineError without
    folder and network.

    >>> read_blimp("/nowhere")
    Traceback (most recent call last):
    tl_vzero.errors.FileFormatError: no folder /nowhere: expected the folder with BLiMP's JSONL files
    """
    one_of("writing of can't", cannot, CANNOT)
    names = _short_names(paradigms)
    pairs = [
        pair for name in names for pair in (pairs_on_hub(name) if folder is None else pairs_in_folder(folder, name))
    ]
    return _examples(pairs, names, cannot)


def _short_names(paradigms: Sequence[str]) -> tuple[str, ...]:
    if isinstance(paradigms, str):
        raise InputTypeError(f"paradigms is a string: expected a list, such as [{paradigms!r}]")
    if not paradigms:
        raise InputError(f"paradigms is empty: expected some of {', '.join(FIVE)}")
    short = {file: name for name, file in PARADIGM_FILES.items()}
    for given in paradigms:
        if given not in FIVE and given not in short:
            raise unknown_name("paradigm", given, [*FIVE, *short])
    names = tuple(short.get(given, given) for given in paradigms)
    if len(set(names)) != len(names):
        raise InputError(f"paradigms are {list(paradigms)}: expected each at most once")
    return names


def _examples(pairs: Sequence[MinimalPair], names: tuple[str, ...], cannot: str) -> ExampleSet:
    examples, skipped = [], []
    for pair in pairs:
        try:
            examples.append(_example(pair, cannot))
        except _NotUsable as stop:
            skipped.append(Skipped(_id(pair), pair.paradigm, stop.stage, str(stop)))
    left = Counter(pair.paradigm for pair in pairs)
    stages = [Stage(READ, {name: left[name] for name in names})]
    for stage in (EXPANDED, ONE_WORD, CUE):
        left.subtract(skip.paradigm for skip in skipped if skip.stage == stage)
        stages.append(Stage(stage, {name: left[name] for name in names}))
    return ExampleSet(tuple(examples), FilterReport(tuple(stages), tuple(skipped)))


def _id(pair: MinimalPair) -> str:
    return f"{pair.paradigm}-{pair.pair}"


def _example(pair: MinimalPair, cannot: str) -> Example:
    try:
        good, bad = (expand_contractions(split_words(sentence), cannot=cannot) for sentence in (pair.good, pair.bad))
    except InputError as error:
        raise _NotUsable(EXPANDED, str(error)) from error
    target = _differing_word(good, bad)
    try:
        found = cue_by_template(pair.paradigm, good, target)
    except InputError as error:
        raise _NotUsable(CUE, str(error)) from error
    return Example(
        id=_id(pair),
        paradigm=pair.paradigm,
        words=good,
        target=target,
        good=good[target],
        bad=bad[target],
        cue=found.cue,
        cue_source="template",
        attractor=found.attractor,
        pair=pair.pair,
        number=number_of(good[target], bad[target]),
    )


def _differing_word(good: tuple[str, ...], bad: tuple[str, ...]) -> int:
    if len(good) != len(bad):
        raise _NotUsable(ONE_WORD, f"{len(good)} words in the good sentence, {len(bad)} in the bad one")
    differing = [index for index, (one, other) in enumerate(zip(good, bad, strict=True)) if one != other]
    if len(differing) != 1:
        raise _NotUsable(ONE_WORD, f"the sentences differ in {len(differing)} words")
    return differing[0]
