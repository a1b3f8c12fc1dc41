"""A corpus against its closed-form batches alone: `python tests/bench/bench_corpus.py`.

- throughput: sentences per second of `run_corpus`, from file to synced shards, against the same batches without reading
  or writing: the sentences tokenised before, in the same parts, by `value_zeroing`. Repetitions alternate.
- `--memory`: the peak of a fresh process for a small and a large input. By default few sentences of the embedded model
  again and again, so that the large one takes minutes.
- `--processes`: two processes of one thread each against one, the time from the first to the last shard.

Sentences are BLiMP's (TL_VZERO_BLIMP names its folder), or the embedded ones where it is not there.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import warnings
from importlib.metadata import version
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parents[2])]

from bench_hooks import seconds  # noqa: E402
from support import blimp  # noqa: E402

import tl_vzero  # noqa: E402
from tl_vzero.corpus import run_corpus  # noqa: E402
from tl_vzero.corpus.write import SHARD_SIZE  # noqa: E402
from tl_vzero.data.agreement_mini import agreement_examples  # noqa: E402
from tl_vzero.inputs.text import encode  # noqa: E402
from tl_vzero.zeroing.forms import forget_weight_cache  # noqa: E402


def blimp_sentences(count: int) -> list[str]:
    """`count` sentences, as many from every paradigm; starts again from the first where there are fewer."""
    files = sorted(blimp.FOLDER.glob("*.jsonl"))
    if not files:
        print(f"{blimp.ABSENT}; the embedded sentences instead\n")
        chosen = [" ".join(example.words) for example in agreement_examples()]
    else:
        by_file = [[json.loads(line)["sentence_good"] for line in file.open(encoding="utf-8")] for file in files]
        chosen = [sentence for row in zip(*by_file, strict=False) for sentence in row]
    return list(islice(cycle(chosen), count))


def written(folder: Path, sentences: list[str]) -> Path:
    path = folder / f"{len(sentences)}.txt"
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    return path


def batches_alone(model: Any, tokenised: list[torch.Tensor]) -> None:
    """The maps of all sentences, in the parts that a corpus has, and nothing else."""
    for start in range(0, len(tokenised), SHARD_SIZE):
        part = tokenised[start : start + SHARD_SIZE]
        forget_weight_cache(model)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in part], batch_first=True)
        tl_vzero.value_zeroing(model, torch.nn.utils.rnn.pad_sequence(part, batch_first=True), attention_mask=mask)


def throughput(name: str, count: int, repeat: int) -> None:
    model = tl_vzero.load_model(name)
    sentences = blimp_sentences(count)
    tokenised = [encode(model, sentence).sentences[0].ids for sentence in sentences]
    times: dict[str, list[float]] = {"alone": [], "corpus": []}
    with tempfile.TemporaryDirectory() as folder:
        source = written(Path(folder), sentences)
        run_corpus(model, written(Path(folder), sentences[:50]), Path(folder) / "warm")
        for repetition in range(repeat):
            times["alone"].append(seconds(lambda: batches_alone(model, tokenised)))
            out = Path(folder) / str(repetition)
            times["corpus"].append(seconds(lambda: run_corpus(model, source, out)))  # noqa: B023
        size = sum(path.stat().st_size for path in (out / "shards").iterdir())
    alone, corpus = (statistics.median(times[way]) for way in ("alone", "corpus"))
    print(f"| {name}, {count} sentences, all rows and layers | sentences a second | share |\n|---|---|---|")
    print(f"| closed-form batches alone | {count / alone:.1f} | 100 % |")
    print(f"| corpus, from file to shards | {count / corpus:.1f} | {100 * alone / corpus:.0f} % |")
    print(f"\n{size / count / 1000:.2f} kB a sentence on the disk")


def peak_of(name: str, count: int) -> float:
    """The peak of a fresh process, in MB."""
    program = [sys.executable, __file__, "--model", name, "--peak-of", str(count)]
    return float(subprocess.run(program, capture_output=True, text=True, check=True).stdout.split()[-1])


def print_peak(name: str, count: int) -> None:
    model = tl_vzero.load_model(name)
    with tempfile.TemporaryDirectory() as folder:
        run_corpus(model, written(Path(folder), blimp_sentences(count)), Path(folder) / "out")
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def memory(name: str, counts: list[int]) -> None:
    print(f"| {name}, sentences | peak, MB | of the smallest |\n|---|---|---|")
    peaks = [peak_of(name, count) for count in counts]
    for count, peak in zip(counts, peaks, strict=True):
        print(f"| {count} | {peak:.0f} | {peak / peaks[0]:.3f} |", flush=True)


def processes(name: str, count: int) -> None:
    times = {}
    with tempfile.TemporaryDirectory() as folder:
        source = written(Path(folder), blimp_sentences(count))
        for n_processes in (1, 2):
            log = Path(folder) / f"{n_processes}.jsonl"
            launch = ["-m", "torch.distributed.run", "--nproc-per-node", str(n_processes), "--master-addr", "127.0.0.1"]
            words = ["-m", "tl_vzero", "corpus", source, "--out", Path(folder) / f"out{n_processes}", "--model", name]
            subprocess.run(
                [sys.executable, *launch, *map(str, words), "--quiet", "--json-log", str(log), "--shard-size", "250"],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                check=True,
                capture_output=True,
            )
            events = [json.loads(line) for line in log.read_text().splitlines()]
            begun = min(event["time"] for event in events if event["event"] == "begin")
            times[n_processes] = max(event["time"] for event in events if event["event"] == "shard") - begun
    print(f"| {name}, {count} sentences, processes of one thread | seconds | times one process |\n|---|---|---|")
    for n_processes, taken in times.items():
        print(f"| {n_processes} | {taken:.1f} | {times[1] / taken:.2f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description="A corpus against its closed-form batches alone.")
    parser.add_argument("--model", default=None, help="default: all-MiniLM-L6-v2; for --memory agreement-mini")
    parser.add_argument("--sentences", type=int, default=5000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--memory", type=int, nargs="*", metavar="SENTENCES", help="default: 1000 100000")
    parser.add_argument("--processes", action="store_true")
    parser.add_argument("--peak-of", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    warnings.simplefilter("ignore")
    if options.peak_of is not None:
        print_peak(options.model, options.peak_of)
        return
    print(
        f"{options.threads} threads, torch {version('torch')}, TransformerLens {version('transformer-lens')}, float32\n"
    )
    if options.memory is not None:
        memory(options.model or "agreement-mini", options.memory or [1000, 100_000])
    elif options.processes:
        processes(options.model or "all-MiniLM-L6-v2", options.sentences)
    else:
        throughput(options.model or "all-MiniLM-L6-v2", options.sentences, options.repeat)


if __name__ == "__main__":
    main()
