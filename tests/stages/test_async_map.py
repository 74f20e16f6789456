"""A map over an event loop in a thread: order, bounds, errors, and nothing left behind."""

import asyncio
import contextlib
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.async_map import async_map

SECONDS = 20  # far more than any of these tests takes


@contextlib.asynccontextmanager
async def nothing():
    yield


async def at_once():
    pass


def mapped(work, items, workers=4, around=nothing, before_each=at_once):
    return async_map(work, items, workers, around, before_each)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "requests"]


async def doubled(item):
    await asyncio.sleep(0)
    return 2 * item


@settings(max_examples=30)
@given(st.integers(0, 60), st.integers(1, 9))
def test_every_item_gives_one_result(count, workers):
    assert sorted(mapped(doubled, range(count), workers)) == [2 * i for i in range(count)]
    assert not threads()


def test_at_most_so_many_are_under_way_and_items_are_pulled_as_needed():
    running, peak, pulled = 0, 0, []

    async def work(item):
        nonlocal running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.001)
        running -= 1
        return item

    def items():
        for item in range(100):
            pulled.append(item)
            yield item

    for results, _ in enumerate(mapped(work, items(), workers=8), start=1):
        # Eight under way and eight ahead, of which one was just yielded.
        assert len(pulled) <= results + 15
    assert results == 100
    assert peak == 8


def test_items_are_pulled_in_the_callers_thread():
    def items():
        for _ in range(20):
            yield threading.current_thread()

    async def work(thread):
        assert thread is not threading.current_thread()
        return thread

    assert set(mapped(work, items())) == {threading.current_thread()}


def test_an_error_of_the_work_comes_after_what_was_under_way():
    together, failed = asyncio.Barrier(4), asyncio.Event()

    async def work(item):
        await together.wait()
        if item == 0:
            failed.set()
            raise ValueError("the first")
        await failed.wait()
        return item

    results = mapped(work, range(100), workers=4)
    assert sorted(next(results) for _ in range(3)) == [1, 2, 3]
    with pytest.raises(ValueError, match="the first"):
        next(results)
    assert not threads()


def test_an_error_of_the_items_comes_after_what_was_under_way():
    def items():
        yield from range(3)
        raise ValueError("no more")

    results = mapped(doubled, items())
    assert sorted(next(results) for _ in range(3)) == [0, 2, 4]
    with pytest.raises(ValueError, match="no more"):
        next(results)


def test_an_error_before_an_item_leaves_that_item_alone():
    started = []

    async def work(item):
        started.append(item)
        return item

    async def before_each():
        if len(started) == 5:
            raise PermissionError("enough")

    results = []
    with pytest.raises(PermissionError, match="enough"):
        results.extend(mapped(work, range(50), workers=1, before_each=before_each))
    assert started == [0, 1, 2, 3, 4]


def test_what_waits_for_its_turn_does_not_begin_after_an_error():
    started = []

    async def work(item):
        started.append(item)
        if item == 0:
            await asyncio.sleep(0.05)
            raise PermissionError("enough")
        return item

    async def before_each():
        if started:
            await asyncio.sleep(0.1)

    with pytest.raises(PermissionError, match="enough"):
        list(mapped(work, range(50), workers=4, before_each=before_each))
    assert started == [0]


def test_an_error_around_the_work_is_raised():
    @contextlib.asynccontextmanager
    async def around():
        raise OSError("no sockets")
        yield

    with pytest.raises(OSError, match="no sockets"):
        list(mapped(doubled, range(50), around=around))
    assert not threads()


@pytest.mark.parametrize("end", ["close", "interrupt", "error_in_the_consumer"])
def test_leaving_early_cancels_what_is_under_way(end):
    started, three, cancelled, cleaned_up = [], asyncio.Event(), [], threading.Event()

    @contextlib.asynccontextmanager
    async def around():
        try:
            yield
        finally:
            cleaned_up.set()

    async def work(item):
        if item == 0:
            await three.wait()
            return item
        started.append(item)
        if len(started) == 3:
            three.set()
        try:
            await asyncio.sleep(SECONDS)
        except asyncio.CancelledError:
            cancelled.append(item)
            raise

    results = mapped(work, range(100), workers=4, around=around)
    assert next(results) == 0
    if end == "close":
        results.close()
    else:
        kind = KeyboardInterrupt if end == "interrupt" else ValueError
        with pytest.raises(kind):
            results.throw(kind())
    assert cleaned_up.is_set()
    assert not threads()
    assert set(cancelled) <= {1, 2, 3, 4}
    assert len(cancelled) >= 3


def test_an_iterator_that_is_never_started_starts_nothing():
    mapped(doubled, range(3))
    assert not threads()
