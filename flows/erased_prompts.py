"""What erasing a prompt means beyond the lineage: its sources, and the reports that showed it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flows.progress import say
from lineage.liveness import is_locked
from stages.errors import PrefmillError
from trainer.checkpoints import LOCK

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from lineage.workspace import Workspace
    from stages.prompt_sources import PromptSource


def cut_short(checkpoints: Path) -> list[Path]:
    """Return the folders that trainings left which ended before their time."""
    folders = sorted(checkpoints.glob("run-*"))
    return [folder for folder in folders if not is_locked(folder / LOCK)]


def sources_with(workspace: Workspace, prompt_ids: set[str], run_ids: Sequence[str]) -> list[str]:
    """Return the sources of these runs that hold one of the prompts, or that cannot be read."""
    from flows.configuration import load_config

    found: dict[str, str] = {}  # a source's settings to what is said of it; runs share sources
    for run_id in run_ids:
        try:
            prompts = load_config(workspace.stored_config(run_id)).prompts
        except PrefmillError as error:
            found[run_id] = f"of run {run_id} (its configuration cannot be read: {error})"
            continue
        for source in prompts.sources:
            key = source.model_dump_json()
            if key not in found:
                found[key] = _holding(source, prompts.seed, prompt_ids)
    return sorted({said for said in found.values() if said})


def _holding(source: PromptSource, seed: int, prompt_ids: set[str]) -> str:
    """Return the source's name if it holds one of the prompts or cannot be read, else ""."""
    from stages.prompt_sources import read_source

    try:
        prompts, _ = read_source(source, seed)
    except (PrefmillError, OSError) as error:
        return f"{source.name} (cannot be read: {error})"
    return source.name if prompt_ids & set(prompts["prompt_id"]) else ""


def redraw(workspace: Workspace, run_ids: Sequence[str]) -> None:
    """Draw the reports of these runs again."""
    from flows.report_data import report_run

    for run_id in run_ids:
        try:
            report_run(workspace, run_id)
        except Exception as error:  # noqa: BLE001 - the prompt is erased, whatever can be drawn
            say(f"report.html of {run_id} could not be drawn: {type(error).__name__}: {error}")
