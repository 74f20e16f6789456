"""The `prefmill` command. Everything heavy is imported by the command that needs it."""

from __future__ import annotations

import os
import select
import signal
import sys
from typing import NoReturn

import click

from flows.commands import COMMANDS
from flows.commands.exit_codes import EXIT_ERROR
from flows.commands.options import to_paste
from flows.interruption import (
    EXIT_INTERRUPTED,
    INTERRUPTED,
    ignore_signals,
    is_asked,
    of_command,
)

EXIT_UNREAD = 128 + signal.SIGPIPE
"""As a shell says of a command whose output nobody reads to its end."""

EXIT_CODES = """
\b
Exit codes: 0 done; 1 a bug of prefmill's (please report it); 2 wrong command line;
3 an error that the message says how to mend; 4 the gate held the model (only with
--require-promotion); 130 interrupted. Nothing finished is lost: the same command continues.
"""


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


for command in COMMANDS:
    cli.add_command(command)


def main() -> None:
    """Run the command; print errors that a user can act on as one sentence, without a trace."""
    _open_standard_files()
    of_command()
    try:
        cli(standalone_mode=False)
    except SystemExit as ended:  # Click's and Rich's 1 where nobody reads on, as in `| head`
        sys.exit(EXIT_UNREAD if ended.code == 1 and _is_unread(ended) else ended.code)
    except click.exceptions.Exit as ended:
        sys.exit(ended.exit_code)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except BaseException as error:
        from stages.errors import PrefmillError

        if is_asked() or _is_interruption(error):
            _exit_interrupted()
        if not isinstance(error, PrefmillError):
            raise
        click.echo(f"prefmill: {to_paste(str(error))}", err=True)
        sys.exit(EXIT_ERROR)


def _open_standard_files() -> None:
    """Open those of the three that are closed (`<&-`): another file would get their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def _is_unread(ended: SystemExit) -> bool:
    """Return whether Rich ended as nobody reads standard output, or nobody does (Click is mute)."""
    output = select.poll()
    output.register(1, 0)
    return isinstance(ended.__context__, BrokenPipeError) or bool(output.poll(0))


def _is_interruption(error: BaseException) -> bool:
    """Return whether a library turned Ctrl-C or a termination into an error of its own."""
    by_prefect = type(error).__name__ == "TerminationSignal"
    by_duckdb = isinstance(error, RuntimeError) and str(error) == "Query interrupted"
    return by_prefect or by_duckdb or isinstance(error, click.Abort | KeyboardInterrupt)


def _exit_interrupted() -> NoReturn:
    ignore_signals()
    click.echo(f"\n{INTERRUPTED}", err=True)
    sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
