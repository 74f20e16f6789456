"""How a model is fine-tuned on answers."""

from __future__ import annotations

from typing import Annotated, Literal

import pydantic

from trainer.training_settings import TrainingConfig


class SFTTrainingConfig(TrainingConfig):
    """How a model is trained to give the answers of a file; defaults are Stanford Alpaca's.

    But for batch_size, 128 there.
    """

    loss_type: Literal["nll", "dft"] = "nll"
    """Of a token: -log P; `dft` times P, which keeps rare tokens from dominating (2508.05629)."""
    turns: Literal["all", "last"] = "all"
    """The assistant's turns of `messages` that are learned; the rest is context.

    `last` where the template renders an earlier turn otherwise than a last one."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 2e-5
    """Peak learning rate of AdamW; 5e-6 is usual from 7B parameters on."""
    warmup_ratio: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.03
    """Share of the steps with a rising learning rate, from 0: the first step changes nothing.

    Not read when warmup_steps is set."""
    epochs: Annotated[float, pydantic.Field(gt=0)] = 3.0
    """Passes over the rows."""
    heldout_share: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.05
    """Share of the prompts whose rows are kept aside; their loss is reported before and after."""
