"""The task that writes the kept pairs as files for trainers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from lineage.workspace import commit_bytes
from stages import export, filtering
from stages.tables import SPLITS

if TYPE_CHECKING:
    from flows.configuration import PipelineConfig
    from lineage.workspace import Dataset


@stage_task(name="export")
def export_pairs(
    context: RunContext,
    config: PipelineConfig,
    prompts: Dataset,
    candidates: Dataset,
    pairs: Dataset,
    decisions: Dataset,
) -> Dataset:
    """Write the kept pairs as files for trainers, train and held-out apart."""
    inputs, outputs = (prompts, candidates, pairs, decisions), ("exports", "export_rows")
    settings = config.export.deciding()
    spec = StageSpec("export", export.VERSION, settings, inputs, outputs)

    folder = context.workspace.exports / spec.key
    files = [
        (split, name, folder / file_name)
        for split, name, file_name in export.export_files(config.export.formats)
    ]

    def make(writer: StageWriter) -> None:
        import polars as pl

        kept = filtering.kept_pairs(writer.read(pairs), writer.read(decisions))
        texts = writer.read(candidates, ["candidate_id", "completion"])
        of_prompts, described = writer.read(prompts), []
        rows = {s: export.preference_rows(kept, of_prompts, texts, s) for s in SPLITS}
        for split, name, _ in files:
            export.require_allowed(rows[split], name)
        for split, name, path in files:
            content = export.encode(rows[split], name)
            commit_bytes(path, content)
            where = writer.workspace.relative(path)
            described.append(export.describe(rows[split], content, name, split, where))
        writer.write("exports", pl.concat([exports for exports, _ in described]))
        writer.write("export_rows", pl.concat([lines for _, lines in described]))

    paths = [path for _, _, path in files]
    return run_stage(context, "export", spec, make, paths).output("exports")
