"""What a classifier makes of an answer's text, such as how toxic it is."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

import pydantic

from stages.configuration import NOT_EMPTY, OPERATIONAL, Config
from stages.model_loading import context_limit
from stages.progress import Tell, say_nothing
from stages.reward_model import (
    RewardOutcome,
    SequenceClassifier,
    output_index,
    score_in_batches,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stages.chat_template import Conversation


class TextClassifierScorer(Config):
    """A classifier of the answer's text alone, such as of toxicity; for filters, not for pairs."""

    kind: Literal["text_classifier"] = "text_classifier"
    name: str
    """The scorer's name in the tables."""
    model: str
    """A folder or a hub id of a sequence-classification model; it needs no chat template."""
    labels: Annotated[tuple[str, ...], NOT_EMPTY]
    """Names in its `id2label`: the score is the probability of one of them."""
    multi_label: bool | None = None
    """Whether several labels may hold at once; null: by its configuration's `problem_type`."""
    batch_tokens: Annotated[pydantic.PositiveInt, OPERATIONAL] = 16_384
    """Tokens of one batch, padding included."""


OVERLAP = 4
"""A window of a long text repeats a fourth of the one before: what is said across a border is read
whole in one of them."""


class TextClassifier(SequenceClassifier):
    """The probability that an answer's text, without its prompt, is what a label says.

    Of several labels: that it is any of them where they exclude each other (softmax), that of the
    likeliest where they don't (sigmoid). A text longer than the model reads is read in windows, of
    which the highest counts.
    """

    def __init__(
        self,
        folder: Path,
        labels: Sequence[str],
        name: str | None = None,
        *,
        multi_label: bool | None = None,
        batch_tokens: int = 16_384,
    ) -> None:
        """Load the model; ``multi_label`` as its configuration says, or as given.

        Raises:
            ModelError: the folder holds no such model, or one that can't tell padding from text.
            ConfigError: a label is none of the model's; names them.
        """
        super().__init__(folder, name)
        config = self.model.config
        where = str(folder)
        self.labels = [output_index(config, label, where, "labels") for label in labels]
        said = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self.multi_label = said if multi_label is None else multi_label
        self.window_tokens = context_limit(config, self.tokenizer)
        self.batch_tokens = batch_tokens

    def score(
        self, conversations: Sequence[Conversation], tell: Tell = say_nothing
    ) -> list[RewardOutcome]:
        """Return the probability for each conversation's last turn, in [0, 1].

        It doesn't depend on the other conversations.
        """
        if not conversations:
            return []
        read = self.tokenizer(
            [turns[-1]["content"] for turns in conversations],
            truncation=True,
            max_length=self.window_tokens,
            stride=self.window_tokens // OVERLAP,
            return_overflowing_tokens=True,
        )
        windows = score_in_batches(
            read["input_ids"],
            self.window_tokens,
            self.batch_tokens,
            lambda _, sequences: self._probabilities(sequences),
            tell,
        )
        of_texts: list[list[RewardOutcome]] = [[] for _ in conversations]
        for text, outcome in zip(read["overflow_to_sample_mapping"], windows, strict=True):
            of_texts[text].append(outcome)
        return [_highest(outcomes) for outcomes in of_texts]

    def _probabilities(self, sequences: list[list[int]]) -> list[float]:
        outputs = self.outputs(sequences)
        if self.multi_label:
            likeliest = outputs[:, self.labels].sigmoid().amax(dim=-1)
        else:
            likeliest = outputs.softmax(dim=-1)[:, self.labels].sum(dim=-1).clamp(max=1.0)
        probabilities: list[float] = likeliest.tolist()
        return probabilities


def _highest(windows: Sequence[RewardOutcome]) -> RewardOutcome:
    """Return the highest outcome of a text's windows, with the tokens of all; none if one lacks."""
    tokens = sum(outcome.tokens for outcome in windows)
    scores = [outcome.score for outcome in windows if outcome.score is not None]
    if len(scores) < len(windows):
        error = next(outcome.error for outcome in windows if outcome.score is None)
        return RewardOutcome(None, tokens, error)
    return RewardOutcome(max(scores), tokens)
