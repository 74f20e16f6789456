"""What publishing one more run takes in a workspace of many, and what asking about it takes.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/lineage_runs.py
500 runs (--runs): one is made by the real stages from six prompts, the others are copies of its
files under ids of their own. Published are all of them with no file to go by (`rebuild`), then
again with nothing new, then with one more.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

from machine import last_line

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
if TYPE_CHECKING:
    from collections.abc import Callable

    from lineage.workspace import Workspace

FIRST = "run-0"
ASKED = "FROM {} WHERE run_id = ?"
VIEWS = ("funnel", "run_noise", "filter_overlap", "pair_quality")


def main() -> None:
    """Measure, print a table and the line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--runs", type=int, default=500)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), asked.runs)
    for name, value in figures.items():
        print(f"{name:<24} {value:>12.4g}")
    print(last_line("lineage_runs", figures))


def measure(folder: Path, runs: int) -> dict[str, float]:
    """Return the CPU seconds of each publication and question."""
    from lineage.database import publish, rebuild
    from lineage.query import query

    workspace = first_run(folder)
    keys = sorted(path.stem for path in workspace.store.glob("stages/*.json"))
    started = time.monotonic()
    for number in range(1, runs):
        copy_run(workspace, keys, number)
    print(f"{runs} runs written in {time.monotonic() - started:.0f} s", flush=True)
    figures = {"rebuild_cpu_s": cpu(lambda: rebuild(workspace))}
    figures["nothing_new_cpu_s"] = cpu(lambda: publish(workspace))
    copy_run(workspace, keys, runs)
    figures["one_more_cpu_s"] = cpu(lambda: publish(workspace))
    figures["published_mb"] = workspace.lineage_database.stat().st_size / 1e6
    for view in VIEWS:
        sql = ASKED.format(view)
        figures[f"{view}_cpu_s"] = cpu(lambda sql=sql: query(workspace, sql, [f"run-{runs}"]))
    return figures


def cpu(job: Callable[[], object]) -> float:
    """Return the CPU seconds of a job, and say its wall seconds too."""
    wall, started = time.monotonic(), time.process_time()
    job()
    taken = time.process_time() - started
    print(f"  {taken:.2f} CPU s, {time.monotonic() - wall:.2f} s", flush=True)
    return taken


def first_run(folder: Path) -> Workspace:
    """Return a workspace with one run, up to its exports."""
    from lineage.workspace import Workspace
    from tests.lineage.written_workspace import config_of, refresh

    workspace = Workspace(folder / "workspace")
    workspace.require_writable()
    filters = {"minimum_margin": 0.5, "maximum_length_ratio": 1.1}
    refresh(workspace, config_of(folder, "zebra", filters=filters), FIRST, "zebra")
    return workspace


def copy_run(workspace: Workspace, keys: list[str], number: int) -> None:
    """Write the first run's files once more, as those of another run with other stage keys."""
    ids = {key: f"{number:05d}{key[5:]}" for key in keys} | {FIRST: f"run-{number}"}
    for key in keys:
        for folder in workspace.store.glob(f"*/stage_key={key}"):
            shutil.copytree(folder, folder.with_name(f"stage_key={ids[key]}"))
        record = workspace.store / "stages" / f"{key}.json"
        write_renamed(record, record.with_stem(ids[key]), ids)
    for path in (workspace.runs / FIRST).rglob("*.json"):
        relative = path.relative_to(workspace.runs / FIRST)
        write_renamed(path, workspace.runs / ids[FIRST] / relative, ids)


def write_renamed(path: Path, copy: Path, ids: dict[str, str]) -> None:
    """Copy a record with other ids in it."""
    text = path.read_text()
    for old, new in ids.items():
        text = text.replace(old, new)
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_text(text)


if __name__ == "__main__":
    main()
