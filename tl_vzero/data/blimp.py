"""BLiMP as examples: contractions written out, the one word that differs as target, its cue by template.

Data: Warstadt et al. (2020), *BLiMP: The Benchmark of Linguistic Minimal Pairs for English*, TACL. The five
paradigms are those of Mohebbi et al. (2023).
"""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from tl_vzero.data.blimp_pairs import PARADIGM_FILES, MinimalPair, pairs_in_folder, pairs_on_hub
from tl_vzero.data.cue_templates import cue_by_template
from tl_vzero.data.examples import Example
from tl_vzero.data.filtering import ExampleSet, FilterReport, Skipped, Stage
from tl_vzero.data.number import number_of
from tl_vzero.data.sentence_text import CANNOT, expand_contractions, split_words
from tl_vzero.errors import InputError, InputTypeError, unknown_name

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
    if cannot not in CANNOT:
        raise unknown_name("writing of can't", cannot, CANNOT)
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
