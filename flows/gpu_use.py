"""How many of this machine's GPUs a stage holds."""

from __future__ import annotations

import sys


def watch_gpus() -> None:
    """Begin to watch: `gpus_held` tells of what was held since."""
    if _cuda_in_use():
        import torch

        for device in range(torch.cuda.device_count()):
            torch.cuda.reset_peak_memory_stats(device)


def gpus_held() -> int:
    """Return on how many GPUs this process, or the vLLM server that it runs, held memory.

    An endpoint's GPUs are not known here.
    """
    from flows.vllm_server import server_gpus

    own = 0
    if _cuda_in_use():
        import torch

        devices = range(torch.cuda.device_count())
        own = sum(torch.cuda.max_memory_allocated(device) > 0 for device in devices)
    return max(own, server_gpus())


def _cuda_in_use() -> bool:
    # Torch takes seconds to import and a GPU's memory to initialise: no stage pays to be asked.
    torch = sys.modules.get("torch")
    return torch is not None and torch.cuda.is_initialized()
