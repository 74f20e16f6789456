"""Direct preference optimization of a policy against an explicit, frozen reference (by TRL).

The loss is -log sigmoid(beta [(log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) -
log pi_ref(y_l|x))]) (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), or one of its relatives.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from stages.chat_template import template_fingerprint
from stages.content_ids import content_hash
from stages.errors import ConfigError, ModelError
from stages.model_loading import load_tokenizer
from trainer import processes
from trainer.adapters import (
    MergedPolicy,
    merged,
    restore_adapter,
    rounded_as,
)
from trainer.checkpoints import corruption_of, folder_of, forget_run, last_complete, run_folder
from trainer.data_checks import require_trainable
from trainer.disk_space import disk_space_explained
from trainer.heldout import split
from trainer.identity import data_sha256, named_weights_hash
from trainer.isolation import isolated_torch, quiet
from trainer.launch import train_in_processes
from trainer.loading import (
    load_chat_tokenizer,
    load_language_model,
    load_policy,
    longest_sequence,
)
from trainer.model_folder import (
    TrainingResult,
    publish,
    published,
    stored_dtypes,
    tokenizer_hashes,
    weights_bytes,
)
from trainer.readiness import require_ready
from trainer.reporting import reporting
from trainer.rows import check_rows, rows_to_train
from trainer.stopping import warnings_of

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from trainer.checks import CheckCallback
    from trainer.dpo_settings import DPOTrainingConfig

VERSION = 2
"""Raised when the same inputs would give other weights: checkpoints and results then differ."""

REFERENCE_FOLDER = "reference-log-probs"
"""Beside the folder of checkpoints."""

METRICS_SCHEMA = {"step": pl.Int64, "metric": pl.String, "value": pl.Float64}


@dataclass(frozen=True)
class _Run:
    """One training: what goes in, and the fingerprint of everything that decides the weights."""

    rows: pl.DataFrame
    heldout: pl.DataFrame
    policy: Path
    reference: Path
    config: DPOTrainingConfig
    base_weights_hash: str
    reference_weights_hash: str
    identity: dict[str, Any]
    fingerprint: str

    @property
    def adapters_off(self) -> bool:
        """Whether the reference is the policy's own base, its adapters switched off."""
        same = self.base_weights_hash == self.reference_weights_hash
        return self.config.adapter is not None and same and not processes.sharding()


def train_dpo(  # noqa: PLR0913, PLR0917
    rows: pl.DataFrame,
    policy: Path,
    reference: Path,
    config: DPOTrainingConfig,
    output: Path,
    checkpoints: Path,
    progress: Callable[[int, int], None] | None = None,
    heldout_prompts: frozenset[str] = frozenset(),
    note: Callable[[str], None] | None = None,
) -> TrainingResult:
    """Return the policy trained on ``rows``, saved in ``output``.

    Killed at any moment and called again with the same arguments, it goes on from the last whole
    checkpoint and ends, on a CPU with the same number of threads, with the same bits as without
    the kill. When ``output`` already holds this training's result it is returned at once. Rows are
    trained on in an order that depends on their ids and the seed only.

    Args:
        rows: pair_id, prompt (list of role and content), chosen, rejected (texts), and what
            `trainer.rows` knows beyond; of KTO answer_id, prompt, completion (text), label.
        policy: the folder of the model to train.
        reference: the folder of the frozen reference; often the same.
        config: the training's settings.
        output: the new model's folder; must not exist, or hold this training's result.
        checkpoints: a folder that outlives a kill; emptied of this training when it is done. Beside
            it `reference-log-probs` keeps the reference's, for later trainings on the same pairs.
        progress: called with the pairs whose reference is computed and their number, then with the
            step and the number of steps.
        heldout_prompts: `data_checks.prompt_keys` of the prompts that must not be trained on.
        note: called with a line of each step's metrics.

    Raises:
        MissingFileError: a model folder holds no model.
        DataError: the rows can't be trained on: see `data_checks`.
        ModelError: tokenizers differ, the reference isn't the one asked for, a loss isn't finite.
        ConfigError: the settings don't suit this machine.
        WorkspaceError: ``output`` holds something else.
    """
    if config.label_smoothing == "estimated":
        raise ConfigError(
            "label_smoothing is still 'estimated'",
            expected="a number: the estimate is the run's, and this is one training",
            where="training.label_smoothing",
        )
    # What a loss without a reference goes away from is where it started.
    reference = policy if config.reference_free else reference
    run = _identify(rows_to_train(rows, config), policy, reference, config)
    done = published(output, run.fingerprint)
    if done:
        forget_run(checkpoints, run.fingerprint)
        return done
    if config.accelerate:
        job = {
            "policy": str(policy),
            "reference": str(reference),
            "config": config.model_copy(update={"accelerate": None}).model_dump(mode="json"),
            "output": str(output),
            "checkpoints": str(checkpoints),
            "heldout_prompts": sorted(heldout_prompts),
        }
        train_in_processes(config.accelerate, rows, job, progress, note)
    else:
        _train_here(run, heldout_prompts, output, checkpoints, (progress, note))
    result = published(output, run.fingerprint)
    assert result is not None, "the result has just been published"
    return result


