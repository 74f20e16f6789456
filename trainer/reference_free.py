"""Preference losses that compare with no reference: SimPO, CPO and ORPO, by TRL's own code.

TRL's trainers for them are experimental and tokenise, batch and save in ways of their own; here
only their losses are taken, on the log-probabilities that the one trainer computes. Imports torch
and trl at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import TYPE_CHECKING

from trl.experimental.cpo import CPOTrainer
from trl.experimental.orpo import ORPOTrainer

if TYPE_CHECKING:
    import torch

    from trainer.dpo_settings import DPOTrainingConfig

PER_TOKEN = ("simpo", "orpo")
"""The losses of an answer's mean log p of a token; `cpo` takes their sum."""


@dataclass(frozen=True)
class ReferenceFree:
    """The loss of a pair's two log-probabilities, as ``config`` says."""

    config: DPOTrainingConfig

    def answers(
        self, summed: tuple[torch.Tensor, torch.Tensor], mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what the loss takes of chosen and rejected, (pairs,) each, in nats.

        Args:
            summed: log p(y|x) of chosen and rejected, (pairs,) each.
            mask: (2 pairs, tokens - 1), 1 at the completions' tokens; chosen first.
        """
        if self.config.loss_type not in PER_TOKEN:
            return summed
        chosen, rejected = (
            total / count for total, count in zip(summed, mask.sum(1).chunk(2), strict=True)
        )
        return chosen, rejected

    def losses(self, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
        """Return each pair's loss, (pairs,), of what `answers` returned.

        SimPO: -log s(beta (a_w - a_l) - gamma), a = log p(y|x) / |y| (Meng et al. 2024, arXiv
        2405.14734, eq. 6). CPO: -log s(beta (log p(y_w|x) - log p(y_l|x))) (Xu et al. 2024, arXiv
        2401.08417, eq. 3). ORPO: -beta log s(log odds(y_w|x) / odds(y_l|x)), odds = p / (1 - p),
        p = exp(a) (Hong et al. 2024, arXiv 2403.07691, eqs. 4 and 7), to which the chosen answer's
        mean -log P(token) is added (eq. 6).
        """
        config = self.config
        settings = SimpleNamespace(
            beta=config.beta, accelerator=SimpleNamespace(device=chosen.device)
        )
        if config.loss_type == "orpo":
            losses: torch.Tensor = -ORPOTrainer.odds_ratio_loss(settings, chosen, rejected)[0]
            return losses
        settings.alpha = 0.0
        settings.label_smoothing = config.label_smoothing
        settings.loss_type = "simpo" if config.loss_type == "simpo" else "sigmoid"
        settings.simpo_gamma = config.gamma_beta_ratio * config.beta
        losses = CPOTrainer.cpo_loss(settings, chosen, rejected)[0]
        return losses * (1 - config.sft_share)
