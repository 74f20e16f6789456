"""Options that several commands have, with one name and one help each."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO_CONFIG = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"

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


def config_file_option(meaning: str, *, required: bool = True) -> Callable[[Any], Any]:
    """Return the option `--config` of a command that takes from the file what ``meaning`` says."""
    return click.option(
        "--config",
        "-c",
        "config_file",
        required=required,
        type=click.Path(path_type=Path),
        help=meaning,
    )


config_option = config_file_option("The pipeline's YAML file.")
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
