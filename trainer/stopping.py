"""When a training ends early: too far from the reference, no better, or unlearning good answers.

Checked where checkpoints are written. The checkpoint of a check that fails is not written, so the
last one on disk is the last that passed.
"""

from __future__ import annotations

from typing import Annotated, Any, Self

import pydantic

from stages.configuration import Config


class StoppingConfig(Config):
    """What ends a training early; the policy of the last check that passed is its result."""

    kl_budget_nats: Annotated[float, pydantic.Field(gt=0)] | None = 10.0
    """Stop where KL(policy || reference) of a response is estimated above this; null: never."""
    kl_warning_nats: Annotated[float, pydantic.Field(gt=0)] = 5.0
    """Warn above this."""
    kl_samples: Annotated[int, pydantic.Field(ge=0)] = 16
    """Responses sampled from the policy at each check to estimate it; 0 estimates none."""
    kl_max_new_tokens: pydantic.PositiveInt = 128
    """Length at which such a response is cut."""
    heldout_share: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of the prompts whose pairs are not trained on but measured at each check."""
    minimum_margin_gain: float | None = None
    """Stop where the margin of held-out pairs rose by less than this since the last check."""
    maximum_chosen_fall_nats: Annotated[float, pydantic.Field(gt=0)] | None = None
    """Stop where chosen answers, since the last check, are on average this much less likely than
    to the reference. DPO often lowers both answers' probability; 5 to 20 is far."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.minimum_margin_gain is not None and not self.heldout_share:
            raise ValueError("minimum_margin_gain needs pairs to measure: set heldout_share")
        return self


def failed_check(
    history: list[dict[str, Any]], config: StoppingConfig, every_steps: int
) -> str | None:
    """Return why the training must end at the last entry of ``history``, a check, or None.

    Args:
        history: what was logged at each step, in order, from step 1.
        config: the limits.
        every_steps: steps between two checks.
    """
    last = history[-1]
    since = (last["step"] - 1) // every_steps * every_steps
    kl = last.get("kl")
    if kl is not None and config.kl_budget_nats is not None and kl > config.kl_budget_nats:
        return f"KL to the reference {kl:.3g} nats is above the budget {config.kl_budget_nats:g}"
    if config.minimum_margin_gain is not None and since:
        gain = last["heldout/margins"] - history[since - 1]["heldout/margins"]
        if gain < config.minimum_margin_gain:
            return (
                f"the held-out margin changed by {gain:+.3g} since the last check, less than "
                f"{config.minimum_margin_gain:g}"
            )
    if config.maximum_chosen_fall_nats is not None:
        drifts = [entry["drift/chosen"] for entry in history[since:]]
        fall = -sum(drifts) / len(drifts)
        if fall > config.maximum_chosen_fall_nats:
            return (
                f"chosen answers fell by {fall:.3g} nats on average, more than "
                f"{config.maximum_chosen_fall_nats:g}"
            )
    return None


def warnings_of(history: list[dict[str, Any]], config: StoppingConfig) -> list[str]:
    """Return a sentence for each check whose KL is above the warning, in order."""
    return [
        f"KL to the reference was {entry['kl']:.3g} nats at step {entry['step']}, above "
        f"{config.kl_warning_nats:g}: raise beta or lower the learning rate"
        for entry in history
        if entry.get("kl", 0.0) > config.kl_warning_nats
    ]
