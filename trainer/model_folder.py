"""The folder of a trained policy: written under a temporary name, renamed when it is whole."""

from __future__ import annotations

import json
import math
import platform
import shutil
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from stages.content_ids import file_sha256, weights_hash
from stages.errors import WorkspaceError
from stages.part_files import read_parts
from trainer.checkpoints import flush, write_json
from trainer.model_card import model_card

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import polars as pl

MANIFEST = "manifest.json"
METRICS = "training_metrics.parquet"
CARD = "README.md"
LIBRARIES = ("accelerate", "datasets", "safetensors", "tokenizers", "torch", "transformers", "trl")


@dataclass(frozen=True)
class TrainingResult:
    """A trained policy and how it came about."""

    model_path: Path
    """The model's folder: safetensors, tokenizer with chat template, manifest.json, a card."""
    weights_hash: str
    """Of the trained policy, as `stages.content_ids.weights_hash` names it."""
    reference_weights_hash: str
    """Of the frozen reference model."""
    base_weights_hash: str
    """Of the policy before training."""
    metrics: pl.DataFrame
    """step (int64, from 1), metric (TRL's name or ours), value; equal in equal trainings but for
    `step_metrics.SPEEDS`. Reaches beyond ``steps`` where a check failed."""
    steps: int
    """Optimizer steps that made the policy."""
    pairs: int
    """Pairs trained on."""


def published(output: Path, fingerprint: str) -> TrainingResult | None:
    """Return the result already in ``output``, or None when there is nothing.

    Raises:
        WorkspaceError: the folder holds something else.
    """
    manifest = published_manifest(output, fingerprint)
    if manifest is None:
        return None
    return TrainingResult(
        model_path=output,
        weights_hash=manifest["weights_hash"],
        reference_weights_hash=manifest["reference_weights_hash"],
        base_weights_hash=manifest["base_weights_hash"],
        metrics=read_parts(output / METRICS),
        steps=manifest["steps"],
        pairs=manifest["pairs"],
    )


def published_manifest(output: Path, fingerprint: str) -> dict[str, Any] | None:
    """Return the manifest of the result already in ``output``, or None when there is nothing.

    Raises:
        WorkspaceError: the folder holds something else.
    """
    if not output.exists():
        return None
    manifest = manifest_in(output)
    if manifest.get("fingerprint") != fingerprint or weights_hash(output) != manifest.get(
        "weights_hash"
    ):
        raise WorkspaceError(
            "the output folder holds something else than this training's model",
            expected=f"nothing there, or a manifest with fingerprint {fingerprint}",
            where=f"{output}, fingerprint {manifest.get('fingerprint')}",
            remedy="choose another output folder or remove that one",
        )
    return manifest


def noteworthy(manifest: dict[str, Any]) -> list[str]:
    """Return a sentence for each warning of a training, and for its early end."""
    sentences: list[str] = list(manifest["warnings"])
    if stopped := manifest["stopped"]:
        sentences.append(
            f"stopped at step {stopped['step']}: {stopped['reason']}; the policy is that of "
            f"step {manifest['steps']}"
        )
    return sentences


def publish(
    output: Path,
    model: Any,
    tokenizer: Any,
    metrics: pl.DataFrame,
    manifest: dict[str, Any],
    card: Callable[[dict[str, Any], pl.DataFrame], str] = model_card,
) -> None:
    """Save model, tokenizer, metrics, manifest and card in ``output``: all of them or nothing.

    Not by TRL's ``save_model``: it adds ``training_args.bin``, whose bytes depend on the paths of
    the run and would become part of the weights hash.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    partial = output.with_name(f".{output.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        metrics.write_parquet(partial / METRICS)
        manifest = {
            **manifest,
            "weights_hash": weights_hash(partial),
            "saved_dtypes": stored_dtypes(partial),
            "versions": library_versions(),
        }
        write_json(partial / MANIFEST, manifest)
        (partial / CARD).write_text(card(manifest, metrics), encoding="utf-8")
        for path in partial.rglob("*"):
            flush(path)
        partial.rename(output)
    except BaseException:
        # On a full disk, what is left of it would be in the way of trying again.
        shutil.rmtree(partial, ignore_errors=True)
        raise
    flush(output.parent)


def manifest_in(folder: Path) -> dict[str, Any]:
    """Return the manifest of the model in ``folder``, ``{}`` where there is none to be read."""
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, ValueError):
        return {}
    return manifest


def stored_dtypes(folder: Path) -> list[str]:
    """Return the data types of the tensors in a model folder's safetensors, such as ``F32``."""
    from safetensors import safe_open

    found: set[str] = set()
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="numpy") as tensors:
            found |= {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    return sorted(found)


def weights_bytes(folder: Path) -> int:
    """Return the size of the weights in a model folder's safetensors, as fp32."""
    from safetensors import safe_open

    count = 0
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="numpy") as tensors:
            shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
            count += sum(map(math.prod, shapes))
    return 4 * count


def tokenizer_hashes(folder: Path) -> dict[str, str]:
    """Return the SHA-256 of each tokenizer file in a model folder, the chat template included."""
    patterns = ("tokenizer*", "chat_template*", "special_tokens_map.json", "vocab.*", "merges.txt")
    files = {path for pattern in patterns for path in folder.glob(pattern) if path.is_file()}
    return {path.name: file_sha256(path) for path in sorted(files)}


def library_versions() -> dict[str, str]:
    """Return the versions of Python and of the libraries that decide the weights."""
    return {"python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
