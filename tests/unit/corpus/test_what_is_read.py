"""What is read is what was hashed: an input that changes during a run, and shards that are not what was written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.corpora import assert_same_corpus, sentences, shards_of

import tl_vzero
from tl_vzero.corpus import checked, read_corpus, run_corpus
from tl_vzero.corpus import write as run_module
from tl_vzero.corpus.source import open_source
from tl_vzero.errors import FileFormatError, InputError

SHARD_SIZE, COUNT = 4, 14


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


def write_text(path: Path, lines: list[str]) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def write_jsonl(path: Path, lines: list[str]) -> Path:
    return write_text(path, [json.dumps({"text": line}) for line in lines])


def write_csv(path: Path, lines: list[str]) -> Path:
    return write_text(path, ["text", *(f'"{line}"' for line in lines)])


def write_parquet(path: Path, lines: list[str]) -> Path:
    pq.write_table(pa.table({"text": lines}), path, row_group_size=3)
    return path


def write_dataset(path: Path, lines: list[str]) -> Path:
    path.mkdir(exist_ok=True)
    write_jsonl(path / "train.jsonl", lines)
    return path


WRITERS: dict[str, Callable[[Path, list[str]], Path]] = {
    "in.txt": write_text,
    "in.jsonl": write_jsonl,
    "in.csv": write_csv,
    "in.parquet": write_parquet,
    "dataset": write_dataset,
}


def file_of(source: Path) -> Path:
    return source / "train.jsonl" if source.is_dir() else source


def changed_in_place(file: Path) -> None:
    content = bytearray(file.read_bytes())
    at = content.index(b"the ")
    content[at : at + 3] = b"her"
    file.write_bytes(bytes(content))


def with_its_time_put_back(file: Path) -> None:
    about = file.stat()
    changed_in_place(file)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def appended(file: Path) -> None:
    file.write_bytes(file.read_bytes() + file.read_bytes())


def replaced(file: Path) -> None:
    another = file.with_name("another")
    another.write_bytes(file.read_bytes())
    changed_in_place(another)
    another.replace(file)


def removed(file: Path) -> None:
    file.unlink()


CHANGES = [changed_in_place, with_its_time_put_back, cut, appended, replaced, removed]


def ends_in_words(model: Any, source: Path, out: Path, **options: Any) -> None:
    with pytest.raises(FileFormatError) as raised:
        run_corpus(model, source, out, shard_size=SHARD_SIZE, **options)
    assert str(source) in str(raised.value)
    assert not (out / "done").exists() or list((out / "done").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [(name, change) for name in ("in.txt", "in.parquet", "dataset") for change in CHANGES]
    + [(name, changed_in_place) for name in ("in.jsonl", "in.csv")],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_an_input_that_changes_before_it_is_read_again(
    model: Any, tmp_path: Path, name: str, change: Callable[[Path], None]
) -> None:
    source = WRITERS[name](tmp_path / name, sentences(COUNT))
    content = file_of(source).read_bytes()
    ends_in_words(model, source, tmp_path / "out", say=lambda message: change(file_of(source)))
    if change is changed_in_place:  # put back, the run goes on
        file_of(source).write_bytes(content)
        run = run_corpus(model, source, tmp_path / "out", shard_size=SHARD_SIZE)
        assert run.complete and run.sentences == COUNT


@pytest.mark.parametrize(
    ("name", "change"),
    [*(("in.txt", change) for change in CHANGES), ("dataset", changed_in_place), ("dataset", removed)],
    ids=lambda part: part if isinstance(part, str) else part.__name__,
)
def test_an_input_that_changes_once_a_shard_is_written(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[Path], None]
) -> None:
    source = WRITERS[name](tmp_path / name, sentences(COUNT))
    real = run_module._write_part

    def changing(job: Any, part: Any, *rest: Any) -> None:
        real(job, part, *rest)
        if part.shard == 1:
            change(file_of(source))

    monkeypatch.setattr(run_module, "_write_part", changing)
    ends_in_words(model, source, tmp_path / "out")


def test_an_input_that_changes_at_the_very_end(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_text(tmp_path / "in.txt", sentences(COUNT))
    real = run_module.ShardWriter.finish

    def changing(self: Any) -> Any:
        done = real(self)
        if done.shard == 3:
            appended(source)
        return done

    monkeypatch.setattr(run_module.ShardWriter, "finish", changing)
    ends_in_words(model, source, tmp_path / "out")


def test_an_input_that_was_another_for_a_moment(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after the run it is what it was; what is read between is not."""
    monkeypatch.setattr(checked, "BLOCK", 256)
    source = write_text(tmp_path / "in.txt", sentences(COUNT))
    content = source.read_bytes()
    real = run_module._parts

    def swapped(*arguments: Any) -> Any:
        source.write_bytes(content.replace(b"today.", b"her.  "))
        return real(*arguments)

    monkeypatch.setattr(run_module, "_parts", swapped)
    ends_in_words(model, source, tmp_path / "out")
    source.write_bytes(content)
    monkeypatch.undo()
    run_corpus(model, source, tmp_path / "out", shard_size=SHARD_SIZE)
    run_corpus(model, source, tmp_path / "whole", shard_size=SHARD_SIZE)
    assert_same_corpus(tmp_path / "out", tmp_path / "whole")


