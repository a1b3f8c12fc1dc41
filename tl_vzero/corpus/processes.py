"""Which process is at work in a folder, and whether it still is."""

import os
import socket
from pathlib import Path
from typing import Any

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def this_process() -> dict[str, Any]:
    """What tells this process from every other one: host, boot, number and start."""
    return {"host": socket.gethostname(), "boot": _boot(), "pid": os.getpid(), "started": _start_of(os.getpid())}


def is_running(process: dict[str, Any]) -> bool | None:
    """Whether a process is still there; None where it cannot be known, such as of another host."""
    if process.get("host") != socket.gethostname():
        return None
    if process.get("boot") != _boot():
        return False
    pid = process.get("pid")
    if not isinstance(pid, int) or os.name == "nt":  # there, asking would end it
        return None
    started = _start_of(pid)
    if started is not None or _start_of(os.getpid()) is not None:
        return started is not None and started == process.get("started")
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _boot() -> str | None:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _start_of(pid: int) -> int | None:
    """When a process began, in ticks since the boot, as numbers are used again; None where it is not there."""
    try:
        about = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    state, *rest = about.rpartition(")")[2].split()  # the name, in brackets, may hold blanks
    return None if state in "ZX" else int(rest[18])


def memory_mb() -> float | None:
    """What this process holds in memory now; None where it cannot be known."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except (OSError, ValueError):
        return None
