"""TRL's DPOTrainer for pairs of every kind. Imports torch and trl at once."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from trl import DPOTrainer

from trainer.private import Referring
from trainer.step_metrics import Pairs, pairs_of, step_metrics

if TYPE_CHECKING:
    from trainer.reference_free import ReferenceFree


class PrivateDPOTrainer(Referring, DPOTrainer):  # type: ignore[misc]
    """TRL's DPOTrainer, private.

    It also keeps what the step's pairs say, weighs the gradients of weighted pairs, and computes
    the losses that have no reference.
    """

    unit = "pairs"
    """What a row of the dataset is."""
    token_columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    """Of a tokenised row."""
    reference_columns = ("ref_chosen_logps", "ref_rejected_logps")
    """Of the reference's log-probabilities."""

    def __init__(self, *, reference_free: ReferenceFree | None = None, **arguments: Any) -> None:
        """Begin with nobody asking for the step's pairs."""
        self.reference_free = reference_free
        super().__init__(**arguments)
        self.step_pairs: list[Pairs] | None = None
        """What a step's micro-batches say, for whom empties it after each step; None for nobody."""

    def _compute_loss(self, model: Any, inputs: dict[str, Any], return_outputs: bool) -> Any:
        """Return TRL's loss.

        A pair's loss depends on no other pair's log-probabilities, so the gradient with respect to
        its rows times its weight is that of the weighted loss, whatever the loss is.
        """
        weights = inputs.get("weight")
        inputs = {name: value for name, value in inputs.items() if name != "weight"}
        if self.reference_free:
            inputs |= _no_reference(inputs)
        outputs: list[Any] = []

        def recorded(**arguments: Any) -> Any:
            outputs.append(model(**arguments))
            return outputs[-1]

        loss = super()._compute_loss(recorded, inputs, return_outputs)
        log_probs = outputs[0].log_probs
        if self.reference_free:
            loss = loss + self._loss_without_reference(log_probs, inputs)
        if weights is not None and log_probs.requires_grad:
            log_probs.register_hook(lambda gradient: gradient * weights.repeat(2)[:, None])
        if self.model.training and self.step_pairs is not None:
            pairs = pairs_of(log_probs, inputs, self.ld_alpha)
            if self.reference_free:
                taken = self._taken((pairs.chosen_drift, pairs.rejected_drift), inputs)
                pairs = Pairs(pairs.chosen_tokens, pairs.rejected_tokens, *taken)
            self.step_pairs.append(pairs)
        return loss

    def take_step(self) -> tuple[int, dict[str, float]]:
        """Return how many pairs the step has, and what they say; the next step begins anew."""
        gather = self.accelerator.gather
        batches = [Pairs(*map(gather, batch)) for batch in self.step_pairs or []]
        self.step_pairs = []
        pairs = sum(len(batch.chosen_tokens) for batch in batches)
        return pairs, step_metrics(batches, with_reference=self.reference_free is None)

    def _loss_without_reference(self, log_probs: Any, inputs: dict[str, Any]) -> Any:
        """Return the mean loss; log beta times what it takes of an answer as that one's reward."""
        assert self.reference_free, "for a loss without a reference only"
        chosen, rejected = log_probs.sum(1).chunk(2)
        chosen, rejected = self._taken((chosen, rejected), inputs)
        rewards = self.accelerator.gather(self.beta * torch.stack([chosen, rejected], 1).detach())
        margins = rewards[:, 0] - rewards[:, 1]
        logged = self._metrics["train" if self.model.training else "eval"]
        for name, values in (
            ("chosen", rewards[:, 0]),
            ("rejected", rewards[:, 1]),
            ("margins", margins),
            ("accuracies", (margins > 0).float()),
        ):
            logged[f"rewards/{name}"][-1] = values.mean().item()
        return self.reference_free.losses(chosen, rejected).mean()

    def _taken(self, summed: tuple[Any, Any], inputs: dict[str, Any]) -> tuple[Any, Any]:
        """Return what the loss takes of answers whose log-probabilities are ``summed``."""
        if not self.reference_free:
            return summed
        return self.reference_free.answers(summed, inputs["completion_mask"][:, 1:])

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return the log-probabilities of chosen and rejected, (pairs,) each, as the loss does."""
        return self._taken(super().compute_ref_log_probs(model, inputs), inputs)

    def _precompute_ref_logps(self, dataset: Any, name: str, batch_size: int) -> Any:
        """Return ``dataset``: TRL asks for the reference's only where there is none."""
        del name, batch_size
        return dataset


def _no_reference(inputs: dict[str, Any]) -> dict[str, Any]:
    """Return a reference's log-probabilities of 0 for a batch, which TRL's metrics want."""
    nothing = torch.zeros(len(inputs["input_ids"]) // 2, device=inputs["input_ids"].device)
    return {"ref_chosen_logps": nothing, "ref_rejected_logps": nothing}
