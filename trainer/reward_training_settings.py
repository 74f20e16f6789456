"""How a reward model is trained on preference pairs."""

from __future__ import annotations

from typing import Annotated, Self

import pydantic

from trainer.training_settings import TrainingConfig


class RewardTrainingConfig(TrainingConfig):
    """How a reward model is trained; defaults are near InstructGPT's and Llama 2's."""

    center_rewards_coefficient: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """Weight of (r_w + r_l)^2, which keeps rewards near 0; 0.01 is usual (2312.09244, eq. 2)."""
    use_margin: bool = False
    """Ask each pair's reward difference to beat its column `margin` (Llama 2, 2307.09288, eq. 2).

    A run's export has one: the difference of the scores."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 1e-5
    """Peak learning rate of AdamW."""
    batch_size: pydantic.PositiveInt = 64
    """Pairs per optimizer step."""
    gradient_accumulation_steps: pydantic.PositiveInt = 4
    """Micro-batches that a batch is split into, to save memory; must divide batch_size."""
    heldout_share: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    """Share of the prompts whose pairs are kept aside; the accuracy on them is reported."""
    resamples: Annotated[int, pydantic.Field(ge=100)] = 2000
    """Bootstrap resamples over held-out prompts for the accuracy's interval."""

    @pydantic.model_validator(mode="after")
    def _whole_weights(self) -> Self:
        if self.adapter and self.adapter.kind == "qlora":
            raise ValueError("adapter.kind 'qlora' is not for reward models: choose 'lora'")
        return self
