"""The task that writes the kept pairs as files for trainers, a shard at a time."""

from __future__ import annotations

import contextlib
import hashlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import repeat
from typing import TYPE_CHECKING, Self

import polars as pl

from flows.hashed_file import HashedFile
from flows.progress import say
from flows.shards import Shard, computed_by_shard, prompts_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from lineage.workspace import commit_bytes
from stages import dataset_card, export, filtering, unpaired
from stages.export_formats import FORMATS, UNPAIRED, pair_lines, require_allowed
from stages.tables import SCORER_HEALTH, SPLITS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from flows.configuration import PipelineConfig
    from lineage.workspace import Dataset
    from stages.export import ExportConfig

    Curated = Mapping[str, Dataset]
    Answers = Callable[[pl.DataFrame], pl.DataFrame]


@stage_task(name="export")
def export_pairs(context: RunContext, config: PipelineConfig, *inputs: Dataset) -> Dataset:
    """Write the kept pairs as files for trainers, train and held-out apart.

    ``inputs`` are tables of one curation: prompts, candidates, pairs and decisions; scores for
    answers labelled by score, scorer_health for a dataset card, label_noise for confidence.
    """
    asked, outputs = config.export, ("exports", "export_rows")
    spec = StageSpec("export", export.VERSION, asked.deciding(), inputs, outputs)
    folder = context.workspace.exports / spec.key

    def make(writer: StageWriter) -> None:
        # The output's lock is ours, so a temporary file in its folder is a killed process's.
        for leftover in folder.rglob(".*.tmp"):
            leftover.unlink()
        curated = {dataset.table: dataset for dataset in inputs}
        with contextlib.ExitStack() as stack:
            files = [
                stack.enter_context(ExportFile(split, name, folder))
                for split in SPLITS
                for name in export.distinct(asked.formats)
            ]
            _write_shards(writer, curated, asked, files)
            if not any(file.rows for file in files if file.split == "train"):
                say("no pair is left to train on: the train files are empty")
            rows = [file.commit(writer) for file in files]
        rows += _companions(writer, curated, asked, folder)
        writer.write("exports", pl.concat(rows))
        _write_lines(writer, files, [row["export_id"][0] for row in rows])

    paths = [folder / name for name in export.file_names(asked.formats)]
    return run_stage(context, "export", spec, make, paths).output("exports")


def read_beside(
    asked: ExportConfig, scores: Dataset, health: Dataset | None, noise: Dataset | None
) -> list[Dataset]:
    """Return what `export_pairs` reads beside pairs and texts, only what decides its files."""
    wanted = [
        scores if asked.unpaired else None,
        health if "hf_dataset" in asked.formats else None,
        noise,
    ]
    return [dataset for dataset in wanted if dataset is not None]


class ExportFile:
    """One file of a format and split. Left without a commit, nothing of it stays."""

    def __init__(self, split: str, format_name: str, folder: Path) -> None:
        self.split, self.format = split, format_name
        self.file = HashedFile(folder / FORMATS[format_name].name_of(split))
        self.writer = FORMATS[format_name].writer(self.file)
        self.lines: list[pl.DataFrame] = []
        """Of each shard: `pair_id` and `line`."""
        self.rows = 0

    def __enter__(self) -> Self:
        """Return the file, to be written."""
        return self

    def __exit__(self, *_: object) -> None:
        """Delete what is not committed."""
        try:
            if not self.file.closed:
                self.writer.close()
        finally:
            self.file.discard()

    def add(self, pairs: pl.DataFrame, answers: Answers) -> None:
        """Write a shard's pairs; in an unpaired file, their ``answers``.

        Raises:
            DataError: the format's target would not take one.
        """
        require_allowed(pairs, self.format)
        if self.format == UNPAIRED:
            rows = answers(pairs)
            lines = unpaired.unpaired_lines(pairs, rows)
        else:
            rows, lines = pairs, pair_lines(pairs)
        self.writer.write(rows)
        self.lines.append(lines.with_columns(pl.col("line") + self.rows))
        self.rows += rows.height

    def commit(self, writer: StageWriter) -> pl.DataFrame:
        """Finish the file and return its `exports` row."""
        self.writer.close()
        self.file.commit()
        path, pairs = writer.workspace.relative(self.file.path), sum(map(len, self.lines))
        return export.export_row(self.format, self.split, path, pairs, self.file.sha256())


