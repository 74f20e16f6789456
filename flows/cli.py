"""The `prefmill` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

if TYPE_CHECKING:
    from lineage.workspace import Workspace

DEMO_CONFIG = Path(__file__).parent.parent / "configs" / "demo.yaml"

EXIT_ERROR = 3
EXIT_HELD = 4
EXIT_INTERRUPTED = 130

EXIT_CODES = """
\b
Exit codes: 0 done; 1 a bug of prefmill's (please report it); 2 wrong command line;
3 an error that the message says how to mend; 4 the gate held the model (only with
--require-promotion); 130 interrupted. Nothing finished is lost: the same command continues.
"""

workspace_option = click.option(
    "--workspace",
    "-w",
    "root",
    default="prefmill-workspace",
    show_default=True,
    envvar="PREFMILL_WORKSPACE",
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder that holds everything made.",
)
config_option = click.option(
    "--config",
    "-c",
    "config_file",
    required=True,
    type=click.Path(path_type=Path),
    help="The pipeline's YAML file.",
)
run_option = click.option(
    "--run", "run_id", default="latest", show_default=True, help="A run id, or a prefix of one."
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
dry_run_option = click.option(
    "--dry-run",
    is_flag=True,
    help="Print requests, tokens, cost and time from a small sample; make nothing.",
)
yes_option = click.option(
    "--yes", is_flag=True, help="With --dry-run: the sample may also ask paid endpoints."
)
force_option = click.option(
    "--force", is_flag=True, help="Promote the model whatever the gate says; this is recorded."
)
promotion_option = click.option(
    "--require-promotion", is_flag=True, help="Exit with 4 when the gate holds the model."
)


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=EXIT_CODES,
)
@click.version_option(package_name="prefmill")
def cli() -> None:
    """Preference data that can be trusted, and the training that runs on it.

    \b
    Start with:
      prefmill demo                                the whole main job, in minutes, on this machine
      prefmill refresh -c configs/refresh.yaml     prompts to preference pairs
      prefmill rounds -c configs/demo.yaml         ... then DPO, evaluation and the gate
    """


@cli.command()
@click.option("--rounds", default=1, show_default=True, type=click.IntRange(1, 20))
@click.option("--seed", default=0, show_default=True, help="Of prompts, samples and training.")
@workspace_option
@json_option
def demo(rounds: int, seed: int, root: Path, as_json: bool) -> None:
    """Run on-policy rounds on the bundled tiny model, from prompts to a promoted policy.

    \b
    Examples:
      prefmill demo
      prefmill demo --rounds 3 --seed 1
    """
    run_ids = _run_rounds(root, DEMO_CONFIG, {"rounds": rounds, "seed": seed})
    _summarise(root, run_ids, as_json)


@cli.command()
@config_option
@workspace_option
@click.option(
    "--all-prompts", is_flag=True, help="Also prompts that earlier runs had (`prompts.only_new`)."
)
@dry_run_option
@yes_option
@json_option
def refresh(
    config_file: Path, root: Path, all_prompts: bool, dry_run: bool, yes: bool, as_json: bool
) -> None:
    """Turn prompts into exported preference pairs.

    With `prompts.only_new` a run takes only prompts that no earlier run had; where there are none,
    there is nothing to do, which is no error.

    \b
    Examples:
      prefmill refresh -c configs/refresh.yaml --dry-run
      prefmill refresh -c configs/refresh.yaml
      prefmill refresh -c configs/refresh.yaml --all-prompts
      prefmill refresh -c configs/demo.yaml -w /data/nightly --json
    """
    overrides = {"prompts": {"only_new": False}} if all_prompts else {}
    if dry_run:
        _forecast(root, config_file, overrides, ask_paid=yes, as_json=as_json)
        return
    run_ids = _run_refresh(root, config_file, overrides, stored_only=False)
    if run_ids or as_json:  # no run: it has said that there was nothing to do
        _summarise(root, run_ids, as_json)


@cli.command()
@config_option
@click.option("--rounds", type=click.IntRange(1, 1000), help="Overrides the file's `rounds`.")
@workspace_option
@dry_run_option
@yes_option
@force_option
@promotion_option
@json_option
def rounds(
    config_file: Path,
    rounds: int | None,
    root: Path,
    dry_run: bool,
    yes: bool,
    force: bool,
    require_promotion: bool,
    as_json: bool,
) -> None:
    """Run on-policy rounds: curate, train by DPO, evaluate, judge, promote; then again.

    \b
    Examples:
      prefmill rounds -c configs/demo.yaml --rounds 3 --dry-run
      prefmill rounds -c configs/demo.yaml --rounds 3
    """
    overrides: dict[str, Any] = {} if rounds is None else {"rounds": rounds}
    if force:
        overrides["gate"] = {"force": True}
    if dry_run:
        _forecast(root, config_file, overrides, ask_paid=yes, as_json=as_json, in_rounds=True)
        return
    run_ids = _run_rounds(root, config_file, overrides)
    _summarise(root, run_ids, as_json, require_promotion)


@cli.command()
@run_option
@click.option(
    "--config",
    "-c",
    "config_file",
    type=click.Path(path_type=Path),
    help="Take the sections training, evaluation, gate and reference from this file.",
)
@workspace_option
@force_option
@promotion_option
@json_option
def train(
    run_id: str,
    config_file: Path | None,
    root: Path,
    force: bool,
    require_promotion: bool,
    as_json: bool,
) -> None:
    """Train on the pairs of a run, evaluate and judge; nothing stored is generated again.

    \b
    Examples:
      prefmill train
      prefmill train --run demo-refresh-1a2b3c4d5e -c stronger.yaml
      prefmill train --force
    """
    stored, overrides = _stored_config(
        root, run_id, config_file, ("training", "evaluation", "gate", "reference")
    )
    # A run that was forced does not force those that take its settings.
    gate = {"force": False, **(overrides.get("gate") or {})}
    overrides["gate"] = {**gate, "force": True} if force else gate
    run_ids = _run_rounds(root, stored, {**overrides, "rounds": 1})
    _summarise(root, run_ids, as_json, require_promotion)


@cli.command()
@click.argument("file", type=click.Path(path_type=Path))
@config_option
@click.option(
    "--output",
    "-o",
    required=True,
    type=click.Path(path_type=Path, file_okay=False),
    help="Folder of the trained model; made by the command.",
)
@workspace_option
def train_file(file: Path, config_file: Path, output: Path, root: Path) -> None:
    """Train on a preference file: JSON Lines or Parquet with prompt, chosen and rejected.

    Read from the configuration are `policy`, which is the reference too, and `training`. Nothing
    is evaluated or judged.

    \b
    Examples:
      prefmill train-file pairs.jsonl -c configs/train/ipo.yaml -o my-model
    """
    from flows.configuration import load_config
    from flows.train_file import train_file as run_training

    result = run_training(file, load_config(config_file), _workspace(root), output)
    click.echo(result.model_path)


@cli.command()
@run_option
@click.option(
    "--config",
    "-c",
    "config_file",
    required=True,
    type=click.Path(path_type=Path),
    help="Take the sections pairing, filters and export from this file.",
)
@workspace_option
@json_option
def curate(run_id: str, config_file: Path, root: Path, as_json: bool) -> None:
    """Pair and filter a run's stored judgments again, with other settings.

    Nothing is generated or judged.

    \b
    Examples:
      prefmill curate --run latest -c stricter.yaml
    """
    sections = ("pairing", "filters", "export")
    stored, overrides = _stored_config(root, run_id, config_file, sections)
    _summarise(root, _run_refresh(root, stored, overrides, stored_only=True), as_json)


@cli.command()
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

    workspace = _workspace(root)
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


@cli.command()
@run_option
@click.option("--out", type=click.Path(path_type=Path, file_okay=False))
@click.option(
    "--format", "formats", multiple=True, help="Formats to write; the run's own by default."
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
    run_id = _require_run(root, run_id)
    if formats:
        stored, _ = _stored_config(root, run_id, None, ())
        overrides = {"export": {"formats": list(formats)}}
        (run_id,) = _run_refresh(root, stored, overrides, stored_only=True)
    for path, rows in copy_exports(_workspace(root), run_id, out) if out else ():
        click.echo(f"{path}  {rows} pairs")
    if repository:
        click.echo(push_export(_workspace(root), run_id, repository, private=private))


@cli.command()
@workspace_option
@json_option
def runs(root: Path, as_json: bool) -> None:
    """List the runs of a workspace, newest first.

    \b
    Examples:
      prefmill runs
      prefmill runs --json
    """
    from dataclasses import asdict

    from flows.printing import print_rows
    from lineage.records import list_runs

    records = [asdict(record) for record in list_runs(_workspace(root))]
    if as_json:
        click.echo(json.dumps(records, indent=1, ensure_ascii=False))
        return
    fields = ("run_id", "status", "started_at", "attempts", "error")
    rows = [[record[name] for name in fields] for record in records]
    print_rows(fields, rows)


@cli.command()
@click.argument("query")
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "csv", "json"]),
    default="table",
    show_default=True,
)
@workspace_option
def sql(query: str, output: str, root: Path) -> None:
    """Ask the lineage a question in SQL. Read-only.

    \b
    Examples:
      prefmill sql "SELECT * FROM funnel"
      prefmill sql "SELECT stratum, avg(margin) FROM pair_quality WHERE kept GROUP BY 1"
      prefmill sql --format csv "SELECT * FROM drops" > drops.csv
    """
    from flows.printing import print_frame
    from lineage.query import query as ask

    print_frame(ask(_workspace(root), query), output)


@cli.command()
@click.argument("row_id", metavar="ID")
@workspace_option
@json_option
def why(row_id: str, root: Path, as_json: bool) -> None:
    """Tell the story of one pair, candidate, prompt or export: why it is (not) there.

    ID may be shortened to a prefix that fits one row only, or be FILE:LINE of an exported JSONL.

    \b
    Examples:
      prefmill why pair_1a2b3c
      prefmill why prefmill-workspace/exports/1a2b/train.jsonl:7
    """
    from flows.printing import stdout
    from lineage.why import render
    from lineage.why import why as tell

    story = tell(_workspace(root), row_id)
    if as_json:
        click.echo(json.dumps(story.to_json(), indent=1, ensure_ascii=False, default=str))
        return
    stdout().print(render(story))


@cli.command()
@run_option
@workspace_option
def report(run_id: str, root: Path) -> None:
    """Write a run's report.html again and print where it is.

    \b
    Examples:
      prefmill report
    """
    from flows.report_data import report_run

    click.echo(report_run(_workspace(root), _require_run(root, run_id)))


@cli.group()
def lineage() -> None:
    """Look after lineage.duckdb."""


@lineage.command()
@workspace_option
def rebuild(root: Path) -> None:
    """Make lineage.duckdb again from the part-files and records alone.

    \b
    Examples:
      prefmill lineage rebuild -w /moved/workspace
    """
    from lineage.database import rebuild as rebuild_database

    published = rebuild_database(_workspace(root))
    for problem in published.problems:
        click.echo(f"set aside: {problem}", err=True)
    click.echo(published.path)


@cli.command()
@click.option("--config", "-c", "config_file", type=click.Path(path_type=Path))
@workspace_option
@json_option
def doctor(config_file: Path | None, root: Path, as_json: bool) -> None:
    """Check this machine, the installed versions, the workspace and a configuration.

    \b
    Examples:
      prefmill doctor
      prefmill doctor -c configs/refresh.yaml
    """
    from flows.doctor import examine

    findings = examine(_workspace(root), config_file)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}[finding.status]
            click.echo(f"{mark}  {finding.subject}: {finding.detail}")
    if any(finding.status == "missing" for finding in findings):
        raise SystemExit(EXIT_ERROR)


@cli.command()
@click.option(
    "--config",
    "-c",
    "config_file",
    default=DEMO_CONFIG,
    type=click.Path(path_type=Path),
    help="The pipeline whose scorers are tested; without it the demo's.",
)
@click.option(
    "--pairs",
    "gold_pairs",
    default=40,
    show_default=True,
    type=click.IntRange(10, 10_000),
    help="Prompts with a known good and a damaged answer, asked about twice.",
)
@click.option("--yes", is_flag=True, help="Paid endpoints may be asked.")
@json_option
def selftest(config_file: Path, gold_pairs: int, yes: bool, as_json: bool) -> None:
    """Test the labels that the scorers make; exit with 3 when a test fails.

    Answers that change places change no label, inverted scores invert every label, the known
    better answer wins, injected instructions leave a judge's verdicts readable, and what gets
    lost between two stages stops.

    \b
    Examples:
      prefmill selftest
      prefmill selftest -c configs/refresh.yaml --pairs 20 --yes
    """
    from tempfile import TemporaryDirectory

    from flows.configuration import load_config
    from flows.printing import print_rows
    from flows.selftest import Finding
    from flows.selftest import selftest as run_tests

    config = load_config(config_file)
    with TemporaryDirectory(prefix="prefmill-selftest-") as folder:
        findings = run_tests(config, _workspace(Path(folder)), gold_pairs, ask_paid=yes)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        marks = {True: "PASS", False: "FAIL", None: "-"}
        rows = [finding._asdict() | {"passed": marks[finding.passed]} for finding in findings]
        print_rows(Finding._fields, [row.values() for row in rows])
    if any(finding.passed is False for finding in findings):
        raise SystemExit(EXIT_ERROR)


def _workspace(root: Path) -> Workspace:
    from flows.settings import configure_libraries
    from lineage.workspace import Workspace

    configure_libraries()
    return Workspace(root)


def _prepare(root: Path, config_file: Path, overrides: dict[str, Any]) -> None:
    """Find what is wrong before anything slow starts; then set Prefect up for this workspace."""
    from flows.configuration import load_config
    from flows.models import find_policy
    from flows.progress import say
    from flows.settings import configure_prefect, stop_orphaned_servers
    from stages.prompt_sampling import fingerprints

    workspace = _workspace(root)
    config = load_config(config_file, overrides)
    find_policy(config.policy)
    fingerprints(config.prompts)
    workspace.require_writable()
    configure_prefect(workspace)
    if "PREFECT_API_URL" not in os.environ:
        stop_orphaned_servers(workspace)
        say("starting Prefect's embedded server (10 to 30 s) ...")


def _forecast(
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
    from flows.sampling import nothing_new, with_runs_to_pass_over
    from flows.vllm_server import stop_all

    workspace = _workspace(root)
    config = with_runs_to_pass_over(workspace, load_config(config_file, overrides))
    if found := nothing_new(workspace, config):
        click.echo(f"nothing to do: {found}", err=True)
        return
    policy, rounds = find_policy(config.policy), config.rounds if in_rounds else 0
    try:
        lines = forecast(config, policy, workspace, ask_paid=ask_paid, rounds=rounds)
    finally:
        stop_all()
    lines.append(total(lines))
    if as_json:
        click.echo(json.dumps([line._asdict() for line in lines], indent=1))
    else:
        print_rows(lines[0]._fields, lines)


def _while_prefect_starts() -> None:
    """Import what every run needs while the flow's first call waits for Prefect's server."""
    from flows.settings import import_in_background

    import_in_background("great_expectations", "altair", "vl_convert")


def _run_refresh(
    root: Path, config_file: Path, overrides: dict[str, Any], *, stored_only: bool
) -> list[str]:
    """Return the run's id, or none where there was nothing to do."""
    _prepare(root, config_file, overrides)
    from flows.refresh import refresh as flow

    _while_prefect_starts()
    run_id: str | None = flow(str(config_file), str(root), overrides, stored_only)
    return [run_id] if run_id else []


