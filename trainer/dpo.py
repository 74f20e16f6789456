"""Direct preference optimization of a policy against an explicit, frozen reference (by TRL).

The loss is -log sigmoid(beta [(log pi(y_w|x) - log pi_ref(y_w|x)) - (log pi(y_l|x) -
log pi_ref(y_l|x))]) (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), or one of its relatives.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import polars as pl
import pydantic

from stages.chat_template import template_fingerprint
from stages.configuration import Config
from stages.content_ids import canonical_json, content_hash, weights_hash
from stages.errors import ConfigError, MissingFileError, ModelError
from trainer.checkpoints import forget_run, last_complete, run_folder
from trainer.data_checks import (
    ROW_COLUMNS,
    check_preference_data,
    require_columns,
    require_trainable,
)
from trainer.model_folder import (
    TrainingResult,
    publish,
    published,
    stored_dtypes,
    tokenizer_hashes,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

VERSION = 2
"""Raised when the same inputs would give other weights: checkpoints and results then differ."""

LossType = Literal[
    "sigmoid",
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

SMOOTHED_LOSSES = ("robust", "exo_pair", "aot")
"""The losses that read label_smoothing; TRL ignores it in all others without a word."""

REFERENCE_FOLDER = "reference-log-probs"
"""Beside the folder of checkpoints."""

METRICS_SCHEMA = {"step": pl.Int64, "metric": pl.String, "value": pl.Float64}

QUIETED_LOGGERS = ("accelerate", "datasets", "transformers", "trl")


class DPOTrainingConfig(Config):
    """How a policy is trained on preference pairs; defaults are those people start from."""

    loss_type: LossType = "sigmoid"
    """TRL's name. `ipo` and `robust` stand label noise better; `aot` sorts within a micro-batch."""
    beta: Annotated[float, pydantic.Field(gt=0)] = 0.1
    """Strength of the pull towards the reference; 0.05 to 0.5 is usual, `ipo` calls it tau."""
    label_smoothing: Annotated[float, pydantic.Field(ge=0, lt=0.5)] | Literal["estimated"] = 0.0
    """Probability that a label is wrong; read by `robust`, `exo_pair` (1e-3, not 0) and `aot`.

    `estimated`: the run's own estimate for the pairs trained on (docs/noise.md)."""
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
        if self.batch_size % self.gradient_accumulation_steps:
            raise ValueError(
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} does not divide "
                f"batch_size {self.batch_size}"
            )
        return self


@dataclass(frozen=True)
class _Run:
    """One training: what goes in, and the fingerprint of everything that decides the weights."""

    rows: pl.DataFrame
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
    rows = rows.select(ROW_COLUMNS).sort("pair_id", "chosen", "rejected")
    run = _identify(rows, policy, reference, config)
    done = published(output, run.fingerprint)
    if done:
        forget_run(checkpoints, run.fingerprint)
        return done
    with _quiet(), _isolated_torch(config.threads):
        tokenizer = _prepare(run, heldout_prompts)
        with run_folder(checkpoints, run.fingerprint, run.identity) as folder:
            trainer, path = _train(run, tokenizer, folder, progress)
            metrics = metrics_frame(trainer.state.log_history)
            publish(output, trainer.model, tokenizer, metrics, _manifest(run, trainer, path))
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
    require_trainable(check_preference_data(run.rows, tokenizer, limit, heldout_prompts))
    return tokenizer


def _train(
    run: _Run, tokenizer: Any, folder: Path, progress: Callable[[int, int], None] | None
) -> tuple[Any, str]:
    """Return TRL's trainer after the last step, its checkpoints in ``folder``, and its path."""
    from trainer.trl_trainer import (
        RunCallback,
        build_trainer,
        cache_reference,
        require_zero_margins,
        share_prompts_in,
    )

    models = (_load_model(run.policy), _load_model(run.reference))
    use_cache = models[0].config.use_cache
    callback = RunCallback(folder, progress)
    trainer = build_trainer(models, tokenizer, run.rows, run.config, callback)
    del models
    reason: str | None = "fast_path is off"
    undo = _nothing
    if run.config.fast_path == "auto":
        reason, undo = share_prompts_in(trainer)
    path = "shared prompts" if reason is None else f"TRL's own: {reason}"
    identity = {"reference": run.reference_weights_hash, "path": path}
    cache_reference(trainer, folder.parent.parent / REFERENCE_FOLDER, identity, progress)
    if run.base_weights_hash == run.reference_weights_hash:
        require_zero_margins(trainer)
    checkpoint = last_complete(folder)
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    undo()
    # The trainer turned the cache off; a saved model must generate as fast as the base.
    trainer.model.config.use_cache = use_cache
    return trainer, path


def _nothing() -> None:
    """Undo nothing."""


def _manifest(run: _Run, trainer: Any, path: str) -> dict[str, Any]:
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
        "pair_ids_sha256": hashlib.sha256("\n".join(run.rows["pair_id"]).encode()).hexdigest(),
        "data_sha256": run.identity["data_sha256"],
        "steps": trainer.state.global_step,
        "computation": path,
        "template_fingerprint": template_fingerprint(trainer.processing_class),
        "device": trainer.args.device.type,
        "autocast": "bf16" if trainer.args.bf16 else "none",
        "threads": torch.get_num_threads(),
    }


def metrics_frame(log_history: list[dict[str, Any]]) -> pl.DataFrame:
    """Return step, metric, value of every training step; the final summary holds timings: not."""
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
    return _Run(
        rows=rows,
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


@contextlib.contextmanager
def _isolated_torch(threads: int | None) -> Iterator[None]:
    """Train with ``threads`` threads; leave threads and random states as they were."""
    import random

    import numpy as np
    import torch

    threads_before = torch.get_num_threads()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            if threads:
                torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(threads_before)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars, log lines and warnings of the training libraries."""
    import datasets
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in QUIETED_LOGGERS}
    bars = transformers_logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    for name in QUIETED_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            datasets.enable_progress_bars()
