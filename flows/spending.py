"""What a run has spent on endpoints, kept in its folder: a limit holds over all its starts."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pydantic

from stages.budget import Budget
from stages.configuration import Config

if TYPE_CHECKING:
    from pathlib import Path

    from flows.stage_runner import RunContext


class BudgetConfig(Config):
    """Limits of what a run may ask of endpoints. When one is reached the run stops, resumable."""

    max_tokens: pydantic.PositiveInt | None = None
    """Of prompts and completions, generation and judges together."""
    max_cost: pydantic.PositiveFloat | None = None
    """In the currency of the configured prices."""


class RunBudget(Budget):
    """A budget whose charges are appended to a file, and that begins with what stands there."""

    def __init__(self, path: Path, config: BudgetConfig) -> None:
        """Add up what earlier starts of the run spent."""
        super().__init__(config.max_tokens, config.max_cost)
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        for tokens, cost in spent(path):
            self.tokens += tokens
            self.cost += cost

    def charge(self, tokens: int, cost: float) -> None:
        """Add what a request took, here and in the file."""
        super().charge(tokens, cost)
        with self.path.open("a", encoding="utf-8") as file:
            # The line break comes first: a line cut short by a kill spoils no other.
            file.write(f"\n{json.dumps([tokens, cost])}")


def spent(path: Path) -> list[tuple[int, float]]:
    """Return tokens and cost of every request; a line cut short by a kill counts nothing."""
    lines = path.read_bytes().splitlines() if path.is_file() else []
    return [(tokens, cost) for tokens, cost in map(_charge, lines)]


def _charge(line: bytes) -> tuple[int, float]:
    try:
        tokens, cost = json.loads(line)
        return int(tokens), float(cost)
    except (ValueError, TypeError):
        return 0, 0.0


def budget_of(context: RunContext, config: BudgetConfig) -> RunBudget:
    """Return a run's budget."""
    return RunBudget(context.workspace.runs / context.run_id / "spent.jsonl", config)
