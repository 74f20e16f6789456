"""What `prefmill doctor` looks at, and what it advises."""

from __future__ import annotations

import datetime as dt
import os
import platform
import shutil
import sys
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from lineage.liveness import DEAD
from lineage.records import list_runs
from stages.errors import PrefmillError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from flows.configuration import PipelineConfig
    from flows.models import Policy
    from lineage.workspace import Workspace
    from stages.prompt_sources import PromptSource

CONSTRAINTS = Path(__file__).parent.parent / "constraints.txt"

PACKAGES = (
    "torch", "transformers", "trl", "datasets", "polars", "pyarrow", "duckdb",
    "great-expectations", "prefect", "openai",
)  # fmt: skip

GIB = 2**30
CLOCK_TOLERANCE = dt.timedelta(minutes=5)
ENOUGH_DISK_GIB = 5
ENOUGH_MEMORY_GIB = 4


Status = Literal["ok", "warning", "missing"]


class Finding(NamedTuple):
    """One thing looked at."""

    subject: str
    status: Status
    detail: str


def examine(workspace: Workspace, config_file: Path | None) -> list[Finding]:
    """Return what was found, in the order it was looked at; nothing heavy is imported."""
    return [
        _python(),
        *_machine(workspace.root),
        *_packages(),
        _accelerator(),
        _workspace(workspace),
        *_runs(workspace),
        *(_configuration(config_file) if config_file else ()),
    ]


def _python() -> Finding:
    found = platform.python_version()
    if sys.version_info < (3, 11):  # noqa: UP036 - doctor is for machines that are not as they should be
        return Finding("python", "missing", f"{found}; 3.11 or newer is needed")
    return Finding("python", "ok", f"{found} in {sys.prefix}")


def _machine(root: Path) -> Iterator[Finding]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    status: Status = "ok" if memory >= ENOUGH_MEMORY_GIB else "warning"
    yield Finding("memory", status, f"{memory:.0f} GiB, {os.cpu_count()} cores")
    place = root.resolve()
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    free = shutil.disk_usage(existing).free / GIB
    status = "ok" if free >= ENOUGH_DISK_GIB else "warning"
    yield Finding("disk", status, f"{free:.0f} GiB free at {existing}")


def _packages() -> Iterator[Finding]:
    """Compare the installed versions with the constraints file."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines() if CONSTRAINTS.is_file() else []
    pinned = dict(line.split("==", 1) for line in lines if "==" in line and line[0] != "#")
    for name in PACKAGES:
        try:
            found = version(name)
        except PackageNotFoundError:
            yield Finding(name, "missing", "not installed; run `make venv`")
            continue
        wanted = pinned.get(name, found)
        same = found.split("+")[0] == wanted.split("+")[0]
        advice = "" if same else f"; tested with {wanted}: run `make venv`"
        yield Finding(name, "ok" if same else "warning", found + advice)


def _accelerator() -> Finding:
    if shutil.which("nvidia-smi"):
        return Finding("accelerator", "ok", "an NVIDIA driver is there; bf16 is used")
    return Finding("accelerator", "ok", "none: models run on the CPU in fp32")


def _workspace(workspace: Workspace) -> Finding:
    try:
        workspace.require_writable()
    except PrefmillError as error:
        return Finding("workspace", "missing", str(error))
    return Finding("workspace", "ok", str(workspace.root.resolve()))


def _runs(workspace: Workspace) -> Iterator[Finding]:
    """Name the runs whose process died, and those that a wrong clock dated in the future."""
    now = dt.datetime.now(dt.UTC)
    for run in list_runs(workspace):
        if run.status == DEAD:
            detail = f"its process died; `{run.continued_by}` goes on with it"
            yield Finding(f"run {run.run_id}", "warning", detail)
        if dt.datetime.fromisoformat(run.started_at) > now + CLOCK_TOLERANCE:
            detail = f"started at {run.started_at}, which is to come: a clock was wrong; until "
            detail += "then `latest` means this run"
            yield Finding(f"run {run.run_id}", "warning", detail)


def _configuration(path: Path) -> Iterator[Finding]:
    """Check the file, its prompt files and its model."""
    from flows.configuration import load_config
    from flows.models import find_policy

    try:
        config = load_config(path)
    except PrefmillError as error:
        yield Finding("configuration", "missing", str(error))
        return
    yield Finding("configuration", "ok", f"{path}: {config.name}, {config.rounds} round(s)")
    for source in config.prompts.sources:
        yield _prompts(source, config.prompts.seed)
    try:
        policy = find_policy(config.policy)
    except PrefmillError as error:
        yield Finding("policy", "missing", str(error))
        return
    yield Finding("policy", "ok", f"{policy.folder}, weights {policy.weights_hash}")
    yield from _engines(config, policy)


def _prompts(source: PromptSource, seed: int) -> Finding:
    """Read a source as a run does, with every row of it."""
    from stages.prompt_sources import read_source

    subject = f"prompts {source.name}"
    try:
        prompts, bad_rows = read_source(source, seed)
    except PrefmillError as error:
        return Finding(subject, "missing", str(error))
    detail = f"{source.kind}, {prompts.height} prompts"
    if bad_rows:
        detail += f", {len(bad_rows)} bad rows are set aside, the first: {bad_rows[0].reason}"
    return Finding(subject, "ok" if prompts.height and not bad_rows else "warning", detail)


def _engines(config: PipelineConfig, policy: Policy) -> Iterator[Finding]:
    """Check every generator and scorer as a run does before it asks anything."""
    from flows import scorers
    from flows.generators import ready_generators

    checks: list[tuple[str, Callable[[], None]]] = []
    try:
        checks += [(f"generator {g.name}", g.check) for g in ready_generators(config, policy)]
    except PrefmillError as error:
        yield Finding("generators", "missing", str(error))
    for scorer in config.scoring.judges:
        checks.append((f"scorer {scorer.name}", partial(scorers.check, scorer, policy)))
    for subject, check in checks:
        try:
            check()
        except PrefmillError as error:
            yield Finding(subject, "missing", str(error))
        else:
            yield Finding(subject, "ok", "can be used")
