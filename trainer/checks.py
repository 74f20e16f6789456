"""What is measured during a training beyond TRL's own, and what ends it. Imports torch at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

from trainer import processes
from trainer.step_metrics import Speed
from trainer.stopping import failed_check

if TYPE_CHECKING:
    from trainer.dpo_settings import DPOTrainingConfig
    from trainer.heldout import HeldoutPairs
    from trainer.kl import KLEstimator


class CheckCallback(TrainerCallback):  # type: ignore[misc]
    """Adds metrics to each step, measures at each check and ends the training where one fails."""

    def __init__(
        self,
        trainer: Any,
        config: DPOTrainingConfig,
        kl: KLEstimator | None,
        heldout: HeldoutPairs | None,
    ) -> None:
        """Watch ``trainer``; without ``kl`` or ``heldout`` these are not measured."""
        self.trainer = trainer
        trainer.step_pairs = []
        self.config = config
        self.kl = kl
        self.heldout = heldout
        self.speed = Speed()
        self.stopped: dict[str, Any] | None = None
        """Step and reason of the failed check."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Look at the clock."""
        del args, state, control
        self.speed.start(self.trainer._total_train_tokens)  # noqa: SLF001

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Add the step's metrics to those that TRL is about to log."""
        del args, control
        trainer = self.trainer
        rows, of_rows = trainer.take_step()
        tokens = trainer._total_train_tokens  # noqa: SLF001
        found = {**self.speed.metrics(tokens, rows, trainer.unit), **of_rows}
        if self._is_check(state):
            found |= self._measured(state.global_step)
        for name, value in found.items():
            trainer._metrics["train"][name].append(value)  # noqa: SLF001

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """End the training where a check fails, before its checkpoint is written."""
        del args
        if "loss" not in (logs or {}) or not self._is_check(state):
            return
        history = [entry for entry in state.log_history if "loss" in entry]
        config = self.config
        reason = failed_check(history, config.stopping, config.checkpoint_every_steps)
        if reason:
            self.stopped = {"step": state.global_step, "reason": reason}
            control.should_training_stop = True
            control.should_save = False

    def _is_check(self, state: Any) -> bool:
        step: int = state.global_step
        return step % self.config.checkpoint_every_steps == 0 or step == state.max_steps

    def _measured(self, step: int) -> dict[str, float]:
        found: dict[str, float] = {}
        with torch.no_grad():
            if self.kl and processes.is_first():
                found["kl"] = self.kl.estimate(self.trainer.model, step)
            if self.heldout:
                found |= self.heldout.measure(self.trainer)
        self.trainer.model.train()
        said: dict[str, float] = processes.said_by_first(found)
        return said
