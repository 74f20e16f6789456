"""Seconds of `prefmill demo` per stage, and the share outside generation and training.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/demo.py
With --full the demo runs three times and the medians are given.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from machine import last_line

ROOT = Path(__file__).parent.parent
GENERATION = {
    "generate",
    "evaluate_before_greedy",
    "evaluate_after_sampled",
    "evaluate_after_greedy",
    "kl",
}
GOALS = {"total_s": 240, "overhead_share": 0.15, "second_run_s": 30}


def demo(workspace: Path) -> tuple[float, float, float]:
    """Run the demo; return wall seconds, CPU seconds and the wall clock at its start."""
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    clock, started = time.time(), time.monotonic()
    command = [sys.executable, "-m", "flows.cli", "demo", "-w", str(workspace), "--json"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.monotonic() - started, cpu, clock


def measure(workspace: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return the figures and the seconds of each stage of one first and one second run."""
    total, cpu, clock = demo(workspace)
    (run_file,) = workspace.glob("runs/*/run.json")
    run = json.loads(run_file.read_text())
    server_start = dt.datetime.fromisoformat(run["started_at"]).timestamp() - clock
    records = [json.loads(p.read_text()) for p in run_file.parent.glob("stages/*.json")]
    stages = {
        r["stage"]: r["seconds"] for r in sorted(records, key=lambda record: record["position"])
    }
    generation = sum(seconds for stage, seconds in stages.items() if stage in GENERATION)
    overhead = total - server_start - generation - stages["train"]
    second, _, _ = demo(workspace)
    figures = {
        "total_s": total,
        "cpu_s": cpu,
        "server_start_s": server_start,
        "generation_s": generation,
        "training_s": stages["train"],
        "overhead_s": overhead,
        "overhead_share": overhead / total,
        "second_run_s": second,
    }
    return figures, stages


def main() -> None:
    """Measure, print a table, end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="three runs, medians")
    repeats = 3 if parser.parse_args().full else 1
    measured = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory(prefix="prefmill-benchmark-") as folder:
            measured.append(measure(Path(folder)))
    for stage in measured[0][1]:
        seconds = [stages[stage] for _, stages in measured]
        print(f"  {stage:<24} {statistics.median(seconds):7.1f} s")
    figures = {
        name: statistics.median(figures[name] for figures, _ in measured) for name in measured[0][0]
    }
    for name, value in figures.items():
        spread = [figures_of[name] for figures_of, _ in measured]
        print(f"{name:<26} {value:8.2f}   from {min(spread):.2f} to {max(spread):.2f}")
    print(last_line("demo", figures, at_most=GOALS))


if __name__ == "__main__":
    main()
