"""What of this machine a process may use: less than there is, where a container says so."""

import os
from pathlib import Path
from typing import Final

import psutil

#: Where Linux tells a container its limits, in version 2 and in version 1 of control groups.
_CGROUP: Final = Path("/sys/fs/cgroup")


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Return how many cores this process may keep busy; two threads of one core count once where that is known."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    cores = min(allowed, psutil.cpu_count(logical=False) or allowed)
    quota, period = _cpu_quota(cgroup)
    if quota > 0 and period > 0:
        cores = min(cores, -(-quota // period))
    return max(1, cores)


def usable_memory_bytes(cgroup: Path = _CGROUP) -> int:
    """Return how much memory this process and its children may have together."""
    total = psutil.virtual_memory().total
    limits = (_number(cgroup / "memory.max"), _number(cgroup / "memory" / "memory.limit_in_bytes"))
    return min([total, *(limit for limit in limits if limit > 0)])


def _cpu_quota(cgroup: Path) -> tuple[int, int]:
    """Return microseconds of processor time and the period that they are for; 0 where there is no limit."""
    quota, _, period = _text(cgroup / "cpu.max").partition(" ")
    if quota.isdecimal() and period.isdecimal():
        return int(quota), int(period)
    return _number(cgroup / "cpu" / "cpu.cfs_quota_us"), _number(cgroup / "cpu" / "cpu.cfs_period_us")


def _number(path: Path) -> int:
    """Return the number in a file, 0 where there is none ("max", or -1: no limit)."""
    text = _text(path)
    return int(text) if text.isdecimal() else 0


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # not Linux, or no such controller
        return ""
