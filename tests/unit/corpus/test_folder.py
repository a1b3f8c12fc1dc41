"""A folder is proven to be of this very run before anything in it is touched, and what is of others never is."""

import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from support.corpora import assert_same_corpus, text_file
from support.state import type_checks_off
from support.trees import tree
from typer.testing import CliRunner

import tl_vzero
from tl_vzero.cli import app
from tl_vzero.corpus import read_corpus, run_corpus
from tl_vzero.corpus.folder import CorpusFolder, partial_path, prove, repair
from tl_vzero.corpus.processes import take_lock
from tl_vzero.errors import FileFormatError, InputError, InputTypeError, OutputPathError, TLVZeroError

needs_links = pytest.mark.skipif(os.name == "nt", reason="needs links and pipes")
SHARD_SIZE = 4


@pytest.fixture(scope="module")
def model() -> Any:
    return tl_vzero.load_model("agreement-mini")


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two shards, with a sentence in each that fails."""
    path = text_file(tmp_path_factory.mktemp("input"), 8)
    lines = path.read_text().splitlines()
    lines[2] = lines[5] = ""
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture(scope="module")
def whole(model: Any, source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "out"
    again(model, source, folder)
    return folder


@pytest.fixture
def out(whole: Path, tmp_path: Path) -> Path:
    """A copy of a finished corpus for each test."""
    return shutil.copytree(whole, tmp_path / "out")


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    """A folder of somebody's, with a file."""
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    return folder


def again(model: Any, source: Path, folder: Path, **options: Any) -> Any:
    return run_corpus(model, source, folder, **{"shard_size": SHARD_SIZE, **options})


def test_the_input_of_a_careless_command_is_not_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for name in ("shards", "done", "locks", "errors"):
        (tmp_path / name).mkdir()
    pq.write_table(pa.table({"text": ["the authors [MASK] today."]}), tmp_path / "shards" / "train.parquet")
    (tmp_path / "done" / "homework.json").write_text("{}")
    before = tree(tmp_path)
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, ["corpus", "shards/train.parquet", "--out", "."])
    assert result.exit_code == 2 and "lies in the output folder" in result.output.replace("\n", " ")
    assert tree(tmp_path) == before


WAYS: dict[str, Callable[[Path], tuple[str, str]]] = {
    "the folder itself": lambda at: (str(at / "data"), str(at / "data")),
    "a file in it": lambda at: (str(at / "data" / "in.txt"), str(at / "data")),
    "a file deep in it": lambda at: (str(at / "data" / "deep" / "in.txt"), str(at / "data")),
    "by dots": lambda at: (str(at / "data" / "deep" / ".." / "in.txt"), str(at / "other" / ".." / "data")),
    "by a relative path": lambda at: ("data/in.txt", "./data/deep/.."),
    "by a link to the folder": lambda at: (str(at / "data" / "in.txt"), str(at / "folder-link")),
    "by a link to the file": lambda at: (str(at / "file-link.txt"), str(at / "data")),
    "by a link in it to a file elsewhere": lambda at: (str(at / "data" / "out-link.txt"), str(at / "data")),
    "a dataset that holds the output": lambda at: (str(at / "data"), str(at / "data" / "deep" / "new")),
    "a dataset in the output": lambda at: (str(at / "data" / "deep"), str(at / "data")),
}


@needs_links
@pytest.mark.parametrize("way", WAYS)
def test_an_input_and_its_output_lie_apart(
    model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    (tmp_path / "data" / "deep").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    for path in ("data/in.txt", "data/deep/in.txt", "other/in.txt"):
        (tmp_path / path).write_text("the authors [MASK] today.\n")
    (tmp_path / "folder-link").symlink_to("data")
    (tmp_path / "file-link.txt").symlink_to("data/in.txt")
    (tmp_path / "data" / "out-link.txt").symlink_to("../other/in.txt")
    monkeypatch.chdir(tmp_path)
    source, folder = WAYS[way](tmp_path)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="lies in the"):
        run_corpus(model, source, folder)
    assert tree(tmp_path) == before


@needs_links
def test_the_log_is_not_the_input(model: Any, source: Path, tmp_path: Path) -> None:
    copy = shutil.copy(source, tmp_path / "in.txt")
    (tmp_path / "log.jsonl").hardlink_to(copy)
    before = tree(tmp_path)
    with pytest.raises(InputError, match="is the input"):
        again(model, copy, tmp_path / "out", json_log=tmp_path / "log.jsonl")
    assert tree(tmp_path) == before


