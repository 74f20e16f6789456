"""Commands that look before one runs: doctor, selftest."""

from __future__ import annotations

import json
from pathlib import Path

import click

from flows.commands.exit_codes import EXIT_ERROR
from flows.commands.flow_runs import workspace_at
from flows.commands.options import DEMO_CONFIG, json_option, workspace_option


@click.command()
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

    findings = examine(workspace_at(root), config_file)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        for finding in findings:
            mark = {"ok": "ok     ", "warning": "warning", "missing": "MISSING"}[finding.status]
            click.echo(f"{mark}  {finding.subject}: {finding.detail}")
    if any(finding.status == "missing" for finding in findings):
        raise SystemExit(EXIT_ERROR)


@click.command()
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
        findings = run_tests(config, workspace_at(Path(folder)), gold_pairs, ask_paid=yes)
    if as_json:
        click.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        marks = {True: "PASS", False: "FAIL", None: "-"}
        rows = [finding._asdict() | {"passed": marks[finding.passed]} for finding in findings]
        print_rows(Finding._fields, [row.values() for row in rows])
    if any(finding.passed is False for finding in findings):
        raise SystemExit(EXIT_ERROR)
