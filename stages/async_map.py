"""An asynchronous function over many items, from code that isn't asynchronous."""

from __future__ import annotations

import asyncio
import contextlib
import enum
import threading
from queue import SimpleQueue
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Iterable, Iterator
    from contextlib import AbstractAsyncContextManager

T = TypeVar("T")
R = TypeVar("R")


class _Mark(enum.Enum):
    END = enum.auto()


def async_map(
    work: Callable[[T], Awaitable[R]],
    items: Iterable[T],
    workers: int,
    around: Callable[[], AbstractAsyncContextManager[object]],
    before_each: Callable[[], Awaitable[None]],
) -> Generator[R]:
    """Yield ``work(item)`` of every item as it finishes, in any order.

    The event loop runs in a thread of its own, within ``around()``. Items are pulled in the
    caller's thread, as many ahead as there are workers, since answers often come in bursts. The
    work on an item begins when ``before_each()`` returns. An exception of the items, of
    ``before_each`` or of the work starts nothing new; what is under way and finishes is yielded,
    then the first exception is raised. Closing the iterator cancels all work and joins the thread.
    """
    background = _Background(work, workers, around, before_each)
    background.thread.start()
    try:
        yield from _fed(background, iter(items), 2 * workers)
    finally:
        background.stop()


def _fed(background: _Background[T, R], source: Iterator[T], outstanding_limit: int) -> Iterator[R]:
    """Yield the results while keeping the background supplied with items."""
    outstanding, exhausted = 0, False
    source_error: Exception | None = None
    while True:
        while not exhausted and background.error is None and outstanding < outstanding_limit:
            item: T | _Mark = _Mark.END
            try:
                item = next(source, _Mark.END)
            except Exception as error:  # noqa: BLE001 - raised again below
                source_error = error
            exhausted = item is _Mark.END
            outstanding += not exhausted
            background.feed(item)
        result = background.results.get()
        if result is _Mark.END:
            break
        outstanding -= 1
        yield result
    if first := background.error or source_error:
        raise first


class _Background(Generic[T, R]):
    """The thread, its loop and its workers."""

    def __init__(
        self,
        work: Callable[[T], Awaitable[R]],
        workers: int,
        around: Callable[[], AbstractAsyncContextManager[object]],
        before_each: Callable[[], Awaitable[None]],
    ) -> None:
        self.work, self.workers, self.around, self.before_each = work, workers, around, before_each
        self.results: SimpleQueue[R | _Mark] = SimpleQueue()
        self.error: BaseException | None = None
        self._waiting: asyncio.Queue[T | _Mark] = asyncio.Queue()
        self._loop = asyncio.new_event_loop()
        # A daemon: an iterator that nobody closed must not keep the interpreter from ending.
        self.thread = threading.Thread(target=self._run, name="requests", daemon=True)

    def feed(self, item: T | _Mark) -> None:
        """Hand an item over; END says that none follows."""
        with contextlib.suppress(RuntimeError):  # the loop has ended with an error
            self._loop.call_soon_threadsafe(self._waiting.put_nowait, item)

    def stop(self) -> None:
        """Cancel whatever still runs and join the thread."""
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._cancel)
        self.thread.join()

    def _cancel(self) -> None:
        for task in asyncio.all_tasks(self._loop):
            task.cancel()

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._serve())
        except asyncio.CancelledError:
            pass
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self.error = self.error or error
        finally:
            self.results.put(_Mark.END)

    async def _serve(self) -> None:
        async with self.around():
            await asyncio.gather(*(self._worker() for _ in range(self.workers)))

    def _failed(self) -> bool:
        return self.error is not None

    async def _worker(self) -> None:
        while (item := await self._waiting.get()) is not _Mark.END and not self._failed():
            try:
                await self.before_each()
                if self._failed():  # meanwhile
                    break
                self.results.put(await self.work(item))
            except Exception as error:  # noqa: BLE001 - raised in the caller's thread
                self.error = self.error or error
                break
        self._waiting.put_nowait(_Mark.END)  # for the next worker
