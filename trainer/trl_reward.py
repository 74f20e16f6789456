"""TRL's RewardTrainer, private, and reading where scoring reads.

Imports torch and trl at once: import this module inside the function that needs it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from trl import RewardTrainer

from trainer.private import RowNoting

if TYPE_CHECKING:
    import torch


class PrivateRewardTrainer(RowNoting, RewardTrainer):  # type: ignore[misc]
    """TRL's RewardTrainer, private.

    A decoder is read at its last token that isn't padding. Where EOS is the padding token too,
    Transformers finds an earlier one; scoring reads the last real one by the attention mask.
    """

    padding: int

    def pad_unlike_ends(self) -> None:
        """Pad with a token that no conversation ends with: which one it is makes no difference."""
        datasets = [self.train_dataset, *([self.eval_dataset] if self.eval_dataset else [])]
        columns = ("chosen_ids", "rejected_ids")
        ends = {ids[-1] for data in datasets for name in columns for ids in data[name]}
        padding = self.data_collator.pad_token_id
        if padding in ends:
            padding = next(token for token in range(len(ends) + 1) if token not in ends)
        self.padding = self.data_collator.pad_token_id = padding

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Return TRL's loss."""
        # Transformers sets the tokenizer's padding token again when training begins.
        self.model.config.get_text_config().pad_token_id = self.padding

        def without_margin(margin: Any = None, **arguments: Any) -> Any:
            del margin  # the loss's, not the model's
            return model(**arguments)

        return super().compute_loss(without_margin, inputs, *rest, **named)

    def margins(self, batch: dict[str, Any]) -> torch.Tensor:
        """Return the reward of chosen over rejected of each pair in a batch, (pairs,)."""
        self.model.config.get_text_config().pad_token_id = self.padding
        read = self.model(
            input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False
        )
        chosen, rejected = read.logits[:, 0].double().cpu().chunk(2)
        margins: torch.Tensor = chosen - rejected
        return margins