def _train_here(
    run: _Run,
    heldout_prompts: frozenset[str],
    output: Path,
    checkpoints: Path,
    watching: tuple[Callable[[int, int], None] | None, Callable[[str], None] | None],
) -> None:
    """Train in this process, which may be one of several, and publish the result."""
    from trainer.out_of_memory import memory_explained

    name = f"{run.fingerprint}{processes.suffix()}"
    with quiet(), isolated_torch(run.config.threads):
        tokenizer = _prepare(run, heldout_prompts)
        opened = run_folder(checkpoints, name, run.identity)
        with (
            disk_space_explained(checkpoints, output, weights_bytes(run.policy)),
            processes.opened_by_first(opened, folder_of(checkpoints, name)) as folder,
        ):
            with memory_explained(run.config):
                trainer, facts = _train(run, tokenizer, folder, watching)
            if processes.is_first():
                metrics = metrics_frame(trainer.state.log_history)
                manifest = {**_manifest(run, trainer), **facts}
                publish(output, _result(run, trainer.model), tokenizer, metrics, manifest)


def _prepare(run: _Run, heldout_prompts: frozenset[str]) -> Any:
    """Return the tokenizer, once machine, tokenizers and rows are known to be fit for training."""
    from trainer.trl_trainer import require_device

    require_device(run.config)
    require_ready(run.config)
    processes.require_divisible(run.rows.height, run.config)
    tokenizer = _load_tokenizer(run.policy, run.reference)
    limit = longest_sequence(run.policy, run.config.max_length_tokens)
    for rows in (run.rows, run.heldout):
        if not rows.is_empty():
            require_trainable(check_rows(rows, tokenizer, limit, heldout_prompts))
    return tokenizer


