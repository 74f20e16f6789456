"""Supervised fine-tuning: a model learns the answers it is shown (by TRL).

The loss is the mean of -log P(token | what comes before) over the answers' tokens of a batch, their
end of turn included; prompts are read and not learned.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl

from trainer.adapters import lora_config
from trainer.data_checks import require_columns
from trainer.loading import load_language_model, load_policy
from trainer.model_card import card_text, course
from trainer.sft_data import ROW_COLUMNS, check_conversations, tokenised
from trainer.single_model import Objective, heldout_batches, model_facts

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.sft_settings import SFTTrainingConfig

SHOWN = {
    "loss": "loss, nats per token",
    "mean_token_accuracy": "share of tokens that were the model's first choice",
    "heldout/loss": "loss on held-out rows, nats per token",
}
"""Metrics in the card, with what they mean."""


@dataclass(frozen=True)
class SFTObjective(Objective):
    """To give the rows' answers; rows have row_id, prompt and response (see `sft_data`)."""

    config: SFTTrainingConfig
    section = "sft"
    version = 1
    row_id = "row_id"
    rows_are = "rows"

    @property
    def heldout_share(self) -> float:
        """Share of the prompts whose rows are kept aside."""
        return self.config.heldout_share

    def sorted(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the rows by id."""
        require_columns(rows, ROW_COLUMNS, "rows", "conversation")
        return rows.select(ROW_COLUMNS).sort("row_id", maintain_order=True)

    def problems(self, rows: pl.DataFrame, tokenizer: Any, limit: int) -> pl.DataFrame:
        """Return what `check_conversations` found."""
        return check_conversations(rows, tokenizer, limit)

    def load(self, folder: Path) -> Any:
        """Return the causal language model, in 4 bits where its adapters want that."""
        return load_policy(folder, self.config.adapter)

    def load_whole(self, folder: Path) -> Any:
        """Return the causal language model."""
        return load_language_model(folder)

    def trainer(
        self, model: Any, tokenizer: Any, rows: pl.DataFrame, heldout: pl.DataFrame, folder: Path
    ) -> Any:
        """Return TRL's SFTTrainer on tokens and labels that are ours: it cuts none."""
        from trl import SFTConfig, SFTTrainer

        from trainer.private import RowNoting
        from trainer.trl_trainer import shared_arguments

        class PrivateSFTTrainer(RowNoting, SFTTrainer):  # type: ignore[misc]
            """TRL's SFTTrainer, private."""

        arguments = {**shared_arguments(self.config, folder), "max_length": None}
        return PrivateSFTTrainer(
            model=model,
            args=SFTConfig(**arguments, loss_type=self.config.loss_type),
            train_dataset=_dataset(rows, tokenizer),
            eval_dataset=None if heldout.is_empty() else _dataset(heldout, tokenizer),
            processing_class=tokenizer,
            peft_config=lora_config(self.config.adapter, model) if self.config.adapter else None,
        )

    def measure(self, trainer: Any, heldout: pl.DataFrame) -> dict[str, float]:
        """Return `loss`: the mean -log P of the held-out answers' tokens, in nats."""
        import torch

        del heldout
        trainer.model.eval()
        nats, tokens = 0.0, 0
        with torch.no_grad(), trainer.accelerator.autocast():
            for batch in heldout_batches(trainer):
                read = trainer.model(**batch, fused_lm_head=True, use_cache=False)
                nats -= read.log_probs.double().sum().item()
                tokens += int(read.label_mask.sum())
        return {"loss": nats / tokens}

    def line(self, history: list[dict[str, Any]]) -> str:
        """Return loss and token accuracy."""
        last = history[-1]
        return f"loss {last['loss']:.3f}  tokens right {last['mean_token_accuracy']:.0%}"

    def card(self, manifest: dict[str, Any], metrics: pl.DataFrame) -> str:
        """Return the model card."""
        header = {
            "library_name": "transformers",
            "pipeline_tag": "text-generation",
            "tags": ["sft", "trl"],
        }
        introduction = (
            "# A model fine-tuned on answers\n\nTrained on the answers' tokens alone. Every "
            "setting is in `manifest.json`, every step in `training_metrics.parquet`.\n"
        )
        facts, notes = model_facts(manifest)
        return card_text(header, introduction, facts, notes, course(metrics, SHOWN))


def _dataset(rows: pl.DataFrame, tokenizer: Any) -> Any:
    """Return tokens and labels as a Dataset that TRL takes as they are."""
    from datasets import Dataset

    tokens = [(row.input_ids, row.labels) for row in tokenised(rows, tokenizer)]
    columns = dict(zip(("input_ids", "labels"), zip(*tokens, strict=True), strict=True))
    types = dict.fromkeys(columns, pl.List(pl.Int64))
    return Dataset.from_polars(pl.DataFrame(columns, schema=types))
