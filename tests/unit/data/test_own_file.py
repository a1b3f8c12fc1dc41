"""A user's own tables: every column, and every fault with its line."""

import json
import os
from pathlib import Path

import pytest

from tl_vzero.data.own_file import read_examples
from tl_vzero.errors import FileFormatError, InputError


def csv(folder: Path, text: str) -> Path:
    path = folder / "mine.csv"
    path.write_text(text, encoding="utf-8")
    return path


def jsonl(folder: Path, *rows: object) -> Path:
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_every_column(tmp_path: Path) -> None:
    path = csv(
        tmp_path,
        "id,pair,paradigm,sentence,target,good,bad,cue,attractor,number,split\n"
        'x,p,q,"The dogs, near cats [MASK] loudly.",,bark,barks,dogs,cats,plural,test\n',
    )
    example = read_examples(path)[0]
    assert example.words == ("The", "dogs", ",", "near", "cats", "bark", "loudly", ".")
    assert (example.target, example.good, example.bad) == (5, "bark", "barks")
    assert (example.cue, example.attractor, example.cue_source) == ((1,), (4,), "given")
    assert (example.id, example.pair, example.paradigm, example.number, example.split) == (
        "x",
        "p",
        "q",
        "plural",
        "test",
    )


def test_only_what_is_needed(tmp_path: Path) -> None:
    example = read_examples(csv(tmp_path, "sentence,target,cue\nThe dogs are old.,are,dogs\n"))[0]
    assert (example.id, example.pair, example.paradigm, example.bad) == ("mine-2", "mine-2", "mine", None)
    assert (example.number, example.split) == ("plural", None)


def test_indices_count_between_spaces(tmp_path: Path) -> None:
    """The commas that become words of their own do not shift the user's indices."""
    text = 'sentence,target,cue\n"Yes, yes, the dogs bark.",4,3 2\n'
    example = read_examples(csv(tmp_path, text))[0]
    assert [example.words[i] for i in (example.target, *example.cue)] == ["bark", "dogs", "the"]


@pytest.mark.parametrize("cue", [1, "1", "dogs", [1], ["dogs"]])
def test_json_lines(tmp_path: Path, cue: object) -> None:
    row = {"sentence": "The dogs bark.", "target": 2, "bad": "barks", "cue": cue, "attractor": []}
    path = jsonl(tmp_path, row)
    path.write_text("\n" + path.read_text())
    example = read_examples(path)[0]
    assert (example.id, example.target, example.cue, example.attractor) == ("mine-2", 2, (1,), ())


def test_a_byte_order_mark_is_no_column(tmp_path: Path) -> None:
    assert len(read_examples(csv(tmp_path, "\ufeffsentence,target,cue\nDogs bark.,bark,Dogs\n"))) == 1


@pytest.mark.parametrize("end", ["\n", "\n \n", ",,\n", " , ,,,,\n\n"])
def test_rows_without_anything_at_the_end_are_none(tmp_path: Path, end: str) -> None:
    assert len(read_examples(csv(tmp_path, f"sentence,target,cue\nDogs bark.,bark,Dogs\n{end}"))) == 1


def test_cues_by_parse(tmp_path: Path) -> None:
    path = csv(tmp_path, "sentence,good,bad\nThe dogs in this house [MASK] barking loudly.,are,is\n")
    example = read_examples(path, cues="spacy")[0]
    assert (example.cue, example.parsed_cue, example.cue_source) == ((1,), (1,), "spacy")


def test_a_parse_without_a_cue(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"line 2: the parse finds no cue of the target 'Bark'"):
        read_examples(csv(tmp_path, "sentence,target\nBark at the dogs!,Bark\n"), cues="spacy")


