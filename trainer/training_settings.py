"""What every training is told, whatever it trains."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic

from stages.configuration import OPERATIONAL, Config
from trainer.adapters import AdapterConfig
from trainer.reporting import Tracker


class TrainingConfig(Config):
    """How a model is optimised, in what steps, and on what machine."""

    learning_rate: Annotated[float, pydantic.Field(gt=0)]
    """Peak learning rate of AdamW."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """The learning rate's course after the warm-up."""
    warmup_ratio: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    """Share of the steps with a rising learning rate, from 0: the first step changes nothing.

    Not read when warmup_steps is set."""
    warmup_steps: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Number of steps with a rising learning rate."""
    epochs: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Passes over the rows; more than 3 overfit."""
    batch_size: pydantic.PositiveInt = 16
    """Rows (pairs or conversations) per optimizer step."""
    gradient_accumulation_steps: pydantic.PositiveInt = 1
    """Micro-batches that a batch is split into, to save memory; must divide batch_size."""
    max_length_tokens: Annotated[int, pydantic.Field(ge=2)] = 1024
    """Limit on prompt and completion together (or the model's context, where that is less).

    Longer rows are an error, never cut."""
    weight_decay: Annotated[float, pydantic.Field(ge=0)] = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """`auto` is bf16 autocast on CUDA and fp32 on a CPU; weights are fp32 always."""
    gradient_checkpointing: bool | None = None
    """Recompute activations to save memory; null is on with CUDA and off on a CPU."""
    checkpoint_every_steps: pydantic.PositiveInt = 50
    """Optimizer steps between checkpoints; the last two are kept until the training is done."""
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    """Of the data order."""
    threads: pydantic.PositiveInt | None = None
    """Torch's CPU threads; null is torch's own choice. Another number gives other last bits."""
    adapter: AdapterConfig | None = None
    """Train low-rank adapters and merge them; null trains every weight."""
    report_to: Annotated[tuple[Tracker, ...], OPERATIONAL] = ()
    """Where metrics go besides `training_metrics`: `tensorboard`, `wandb`, `mlflow`, `trackio`."""

    @pydantic.model_validator(mode="after")
    def _whole_micro_batches(self) -> Self:
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} does not divide "
                f"batch_size {self.batch_size}"
            )
        return self
