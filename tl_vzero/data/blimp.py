"""BLiMP as examples: contractions written out, the one word that differs as target, its cue by template.

Data: Warstadt et al. (2020), *BLiMP: The Benchmark of Linguistic Minimal Pairs for English*, TACL. The five
paradigms are those of Mohebbi et al. (2023).
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
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
from tl_vzero.data.own_file import json_rows
from tl_vzero.errors import FileFormatError, InputError, InputTypeError, OfflineError
from tl_vzero.models.hub import why_no_hub

# Cues by the template that the sentences were generated from: rules on the surface, no parser. Indices count words
# after contractions are written out. Of a compound ("college campuses") the cue is the last word, which has the ending.

DETERMINERS = frozenset("a an the this that these those some many most all every each no".split())
DEMONSTRATIVES = frozenset({"this", "that", "these", "those"})
LINKS = frozenset({"of", "about"})
QUANTIFIER = ("a", "lot", "of")


def cue_by_template(paradigm: str, words: Sequence[str], target: int) -> tuple[int, tuple[int, ...]]:
    """The cue of a BLiMP sentence, and the nouns between cue and target that have the other number.

    - ana: the head of the noun phrase at the start of the sentence
    - dna, dnaa: the head of the noun phrase that the determiner begins and the sentence ends with
    - darn: the noun before the first "of" or "about"; the noun before the verb is its attractor
    - rpsv: the noun before the verb

    "a lot of" is a determiner. Raises InputError where the sentence is not of its paradigm's template.

    >>> cue_by_template("darn", "The pictures of a lot of hats are old .".split(), 7)
    (1, (6,))
    """
    return _RULES[paradigm](tuple(words), target), (target - 1,) if paradigm == "darn" else ()


def _head_of_first_phrase(words: tuple[str, ...], target: int) -> int:
    if not words[target].lower().endswith(("self", "selves")):
        raise InputError(f"the target {words[target]!r} is no reflexive pronoun")
    head = _after_determiner(words)
    # A name of several words: Harvard University.
    while head + 1 < target and words[head][0].isupper() and words[head + 1][0].isupper():
        head += 1
    if head >= target:
        raise InputError("no noun phrase before the target")
    return head


def _after_determiner(words: tuple[str, ...]) -> int:
    return len(QUANTIFIER) if _is_quantifier(words, 0) else int(words[0].lower() in DETERMINERS)


def _is_quantifier(words: tuple[str, ...], start: int) -> bool:
    return tuple(word.lower() for word in words[start : start + len(QUANTIFIER)]) == QUANTIFIER


def _head_of_last_phrase(words: tuple[str, ...], target: int) -> int:
    if words[target].lower() not in DEMONSTRATIVES:
        raise InputError(f"the target {words[target]!r} is no demonstrative")
    last = max(index for index, word in enumerate(words) if word.strip(CLOSING_MARKS))
    if last <= target:
        raise InputError("no noun after the target")
    return last


def _noun_before_link(words: tuple[str, ...], target: int) -> int:
    for index in range(1, target - 1):
        of_quantifier = index >= 2 and _is_quantifier(words, index - 2)
        if words[index].lower() in LINKS and not of_quantifier:
            return index - 1
    raise InputError(f"no {' or '.join(sorted(LINKS))} with a noun on either side before the target")


def _noun_before_target(words: tuple[str, ...], target: int) -> int:
    if target <= _after_determiner(words):
        raise InputError("no noun before the target")
    return target - 1


_RULES: Mapping[str, Callable[[tuple[str, ...], int], int]] = {
    "ana": _head_of_first_phrase,
    "dna": _head_of_last_phrase,
    "dnaa": _head_of_last_phrase,
    "darn": _noun_before_link,
    "rpsv": _noun_before_target,
}


# The minimal pairs as published: from a folder of JSONL files, or from the Hugging Face hub.

# The paper's short names, and the names of BLiMP's files and of its configurations on the hub.
PARADIGM_FILES: Mapping[str, str] = {
    "ana": "anaphor_number_agreement",
    "dna": "determiner_noun_agreement_2",
    "dnaa": "determiner_noun_agreement_with_adj_2",
    "darn": "distractor_agreement_relational_noun",
    "rpsv": "regular_plural_subject_verb_agreement_1",
}
PAIRS_PER_PARADIGM = 1000
HUB_NAME = "nyu-mll/blimp"
_PAIR_COLUMNS = ("pairID", "pair_id")  # of the published files, and of the hub's tables
_OTHER_WAY = "or give folder=, where BLiMP's JSONL files lie (data/ of github.com/alexwarstadt/blimp)"


@dataclass(frozen=True, slots=True)
class MinimalPair:
    """Two sentences as published, alike but for one word; `pair` is the number within the paradigm."""

    paradigm: str
    pair: str
    good: str
    bad: str

    @property
    def id(self) -> str:
        return f"{self.paradigm}-{self.pair}"


def pairs_in_folder(folder: str | Path, paradigm: str) -> list[MinimalPair]:
    """Read a paradigm's file, `<name>.jsonl`; raises FileFormatError for what is not as published."""
    where = Path(folder)
    if not where.is_dir():
        raise FileFormatError(f"no folder {where}: expected the folder with BLiMP's JSONL files")
    path = where / f"{PARADIGM_FILES[paradigm]}.jsonl"
    if not path.is_file():
        raise FileFormatError(f"no file {path.name} in {where}: expected one as published for the paradigm {paradigm}")
    records = [(f"{path}, line {line}", record) for line, record in json_rows(path)]
    return _pairs(records, paradigm, str(path))


