"""The decorator of every stage's task."""

from prefect import task
from prefect.cache_policies import NO_CACHE

# The stage output is the cache (stage_runner): Prefect gives schedule, retries and visibility.
stage_task = task(cache_policy=NO_CACHE, persist_result=False)
