"""Held-out success over on-policy rounds, and against training off-policy on as many pairs.

Each seed runs the demo's configuration, `--rounds` rounds of it, each trained on answers of the
policy before. With more than one round the same seed also runs off-policy: the bundled model
answers the prompts of all rounds at once and is trained in one go. Both then have the same number
of prompts, of pairs (the widest margins) and of optimizer steps. Every policy is taken, whatever
the gate says of it. A seed changes prompts, samples and training.
Run from a clean checkout after `make test`: .venv/bin/python benchmarks/rounds.py [--full]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml
from machine import last_line
from scipy.stats import t

ROOT = Path(__file__).parent.parent
PROMPTS = 400
PAIRS = 240
"""Of each of several rounds: fewer than any has, so that all have as many."""
GOALS = {
    "lift_sampled_low": 0.0,
    "lift_greedy_low": 0.0,
    "lift_sampled_least": 0.05,
}
DECODINGS = ("sampled", "greedy")


def success(config: dict[str, Any], arm: str, times: int, folder: Path) -> list[dict[str, Any]]:
    """Run a configuration and return, of each round, pairs, steps and success by decoding."""
    name = f"{arm}-{config['seed']}"
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({**config, "name": name}))
    command = [sys.executable, "-m", "flows.cli", "rounds", "-c", str(path), "--json"]
    with (folder / f"{name}.log").open("ab") as log:
        done = subprocess.run(
            [*command, "--rounds", str(times), "-w", str(folder / name)],
            cwd=ROOT,
            check=True,
            stdout=subprocess.PIPE,
            stderr=log,
        )
    return [
        {
            "pairs": run["round"]["pairs"],
            "steps": run["round"]["steps"],
            "met": all(gate["passed"] for gate in run["gates"] if "force" not in gate["criterion"]),
            **{
                row["decoding"]: (row["before"], row["after"])
                for row in run["evaluations"]
                if row["metric"] == "success" and row["stratum"] == "all"
            },
        }
        for run in json.loads(done.stdout)["runs"]
    ]


def configuration(seed: int, pairs: int | None, prompts: int = PROMPTS) -> dict[str, Any]:
    """Return the demo's configuration for so many prompts and, at most, pairs."""
    config: dict[str, Any] = yaml.safe_load((ROOT / "configs/demo.yaml").read_text())
    source = {**config["prompts"]["sources"][0], "train": prompts}
    return {
        **config,
        "seed": seed,
        "prompts": {"sources": [source]},
        "filters": {**config["filters"], "maximum_pairs_per_source": pairs},
        "gate": {**config["gate"], "force": True},
    }


def measure(seed: int, rounds: int, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Return the rounds of each arm of one seed."""
    asked = configuration(seed, PAIRS if rounds > 1 else None)
    arms = {"on-policy": success(asked, "on-policy", rounds, folder)}
    if rounds > 1:
        at_once = configuration(seed, rounds * PAIRS, rounds * PROMPTS)
        arms["off-policy"] = success(at_once, "off-policy", 1, folder)
    for arm, measured in arms.items():
        for index, row in enumerate(measured, 1):
            changes = "   ".join(f"{d} {row[d][0]:.3f} -> {row[d][1]:.3f}" for d in DECODINGS)
            print(
                f"seed {seed}  {arm:<10} round {index}: {changes}   {row['pairs']} pairs, "
                f"{row['steps']} steps, gate {'met' if row['met'] else 'not met'}",
                flush=True,
            )
    return arms


def interval(values: list[float]) -> tuple[float, float, float]:
    """Return the mean over seeds and the ends of its 95 % interval, by Student's t."""
    half = float(t.ppf(0.975, len(values) - 1)) * stdev(values) / len(values) ** 0.5
    return fmean(values), fmean(values) - half, fmean(values) + half


def figures_of(measured: list[dict[str, list[dict[str, Any]]]], rounds: int) -> dict[str, float]:
    """Print the table over all seeds and return the figures; lifts are from the bundled model."""
    figures: dict[str, float] = {"seeds": len(measured), "rounds": rounds}
    for decoding in DECODINGS:
        before = [arms["on-policy"][0][decoding][0] for arms in measured]
        rows = {
            f"on-policy, round {index + 1}": lifts(measured, "on-policy", index, decoding)
            for index in range(rounds)
        }
        figures[f"lift_{decoding}_least"] = min(rows[f"on-policy, round {rounds}"])
        named = {"lift": f"on-policy, round {rounds}"}
        if rounds > 1:
            rows["off-policy"] = lifts(measured, "off-policy", 0, decoding)
            pairs = zip(rows[named["lift"]], rows["off-policy"], strict=True)
            rows["on - off"] = [on - off for on, off in pairs]
            named |= {"lift_off_policy": "off-policy", "on_minus_off": "on - off"}
        print(f"{decoding}: {fmean(before):.3f} before; lift and its 95 % interval over the seeds")
        intervals = {name: interval(values) for name, values in rows.items()}
        for name, (mean, low, high) in intervals.items():
            print(f"  {name:<20} {mean:+.3f} [{low:+.3f}, {high:+.3f}]")
        for figure, name in named.items():
            figures[f"{figure}_{decoding}"], figures[f"{figure}_{decoding}_low"], _ = intervals[
                name
            ]
    return figures


def lifts(
    measured: list[dict[str, list[dict[str, Any]]]], arm: str, index: int, decoding: str
) -> list[float]:
    """Return how far each seed's success is above the bundled model's after a round of an arm."""
    return [arms[arm][index][decoding][1] - arms[arm][0][decoding][0] for arms in measured]


def main() -> None:
    """Measure every seed, print a table, end with the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="how many, from 1 on; two or more")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="three rounds")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at once")
    parser.add_argument("--folder", type=Path, help="keep the runs there, and go on with them")
    arguments = parser.parse_args()
    rounds = 3 if arguments.full else arguments.rounds
    with tempfile.TemporaryDirectory(prefix="prefmill-benchmark-") as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(arguments.jobs) as pool:
            measured = list(
                pool.map(
                    lambda seed: measure(seed, rounds, folder),
                    range(1, arguments.seeds + 1),
                )
            )
    print(last_line("rounds", figures_of(measured, rounds), at_least=GOALS))


if __name__ == "__main__":
    main()
