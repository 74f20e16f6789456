"""TRL's DPOTrainer, made quiet, private, resumable to the bit and unable to train on NaN.

Imports torch and trl at once: import this module inside the function that needs it.
"""

from __future__ import annotations

import math
from dataclasses import fields
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer
from trl.trainer.dpo_trainer import DataCollatorForPreference

from stages.errors import ConfigError, ModelError
from trainer.checkpoints import last_complete, mark_complete
from trainer.losses import trl_loss_settings
from trainer.step_metrics import Pairs, pairs_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import polars as pl

    from trainer.dpo_settings import DPOTrainingConfig

MAXIMUM_INITIAL_LOG_RATIO_NATS = 1e-4
"""How far log pi(y|x) of two models with equal weights may lie apart, summed over a completion."""

SHARED_TOLERANCE, SHARED_TOLERANCE_BF16 = 1e-4, 2e-2
"""How far log pi(y|x) with shared prompts may lie from TRL's, relative to it or to a nat."""


class PrivateDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer without telemetry and without model cards in the checkpoint folder.

    It also keeps what the step's pairs say, and weighs the gradients of weighted pairs.
    """

    def __init__(self, **arguments: Any) -> None:
        """Begin with nobody asking for the step's pairs."""
        super().__init__(**arguments)
        self.step_pairs: list[Pairs] | None = None
        """What a step's micro-batches say, for whom empties it after each step; None for nobody."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Return TRL's loss.

        A pair's loss depends on no other pair's log-probabilities, so the gradient with respect to
        its rows times its weight is that of the weighted loss, whatever the loss is.
        """
        weights, inputs = inputs.get("weight"), _without_weight(inputs)
        outputs: list[Any] = []

        def recorded(**arguments: Any) -> Any:
            outputs.append(model(**arguments))
            return outputs[-1]

        loss = super()._compute_loss(recorded, inputs, return_outputs)
        log_probs = outputs[0].log_probs
        if weights is not None and log_probs.requires_grad:
            log_probs.register_hook(lambda gradient: gradient * weights.repeat(2)[:, None])
        if self.model.training and self.step_pairs is not None:
            self.step_pairs.append(pairs_of(log_probs, inputs, self.ld_alpha))
        return loss

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return the summed log-probabilities of chosen and rejected, (pairs,) each."""
        return super().compute_ref_log_probs(model, _without_weight(inputs))

    def _set_signature_columns_if_needed(self) -> None:
        super()._set_signature_columns_if_needed()
        if "weight" not in self._signature_columns:
            self._signature_columns.append("weight")

    def _send_telemetry(self) -> None:
        """TRL reports each trainer to Hugging Face; training on preferences is private."""

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL writes a README.md at every checkpoint; ours comes with the result."""


def _without_weight(inputs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in inputs.items() if name != "weight"}


