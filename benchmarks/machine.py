"""What every benchmark says about the machine, and the one line of JSON that it ends with."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path


def machine() -> dict[str, object]:
    """Return processor, cores, memory, load and versions."""
    model = "unknown"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(pages / 2**30),
        "load_before": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
    }


def last_line(
    benchmark: str,
    figures: dict[str, float],
    *,
    at_most: dict[str, float] | None = None,
    at_least: dict[str, float] | None = None,
) -> str:
    """Return the JSON line: each figure with its goal, if it has one, and whether it is met."""
    rows: dict[str, dict[str, object]] = {}
    for name, value in figures.items():
        rows[name] = {"value": float(f"{value:.4g}")}
        if at_most and name in at_most:
            rows[name] |= {"goal_at_most": at_most[name], "met": value <= at_most[name]}
        if at_least and name in at_least:
            rows[name] |= {"goal_at_least": at_least[name], "met": value >= at_least[name]}
    return json.dumps({"benchmark": benchmark, "machine": machine(), "figures": rows})
