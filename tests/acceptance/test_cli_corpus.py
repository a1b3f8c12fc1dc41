"""The command corpus: codes of the exit, signals, and several processes started by a launcher."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from support.corpora import assert_same_corpus, errors_of, left_over, table_of, text_file
from typer.testing import CliRunner

from tl_vzero.cli import app
from tl_vzero.corpus import write as run_module

RUNNER = CliRunner()
COMMAND = [sys.executable, "-m", "tl_vzero", "corpus"]
# Without GPUs accelerate starts several processes by MPI only; told of GPUs it starts them by torch, and none is used.
LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1"],
    "accelerate": ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1"],
}


def run(*words: str | Path) -> tuple[int, str]:
    result = RUNNER.invoke(app, ["corpus", *map(str, words), "--quiet"])
    return result.exit_code, result.output


def started(command: list[str], *words: str | Path, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*command, *map(str, words)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def waited_for(path: Path, process: "subprocess.Popen[str]", pattern: str) -> Path:
    """The first file that appears; fails where the process ends before."""
    for _ in range(6000):
        found = sorted(path.glob(pattern))
        if found:
            return found[0]
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.05)
    raise AssertionError(f"no {pattern} in {path}")


def test_a_second_text_column_makes_pairs(tmp_path: Path) -> None:
    source = tmp_path / "pairs.csv"
    source.write_text("id,text,other\na,the authors write.,the hat is near.\nb,the authors write.,\n")
    code, output = run(source, "--out", tmp_path / "out", "--second-text-column", "other")
    assert code == 1 and "failed: 1" in output
    assert errors_of(tmp_path / "out") == [
        {"position": 1, "id": "b", "reason": "of the second text: the text is empty"}
    ]
    assert table_of(tmp_path / "out")["tokens"].to_pylist()[0].count("[SEP]") == 2


def test_a_corpus_is_written_and_told(tmp_path: Path) -> None:
    source, out, log = text_file(tmp_path, 9), tmp_path / "out", tmp_path / "log.jsonl"
    words = (source, "--out", out, "--methods", "value_zeroing,attention", "--method", "alti", "--rows", "target")
    code, output = run(*words, "--shard-size", "4", "--json-log", log)
    assert code == 0
    assert "about 9 sentences" in output and "9 sentences in 3 shards, 3 of them computed now" in output
    assert {"value_zeroing", "attention", "alti"} <= set(table_of(out).column_names)
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert [each["event"] for each in events] == ["begin", "shard", "shard", "shard", "end"]
    assert events[-1]["sentences"] == 9 and events[-1]["complete"] and events[1]["left_seconds"] > 0
    assert all(each["memory_mb"] > 0 and each["rate"] >= 0 for each in events)
    code, output = run(*words, "--shard-size", "4")
    assert code == 0 and "3 shards of 4 are finished already" in output and "0 of them computed now" in output


def test_failed_sentences_are_counted_by_the_code_of_the_exit(tmp_path: Path) -> None:
    source = tmp_path / "some.txt"
    source.write_text("the authors [MASK] today.\n\n" + "near " * 600 + "\n")
    code, output = run(source, "--out", tmp_path / "out")
    assert code == 1
    assert "failed: 2 sentences" in output and "1 sentences in 1 shards" in output
    assert [each["id"] for each in errors_of(tmp_path / "out")] == ["1", "2"]
    assert "tokens: the model's context holds" in errors_of(tmp_path / "out")[1]["reason"]


def test_bad_arguments_are_told_before_any_work(tmp_path: Path) -> None:
    source = text_file(tmp_path, 2)
    for words, told in [
        ((tmp_path / "none.txt", "--out", tmp_path / "out"), "no file"),
        ((source, "--out", tmp_path / "out", "--method", "magic"), "unknown method 'magic'"),
        ((source, "--out", tmp_path / "out", "--target", "2"), "nothing asks for one"),
        ((source, "--out", tmp_path / "out", "--layer", "9"), "--layer holds 9"),
        ((source, "--out", tmp_path / "out", "--shard-size", "0"), "shard_size is 0"),
        ((source, "--out", source), "cannot make the folder"),
    ]:
        code, output = run(*words)
        assert code == 2 and told in output.replace("\n", " ")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_in_the_midst_of_a_shard_stops_the_run(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, which the signal reaches where a part was just written."""
    source, out, real = text_file(tmp_path, 9), tmp_path / "out", run_module._write_part

    def signalled(job: Any, part: Any, *rest: Any) -> None:
        real(job, part, *rest)
        if part.shard == 1:
            signal.raise_signal(number)

    monkeypatch.setattr(run_module, "_write_part", signalled)
    before = signal.getsignal(number)
    code, output = run(source, "--out", out, "--shard-size", "3")
    assert code == 130 and "stopped" in output
    assert left_over(out) == [] and [path.stem for path in (out / "done").iterdir()] == ["00000"]
    assert signal.getsignal(number) == before
    monkeypatch.undo()
    code, output = run(source, "--out", out, "--shard-size", "3")
    assert code == 0 and "2 of them computed now" in output


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_the_run_and_the_next_one_goes_on(tmp_path: Path, number: int) -> None:
    source = text_file(tmp_path, 120)
    words = (source, "--out", tmp_path / "out", "--shard-size", "3", "--quiet")
    process = started(COMMAND, *words)
    waited_for(tmp_path / "out" / "done", process, "*.json")
    process.send_signal(number)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "stopped" in output and left_over(tmp_path / "out") == []
    code, _ = run(*words[:-1])
    assert code == 0
    run(source, "--out", tmp_path / "whole", "--shard-size", "3")
    assert_same_corpus(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_share_the_work(tmp_path: Path, launcher: str) -> None:
    source = text_file(tmp_path, 30)
    source.write_text("\n" + source.read_text())
    words = ("-m", "tl_vzero", "corpus", source, "--out", tmp_path / "out", "--shard-size", "4", "--quiet")
    log = tmp_path / "log.jsonl"
    process = started([sys.executable, *LAUNCHERS[launcher]], *words, "--json-log", log)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert "30 sentences in 8 shards, 4 of them computed now" in output and "failed: 1 sentences" in output
    by_rank = [json.loads(line)["rank"] for line in log.read_text().splitlines() if '"event": "shard"' in line]
    assert sorted(by_rank) == [0] * 4 + [1] * 4
    run(source, "--out", tmp_path / "whole", "--shard-size", "4")
    assert_same_corpus(tmp_path / "out", tmp_path / "whole")


def process_of_rank(rank: int, out: Path) -> int:
    """The number of the process that a launcher started as this rank of the run that writes a folder."""
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().split(b"\0")
            variables = (process / "environ").read_bytes().split(b"\0")
        except OSError:  # it is another's, or has ended
            continue
        if os.fsencode(out) in words and f"RANK={rank}".encode() in variables:
            return int(process.name)
    raise AssertionError(f"no process of rank {rank}")


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="processes are found by /proc")
def test_a_rank_that_is_killed_loses_its_open_shard_at_most(tmp_path: Path) -> None:
    source = text_file(tmp_path, 300)
    words = ("-m", "tl_vzero", "corpus", source, "--out", tmp_path / "out", "--shard-size", "5", "--quiet")
    process = started([sys.executable, *LAUNCHERS["torchrun"]], *words)
    waited_for(tmp_path / "out" / "done", process, "*.json")
    os.kill(process_of_rank(1, tmp_path / "out"), signal.SIGKILL)
    output, _ = process.communicate(timeout=600)
    assert process.returncode != 0, output
    done = len(list((tmp_path / "out" / "done").glob("*.json")))
    assert 0 < done < 60
    code, output = run(source, "--out", tmp_path / "out", "--shard-size", "5")
    assert code == 0, output
    assert f"{60 - done} of them computed now" in output
    run(source, "--out", tmp_path / "whole", "--shard-size", "5")
    assert_same_corpus(tmp_path / "out", tmp_path / "whole")