class WeighingCollator(DataCollatorForPreference):  # type: ignore[misc]
    """TRL's collator, which also hands on the pairs' weights where there are any."""

    def torch_call(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return the batch, `weight` (pairs,) in it."""
        batch: dict[str, Any] = super().torch_call(examples)
        if "weight" in examples[0]:
            batch["weight"] = torch.tensor([example["weight"] for example in examples])
        return batch


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Reports progress, marks whole checkpoints, restores TRL's token count, stops at NaN."""

    def __init__(
        self,
        folder: Path,
        progress: Callable[[int, int], None] | None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Watch the training in ``folder``: ``note`` is given each step's metrics as one line."""
        self.folder = folder
        self.progress = progress
        self.note = note
        self.trainer: Any = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Carry on TRL's count of trained tokens, which it keeps in no checkpoint."""
        del args, control
        if state.log_history:
            self.trainer._total_train_tokens = int(state.log_history[-1]["num_tokens"])  # noqa: SLF001
        if self.progress:
            self.progress(state.global_step, state.max_steps)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the step."""
        del args, control
        if self.progress:
            self.progress(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that has just been written."""
        del args, control
        mark_complete(self.folder / f"checkpoint-{state.global_step}")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Stop at the first step whose loss or gradient is not a number, before it is saved."""
        del args, control
        if self.note and "loss" in (logs or {}):
            self.note(metrics_line(state.log_history))
        bad = {
            name: value
            for name, value in (logs or {}).items()
            if isinstance(value, float) and not math.isfinite(value)
        }
        if bad:
            checkpoint = last_complete(self.folder)
            raise ModelError(
                f"training became unstable at step {state.global_step}: {bad}",
                expected="finite numbers",
                where=f"last complete checkpoint: {checkpoint.name if checkpoint else 'none'}, "
                f"{self.folder}",
                remedy="lower learning_rate, raise warmup_ratio, or look at this step's pairs",
            )


def metrics_line(history: list[dict[str, Any]]) -> str:
    """Return the last step's loss, margin and accuracy, and the last KL measured, as one line."""
    last = history[-1]
    line = (
        f"loss {last['loss']:.3f}  margin {last['rewards/margins']:+.2f}  "
        f"accuracy {last['rewards/accuracies']:.0%}"
    )
    kl = next((entry["kl"] for entry in reversed(history) if "kl" in entry), None)
    return line if kl is None else f"{line}  KL {kl:.2f}"


def build_trainer(
    models: tuple[Any, Any],
    tokenizer: Any,
    rows: pl.DataFrame,
    config: DPOTrainingConfig,
    callback: RunCallback,
    heldout: pl.DataFrame | None = None,
) -> Any:
    """Return the trainer of the (policy, reference) in ``models``; the callback has its folder.

    ``heldout`` pairs, tokenised in the same way, are its `eval_dataset`.

    Raises:
        ModelError: TRL kept fewer pairs than it was given.
    """
    policy, reference = models
    trainer = PrivateDPOTrainer(
        model=policy,
        ref_model=reference,
        args=trl_arguments(config, callback.folder),
        train_dataset=conversational_dataset(rows),
        eval_dataset=None if heldout is None else conversational_dataset(heldout),
        processing_class=tokenizer,
        callbacks=[callback],
    )
    callback.trainer = trainer
    # With its progress bar off, Transformers prints every log line to stdout instead.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)
    if len(trainer.train_dataset) != rows.height:
        raise ModelError(
            f"TRL kept {len(trainer.train_dataset)} of {rows.height} pairs",
            expected="every pair",
            remedy="raise max_length_tokens or drop the long prompts",
        )
    if config.weight_by:
        weights = rows[config.weight_by] / rows[config.weight_by].mean()
        trainer.train_dataset = trainer.train_dataset.add_column("weight", weights.to_list())
        collator = trainer.data_collator
        of_trl = {field.name: getattr(collator, field.name) for field in fields(collator)}
        trainer.data_collator = WeighingCollator(**of_trl)
    return trainer


def require_device(config: DPOTrainingConfig) -> None:
    """Pass when this machine can train as ``config`` says.

    Raises:
        ModelError: several GPUs are visible: TRL doesn't train on them from one process.
        ConfigError: bf16 was asked for without a CUDA device.
    """
    if torch.cuda.device_count() > 1:
        raise ModelError(
            f"{torch.cuda.device_count()} GPUs are visible",
            expected="one",
            remedy="set CUDA_VISIBLE_DEVICES=0",
        )
    if config.precision == "bf16" and not torch.cuda.is_available():
        raise ConfigError(
            "precision bf16 was asked for without a CUDA device",
            expected="auto or fp32 here (bf16 is 2.5 to 4 times slower on a CPU)",
        )


def trl_arguments(config: DPOTrainingConfig, folder: Path) -> DPOConfig:
    """Return TRL's settings for ``config``, with nothing left to TRL's or the machine's defaults.

    Without a GPU TRL's own defaults (bf16, gradient checkpointing) don't even construct.
    """
    cuda = torch.cuda.is_available()
    checkpointing = config.gradient_checkpointing
    return DPOConfig(
        output_dir=str(folder),
        **trl_loss_settings(config),
        max_length=config.max_length_tokens,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler,
        warmup_steps=config.warmup_ratio if config.warmup_steps is None else config.warmup_steps,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size // config.gradient_accumulation_steps,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        optim="adamw_torch",
        seed=config.seed,
        data_seed=config.seed,
        bf16=cuda and config.precision != "fp32",
        use_cpu=not cuda,
        gradient_checkpointing=cuda if checkpointing is None else checkpointing,
        save_strategy="steps",
        save_steps=config.checkpoint_every_steps,
        save_total_limit=2,
        logging_steps=1,
        logging_nan_inf_filter=False,
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=cuda,
    )


def conversational_dataset(rows: pl.DataFrame) -> Any:
    """Return ``rows`` as a Dataset in TRL's conversational format: prompt, chosen, rejected."""
    import polars as pl
    from datasets import Dataset

    def turn(name: str) -> pl.Expr:
        answer = pl.struct(role=pl.lit("assistant"), content=pl.col(name))
        return pl.concat_list(answer).alias(name)

    return Dataset.from_polars(rows.select("prompt", turn("chosen"), turn("rejected")))


def share_prompts_in(trainer: Any) -> tuple[str | None, Callable[[], None]]:
    """Make policy and reference compute each prompt once (`trainer.shared_prompt`).

    Returns why not (then nothing has changed), else None; and what makes the policy an ordinary
    model again. The first batch is computed both ways before.
    """
    from trainer.shared_prompt import share_prompts, unsupported

    batch = _first_batch(trainer)
    models = (trainer.model, trainer.ref_model)
    reason = next((reason for model in models if (reason := unsupported(model))), None)
    if reason:
        return reason, lambda: None
    plain = torch.cat(_log_probs(trainer, trainer.model, batch))
    undo = [share_prompts(model) for model in models]
    shared = torch.cat(_log_probs(trainer, trainer.model, batch))
    limit = SHARED_TOLERANCE_BF16 if trainer.args.bf16 else SHARED_TOLERANCE
    worst = ((shared - plain).abs() / plain.abs().clamp_min(1)).max().item()
    if worst <= limit:
        return None, undo[0]
    for back in undo:
        back()
    return f"its log-probabilities are {worst:.2g} off on the first batch", lambda: None


def cache_reference(
    trainer: Any,
    folder: Path,
    identity: dict[str, Any],
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Give ``trainer`` the reference's log-probabilities, and let go of the reference model."""
    from trainer.reference_cache import reference_key, reference_log_probs

    key = reference_key(trainer, identity)
    chosen, rejected = reference_log_probs(trainer, folder, key, progress)
    columns = {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    for name, values in columns.items():
        trainer.train_dataset = trainer.train_dataset.add_column(name, values.tolist())
    trainer.precompute_ref_logps = True
    trainer.ref_model = None


def _first_batch(trainer: Any) -> Any:
    count = min(trainer.args.per_device_train_batch_size, len(trainer.train_dataset))
    examples = [trainer.train_dataset[index] for index in range(count)]
    return trainer._prepare_inputs(trainer.data_collator(examples))  # noqa: SLF001


def _log_probs(trainer: Any, model: Any, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed log-probabilities of chosen and rejected; draws no random numbers."""
    model.eval()
    with torch.no_grad():
        chosen, rejected = trainer.compute_ref_log_probs(model, batch)
    return chosen, rejected


def require_zero_margins(trainer: Any) -> None:
    """Pass when policy and reference agree on a first batch, as models with equal weights must.

    The implicit reward is beta log(pi / pi_ref) (Rafailov et al. 2023, section 4); before the
    first step it is 0 for every answer unless the trainer holds another reference than it was
    given. Draws no random numbers, so the training that follows is the same without it.

    Raises:
        ModelError: with the largest reward and margin found.
    """
    batch = _first_batch(trainer)
    reference = batch["ref_chosen_logps"], batch["ref_rejected_logps"]
    chosen, rejected = (
        trainer.beta * (ours - theirs)
        for ours, theirs in zip(_log_probs(trainer, trainer.model, batch), reference, strict=True)
    )
    reward = torch.stack([chosen, rejected]).abs().max().item()
    margin = (chosen - rejected).abs().max().item()
    limit = trainer.beta * MAXIMUM_INITIAL_LOG_RATIO_NATS
    # Written so that NaN fails.
    if not (reward <= limit and margin <= limit):
        raise ModelError(
            f"before the first step the largest implicit reward is {reward:.3g} and the largest "
            f"margin {margin:.3g} over {len(chosen)} pairs, though policy and reference have the "
            "same weights hash",
            expected=f"at most {limit:.3g} (beta x {MAXIMUM_INITIAL_LOG_RATIO_NATS:g} nats)",
            remedy="the trainer holds another reference than it was given: report this",
        )
