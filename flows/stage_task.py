"""The decorator of every stage's task, and which of its errors are worth another try."""

from __future__ import annotations

import errno
import functools
from typing import TYPE_CHECKING, Any, Generic, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

from flows.progress import say
from stages.errors import PrefmillError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Callable

Asked = ParamSpec("Asked")
Made = TypeVar("Made")

RETRY_SECONDS = (10.0, 40.0, 160.0)
"""Waits before each further try; what a stage has finished is kept meanwhile."""
RETRY_JITTER = 0.5
"""Each wait is drawn around its length: what fails together is not tried again together."""
PASSING = frozenset(
    {
        errno.EAGAIN, errno.EBUSY, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.EINTR, errno.EIO,
        errno.ENETDOWN, errno.ENETRESET, errno.ENETUNREACH, errno.ESTALE, errno.ETIMEDOUT,
    }
)  # fmt: skip
"""Numbers of system errors of a network, or of a disk behind one."""


class StageTask(Generic[Asked, Made]):
    """A stage's function: within a flow a task of Prefect's, outside one (a sweep) just that.

    Prefect's server takes longer to start than a sweep of stored judgments takes.
    """

    def __init__(self, function: Callable[Asked, Made], name: str) -> None:
        # The stage output is the cache (stage_runner): Prefect gives schedule, retries, visibility.
        self._task = task(
            function,
            name=name,
            cache_policy=NO_CACHE,
            persist_result=False,
            retries=len(RETRY_SECONDS),
            retry_delay_seconds=list(RETRY_SECONDS),
            retry_jitter_factor=RETRY_JITTER,
            retry_condition_fn=_worth_another_try,
        )
        self.fn = function
        functools.update_wrapper(self, function)

    def __call__(self, *args: Asked.args, **kwargs: Asked.kwargs) -> Made:
        """Return what the stage made."""
        if FlowRunContext.get() is None:
            return self.fn(*args, **kwargs)
        made: Made = self._task(*args, **kwargs)
        return made


def stage_task(*, name: str) -> Callable[[Callable[Asked, Made]], StageTask[Asked, Made]]:
    """Return the decorator that makes a function a stage's task called ``name``."""
    return functools.partial(StageTask, name=name)


def may_pass(error: object) -> bool:
    """Return whether the same may succeed a little later: a server or a network that was away.

    Nothing else is tried again: a wrong configuration, rows that break an expectation, a full disk
    or memory that is too small stay what they are.
    """
    if isinstance(error, PrefmillError):
        return isinstance(error, UnreachableError)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    return isinstance(error, OSError) and error.errno in PASSING


def _worth_another_try(task: Any, task_run: Any, state: Any) -> bool:
    if not may_pass(state.data):
        return False
    say(f"{task.name}: {state.data}")
    waits = ", then ".join(f"{seconds:g} s" for seconds in RETRY_SECONDS[task_run.run_count - 1 :])
    say(f"{task.name}: tried again after about {waits}; then the run ends")
    return True