def test_an_input_that_is_only_touched_is_what_it_was(model: Any, tmp_path: Path) -> None:
    for name in ("in.txt", "dataset"):
        source = WRITERS[name](tmp_path / name, sentences(COUNT))
        content = file_of(source).read_bytes()
        run = run_corpus(
            model,
            source,
            tmp_path / f"out-{name}",
            shard_size=SHARD_SIZE,
            say=lambda message, source=source, content=content: file_of(source).write_bytes(content),
        )
        assert run.complete


@pytest.mark.parametrize("size", [1, 7, 64, 1000])
@pytest.mark.parametrize("name", list(WRITERS)[:-1])
def test_blocks_of_any_size_give_the_same_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, size: int
) -> None:
    source = WRITERS[name](tmp_path / name, sentences(COUNT))
    expected = [*open_source(source).raws()]
    monkeypatch.setattr(checked, "BLOCK", size)
    assert [*open_source(source).raws()] == expected and len(expected) == COUNT


def test_names_that_are_no_text(model: Any, tmp_path: Path) -> None:
    try:
        source = write_text(tmp_path / os.fsdecode(b"\xff.txt"), sentences(2))
    except OSError:
        pytest.skip("file names are text here")
    assert run_corpus(model, source, tmp_path / os.fsdecode(b"out\xff")).complete


