"""The command between other programs: in a pipe, and without standard files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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