def pipe(path: Path) -> None:
    os.mkfifo(path)


def put(folder: Path, name: str, content: str = "mine") -> None:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


STRANGE: dict[str, Callable[[Path, Path], object]] = {
    "a file": lambda out, _: put(out, "thesis.tex"),
    "a shard by name": lambda out, _: put(out, "shards/00000.parquet"),
    "a note by name": lambda out, _: put(out, "done/00000.json", "{}"),
    "an empty folder called shards": lambda out, _: (out / "shards").mkdir(),
    "an empty lock file": lambda out, _: put(out, "locks/00000.lock", ""),
    "a guard that is a link": lambda out, at: ((out / "locks").mkdir(), link(out / "locks/.guard", at / "thesis.tex")),
    "shards that are a link": lambda out, at: link(out / "shards", at),
    "a lock that is a link": lambda out, at: ((out / "locks").mkdir(), link(out / "locks/00000.lock", at / "new")),
    "a hidden partial file": lambda out, _: put(out, ".download.partial"),
    "a partial manifest of others": lambda out, _: put(out, f".manifest.json.{'0' * 64}-{'0' * 32}.partial"),
    "a manifest of a web page": lambda out, _: put(out, "manifest.json", '{"name": "app", "icons": []}'),
    "a manifest of our format and no more": lambda out, _: put(out, "manifest.json", '{"format": "tl_vzero.corpus"}'),
    "a manifest of the old version": lambda out, _: put(
        out, "manifest.json", '{"format": "tl_vzero.corpus", "version": "2"}'
    ),
    "an empty manifest": lambda out, _: put(out, "manifest.json", ""),
    "a manifest that is no UTF-8": lambda out, _: (out / "manifest.json").write_bytes(b"\xff\xfe{"),
    "a manifest of brackets": lambda out, _: put(out, "manifest.json", "[" * 200_000),
    "a manifest with a long number": lambda out, _: put(out, "manifest.json", '{"format": ' + "9" * 5000 + "}"),
    "a huge manifest": lambda out, _: put(out, "manifest.json", " " * 3_000_000),
    "a manifest that is a pipe": lambda out, _: pipe(out / "manifest.json"),
    "a manifest that is a folder": lambda out, _: (out / "manifest.json").mkdir(),
    "a manifest that is a link to nothing": lambda out, at: link(out / "manifest.json", at / "new"),
    "a pipe": lambda out, _: pipe(out / "errors.jsonl"),
}


def link(path: Path, target: Path) -> None:
    path.symlink_to(target)


@needs_links
@pytest.mark.parametrize("strange", STRANGE)
def test_a_folder_of_others_is_left_as_it_is(
    model: Any, source: Path, tmp_path: Path, outside: Path, strange: str
) -> None:
    (tmp_path / "out").mkdir()
    STRANGE[strange](tmp_path / "out", outside)
    before = tree(tmp_path)
    with pytest.raises((OutputPathError, FileFormatError)) as raised:
        again(model, source, tmp_path / "out")
    assert str(tmp_path / "out") in str(raised.value) and len(str(raised.value)) < 1000
    assert tree(tmp_path) == before


NAMES = ["manifest.json", "errors.jsonl", "locks/00000.lock"]
NAMES += ["shards/00001.parquet", "done/00001.json", "errors/00001.jsonl"]
FOLDERS = ["shards", "done", "errors", "locks"]
REPLACED: dict[str, Callable[[Path, Path], object]] = {
    "a link": lambda path, at: link(path, at / "thesis.tex"),
    "a link to nothing": lambda path, at: link(path, at / "new"),
    "a link to a folder": lambda path, at: link(path, at),
    "a pipe": lambda path, _: pipe(path),
    "a folder": lambda path, _: path.mkdir(),
    "another file": lambda path, _: path.write_text('{"somebody": "else"}\n'),
    "a hard link": lambda path, at: path.hardlink_to(at / "thesis.tex"),
    "brackets": lambda path, _: path.write_text("[" * 200_000),
}
HARMLESS = [("locks/00000.lock", with_) for with_ in ("another file", "a hard link", "brackets")]
PLACES = [(name, with_) for name in NAMES for with_ in REPLACED if (name, with_) not in HARMLESS]
PLACES += [(name, with_) for name in FOLDERS for with_ in ("a link to a folder", "a pipe", "another file")]


