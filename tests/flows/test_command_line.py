"""The command between other programs: in a pipe, and without standard files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from flows.commands.options import to_paste, workspace_option

ROOT = Path(__file__).parents[2]

COMMAND = """
import os
import sys
import click
from flows.cli import cli, main

@cli.command()
def by_click():
    for _ in range(100_000):
        click.echo("a line")

@cli.command()
def by_rich():
    from flows.printing import stdout
    for _ in range(100_000):
        stdout().print("a line")

@cli.command()
def opens():
    with open(os.devnull) as file:
        click.echo(file.fileno())

sys.argv = ["prefmill", *sys.argv[1:]]
main()
"""


@pytest.mark.parametrize("name", ["by-click", "by-rich"])
def test_output_that_is_not_read_to_its_end_ends_the_command(name):
    command = subprocess.Popen(
        [sys.executable, "-c", COMMAND, name],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert command.stdout.readline() == b"a line\n"
    command.stdout.close()
    with command.stderr:
        assert command.stderr.read() == b""
    assert command.wait(60) == 141


def test_no_file_gets_the_number_of_a_closed_standard_input():
    shell = ["bash", "-c", '"$0" -c "$1" opens <&-', sys.executable, COMMAND]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2


@click.command()
@workspace_option
def remedy(root):
    click.echo(to_paste("`prefmill runs`, `prefmill why ID`, not `other`"))


@pytest.mark.parametrize(
    ("arguments", "named", "printed"),
    [
        (["-w", "my data"], None, "`prefmill runs -w 'my data'`, `prefmill why ID -w 'my data'`"),
        ([], "there", "`prefmill runs`, `prefmill why ID`"),
        ([], None, "`prefmill runs`, `prefmill why ID`"),
    ],
)
def test_commands_to_paste_name_the_workspace_that_was_named(arguments, named, printed):
    done = CliRunner().invoke(remedy, arguments, env={"PREFMILL_WORKSPACE": named})
    assert done.output == f"{printed}, not `other`\n"
