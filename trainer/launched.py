"""One of the processes of a training: ``python -m trainer.launched FOLDER``, under a launcher."""

from __future__ import annotations

import json
import os
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

from stages.errors import ConfigError, ModelError, PrefmillError
from trainer import processes
from trainer.launch import REPORT


def main(folder: Path) -> int:
    """Train as the job in ``folder`` says; return the exit status."""
    threading.Thread(target=_end_with_standard_input, daemon=True).start()
    try:
        _train(folder)
    except Exception as error:  # noqa: BLE001 - unsaid here it is lost among the launcher's lines
        _report(error=_facts(error))
        return 1
    return 0


def _train(folder: Path) -> None:
    import accelerate
    import torch

    from stages.part_files import read_parts
    from trainer.dpo import train_dpo
    from trainer.dpo_settings import DPOTrainingConfig

    state = accelerate.PartialState(cpu=not torch.cuda.is_available() and not processes.sharding())
    if state.num_processes != processes.count():
        raise ConfigError(
            f"{processes.count()} processes were started, and Accelerate has each of them train "
            f"as one of {state.num_processes}",
            expected="processes that train together",
            where="training.accelerate",
            remedy="choose another of configs/accelerate/",
        )
    job = json.loads((folder / "job.json").read_text())
    first = processes.is_first()
    train_dpo(
        read_parts(folder / "rows.parquet"),
        Path(job["policy"]),
        Path(job["reference"]),
        DPOTrainingConfig.model_validate(job["config"]),
        Path(job["output"]),
        Path(job["checkpoints"]),
        (lambda *step: _report(progress=step)) if first else None,
        frozenset(job["heldout_prompts"]),
        (lambda line: _report(note=line)) if first else None,
    )
    torch.distributed.destroy_process_group()


def _facts(error: Exception) -> dict[str, str]:
    """Return ``error`` as `trainer.launch` takes it."""
    if isinstance(error, PrefmillError):
        names = ("found", "expected", "where", "remedy")
        return {"kind": type(error).__name__, **{name: getattr(error, name) for name in names}}
    last = traceback.extract_tb(error.__traceback__)[-1]
    return {
        "kind": ModelError.__name__,
        "found": f"process {processes.index()} of the training failed: {error!r}",
        "where": f"{last.filename}, line {last.lineno}",
    }


def _report(**facts: Any) -> None:
    """Tell the process that started this one."""
    sys.stdout.write(f"{REPORT}{json.dumps(facts)}\n")
    sys.stdout.flush()


def _end_with_standard_input() -> None:
    """End this process when the one that started it has ended."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
