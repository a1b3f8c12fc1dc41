"""Inputs of every kind: what is a sentence is read, what is none is refused with its reason, nothing is passed over."""

import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tl_vzero.corpus import source as source_module
from tl_vzero.corpus.source import Record, Refused, open_source
from tl_vzero.errors import FileFormatError, InputError, InputTypeError


def read(path: Path, **options: Any) -> list[Record | Refused]:
    source = open_source(path, **options)
    return [source.record(position, raw) for position, raw in enumerate(source.raws())]


def ids_and_texts(records: list[Record | Refused]) -> list[tuple[str, str]]:
    """(id, text or reason) of each record; positions must count."""
    assert [record.position for record in records] == list(range(len(records)))
    return [
        (record.id, record.text if isinstance(record, Record) else f"refused: {record.reason}") for record in records
    ]


def written(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def test_text_has_a_sentence_on_each_line(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"\xef\xbb\xbfone two\r\n\n \t\nthr\xc3\xa9e\nb\xffd\nN\0L\nlast")
    assert ids_and_texts(read(path)) == [
        ("0", "one two"),
        ("1", "refused: the text is empty"),
        ("2", "refused: the text is empty"),
        ("3", "thrée"),
        ("4", "refused: the line is no UTF-8: byte 0xff at 1"),
        ("5", "refused: the text holds a NUL character, first at 1"),
        ("6", "last"),
    ]
    origin = open_source(path).origin
    assert (origin.records, origin.n_bytes, origin.format) == (7, path.stat().st_size, "text")


@pytest.mark.parametrize("end", [b"", b"\n", b"\n\n", b"\r\n\r\n\r\n"], ids=repr)
@pytest.mark.parametrize(
    ("name", "content"),
    [("a.txt", b"one\n\ntwo"), ("a.jsonl", b'{"text": "one"}\n\n{"text": "two"}'), ("a.csv", b"text\none\n\ntwo")],
)
def test_empty_lines_at_the_end_are_no_records(tmp_path: Path, name: str, content: bytes, end: bytes) -> None:
    (first, (_, reason), last) = ids_and_texts(read(written(tmp_path, name, content + end)))
    assert (first, last) == (("0", "one"), ("2", "two")) and reason.endswith("is empty")


def test_a_huge_line_is_refused_and_never_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "LONGEST_LINE", 10)
    content = b"a" * 10 + b"\n" + b"b" * 11 + b"\r\n" + b"c" * 57 + b"\nshort\n" + b"d" * 23
    path = written(tmp_path, "a.txt", content)
    assert ids_and_texts(read(path)) == [
        ("0", "a" * 10),
        ("1", "refused: the line has 12 bytes: expected at most 10"),
        ("2", "refused: the line has 57 bytes: expected at most 10"),
        ("3", "short"),
        ("4", "refused: the line has 23 bytes: expected at most 10"),
    ]


def test_json_lines_have_a_text_and_perhaps_an_id(tmp_path: Path) -> None:
    rows = [
        b'{"id": "first", "sentence": "one"}',
        b'{"sentence": "two", "id": 7}',
        b'{"sentence": "three"}',
        b'{"sentence": "cut off',
        b'["a", "list"]',
        b'{"id": "x", "other": "y"}',
        b'{"id": [1], "sentence": "four"}',
        b'{"sentence": 5}',
        b'{"sentence": null}',
        b'{"sentence": "half \\ud83d"}',
        b"[" * 5000,
        b"9" * 5000,
        b"",
        b'{"sentence": "\\u00e9nd", "id": ""}',
    ]
    rows_read = ids_and_texts(read(written(tmp_path, "a.jsonl", b"\n".join(rows))))
    assert rows_read[:3] == [("first", "one"), ("7", "two"), ("2", "three")]
    assert [name for name, _ in rows_read[3:]] == ["3", "4", "x", "6", "7", "8", "9", "10", "11", "12", "13"]
    reasons = [text for _, text in rows_read[3:-1]]
    parts = ["no JSON", "is list", "no column 'sentence'", "the id is list", "is int", "no text", "half of a surrogate"]
    for reason, part in zip(reasons, parts, strict=False):
        assert reason.startswith("refused") and part in reason
    assert "nested too deeply" in reasons[7] and "no JSON" in reasons[8] and "line is empty" in reasons[9]
    assert rows_read[-1] == ("13", "énd")


