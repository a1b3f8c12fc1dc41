"""A user's own sentences as examples, from a table in CSV or JSON lines; and cues by spaCy's dependency parse."""

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from tl_vzero.choices import one_of
from tl_vzero.data.examples import (
    ALL,
    HALVES,
    Example,
    ExampleSet,
    Number,
    frame_of,
    number_of,
    split_words,
    word_of_chunk,
)
from tl_vzero.errors import FileFormatError, InputError
from tl_vzero.files import check_header, parse_row, read_text
from tl_vzero.words import english_parser

if TYPE_CHECKING:
    import pandas as pd

MASK = "[MASK]"
LONGEST_INDEX = 9  # digits; Python reads no integer of thousands of them
COLUMNS = "sentence target cue good bad attractor paradigm id pair number split".split()
REQUIRED = {"given": ("sentence", "cue"), "spacy": ("sentence",)}

Row = Mapping[str, Any]


def read_examples(path: str | Path, *, cues: str = "given") -> ExampleSet:
    """Sentences from a file `.csv` or `.jsonl`, one per row; empty cells count as left out.

    - `sentence`: the text, with [MASK] at the target or with its right form
    - `target`: the target word, or its index; needed where the sentence has no [MASK]
    - `good`, `bad`: the right form, needed where the sentence has [MASK], and the wrong form, if there is one
    - `cue`: words or indices, several between spaces (in JSON lines also a list). With `cues="spacy"` the dependency
      parse finds them, and no column is needed
    - `attractor`, `paradigm`, `id`, `pair`, `number` (singular or plural), `split` (train or test): if wanted

    Indices count what stands between spaces, from 0. A word that occurs twice has to be given by its index.

    Raises FileFormatError for a file that cannot be read, has no rows, lacks a column or has one twice, or parts its
    columns by other signs than commas; InputError, with the line, for a target or cue that is not in the sentence or
    more than once, and for a sentence in which the parse finds no cue; DependencyError without a parser.
    Whether targets are one token is for `keep_one_piece_targets` to say.

    >>> from tempfile import TemporaryDirectory
    >>> with TemporaryDirectory() as folder:
    ...     path = Path(folder) / "mine.csv"
    ...     _ = path.write_text("sentence,target,bad,cue\\nThe dogs near us bark.,bark,barks,dogs\\n")
    ...     read_examples(path)[0]
    Example('mine-2': 'The dogs near us [bark|barks].', cue 'dogs')
    """
    one_of("source of cues", cues, REQUIRED)
    source = Path(path)
    lines = [_Line(source, line, row) for line, row in _rows(source)]
    if not lines:
        raise FileFormatError(f"{source} has no sentences: expected one per row")
    _check_columns(source, lines, cues)
    cue_words = [line.cue() for line in lines] if cues == "given" else _parsed(lines)
    examples = ExampleSet.as_read(line.example(cue, cues) for line, cue in zip(lines, cue_words, strict=True))
    repeated = [name for name, count in Counter(example.id for example in examples).items() if count > 1]
    if repeated:
        raise InputError(f"{source} has the id {repeated[0]!r} more than once: expected another for every sentence")
    return examples


