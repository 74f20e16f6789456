"""Requests to OpenAI-compatible servers: retried, shared out, within limits and a budget.

The hot path is aiohttp and orjson: the `openai` client takes 11 ms of CPU a request where they
take 0.7. It asks the preflight's question, where its settings and errors help.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar

from stages.answer_text import one_line
from stages.async_map import async_map
from stages.budget import BLIND_REQUESTS, Account, Budget, Prices, Usage
from stages.endpoint_answers import MESSAGE_LENGTH, Failure, refusal
from stages.endpoint_preflight import ServedModel, served_model
from stages.errors import ConfigError, EndpointError
from stages.request_limits import Server, TokenBucket, backoff
from stages.secret_values import HIDDEN
from stages.server_choice import Servers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Iterable, Iterator

    from stages.endpoint_settings import EndpointConfig

T = TypeVar("T")
R = TypeVar("R")

BACKOFF_SECONDS = 1.0
"""The first wait after a failure; it doubles."""
REFUSALS_PER_ATTEMPT = 10
"""A 429 is the server's fault and not the request's, so that many of them count as one attempt."""
REJECTIONS_UNTIL_STOP = 5
"""Requests that are rejected with 400 before any succeeds: then the settings are wrong."""
SHORTEST_SECRET = 16
"""Characters: a shorter key, such as `test` or `token`, may be a word of any answer."""
CONNECT_SECONDS = 10.0
OK = 200
"""The one status that means an answer."""
KEEP_ALIVE_SECONDS = 4.0
"""Less than the 5 s after which uvicorn, and so vLLM, closes a connection that isn't used."""


class Reply(NamedTuple):
    """A server's answer: JSON that holds an object, whatever is in it."""

    body: dict[str, Any]
    latency_seconds: float
    """Of the attempt that succeeded, without waiting for its turn."""
    url: str


