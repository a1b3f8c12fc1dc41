"""A program that runs a corpus in child processes and kills them: `python crashing.py MODE SOURCE FOLDER COUNT`.

The model is loaded once; each child is forked from here, so that a kill costs no second start.

- steps: in FOLDER/k, a child is killed just before its k-th change of the folder, and another one goes on; for all
  changes of a run, whatever COUNT is.
- random: in FOLDER, children are killed at random moments until COUNT were, then one goes on to the end. Where the
  corpus is finished before, another folder is begun.

Prints JSON: the folders that must now hold the whole corpus, and what was seen.
"""

import json
import os
import random
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

SHARD_SIZE = 4


def run(model: Any, source: Path, folder: Path) -> Any:
    from tl_vzero.corpus import run_corpus

    return run_corpus(model, source, folder, shard_size=SHARD_SIZE)


def forked(work: Any) -> int:
    """The number of a child that does some work and ends."""
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a child; its code, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def killed_before(step: int, folder: Path, log: Path | None = None) -> None:
    """From here on, this process is killed just before its change number `step` of a folder; all are logged."""
    count = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        changes = event in ("os.rename", "os.link", "os.remove", "os.mkdir") or (
            event == "open" and arguments[2] & (os.O_CREAT | os.O_WRONLY | os.O_RDWR)
        )
        if changes and str(arguments[0]).startswith(str(folder)):
            if count == step:
                os.kill(os.getpid(), signal.SIGKILL)
            count += 1
            if log is not None:
                with log.open("a") as file:
                    file.write(".")

    sys.addaudithook(hook)


def steps(model: Any, source: Path, where: Path, _: int) -> dict[str, Any]:
    log = where / "log"

    def counting() -> None:
        killed_before(-1, where / "whole", log)
        run(model, source, where / "whole")

    assert ended(forked(counting)) == 0
    count = len(log.read_text())  # a dot for each change
    folders = []
    for step in range(count):
        folder = where / str(step)

        def crashing(step: int = step, folder: Path = folder) -> None:
            killed_before(step, folder)
            run(model, source, folder)

        assert ended(forked(crashing)) == -signal.SIGKILL, step
        assert ended(forked(lambda folder=folder: run(model, source, folder))) == 0, step
        folders.append(str(folder))
    return {"folders": folders, "steps": count}


def at_random(model: Any, source: Path, where: Path, count: int) -> dict[str, Any]:
    draw = random.Random(0)
    begun = time.monotonic()
    assert ended(forked(lambda: run(model, source, where / "whole"))) == 0
    whole = time.monotonic() - begun
    folders, kills = [where / "0"], 0
    while kills < count:
        pid = forked(lambda: run(model, source, folders[-1]))
        time.sleep(draw.uniform(0, whole / 2))
        os.kill(pid, signal.SIGKILL)
        if ended(pid) == -signal.SIGKILL:
            kills += 1
        else:
            folders.append(where / str(len(folders)))
    assert ended(forked(lambda: run(model, source, folders[-1]))) == 0
    return {"folders": [str(folder) for folder in folders], "kills": kills}


def main() -> None:
    mode, source, where, count = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    warnings.simplefilter("ignore")
    import torch

    import tl_vzero

    torch.set_num_threads(1)  # a pool of threads does not survive a fork
    model = tl_vzero.load_model("agreement-mini")
    where.mkdir()
    json.dump({"steps": steps, "random": at_random}[mode](model, source, where, count), sys.stdout)


if __name__ == "__main__":
    main()