def _write_shards(
    writer: StageWriter, curated: Curated, asked: ExportConfig, files: Sequence[ExportFile]
) -> None:
    """Write every shard's kept pairs to all files, each file by one thread at a time."""
    columns = ["prompt_id", "messages", "split"]

    def exported(shard: Shard) -> tuple[dict[str, pl.DataFrame], Answers]:
        kept = _kept(writer, curated, shard)
        of_prompts = prompts_of(writer.workspace, curated["prompts"], kept["prompt_id"], columns)
        texts = shard.read(["candidate_id", "completion", "finish_reason"])
        rows = {s: export.preference_rows(kept, of_prompts, texts, s) for s in SPLITS}
        return rows, _answers(writer, curated, asked, shard, texts)

    done = 0
    with ThreadPoolExecutor() as pool:
        for _, (rows, answers) in computed_by_shard(writer, curated["candidates"], exported):
            of_files = [rows[file.split] for file in files]
            # `list` raises what a thread raised.
            list(pool.map(ExportFile.add, files, of_files, repeat(answers)))
            done += 1
    assert done == len(curated["pairs"].parts), "pairs are of other shards"


def _kept(writer: StageWriter, curated: Curated, shard: Shard) -> pl.DataFrame:
    """Return a shard's kept pairs, with `length_weight`, and `confidence` of estimated noise."""
    of_shard = {name: dataset.part(shard.index) for name, dataset in curated.items()}
    decided = writer.read(of_shard["decisions"])
    kept = filtering.kept_pairs(writer.read(of_shard["pairs"]), decided)
    kept = kept.join(filtering.length_weights(decided), on="pair_id", how="left")
    if "label_noise" not in of_shard:
        return kept
    noise = writer.read(of_shard["label_noise"])
    confidence = noise.select("pair_id", confidence=1 - pl.col("probability_wrong"))
    return kept.join(confidence, on="pair_id", how="left")


def _answers(
    writer: StageWriter, curated: Curated, asked: ExportConfig, shard: Shard, texts: pl.DataFrame
) -> Answers:
    """Return what makes the rows of an unpaired file of a shard's pairs."""
    if asked.unpaired is None or UNPAIRED not in asked.formats:
        return unpaired.unpaired_rows
    scores = writer.read(curated["scores"].part(shard.index))
    return partial(unpaired.scored_rows, candidates=texts, scores=scores, config=asked.unpaired)


def _companions(
    writer: StageWriter, curated: Curated, asked: ExportConfig, folder: Path
) -> list[pl.DataFrame]:
    """Write the files that describe others and return their `exports` rows."""

    def facts() -> dataset_card.DatasetFacts:
        tables = {name: dataset.scan(writer.workspace) for name, dataset in curated.items()}
        health = tables.get(SCORER_HEALTH.name, SCORER_HEALTH.empty().lazy())
        return dataset_card.dataset_facts({**tables, SCORER_HEALTH.name: health}, asked.license)

    rows = []
    for companion in export.companions(asked.formats):
        content, path = companion.content(facts), folder / companion.file_name
        commit_bytes(path, content)
        where, sha256 = writer.workspace.relative(path), hashlib.sha256(content).hexdigest()
        rows.append(export.export_row(companion.name, SPLITS[0], where, 0, sha256))
    return rows


def _write_lines(
    writer: StageWriter, files: Sequence[ExportFile], export_ids: Sequence[str]
) -> None:
    """Write `export_rows`, a part for each shard."""
    for index, of_files in enumerate(zip(*(file.lines for file in files), strict=True)):
        lines = [
            of_file.with_columns(export_id=pl.lit(export_id))
            for of_file, export_id in zip(of_files, export_ids, strict=False)
        ]
        writer.write("export_rows", pl.concat(lines), index)