def replace_by(out: Path, name: str, with_: str, outside: Path) -> None:
    if (out / name).is_dir():
        (out / name).rename(outside / "was")
    else:
        (out / name).unlink()
    REPLACED[with_](out / name, outside)


@needs_links
@pytest.mark.parametrize(("name", "with_"), PLACES)
def test_a_name_of_ours_with_other_contents_is_left_as_it_is(
    model: Any, source: Path, tmp_path: Path, out: Path, outside: Path, name: str, with_: str
) -> None:
    replace_by(out, name, with_, outside)
    before = tree(tmp_path)
    with pytest.raises((OutputPathError, FileFormatError)):
        again(model, source, out)
    assert tree(tmp_path) == before


@needs_links
@pytest.mark.parametrize(("name", "with_"), HARMLESS)
def test_a_lock_file_is_held_and_never_written(
    model: Any, source: Path, tmp_path: Path, out: Path, outside: Path, name: str, with_: str
) -> None:
    replace_by(out, name, with_, outside)
    before, content = tree(outside), (out / name).read_bytes()
    again(model, source, out)
    assert tree(outside) == before and (out / name).read_bytes() == content


def test_another_corpus_is_left_as_it_is(model: Any, source: Path, out: Path) -> None:
    before = tree(out)
    with pytest.raises(InputError, match=r"options\.rows was all, is summary"):
        again(model, source, out, rows="summary")
    assert tree(out) == before


def test_files_of_others_in_a_corpus_stay(model: Any, source: Path, out: Path, whole: Path) -> None:
    corpus = json.loads((out / "done" / "00000.json").read_text())["corpus"]
    mine = [
        "README.md",
        "shards/notes.txt",
        "shards/1.parquet",
        "shards/000001.parquet",
        "done/x.json",
        ".hidden.partial",
        "shards/.00001.parquet.host-1.partial",
        f"shards/.00001.parquet.{'0' * 64}-{'1' * 32}.partial",
        f"shards/.00001.parquet.{corpus}-{'1' * 32}.partial",  # our name, and not how a shard begins
    ]
    for name in mine:
        put(out, name)
    (out / "done" / "00001.json").unlink()  # so that there is something to do
    run = again(model, source, out)
    assert run.computed == 1 and run.complete
    assert all((out / name).read_text() == "mine" for name in mine)
    for name in mine:
        (out / name).unlink()
    assert_same_corpus(out, whole)


def test_a_shard_of_another_corpus_is_neither_counted_nor_taken_away(
    model: Any, source: Path, tmp_path: Path, out: Path
) -> None:
    again(model, source, tmp_path / "other", rows="summary")
    for name, expected in [("shards/00001.parquet", "nothing in it shows"), ("done/00001.json", "nothing in it shows")]:
        folder = shutil.copytree(out, tmp_path / name.replace("/", "-"))
        shutil.copy2(tmp_path / "other" / name, folder / name)
        before = tree(folder)
        with pytest.raises(OutputPathError, match=expected):
            again(model, source, folder)
        assert tree(folder) == before
    # Both together do fit each other, and are still of another corpus.
    for name in ("shards/00001.parquet", "done/00001.json"):
        shutil.copy2(tmp_path / "other" / name, out / name)
    with pytest.raises(OutputPathError, match="nothing in it shows"):
        again(model, source, out)


def test_a_damaged_manifest_of_others_is_not_written_over(model: Any, source: Path, out: Path) -> None:
    """Shards show that the folder is ours; the file with the manifest's name is another program's all the same."""
    (out / "manifest.json").write_text('{"name": "app", "icons": ')
    before = tree(out)
    with pytest.raises(FileFormatError, match="manifest"):
        again(model, source, out)
    assert tree(out) == before


def test_one_shard_of_ours_does_not_make_a_folder_ours(model: Any, source: Path, tmp_path: Path, out: Path) -> None:
    put(tmp_path / "project", "main.py")
    (tmp_path / "project" / "shards").mkdir()
    shutil.copy2(out / "shards" / "00000.parquet", tmp_path / "project" / "shards")
    before = tree(tmp_path)
    with pytest.raises(OutputPathError, match=r"holds files, and no manifest\.json"):
        again(model, source, tmp_path / "project")
    assert tree(tmp_path) == before


