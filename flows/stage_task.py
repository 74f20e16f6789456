"""The decorator of every stage's task."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.context import FlowRunContext

if TYPE_CHECKING:
    from collections.abc import Callable

Asked = ParamSpec("Asked")
Made = TypeVar("Made")


class StageTask(Generic[Asked, Made]):
    """A stage's function: within a flow a task of Prefect's, outside one (a sweep) just that.

    Prefect's server takes longer to start than a sweep of stored judgments takes.
    """

    def __init__(self, function: Callable[Asked, Made], name: str) -> None:
        # The stage output is the cache (stage_runner): Prefect gives schedule, retries, visibility.
        self._task = task(function, name=name, cache_policy=NO_CACHE, persist_result=False)
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
