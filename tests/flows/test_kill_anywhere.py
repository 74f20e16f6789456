"""Killed with SIGKILL at ten random moments and started again, a run ends as if never killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
import yaml
from polars.testing import assert_frame_equal

from stages.tables import ROW_TABLES, TRAINING_METRICS
from tests.flows.small import SMALL
from trainer.step_metrics import SPEEDS

KILLS = 10
ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


def start(config: Path, workspace: Path, url: str) -> subprocess.Popen:
    return launch(workspace, url, "rounds", "-c", config)


def launch(workspace: Path, url: str, *arguments: object) -> subprocess.Popen:
    environment = {**os.environ, "PREFECT_API_URL": url, "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    command = [sys.executable, "-m", "flows.cli", *arguments, "-w", workspace]
    log = (workspace.parent / f"{workspace.name}.log").open("ab")
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def committed(workspace: Path) -> dict[Path, tuple[int, int]]:
    """Every part-file and checkpoint with inode and modification time: a rewrite changes them."""
    parts = (workspace / "store").rglob("part-*.parquet")
    checkpoints = (workspace / "checkpoints").rglob("trainer_state.json")
    found = {}
    for path in [*parts, *checkpoints]:
        try:
            status = path.stat()
        except FileNotFoundError:  # an older checkpoint, deleted between listing and looking
            continue
        found[path] = (status.st_ino, status.st_mtime_ns)
    return found


def kill_after(process: subprocess.Popen, workspace: Path, new_files: int, pause: float) -> bool:
    """Kill once so many files more are there; return False if the run ended before."""
    before = len(committed(workspace))
    while process.poll() is None:
        if len(committed(workspace)) >= before + new_files:
            time.sleep(pause)
            process.send_signal(signal.SIGKILL)
            process.wait()
            return process.returncode == -signal.SIGKILL
        time.sleep(0.01)
    return False


def rows_of(workspace: Path, table: str) -> dict[str, pl.DataFrame]:
    """Return the rows of every part, without what a clock measured."""
    folder = workspace / "store" / table
    parts = {
        path.relative_to(folder).as_posix(): pl.read_parquet(path, hive_partitioning=False)
        for path in sorted(folder.rglob("part-*.parquet"))
    }
    if table != TRAINING_METRICS.name:
        return parts
    return {name: rows.filter(~pl.col("metric").is_in(SPEEDS)) for name, rows in parts.items()}


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    path = tmp_path_factory.mktemp("config") / "small.yaml"
    path.write_text(yaml.safe_dump(SMALL))
    return path


@pytest.fixture(scope="module")
def undisturbed(prefect_server, config, tmp_path_factory):
    """The workspace of a run that nothing disturbed."""
    workspace = tmp_path_factory.mktemp("undisturbed") / "workspace"
    assert start(config, workspace, prefect_server).wait(600) == 0
    return workspace


def assert_same(undisturbed: Path, other: Path) -> None:
    """Every row of every table, every export and every weight is the same."""
    for table in ROW_TABLES:
        expected, found = rows_of(undisturbed, table.name), rows_of(other, table.name)
        assert list(found) == list(expected), table.name
        for name, frame in expected.items():
            assert_frame_equal(found[name], frame, check_exact=True)
    for path in [*undisturbed.glob("exports/**/*.*"), *undisturbed.glob("models/*/*.safetensors")]:
        assert path.read_bytes() == (other / path.relative_to(undisturbed)).read_bytes(), path
    assert not list((other / "store").rglob("*.tmp"))


@pytest.mark.timeout(900)
def test_kill_it_anywhere(prefect_server, config, undisturbed, tmp_path):
    moments, killed = random.Random(20261121), tmp_path / "killed"
    total = len(committed(undisturbed))
    seen: dict[Path, tuple[int, int]] = {}
    kills = 0
    for _ in range(KILLS):
        process = start(config, killed, prefect_server)
        step = moments.randint(1, max(1, 2 * total // KILLS - 1))
        kills += kill_after(process, killed, step, moments.uniform(0, 0.3))
        now = committed(killed)
        rewritten = [p for p in seen.keys() & now.keys() if seen[p] != now[p]]
        assert not rewritten, "a finished part was made twice"
        seen = now
        if process.returncode == 0:
            break
    assert start(config, killed, prefect_server).wait(600) == 0
    assert kills >= KILLS // 2, f"only {kills} kills hit a running process"
    assert_same(undisturbed, killed)


def test_two_at_once_make_everything_once(prefect_server, config, undisturbed, tmp_path):
    shared = tmp_path / "shared"
    both = [start(config, shared, prefect_server) for _ in range(2)]
    assert [process.wait(600) for process in both] == [0, 0]
    assert_same(undisturbed, shared)


def test_ctrl_c_says_that_nothing_is_lost(prefect_server, config, undisturbed, tmp_path):
    workspace = tmp_path / "interrupted"
    process = start(config, workspace, prefect_server)
    while process.poll() is None and len(committed(workspace)) < 3:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    log = (tmp_path / "interrupted.log").read_text()
    assert "nothing finished is lost" in log
    assert "Traceback" not in log
    assert start(config, workspace, prefect_server).wait(600) == 0
    assert_same(undisturbed, workspace)
