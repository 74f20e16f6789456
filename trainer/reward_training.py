"""A reward model from preference pairs (by TRL): which of two answers would be chosen.

The loss is -log sigmoid(r(x, y_w) - r(x, y_l)), Bradley and Terry's model of a choice (Ouyang et
al. 2022, arXiv 2203.02155, eq. 1). The reward is the one output of a sequence classifier, read at
the last token of the conversation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from stages.chat_template import render
from stages.errors import DataError, ModelError
from trainer.adapters import lora_config
from trainer.bootstrap import interval, resampled_means
from trainer.data_checks import (
    ROW_COLUMNS,
    TOKENISED_ROWS,
    check_preference_data,
    prompt_keys,
    require_columns,
)
from trainer.model_card import card_text, course
from trainer.single_model import Objective, heldout_batches, model_facts

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.reward_training_settings import RewardTrainingConfig

CLASSIFIER = "ForSequenceClassification"
"""How an architecture's name ends that has a head for rewards already."""

HEAD = "score.weight"
"""What a fresh head adds to a causal language model's weights."""

FRESH = {"num_labels": 1, "id2label": {0: "reward"}, "label2id": {"reward": 0}}
"""The settings of a model that gets such a head."""

SHOWN = {
    "loss": "loss",
    "accuracy": "share of pairs with the higher reward for the chosen answer",
    "margin": "reward of the chosen answer over the rejected one's",
    "mean_reward": "mean reward",
    "heldout/loss": "loss on held-out pairs",
    "heldout/accuracy": "share of held-out pairs with the higher reward for the chosen answer",
    "heldout/accuracy_low": "lower end of its 95 % interval",
    "heldout/accuracy_high": "upper end of its 95 % interval",
    "heldout/margin": "margin on held-out pairs",
}
"""Metrics in the card, with what they mean."""


@dataclass(frozen=True)
class RewardObjective(Objective):
    """To give chosen answers the higher reward; rows are those of `train_dpo`, and `margin`."""

    config: RewardTrainingConfig
    section = "reward_model"
    version = 1
    row_id = "pair_id"
    rows_are = "pairs"

    @property
    def heldout_share(self) -> float:
        """Share of the prompts whose pairs are kept aside."""
        return self.config.heldout_share

    def sorted(self, rows: pl.DataFrame) -> pl.DataFrame:
        """Return the pairs by id.

        Raises:
            DataError: a column is missing; margins are asked for, and some are none.
        """
        require_columns(rows)
        columns = [*ROW_COLUMNS, *(["margin"] if self.config.use_margin else [])]
        if self.config.use_margin:
            _require_margins(rows)
        return rows.select(columns).sort("pair_id", "chosen", "rejected")

    def problems(self, rows: pl.DataFrame, tokenizer: Any, limit: int) -> pl.DataFrame:
        """Return what `check_preference_data` found."""
        return check_preference_data(rows, tokenizer, limit)

    def load(self, folder: Path) -> Any:
        """Return the sequence classifier in ``folder``, or the language model with a fresh head.

        The head's numbers are the seed's.

        Raises:
            ModelError: it can't be loaded, lacks weights, or has several outputs.
        """
        import torch
        from transformers import AutoConfig, AutoModelForSequenceClassification

        try:
            named = AutoConfig.from_pretrained(folder).architectures or [""]
            fresh = not named[0].endswith(CLASSIFIER)
            torch.manual_seed(self.config.seed)
            model, loading = AutoModelForSequenceClassification.from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                **(FRESH if fresh else {}),
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"the model cannot be loaded: {error}", where=str(folder)) from None
        _require_reward_model(model, loading, {HEAD} if fresh else set(), str(folder))
        return model

    def trainer(
        self, model: Any, tokenizer: Any, rows: pl.DataFrame, heldout: pl.DataFrame, folder: Path
    ) -> Any:
        """Return TRL's RewardTrainer on the tokens that a reward model is asked about."""
        from trl import RewardConfig

        from trainer.trl_reward import PrivateRewardTrainer
        from trainer.trl_trainer import shared_arguments

        dataset = _dataset(rows, tokenizer)
        adapter, coefficient = self.config.adapter, self.config.center_rewards_coefficient
        trainer = PrivateRewardTrainer(
            model=model,
            args=RewardConfig(
                **shared_arguments(self.config, folder),
                center_rewards_coefficient=coefficient or None,
            ),
            train_dataset=dataset,
            eval_dataset=None if heldout.is_empty() else _dataset(heldout, tokenizer),
            processing_class=tokenizer,
            peft_config=lora_config(adapter, model, "SEQ_CLS") if adapter else None,
        )
        trainer.pad_unlike_ends()
        return trainer

    def measure(self, trainer: Any, heldout: pl.DataFrame) -> dict[str, float]:
        """Return loss, accuracy with its interval, and margin on the held-out pairs."""
        import torch

        trainer.model.eval()
        with torch.no_grad(), trainer.accelerator.autocast():
            margins = torch.cat([trainer.margins(batch) for batch in heldout_batches(trainer)])
        right = (margins > 0).double()
        low, high = _interval(right.numpy(), prompt_keys(heldout["prompt"]), self.config)
        return {
            "loss": torch.nn.functional.softplus(-margins).mean().item(),
            "accuracy": right.mean().item(),
            "accuracy_low": low,
            "accuracy_high": high,
            "margin": margins.mean().item(),
        }

    def line(self, history: list[dict[str, Any]]) -> str:
        """Return loss, margin and accuracy."""
        last = history[-1]
        return (
            f"loss {last['loss']:.3f}  margin {last['margin']:+.2f}  "
            f"accuracy {last['accuracy']:.0%}"
        )

    def card(self, manifest: dict[str, Any], metrics: pl.DataFrame) -> str:
        """Return the model card."""
        header = {
            "library_name": "transformers",
            "pipeline_tag": "text-classification",
            "tags": ["reward-model", "trl"],
        }
        introduction = (
            "# A reward model trained on preference pairs\n\nIts one output is the reward of a "
            "conversation that ends with an answer, by Bradley and Terry's model (Ouyang et al. "
            "2022, arXiv 2203.02155). Rewards tell answers to one prompt apart. Every setting is "
            "in `manifest.json`, every step in `training_metrics.parquet`.\n"
        )
        facts, notes = model_facts(manifest)
        return card_text(header, introduction, facts, notes, course(metrics, SHOWN))


