"""The reference's log-probabilities of a training's pairs, computed once and kept by content.

Layout: ``FOLDER/KEY/part-00000.safetensors``, with ``chosen`` and ``rejected`` of one chunk of
batches each. The key covers everything that changes a number, so a file that is there is right; a
killed computation goes on at its first missing part, and a broken part is made again.

Imports torch at once.
"""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from stages.content_ids import canonical_json, content_hash
from stages.errors import WorkspaceError
from trainer import processes

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

VERSION = 1

BATCHES_PER_PART = 64


def reference_key(trainer: Any, identity: dict[str, Any]) -> str:
    """Return 20 hex digits over what decides the log-probabilities of ``trainer``'s pairs.

    ``identity`` says what the trainer does not know: the reference's weights hash, and which
    computation makes them. Batches count too: another batch gives other last bits.
    """
    arguments = trainer.args
    digest = hashlib.sha256()
    for row in trainer.train_dataset.select_columns(list(trainer.token_columns)):
        digest.update(canonical_json(row).encode() + b"\n")
    return content_hash(
        {
            "version": VERSION,
            "tokens_sha256": digest.hexdigest(),
            "max_length": arguments.max_length,
            "truncation_mode": getattr(trainer.data_collator, "truncation_mode", None),
            "pad_token_id": trainer.data_collator.pad_token_id,
            "ld_alpha": trainer.ld_alpha,
            "batch_size": arguments.per_device_train_batch_size,
            "bf16": arguments.bf16,
            "device": arguments.device.type,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            **identity,
        }
    )


def reference_log_probs(
    trainer: Any, folder: Path, key: str, progress: Callable[[int, int], None] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return log pi_ref(y|x) of every chosen and every rejected, (pairs,) each, in nats.

    Of KTO: of every answer and every mismatched one.

    In the order of ``trainer.train_dataset``; its reference model computes what is not in
    ``folder``. Several processes share that work. ``progress`` is called with the pairs done and
    their number when some were computed.
    """
    rows_per_part = BATCHES_PER_PART * trainer.args.per_device_train_batch_size
    count = len(trainer.train_dataset)
    ranges = [
        range(first, min(first + rows_per_part, count)) for first in range(0, count, rows_per_part)
    ]
    paths = [folder / key / f"part-{index:05d}.safetensors" for index in range(len(ranges))]
    missing = [index for index, rows in enumerate(ranges) if _read(paths[index], len(rows)) is None]
    processes.wait_for_all()  # none may write before all have seen what is missing
    for first in range(0, len(missing), processes.count()):
        share = missing[first : first + processes.count()]
        # In a model spread over the processes each step is one of all of them.
        if processes.index() < len(share) or processes.sharding():
            index = share[min(processes.index(), len(share) - 1)]
            part = _computed(trainer, ranges[index], len(ranges[share[0]]))
            if processes.index() < len(share):
                _commit(paths[index], part)
        if progress:
            progress(ranges[share[-1]].stop, count)
    processes.wait_for_all()
    parts = [_written(path, len(rows)) for path, rows in zip(paths, ranges, strict=True)]
    return (
        torch.cat([part["chosen"] for part in parts]),
        torch.cat([part["rejected"] for part in parts]),
    )


def _computed(trainer: Any, rows: range, at_least: int) -> dict[str, torch.Tensor]:
    """Return the part of ``rows``.

    Of a model spread over the processes as many batches are computed as of ``at_least`` rows, the
    first batch again and again after the last, so that all processes take as many steps.
    """
    size = trainer.args.per_device_train_batch_size
    starts = list(range(rows.start, rows.stop, size))
    if processes.sharding():
        starts += [rows.start] * (-(-at_least // size) - len(starts))
    chosen, rejected = [], []
    trainer.ref_model.eval()
    for first in starts:
        indices = range(first, min(first + size, rows.stop))
        batch = trainer.data_collator([trainer.train_dataset[index] for index in indices])
        batch = trainer._prepare_inputs(batch)  # noqa: SLF001
        of_chosen, of_rejected = trainer.compute_ref_log_probs(trainer.ref_model, batch)
        chosen.append(of_chosen.float().cpu())
        rejected.append(of_rejected.float().cpu())
    count = len(rows)
    return {"chosen": torch.cat(chosen)[:count], "rejected": torch.cat(rejected)[:count]}


def _written(path: Path, rows: int) -> dict[str, torch.Tensor]:
    """Return a part that has just been found or written.

    Raises:
        WorkspaceError: it is gone, or broken.
    """
    part = _read(path, rows)
    if part is None:
        raise WorkspaceError(
            "the reference's log-probabilities cannot be read back",
            expected=f"{rows} rows as they were written",
            where=str(path),
            remedy="look at the disk; the same command computes them again",
        )
    return part


def _read(path: Path, rows: int) -> dict[str, torch.Tensor] | None:
    """Return a part, or None where it is missing or broken."""
    try:
        part = load_file(path)
    except (OSError, SafetensorError):
        return None
    whole = part.keys() == {"chosen", "rejected"} and all(
        values.shape == (rows,) for values in part.values()
    )
    return part if whole else None


def _commit(path: Path, part: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    save_file(part, temporary)
    temporary.rename(path)