def _train(
    run: _Run,
    tokenizer: Any,
    folder: Path,
    watching: tuple[Callable[[int, int], None] | None, Callable[[str], None] | None],
) -> tuple[Any, dict[str, Any]]:
    """Return TRL's trainer with the resulting policy, and what the manifest says of the way there.

    ``folder`` holds the checkpoints.
    """
    from trainer.kto_trainer import build_kto_trainer
    from trainer.trl_trainer import (
        RunCallback,
        build_trainer,
        cache_reference,
        require_zero_margins,
        share_prompts_in,
    )

    without = run.adapters_off or run.config.reference_free
    models = (
        load_policy(run.policy, run.config.adapter),
        None if without else load_language_model(run.reference),
    )
    use_cache = models[0].config.use_cache
    progress, _ = watching
    callback = RunCallback(folder, *watching)
    heldout = None if run.heldout.is_empty() else run.heldout
    if run.config.loss_type == "kto":
        trainer = build_kto_trainer(models, tokenizer, run.rows, run.config, callback)
    else:
        trainer = build_trainer(models, tokenizer, run.rows, run.config, callback, heldout)
    del models
    reason: str | None = "fast_path is off"
    undo = _nothing
    sharding = processes.sharding()
    if sharding:
        reason = f"{sharding} spreads the model over the processes"
    elif run.config.fast_path == "auto":
        reason, undo = share_prompts_in(trainer)
    path = "shared prompts" if reason is None else f"TRL's own: {reason}"
    identity = {"reference": _reference_name(run), "path": path}
    checks = _checks(run, trainer)
    if not run.config.reference_free:
        cache_reference(trainer, folder.parent.parent / REFERENCE_FOLDER, identity, progress)
        if run.base_weights_hash == run.reference_weights_hash:
            require_zero_margins(trainer)
    checkpoint = last_complete(folder)
    trackers = run.config.report_to if processes.is_first() else ()
    with reporting(trainer, trackers, folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    undo()
    facts = {"computation": path, "steps": trainer.state.global_step, "stopped": checks.stopped}
    if checks.stopped:
        facts["steps"] = _last_that_passed(run, trainer, folder, checks.stopped)
    elif sharding:
        checkpoint = last_complete(folder)
        assert checkpoint, "the last step is saved"
        trainer.model = _policy_in(run, trainer, checkpoint)
    far = warnings_of(trainer.state.log_history, run.config.stopping)
    facts["warnings"] = [*corruption_of(folder), *far]
    facts["warnings"] += processes.warnings(run.rows.height, run.config)
    # The trainer turned the cache off; a saved model must generate as fast as the base.
    trainer.model.config.use_cache = use_cache
    return trainer, facts


def _checks(run: _Run, trainer: Any) -> CheckCallback:
    """Return what measures ``trainer`` and ends it early, once it is told of each step."""
    from trainer.checks import CheckCallback
    from trainer.heldout import HeldoutPairs
    from trainer.kl import KLEstimator

    def copy_of_policy(model: Any) -> Any:
        base = load_language_model(run.policy)
        if run.config.adapter:
            return merged(model, base)
        base.load_state_dict(model.state_dict())
        return base

    def reference(model: Any) -> Any:
        base = load_language_model(run.reference)
        return rounded_as(model, base) if run.adapters_off else base

    loaders = copy_of_policy, reference
    measures_kl = run.config.stopping.kl_samples and not processes.sharding()
    limit = longest_sequence(run.policy, run.config.max_length_tokens)
    kl = KLEstimator(trainer, loaders, run.config, limit) if measures_kl else None
    heldout = HeldoutPairs(trainer, trainer.eval_dataset) if trainer.eval_dataset else None
    checks = CheckCallback(trainer, run.config, kl, heldout)
    trainer.add_callback(checks)
    return checks


def _result(run: _Run, model: Any) -> Any:
    """Return what is to be saved of the trained ``model``."""
    return MergedPolicy(model, load_language_model(run.policy)) if run.config.adapter else model


def _last_that_passed(run: _Run, trainer: Any, folder: Path, stopped: dict[str, Any]) -> int:
    """Give ``trainer`` the policy of the last check that passed; return its step.

    Raises:
        ModelError: the first check failed.
    """
    checkpoint = last_complete(folder)
    if checkpoint is None:
        raise ModelError(
            f"training ended at its first check, step {stopped['step']}: {stopped['reason']}",
            expected="a first check that passes",
            where="training.stopping",
            remedy="lower learning_rate or checkpoint_every_steps, raise beta or the limit",
        )
    trainer.model = _policy_in(run, trainer, checkpoint)
    return int(checkpoint.name.removeprefix("checkpoint-"))


def _policy_in(run: _Run, trainer: Any, checkpoint: Path) -> Any:
    """Return the policy of ``checkpoint``, with its adapters beside where it has some."""
    if processes.sharding():
        from trainer.sharded import whole_policy

        return whole_policy(checkpoint, load_language_model(run.policy), run.config.adapter)
    if run.config.adapter:
        restore_adapter(trainer.model, checkpoint)
        return trainer.model
    return load_language_model(checkpoint)


def _nothing() -> None:
    """Undo nothing."""


def _manifest(run: _Run, trainer: Any) -> dict[str, Any]:
    """Return what the model's folder says about its making.

    Weights are saved as fp32, as trained, whatever the base was stored as: a step at a learning
    rate of 5e-7 moves most weights by less than fp16 or bf16 can tell apart, so rounding would
    undo it.
    """
    import torch

    return {
        "fingerprint": run.fingerprint,
        "settings": run.config.deciding(),
        "seed": run.config.seed,
        "base_weights_hash": run.base_weights_hash,
        "reference_weights_hash": run.reference_weights_hash,
        "base_dtypes": stored_dtypes(run.policy),
        "unit": trainer.unit,
        "pairs": run.rows.height,
        "heldout_pairs": run.heldout.height,
        "pair_ids_sha256": hashlib.sha256("\n".join(run.rows.to_series()).encode()).hexdigest(),
        "data_sha256": run.identity["data_sha256"],
        "template_fingerprint": template_fingerprint(trainer.processing_class),
        "device": trainer.args.device.type,
        "autocast": "bf16" if trainer.args.bf16 else "none",
        "threads": torch.get_num_threads(),
        "processes": processes.count(),
        "sharding": processes.sharding(),
    }


def metrics_frame(log_history: list[dict[str, Any]]) -> pl.DataFrame:
    """Return step, metric, value of every training step, without the final summary."""
    values = [
        (entry["step"], metric, float(value))
        for entry in log_history
        if "loss" in entry
        for metric, value in sorted(entry.items())
        if metric != "step"
    ]
    return pl.DataFrame(values, schema=METRICS_SCHEMA, orient="row")


def _identify(rows: pl.DataFrame, policy: Path, reference: Path, config: DPOTrainingConfig) -> _Run:
    hashes = {
        name: named_weights_hash(name, folder)
        for name, folder in (("policy", policy), ("reference", reference))
    }
    identity = {
        "version": VERSION,
        "settings": config.deciding(),
        "base_weights_hash": hashes["policy"],
        "reference_weights_hash": hashes["reference"],
        "tokenizer_sha256": tokenizer_hashes(policy),
        "pairs": rows.height,
        "data_sha256": data_sha256(rows),
    }
    trained, heldout = split(rows, config.stopping.heldout_share, config.seed)
    return _Run(
        rows=trained,
        heldout=heldout,
        policy=policy,
        reference=reference,
        config=config,
        base_weights_hash=hashes["policy"],
        reference_weights_hash=hashes["reference"],
        identity=identity,
        fingerprint=content_hash(identity),
    )


def _load_tokenizer(policy: Path, reference: Path) -> Any:
    """Return the policy's tokenizer.

    Raises:
        ModelError: it can't be loaded, has no chat template, or isn't the reference's.
    """
    ours, theirs = load_chat_tokenizer(policy), load_tokenizer(reference)
    differing = [
        what
        for what, a, b in (
            ("vocabulary", ours.get_vocab(), theirs.get_vocab()),
            ("chat template", ours.chat_template, theirs.chat_template),
        )
        if a != b
    ]
    if differing:
        raise ModelError(
            f"policy and reference differ in their {' and '.join(differing)}",
            expected="the same, or their log-probabilities can't be compared",
            where=f"{policy}, {reference}",
        )
    return ours


def _reference_name(run: _Run) -> str:
    """Return what names the weights that give the reference's log-probabilities."""
    quantised = run.adapters_off and run.config.adapter and run.config.adapter.kind == "qlora"
    return f"{run.reference_weights_hash}{' in 4 bits' if quantised else ''}"
