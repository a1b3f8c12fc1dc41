"""How a run is getting on: a bar for people, JSON lines for machines."""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from tl_vzero.files import append_line


class Progress:
    """Rate, time left and memory of one process; `total` is about how many sentences it has to do."""

    def __init__(self, total: int | None, *, rank: int, shown: bool, json_log: Path | None) -> None:
        self._bar = tqdm(total=total, disable=not shown, desc="corpus", unit="sentence", file=sys.stderr)
        self._total, self._rank, self._log = total, rank, json_log
        self._begun = time.monotonic()
        self.sentences = 0
        self.failed = 0

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.monotonic() - self._begun

    @property
    def rate(self) -> float:
        """Sentences a second, failed ones too."""
        return (self.sentences + self.failed) / max(self.seconds, 1e-9)

    def part(self, sentences: int, failed: int) -> None:
        """So many more sentences are done."""
        self.sentences += sentences
        self.failed += failed
        memory = memory_mb()
        if memory is not None:
            self._bar.set_postfix_str(f"{memory:.0f} MB, {self.failed} failed", refresh=False)
        self._bar.update(sentences + failed)

    def log(self, event: str, **about: Any) -> None:
        """Add a line to the JSON log: an event, and the state at that time."""
        if self._log is None:
            return
        left = None
        if self._total is not None and self.sentences:
            left = max(0, self._total - self.sentences - self.failed) / self.rate
        line = {
            "event": event,
            "time": time.time(),
            "rank": self._rank,
            "sentences": self.sentences,
            "failed": self.failed,
            "seconds": self.seconds,
            "rate": self.rate,
            "left_seconds": left,
            "memory_mb": memory_mb(),
            **about,
        }
        append_line(self._log, json.dumps(line, ensure_ascii=False))

    def close(self) -> None:
        """Leave the bar as it is."""
        self._bar.close()


def memory_mb() -> float | None:
    """What this process holds in memory now; None where it cannot be known."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError):
        return None
