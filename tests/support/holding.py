"""A program that runs a corpus and stops in the midst of its first shard: `python holding.py SOURCE FOLDER`.

It prints a line there, and goes on once its input ends.
"""

import sys
import warnings
from pathlib import Path
from typing import Any


def main() -> None:
    warnings.simplefilter("ignore")
    import tl_vzero
    from tl_vzero.corpus import run_corpus
    from tl_vzero.corpus import write as run_module

    real = run_module._write_part
    held = False

    def holding(*arguments: Any) -> None:
        nonlocal held
        real(*arguments)
        if not held:
            held = True
            sys.stdout.write("holding\n")
            sys.stdout.flush()
            sys.stdin.read()

    run_module._write_part = holding
    run = run_corpus(tl_vzero.load_model("agreement-mini"), Path(sys.argv[1]), Path(sys.argv[2]), shard_size=4)
    sys.stdout.write(f"complete: {run.complete}\n")


if __name__ == "__main__":
    main()