def _rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The rows with the line they end on, without empty cells."""
    if not path.is_file():
        raise FileFormatError(f"no file {path}: expected sentences as .csv or .jsonl")
    reader = {".csv": _csv_rows, ".jsonl": json_rows}.get(path.suffix.lower())
    if reader is None:
        raise FileFormatError(f"{path} ends with {path.suffix or 'no suffix'}: expected .csv or .jsonl")
    for line, row in reader(path):
        yield line, {name: cell for name, cell in row.items() if cell is not None and cell != ""}


def _csv_rows(path: Path) -> Iterator[tuple[int, Row]]:
    reader = csv.reader(StringIO(read_text(path), newline=""), strict=True)
    try:
        header = next(reader, [])
        check_header(path, header, ",")
        for cells in reader:
            if not any(cell.strip() for cell in cells):  # a spreadsheet may end with rows of commas
                continue
            if len(cells) > len(header):
                place = f"{path}, line {reader.line_num}"
                raise FileFormatError(f'{place} has more cells than columns: expected commas of a sentence in "quotes"')
            yield reader.line_num, dict(zip(header, cells, strict=False))
    except csv.Error as error:
        raise FileFormatError(f"{path}, line {reader.line_num} is no row of a CSV file: {error}") from error


def json_rows(path: Path) -> Iterator[tuple[int, Row]]:
    """The object on every line of a file, with the line, from 1; raises FileFormatError for anything else."""
    # Not splitlines: JSON may hold what separates lines elsewhere.
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            row = parse_row(text)
        except ValueError as error:
            raise FileFormatError(f"{path}, line {line} is no JSON ({error}): expected one object per line") from error
        if not isinstance(row, dict):
            raise FileFormatError(f"{path}, line {line} is {type(row).__name__}: expected an object with columns")
        yield line, row


def _check_columns(path: Path, lines: Sequence["_Line"], cues: str) -> None:
    present = {name for line in lines for name in line.row}
    missing = [name for name in REQUIRED[cues] if name not in present]
    if missing:
        hint = ', or cues="spacy" to have cues found by a dependency parse' if "cue" in missing else ""
        expected = f"expected {', '.join(COLUMNS)}{hint}; it has {', '.join(sorted(present)) or 'none'}"
        raise FileFormatError(f"{path} has no column {', '.join(missing)}: {expected}")


def _parsed(lines: Sequence["_Line"]) -> list[tuple[int, ...]]:
    parsed = list(cues_by_parse([line.good_words for line in lines], [line.target for line in lines]))
    for line, cue in zip(lines, parsed, strict=True):
        if not cue:
            raise line.error(f"the parse finds no cue of the target {line.good!r}; give the cues of all rows instead")
    return parsed


@dataclass(frozen=True)
class _Line:
    """One row, read step by step so that an error names its line."""

    path: Path
    line: int
    row: Row

    def error(self, message: str) -> InputError:
        return InputError(f"{self.path}, line {self.line}: {message}")

    @property
    def sentence(self) -> str:
        sentence = self.row.get("sentence")
        if not isinstance(sentence, str) or not sentence.strip():
            raise self.error(f"the sentence is {sentence!r}: expected a text")
        return sentence

    @property
    def words(self) -> tuple[str, ...]:
        return split_words(self.sentence)

    @property
    def good_words(self) -> tuple[str, ...]:
        return (*self.words[: self.target], self.good, *self.words[self.target + 1 :])

    @property
    def target(self) -> int:
        masks = [index for index, word in enumerate(self.words) if word == MASK]
        if len(masks) > 1:
            raise self.error(f"{len(masks)} words are {MASK}: expected one target")
        targets = masks or self._indices("target")
        if len(targets) != 1:
            target = self.row.get("target")
            raise self.error(f"the target is {target!r}: expected one word or index, or {MASK} in the sentence")
        return targets[0]

    @property
    def good(self) -> str:
        in_sentence = self.words[self.target]
        good = self.row.get("good", None if in_sentence == MASK else in_sentence)
        if good is None:
            raise self.error(f"no good form, and the sentence has {MASK}: expected the right form in the column good")
        if in_sentence not in (MASK, good):
            raise self.error(f"good is {good!r}, and the sentence has {in_sentence!r} at its target: expected one")
        return self._text("good", good)

    def cue(self) -> tuple[int, ...]:
        cue = self._indices("cue")
        if not cue:
            raise self.error("no cue: expected at least one word or index")
        return cue

    def example(self, cue: tuple[int, ...], cues: str) -> Example:
        row, name = self.row, f"{self.path.stem}-{self.line}"
        bad = self._text("bad", row["bad"]) if "bad" in row else None
        words, target, good, attractor = self.good_words, self.target, self.good, self._indices("attractor")
        try:
            return Example(
                id=self._text("id", row.get("id", name)),
                paradigm=self._text("paradigm", row.get("paradigm", self.path.stem)),
                words=words,
                target=target,
                good=good,
                bad=bad,
                cue=cue,
                cue_source="spacy" if cues == "spacy" else "given",
                attractor=attractor,
                pair=self._text("pair", row.get("pair", row.get("id", name))),
                number=self._one_of("number", get_args(Number)) or number_of(good, bad),
                split=self._one_of("split", HALVES),
                parsed_cue=cue if cues == "spacy" else None,
            )
        except InputError as error:
            raise self.error(str(error)) from error

    def _text(self, column: str, cell: object) -> str:
        if isinstance(cell, bool) or not isinstance(cell, str | int):
            raise self.error(f"{column} is {cell!r}: expected a text")
        return str(cell)

    def _one_of(self, column: str, choices: tuple[Any, ...]) -> Any:
        cell = self.row.get(column)
        return None if cell is None else one_of(column, cell, choices)

    def _indices(self, column: str) -> tuple[int, ...]:
        cell = self.row.get(column, ())
        parts = cell.split() if isinstance(cell, str) else [cell] if isinstance(cell, int) else cell
        if not isinstance(parts, list | tuple):
            raise self.error(f"{column} is {cell!r}: expected words or indices")
        return tuple(self._index(column, part) for part in parts)

    def _index(self, column: str, part: object) -> int:
        if isinstance(part, bool) or not isinstance(part, int | str):
            raise self.error(f"{column} holds {part!r}: expected words or indices")
        chunks = word_of_chunk(self.sentence)
        if isinstance(part, int) or (part.isdecimal() and len(part) <= LONGEST_INDEX):
            if not 0 <= int(part) < len(chunks):
                where = f"outside the sentence {self.sentence!r}"
                raise self.error(f"{column} {part} is {where}: expected 0 to {len(chunks) - 1}")
            return chunks[int(part)]
        count = self.words.count(part)
        if count != 1:
            how_often = f"occurs {count} times in the sentence {self.sentence!r}"
            raise self.error(f"the {column} {part!r} {how_often}: expected a word that occurs once, or an index")
        return self.words.index(part)


# Cues by spaCy's dependency parse: for free text, and to check the cues that a rule or a user gives.


SUBJECTS = frozenset({"nsubj", "nsubjpass"})
# What shares the subject of the word above it: auxiliaries, and a verb joined by "and".
SHARING = frozenset({"aux", "auxpass", "conj"})


def cues_by_parse(sentences: Sequence[Sequence[str]], targets: Sequence[int]) -> Iterator[tuple[int, ...]]:
    """The cue of each target, one tuple of word indices for each sentence in order, () where the parse shows none.

    For a determiner, the noun that it belongs to; for a reflexive pronoun, the subject of the nearest verb above it
    that has one; for a verb or an auxiliary, the subject of its verb group, or of the verb that it is joined to by
    a conjunction.
    Raises DependencyError without an English parser.

    >>> list(cues_by_parse([["The", "dogs", "in", "this", "house", "are", "barking", "."]], [5]))
    [(1,)]
    """
    from spacy.tokens import Doc

    parser = english_parser()
    # Built from words, so that the parser cuts none again and its indices are ours.
    documents = (Doc(parser.vocab, words=list(words)) for words in sentences)
    for document, target in zip(parser.pipe(documents), targets, strict=True):
        yield _cue(document[target])


def with_parsed_cues(examples: ExampleSet) -> ExampleSet:
    """The same examples with the parse's cue as `parsed_cue`; raises DependencyError without an English parser."""
    cues = cues_by_parse([example.words for example in examples], [example.target for example in examples])
    parsed = tuple(replace(example, parsed_cue=cue) for example, cue in zip(examples, cues, strict=True))
    return replace(examples, examples=parsed)


