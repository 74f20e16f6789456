"""Training one model without a reference: what supervised fine-tuning and reward models share."""

from __future__ import annotations

import abc
import copy
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import polars as pl

from stages.chat_template import template_fingerprint
from stages.content_ids import content_hash
from stages.part_files import read_parts
from trainer.adapters import MergedPolicy, require_adapter, train_in_fp32
from trainer.checkpoints import corruption_of, forget_run, last_complete, run_folder
from trainer.data_checks import require_trainable
from trainer.disk_space import disk_space_explained
from trainer.dpo import METRICS_SCHEMA, metrics_frame
from trainer.heldout import split
from trainer.identity import data_sha256, named_weights_hash
from trainer.isolation import isolated_torch, quiet
from trainer.loading import load_chat_tokenizer, longest_sequence
from trainer.model_card import trained_weights
from trainer.model_folder import (
    METRICS,
    publish,
    published_manifest,
    stored_dtypes,
    tokenizer_hashes,
    weights_bytes,
)
from trainer.reporting import reporting, require_trackers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trainer.training_settings import TrainingConfig
    from trainer.trl_trainer import RunCallback

HELDOUT = "heldout"
"""Metrics that begin with it and a slash were measured on held-out rows: at step 0 and the last."""


class Objective(abc.ABC):
    """What a model is trained for: what differs between one kind of training and another."""

    section: ClassVar[str]
    """Of the configuration."""
    version: ClassVar[int]
    """Raised when the same inputs would give other weights."""
    row_id: ClassVar[str]
    """The column that names a row."""
    rows_are: ClassVar[str]
    """What an error calls the rows."""
    config: TrainingConfig
    """How the model is trained."""

    @property
    @abc.abstractmethod
    def heldout_share(self) -> float:
        """Share of the prompts whose rows are kept aside."""

    @abc.abstractmethod
    def sorted(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return what of ``rows`` decides the training, in an order that does not.

        Raises:
            DataError: a column is missing.
        """

    @abc.abstractmethod
    def problems(self, rows: pl.DataFrame, tokenizer: Any, limit: int) -> pl.DataFrame:
        """Return what is wrong with ``rows``, as `data_checks.problem_rows`."""

    @abc.abstractmethod
    def load(self, folder: Path) -> Any:
        """Return the model to train: in fp32, or as its adapters want it."""

    def load_whole(self, folder: Path) -> Any:
        """Return the same in fp32."""
        return self.load(folder)

    @abc.abstractmethod
    def trainer(
        self, model: Any, tokenizer: Any, rows: pl.DataFrame, heldout: pl.DataFrame, folder: Path
    ) -> Any:
        """Return TRL's trainer, a `RowNoting` one; ``folder`` is for its checkpoints."""

    @abc.abstractmethod
    def measure(self, trainer: Any, heldout: pl.DataFrame) -> dict[str, float]:
        """Return the metrics of the trainer's model on rows that are not trained on."""

    @abc.abstractmethod
    def line(self, history: list[dict[str, Any]]) -> str:
        """Return the last step's metrics as one line."""

    @abc.abstractmethod
    def card(self, manifest: dict[str, Any], metrics: pl.DataFrame) -> str:
        """Return the model card."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained model and how it came about."""

    model_path: Path
    """The model's folder: safetensors, tokenizer with chat template, manifest.json, a card."""
    manifest: dict[str, Any]
    """What manifest.json says; `heldout` in it holds the metrics `before` and `after`."""
    metrics: pl.DataFrame
    """step (int64), metric (TRL's name or ours), value; held-out metrics from step 0 on."""


@dataclass(frozen=True)
class _Run:
    """One training: what goes in, and the fingerprint of everything that decides the weights."""

    objective: Objective
    base: Path
    rows: pl.DataFrame
    heldout: pl.DataFrame
    identity: dict[str, Any]
    fingerprint: str


def train_model(  # noqa: PLR0913
    objective: Objective,
    rows: pl.DataFrame,
    base: Path,
    output: Path,
    checkpoints: Path,
    *,
    progress: Callable[[int, int], None] | None = None,
    note: Callable[[str], None] | None = None,
) -> TrainedModel:
    """Return ``base`` trained on ``rows``, saved in ``output``.

    Killed at any moment and called again with the same arguments, it goes on from the last whole
    checkpoint and ends, on a CPU with the same number of threads, with the same bits as without
    the kill. When ``output`` already holds this training's result it is returned at once.

    Args:
        objective: what it is trained for, with the settings.
        rows: what the objective takes.
        base: the folder of the model to train.
        output: the new model's folder; must not exist, or hold this training's result.
        checkpoints: a folder that outlives a kill; emptied of this training when it is done.
        progress: called with the step and the number of steps.
        note: called with a line of each step's metrics.

    Raises:
        MissingFileError: the base folder holds no model.
        DataError: the rows can't be trained on.
        ModelError: the model doesn't suit the objective, or a loss isn't finite.
        ConfigError: the settings don't suit this machine.
        WorkspaceError: ``output`` holds something else.
    """
    run = _identify(objective, objective.sorted(rows), base)
    done = _published(output, run.fingerprint)
    if done:
        forget_run(checkpoints, run.fingerprint)
        return done
    from trainer.out_of_memory import memory_explained
    from trainer.trl_trainer import RunCallback

    config = objective.config
    with quiet(), isolated_torch(config.threads):
        tokenizer, problems = _prepare(run)
        with (
            disk_space_explained(checkpoints, output, weights_bytes(base)),
            run_folder(checkpoints, run.fingerprint, run.identity) as folder,
        ):
            callback = RunCallback(folder, progress, note)
            with memory_explained(config, "rows"):
                trainer, heldout = _train(run, tokenizer, callback)
            facts = _manifest(run, trainer)
            facts |= {"heldout": heldout, "problems": problems, "warnings": corruption_of(folder)}
            logged = metrics_frame(trainer.state.log_history)
            metrics = pl.concat([logged, _measured(facts)]).sort("step", maintain_order=True)
            publish(output, _result(run, trainer.model), tokenizer, metrics, facts, objective.card)
    result = _published(output, run.fingerprint)
    assert result is not None, "the result has just been published"
    return result


def _identify(objective: Objective, rows: pl.DataFrame, base: Path) -> _Run:
    config = objective.config
    identity = {
        "objective": objective.section,
        "version": objective.version,
        "settings": config.deciding(),
        "base_weights_hash": named_weights_hash("base model", base),
        "tokenizer_sha256": tokenizer_hashes(base),
        "rows": rows.height,
        "data_sha256": data_sha256(rows),
    }
    where = f"{objective.section}.heldout_share"
    trained, heldout = split(rows, objective.heldout_share, config.seed, where)
    return _Run(objective, base, trained, heldout, identity, content_hash(identity))


def _published(output: Path, fingerprint: str) -> TrainedModel | None:
    manifest = published_manifest(output, fingerprint)
    if manifest is None:
        return None
    return TrainedModel(output, manifest, read_parts(output / METRICS))


def _prepare(run: _Run) -> tuple[Any, list[dict[str, Any]]]:
    """Return the tokenizer, and what of the rows is worth a warning.

    Raises:
        DataError: the rows can't be trained on.
    """
    from trainer.trl_trainer import require_device

    objective = run.objective
    require_device(objective.config)
    require_trackers(objective.config.report_to)
    if objective.config.adapter:
        require_adapter(objective.config.adapter)
    tokenizer = load_chat_tokenizer(run.base)
    limit = longest_sequence(run.base, objective.config.max_length_tokens)
    rows = pl.concat([run.rows, run.heldout])
    problems = objective.problems(rows, tokenizer, limit)
    require_trainable(problems, f"{objective.section} data", objective.rows_are)
    return tokenizer, problems.drop("severity").to_dicts()


def _train(
    run: _Run, tokenizer: Any, callback: RunCallback
) -> tuple[Any, dict[str, dict[str, float]]]:
    """Return TRL's trainer with the resulting model, and the held-out metrics before and after."""
    from trainer.trl_trainer import silence

    objective, config = run.objective, run.objective.config
    model = objective.load(run.base)
    settings = copy.deepcopy(model.config)
    trainer = objective.trainer(model, tokenizer, run.rows, run.heldout, callback.folder)
    if config.adapter:
        train_in_fp32(trainer.model)
    trainer.add_callback(callback)
    silence(trainer)
    trainer.note_rows(run.rows[objective.row_id].to_list())
    callback.trainer, callback.line = trainer, objective.line
    measured: dict[str, dict[str, float]] = {}
    if not run.heldout.is_empty():
        measured["before"] = objective.measure(trainer, run.heldout)
    checkpoint = last_complete(callback.folder)
    with reporting(trainer, config.report_to, callback.folder):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if not run.heldout.is_empty():
        measured["after"] = objective.measure(trainer, run.heldout)
    # The trainer turned the cache off and chose a padding token: only for the training.
    trainer.model.config = settings
    return trainer, measured


def _result(run: _Run, model: Any) -> Any:
    """Return what is to be saved of the trained ``model``."""
    objective = run.objective
    adapted = objective.config.adapter
    return MergedPolicy(model, objective.load_whole(run.base)) if adapted else model


def _manifest(run: _Run, trainer: Any) -> dict[str, Any]:
    """Return what the model's folder says about its making; weights are fp32, as trained."""
    import torch

    identity = run.identity
    return {
        "fingerprint": run.fingerprint,
        "objective": run.objective.section,
        "settings": run.objective.config.model_dump(mode="json"),
        "seed": run.objective.config.seed,
        "base_weights_hash": identity["base_weights_hash"],
        "base_dtypes": stored_dtypes(run.base),
        "rows": run.rows.height,
        "heldout_rows": run.heldout.height,
        "data_sha256": identity["data_sha256"],
        "template_fingerprint": template_fingerprint(trainer.processing_class),
        "steps": trainer.state.global_step,
        "device": trainer.args.device.type,
        "autocast": "bf16" if trainer.args.bf16 else "none",
        "threads": torch.get_num_threads(),
    }


def _measured(manifest: dict[str, Any]) -> pl.DataFrame:
    """Return the held-out metrics as rows of the steps that they were measured at."""
    steps = {"before": 0, "after": manifest["steps"]}
    values = [
        (steps[when], f"{HELDOUT}/{name}", value)
        for when, metrics in manifest["heldout"].items()
        for name, value in metrics.items()
    ]
    return pl.DataFrame(values, schema=METRICS_SCHEMA, orient="row")


def heldout_batches(trainer: Any) -> Iterator[dict[str, Any]]:
    """Yield the trainer's `eval_dataset` in micro-batches, on its device, in order."""
    dataset, size = trainer.eval_dataset, trainer.args.per_device_train_batch_size
    for first in range(0, len(dataset), size):
        rows = [dataset[row] for row in range(first, min(first + size, len(dataset)))]
        yield trainer._prepare_inputs(trainer.data_collator(rows))  # noqa: SLF001


def model_facts(manifest: dict[str, Any]) -> tuple[dict[str, str], list[str]]:
    """Return the card's facts of a training, and what its data was warned of."""
    facts = {
        "rows trained on": f"{manifest['rows']:,}",
        "rows held out": f"{manifest['heldout_rows']:,}",
        "optimizer steps": f"{manifest['steps']:,}",
        "trained weights": trained_weights(manifest["settings"]["adapter"]),
        "weights": f"`{manifest['weights_hash']}`",
        "weights before training": f"`{manifest['base_weights_hash']}`",
        "data (SHA-256)": f"`{manifest['data_sha256']}`",
        "chat template": f"`{manifest['template_fingerprint']}`",
        "seed": str(manifest["seed"]),
        "computed on": f"{manifest['device']}, autocast {manifest['autocast']}",
        "libraries": ", ".join(f"{name} {of}" for name, of in manifest["versions"].items()),
    }
    return facts, notes_of(manifest)


def notes_of(manifest: dict[str, Any]) -> list[str]:
    """Return a sentence for each thing that someone who uses the model should know."""
    return [*manifest["warnings"], *map(problem_sentence, manifest["problems"])]


def problem_sentence(problem: dict[str, Any]) -> str:
    """Return a row of `data_checks.problem_rows` as a sentence."""
    examples = ", ".join(json.loads(problem["examples"]))
    return f"{problem['check']}: {problem['count']}, such as {examples}; {problem['advice']}"
