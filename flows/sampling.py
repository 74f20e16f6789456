"""The task that samples prompts."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING

from flows.progress import say
from flows.prompt_choice import (
    bad_rows_path,
    content_of,
    not_stored,
    prompts_spec,
    seen_prompts,
)
from flows.stage_runner import RunContext, StageWriter, run_stage
from flows.stage_task import stage_task
from lineage.erasure import without_erased
from lineage.workspace import commit_bytes
from stages import prompt_sampling

if TYPE_CHECKING:
    from flows.configuration import PipelineConfig
    from lineage.workspace import Dataset
    from stages.row_files import BadRow


@stage_task(name="prompts")
def sample_prompts(context: RunContext, config: PipelineConfig) -> Dataset:
    """Sample the prompts; rows that cannot be used go to a file beside them."""
    settings = {**config.prompts.deciding(), **content_of(context.workspace, config)}
    spec = prompts_spec(settings)
    bad_rows = bad_rows_path(context.workspace, spec)

    def make(writer: StageWriter) -> None:
        if config.prompts.of_run:
            raise not_stored(config.prompts.of_run, context.workspace)
        seen = seen_prompts(context.workspace, config)
        sampled = prompt_sampling.sample(config.prompts, seen)
        commit_bytes(bad_rows, b"".join(map(_line, sampled.bad_rows)))
        writer.write("prompts", without_erased(context.workspace, sampled.prompts))
        writer.write("dropped_prompts", without_erased(context.workspace, sampled.dropped))

    made = run_stage(context, "prompts", spec, make, [bad_rows])
    with bad_rows.open("rb") as lines:
        for source, count in Counter(json.loads(line)["source"] for line in lines).items():
            say(f"{count} bad rows of {source} set aside: {bad_rows}")
    dropped = made.output("dropped_prompts").read(context.workspace, ["source", "reason"])
    counts = dropped.group_by("source", "reason").len().sort("source", "reason")
    for source, reason, count in counts.rows():
        say(f"{count} prompts of {source} passed over: {reason} (table dropped_prompts)")
    return made.output("prompts")


def _line(row: BadRow) -> bytes:
    return json.dumps(row._asdict(), ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
