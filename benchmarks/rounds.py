"""Held-out success before and after one round of `prefmill demo`, on several seeds.

A seed changes the prompts, the samples and the training; the bundled model is the same one.
Run from a clean checkout after `make test`: .venv/bin/python benchmarks/rounds.py [--seeds 5]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from machine import last_line

ROOT = Path(__file__).parent.parent
GOALS = {"lift_sampled_low": 0.0, "lift_greedy_low": 0.0, "lift_sampled_least": 0.05}


def lifts(seed: int) -> dict[str, dict[str, float]]:
    """Return the evaluation of success over all strata, by decoding."""
    environment = {k: v for k, v in os.environ.items() if k != "PREFECT_API_URL"}
    with tempfile.TemporaryDirectory(prefix="prefmill-benchmark-") as folder:
        command = [sys.executable, "-m", "flows.cli", "demo", "--json", "-w", folder]
        done = subprocess.run(
            [*command, "--seed", str(seed)],
            cwd=ROOT,
            env=environment,
            check=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
    (run,) = json.loads(done.stdout)["runs"]
    return {
        row["decoding"]: row
        for row in run["evaluations"]
        if row["metric"] == "success" and row["stratum"] == "all"
    }


def main() -> None:
    """Measure every seed, print a table, end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 1 on")
    seeds = parser.parse_args().seeds
    rows: dict[str, list[dict[str, float]]] = {"sampled": [], "greedy": []}
    for seed in range(1, seeds + 1):
        measured = lifts(seed)
        for decoding, row in measured.items():
            rows[decoding].append(row)
            print(
                f"seed {seed}  {decoding:<8} {row['before']:.3f} -> {row['after']:.3f}  "
                f"{row['difference']:+.3f} [{row['low']:+.3f}, {row['high']:+.3f}]",
                flush=True,
            )
    figures: dict[str, float] = {"seeds": seeds}
    for decoding, measured_rows in rows.items():
        differences = [row["difference"] for row in measured_rows]
        figures[f"lift_{decoding}"] = statistics.mean(differences)
        figures[f"lift_{decoding}_least"] = min(differences)
        figures[f"lift_{decoding}_low"] = min(row["low"] for row in measured_rows)
    print(last_line("rounds", figures, at_least=GOALS))


if __name__ == "__main__":
    main()