def _run_rounds(root: Path, config_file: Path, overrides: dict[str, Any]) -> list[str]:
    _prepare(root, config_file, overrides)
    from flows.rounds import rounds as flow

    _while_prefect_starts()
    run_ids: list[str] = flow(str(config_file), str(root), overrides)
    return run_ids


def _require_run(root: Path, run_id: str) -> str:
    from lineage.records import require_run

    return require_run(_workspace(root), run_id).run_id


def _stored_config(
    root: Path, run_id: str, config_file: Path | None, sections: tuple[str, ...]
) -> tuple[Path, dict[str, Any]]:
    """Return a run's stored configuration file and the sections of another to lay over it."""
    from flows.configuration import load_config, read_yaml

    stored = _workspace(root).runs / _require_run(root, run_id) / "config.yaml"
    if config_file is None:
        return stored, {}
    load_config(config_file)
    values = read_yaml(config_file)
    return stored, {key: values[key] for key in sections if key in values}


def _summarise(
    root: Path, run_ids: list[str], as_json: bool, require_promotion: bool = False
) -> None:
    """Print what the runs made, and exit with 4 if asked and held."""
    from flows.printing import stdout
    from flows.summary import describe, summarise

    workspace = _workspace(root)
    summary = summarise(workspace, run_ids)
    if as_json:
        click.echo(json.dumps(summary, indent=1, ensure_ascii=False, default=str))
    else:
        stdout().print(describe(summary))
    held = [run for run in summary["runs"] if run["round"] and not run["round"]["promoted"]]
    if require_promotion and held:
        raise SystemExit(EXIT_HELD)


def main() -> None:
    """Run the command; print errors that a user can act on as one sentence, without a trace."""
    interrupted: list[int] = []

    def stop(number: int, _frame: object) -> None:
        interrupted.append(number)
        raise KeyboardInterrupt

    # A terminated run stops like an interrupted one: its record written, its server stopped.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        cli(standalone_mode=False)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BaseException as error:
        from stages.errors import PrefmillError

        if interrupted or _is_interruption(error):
            _exit_interrupted()
        if not isinstance(error, PrefmillError):
            raise
        click.echo(f"prefmill: {error}", err=True)
        sys.exit(EXIT_ERROR)


def _is_interruption(error: BaseException) -> bool:
    """Return whether a library turned Ctrl-C or a termination into an error of its own."""
    by_prefect = type(error).__name__ == "TerminationSignal"
    by_duckdb = isinstance(error, RuntimeError) and str(error) == "Query interrupted"
    return by_prefect or by_duckdb or isinstance(error, click.Abort | KeyboardInterrupt)


def _exit_interrupted() -> NoReturn:
    click.echo("\ninterrupted: nothing finished is lost; the same command continues", err=True)
    sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
