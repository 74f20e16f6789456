"""The README.md of a trained policy, in the form of Hugging Face's model cards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl

INTRODUCTION = """\
Trained by direct preference optimization (Rafailov et al. 2023, arXiv 2305.18290) or the relative
of it named below. Every setting is in `manifest.json`, every step in `training_metrics.parquet`.
"""

SHOWN = {
    "loss": "loss",
    "rewards/accuracies": "share of pairs with a positive margin",
    "rewards/margins": "margin of implicit rewards",
    "drift/chosen": "chosen: log-probability relative to the reference, nats",
    "drift/rejected": "rejected: log-probability relative to the reference, nats",
    "kl": "KL from the reference on sampled responses, nats",
    "heldout/margins": "margin on held-out pairs",
    "heldout/accuracies": "share of held-out pairs with a positive margin",
}
"""Metrics in the card, with what they mean."""


def model_card(manifest: dict[str, Any], metrics: pl.DataFrame) -> str:
    """Return the card: a YAML header that the Hub reads, what was trained on what, and how it went.

    Args:
        manifest: the training's manifest, with the result's `weights_hash`.
        metrics: step, metric, value.
    """
    settings = manifest["settings"]
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["dpo", "trl", "preference-optimization", settings["loss_type"]],
    }
    facts = {
        "loss": f"{settings['loss_type']}, beta {settings['beta']:g}",
        "pairs trained on": f"{manifest['pairs']:,}",
        "optimizer steps": f"{manifest['steps']:,}",
        "weights": _code(manifest["weights_hash"]),
        "weights before training": _code(manifest["base_weights_hash"]),
        "reference weights": _code(manifest["reference_weights_hash"]),
        "data (SHA-256)": _code(manifest["data_sha256"]),
        "chat template": _code(manifest["template_fingerprint"]),
        "seed": str(manifest["seed"]),
        "computed on": f"{manifest['device']}, autocast {manifest['autocast']}",
        "libraries": ", ".join(f"{name} {of}" for name, of in manifest["versions"].items()),
    }
    notes = list(manifest["warnings"])
    if manifest["stopped"]:
        notes.append(
            f"Training ended early, at step {manifest['stopped']['step']}: "
            f"{manifest['stopped']['reason']}."
        )
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
            "# A policy trained on preference pairs\n",
            INTRODUCTION,
            *_table(("what", "value"), facts.items()),
            "",
            *[f"- {note}" for note in notes],
            "\n## Course of the training\n",
            *_table(("metric", "first", "last"), _course(metrics)),
            "",
        ]
    )


def _code(text: str) -> str:
    return f"`{text}`"


def _course(metrics: pl.DataFrame) -> Iterator[tuple[str, str, str]]:
    """Yield each shown metric's meaning, first and last value."""
    for name, meaning in SHOWN.items():
        values = metrics.filter(metric=name).sort("step")["value"]
        if len(values):
            yield meaning, f"{values[0]:.3g}", f"{values[-1]:.3g}"


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
