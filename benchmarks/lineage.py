"""Whether the lineage is in anyone's way: concurrent runs and readers, and what it adds to a stage.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/lineage.py
Six processes run three runs each through the real stage runner (prompts, candidates, scores, each
of some parts, validated) and publish; four readers open `lineage.duckdb` over and over, ask and
close, and one opens it once and keeps it. Of a curation on the bundled model the seconds within the
lineage's own functions are taken, publication among them, against all its seconds. Last comes
benchmarks/lineage_views.py. --full has ten runs a process and 10M pairs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "benchmarks")]

from machine import last_line  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flows.stage_runner import StageWriter

RUNNERS, READERS = 6, 4
RUNS_EACH, RUNS_EACH_FULL = 3, 10
ROWS, PARTS = 500, 4
"""Of each table of each run: rows a part, and parts."""
GOALS_AT_MOST = {
    "lost_rows": 0,
    "failed_reads": 0,
    "failed_runs": 0,
    "overhead_share": 0.02,
    "view_ratio_to_parquet": 1.2,
}
ASKED = """
SELECT
    (SELECT count(*) FROM runs),
    (SELECT count(*) FROM candidates),
    (SELECT count(*) FROM scores AS s JOIN candidates AS c USING (candidate_id)),
    (SELECT count(*) FROM pair_quality),
    (SELECT sum(rows) FROM artifacts WHERE role = 'output')
"""


def main() -> None:
    """Measure, and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="more runs, 10M pairs")
    parser.add_argument("--role", choices=sorted(ROLES), help=argparse.SUPPRESS)
    parser.add_argument("arguments", nargs="*", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.role:
        ROLES[asked.role](*asked.arguments)
        return
    figures = crowded(RUNS_EACH_FULL if asked.full else RUNS_EACH)
    figures |= overhead()
    figures |= views(full=asked.full)
    for name, value in figures.items():
        print(f"{name:<24} {value:>12.4g}")
    print(last_line("lineage", figures, at_most=GOALS_AT_MOST))


def views(*, full: bool) -> dict[str, float]:
    """Return the figure of the views' benchmark, or nothing while it is not there."""
    try:
        import lineage_views
    except ImportError as error:
        print(f"view_ratio_to_parquet: not measured, no benchmarks/lineage_views.py ({error})")
        return {}
    size = lineage_views.FULL if full else lineage_views.DEFAULT
    return {"view_ratio_to_parquet": lineage_views.measure(size)["view_ratio_to_parquet"]}


def crowded(runs_each: int) -> dict[str, float]:
    """Return what was lost and what failed while runs and readers were at work together."""
    from lineage.database import publish
    from lineage.query import query
    from lineage.workspace import Workspace

    with tempfile.TemporaryDirectory() as folder:
        workspace, stop = Workspace(Path(folder) / "w"), Path(folder) / "stop"
        workspace.require_writable()
        publish(workspace)
        place = str(workspace.root)
        readers = [child("read", place, str(stop)) for _ in range(READERS)]
        readers.append(child("hold", place, str(stop)))
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()  # it has opened the file
        started = time.monotonic()
        runners = [child("run", place, str(n), str(runs_each)) for n in range(RUNNERS)]
        failed_runs = sum(finished(runner) is None for runner in runners)
        seconds = time.monotonic() - started
        stop.touch()
        said = [finished(reader) for reader in readers]
        told = [json.loads(lines[-1]) for lines in said if lines]
        asked = sum(one["reads"] for one in told)
        print(f"{RUNNERS * runs_each} runs in {seconds:.1f} s beside {asked} reads by {len(told)}")
        publications = [p for one in told for p in one["problems"]]
        for problem in publications[:5]:
            print(problem)
        expected = {"runs": RUNNERS * runs_each, "stage_runs": 3 * RUNNERS * runs_each}
        rows = RUNNERS * runs_each * PARTS * ROWS
        expected |= dict.fromkeys(("prompts", "candidates", "scores"), rows)
        lost = 0
        for name, count in expected.items():
            found = query(workspace, f'SELECT count(*) FROM "{name}"').item()  # noqa: S608 - ours
            lost += abs(count - found)
    failed_reads = len(publications) + len(readers) - len(told)
    return {"lost_rows": lost, "failed_reads": failed_reads, "failed_runs": failed_runs}


def child(role: str, *arguments: str) -> subprocess.Popen[str]:
    """Start this file in a process of its own."""
    command = [sys.executable, __file__, "--role", role, *arguments]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
    )


def finished(process: subprocess.Popen[str]) -> list[str] | None:
    """Return the lines that a process printed, or None if it failed, and print why."""
    out, error = process.communicate(timeout=900)
    if process.returncode:
        print(error[-2000:], file=sys.stderr)
        return None
    return out.splitlines()


def run(place: str, number: str, count: str) -> None:
    """Run ``count`` runs of three stages, each published when it has ended."""
    from flows.stage_runner import RunContext, StageSpec, run_stage, utc_now
    from lineage.database import publish
    from lineage.records import RunRecord, write_run
    from lineage.workspace import Workspace

    workspace = Workspace(Path(place))
    for turn in range(int(count)):
        run_id = f"runner{number}-refresh-{turn}"
        context = RunContext(workspace, run_id)
        record = RunRecord(run_id, "refresh", f"runner{number}", 0, {}, "1", "running", utc_now())
        write_run(workspace, record)
        inputs: tuple[Any, ...] = ()
        for stage, name in (
            ("prompts", "prompts"),
            ("generate", "candidates"),
            ("score", "scores"),
        ):
            spec = StageSpec(stage, 1, {"run": run_id}, inputs, (name,))
            made = run_stage(context, stage, spec, lambda w, n=name: write_rows(w, n))
            inputs = (*inputs, made.output(name))
        write_run(workspace, replace(record, status="completed", ended_at=utc_now()))
        publish(workspace)