@pytest.fixture(scope="module")
def whole(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    run_corpus(model, write_text(folder / "in.txt", sentences(COUNT)), folder / "out", shard_size=SHARD_SIZE)
    return folder / "out"


@pytest.fixture(scope="module")
def other(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another corpus with the same columns and as many rows."""
    folder = tmp_path_factory.mktemp("other")
    run_corpus(model, write_text(folder / "in.txt", sentences(COUNT, 1)), folder / "out", shard_size=SHARD_SIZE)
    return folder / "out"


def flip(path: Path, at: int) -> None:
    content = bytearray(path.read_bytes())
    content[at] ^= 1
    path.write_bytes(bytes(content))


def edited(path: Path) -> None:
    """Other numbers in a shard that is whole as a Parquet file, and says what it said of itself."""
    table = pq.read_table(path)
    tokens = table["tokens"].to_pylist()
    column = table.schema.get_field_index("tokens")
    table = table.set_column(column, table.schema.field(column), pa.array([words[::-1] for words in tokens]))
    pq.write_table(table, path, compression="zstd")


def note_edited(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def fitting_note(out: Path, shard: int) -> None:
    """What somebody does who edits a shard and knows of its note."""
    content = checked.Pieces()
    content.update(memoryview((out / "shards" / f"{shard:05d}.parquet").read_bytes()))
    note_edited(out / "done" / f"{shard:05d}.json", scores=content.written.model_dump())


def swap(one: Path, two: Path) -> None:
    one.rename(one.with_name("aside"))
    two.rename(one)
    one.with_name("aside").rename(two)


FORGED: dict[str, Callable[[Path, Path], object]] = {
    "a bit": lambda out, _: flip(out / "shards" / "00001.parquet", 300),
    "an edited shard": lambda out, _: edited(out / "shards" / "00001.parquet"),
    "two shards swapped": lambda out, _: swap(out / "shards" / "00001.parquet", out / "shards" / "00002.parquet"),
    "two notes swapped": lambda out, _: swap(out / "done" / "00001.json", out / "done" / "00002.json"),
    "a foreign shard": lambda out, other: shutil.copy(other / "shards" / "00001.parquet", out / "shards"),
    "a foreign note": lambda out, other: shutil.copy(other / "done" / "00001.json", out / "done"),
    "a foreign shard and its note": lambda out, other: (
        shutil.copy(other / "shards" / "00001.parquet", out / "shards"),
        shutil.copy(other / "done" / "00001.json", out / "done"),
    ),
    "a foreign shard and a note made for it": lambda out, other: (
        shutil.copy(other / "shards" / "00001.parquet", out / "shards"),
        fitting_note(out, 1),
    ),
    "a shard twice, and a note made for it": lambda out, other: (
        shutil.copy(out / "shards" / "00002.parquet", out / "shards" / "00001.parquet"),
        fitting_note(out, 1),
    ),
    "a note that is edited": lambda out, _: note_edited(out / "done" / "00001.json", shard=7),
    "a manifest that is edited": lambda out, _: note_edited(out / "manifest.json", layers=[0, 1, 2, 2]),
    "a shard that is gone": lambda out, _: (out / "shards" / "00001.parquet").unlink(),
    "a shard that is a link": lambda out, other: (
        (out / "shards" / "00001.parquet").rename(out / "shards" / "elsewhere"),
        (out / "shards" / "00001.parquet").symlink_to("elsewhere"),
    ),
    "shards that are a link": lambda out, other: (
        (out / "shards").rename(out / "elsewhere"),
        (out / "shards").symlink_to("elsewhere"),
    ),
}


@pytest.mark.parametrize("forged", FORGED)
def test_a_shard_that_is_not_what_was_written_is_refused(whole: Path, other: Path, tmp_path: Path, forged: str) -> None:
    stored = list(read_corpus(whole).sentences())
    out = shutil.copytree(whole, tmp_path / "out")
    FORGED[forged](out, other)
    for read in (
        lambda: list(read_corpus(out).scores()),
        lambda: list(read_corpus(out).sentences()),
        lambda: list(read_corpus(out).scores_of(stored, ["value_zeroing"])),
    ):
        with pytest.raises(FileFormatError) as raised:
            read()
        assert str(out) in str(raised.value)


def test_a_reader_may_take_what_is_there(whole: Path, other: Path, tmp_path: Path) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    FORGED["a foreign shard"](out, other)
    ids = [name for name, _ in read_corpus(out, verify=False).scores()]
    assert ids == [str(position) for position in range(COUNT)]


def test_a_shard_that_changes_while_it_is_read(whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checked, "BLOCK", 1000)
    monkeypatch.setattr("tl_vzero.corpus.read.ROWS_PER_BATCH", 1)
    out = shutil.copytree(whole, tmp_path / "out")
    scores = read_corpus(out).scores()
    next(scores)
    for path in shards_of(out):
        content = path.read_bytes()
        path.write_bytes(bytes(len(content) - 1000) + content[-1000:])
    with pytest.raises(FileFormatError, match=r"changed while it was read|not what was written"):
        list(scores)


HOSTILE: dict[str, bytes] = {
    "brackets": b"[" * 200_000,
    "objects": b'{"a":' * 100_000,
    "a long number": b'{"rows": ' + b"9" * 5000 + b"}",
    "no UTF-8": b'{"format": "\xff"}',
    "nothing": b"",
    "a list": b"[]",
    "a null": b"null",
    "NaN": b'{"rows": NaN}',
    "a huge one": b" " * 2_000_000,
}
WRONG: list[tuple[str, dict[str, Any]]] = [
    ("manifest.json", {"layers": []}),
    ("manifest.json", {"layers": [10**12]}),
    ("manifest.json", {"layers": [-1]}),
    ("manifest.json", {"layers": ["0"]}),
    ("manifest.json", {"layers": 4}),
    ("manifest.json", {"options": []}),
    ("manifest.json", {"options": {"methods": {}, "rows": "all", "shard_size": 4}}),
    ("manifest.json", {"options": {"methods": {"value_zeroing": {}}, "rows": "some", "shard_size": 4}}),
    ("manifest.json", {"options": {"methods": {"value_zeroing": {}}, "rows": "all", "shard_size": 0}}),
    ("manifest.json", {"versions": None}),
    ("manifest.json", {"model": "bert"}),
    ("manifest.json", {"input": {"format": "text", "sha256": "no", "bytes": 3}}),
    ("manifest.json", {"model": {"n_positions": 10**30}}),
    ("manifest.json", {"version": "2"}),
    ("manifest.json", {"format": "tl_vzero.scores"}),
    ("done/00001.json", {"rows": 10**18 * 9}),
    ("done/00001.json", {"rows": -1}),
    ("done/00001.json", {"rows": 4.0}),
    ("done/00001.json", {"rows": True}),
    ("done/00001.json", {"scores": None}),
    ("done/00001.json", {"errors": "none"}),
    ("done/00001.json", {"corpus": "mine"}),
    ("done/00001.json", {"extra": 1}),
]


@pytest.mark.parametrize("name", ["manifest.json", "done/00001.json"])
@pytest.mark.parametrize("hostile", HOSTILE)
def test_hostile_bytes_end_in_words(model: Any, whole: Path, tmp_path: Path, name: str, hostile: str) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    (out / name).write_bytes(HOSTILE[hostile])
    with pytest.raises(FileFormatError) as raised:
        list(read_corpus(out).scores())
    assert len(str(raised.value)) < 700 and str(out) in str(raised.value)


@pytest.mark.parametrize(("name", "changes"), WRONG, ids=lambda part: str(part)[:60])
def test_wrong_types_and_sizes_end_in_words(whole: Path, tmp_path: Path, name: str, changes: dict[str, Any]) -> None:
    out = shutil.copytree(whole, tmp_path / "out")
    note_edited(out / name, **changes)
    with pytest.raises((FileFormatError, InputError)) as raised:
        list(read_corpus(out).scores())
    assert len(str(raised.value)) < 700 and str(out) in str(raised.value)
