"""What a person sees while stages run: bars on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import contextlib
import time
from contextvars import ContextVar
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.interruption import stop_if_asked

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

console = Console(stderr=True, highlight=False)
"""Progress goes to standard error; standard output holds results only."""

_running: list[tuple[Progress, TaskID]] = []
"""The bars on screen, the innermost last."""


@contextlib.contextmanager
def stage_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield ``advance(done, total)``; on leaving, print one line with the time taken.

    Raises:
        KeyboardInterrupt: the command was asked to stop, found at the start or at an advance.
    """
    stop_if_asked()
    started = time.monotonic()
    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(label, total=None, note="")

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)
            stop_if_asked()

        _running.append((bar, task))
        try:
            yield advance
        finally:
            _running.pop()
    say(f"{label:<24} {time.monotonic() - started:6.1f} s")


def note_done(done: int, total: int) -> None:
    """Show beside the innermost bar how far its present part has got.

    Raises:
        KeyboardInterrupt: the command was asked to stop.
    """
    stop_if_asked()
    note("" if done == total else f"{done:,} of {total:,} in this part")


def note(text: str) -> None:
    """Show ``text`` beside the innermost bar, in place of what stood there; on a terminal only."""
    if _running:
        bar, task = _running[-1]
        bar.update(task, note=text)


_listener: ContextVar[Callable[[str], object] | None] = ContextVar("listener", default=None)
"""Who is told what is said, in place of the terminal."""


@contextlib.contextmanager
def told_to(listener: Callable[[str], object]) -> Iterator[None]:
    """Give ``listener`` every line that `say` would print meanwhile."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def say(text: str) -> None:
    """Print one line of progress; square brackets in it are text, not markup."""
    if listener := _listener.get():
        listener(" ".join(text.split()))
    else:
        console.print(f"  {text}", markup=False)
