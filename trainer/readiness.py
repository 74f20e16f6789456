"""What of a training's settings this machine may lack, found before anything is generated."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trainer.adapters import require_adapter
from trainer.launch import require_launchable
from trainer.reporting import require_trackers

if TYPE_CHECKING:
    from trainer.dpo_settings import DPOTrainingConfig


def require_ready(config: DPOTrainingConfig) -> None:
    """Pass when what ``config`` names is installed and there.

    Raises:
        ConfigError: a package or a CUDA device is not, or Accelerate's file is something else.
        MissingFileError: Accelerate's file is not there.
    """
    if config.adapter:
        require_adapter(config.adapter)
    if config.accelerate:
        require_launchable(config.accelerate)
    require_trackers(config.report_to)
