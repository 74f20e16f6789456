"""Trainings of adapters one after the other, as one set of adapters over the first one's base.

Training k adds s_k B_k A_k to weights that hold the earlier ones' already. Over the first base the
policy is s_1 B_1 A_1 + ... + s_k B_k A_k = [s_1 B_1 ... s_k B_k] [A_1; ...; A_k]: the ranks add up.
"""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING, Any, NamedTuple

from trainer.adapters import FOLDER, WEIGHTS
from trainer.model_folder import manifest_in

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

SETTINGS = "adapter_config.json"
"""As PEFT names it."""


class AdapterStep(NamedTuple):
    """A policy that is its base and adapters."""

    model_folder: Path
    """The policy's, with the adapters merged; they lie in a folder within."""
    weights_hash: str
    """Of the policy, merged."""
    base_weights_hash: str
    rank: int


def adapter_step(folder: Path) -> AdapterStep | None:
    """Return how the policy in ``folder`` was made of its base, or None if adapters don't say it.

    QLoRA's do not: they lie over weights that were rounded to 4 bits, and not over the base.
    """
    manifest = manifest_in(folder)
    adapter = manifest.get("settings", {}).get("adapter")
    if not adapter or adapter["kind"] != "lora" or not (folder / FOLDER / WEIGHTS).is_file():
        return None
    hashes = manifest["weights_hash"], manifest["base_weights_hash"]
    return AdapterStep(folder, *hashes, adapter["rank"])


def write_combined(adapters: Sequence[Path], output: Path) -> None:
    """Write into ``output`` what ``adapters``, each over the one before, are over the first's base.

    Where only some of them change a layer, the others' part of its rank is zeros. What is there
    already stays.
    """
    from safetensors.torch import save_file

    if output.is_dir():
        return
    settings = [json.loads((folder / SETTINGS).read_bytes()) for folder in adapters]
    ranks = [of_one["r"] for of_one in settings]
    parts = [_scaled(*pair) for pair in zip(adapters, settings, strict=True)]
    names = sorted(set().union(*parts))
    weights = {name: _joined([part.get(name) for part in parts], ranks, name) for name in names}
    targets = sorted(set().union(*(of_one["target_modules"] for of_one in settings)))
    rank = sum(ranks)
    combined = {**settings[-1], "r": rank, "lora_alpha": rank, "target_modules": targets}
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(weights, partial / WEIGHTS, metadata={"format": "pt"})
    (partial / SETTINGS).write_text(json.dumps(combined, indent=2), encoding="utf-8")
    partial.rename(output)


def _scaled(folder: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """Return adapters by name, alpha / rank multiplied into every B."""
    from safetensors.torch import load_file

    scale = settings["lora_alpha"] / settings["r"]
    return {
        name: weight if _is_a(name) else weight * scale
        for name, weight in load_file(folder / WEIGHTS).items()
    }


def _joined(blocks: list[Any], ranks: list[int], name: str) -> Any:
    """Return the A (rank, in) or B (out, rank) of several, one after the other along the rank."""
    import torch

    axis = 0 if _is_a(name) else 1
    like = next(block for block in blocks if block is not None)
    width = like.shape[1 - axis]
    shapes = [(rank, width) if axis == 0 else (width, rank) for rank in ranks]
    filled = [
        like.new_zeros(shape) if block is None else block
        for block, shape in zip(blocks, shapes, strict=True)
    ]
    return torch.cat(filled, axis).contiguous()


def _is_a(name: str) -> bool:
    return ".lora_A." in name
