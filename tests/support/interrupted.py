"""Ctrl-C at any line of the package: where it may come, and how it is made to come there."""

import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import tl_vzero

PACKAGE = f"{Path(tl_vzero.__file__).parent}/"
# An error raised right at a line, or a signal that Python's own handler turns into one.
Way = Literal["raised", "signal"]


def lines_of(job: Callable[[], object], files: Sequence[str]) -> list[int]:
    """The first and the last time that a job reaches each line of some files, counted in lines reached."""
    reached: list[tuple[str, int]] = []
    _traced(job, files, lambda frame: reached.append((frame.f_code.co_filename, frame.f_lineno)))
    first = {line: count for count, line in reversed(list(enumerate(reached)))}
    last = {line: count for count, line in enumerate(reached)}
    return sorted({*first.values(), *last.values()})


def interrupt_at(job: Callable[[], object], files: Sequence[str], count: int, way: Way) -> tuple[str | None, bool]:
    """Run a job and interrupt it at the n-th line that it reaches: the line, and whether the job was interrupted."""
    passed, line = 0, None

    def look(frame: FrameType) -> None:
        nonlocal passed, line
        passed += 1
        if passed == count + 1:
            line = f"{frame.f_code.co_filename.removeprefix(PACKAGE)}:{frame.f_lineno}"
            if way == "raised":
                raise KeyboardInterrupt
            signal.raise_signal(signal.SIGINT)

    try:
        _traced(job, files, look)
    except KeyboardInterrupt:
        return line, True
    return line, False


def _traced(job: Callable[[], object], files: Sequence[str], look: Callable[[FrameType], object]) -> None:
    wanted = tuple(PACKAGE + file for file in files)

    def on_line(frame: FrameType, event: str, _: Any) -> Any:
        if event == "line":
            look(frame)
        return on_line

    def on_call(frame: FrameType, event: str, _: Any) -> Any:
        return on_line if frame.f_code.co_filename.startswith(wanted) else None

    before = sys.gettrace()
    sys.settrace(on_call)
    try:
        job()
    finally:
        sys.settrace(before)