def _cue(token: Any) -> tuple[int, ...]:
    if token.dep_ == "det":
        return (token.head.i,)
    if token.lower_.endswith(("self", "selves")):
        return next((subjects for ancestor in token.ancestors if (subjects := _subjects_of(ancestor))), ())
    return _subjects_of_group(token)


def _subjects_of_group(verb: Any) -> tuple[int, ...]:
    subjects = _subjects_of(verb)
    return _subjects_of_group(verb.head) if not subjects and verb.dep_ in SHARING else subjects


def _subjects_of(verb: Any) -> tuple[int, ...]:
    return tuple(child.i for child in verb.children if child.dep_ in SUBJECTS)


@dataclass(frozen=True)
class CueCount:
    """Of one paradigm: how often the parse finds the same cue, another word, or none."""

    paradigm: str
    parsed: int
    same: int
    other: int
    none: int


@dataclass(frozen=True)
class Disagreement:
    """One example in which the parse finds another cue; cues as words, empty where the parse finds none."""

    id: str
    paradigm: str
    text: str
    cue: str
    parsed_cue: str


@dataclass(frozen=True)
class CueCheck:
    """Counts by paradigm, the last of all together, and every example in which the two differ."""

    counts: tuple[CueCount, ...]
    disagreements: tuple[Disagreement, ...]

    def to_frame(self) -> "pd.DataFrame":
        """A pandas table of the counts, one row per paradigm and one for all."""
        return frame_of(CueCount, self.counts)

    def disagreements_frame(self) -> "pd.DataFrame":
        """A pandas table of the examples in which rule and parse differ."""
        return frame_of(Disagreement, self.disagreements)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain types."""
        return asdict(self)


def check_cues(examples: ExampleSet) -> CueCheck:
    """Parse each example and compare the parse's cue with the example's, which stays the one that is evaluated.

    Raises DependencyError without an English parser.

    >>> from tl_vzero.data.agreement_mini import agreement_examples
    >>> from tl_vzero.evaluate.sentences import limited
    >>> check_cues(limited(agreement_examples(), 2, 0)).counts[-1].parsed
    2
    """
    return compare_cues(with_parsed_cues(examples))


def compare_cues(examples: ExampleSet) -> CueCheck:
    """How often the parse of the examples that were parsed gives the same cue, and where it does not."""
    parsed = [example for example in examples if example.parsed_cue is not None]
    by_paradigm = {name: [example for example in parsed if example.paradigm == name] for name in examples.counts()}
    counts = tuple(_count(name, part) for name, part in (by_paradigm | {ALL: parsed}).items())
    return CueCheck(counts, tuple(_disagreement(example) for example in parsed if example.parsed_cue != example.cue))


def _disagreement(example: Example) -> Disagreement:
    rule, parse = (" ".join(example.words[index] for index in cue or ()) for cue in (example.cue, example.parsed_cue))
    return Disagreement(example.id, example.paradigm, example.text, rule, parse)


def _count(paradigm: str, parsed: Sequence[Example]) -> CueCount:
    same = sum(example.parsed_cue == example.cue for example in parsed)
    none = sum(not example.parsed_cue for example in parsed)
    return CueCount(paradigm, len(parsed), same, len(parsed) - same - none, none)
