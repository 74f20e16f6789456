"""Whose turn it is to ask which server."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from typing import TYPE_CHECKING

from stages.errors import EndpointError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from stages.request_limits import Server

TICK_SECONDS = 0.02


class Servers:
    """Servers of one model. Requests wait in one line until one of them has room."""

    def __init__(
        self, servers: Sequence[Server], maximum_in_flight: int, give_up_after_seconds: float
    ) -> None:
        self.servers, self.maximum_in_flight = servers, maximum_in_flight
        self.give_up_after_seconds = give_up_after_seconds
        self._line: deque[asyncio.Future[None]] = deque()
        self._stopped: EndpointError | None = None

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Let requests wait in the running event loop."""
        self._stopped = None
        for server in self.servers:
            server.failing_since = None  # no time that passed between two maps counts
        ticking = asyncio.create_task(self._tick())
        try:
            yield
        finally:
            ticking.cancel()
            self._line.clear()

    async def take(self, avoid: Server | None) -> Server:
        """Return the least busy server with room, once there is one, and count a request in.

        Raises:
            EndpointError: there is no hope of one, or `stop` was called.
        """
        in_line = False
        while True:
            now = time.monotonic()
            if self._stopped is not None:
                raise self._stopped
            if (in_line or not self._line) and (free := self._with_room(now)):
                server = min(free, key=lambda s: (s is avoid, s.in_flight / s.limit))
                server.in_flight += 1
                return server
            if self._hopeless(now):
                raise self.stop(self._none_usable())
            turn = asyncio.get_running_loop().create_future()
            # Who has waited stays in front of those that come now.
            self._line.appendleft(turn) if in_line else self._line.append(turn)
            await turn
            in_line = True

    def give_back(self, server: Server) -> None:
        """Count a request of ``server`` out."""
        server.in_flight -= 1
        self._wake()

    def stop(self, error: EndpointError) -> EndpointError:
        """Let no further request start; return the first error that stopped them."""
        self._stopped = self._stopped or error
        self._wake()
        return self._stopped

    def _with_room(self, now: float) -> list[Server]:
        if sum(server.in_flight for server in self.servers) >= self.maximum_in_flight:
            return []
        return [server for server in self.servers if server.room(now)]

    def _hopeless(self, now: float) -> bool:
        return all(server.hopeless(now, self.give_up_after_seconds) for server in self.servers)

    async def _tick(self) -> None:
        """Wake those that wait for what time alone changes: a backoff's end, the end of hope."""
        while True:
            await asyncio.sleep(TICK_SECONDS)
            self._wake()

    def _wake(self) -> None:
        """Let as many go on as there is room for; all of them when there is no hope."""
        if not self._line:
            return
        now = time.monotonic()
        count = sum(server.room(now) for server in self.servers)
        if self._stopped is not None or self._hopeless(now):
            count = len(self._line)
        for _ in range(min(count, len(self._line))):
            turn = self._line.popleft()
            if not turn.done():
                turn.set_result(None)

    def _none_usable(self) -> EndpointError:
        states = "; ".join(f"{server.url}: {server.last_failure}" for server in self.servers)
        return UnreachableError(
            f"no server could be used for {self.give_up_after_seconds:g} s ({states})",
            expected="a server that answers",
            remedy="start it again, then the same command: finished requests are kept",
        )
