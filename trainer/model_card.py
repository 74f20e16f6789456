"""The README.md of a trained model, in the form of Hugging Face's model cards."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml

from trainer.dpo_settings import REFERENCE_FREE_LOSSES

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

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
    loss = settings["loss_type"]
    family = loss if loss in {*REFERENCE_FREE_LOSSES, "kto"} else "dpo"
    header = {
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": [*dict.fromkeys([family, "trl", "preference-optimization", loss])],
    }
    facts = {
        "loss": f"{loss}, beta {settings['beta']:g}",
        f"{manifest['unit']} trained on": f"{manifest['pairs']:,}",
        "optimizer steps": f"{manifest['steps']:,}",
        "trained weights": trained_weights(settings["adapter"]),
        "weights": _code(manifest["weights_hash"]),
        "weights before training": _code(manifest["base_weights_hash"]),
        "reference weights": _code(manifest["reference_weights_hash"])
        if loss not in REFERENCE_FREE_LOSSES
        else "none: the loss has no reference",
        "data (SHA-256)": _code(manifest["data_sha256"]),
        "chat template": _code(manifest["template_fingerprint"]),
        "seed": str(manifest["seed"]),
        "computed on": f"{manifest['device']}, autocast {manifest['autocast']}, "
        f"processes {manifest['processes']}",
        "libraries": ", ".join(f"{name} {of}" for name, of in manifest["versions"].items()),
    }
    notes = list(manifest["warnings"])
    if manifest["stopped"]:
        notes.append(
            f"Training ended early, at step {manifest['stopped']['step']}: "
            f"{manifest['stopped']['reason']}."
        )
    title = "A policy trained on preferences"
    return card_text(header, f"# {title}\n\n{INTRODUCTION}", facts, notes, course(metrics, SHOWN))


def trained_weights(adapter: dict[str, Any] | None) -> str:
    """Return what was trained, given the settings of the adapters if there were any."""
    if adapter is None:
        return "all"
    layers = adapter["target_modules"]
    where = "all linear layers" if layers == "all-linear" else ", ".join(layers)
    return (
        f"{adapter['kind']} of rank {adapter['rank']}, alpha {adapter['alpha']:g}, on {where}; "
        "merged into these weights, and alone in `adapter/`"
    )


def card_text(
    header: dict[str, Any],
    introduction: str,
    facts: dict[str, str],
    notes: Iterable[str],
    shown: Iterable[tuple[str, str, str]],
) -> str:
    """Return a card; ``shown`` are metrics with their first and last value."""
    return "\n".join(
        [
            f"---\n{yaml.safe_dump(header, sort_keys=False)}---\n",
            introduction,
            *_table(("what", "value"), facts.items()),
            "",
            *[f"- {note}" for note in notes],
            "\n## Course of the training\n",
            *_table(("metric", "first", "last"), shown),
            "",
        ]
    )


def _code(text: str) -> str:
    return f"`{text}`"


def course(metrics: pl.DataFrame, shown: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """Yield the meaning of each metric in ``shown``, its first and its last value."""
    for name, meaning in shown.items():
        values = metrics.filter(metric=name).sort("step")["value"]
        if len(values):
            yield meaning, f"{values[0]:.3g}", f"{values[-1]:.3g}"


def _table(head: tuple[str, ...], rows: Any) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    yield from (f"| {' | '.join(row)} |" for row in rows)