def write_rows(writer: StageWriter, name: str) -> None:
    """Write parts of rows whose ids tell which run, part and row they are."""
    import polars as pl

    from stages.tables import table
    from tests.validators.good_rows import good_rows

    schema = table(name)
    for part in range(PARTS):
        place = pl.int_range(ROWS).cast(pl.String)
        made = f"{writer.context.run_id}-{part}-" + place
        ids = {c: made for c in ("prompt_id", "candidate_id") if c in schema.column_names}
        writer.write(name, good_rows(schema, ROWS).with_columns(**ids), part)


def read(place: str, stop: str) -> None:
    """Open, ask and close until told to stop: counts never fall, nothing is half there."""
    import duckdb

    path, before, reads = str(Path(place) / "lineage.duckdb"), 0, 0
    problems: list[str] = []
    print("open", flush=True)
    while not Path(stop).exists():
        reads += 1
        try:
            with duckdb.connect(path, read_only=True) as connection:
                runs, candidates, scores, _, rows = connection.sql(ASKED).fetchall()[0]
        except Exception as error:  # noqa: BLE001 - whatever it is, it counts
            problems.append(f"{type(error).__name__}: {error}")
            continue
        if candidates < before or scores > candidates or (candidates and not rows):
            problems.append(f"{runs} runs, {candidates} candidates after {before}, {scores} scores")
        before = candidates
    print(json.dumps({"reads": reads, "problems": problems}))


def hold(place: str, stop: str) -> None:
    """Open the file once and ask until told to stop: the answer stays what it was."""
    import duckdb

    problems: list[str] = []
    connection = duckdb.connect(str(Path(place) / "lineage.duckdb"), read_only=True)
    first, reads = connection.sql(ASKED).fetchall(), 1
    print("open", flush=True)
    while not Path(stop).exists():
        reads += 1
        try:
            found = connection.sql(ASKED).fetchall()
            problems += [f"{found} after {first}"] if found != first else []
        except Exception as error:  # noqa: BLE001 - whatever it is, it counts
            problems.append(f"{type(error).__name__}: {error}")
        time.sleep(0.05)
    print(json.dumps({"reads": reads, "problems": problems}))


def overhead() -> dict[str, float]:
    """Return the lineage's share of a real curation's seconds."""
    with tempfile.TemporaryDirectory() as folder:
        lines = finished(child("curate", folder))
    if lines is None:
        raise SystemExit("the curation failed")
    found: dict[str, float] = json.loads(lines[-1])
    share = found["lineage_s"] / found["all_s"]
    print(f"curation: {found['all_s']:.1f} s, lineage {found['lineage_s']:.2f} s of it, ", end="")
    print(f"publication {found['publish_s']:.2f} s, {found['stages']:.0f} stages")
    return {"overhead_share": share}


def curate(folder: str) -> None:
    """Curate as `prefmill refresh -c configs/demo.yaml` does, and time the lineage's functions."""
    from flows import curation, stage_runner, tracked_run
    from flows.configuration import load_config
    from flows.models import find_policy
    from lineage import workspace as store
    from lineage.records import read_stage_runs

    config = load_config(ROOT / "configs" / "demo.yaml", {})
    policy = find_policy(config.policy)
    workspace = store.Workspace(Path(folder))
    workspace.require_writable()
    spent: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        for name in ("write_stage_record", "write_stage_run", "finished_output"):
            stack.enter_context(clocked(stage_runner, name, spent))
        stack.enter_context(clocked(store, "file_sha256", spent))
        stack.enter_context(clocked(tracked_run, "write_run", spent))
        stack.enter_context(clocked(tracked_run, "publish", spent))
        stack.enter_context(unreported())
        started = time.monotonic()
        with tracked_run.tracked_run(workspace, "refresh", config, policy) as context:
            curation.curate(context, config, policy)
        seconds = time.monotonic() - started
    stages = len(read_stage_runs(workspace, context.run_id))
    said = {"all_s": seconds, "lineage_s": sum(spent.values()), "publish_s": spent["publish"]}
    print(json.dumps({**said, "stages": stages}))


@contextlib.contextmanager
def clocked(module: Any, name: str, spent: dict[str, float]) -> Iterator[None]:
    """Add the seconds within a function of ``module`` to ``spent``."""
    inner: Callable[..., Any] = getattr(module, name)

    def outer(*arguments: Any, **named: Any) -> Any:
        started = time.monotonic()
        try:
            return inner(*arguments, **named)
        finally:
            spent[name] = spent.get(name, 0.0) + time.monotonic() - started

    setattr(module, name, outer)
    try:
        yield
    finally:
        setattr(module, name, inner)


@contextlib.contextmanager
def unreported() -> Iterator[None]:
    """Draw no report and make no artifacts: they are none of the lineage's."""
    import flows.artifacts

    inner = flows.artifacts.show_run
    flows.artifacts.show_run = lambda *_: None
    try:
        yield
    finally:
        flows.artifacts.show_run = inner


ROLES: dict[str, Callable[..., None]] = {"run": run, "read": read, "hold": hold, "curate": curate}


if __name__ == "__main__":
    main()