ROW = "The dogs see the dogs."


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sentence,target,cue\nThe dogs bark.,bark,7\n", "line 2: cue 7 is outside the sentence .* expected 0 to 2"),
        ("sentence,target,cue\nThe dogs bark.,bark,cats\n", "line 2: the cue 'cats' occurs 0 times"),
        (f"sentence,target,cue\n{ROW},see,dogs\n", "line 2: the cue 'dogs' occurs 2 times .* or an index"),
        ("sentence,target,cue\nThe dogs bark.,barks,dogs\n", "line 2: the target 'barks' occurs 0 times"),
        ("sentence,target,cue\nThe dogs bark.,9,dogs\n", "line 2: target 9 is outside"),
        ("sentence,target,cue\nThe dogs bark.,,dogs\n", "line 2: the target is None: expected one word"),
        ("sentence,target,cue\nThe dogs bark.,dogs bark,The\n", "line 2: the target is 'dogs bark': expected one word"),
        ("sentence,target,cue\nThe dogs bark.,dogs,dogs\n", "line 2: .*as cue or attractor"),
        ("sentence,target,cue\nDogs bark.,bark,Dogs\nCats purr.,purr,\n", "line 3: no cue"),
        ("sentence,target,cue\n ,bark,dogs\n", "line 2: the sentence is ' '"),
        ("sentence,cue\nThe dogs [MASK].,dogs\n", r"line 2: no good form, and the sentence has \[MASK\]"),
        ("sentence,cue,good\n[MASK] dogs [MASK].,dogs,bark\n", r"line 2: 2 words are \[MASK\]"),
        (
            "sentence,target,cue,good\nThe dogs bark.,bark,dogs,sit\n",
            "line 2: good is 'sit', and the sentence has 'bark'",
        ),
        ("sentence,target,cue,bad\nThe dogs bark.,bark,dogs,bark\n", "line 2: .*expected two forms"),
        (
            "sentence,target,cue,split\nDogs bark.,bark,Dogs,trian\n",
            "line 2: unknown split 'trian'.*did you mean 'train'",
        ),
        ("sentence,target,cue,number\nDogs bark.,bark,Dogs,two\n", "line 2: unknown number 'two'"),
        ("id,sentence,target,cue\nx,Dogs bark.,bark,Dogs\nx,Dogs run.,run,Dogs\n", "the id 'x' more than once"),
    ],
)
def test_a_fault_in_a_row(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_examples(csv(tmp_path, text))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has no sentences"),
        ("sentence,target,cue\n", "has no sentences"),
        ("text,target,cue\nDogs bark.,bark,Dogs\n", "has no column sentence: .*it has cue, target, text"),
        ("sentence,target\nDogs bark.,bark\n", 'has no column cue: .*cues="spacy"'),
        ("sentence,target,cue\nYes, dogs bark.,bark,dogs\n", 'line 2 has more cells .* "quotes"'),
        ("sentence;target;cue\nDogs bark.;bark;Dogs\n", "one column, 'sentence;target;cue', which holds semicolons"),
        ("sentence\ttarget\tcue\nDogs bark.\tbark\tDogs\n", "holds tabs: expected commas between columns"),
        ("sentence,cue,target,cue\nDogs bark.,Dogs,bark,bark.\n", "the column 'cue' twice"),
        ('sentence,target,cue\n"Dogs bark.,bark,Dogs\n', "no row of a CSV file: unexpected end of data"),
        ('sentence,target,cue\n"Dogs" bark.,bark,Dogs\n', "line 2 is no row of a CSV file"),
        (f"sentence,target,cue\n{'a' * 200_000},bark,Dogs\n", "line 2 is no row of a CSV file: field larger"),
    ],
)
def test_a_fault_in_the_table(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        read_examples(csv(tmp_path, text))


def test_a_fault_in_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileFormatError, match="no file"):
        read_examples(tmp_path / "nothing.csv")
    other = tmp_path / "mine.xlsx"
    other.write_bytes(b"")
    with pytest.raises(FileFormatError, match=r"ends with \.xlsx: expected \.csv or \.jsonl"):
        read_examples(other)
    binary = tmp_path / "mine.csv"
    binary.write_bytes(b"sentence\xff\xfe\n")
    with pytest.raises(FileFormatError, match="no text in UTF-8"):
        read_examples(binary)
    with pytest.raises(InputError, match="unknown source of cues 'spaCy'"):
        read_examples(binary, cues="spaCy")


def test_a_pipe_or_a_device_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "zero.csv").symlink_to("/dev/zero")
    os.mkfifo(tmp_path / "pipe.csv")
    for name in ("zero.csv", "pipe.csv"):
        with pytest.raises(FileFormatError, match=name):
            read_examples(tmp_path / name)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"sentence": "Dogs bark.", "cue": "Dogs", "target": "bark", "cue": "bark"}',
            "line 1 .*key 'cue' occurs twice",
        ),
        ('{"sentence": ' + "[" * 200_000, "line 1 is no JSON .*nested"),
        ('{"target": ' + "9" * 5000 + "}", "line 1 is no JSON .*digits"),
    ],
)
def test_json_lines_made_to_harm(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "mine.jsonl").write_text(line)
    with pytest.raises(FileFormatError, match=message):
        read_examples(tmp_path / "mine.jsonl")


@pytest.mark.parametrize("column", ["good", "bad", "id", "pair", "paradigm"])
@pytest.mark.parametrize("cell", [["bark"], {"a": 1}, 1.5, True, float("nan")])
def test_a_cell_of_another_type_is_refused(tmp_path: Path, column: str, cell: object) -> None:
    row = {"sentence": "Dogs [MASK] loudly.", "good": "bark", "cue": "Dogs", column: cell}
    with pytest.raises(InputError, match=f"line 1: {column} is .*: expected a text"):
        read_examples(jsonl(tmp_path, row))


def test_an_index_of_thousands_of_digits_is_refused(tmp_path: Path) -> None:
    for column in ("target", "cue"):
        row = {"sentence": "Dogs bark.", "target": "bark", "cue": "Dogs", column: "9" * 5000}
        with pytest.raises(InputError, match=f"line 1: the {column} '9+' occurs 0 times"):
            read_examples(jsonl(tmp_path, row))


def test_unicode_line_separators_do_not_end_a_line(tmp_path: Path) -> None:
    """Unicode has other separators of lines; JSON may hold them as they are."""
    path = tmp_path / "mine.jsonl"
    row = {"sentence": "Dogs bark.", "target": "bark", "cue": "Dogs", "id": "a\u2028b\x85c"}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert read_examples(path)[0].id == "a\u2028b\x85c"


def test_broken_json_lines_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"sentence": "Dogs bark."\n')
    with pytest.raises(FileFormatError, match="line 1 is no JSON"):
        read_examples(path)
    with pytest.raises(FileFormatError, match="line 1 is list"):
        read_examples(jsonl(tmp_path, ["Dogs bark."]))


@pytest.mark.parametrize(
    ("cue", "message"), [(True, "holds True"), (0.5, "is 0.5"), ({"a": 0}, "is {'a': 0}"), ([None], "holds None")]
)
def test_cues_of_other_types(tmp_path: Path, cue: object, message: str) -> None:
    with pytest.raises(InputError, match=f"line 1: cue {message}: expected words or indices"):
        read_examples(jsonl(tmp_path, {"sentence": "Dogs bark.", "target": "bark", "cue": cue}))


def test_the_line_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(InputError) as caught:
        read_examples(csv(tmp_path, "sentence,cue\nThe dogs [MASK].,dogs\n"))
    assert str(caught.value).count("line 2") == 1
