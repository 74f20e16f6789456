"""How a policy is trained on preference pairs, and what of it would mislead."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from stages.configuration import OPERATIONAL, Config
from trainer.stopping import StoppingConfig
from trainer.training_settings import TrainingConfig

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
    "simpo",
    "cpo",
    "orpo",
    "kto",
]

REFERENCE_FREE_LOSSES = ("simpo", "cpo", "orpo")
"""The losses of the policy's log-probabilities alone: no reference is loaded."""

SMOOTHED_LOSSES = ("sigmoid", "robust", "exo_pair", "aot", "simpo", "cpo")
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


class StepsConfig(Config):
    """How whole answers are made into step-level pairs (Step-DPO)."""

    separator: Annotated[str, pydantic.Field(min_length=1)] = "\n"
    """What ends a step; it stays with the step."""


class DPOTrainingConfig(TrainingConfig):
    """How a policy is trained on preference pairs; defaults are those people start from."""

    loss_type: LossType = "sigmoid"
    """TRL's name. `ipo` and `robust` stand label noise better; `aot` sorts within a micro-batch.

    `simpo`, `cpo` and `orpo` need no reference; `kto` trains on single answers, good or bad."""
    beta: Annotated[float, pydantic.Field(gt=0)] = 0.1
    """Strength of the pull towards the reference; 0.05 to 0.5 is usual, `ipo` calls it tau.

    Of `simpo` the scale of the reward per token, 2 to 10, which has to be set; of `orpo` the
    preference's weight beside the SFT loss (lambda), 0.1 to 0.25."""
    gamma_beta_ratio: Annotated[float, pydantic.Field(ge=0)] = 0.5
    """Of `simpo`: the margin in mean log P(token) to be reached, gamma / beta; 0.3 to 0.8."""
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=0.5)] | Literal["estimated"] = 0.0
    """Probability that a label is wrong; read by `sigmoid` (then cDPO), `robust`, `exo_pair` (1e-3,
    not 0), `aot`, `simpo` and `cpo`.

    `estimated`: the run's own estimate for the pairs trained on (docs/noise.md)."""
    sft_share: Annotated[float, pydantic.Field(ge=0, lt=1)] = 0.0
    """Share of the loss that is the chosen answers' mean -log P(token); 0.05 to 0.1 against
    forgetting. The preference loss has the rest. CPO's paper adds both in full: 0.5."""
    kto_weight_ratio: Annotated[float, pydantic.Field(gt=0)] = 1.0
    """Of `kto`: total weight of the good answers over that of the bad ones; 1 to 4/3 is advised.

    The rarer kind's answers weigh more by as much as it takes."""
    steps: StepsConfig | None = None
    """Make step-level pairs: both sides keep their first step that differs, after the common ones.

    Null takes answers whole, and rows with a `prefix` as the steps they are."""
    ld_alpha: Annotated[float, pydantic.Field(ge=0, le=1)] | None = None
    """Weight of the tokens that the longer answer has more than the other (LD-DPO).

    Null and 1 count every token in full; 0 takes both answers at the shorter one's length."""
    f_divergence: Literal["reverse_kl", "forward_kl", "js_divergence", "alpha_divergence"] = (
        "reverse_kl"
    )
    """The divergence from the reference that beta punishes; DPO's own is `reverse_kl`."""
    f_divergence_alpha: Annotated[float, pydantic.Field(gt=0, lt=1)] = 0.5
    """Of `alpha_divergence`: towards 1 reverse KL, towards 0 forward KL."""
    weight_by: Literal["confidence", "length_weight"] | None = None
    """A column of the pairs that weighs their gradients, scaled to a mean of 1.

    `confidence` is there where label noise was estimated (docs/noise.md), `length_weight` where
    `filters.length_bias` is `reweight` (docs/filters.md)."""
    learning_rate: Annotated[float, pydantic.Field(gt=0)] = 5e-7
    """Peak learning rate of AdamW."""
    fast_path: Literal["auto", "off"] = "auto"
    """Compute a pair's prompt once and score completions only, where the model allows it; `off` is
    TRL's own way. The same numbers up to rounding: docs/training.md."""
    accelerate: Annotated[Path | None, OPERATIONAL] = None
    """A file of Accelerate's (`configs/accelerate/`): train in the processes that it describes.

    Null is one process. batch_size stays the pairs of a step over all of them together."""
    stopping: StoppingConfig = StoppingConfig()
    """What ends the training early."""

    @property
    def reference_free(self) -> bool:
        """Whether the loss compares with no reference."""
        return self.loss_type in REFERENCE_FREE_LOSSES

    @pydantic.model_validator(mode="after")
    def _of_the_loss(self) -> Self:
        ignored = _ignored(self)
        if ignored:
            raise ValueError(f"{ignored} would be ignored by loss_type {self.loss_type!r}")
        if self.loss_type == "simpo" and "beta" not in self.model_fields_set:
            raise ValueError("loss_type 'simpo' needs beta, such as 2: DPO's 0.1 is far too small")
        if self.loss_type == "kto" and self.batch_size == self.gradient_accumulation_steps:
            raise ValueError(
                "loss_type 'kto' needs two answers or more in a micro-batch: raise batch_size or "
                "lower gradient_accumulation_steps"
            )
        return self

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
        return self


def _ignored(config: DPOTrainingConfig) -> str | None:
    """Return the first setting that ``config``'s loss would not read, or None."""
    stopping = config.stopping
    of_reference = {
        "ld_alpha": config.ld_alpha is not None,
        "stopping.maximum_chosen_fall_nats": stopping.maximum_chosen_fall_nats,
    }
    of_pairs = {
        "steps": config.steps,
        "sft_share": config.sft_share,
        "weight_by": config.weight_by,
        "stopping.heldout_share": stopping.heldout_share,
    }
    asked: dict[str, Any] = {}
    if config.reference_free:
        asked = of_reference
    if config.loss_type == "kto":
        asked = {**of_reference, **of_pairs}
    if config.loss_type == "orpo":
        asked = {**of_reference, "sft_share": config.sft_share}
    return next((name for name, value in asked.items() if value), None)
