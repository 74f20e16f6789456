"""What a person sees while stages run: bars on a terminal, one line a stage elsewhere."""

from __future__ import annotations

import contextlib
import time
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

console = Console(stderr=True, highlight=False)
"""Progress goes to standard error; standard output holds results only."""


@contextlib.contextmanager
def stage_progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Yield ``advance(done, total)``; on leaving, print one line with the time taken."""
    started = time.monotonic()
    columns = (
        TextColumn("  {task.description:<24}"),
        BarColumn(bar_width=30),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    with bar:
        task = bar.add_task(label, total=None)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        yield advance
    say(f"{label:<24} {time.monotonic() - started:6.1f} s")


def say(text: str) -> None:
    """Print one line of progress; square brackets in it are text, not markup."""
    console.print(f"  {text}", markup=False)
