"""What requests to endpoints take of a budget, and how many may be under way near its end."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import pydantic

from stages.configuration import Config
from stages.errors import BudgetError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")
R = TypeVar("R")

BLIND_REQUESTS = 4
"""Asked at once under a limit while it isn't known what one takes."""
LOOK_AGAIN_SECONDS = 0.02


class Prices(Config):
    """What an endpoint costs, in the currency of `max_cost`."""

    prompt_per_million_tokens: pydantic.NonNegativeFloat = 0.0
    completion_per_million_tokens: pydantic.NonNegativeFloat = 0.0

    def cost(self, usage: Usage) -> float:
        """Return the cost of one request."""
        prompt = usage.prompt_tokens * self.prompt_per_million_tokens
        return (prompt + usage.completion_tokens * self.completion_per_million_tokens) / 1e6


class Usage(NamedTuple):
    """Tokens of one request; of a completion with n choices, those of all choices."""

    prompt_tokens: int
    completion_tokens: int

    @classmethod
    def of(cls, body: dict[str, Any]) -> Usage:
        """Return what a response says, zeros where it doesn't."""
        found = body.get("usage")
        if not isinstance(found, dict):
            return cls(0, 0)
        prompt, completion = found.get("prompt_tokens"), found.get("completion_tokens")
        return cls(
            prompt if isinstance(prompt, int) and prompt > 0 else 0,
            completion if isinstance(completion, int) and completion > 0 else 0,
        )


class Budget:
    """Tokens and cost of a run so far, and their limits; shared by all its pools, thread-safe."""

    def __init__(
        self, maximum_tokens: int | None = None, maximum_cost: float | None = None
    ) -> None:
        self.maximum_tokens, self.maximum_cost = maximum_tokens, maximum_cost
        self.tokens, self.cost = 0, 0.0
        self._lock = threading.Lock()

    def charge(self, tokens: int, cost: float) -> None:
        """Add what a request took."""
        with self._lock:
            self.tokens += tokens
            self.cost += cost

    @property
    def is_limited(self) -> bool:
        """Whether there is a limit."""
        return (self.maximum_tokens, self.maximum_cost) != (None, None)

    def holds(self, tokens: float, cost: float) -> bool:
        """Return whether so much more passes no limit."""
        within_tokens = self.maximum_tokens is None or self.tokens + tokens <= self.maximum_tokens
        within_cost = self.maximum_cost is None or self.cost + cost <= self.maximum_cost
        return within_tokens and within_cost

    def exhausted(self) -> str:
        """Return which limit is reached and by how much, as a sentence; "" while none is."""
        if self.maximum_tokens is not None and self.tokens >= self.maximum_tokens:
            return f"{self.tokens:,} tokens are used and max_tokens is {self.maximum_tokens:,}"
        if self.maximum_cost is not None and self.cost >= self.maximum_cost:
            return f"{self.cost:.4f} is spent and max_cost is {self.maximum_cost:.4f}"
        return ""


class Account:
    """What the requests of one pool take; each under way counts ahead, as the mean of the others.

    Its coroutines are for one event loop.
    """

    def __init__(self, budget: Budget, prices: Prices) -> None:
        self._budget, self._prices = budget, prices
        self._under_way = self._finished = self._charges = 0
        self._tokens, self._cost = 0, 0.0

    def charge(self, usage: Usage) -> None:
        """Add what an answered request took."""
        tokens, cost = sum(usage), self._prices.cost(usage)
        self._budget.charge(tokens, cost)
        self._charges += 1
        self._tokens += tokens
        self._cost += cost

    def require(self) -> None:
        """Return unless the budget is exhausted.

        Raises:
            BudgetError: it is.
        """
        if sentence := self._budget.exhausted():
            raise BudgetError(
                sentence, remedy="raise the limit and start the same command again to go on"
            )

    async def room(self) -> None:
        """Wait until what is under way leaves room for one more item.

        Raises:
            BudgetError: the budget is exhausted.
        """
        while True:
            self.require()
            if self._has_room():
                return
            await asyncio.sleep(LOOK_AGAIN_SECONDS)

    def _has_room(self) -> bool:
        if not self._budget.is_limited or not self._under_way:
            return True
        if not (self._charges and self._finished):
            return self._under_way < BLIND_REQUESTS
        ahead = (self._under_way + 1) / self._finished
        return self._budget.holds(ahead * self._tokens, ahead * self._cost)

    async def counted(self, work: Callable[[T], Awaitable[R]], item: T) -> R:
        """Return ``work(item)``, which is under way meanwhile."""
        self._under_way += 1
        try:
            return await work(item)
        finally:
            self._under_way -= 1
            self._finished += 1