def _pairs(records: Iterable[tuple[str, Mapping[str, Any]]], paradigm: str, source: str) -> list[MinimalPair]:
    pairs = [_pair(record, paradigm, place) for place, record in records]
    expected = f"expected the published {PAIRS_PER_PARADIGM}; fetch it again"
    if len(pairs) != PAIRS_PER_PARADIGM:
        raise FileFormatError(f"{source} holds {len(pairs)} pairs: {expected}")
    if len({pair.pair for pair in pairs}) != len(pairs):
        raise FileFormatError(f"{source} holds a pair number twice: {expected}")
    return pairs


def _pair(record: Mapping[str, Any], paradigm: str, place: str) -> MinimalPair:
    column = next((name for name in _PAIR_COLUMNS if name in record), _PAIR_COLUMNS[0])
    missing = [name for name in ("sentence_good", "sentence_bad", "UID", column) if name not in record]
    if missing:
        raise FileFormatError(f"{place} has no column {', '.join(missing)}: expected BLiMP's columns as published")
    if record["UID"] != PARADIGM_FILES[paradigm]:
        raise FileFormatError(f"{place} is of the paradigm {record['UID']}: expected {PARADIGM_FILES[paradigm]}")
    pair, good, bad = record[column], record["sentence_good"], record["sentence_bad"]
    if not isinstance(good, str) or not isinstance(bad, str) or type(pair) not in (str, int):
        values = f"{column}={pair!r}, sentence_good={good!r}, sentence_bad={bad!r}"
        raise FileFormatError(f"{place} has {values}: expected a number and two texts, as published")
    return MinimalPair(paradigm, str(pair), good, bad)


def pairs_on_hub(paradigm: str) -> list[MinimalPair]:
    """Read a paradigm of `nyu-mll/blimp` by `datasets`, from its cache or, raising OfflineError, over the network."""
    from datasets import config, load_dataset

    name = PARADIGM_FILES[paradigm]
    source = f"{HUB_NAME} ({name})"
    reason = why_no_hub(f"datasets/{HUB_NAME}", "HF_DATASETS_OFFLINE")
    if reason is not None and not (Path(config.HF_DATASETS_CACHE) / HUB_NAME.replace("/", "___") / name).is_dir():
        why = f"{reason}, and it is not in the local cache"
        raise OfflineError(f"cannot load {source} from the hub: {why}; try again with a network, {_OTHER_WAY}")
    try:
        table = load_dataset(HUB_NAME, name, split="train")
    except OSError as error:
        raise OfflineError(f"cannot load {source} from the hub: {error}; try again, {_OTHER_WAY}") from error
    return _pairs([(f"{source}, row {row}", record) for row, record in enumerate(table)], paradigm, source)


FIVE = tuple(PARADIGM_FILES)
# In the order in which a pair passes them; another tokenizer's filter comes later, see `pieces`.
READ, EXPANDED, ONE_WORD, CUE = "read", "contractions expanded", "differ in one word", "cue found"


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
    by_name = [pairs_on_hub(name) if folder is None else pairs_in_folder(folder, name) for name in names]
    return _examples([pair for pairs in by_name for pair in pairs], names, cannot)


def _short_names(paradigms: Sequence[str]) -> tuple[str, ...]:
    if isinstance(paradigms, str):
        raise InputTypeError(f"paradigms is a string: expected a list, such as [{paradigms!r}]")
    if not paradigms:
        raise InputError(f"paradigms is empty: expected some of {', '.join(FIVE)}")
    short = {file: name for name, file in PARADIGM_FILES.items()}
    names = tuple(short.get(name, name) for name in (one_of("paradigm", name, [*FIVE, *short]) for name in paradigms))
    if len(set(names)) != len(names):
        raise InputError(f"paradigms are {list(paradigms)}: expected each at most once")
    return names


def _examples(pairs: Sequence[MinimalPair], names: tuple[str, ...], cannot: str) -> ExampleSet:
    outcomes = [_example(pair, cannot) for pair in pairs]
    skipped = tuple(outcome for outcome in outcomes if isinstance(outcome, Skipped))
    left = Counter(pair.paradigm for pair in pairs)
    stages = []
    for stage in (READ, EXPANDED, ONE_WORD, CUE):
        left.subtract(skip.paradigm for skip in skipped if skip.stage == stage)
        stages.append(Stage(stage, {name: left[name] for name in names}))
    examples = tuple(outcome for outcome in outcomes if isinstance(outcome, Example))
    return ExampleSet(examples, FilterReport(tuple(stages), skipped))


def _example(pair: MinimalPair, cannot: str) -> Example | Skipped:
    """The pair as an example, or the stage that stops it."""
    stage = EXPANDED
    try:
        good, bad = (expand_contractions(split_words(sentence), cannot=cannot) for sentence in (pair.good, pair.bad))
        stage = ONE_WORD
        target = _differing_word(good, bad)
        stage = CUE
        cue, attractor = cue_by_template(pair.paradigm, good, target)
    except InputError as error:
        return Skipped(pair.id, pair.paradigm, stage, str(error))
    return Example(
        id=pair.id,
        paradigm=pair.paradigm,
        words=good,
        target=target,
        good=good[target],
        bad=bad[target],
        cue=(cue,),
        cue_source="template",
        attractor=attractor,
        pair=pair.pair,
        number=number_of(good[target], bad[target]),
    )


def _differing_word(good: tuple[str, ...], bad: tuple[str, ...]) -> int:
    if len(good) != len(bad):
        raise InputError(f"{len(good)} words in the good sentence, {len(bad)} in the bad one")
    differing = [index for index, (one, other) in enumerate(zip(good, bad, strict=True)) if one != other]
    if len(differing) != 1:
        raise InputError(f"the sentences differ in {len(differing)} words")
    return differing[0]
