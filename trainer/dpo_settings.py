"""How a policy is trained on preference pairs, and what of it would mislead."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic

from stages.configuration import Config
from trainer.stopping import StoppingConfig

LossType = Literal[
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "apo_zero",
    "apo_down",
    "nca_pair",
    "sppo_hard",
    "aot",
    "discopop",
]

SMOOTHED_LOSSES = ("sigmoid", "robust", "exo_pair", "aot")
"""The losses that read label_smoothing; TRL ignores it in all others without a word."""

DIVERGENCE_LOSSES = (
    "sigmoid",
    "sigmoid_norm",
    "hinge",
    "ipo",
    "robust",
    "exo_pair",
    "discopop",
)
"""The losses of the difference of two rewards, in which an f-divergence's constant cancels."""


class DPOTrainingConfig(Config):
    """How a policy is trained on preference pairs; defaults are those people start from."""

    loss_type: LossType = "sigmoid"
    """TRL's name. `ipo` and `robust` stand label noise better; `aot` sorts within a micro-batch."""
    beta: Annotated[float, pydantic.Field(gt=0)] = 0.1
    """Strength of the pull towards the reference; 0.05 to 0.5 is usual, `ipo` calls it tau."""
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=0.5)] | Literal["estimated"] = 0.0
    """Probability that a label is wrong; read by `sigmoid` (then cDPO), `robust`, `exo_pair` (1e-3,
    not 0) and `aot`.

    `estimated`: the run's own estimate for the pairs trained on (docs/noise.md)."""
    sft_share: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of the loss that is the chosen answers' mean -log P(token); 0.05 to 0.1 against
    forgetting. The preference loss has the rest."""
    ld_alpha: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    """Weight of the tokens that the longer answer has more than the other (LD-DPO).

    Null and 1 count every token in full; 0 takes both answers at the shorter one's length."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        "reverse_kl"
    )
    """The divergence from the reference that beta punishes; DPO's own is `reverse_kl`."""
    f_divergence_alpha: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.5
    """Of `alpha_divergence`: towards 1 reverse KL, towards 0 forward KL."""
    weight_by: Literal["confidence"] | None = None
    """A column of the pairs that weighs their gradients, scaled to a mean of 1.

    `confidence` is there where label noise was estimated (docs/noise.md)."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 5e-7
    """Peak learning rate of AdamW."""
    lr_scheduler: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    """The learning rate's course after the warm-up."""
    warmup_ratio: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.1
    """Share of the steps with a rising learning rate, from 0: the first step changes nothing.

    Not read when warmup_steps is set."""
    warmup_steps: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Number of steps with a rising learning rate."""
    epochs: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Passes over the pairs; more than 3 overfit."""
    batch_size: pydantic.PositiveInt = 16
    """Pairs per optimizer step."""
    gradient_accumulation_steps: pydantic.PositiveInt = 1
    """Micro-batches that a batch is split into, to save memory; must divide batch_size."""
    max_length_tokens: Annotated[int, pydantic.Field(ge=2)] = 1024
    """Limit on prompt and completion together (or the model's context, where that is less).

    Longer pairs are an error, never cut."""
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
    fast_path: Literal["auto", "off"] = "auto"
    """Compute a pair's prompt once and score completions only, where the model allows it; `off` is
    TRL's own way. The same numbers up to rounding: docs/training.md."""
    stopping: StoppingConfig = StoppingConfig()
    """What ends the training early."""
    seed: Annotated[int, pydantic.Field(ge=0, lt=2**32)] = 0
    """Of the data order."""
    threads: pydantic.PositiveInt | None = None
    """Torch's CPU threads; null is torch's own choice. Another number gives other last bits."""

    @pydantic.model_validator(mode="after")
    def _consistent(self) -> Self:
        readers = ", ".join(SMOOTHED_LOSSES)
        if self.label_smoothing and self.loss_type not in SMOOTHED_LOSSES:
            raise ValueError(
                f"label_smoothing {self.label_smoothing} would be ignored by loss_type "
                f"{self.loss_type!r}: only {readers} read it; choose one of them or set it to 0"
            )
        if self.loss_type == "exo_pair" and not self.label_smoothing:
            raise ValueError("loss_type 'exo_pair' needs label_smoothing above 0, such as 0.001")
        if self.f_divergence != "reverse_kl" and self.loss_type not in DIVERGENCE_LOSSES:
            raise ValueError(
                f"f_divergence {self.f_divergence!r} has no meaning for loss_type "
                f"{self.loss_type!r}: only for {', '.join(DIVERGENCE_LOSSES)}"
            )
        if self.weight_by and self.loss_type == "aot":
            raise ValueError("weight_by has no meaning for loss_type 'aot', which sorts the pairs")
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} does not divide "
                f"batch_size {self.batch_size}"
            )
        return self
