"""What the commands that run a flow share: checks before it, the flow itself, the summary after."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import click

from flows.commands.exit_codes import EXIT_HELD

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.workspace import Workspace


def workspace_at(root: Path) -> Workspace:
    """Return the workspace, with libraries made quiet and private."""
    from flows.settings import configure_libraries
    from lineage.workspace import Workspace

    configure_libraries()
    return Workspace(root)


def existing_workspace(root: Path) -> Workspace:
    """Return the workspace, for a command that reads or changes what others made.

    Raises:
        MissingFileError: there is none.
    """
    from stages.errors import MissingFileError

    workspace = workspace_at(root)
    if not workspace.runs.is_dir():
        raise MissingFileError(
            "there is no workspace",
            expected="a folder that prefmill has worked in",
            where=str(root.absolute()),
            remedy="name it by -w; `prefmill demo` and `prefmill refresh` make one",
        )
    return workspace


def prepare(root: Path, config_file: Path, overrides: dict[str, Any]) -> None:
    """Find what is wrong before anything slow starts; then set Prefect up for this workspace."""
    from flows import embedded_server
    from flows.configuration import load_config
    from flows.models import find_policy
    from flows.prompt_choice import content_of
    from flows.series import continued
    from flows.service import wait_for_server
    from flows.settings import configure_prefect

    workspace = workspace_at(root)
    config = load_config(config_file, overrides)
    find_policy(continued(workspace, config, fresh=False).policy)
    content_of(workspace, config)
    workspace.require_writable()
    # Prefect reads its settings when it is first imported: nothing before this line may do that.
    configure_prefect(workspace)
    if url := os.environ.get("PREFECT_API_URL"):
        wait_for_server(url)
    else:
        embedded_server.start(workspace)


def print_forecast(
    root: Path,
    config_file: Path,
    overrides: dict[str, Any],
    *,
    ask_paid: bool,
    as_json: bool,
    in_rounds: bool = False,
) -> None:
    """Print what a refresh, or the configuration's rounds, would ask for and cost."""
    from flows.configuration import load_config
    from flows.forecast import forecast, total
    from flows.models import find_policy
    from flows.printing import print_rows
    from flows.prompt_choice import nothing_new, with_runs_to_pass_over
    from flows.series import continued, start_of
    from flows.vllm_server import stop_all

    workspace = workspace_at(root)
    config = load_config(config_file, overrides)
    if in_rounds:
        config = start_of(workspace, config)
    else:
        config = continued(workspace, config, fresh=config.prompts.only_new)
        config = with_runs_to_pass_over(workspace, config)
    if found := nothing_new(workspace, config):
        click.echo(f"nothing to do: {found}", err=True)
        return
    policy, rounds = find_policy(config.policy), config.rounds if in_rounds else 0
    if rounds > 1 and config.stop_after_held:
        held = f"ends when the gate has held {config.stop_after_held} in a row"
        click.echo(f"at most {rounds} rounds: the series {held}", err=True)
    try:
        lines = forecast(config, policy, workspace, ask_paid=ask_paid, rounds=rounds)
    finally:
        stop_all()
    lines.append(total(lines))
    if as_json:
        click.echo(json.dumps([line._asdict() for line in lines], indent=1))
    else:
        print_rows(lines[0]._fields, lines)


def _wait_for_prefect() -> None:
    """Return when Prefect's server answers; meanwhile import what every run needs."""
    from flows import embedded_server
    from flows.settings import import_in_background

    import_in_background("great_expectations", "altair", "vl_convert")
    embedded_server.wait()


def run_refresh(
    root: Path,
    config_file: Path,
    overrides: dict[str, Any],
    *,
    stored_only: bool,
    recorded_as: str = "refresh",
) -> list[str]:
    """Return the run's id, or none where there was nothing to do."""
    prepare(root, config_file, overrides)
    from flows.refresh import refresh as flow

    _wait_for_prefect()
    run_id: str | None = flow(str(config_file), str(root), overrides, stored_only, recorded_as)
    return [run_id] if run_id else []


def run_rounds(root: Path, config_file: Path, overrides: dict[str, Any]) -> list[str]:
    """Return the ids of the rounds' runs."""
    prepare(root, config_file, overrides)
    from flows.rounds import rounds as flow

    _wait_for_prefect()
    run_ids: list[str] = flow(str(config_file), str(root), overrides)
    return run_ids


def run_named(root: Path, run_id: str) -> str:
    """Return the whole id of a run named by a prefix or `latest`."""
    from lineage.records import require_run

    return require_run(existing_workspace(root), run_id).run_id


def stored_config(
    root: Path, run_id: str, config_file: Path | None, sections: tuple[str, ...]
) -> tuple[Path, dict[str, Any]]:
    """Return a run's stored configuration file, and what to lay over it.

    That are its own stored prompts and the ``sections`` of another file, which may hold them alone.
    """
    from flows.configuration import TrainingFileConfig, load_config, read_yaml
    from flows.prompt_choice import of_stored_run

    stored, overrides = of_stored_run(existing_workspace(root), run_id)
    if config_file:
        load_config(config_file, {"name": read_yaml(stored)["name"]}, TrainingFileConfig)
        values = read_yaml(config_file)
        overrides |= {key: values[key] for key in sections if key in values}
    return stored, overrides


def print_summary(
    root: Path, run_ids: list[str], as_json: bool, require_promotion: bool = False
) -> None:
    """Print what the runs made, and exit with 4 if asked and held."""
    from flows.printing import stdout
    from flows.summary import describe, summarise

    workspace = workspace_at(root)
    summary = summarise(workspace, run_ids)
    if as_json:
        click.echo(json.dumps(summary, indent=1, ensure_ascii=False, default=str))
    else:
        stdout().print(describe(summary))
    held = [run for run in summary["runs"] if run["round"] and not run["round"]["promoted"]]
    if require_promotion and held:
        raise SystemExit(EXIT_HELD)
