"""Commands that make other datasets of stored judgments: curate, sweep, export."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.commands.flow_runs import (
    existing_workspace,
    print_summary,
    run_named,
    run_refresh,
    stored_config,
    workspace_at,
)
from flows.commands.options import config_file_option, json_option, run_option, workspace_option


@click.command()
@run_option
@config_file_option("Take the sections pairing, edits, filters and export from this file.")
@workspace_option
@json_option
def curate(run_id: str, config_file: Path, root: Path, as_json: bool) -> None:
    """Pair and filter a run's stored judgments again, with other settings.

    Nothing is generated, and nothing judged but what people edited.

    \b
    Examples:
      prefmill curate --run latest -c stricter.yaml
    """
    sections = ("pairing", "edits", "filters", "export")
    stored, overrides = stored_config(root, run_id, config_file, sections)
    print_summary(root, run_refresh(root, stored, overrides, stored_only=True), as_json)


@click.command()
@run_option
@click.option(
    "--strategies",
    help="Comma-separated: NAME, or NAME:KEY=VALUE for one with parameters; all that read scores.",
)
@click.option(
    "--scorers", help="Comma-separated: NAME, or a mix NAME*WEIGHT+NAME*WEIGHT; as in the run."
)
@click.option(
    "--filters",
    help="Comma-separated: `run` (the run's own), or YAML files with `filters` or named sets.",
)
@click.option("--export", "exported", is_flag=True, help="Also write each dataset's files.")
@workspace_option
@json_option
def sweep(
    run_id: str,
    strategies: str | None,
    scorers: str | None,
    filters: str | None,
    exported: bool,
    root: Path,
    as_json: bool,
) -> None:
    """Make several datasets of a run's stored judgments and compare them.

    Nothing is generated or judged. Each dataset is a run of its own, to train on or to export.

    \b
    Examples:
      prefmill sweep
      prefmill sweep --strategies best_vs_worst,best_vs_quantile:quantile=0.1
      prefmill sweep --strategies max_margin_k --filters run,strict.yaml --export
      prefmill sweep --scorers rules,judge,rules*0.7+judge*0.3 --json
    """
    from flows.configuration import PipelineConfig
    from flows.sweep import as_rows, page_of
    from flows.sweep import sweep as run_sweep
    from flows.sweep_page import print_table, write_page
    from flows.sweep_variants import variants
    from lineage.records import require_run

    workspace = existing_workspace(root)
    run = require_run(workspace, run_id)
    config = PipelineConfig.checked(run.config, f"the configuration of run {run.run_id}")
    asked = (text.split(",") if text else () for text in (strategies, scorers, filters))
    compared = run_sweep(workspace, run.run_id, variants(config, *asked), export=exported)
    page = write_page(compared, run.run_id, page_of(workspace, run.run_id, compared))
    if as_json:
        found = {"run_id": run.run_id, "page": str(page), "datasets": as_rows(compared)}
        click.echo(json.dumps(found, indent=1, ensure_ascii=False))
    else:
        print_table(compared)
        click.echo(page)


def _known_formats(
    _context: click.Context, _option: click.Parameter, formats: tuple[str, ...]
) -> tuple[str, ...]:
    if not formats:
        return formats
    from typing import get_args

    from stages.export import Format

    known = get_args(Format)
    for name in formats:
        if name not in known:
            raise click.BadParameter(f"{name!r} is none of {', '.join(known)}")
    return formats


@click.command()
@run_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--format",
    "formats",
    multiple=True,
    callback=_known_formats,
    help="A format to write (docs/exports.md), once for each; the run's own by default.",
)
@click.option(
    "--push-to-hub",
    "repository",
    metavar="OWNER/NAME",
    help="Upload the run's `hf_dataset` to this dataset of the Hugging Face hub, by HF_TOKEN.",
)
@click.option(
    "--private/--public",
    default=True,
    show_default=True,
    help="Who may see a dataset that the push makes. A public one is never pushed to as private.",
)
@workspace_option
def export(
    run_id: str,
    out: Path | None,
    formats: tuple[str, ...],
    repository: str | None,
    private: bool,
    root: Path,
) -> None:
    """Copy a run's preference files to a folder, writing other formats if asked.

    Nothing is uploaded without --push-to-hub.

    \b
    Examples:
      prefmill export --out pairs/
      prefmill export --run latest --format trl_parquet --out pairs/
      prefmill export --format hf_dataset --push-to-hub OWNER/NAME
    """
    from flows.export_copy import copy_exports, push_export

    if out is None and repository is None:
        raise click.UsageError("nothing to do: name a folder by --out, or --push-to-hub")
    run_id = run_named(root, run_id)
    if formats:
        stored, overrides = stored_config(root, run_id, None, ())
        overrides["export"] = {"formats": list(formats)}
        (run_id,) = run_refresh(root, stored, overrides, stored_only=True, recorded_as="export")
    for path, rows in copy_exports(workspace_at(root), run_id, out) if out else ():
        click.echo(path if rows is None else f"{path}  {rows} pairs")
    if repository:
        click.echo(push_export(workspace_at(root), run_id, repository, private=private))
