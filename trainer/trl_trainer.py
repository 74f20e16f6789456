"""TRL's DPOTrainer, made quiet, private, resumable to the bit and unable to train on NaN.

Imports torch and trl at once: import this module inside the function that needs it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import DPOConfig

from stages.errors import ConfigError, ModelError
from trainer import processes
from trainer.adapters import WithoutAdapters, base_of, lora_config, train_in_fp32
from trainer.checkpoints import last_complete, mark_complete
from trainer.losses import trl_loss_settings
from trainer.private_dpo import PrivateDPOTrainer
from trainer.steps import with_steps

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import polars as pl

    from trainer.dpo_settings import DPOTrainingConfig
    from trainer.training_settings import TrainingConfig

MAXIMUM_INITIAL_LOG_RATIO_NATS = 1e-4
"""How far log pi(y|x) of two models with equal weights may lie apart, summed over a completion."""

SHOWN_ROWS = 16
"""Ids of a step's rows that an error names."""

SHARED_TOLERANCE, SHARED_TOLERANCE_BF16 = 1e-4, 2e-2
"""How far log pi(y|x) with shared prompts may lie from TRL's, relative to it or to a nat."""


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Reports progress, marks whole checkpoints, restores TRL's token count, stops at NaN."""

    def __init__(
        self,
        folder: Path,
        progress: Callable[[int, int], None] | None,
        note: Callable[[str], None] | None = None,
    ) -> None:
        """Watch the training in ``folder``: ``note`` is given each step's metrics as one line."""
        self.line = metrics_line
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

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Begin to note the step's rows."""
        del args, state, control
        self.trainer.step_rows = []

    def _step_ids(self) -> str:
        """Return the ids of the step's rows as the end of a sentence, where they are known."""
        rows, ids = self.trainer.step_rows, getattr(self.trainer, "row_ids", None)
        if not ids or not rows:
            return ""
        more = f" and {len(rows) - SHOWN_ROWS} more" if len(rows) > SHOWN_ROWS else ""
        return f", on {', '.join(ids[row] for row in rows[:SHOWN_ROWS])}{more}"

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Report the step."""
        del args, control
        if self.progress:
            self.progress(state.global_step, state.max_steps)

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Mark the checkpoint that all processes have just written."""
        del args, control
        processes.wait_for_all()
        if processes.is_first():
            mark_complete(self.folder / f"checkpoint-{state.global_step}")

    def on_log(
        self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any
    ) -> None:
        """Stop at the first step whose loss or gradient is not a number, before it is saved."""
        del args, control
        if self.note and "loss" in (logs or {}):
            self.note(self.line(state.log_history))
        bad = {
            name: value
            for name, value in (logs or {}).items()
            if isinstance(value, float) and not math.isfinite(value)
        }
        if bad:
            checkpoint = last_complete(self.folder)
            raise ModelError(
                f"training became unstable at step {state.global_step}: {bad}{self._step_ids()}",
                expected="finite numbers",
                where=f"last complete checkpoint: {checkpoint.name if checkpoint else 'none'}, "
                f"{self.folder}",
                remedy="lower learning_rate, raise warmup_ratio, or look at this step's pairs",
            )