def test_a_link_to_the_folder_is_the_folder(model: Any, source: Path, tmp_path: Path, out: Path) -> None:
    link(tmp_path / "link", out)
    assert again(model, source, tmp_path / "link").computed == 0
    link(tmp_path / "nowhere", tmp_path / "new")
    with pytest.raises(OutputPathError, match="cannot make the folder"):
        again(model, source, tmp_path / "nowhere")


def test_what_stopped_before_its_manifest_goes_on(model: Any, source: Path, tmp_path: Path, whole: Path) -> None:
    corpus = json.loads((whole / "done" / "00000.json").read_text())["corpus"]
    (tmp_path / "out").mkdir()
    partial_path(tmp_path / "out" / "manifest.json", corpus).write_bytes(b'{\n  "form')
    again(model, source, tmp_path / "out")
    assert_same_corpus(tmp_path / "out", whole)


def test_a_refused_run_makes_no_folder(model: Any, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").touch()
    for name in ("none.txt", "empty.txt"):
        with pytest.raises(FileFormatError):
            run_corpus(model, tmp_path / name, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_log_is_no_file_of_the_corpus(
    model: Any, source: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = tree(out)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OutputPathError, match="has the name of a file of the corpus"):
        again(model, source, out, json_log="out/../out/manifest.json")
    for name in ("manifest.json", "errors.jsonl", "shards/00001.parquet", "done/log"):
        with pytest.raises(OutputPathError, match="has the name of a file of the corpus"):
            again(model, source, out, json_log=out / name)
    assert tree(out) == before
    again(model, source, tmp_path / "new", json_log=tmp_path / "new" / "log.jsonl")
    assert len((tmp_path / "new" / "log.jsonl").read_text().splitlines()) == 4


STRANGE_NAMES = ["manifest.json", "errors.jsonl", *FOLDERS, "thesis.tex", ".x.partial", "locks/rank-0.json"]
STRANGE_NAMES += ["shards/00000.parquet", "done/00000.json", "errors/00000.jsonl", "locks/00000.lock", "locks/.guard"]
STRANGE_NAMES += ["shards/train.parquet", "shards/.00000.parquet.host-1.partial", "done/00007.json"]
KINDS = ["link", "broken link", "pipe", "folder", "hard link", "text", "json", "empty"]


def entries(draw: random.Random, at_most: int) -> list[tuple[str, str]]:
    return [(draw.choice(STRANGE_NAMES), draw.choice(KINDS)) for _ in range(draw.randint(1, at_most))]


def make(path: Path, kind: str, outside: Path) -> None:
    if any(parent.is_symlink() or parent.is_file() for parent in path.parents) or path.exists() or path.is_symlink():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    match kind:
        case "link":
            link(path, outside)
        case "broken link":
            link(path, outside / "new")
        case "pipe":
            pipe(path)
        case "folder":
            path.mkdir()
        case "hard link":
            path.hardlink_to(outside / "thesis.tex")
        case "text":
            path.write_bytes(b"\xff mine")
        case "json":
            path.write_text('{"format": "tl_vzero.corpus", "version": "3", "shard": 0}')
        case "empty":
            path.touch()


@needs_links
@pytest.mark.parametrize("seeds", [range(8), pytest.param(range(8, 80), marks=pytest.mark.slow)], ids=["few", "many"])
def test_whatever_lies_in_a_folder_of_others_is_left_as_it_is(
    model: Any, source: Path, tmp_path: Path, seeds: range
) -> None:
    for seed in seeds:
        at = tmp_path / str(seed)
        put(at, "outside/thesis.tex")
        (at / "out").mkdir()
        for name, kind in entries(random.Random(seed), 8):
            make(at / "out" / name, kind, at / "outside")
        before = tree(at)
        with pytest.raises(TLVZeroError):
            again(model, source, at / "out")
        assert tree(at) == before, seed


@needs_links
def test_whatever_lies_in_a_corpus_its_reader_ends_in_words(whole: Path, tmp_path: Path) -> None:
    for seed in range(100):
        at = tmp_path / str(seed)
        put(at, "outside/thesis.tex")
        shutil.copytree(whole, at / "out")
        for name, kind in entries(random.Random(seed), 3):
            path = at / "out" / name
            if path.is_file() and not path.is_symlink():
                path.unlink()
            make(path, kind, at / "outside")
        before = tree(at)
        with suppress(TLVZeroError):
            assert [scores.method for _, scores in read_corpus(at / "out").scores()] == ["value_zeroing"] * 6
        assert tree(at) == before, seed


IDENTITY = {
    "format": "tl_vzero.corpus",
    "version": "3",
    "input": {"format": "text", "sha256": "0" * 64, "bytes": 7},
    "model": {},
    "layers": [0],
    "options": {"methods": {"attention": {}}, "rows": "all", "shard_size": 4},
    "versions": {},
}


def test_of_several_runs_that_start_in_one_new_folder_only_one_goes_on(tmp_path: Path) -> None:
    count = 6
    together, at_work = Barrier(count), Barrier(count)

    def begun(where: Path) -> str:
        """A run begins, as far as the folder goes, and is at work until all have tried."""
        folder, names = CorpusFolder(where), {"input_name": "a.txt", "model_name": "m"}
        with ExitStack() as undo:
            together.wait(60)
            try:
                prove(folder, IDENTITY, names)
                folder.make()
                take_lock(folder.path("locks", 0), undo)
                repair(folder, IDENTITY, names)
            except InputError as error:
                return str(error)
            finally:
                at_work.wait(60)
            return "began"

    with ThreadPoolExecutor(count) as threads:
        for attempt in range(20):
            where = tmp_path / str(attempt)
            outcomes = list(threads.map(begun, [where] * count))
            assert outcomes.count("began") == 1 and sum("is in use" in outcome for outcome in outcomes) == count - 1, (
                outcomes
            )
            assert sorted(path.name for path in where.iterdir()) == [
                *["done", "errors", "locks", "manifest.json", "shards"]
            ]


@pytest.fixture
def read_only(tmp_path: Path, whole: Path) -> Any:
    """A finished corpus on a disk that cannot be written."""
    where = tmp_path / "disk"
    where.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(where)], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    shutil.copytree(whole, where / "out")
    subprocess.run(["mount", "-o", "remount,ro", str(where)], check=True)
    yield where / "out"
    subprocess.run(["umount", str(where)], check=True)


def test_a_finished_corpus_on_a_read_only_disk(model: Any, source: Path, read_only: Path) -> None:
    assert len(list(read_corpus(read_only).scores())) == 6
    with pytest.raises(
        OutputPathError, match=r"Read-only file system.*; 2 finished shards are kept: it was finished once"
    ):
        again(model, source, read_only)
    with pytest.raises(OutputPathError, match="cannot make the folder"):
        again(model, source, read_only.parent / "new")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes here")
def test_a_log_that_cannot_be_written_is_refused_at_once(model: Any, source: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    for log in (tmp_path / "pipe", tmp_path / "circle", tmp_path / "circle" / "log", "\0"):
        with pytest.raises(OutputPathError, match="cannot write"):
            run_corpus(model, source, tmp_path / "out", json_log=log)


def test_what_is_no_folder_is_refused(
    model: Any, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with type_checks_off(), pytest.raises(InputTypeError, match="expected a path"):
        run_corpus(model, source, 5)  # type: ignore[arg-type]
    with type_checks_off(), pytest.raises(InputTypeError, match="expected a path"):
        read_corpus(None)  # type: ignore[arg-type]
    with pytest.raises(OutputPathError, match="null byte"):
        run_corpus(model, source, "\0")
    with pytest.raises(FileFormatError, match="holds no manifest"):
        read_corpus("~no-such-user/corpus")


def test_a_folder_inside_a_file_is_refused(model: Any, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine", encoding="utf-8")
    with pytest.raises(OutputPathError, match=r"cannot begin in .*file/out: .*Errno"):
        run_corpus(model, source, tmp_path / "file" / "out")


@pytest.mark.parametrize("counts", [{"rows": 10**12}, {"rows": 0}, {"failed": 5}])
def test_a_note_that_counts_wrongly_does_not_count(
    model: Any, source: Path, out: Path, whole: Path, counts: dict[str, int]
) -> None:
    note = out / "done" / "00000.json"
    note.write_text(json.dumps(json.loads(note.read_text(encoding="utf-8")) | counts), encoding="utf-8")
    if "rows" in counts:
        with pytest.raises(FileFormatError, match="its note says"):
            list(read_corpus(out).scores())
    run = again(model, source, out)
    assert any("its note counts" in note for note in run.notes)
    assert_same_corpus(out, whole)
