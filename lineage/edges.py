"""What was made from what, by content: tables, exported files and trained models."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.dataset as ds

from stages.content_ids import content_hash
from stages.tables import EXPORTS, ROUNDS, TRAININGS, VALIDATIONS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from lineage.workspace import Dataset, StageRecord

ROUND = "round_"
"""What stands before the training's stage key in a round's id."""

TRAINING = "training_"
"""The same in the id of a training on a file."""


@dataclass(frozen=True)
class Thing:
    """One end of an edge."""

    kind: str
    name: str
    hash: str
    stage_key: str | None


@dataclass(frozen=True)
class MadeFile:
    """A file or folder that a stage made besides its tables."""

    thing: Thing
    rows: int
    inputs: tuple[Thing, ...] = ()
    """What it was made from besides the stage's tables."""

    def artifact(self, record: StageRecord) -> dict[str, Any]:
        """Return its row of ``ARTIFACTS``."""
        return {
            "stage_key": record.stage_key,
            "stage": record.stage,
            "made_by": record.made_by,
            "role": "output",
            "kind": self.thing.kind,
            "path": self.thing.name,
            "rows": self.rows,
            "sha256": self.thing.hash,
        }


def files_made(parts: Mapping[str, Sequence[str]]) -> dict[str, list[MadeFile]]:
    """Return the exports and models that each stage output comes with, by its key.

    ``parts`` are the paths of all part-files by table.
    """
    made: dict[str, list[MadeFile]] = defaultdict(list)
    exports: dict[str, Thing] = {}
    for row in _rows(parts[EXPORTS.name]):
        thing = Thing("export", row["path"], row["sha256"], row["stage_key"])
        exports[row["export_id"]] = thing
        made[row["stage_key"]].append(MadeFile(thing, row["rows"]))
    rounds = {row["round_id"]: row for row in _rows(parts[ROUNDS.name])}
    trainings = _rows(parts[TRAININGS.name])
    models = {row["result_weights_hash"]: _model(row, row["stage_key"]) for row in trainings}
    models |= {
        row["result_weights_hash"]: _model(row, row["round_id"][len(ROUND) :])
        for row in rounds.values()
    }
    for row in rounds.values():
        inputs = _models_before(row, models)
        inputs += [exports[row["export_id"]]] if row["export_id"] in exports else []
        model = models[row["result_weights_hash"]]
        made[str(model.stage_key)].append(MadeFile(model, row["pairs"], tuple(inputs)))
    by_content = {export.hash: export for export in exports.values()}
    for row in trainings:
        data = Thing("file", row["data_path"], row["data_sha256"], None)
        inputs = [*_models_before(row, models), by_content.get(row["data_sha256"], data)]
        model = _model(row, row["stage_key"])
        made[row["stage_key"]].append(MadeFile(model, row["rows"], tuple(inputs)))
    return made


def _model(row: Mapping[str, Any], stage_key: str) -> Thing:
    """Return the result of a round or of a training on a file."""
    return Thing("model", row["result_path"], row["result_weights_hash"], stage_key)


def _models_before(row: Mapping[str, Any], models: Mapping[str, Thing]) -> list[Thing]:
    """Return the model that was trained and its reference, made where that is known."""
    before = {row["base_weights_hash"], row["reference_weights_hash"]} - {None}
    return [models.get(name, Thing("model", name, name, None)) for name in sorted(before)]


def _rows(paths: Sequence[str]) -> list[dict[str, Any]]:
    if not paths:
        return []
    partitioning = ds.partitioning(pa.schema([("stage_key", pa.string())]), flavor="hive")
    rows: list[dict[str, Any]] = (
        ds.dataset(list(paths), partitioning=partitioning).to_table().to_pylist()
    )
    return rows


def edges(
    records: Iterable[StageRecord], made: Mapping[str, Sequence[MadeFile]]
) -> list[dict[str, Any]]:
    """Return the rows of ``EDGES``: each output of a stage with each of its inputs."""
    rows = []
    for record in records:
        read = [_table(dataset) for dataset in record.inputs]
        tables = [_table(d) for d in record.outputs if d.table != VALIDATIONS.name]
        outputs = [(thing, read) for thing in tables]
        outputs += [(f.thing, [*read, *f.inputs]) for f in made.get(record.stage_key, ())]
        rows += [_edge(record, source, thing) for thing, sources in outputs for source in sources]
    return rows


def _table(dataset: Dataset) -> Thing:
    hashes = [part.sha256 for part in dataset.parts]
    return Thing("table", dataset.table, content_hash(hashes), dataset.stage_key)


def _edge(record: StageRecord, source: Thing, made: Thing) -> dict[str, Any]:
    return {
        "stage_key": record.stage_key,
        "stage": record.stage,
        "from_kind": source.kind,
        "from_name": source.name,
        "from_hash": source.hash,
        "from_stage_key": source.stage_key,
        "to_kind": made.kind,
        "to_name": made.name,
        "to_hash": made.hash,
    }
