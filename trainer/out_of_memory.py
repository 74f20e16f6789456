"""Running out of memory, said with what takes it. Imports torch at once."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch

from stages.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from trainer.training_settings import TrainingConfig

OF_CPU = "DefaultCPUAllocator"
"""In the message of the RuntimeError that torch raises without memory on a CPU."""


@contextlib.contextmanager
def memory_explained(config: TrainingConfig, rows: str = "pairs") -> Iterator[None]:
    """Run the block, which trains on what ``rows`` calls them.

    Raises:
        ModelError: torch ran out of memory in it; with the batch, the length and what to change.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error, torch.OutOfMemoryError) and OF_CPU not in str(error):
            raise
        count = config.batch_size // config.gradient_accumulation_steps
        remedies = [
            f"raise gradient_accumulation_steps above {config.gradient_accumulation_steps}"
            if count > 1
            else "choose a smaller model",
            "lower max_length_tokens",
            *([] if config.gradient_checkpointing else ["set gradient_checkpointing to true"]),
        ]
        raise ModelError(
            f"out of memory with micro-batches of {count} {rows} (batch_size {config.batch_size} / "
            f"gradient_accumulation_steps {config.gradient_accumulation_steps}) of up to "
            f"{config.max_length_tokens} tokens an answer, its prompt counted",
            where=str(error).splitlines()[0],
            remedy=f"{', or '.join(remedies)}; training goes on from its last checkpoint only with "
            "the same settings",
        ) from error
