"""What all of TRL's trainers shall not do."""

from __future__ import annotations

from typing import Any


class Private:
    """Before one of TRL's trainers: no telemetry, and no model cards in the checkpoint folder."""

    def _send_telemetry(self) -> None:
        """TRL reports each trainer to Hugging Face; training is private."""

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """Return the schedule; of a single step no part is warm-up, which begins at 0."""
        trainer: Any = self
        if num_training_steps == 1:
            trainer.args.warmup_steps = 0
        return super().create_scheduler(num_training_steps, optimizer)  # type: ignore[misc]

    def create_model_card(self, *_: Any, **__: Any) -> None:
        """TRL writes a README.md at every checkpoint; ours comes with the result."""


class HandingOn:
    """A collator of TRL's, which also hands on the columns that have a number a row."""

    def __init__(self, collator: Any, names: tuple[str, ...]) -> None:
        """Hand on the columns called ``names``, where the rows have them."""
        self.collator = collator
        self.names = names

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """Return TRL's batch with each of the columns, (rows,)."""
        import torch

        batch: dict[str, Any] = self.collator(examples)
        for name in self.names:
            if name in examples[0]:
                batch[name] = torch.tensor([example[name] for example in examples])
        return batch

    def __getattr__(self, name: str) -> Any:
        """Return the collator's own setting."""
        return getattr(self.__dict__["collator"], name)


class RowNoting(Private):
    """Keeps which rows a step's micro-batches hold, for an error to name them."""

    row_ids: list[str]
    """Of the rows of `train_dataset`."""
    step_rows: list[int]
    """The rows of a step's micro-batches, for whom empties it before each step."""

    def note_rows(self, ids: list[str], **columns: list[float]) -> None:
        """Hand each row's index and its value in ``columns`` on to the loss.

        ``ids`` are those of `train_dataset`.
        """
        trainer: Any = self
        self.row_ids, self.step_rows = ids, []
        handed = {"row": list(range(len(ids))), **columns}
        trainer._set_signature_columns_if_needed()  # noqa: SLF001
        trainer._signature_columns += list(handed)  # noqa: SLF001
        for name, values in handed.items():
            trainer.train_dataset = trainer.train_dataset.add_column(name, values)
        trainer.data_collator = HandingOn(trainer.data_collator, tuple(handed))

    def compute_loss(self, model: Any, inputs: dict[str, Any], *rest: Any, **named: Any) -> Any:
        """Return TRL's loss, the batch's rows noted."""
        rows = inputs.get("row")
        if rows is not None:
            self.step_rows += rows.tolist()
        known = {name: value for name, value in inputs.items() if name != "row"}
        trainer: Any = super()
        return trainer.compute_loss(model, known, *rest, **named)


class Referring(RowNoting):
    """Computes the log-probabilities of a reference, or of the policy in its place."""

    ref_model: Any

    def compute_ref_log_probs(self, model: Any, inputs: dict[str, Any]) -> Any:
        """Return TRL's for ``model``: two of them, (rows,) each."""
        trainer: Any = super()
        handed = getattr(self.data_collator, "names", ())  # type: ignore[attr-defined]
        known = {name: value for name, value in inputs.items() if name not in handed}
        # TRL switches the adapters of whatever it is given off where it holds no reference.
        held, self.ref_model = self.ref_model, model
        try:
            return trainer.compute_ref_log_probs(model, known)
        finally:
            self.ref_model = held
