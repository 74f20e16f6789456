"""A training's loss as TRL's settings name it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trainer.dpo_settings import DPOTrainingConfig


def trl_loss_settings(config: DPOTrainingConfig) -> dict[str, Any]:
    """Return the arguments of TRL's DPOConfig that decide the loss.

    TRL's `sigmoid` does not read label_smoothing. With it DPO is cDPO (Mitchell 2023, "A note on
    DPO with noisy preferences"), -(1 - e) log s(h) - e log s(-h), which is TRL's `robust`,
    (-(1 - r) log s(h) + r log s(-h)) / (1 - 2 r) (Chowdhury et al. 2024, arXiv 2403.00409),
    at r = -e / (1 - 2 e): then 1 - 2 r = 1 / (1 - 2 e) and 1 - r = (1 - e) / (1 - 2 e).

    Of a loss without a reference TRL's DPO computes the SFT part only; `trainer.reference_free`
    adds the rest. It would look for the reference's log-probabilities before the training, where
    our trainer has none to give.
    """
    if config.reference_free:
        share = 1.0 if config.loss_type == "orpo" else config.sft_share
        return {
            "beta": config.beta,
            "loss_type": ["sft"],
            "loss_weights": [share],
            "precompute_ref_log_probs": True,
        }
    loss, smoothing = config.loss_type, config.label_smoothing
    assert smoothing != "estimated", "train_dpo refuses what is not a number"
    name: str = loss
    if loss == "sigmoid" and smoothing:
        name, smoothing = "robust", -smoothing / (1 - 2 * smoothing)
    names, weights = [name], [1.0]
    if config.sft_share:
        names, weights = [name, "sft"], [1 - config.sft_share, config.sft_share]
    return {
        "beta": config.beta,
        "loss_type": names,
        "loss_weights": weights,
        "label_smoothing": smoothing,
        # TRL's weight of 1 is its None, but for a slower way of adding.
        "ld_alpha": None if config.ld_alpha == 1 else config.ld_alpha,
        "f_divergence_type": config.f_divergence,
        "f_alpha_divergence_coef": config.f_divergence_alpha,
    }
