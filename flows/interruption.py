"""How a command that was interrupted ends, in order or not."""

from __future__ import annotations

import os
import signal
import threading

import click

from stages.secret_blocks import EMBEDDED_SERVER

EXIT_INTERRUPTED = 130
INTERRUPTED = "interrupted: nothing finished is lost; the same command continues"
ORDERLY_END_SECONDS = 20.0
"""What an interrupted run's command gets before it is ended."""

_this_process = threading.Event()
_asked = threading.Event()


def of_command() -> None:
    """Make this process one command's: a signal interrupts it, and ends it in the end."""
    _this_process.set()
    listen()


def listen() -> None:
    """Have signals interrupt this command, in place of the handler of a Prefect flow around it.

    A terminated run stops like an interrupted one: its record written, its server stopped.
    """
    in_main_thread = threading.current_thread() is threading.main_thread()  # others may not
    if _this_process.is_set() and in_main_thread:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _interrupt)


def _interrupt(_number: int, _frame: object) -> None:
    if not is_asked():
        _asked.set()
        _end_in_a_while()
    raise KeyboardInterrupt


def ignore_signals() -> None:
    """Let what is left of this command, its orderly end, be without interruptions."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


def is_asked() -> bool:
    """Return whether this command was asked to stop."""
    return _asked.is_set()


def stop_if_asked() -> None:
    """Stop here if this command was asked to stop and goes on nevertheless.

    Python drops what is raised in a finaliser, as those of `regex` while a tokenizer is loaded: the
    signal came, and the work went on.

    Raises:
        KeyboardInterrupt: it was asked to.
    """
    if is_asked():
        raise KeyboardInterrupt


def _end_in_a_while() -> None:
    """End this command, if it hasn't ended by itself by then.

    A signal to every process, as systemd sends it, ends Prefect's embedded server as well, which
    Prefect then tries to reach for minutes; one in a bad moment may leave Prefect waiting for
    itself. The run's record is on disk long before that.
    """
    if EMBEDDED_SERVER in os.environ:
        timer = threading.Timer(ORDERLY_END_SECONDS, _end)
        timer.daemon = True
        timer.start()


def _end() -> None:
    click.echo(f"\n{INTERRUPTED}", err=True)
    os._exit(EXIT_INTERRUPTED)