def test_csv_rows_have_cells_in_quotes(tmp_path: Path) -> None:
    content = (
        'id,text,more\n1,"one, two",x\n,three,y\n\n4,four\n5,"fi""ve",z\n6,b\udcffd,z\n7,"two\nlines",z\n8,"a"b,c\n'
        '9,nine,z\n10,"never closed,z\n11,eleven,z\n'
    )
    path = written(tmp_path, "a.csv", content.encode("utf-8", "surrogateescape"))
    assert ids_and_texts(read(path)) == [
        ("1", "one, two"),
        ("1", "three"),
        ("2", "refused: the line is empty"),
        ("4", 'refused: 2 cells for 3 columns: expected a sentence with commas in "quotes"'),
        ("5", 'fi"ve'),
        ("6", "refused: the text is no UTF-8: byte 0xff at character 1"),
        ("7", "two\nlines"),
        ("7", "refused: line 10: ',' expected after '\"'"),
        ("9", "nine"),
        ("9", "refused: lines 12 to 13: unexpected end of data"),
    ]


def test_a_long_line_of_csv_is_one_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source_module, "LONGEST_LINE", 20)
    path = written(tmp_path, "a.csv", b"text\none\n" + b"x" * 500 + b"\ntwo\n")
    rows_read = ids_and_texts(read(path))
    assert [name for name, _ in rows_read] == ["0", "1", "2"]
    assert "line 3: the line has 500 bytes" in rows_read[1][1]
    assert rows_read[2] == ("2", "two")


def test_tabs_part_the_columns_of_tsv(tmp_path: Path) -> None:
    assert ids_and_texts(read(written(tmp_path, "a.tsv", b"id\ttext\na\tone, two\n"))) == [("a", "one, two")]


def parquet(path: Path, **columns: Any) -> Path:
    pq.write_table(pa.table(columns), path, row_group_size=2)
    return path


def test_parquet_rows(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", id=[5, 6, None], sentence=["one", None, "three"], n=[1, 2, 3])
    assert ids_and_texts(read(path)) == [("5", "one"), ("6", "refused: no text"), ("2", "three")]
    assert open_source(path).origin.records == 3


def test_parquet_with_coded_strings_and_a_column_that_is_named(tmp_path: Path) -> None:
    coded = pa.array(["b", "a", "b"]).dictionary_encode()
    path = parquet(tmp_path / "a.parquet", what=coded, other=["x", "y", "z"], key=["k", "l", "m"])
    assert ids_and_texts(read(path, text_column="what", id_column="key")) == [("k", "b"), ("l", "a"), ("m", "b")]


def test_parquet_whose_bytes_are_no_utf8(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 2, pa.array([b"good", b"b\xffd"]).buffers())
    rows_read = ids_and_texts(read(parquet(tmp_path / "a.parquet", text=broken)))
    assert rows_read == [("0", "good"), ("1", "refused: the text is no UTF-8: byte 0xff at character 1")]


def test_a_dataset_in_a_folder(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_dict({"id": ["a", "b"], "text": ["one", None]})
    rows.save_to_disk(str(tmp_path / "saved"))
    assert ids_and_texts(read(tmp_path / "saved")) == [("a", "one"), ("b", "refused: no text")]
    datasets.DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "both"))
    with pytest.raises(InputError, match="expected one of train, test"):
        open_source(tmp_path / "both")
    assert len(read(tmp_path / "both", split="test")) == 2
    assert open_source(tmp_path / "both", split="test").origin.split == "test"