def metrics_line(history: list[dict[str, Any]]) -> str:
    """Return the last step's loss, margin and accuracy, and the last KL measured, as one line."""
    last = history[-1]
    line = f"loss {last['loss']:.3f}"
    # A step's answers may be all good or all bad, where they are single ones.
    if "rewards/margins" in last:
        line += f"  margin {last['rewards/margins']:+.2f}"
    if "rewards/accuracies" in last:
        line += f"  accuracy {last['rewards/accuracies']:.0%}"
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

    ``heldout`` pairs, tokenised in the same way, are its `eval_dataset`. A loss without a reference
    has None for it.

    Raises:
        ModelError: TRL kept fewer pairs than it was given.
    """
    policy, reference = models
    objective = None
    if config.reference_free:
        from trainer.reference_free import ReferenceFree

        objective = ReferenceFree(config)
    trainer = PrivateDPOTrainer(
        reference_free=objective,
        model=policy,
        ref_model=reference,
        args=trl_arguments(config, callback.folder),
        train_dataset=conversational_dataset(rows),
        eval_dataset=None if heldout is None else conversational_dataset(heldout),
        processing_class=tokenizer,
        callbacks=[callback],
        peft_config=lora_config(config.adapter, policy) if config.adapter else None,
    )
    settle(trainer, config, callback, rows.height)
    if "prefix" in rows.columns:
        trainer.train_dataset = with_steps(trainer.train_dataset, rows, tokenizer)
        if heldout is not None:
            trainer.eval_dataset = with_steps(trainer.eval_dataset, heldout, tokenizer)
    weights = {}
    if config.weight_by:
        weights["weight"] = (rows[config.weight_by] / rows[config.weight_by].mean()).to_list()
    trainer.note_rows(rows["pair_id"].to_list(), **weights)
    return trainer


def settle(
    trainer: Any, config: DPOTrainingConfig, callback: RunCallback, expected_rows: int
) -> None:
    """Make what TRL has built ours: its adapters in fp32, its reference, its silence.

    Raises:
        ModelError: TRL kept fewer rows than it was given.
    """
    if config.adapter:
        train_in_fp32(trainer.model)
        if trainer.ref_model is None and not config.reference_free:
            trainer.ref_model = WithoutAdapters(trainer.model)
    silence(trainer)
    callback.trainer = trainer
    if len(trainer.train_dataset) != expected_rows:
        raise ModelError(
            f"TRL kept {len(trainer.train_dataset)} of {expected_rows} {trainer.unit}",
            expected=f"all {trainer.unit}",
            remedy="raise max_length_tokens or drop the long prompts",
        )


def silence(trainer: Any) -> None:
    """Have ``trainer`` print nothing."""
    # With its progress bar off, Transformers prints every log line to stdout instead.
    trainer.remove_callback(PrinterCallback)
    trainer.remove_callback(ProgressCallback)


def require_device(config: TrainingConfig) -> None:
    """Pass when this machine can train as ``config`` says.

    Raises:
        ModelError: several GPUs are visible: TRL doesn't train on them from one process.
        ConfigError: bf16 was asked for without a CUDA device.
    """
    if torch.cuda.device_count() > 1 and processes.count() == 1:
        raise ModelError(
            f"{torch.cuda.device_count()} GPUs are visible to one process",
            expected="one",
            remedy="set CUDA_VISIBLE_DEVICES=0, or training.accelerate to train on all of them",
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
    return DPOConfig(**trl_loss_settings(config), **shared_arguments(config, folder))


def shared_arguments(config: TrainingConfig, folder: Path) -> dict[str, Any]:
    """Return the arguments that TRL's trainers have in common, whatever they train."""
    cuda = torch.cuda.is_available()
    checkpointing = config.gradient_checkpointing
    return {
        "output_dir": str(folder),
        "max_length": config.max_length_tokens,
        "learning_rate": config.learning_rate,
        "lr_scheduler_type": config.lr_scheduler,
        "warmup_steps": config.warmup_ratio if config.warmup_steps is None else config.warmup_steps,
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size
        // config.gradient_accumulation_steps
        // processes.count(),
        "gradient_accumulation_steps": config.gradient_accumulation_steps,
        "weight_decay": config.weight_decay,
        "max_grad_norm": config.max_grad_norm,
        "optim": "adamw_torch",
        "seed": config.seed,
        "data_seed": config.seed,
        "bf16": cuda and config.precision != "fp32",
        # Accelerate spreads no model over processes that were told to stay on the CPU.
        "use_cpu": not cuda and not processes.sharding(),
        "gradient_checkpointing": cuda if checkpointing is None else checkpointing,
        "save_strategy": "steps",
        "save_steps": config.checkpoint_every_steps,
        "save_total_limit": 2,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": cuda,
        # Accelerate would fill the last batch with rows of the first one.
        "dataloader_drop_last": processes.count() > 1,
        "ddp_find_unused_parameters": False,
    }


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

    if trainer.unit != "pairs":
        return "single answers share no prompt", lambda: None
    batch = _first_batch(trainer)
    models = [model for model in (base_of(trainer.model), trainer.ref_model) if model is not None]
    if isinstance(trainer.ref_model, WithoutAdapters):
        models.pop()
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
    of_reference = reference_log_probs(trainer, folder, key, progress)
    for name, values in zip(trainer.reference_columns, of_reference, strict=True):
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
    given. Draws no random numbers, so the training that follows is the same without it. A model
    spread over processes computes nothing before training: its first step is looked at.

    Raises:
        ModelError: with the largest reward and margin found.
    """
    if processes.sharding():
        from trainer.sharded import FirstMargins

        trainer.add_callback(FirstMargins(trainer.beta * MAXIMUM_INITIAL_LOG_RATIO_NATS))
        return
    batch = _first_batch(trainer)
    reference = [batch[name] for name in trainer.reference_columns]
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
