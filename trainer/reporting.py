"""Where a training's metrics go besides its own table, when asked."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Literal

from stages.errors import ConfigError

if TYPE_CHECKING:
    from pathlib import Path

Tracker = Literal["tensorboard", "wandb", "mlflow", "trackio"]

TENSORBOARD_FOLDER = "tensorboard"
"""Beside the folder of checkpoints; each training has a folder in it."""


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
            where="training.report_to",
            remedy=f".venv/bin/pip install -c constraints.txt {' '.join(missing)}",
        )


def report_to_tensorboard(trainer: Any, folder: Path) -> None:
    """Have the metrics that ``trainer`` logs written as TensorBoard's events in ``folder``.

    Transformers would write them into the folder of checkpoints, which a finished training removes.
    """
    from torch.utils.tensorboard import SummaryWriter
    from transformers.integrations import TensorBoardCallback

    trainer.add_callback(TensorBoardCallback(SummaryWriter(log_dir=str(folder))))
