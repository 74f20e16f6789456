"""How far a long call has got, told to whoever waits for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Tell: TypeAlias = Callable[[int, int], object]
"""Takes how many are done, and of how many."""


def say_nothing(_done: int, _total: int) -> None:
    """Tell nobody."""
