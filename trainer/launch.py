"""A training in several processes, which this one starts, listens to and outlives.

What they are started with lies in a folder for as long as they run. They report on their standard
output, a line of JSON behind a record separator each (RFC 7464); whatever else they print is shown
when they fail.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from stages import errors
from stages.errors import ConfigError, MissingFileError, ModelError

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

REPORT = "\x1e"

SPREADING = ("FSDP", "DEEPSPEED")
"""What Accelerate does on accelerators only: without one each process would train alone."""

SHOWN_LINES = 5
"""Of what failed processes printed."""


def train_in_processes(
    launcher: Path,
    rows: pl.DataFrame,
    job: dict[str, Any],
    progress: Callable[[int, int], None] | None,
    note: Callable[[str], None] | None,
) -> None:
    """Train on ``rows`` in the processes that Accelerate's file ``launcher`` describes.

    Args:
        launcher: the file.
        rows: as `trainer.dpo.train_dpo` takes them.
        job: its other arguments, as JSON.
        progress: called as by `train_dpo`.
        note: called as by `train_dpo`.

    Raises:
        PrefmillError: the first that a process raised.
        ModelError: the processes ended without a word.
    """
    require_launchable(launcher)
    with tempfile.TemporaryDirectory(prefix="prefmill-") as folder:
        rows.write_parquet(Path(folder) / "rows.parquet")
        (Path(folder) / "job.json").write_text(json.dumps(job))
        command = launch_command(launcher, folder)
        # Each process ends when its standard input does: with this one, however that ends.
        with subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as processes:
            try:
                failures, printed = _listen(processes, progress, note)
            finally:
                assert processes.stdin is not None, "it is a pipe"
                processes.stdin.close()
        if processes.returncode:
            raise failures[0] if failures else _ended(processes.returncode, printed)


def require_launchable(launcher: Path) -> None:
    """Pass when this machine can run the processes that Accelerate's file ``launcher`` describes.

    Raises:
        MissingFileError: the file is not there.
        ConfigError: it is not one of Accelerate's, or wants a CUDA device.
    """
    import torch

    kind = _settings(launcher)["distributed_type"]
    if kind in SPREADING and not torch.cuda.is_available():
        raise ConfigError(
            f"{str(launcher)!r} asks for {kind}, and there is no CUDA device",
            expected="CUDA devices to spread the model over",
            where="training.accelerate",
            remedy="choose configs/accelerate/cpu.yaml",
        )


def launch_command(launcher: Path, job: str) -> list[str]:
    """Return what starts the processes on the ``job`` in a folder.

    Accelerate's own launcher starts several processes on a CPU by MPI only; torch's needs none.

    Raises:
        MissingFileError: the file is not there.
        ConfigError: it is not one of Accelerate's.
    """
    settings = _settings(launcher)
    module = ["-m", "trainer.launched", job]
    if settings["distributed_type"] == "MULTI_CPU":
        run = ["torch.distributed.run", "--standalone"]
        run.append(f"--nproc-per-node={settings.get('num_processes', 1)}")
        return [sys.executable, "-m", *run, *module]
    run = ["accelerate.commands.launch", "--config_file", str(launcher)]
    return [sys.executable, "-m", *run, *module]


def _settings(launcher: Path) -> dict[str, Any]:
    """Return what Accelerate's file ``launcher`` says.

    Raises:
        MissingFileError: it is not there.
        ConfigError: it is not one of Accelerate's.
    """
    try:
        settings = yaml.safe_load(launcher.read_text(encoding="utf-8"))
    except OSError as error:
        raise MissingFileError(
            f"the file {str(launcher)!r} cannot be read: {error.strerror}",
            expected="a file such as configs/accelerate/ddp.yaml",
            where="training.accelerate",
        ) from None
    except yaml.YAMLError as error:
        settings = str(error)
    if not isinstance(settings, dict) or "distributed_type" not in settings:
        raise ConfigError(
            f"{str(launcher)!r} has no key distributed_type",
            expected="a file that `accelerate config` writes",
            where="training.accelerate",
        )
    return settings


def _listen(
    processes: subprocess.Popen[str],
    progress: Callable[[int, int], None] | None,
    note: Callable[[str], None] | None,
) -> tuple[list[Exception], list[str]]:
    """Hand on what is reported until the end; return errors and the last lines printed."""
    failures: list[Exception] = []
    printed: deque[str] = deque(maxlen=SHOWN_LINES)
    assert processes.stdout is not None, "it is a pipe"
    for line in processes.stdout:
        # A library may have left its line unfinished.
        before, found, told = line.partition(REPORT)
        if before.strip():
            printed.append(before.strip())
        if not found:
            continue
        report = json.loads(told)
        if "error" in report:
            failures.append(_error(report["error"]))
        elif "note" in report and note:
            note(report["note"])
        elif "progress" in report and progress:
            progress(*report["progress"])
    return failures, list(printed)


def _error(facts: dict[str, str]) -> Exception:
    """Return the error that a process reported."""
    kind: type[errors.PrefmillError] = getattr(errors, facts.pop("kind"))
    return kind(facts.pop("found"), **facts)


def _ended(code: int, printed: list[str]) -> ModelError:
    return ModelError(
        f"the training's processes ended with code {code}",
        where=" / ".join(printed) or "they printed nothing",
        remedy="the same command goes on from the last checkpoint",
    )
