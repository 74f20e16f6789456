"""Options that several commands have, with one name and one help each."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Callable

DEMO_CONFIG = Path(__file__).parent.parent.parent / "configs" / "demo.yaml"

OUR_COMMAND = re.compile("`(prefmill [^`]+)`")

_given: list[Path] = []
"""The workspace that this command names on its command line, if it does."""


def _note(context: click.Context, option: click.Parameter, root: Path) -> Path:
    source = context.get_parameter_source(str(option.name))
    _given[:] = [root] if source is click.core.ParameterSource.COMMANDLINE else []
    return root


def to_paste(text: str) -> str:
    """Return ``text`` with the commands in it as they are to be typed for the same workspace."""
    where = "".join(f" -w {shlex.quote(str(root))}" for root in _given)
    return OUR_COMMAND.sub(lambda found: f"`{found[1]}{where}`", text)


workspace_option = click.option(
    "--workspace",
    "-w",
    "root",
    default="prefmill-workspace",
    show_default=True,
    envvar="PREFMILL_WORKSPACE",
    type=click.Path(path_type=Path, file_okay=False),
    callback=_note,
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
