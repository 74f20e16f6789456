"""Pairs that a training keeps aside to be measured on."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from stages.errors import DataError
from trainer.data_checks import prompt_keys

if TYPE_CHECKING:
    import polars as pl
    import torch


def split(
    rows: pl.DataFrame, share: float, seed: int, where: str = "training.stopping.heldout_share"
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Return the rows to train on and those to measure on, which have none of their prompts.

    Decided by the prompts' texts and the seed alone. ``where`` is the setting of ``share``.

    Raises:
        DataError: one of the two would be empty.
    """
    if not share:
        return rows, rows.clear()

    def digest(key: str) -> bytes:
        return hashlib.sha256(f"{seed}:{key}".encode()).digest()

    keys = prompt_keys(rows["prompt"])
    different = sorted(keys.unique().to_list(), key=digest)
    kept_aside = different[: round(share * len(different))]
    is_aside = keys.is_in(kept_aside)
    if not is_aside.any() or is_aside.all():
        raise DataError(
            f"heldout_share {share:g} of {len(different)} prompts leaves no row on one side",
            expected="at least one prompt to train on and one to measure on",
            where=where,
            remedy="set it to 0 to measure nothing, or to a share that is a prompt at least",
        )
    return rows.filter(~is_aside), rows.filter(is_aside)


class HeldoutPairs:
    """Held-out pairs with their reference's log-probabilities, computed at the start."""

    def __init__(self, trainer: Any, dataset: Any) -> None:
        """Compute the reference's; ``dataset`` is tokenised as TRL does, ``trainer`` holds it."""
        size = trainer.args.per_device_train_batch_size
        batches = (
            [dataset[index] for index in range(first, min(first + size, len(dataset)))]
            for first in range(0, len(dataset), size)
        )
        self.batches = [trainer.data_collator(batch) for batch in batches]
        without = trainer.reference_free
        self.reference = 0.0 if without else self._log_ratios(trainer, trainer.ref_model)

    def measure(self, trainer: Any) -> dict[str, float]:
        """Return the mean margin and accuracy of the policy's implicit rewards.

        The margin is beta times the mean log-ratio of chosen over rejected (Rafailov et al. 2023,
        section 4), in nats; without a reference, beta times the difference that the loss takes.
        """
        margins = trainer.beta * (self._log_ratios(trainer, trainer.model) - self.reference)
        return {
            "heldout/margins": margins.mean().item(),
            "heldout/accuracies": (margins > 0).double().mean().item(),
        }

    def _log_ratios(self, trainer: Any, model: Any) -> torch.Tensor:
        """Return log p(chosen) - log p(rejected) of every pair, (pairs,)."""
        import torch

        model.eval()
        ratios = []
        for batch in self.batches:
            chosen, rejected = trainer.compute_ref_log_probs(model, trainer._prepare_inputs(batch))  # noqa: SLF001
            ratios.append((chosen - rejected).double().cpu())
        return torch.cat(ratios)
