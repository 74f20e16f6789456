"""The processes of one training: which of them this is, and what they agree on.

Without a launcher there is one, and nothing here does anything.
"""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError, DataError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from trainer.dpo_settings import DPOTrainingConfig


def count() -> int:
    """Return the number of processes, as torch's launcher says it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def index() -> int:
    """Return this one's number among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def is_first() -> bool:
    """Return whether this is the process that writes and reports."""
    return index() == 0


def sharding() -> str | None:
    """Return what spreads one model over the processes, or None where each has a whole one."""
    if os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true":
        return "FSDP"
    if os.environ.get("ACCELERATE_USE_DEEPSPEED", "false").lower() == "true":
        return "DeepSpeed"
    return None


def suffix() -> str:
    """Return what sets apart the checkpoints of several processes, which no others can go on from.

    Nothing for one process.
    """
    return f"-{sharding() or 'DDP'}-{count()}" if count() > 1 else ""


def require_divisible(rows: int, config: DPOTrainingConfig) -> None:
    """Pass when every process gets as many of the ``rows`` as the others, and at least one batch.

    Raises:
        ConfigError: a batch can't be divided among the processes, adapters and model can't be
            spread over them.
        DataError: the rows make less than one batch.
    """
    if count() == 1:
        return
    if config.batch_size % (config.gradient_accumulation_steps * count()):
        raise ConfigError(
            f"batch_size {config.batch_size} is not divisible by {count()} processes x "
            f"{config.gradient_accumulation_steps} gradient_accumulation_steps",
            expected="micro-batches of equal size in every process",
            where="training.batch_size",
        )
    if config.adapter and config.adapter.kind == "qlora" and sharding():
        raise ConfigError(
            f"adapter.kind is qlora, and {sharding()} would spread weights in 4 bits",
            expected="one of the two",
            where="training.adapter.kind, training.accelerate",
            remedy="choose kind lora, or configs/accelerate/ddp.yaml",
        )
    if rows < config.batch_size:
        raise DataError(
            f"{rows} rows are less than one batch of {config.batch_size}",
            expected="at least a batch, which several processes share",
            where="training.batch_size",
        )


def warnings(rows: int, config: DPOTrainingConfig) -> list[str]:
    """Return a sentence for each thing that several processes do otherwise than one."""
    if count() == 1:
        return []
    said = []
    left = rows % (config.batch_size // config.gradient_accumulation_steps)
    if left:
        which = "the same" if config.loss_type == "kto" else "others"
        said.append(
            f"{left} of {rows} rows were left out of each epoch, {which} each time: they do not "
            f"fill a micro-batch of {count()} processes"
        )
    if sharding() and config.stopping.kl_samples:
        said.append(f"KL to the reference was not measured, its budget not kept: {sharding()}")
    return said


def wait_for_all() -> None:
    """Return when every process has come here."""
    if count() > 1:
        import torch

        torch.distributed.barrier()


def said_by_first(value: Any) -> Any:
    """Return the first process's ``value`` to every one, so that all decide alike."""
    if count() == 1:
        return value
    import torch

    values = [value]
    torch.distributed.broadcast_object_list(values, src=0)
    return values[0]


@contextlib.contextmanager
def opened_by_first(
    opened: contextlib.AbstractContextManager[Path], folder: Path
) -> Iterator[Path]:
    """Give ``folder``, which the first process opens and, when all are done with it, closes."""
    with opened if is_first() else contextlib.nullcontext(folder) as found:
        wait_for_all()
        yield found
        wait_for_all()