class RequestFailedError(Exception):
    """One request that is given up; the run goes on.

    ``reason`` is a short word (``timeout``, ``http_500``, ``dropped_connection``,
    ``broken_json``) or ``rejected: `` and the server's message.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class EndpointPool:
    """The servers of one model. ``with EndpointPool(config) as pool: for r in pool.map(...)``."""

    def __init__(
        self,
        config: EndpointConfig,
        budget: Budget | None = None,
        prices: Prices | None = None,
        *,
        backoff_seconds: float = BACKOFF_SECONDS,
    ) -> None:
        """Send nothing yet. Every reply is charged to ``budget``, at ``prices``.

        Raises:
            ConfigError: no server is named, or the variable of the key is not set.
        """
        self.config = config
        self._account = Account(budget or Budget(), prices or Prices())
        if not config.base_urls:
            raise ConfigError(
                "no server is named",
                expected="one or more `base_urls`",
                remedy="name them, e.g. base_urls: [http://127.0.0.1:8000/v1]",
            )
        self._servers = Servers(
            [Server(url, config.maximum_in_flight, backoff_seconds) for url in config.base_urls],
            config.maximum_in_flight,
            config.give_up_after_seconds,
        )
        self._api_key = config.api_key()
        self._proxies = {url: _proxy(url) for url in config.base_urls}
        self._backoff_seconds = backoff_seconds
        self._requests = _bucket(config.requests_per_minute)
        self._tokens = _bucket(config.tokens_per_minute)
        self._tokens_of_last = 0
        self._answered = self._rejected = self._under_way = 0
        # Of the event loop of a map.
        self._pacing, self._settled = asyncio.Lock(), asyncio.Event()
        self._session: Any = None
        self._mapping: Generator[Any] | None = None

    def __enter__(self) -> Self:
        """Return the pool."""
        return self

    def __exit__(self, *_: object) -> None:
        """Cancel a map that is still under way."""
        if self._mapping is not None:
            self._mapping.close()
            self._mapping = None

    def map(self, work: Callable[[T], Awaitable[R]], items: Iterable[T]) -> Iterator[R]:
        """Yield ``work(item)`` of every item as it finishes, in any order; one map at a time.

        At most ``maximum_in_flight`` items are worked on at once, fewer where that many may pass
        the budget, and items are pulled as they are needed. Whatever stops it, what is under way
        and finishes is yielded first. Closing the iterator early cancels all requests.

        Raises:
            BudgetError: the budget was exhausted before an item was started.
            EndpointError: from ``post``; any other exception of ``work`` likewise.
        """
        assert self._mapping is None, "one map at a time"
        workers = self.config.maximum_in_flight
        counted = partial(self._account.counted, work)
        mapping = async_map(counted, items, workers, self._connected, self._account.room)
        self._mapping = mapping
        try:
            yield from mapping
        finally:
            mapping.close()
            if self._mapping is mapping:
                self._mapping = None

    async def post(self, path: str, body: dict[str, Any]) -> Reply:
        """Return the answer to a request, asked again within ``attempts``. For use in ``map``.

        Raises:
            RequestFailedError: this request is given up.
            EndpointError: no request can succeed: wrong key, unknown model, no server, or the
                first requests were all rejected.
        """
        import orjson

        payload = orjson.dumps(body)
        failures = refusals = 0
        server: Server | None = None
        while True:
            server, reserved = await self._turn(avoid=server)
            outcome = await self._attempt(server, path, payload)
            if isinstance(outcome, Reply):
                self._charge(outcome.body, reserved)
                return outcome
            if outcome.kind in {"rejected", "fatal"}:
                raise self._given_up(outcome, server)
            failures += outcome.kind == "failed"
            refusals += outcome.kind == "busy"
            if failures + refusals // REFUSALS_PER_ATTEMPT >= self.config.attempts:
                raise RequestFailedError(outcome.reason)
            if outcome.kind == "failed":
                await asyncio.sleep(backoff(self._backoff_seconds, failures))

    def check(self, model: str) -> ServedModel:
        """Return the model as it is served, by one free request to each server.

        Raises:
            UnreachableError: no server can be reached now.
            EndpointError: wrong key, a name that no server has, or a model that one doesn't serve.
        """
        config = self.config
        return served_model(
            config.base_urls, self._api_key, model, wait_for_name=config.wait_for_name
        )

    @contextlib.asynccontextmanager
    async def _connected(self) -> AsyncIterator[None]:
        """Hold the connections."""
        import aiohttp

        self._pacing, self._settled = asyncio.Lock(), asyncio.Event()
        key = {"Authorization": f"Bearer {self._api_key}"} if self._api_key else {}
        connect = min(CONNECT_SECONDS, self.config.timeout_seconds)
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
                headers={"Content-Type": "application/json", **key},
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(self.config.timeout_seconds, sock_connect=connect),
            ) as self._session,
            self._servers.open(),
        ):
            yield

    def require_budget(self) -> None:
        """Return unless the budget is exhausted.

        Raises:
            BudgetError: it is; says which limit is reached.
        """
        self._account.require()

    async def _turn(self, avoid: Server | None) -> tuple[Server, int]:
        """Return a server for one request, and how many tokens are reserved for it.

        The rate limits are waited for with a server at hand, by one request after the other: while
        no server can be used no turns gather, to be taken all at once when one can.
        """
        if not (self._requests or self._tokens):
            return await self._servers.take(avoid=avoid), 0
        async with self._pacing:
            while self._tokens and not self._answered and self._under_way >= BLIND_REQUESTS:
                # Nobody knows yet how many tokens a request takes.
                self._settled.clear()
                await self._settled.wait()
            server = await self._servers.take(avoid=avoid)
            try:
                return server, await self._paced()
            except BaseException:
                self._servers.give_back(server)
                raise

    async def _paced(self) -> int:
        """Wait for the rate limits; return how many tokens were reserved for the request."""
        now, wait, reserved = time.monotonic(), 0.0, self._tokens_of_last
        if self._requests:
            wait = self._requests.reserve(1, now)
        if self._tokens:
            wait = max(wait, self._tokens.reserve(reserved, now))
        if wait:
            await asyncio.sleep(wait)
        return reserved

    def _charge(self, body: dict[str, Any], reserved: int) -> None:
        usage = Usage.of(body)
        self._tokens_of_last = sum(usage)
        if self._tokens:
            self._tokens.correct(sum(usage) - reserved)
        self._account.charge(usage)
        self._answered += 1

    async def _attempt(self, server: Server, path: str, payload: bytes) -> Reply | Failure:
        """Send the request once and note the outcome with the server, which it was counted into."""
        started = time.monotonic()
        self._under_way += 1
        try:
            outcome = await self._sent(server.url, path, payload)
            _note(server, outcome, started)
        finally:
            self._under_way -= 1
            self._settled.set()
            self._servers.give_back(server)
        return outcome

    async def _sent(self, url: str, path: str, payload: bytes) -> Reply | Failure:
        import aiohttp
        import orjson

        started = time.monotonic()
        try:
            async with self._session.post(
                url + path, data=payload, proxy=self._proxies[url], allow_redirects=False
            ) as response:
                raw = self._without_key(await response.read(), whole=response.status == OK)
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            return Failure(f"unreachable: {one_line(str(error), MESSAGE_LENGTH)}", "unreachable")
        except TimeoutError:
            return Failure("timeout", "failed")
        except (aiohttp.ClientError, OSError):
            return Failure("dropped_connection", "failed")
        if response.status != OK:
            return refusal(response.status, response.headers, raw)
        body = None
        with contextlib.suppress(orjson.JSONDecodeError):
            body = orjson.loads(raw)
        if isinstance(body, dict):
            return Reply(body, time.monotonic() - started, url)
        return Failure("broken_json", "failed")

    def _without_key(self, raw: bytes, *, whole: bool) -> bytes:
        """Return an answer without the key, which some servers repeat in their errors.

        A ``whole`` answer is kept word for word, but for a key that is no word.
        """
        if not self._api_key or (whole and len(self._api_key) < SHORTEST_SECRET):
            return raw
        return raw.replace(self._api_key.encode(), HIDDEN.encode())

    def _given_up(self, failure: Failure, server: Server) -> Exception:
        """Return the exception for a request that the server understood and refused."""
        if failure.kind == "fatal":
            return self._servers.stop(
                EndpointError(
                    failure.reason,
                    where=server.url,
                    remedy="check the key, the model's name, base_urls and the account",
                )
            )
        self._rejected += 1
        if not self._answered and self._rejected >= REJECTIONS_UNTIL_STOP:
            return self._servers.stop(
                EndpointError(
                    f"the first {self._rejected} requests were all {failure.reason}",
                    where=server.url,
                    remedy="change the setting that the server's message names",
                )
            )
        return RequestFailedError(failure.reason)


def _note(server: Server, outcome: Reply | Failure, started: float) -> None:
    now = time.monotonic()
    if isinstance(outcome, Reply) or outcome.kind in {"rejected", "fatal"}:
        server.succeeded()
        return
    server.last_failure = outcome.reason
    if outcome.kind != "busy":
        server.failed(started, now, unreachable=outcome.kind == "unreachable")
    if outcome.kind == "busy" or outcome.reason in {"timeout", "http_503"}:
        server.congested(started, now, outcome.retry_after_seconds)


def _bucket(per_minute: int | None) -> TokenBucket | None:
    return TokenBucket(per_minute) if per_minute is not None else None


def _proxy(url: str) -> str | None:
    """Return the proxy that the environment names for ``url``, found once and not per request."""
    from urllib.parse import urlsplit
    from urllib.request import getproxies, proxy_bypass

    parts = urlsplit(url)
    return None if proxy_bypass(parts.hostname or "") else getproxies().get(parts.scheme)
