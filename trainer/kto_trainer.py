"""TRL's KTOTrainer as `trainer.trl_trainer` has its DPOTrainer. Imports torch and trl at once.

Kahneman-Tversky optimization (Ethayarajh et al. 2024, arXiv 2402.01306) takes single answers, good
or bad. Its reference point, KL(policy || reference), is estimated on answers to other prompts: each
micro-batch's own, moved on by one. So the batches are the same in every epoch, in the rows' order.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import KTOConfig, KTOTrainer

from trainer import processes
from trainer.adapters import lora_config
from trainer.private import Referring
from trainer.trl_trainer import settle, shared_arguments

if TYPE_CHECKING:
    import polars as pl

    from trainer.dpo_settings import DPOTrainingConfig
    from trainer.trl_trainer import RunCallback


class PrivateKTOTrainer(Referring, KTOTrainer):  # type: ignore[misc]
    """TRL's KTOTrainer, which names its reference point as what it is."""

    unit = "answers"
    token_columns = ("prompt_ids", "completion_ids", "KL_completion_ids")
    reference_columns = ("ref_logps", "ref_KL_logps")
    reference_free = None
    ld_alpha = None

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Return TRL's loss.

        What TRL logs as `kl` is the reference point; `kl` is what a check measures on samples.
        """
        loss = super()._compute_loss(model, inputs, return_outputs)
        logged = self._metrics["train" if self.model.training else "eval"]
        logged["reference_point"] += logged.pop("kl")
        return loss

    def take_step(self) -> tuple[int, dict[str, float]]:
        """Return how many answers the step has, and no metrics beyond TRL's."""
        return len(self.step_rows) * processes.count(), {}


def weights_of_labels(labels: pl.Series, ratio: float) -> tuple[float, float]:
    """Return the weight of a good and of a bad answer; the smaller is 1.

    With lambda_D n_D / (lambda_U n_U) = ``ratio``, which the paper wants between 1 and 4/3
    (section 4.2, eq. 8).
    """
    good = int(labels.sum())
    relative = ratio * (len(labels) - good) / good
    return max(1.0, relative), max(1.0, 1 / relative)


def build_kto_trainer(
    models: tuple[Any, Any],
    tokenizer: Any,
    rows: pl.DataFrame,
    config: DPOTrainingConfig,
    callback: RunCallback,
) -> Any:
    """Return the trainer of the (policy, reference) in ``models``; the callback has its folder.

    Raises:
        ModelError: TRL kept fewer answers than it was given.
    """
    policy, reference = models
    good, bad = weights_of_labels(rows["label"], config.kto_weight_ratio)
    arguments = KTOConfig(
        beta=config.beta,
        desirable_weight=good,
        undesirable_weight=bad,
        train_sampling_strategy="sequential",
        **shared_arguments(config, callback.folder),
    )
    trainer = PrivateKTOTrainer(
        model=policy,
        ref_model=reference,
        args=arguments,
        train_dataset=_dataset(rows),
        processing_class=tokenizer,
        callbacks=[callback],
        peft_config=lora_config(config.adapter, policy) if config.adapter else None,
    )
    settle(trainer, config, callback, rows.height)
    trainer.train_dataset = _mismatched(trainer)
    trainer.note_rows(rows["answer_id"].to_list())
    return trainer


def _mismatched(trainer: Any) -> Any:
    """Return the dataset with each answer's mismatched one: the one before in its micro-batch.

    TRL takes the one before in a process's share of it: with the number of processes the numbers
    would change. And to an answer that is alone TRL gives its own completion: the estimate would
    be its reward. It gets the first answer's.
    """
    dataset = trainer.train_dataset
    size, rows = trainer.args.per_device_train_batch_size * processes.count(), len(dataset)
    if processes.count() == 1 and rows % size != 1:
        return dataset

    def other(index: int) -> int:
        start = index - index % size
        batch = min(size, rows - start)
        return start + (index - start - 1) % batch if batch > 1 else 0

    return dataset.map(
        lambda _, index: {"KL_completion_ids": dataset[other(index)]["completion_ids"]},
        with_indices=True,
    )


def _dataset(rows: pl.DataFrame) -> Any:
    """Return ``rows`` as a Dataset in TRL's conversational format: prompt, completion, label."""
    import polars as pl
    from datasets import Dataset

    answer = pl.struct(role=pl.lit("assistant"), content=pl.col("completion"))
    return Dataset.from_polars(
        rows.select("prompt", pl.concat_list(answer).alias("completion"), "label")
    )
