"""Where a training's metrics go besides its own table, when asked."""

from __future__ import annotations

import contextlib
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from stages.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]

TENSORBOARD_FOLDER = "tensorboard"
"""Beside the folder of checkpoints; each training has a folder in it."""


INSTALLED_BY: dict[Tracker, str] = {
    "tensorboard": "-c constraints.txt tensorboard",
    "wandb": "-c constraints.txt wandb",
    "mlflow": "-c constraints.txt mlflow-skinny",
    "trackio": "--no-deps trackio gradio-client",
}
"""What pip is told. Beside the pinned packages it finds the whole mlflow, and trackio with all that
it asks for, in versions of years ago only."""


def require_trackers(names: tuple[Tracker, ...]) -> None:
    """Pass when the package of each tracker is installed.

    Raises:
        ConfigError: naming those that are not, and what installs them.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"report_to names {', '.join(missing)}, which this environment does not have",
            expected="installed packages",
            where="report_to",
            remedy="; ".join(f".venv/bin/pip install {INSTALLED_BY[name]}" for name in missing),
        )


@contextlib.contextmanager
def reporting(trainer: Any, names: tuple[Tracker, ...], folder: Path) -> Iterator[None]:
    """Have the trackers called ``names`` told what ``trainer`` logs meanwhile.

    They call the training what its ``folder`` of checkpoints is called.
    """
    trainer.args.run_name = folder.name
    for name in names:
        trainer.add_callback(_callback(name, folder))
    failed = True
    try:
        yield
        failed = False
    finally:
        for name in names:
            _end_run(name, failed=failed)


def _callback(name: Tracker, folder: Path) -> Any:
    from transformers import integrations

    if name != "tensorboard":
        return integrations.get_reporting_integration_callbacks([name])[0]()
    from torch.utils.tensorboard import SummaryWriter

    # Transformers would write into the folder of checkpoints, which a finished training removes.
    events = folder.parent.parent / TENSORBOARD_FOLDER / folder.name
    return integrations.TensorBoardCallback(SummaryWriter(log_dir=str(events)))


def _end_run(name: Tracker, *, failed: bool) -> None:
    """End the run of a tracker whose callback leaves it open: the next training has its own."""
    if name == "wandb":
        import wandb

        wandb.finish(int(failed))
    elif name == "mlflow" and failed:
        import mlflow

        mlflow.end_run("FAILED")
    elif name == "trackio" and failed:
        import trackio

        trackio.finish()