def _require_margins(rows: pl.DataFrame) -> None:
    """Pass when every pair has a margin.

    Raises:
        DataError: otherwise.
    """
    if "margin" not in rows.columns:
        raise DataError(
            "use_margin asks for the column 'margin'",
            expected="a number for each pair",
            where=f"a frame with columns {rows.columns}",
            remedy="set reward_model.use_margin to false",
        )
    finite = pl.col("margin").cast(pl.Float64).is_finite().fill_null(value=False)
    lacking = rows.filter(~finite)["pair_id"]
    if len(lacking):
        raise DataError(
            f"{len(lacking)} of {rows.height} pairs have no margin, such as {lacking[0]}",
            expected="a number for each pair",
            remedy="set reward_model.use_margin to false, or drop these pairs",
        )


def _require_reward_model(model: Any, loading: dict[str, Any], added: set[str], where: str) -> None:
    """Pass when nothing of the model is random but what is ``added``, and it has one output.

    Raises:
        ModelError: otherwise.
    """
    lacking = sorted(set(loading["missing_keys"]) - added)
    if lacking:
        raise ModelError(
            f"the weights lack {', '.join(lacking[:3])}",
            expected="a causal language model, or a sequence classifier with its head",
            where=where,
        )
    if model.config.num_labels != 1:
        raise ModelError(
            f"the classifier has {model.config.num_labels} outputs",
            expected="one: the reward",
            where=where,
            remedy="start from the language model it was made of",
        )


def _interval(right: Any, keys: pl.Series, config: RewardTrainingConfig) -> tuple[float, float]:
    """Return the ends of the accuracy's 95 % bootstrap interval over prompts."""
    pairs = pl.DataFrame({"key": keys, "right": right, "pairs": 1.0})
    sums = pairs.group_by("key", maintain_order=True).sum().drop("key")
    drawn = resampled_means(sums.to_numpy().astype(np.float64), config.seed, config.resamples)
    return interval(drawn[:, 0] / drawn[:, 1])


def _dataset(rows: pl.DataFrame, tokenizer: Any) -> Any:
    """Return the tokens of both conversations of each pair, as scoring renders them."""
    from datasets import Dataset

    tokens: dict[str, list[list[int]]] = {"chosen_ids": [], "rejected_ids": []}
    for part in rows.iter_slices(TOKENISED_ROWS):
        for name, answer in zip(tokens, ("chosen", "rejected"), strict=True):
            told = [
                [*prompt, {"role": "assistant", "content": text}]
                for prompt, text in part.select("prompt", answer).iter_rows()
            ]
            tokens[name] += render(tokenizer, told, add_generation_prompt=False)
    columns = pl.DataFrame(tokens, schema=dict.fromkeys(tokens, pl.List(pl.Int64)))
    if "margin" in rows.columns:
        columns = columns.with_columns(rows["margin"].cast(pl.Float64))
    return Dataset.from_polars(columns)
