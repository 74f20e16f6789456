"""Direct preference optimization of a policy against an explicit, frozen reference (by TRL).

The loss is -log sigmoid(beta [(log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) -
log pi_ref(y_l|x))]) (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), or one of its relatives.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from stages.chat_template import template_fingerprint
from stages.content_ids import canonical_json, content_hash, weights_hash
from stages.errors import ConfigError, MissingFileError, ModelError
from trainer.checkpoints import forget_run, last_complete, run_folder
from trainer.data_checks import (
    ROW_COLUMNS,
    check_preference_data,
    require_columns,
    require_trainable,
    require_weights,
)
from trainer.heldout import split
from trainer.isolation import isolated_torch, quiet
from trainer.model_folder import (
    TrainingResult,
    publish,
    published,
    stored_dtypes,
    tokenizer_hashes,
)
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
        rows: pair_id, prompt (list of role and content), chosen, rejected (texts).
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
    require_columns(rows)
    if config.weight_by:
        require_weights(rows, config.weight_by)
    columns = [*ROW_COLUMNS, config.weight_by] if config.weight_by else ROW_COLUMNS
    rows = rows.select(columns).sort("pair_id", "chosen", "rejected")
    run = _identify(rows, policy, reference, config)
    done = published(output, run.fingerprint)
    if done:
        forget_run(checkpoints, run.fingerprint)
        return done
    from trainer.out_of_memory import memory_explained

    with quiet(), isolated_torch(config.threads):
        tokenizer = _prepare(run, heldout_prompts)
        with run_folder(checkpoints, run.fingerprint, run.identity) as folder:
            with memory_explained(config):
                trainer, facts = _train(run, tokenizer, folder, (progress, note))
            metrics = metrics_frame(trainer.state.log_history)
            manifest = {**_manifest(run, trainer), **facts}
            publish(output, trainer.model, tokenizer, metrics, manifest)
    result = published(output, run.fingerprint)
    assert result is not None, "the result has just been published"
    return result


def _prepare(run: _Run, heldout_prompts: frozenset[str]) -> Any:
    """Return the tokenizer, once machine, tokenizers and rows are known to be fit for training."""
    from trainer.trl_trainer import require_device

    require_device(run.config)
    tokenizer = _load_tokenizer(run.policy, run.reference)
    context = json.loads((run.policy / "config.json").read_text()).get("max_position_embeddings")
    limit = min(run.config.max_length_tokens, context or run.config.max_length_tokens)
    for rows in (run.rows, run.heldout):
        if not rows.is_empty():
            require_trainable(check_preference_data(rows, tokenizer, limit, heldout_prompts))
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
    from trainer.trl_trainer import (
        RunCallback,
        build_trainer,
        cache_reference,
        require_zero_margins,
        share_prompts_in,
    )

    models = (_load_model(run.policy), _load_model(run.reference))
    use_cache = models[0].config.use_cache
    progress, _ = watching
    callback = RunCallback(folder, *watching)
    heldout = None if run.heldout.is_empty() else run.heldout
    trainer = build_trainer(models, tokenizer, run.rows, run.config, callback, heldout)
    del models
    reason: str | None = "fast_path is off"
    undo = _nothing
    if run.config.fast_path == "auto":
        reason, undo = share_prompts_in(trainer)
    path = "shared prompts" if reason is None else f"TRL's own: {reason}"
    identity = {"reference": run.reference_weights_hash, "path": path}
    checks = _checks(run, trainer)
    cache_reference(trainer, folder.parent.parent / REFERENCE_FOLDER, identity, progress)
    if run.base_weights_hash == run.reference_weights_hash:
        require_zero_margins(trainer)
    checkpoint = last_complete(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    undo()
    facts = {"computation": path, "steps": trainer.state.global_step, "stopped": checks.stopped}
    if checks.stopped:
        facts["steps"] = _last_that_passed(trainer, folder, checks.stopped)
    facts["warnings"] = warnings_of(trainer.state.log_history, run.config.stopping)
    # The trainer turned the cache off; a saved model must generate as fast as the base.
    trainer.model.config.use_cache = use_cache
    return trainer, facts


def _checks(run: _Run, trainer: Any) -> CheckCallback:
    """Return what measures ``trainer`` and ends it early, once it is told of each step."""
    from trainer.checks import CheckCallback
    from trainer.heldout import HeldoutPairs
    from trainer.kl import KLEstimator

    def load(folder: Path) -> Callable[[], Any]:
        return lambda: _load_model(folder)

    loaders = load(run.policy), load(run.reference)
    kl = KLEstimator(trainer, loaders, run.config) if run.config.stopping.kl_samples else None
    heldout = HeldoutPairs(trainer, trainer.eval_dataset) if trainer.eval_dataset else None
    checks = CheckCallback(trainer, run.config, kl, heldout)
    trainer.add_callback(checks)
    return checks


def _last_that_passed(trainer: Any, folder: Path, stopped: dict[str, Any]) -> int:
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
    trainer.model = _load_model(checkpoint)
    return int(checkpoint.name.removeprefix("checkpoint-"))


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
        "settings": run.config.model_dump(mode="json"),
        "seed": run.config.seed,
        "base_weights_hash": run.base_weights_hash,
        "reference_weights_hash": run.reference_weights_hash,
        "base_dtypes": stored_dtypes(run.policy),
        "pairs": run.rows.height,
        "heldout_pairs": run.heldout.height,
        "pair_ids_sha256": hashlib.sha256("\n".join(run.rows["pair_id"]).encode()).hexdigest(),
        "data_sha256": run.identity["data_sha256"],
        "template_fingerprint": template_fingerprint(trainer.processing_class),
        "device": trainer.args.device.type,
        "autocast": "bf16" if trainer.args.bf16 else "none",
        "threads": torch.get_num_threads(),
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
    hashes = {}
    for name, folder in (("policy", policy), ("reference", reference)):
        try:
            hashes[name] = weights_hash(folder)
        except FileNotFoundError as error:
            raise MissingFileError(
                f"the {name} holds no model: {error}",
                expected="a folder with config.json, safetensors and a tokenizer",
            ) from None
    identity = {
        "version": VERSION,
        "settings": config.model_dump(mode="json"),
        "base_weights_hash": hashes["policy"],
        "reference_weights_hash": hashes["reference"],
        "tokenizer_sha256": tokenizer_hashes(policy),
        "pairs": rows.height,
        "data_sha256": _data_sha256(rows),
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


def _data_sha256(rows: pl.DataFrame) -> str:
    digest = hashlib.sha256()
    for row in rows.iter_rows():
        digest.update(canonical_json(row).encode())
        digest.update(b"\n")
    return digest.hexdigest()


def _load_tokenizer(policy: Path, reference: Path) -> Any:
    """Return the policy's tokenizer.

    Raises:
        ModelError: it can't be loaded, has no chat template, or isn't the reference's.
    """
    from transformers import AutoTokenizer

    try:
        ours, theirs = (AutoTokenizer.from_pretrained(path) for path in (policy, reference))
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(
            f"a tokenizer cannot be loaded: {error}", where=f"{policy}, {reference}"
        ) from None
    if not ours.chat_template:
        raise ModelError(
            "the policy's tokenizer has no chat template",
            where=str(policy),
            remedy="choose an instruction-tuned model, or add chat_template.jinja",
        )
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


def _load_model(folder: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"the model cannot be loaded: {error}", where=str(folder)) from None
