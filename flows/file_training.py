"""A training on a file as a run of its own, recorded like any other."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from flows.stage_runner import RunContext, StageSpec, run_stage, utc_now
from flows.tracked_run import begun, code_version, recorded
from lineage.database import publish
from lineage.edges import TRAINING
from lineage.records import RunRecord
from stages.content_ids import content_hash, file_sha256
from stages.tables import TRAININGS

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import polars as pl

    from flows.models import Policy
    from flows.stage_runner import StageWriter
    from lineage.workspace import Workspace
    from stages.configuration import Config
    from trainer.training_settings import TrainingConfig

VERSION = 1


class Trained(Protocol):
    """What every training returns."""

    @property
    def model_path(self) -> Path:
        """The model's folder."""

    @property
    def metrics(self) -> pl.DataFrame:
        """step, metric, value."""


Result = TypeVar("Result", bound=Trained)


@dataclass(frozen=True)
class FileTraining:
    """What is trained on a file, how, and where the result goes."""

    flow: Literal["sft", "reward-model", "train-file"]
    """The command."""
    data: Path
    base: Policy
    config: Config
    """All that was asked for."""
    training: TrainingConfig
    """What of it decides the training."""
    output: Path


def train_recorded(
    workspace: Workspace,
    asked: FileTraining,
    train: Callable[[Callable[[int, int], None] | None], Result],
) -> Result:
    """Return what ``train`` returns, its metrics, model and inputs recorded as a run.

    ``train`` takes what is told of each step. It is called again where the result is there: that
    it is this training's is its own business.

    Raises:
        PrefmillError: as ``train`` does; the run is recorded as failed.
    """
    from trainer.model_folder import MANIFEST

    data_sha256 = file_sha256(asked.data)
    settings = {
        "training": asked.training.deciding(),
        "base": asked.base.fingerprint,
        "data_sha256": data_sha256,
        "output": _place(workspace, asked.output),
    }
    run_id = f"{asked.flow}-{content_hash([asked.flow, settings])[:10]}"
    record = RunRecord(
        run_id=run_id,
        flow=asked.flow,
        name=asked.flow,
        round_index=0,
        config=asked.config.model_dump(mode="json"),
        code_version=code_version(),
        status="running",
        started_at=utc_now(),
    )
    outputs = (TRAININGS.name, "training_metrics")
    spec = StageSpec(asked.flow, VERSION, settings, (), outputs)
    made: list[Result] = []

    def make(writer: StageWriter) -> None:
        import polars as pl

        result = train(writer.advance)
        made.append(result)
        row = _row(workspace, asked, data_sha256, spec.key)
        writer.write(TRAININGS.name, pl.DataFrame([row], schema=TRAININGS.empty().schema))
        training_id = pl.lit(row["training_id"])
        writer.write("training_metrics", result.metrics.with_columns(round_id=training_id))

    with recorded(workspace, begun(workspace, record), shown=False):
        run_stage(RunContext(workspace, run_id), "train", spec, make, [asked.output / MANIFEST])
        result = made[0] if made else train(None)
    publish(workspace)
    return result


def _row(
    workspace: Workspace, asked: FileTraining, data_sha256: str, stage_key: str
) -> dict[str, Any]:
    """Return the row of TRAININGS about a model that is there."""
    from trainer.model_folder import manifest_in

    manifest = manifest_in(asked.output)
    of_pairs = "pairs" in manifest
    return {
        "training_id": f"{TRAINING}{stage_key}",
        "objective": manifest.get("objective", "preferences"),
        "data_path": _place(workspace, asked.data),
        "data_sha256": data_sha256,
        "base_weights_hash": manifest["base_weights_hash"],
        "reference_weights_hash": manifest.get("reference_weights_hash"),
        "result_weights_hash": manifest["weights_hash"],
        "result_path": _place(workspace, asked.output),
        "rows": manifest["pairs" if of_pairs else "rows"],
        "heldout_rows": manifest["heldout_pairs" if of_pairs else "heldout_rows"],
        "steps": manifest["steps"],
    }


def _place(workspace: Workspace, path: Path) -> str:
    """Return ``path`` relative to the workspace, or whole where it is not in there."""
    try:
        return workspace.relative(path)
    except ValueError:
        return path.resolve().as_posix()