def test_the_column_with_the_sentence(tmp_path: Path) -> None:
    path = written(tmp_path, "a.csv", b"good,bad\none,two\n")
    with pytest.raises(FileFormatError, match="which holds the sentence"):
        open_source(path)
    assert ids_and_texts(read(path, text_column="bad", id_column="good")) == [("one", "two")]
    with pytest.raises(FileFormatError, match="no column 'goood'"):
        open_source(path, text_column="goood")
    with pytest.raises(FileFormatError, match="no column 'uid' with ids"):
        open_source(path, text_column="good", id_column="uid")
    lone = written(tmp_path, "a.jsonl", json.dumps({"n": 1, "words": "one"}).encode())
    assert ids_and_texts(read(lone)) == [("0", "one")]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "is empty"),
        ("a.txt", "one\n".encode("utf-16"), "UTF-16"),
        ("a.csv", b'"never closed', "no header"),
        ("a.csv", b"\nx\n", "no header"),
        ("a.parquet", b"PAR1 nothing of the kind", "expected a Parquet file"),
        ("a.pdf", b"%PDF", "ends with .pdf"),
        ("a.csv", b"id;text\n1;one\n", "one column, 'id;text', which holds semicolons: expected commas"),
        ("a.csv", b"id\ttext\n1\tone\n", "holds tabs: expected commas between columns"),
        ("a.tsv", b"id,text\n1,one\n", "holds commas: expected tabs between columns"),
        ("a.csv", b"text,id,text\none,1,two\n", "the column 'text' twice"),
        ("a.tsv", b"text\ttext\none\ttwo\n", "the column 'text' twice"),
    ],
)
def test_files_of_no_known_form_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    with pytest.raises(FileFormatError, match=message):
        open_source(written(tmp_path, name, content))


def test_a_column_that_parquet_has_twice_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    table = pa.Table.from_arrays([pa.array(["one"]), pa.array([1]), pa.array(["two"])], names=["text", "id", "text"])
    pq.write_table(table, path)
    with pytest.raises(FileFormatError, match="the column 'text' twice"):
        open_source(path)


def test_an_object_that_has_a_key_twice_is_refused_and_the_next_is_read(tmp_path: Path) -> None:
    path = written(tmp_path, "a.jsonl", b'{"text": "one", "text": "two"}\n{"text": "three", "n": NaN}')
    assert ids_and_texts(read(path)) == [
        ("0", "refused: the line is no JSON: the key 'text' occurs twice"),
        ("1", "three"),
    ]


def test_arguments_that_do_not_fit(tmp_path: Path) -> None:
    path = written(tmp_path, "a.txt", b"one\n")
    with pytest.raises(FileFormatError, match=r"no file .*--format datasets"):
        open_source(tmp_path / "nothing.txt")
    with pytest.raises(InputError, match="unknown input format 'xml'"):
        open_source(path, input_format="xml")
    with pytest.raises(InputError, match="has no columns"):
        open_source(path, text_column="text")
    with pytest.raises(InputError, match="split='train' given for a file"):
        open_source(path, split="train")
    assert ids_and_texts(read(path, input_format="text")) == [("0", "one")]


def test_a_path_must_be_a_path() -> None:
    from support.state import type_checks_off

    with type_checks_off(), pytest.raises(InputTypeError, match="the input is int"):
        open_source(3)  # type: ignore[arg-type]


def test_a_damaged_parquet_file_ends_the_reading_in_words(tmp_path: Path) -> None:
    path = parquet(tmp_path / "a.parquet", text=[f"sentence {n}" for n in range(500)])
    content = bytearray(path.read_bytes())
    content[20:2000] = bytes(1980)
    path.write_bytes(bytes(content))
    with pytest.raises(FileFormatError, match=r"a\.parquet"):
        read(path)
