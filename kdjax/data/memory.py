"""What memory is left, so that a file too large for it is refused before it is read.

Linux ends a process that takes more than there is without a word.
"""

import contextlib
import math
import os
from pathlib import Path

from kdjax.errors import DataError

# Where Linux keeps a container's limit, and the line of its statistics that tells what
# of it can't be given back: for both versions of its control groups.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.stat", "anon"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
        "total_rss",
    ),
)
# Matrices of float64 that are there at once while a Normal is fitted.
_COVARIANCES = 4


def available_memory() -> float:
    """Bytes that can still be taken; infinite where the system doesn't tell."""
    return min(_of_machine(), *(_of_group(*paths) for paths in _GROUPS))


def check_room(path: Path, needed: float, hint: str) -> None:
    """Refuses a file whose content has no room in memory.

    Args:
        path: of the file.
        needed: bytes that it takes, at the least.
        hint: what to do.
    """
    free = available_memory()
    if needed > free:
        raise DataError(
            f"{path} takes {needed / 1e9:.3g} GB of memory or more, and {free / 1e9:.3g} "
            f"GB are free: {hint}."
        )


def check_width(channels: int) -> None:
    """Refuses more channels than leave room for the covariance of their errors."""
    needed, free = _COVARIANCES * 8.0 * channels**2, available_memory()
    if needed > free:
        raise DataError(
            f"{channels:,} channels take {needed / 1e9:.3g} GB of memory for the "
            f"covariances of their errors, and {free / 1e9:.3g} GB are free: leave out or "
            "join channels, or split them among several detectors."
        )


def _of_machine() -> float:
    with contextlib.suppress(OSError, LookupError, ValueError):
        return 1024.0 * _entry("/proc/meminfo", "MemAvailable:")
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return float(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    return math.inf


def _of_group(limit: str, statistics: str, taken: str) -> float:
    with contextlib.suppress(OSError, LookupError, ValueError):
        # Without a limit it is a word.
        return float(Path(limit).read_text("ascii")) - _entry(statistics, taken)
    return math.inf


def _entry(path: str, name: str) -> float:
    """The number behind a name at the beginning of a line."""
    lines = (line.split() for line in Path(path).read_text("ascii").splitlines())
    return float({words[0]: words[1] for words in lines if len(words) > 1}[name])
