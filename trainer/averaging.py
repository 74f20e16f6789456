"""The mean of two models' weights: a reference that follows the policy softly."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import polars as pl

from stages.content_ids import content_hash
from stages.errors import ModelError
from trainer.dpo import METRICS_SCHEMA
from trainer.identity import named_weights_hash
from trainer.isolation import quiet
from trainer.loading import load_chat_tokenizer, load_language_model
from trainer.model_folder import publish, published_manifest, tokenizer_hashes

if TYPE_CHECKING:
    from pathlib import Path

VERSION = 1
"""Raised when the same models would give other weights."""


def average_models(average: Path, policy: Path, rate: float, models: Path) -> Path:
    """Return the folder, within ``models``, of rate * policy + (1 - rate) * average.

    TR-DPO's soft update of the reference (Gorbatovski et al. 2024, arXiv 2404.09656), whose alpha
    is ``rate``. Computed and saved in fp32, with the policy's tokenizer; the folder's name
    comes from what goes in, and one that is there is returned at once.

    Raises:
        MissingFileError: a folder holds no model.
        ModelError: the two have other weights than each other.
        WorkspaceError: the folder's content is not what was saved there.
    """
    identity: dict[str, Any] = {
        "version": VERSION,
        "average_weights_hash": named_weights_hash("moving average", average),
        "policy_weights_hash": named_weights_hash("policy", policy),
        "tokenizer": tokenizer_hashes(policy),
        "rate": rate,
    }
    fingerprint = content_hash(identity)
    output = models / f"average_{fingerprint}"
    if published_manifest(output, fingerprint) is None:
        _average(average, policy, output, {"fingerprint": fingerprint, **identity})
    return output


def _average(average: Path, policy: Path, output: Path, manifest: dict[str, Any]) -> None:
    import torch

    with quiet(), torch.no_grad():
        new, old = map(load_language_model, (policy, average))
        weights, former = (dict(model.named_parameters()) for model in (new, old))
        if {k: v.shape for k, v in weights.items()} != {k: v.shape for k, v in former.items()}:
            raise ModelError(
                "the policy's weights have other names or shapes than the moving average's",
                expected="two models of one series",
                where=f"{policy}, {average}",
            )
        for name, weight in weights.items():
            weight.copy_(torch.lerp(former[name], weight, manifest["rate"]))
        tokenizer = load_chat_tokenizer(policy)
        none = pl.DataFrame(schema=METRICS_SCHEMA)
        publish(output, new, tokenizer, none, manifest, lambda *_: _card(manifest))


def _card(manifest: dict[str, Any]) -> str:
    return (
        "# A moving average of policies, the reference of later DPO rounds\n\n"
        f"{manifest['rate']:g} x policy {manifest['policy_weights_hash']} + "
        f"{1 - manifest['rate']:g} x average {manifest['average_weights_hash']}\n"
    )
