"""A training that leaves the process as it was and says nothing by itself."""

from __future__ import annotations

import contextlib
import logging
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

QUIETED_LOGGERS = ("accelerate", "datasets", "transformers", "trl")


@contextlib.contextmanager
def isolated_torch(threads: int | None) -> Iterator[None]:
    """Train with ``threads`` threads; leave threads and random states as they were."""
    import random

    import numpy as np
    import torch

    threads_before = torch.get_num_threads()
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    try:
        with torch.random.fork_rng():
            if threads:
                torch.set_num_threads(threads)
            yield
    finally:
        torch.set_num_threads(threads_before)
        random.setstate(states[0])
        np.random.set_state(states[1])  # noqa: NPY002


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence progress bars, log lines and warnings of the training libraries."""
    import datasets
    from transformers.utils import logging as transformers_logging

    levels = {name: logging.getLogger(name).level for name in QUIETED_LOGGERS}
    bars = transformers_logging.is_progress_bar_enabled(), not datasets.are_progress_bars_disabled()
    for name in QUIETED_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars[0]:
            transformers_logging.enable_progress_bar()
        if bars[1]:
            datasets.enable_progress_bars()
