"""Jobs measured in turn on a machine that others use too: wall, CPU, and how much was free."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable

BUSY_SECONDS = 0.1
"""Of CPU, in the loop that finds out how much of a core is free."""


class Run(NamedTuple):
    """One measured run: seconds and how much of a core was free just before."""

    wall: float
    cpu: float
    """Of this process, the client."""
    server_cpu: float
    """Of the processes below it."""
    core_share: float


def timed(job: Callable[[], object]) -> Run:
    """Return what a job takes."""
    share = core_share()
    wall, cpu, server_cpu = time.monotonic(), time.process_time(), cpu_of_children()
    job()
    return Run(
        time.monotonic() - wall,
        time.process_time() - cpu,
        cpu_of_children() - server_cpu,
        share,
    )


def cpu_of_children() -> float:
    """Return the CPU seconds so far of the processes that this one has started."""
    import psutil

    children = psutil.Process().children(recursive=True)
    return sum(sum(child.cpu_times()[:2]) for child in children)


def core_share() -> float:
    """Return the share of a core that a busy loop gets now."""
    wall, cpu = time.monotonic(), time.process_time()
    while time.process_time() - cpu < BUSY_SECONDS:
        pass
    return BUSY_SECONDS / (time.monotonic() - wall)


def in_turn(repeats: int, **jobs: Callable[[], object]) -> dict[str, list[Run]]:
    """Return the runs of each job: all jobs once, then all again."""
    runs: dict[str, list[Run]] = {name: [] for name in jobs}
    for _ in range(repeats):
        for name, job in jobs.items():
            runs[name].append(timed(job))
    return runs


def median_of(runs: list[Run], name: str) -> float:
    """Return the median of one of `Run`'s fields."""
    return statistics.median(getattr(run, name) for run in runs)


def noise(runs: dict[str, list[Run]]) -> dict[str, float]:
    """Return what tells how far the machine can be trusted."""
    shares = [run.core_share for of_one in runs.values() for run in of_one]
    return {"core_share": statistics.median(shares), "core_share_lowest": min(shares)}
