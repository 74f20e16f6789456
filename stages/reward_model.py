"""Rewards from a sequence-classification model that runs in this process."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.chat_template import check_rendering, render, template_fingerprint
from stages.errors import ConfigError, ModelError, nearest
from stages.model_loading import context_limit, load_model
from stages.progress import Tell, say_nothing
from stages.text_batches import length_sorted_batches, render_each, right_padded

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import torch

    from stages.chat_template import Conversation

BATCH_TOLERANCE = 1e-5
"""How far a reward may move with what shares its batch, in fp32: relative, absolute below 1."""


class RewardOutcome(NamedTuple):
    """A reward, or why it is missing."""

    score: float | None
    tokens: int
    """Tokens that the model reads: the rendered conversation, the answer included."""
    error: str | None = None


class SequenceClassifier:
    """A Hugging Face sequence-classification model of any architecture that reads text once.

    Decoders (a linear `score` head) are read at their last real token, found by the attention
    mask. Transformers itself looks for the last token that isn't the padding token: where that is
    EOS it reads too early, and different texts can get equal outputs. Encoders run their own head.
    """

    def __init__(self, folder: Path, name: str | None = None) -> None:
        """Load the model.

        Raises:
            ModelError: the folder holds no such model, or one that can't tell padding from text.
        """
        loaded = load_model(folder, "AutoModelForSequenceClassification")
        self.model_name = name or folder.name
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.weights_hash, self.device = loaded.weights_hash, loaded.device
        self.head = _last_token_head(loaded.model)
        config = loaded.model.config
        padding = config.get_text_config().pad_token_id
        self.padding: int = self.tokenizer.pad_token_id if padding is None else padding
        if self.head is None:
            _require_encoder(config, self.tokenizer, self.padding, str(folder))
        elif self.padding is None:
            self.padding = 0  # masked, and never looked for

    def outputs(self, sequences: Sequence[list[int]]) -> torch.Tensor:
        """Return the raw outputs (rows, labels) of sequences of token ids, in float64."""
        import torch

        tokens, mask = right_padded(sequences, self.padding, self.device)
        with torch.inference_mode():
            if self.head is None:
                logits = self.model(input_ids=tokens, attention_mask=mask).logits
            else:
                logits = self._at_last_token(tokens, mask)
        outputs: torch.Tensor = logits.double()
        return outputs

    def _at_last_token(self, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the outputs (rows, labels) of the last real tokens, the head in fp32."""
        import torch

        assert self.head is not None
        output = self.model.base_model(input_ids=tokens, attention_mask=mask, use_cache=False)
        rows = torch.arange(len(tokens), device=tokens.device)
        last = output.last_hidden_state[rows, mask.sum(dim=1) - 1]
        bias = None if self.head.bias is None else self.head.bias.float()
        return torch.nn.functional.linear(last.float(), self.head.weight.float(), bias)


class RewardModel(SequenceClassifier):
    """A reward model: conversations are rendered by its own chat template.

    The template writes all special tokens.
    """

    def __init__(
        self,
        folder: Path,
        name: str | None = None,
        *,
        output: str | None = None,
        batch_tokens: int = 16_384,
        max_length_tokens: int | None = None,
    ) -> None:
        """Load the model.

        ``output`` names one of several outputs as the model's `id2label` does; ``batch_tokens``
        counts padding; longer conversations than ``max_length_tokens`` have no score.

        Raises:
            ModelError: the folder holds no such model, or its template can't be used.
            ConfigError: ``output`` is none of the model's, or needed and not given.
        """
        super().__init__(folder, name)
        self.output = output_index(self.model.config, output, str(folder))
        check_rendering(self.tokenizer, str(folder))
        self.template_fingerprint = template_fingerprint(self.tokenizer)
        limit = context_limit(self.model.config, self.tokenizer)
        self.max_length_tokens = min(limit, max_length_tokens or limit)
        self.batch_tokens = batch_tokens
        if self.head is None:
            _require_cls(self.tokenizer, str(folder))

    def score(
        self, conversations: Sequence[Conversation], tell: Tell = say_nothing
    ) -> list[RewardOutcome]:
        """Return the reward of each conversation's last turn, the assistant's, in their order.

        A reward is a raw output of the model, no activation applied. It doesn't depend on the
        other conversations (`BATCH_TOLERANCE`). One that is too long for the model has none.
        """
        return score_in_batches(
            render_each(self.tokenizer, conversations),
            self.max_length_tokens,
            self.batch_tokens,
            lambda _, sequences: self.outputs(sequences)[:, self.output].tolist(),
            tell,
        )


def score_in_batches(
    sequences: Sequence[list[int] | str],
    max_length_tokens: int,
    batch_tokens: int,
    rewards: Callable[[list[int], list[list[int]]], list[float]],
    tell: Tell = say_nothing,
) -> list[RewardOutcome]:
    """Return an outcome per sequence of token ids (or reason why there are none).

    ``rewards`` gets the indices and the token ids of a batch of similar lengths; ``tell`` how many
    sequences are done, and of how many, after each.
    """
    outcomes = [unreadable(sequence, max_length_tokens) for sequence in sequences]
    todo = [(i, ids) for i, ids in enumerate(sequences) if outcomes[i] is None and ids]
    done = len(sequences) - len(todo)
    for batch in length_sorted_batches([len(ids) for _, ids in todo], batch_tokens):
        indices = [todo[place][0] for place in batch]
        rows = [ids for place in batch if isinstance(ids := todo[place][1], list)]
        for index, ids, reward in zip(indices, rows, rewards(indices, rows), strict=True):
            outcomes[index] = rewarded(reward, len(ids))
        done += len(batch)
        tell(done, len(sequences))
    return [outcome for outcome in outcomes if outcome is not None]


def unreadable(sequence: list[int] | str, max_length_tokens: int) -> RewardOutcome | None:
    """Return the outcome of what the model can't read; None when it can."""
    if isinstance(sequence, str):
        return RewardOutcome(None, 0, sequence)
    tokens = len(sequence)
    if not tokens:
        return RewardOutcome(None, 0, "no_tokens")
    if tokens > max_length_tokens:
        said = f"too_long: {tokens} tokens, at most {max_length_tokens} are read"
        return RewardOutcome(None, tokens, said)
    return None


def rewarded(reward: float, tokens: int) -> RewardOutcome:
    """Return the outcome with this reward; one that is no finite number is missing."""
    if math.isfinite(reward):
        return RewardOutcome(reward, tokens)
    return RewardOutcome(None, tokens, f"not_finite: the model gave {reward}")


def output_index(config: Any, output: str | None, where: str, key: str = "output") -> int:
    """Return the index of the output called ``output``, or of the only one.

    Raises:
        ConfigError: naming the outputs when none of them, or more than one, is meant.
    """
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    known = ", ".join(repr(name) for name in names)
    if output is None and len(names) == 1:
        return 0
    if output is None or names.count(output) != 1:
        found = f"the output {output!r} is not one" if output else "no output is named"
        raise ConfigError(
            f"{found} of the model's {len(names)}{nearest(output or '', names)}",
            expected=f"one of {known}",
            where=where,
            remedy=f"set `{key}` of the scorer; the names are those of id2label in config.json",
        )
    return names.index(output)


def _last_token_head(model: Any) -> Any:
    """Return the linear head of a decoder that is read at its last token; None for other models."""
    import torch

    head = getattr(model, "score", None)
    return head if isinstance(head, torch.nn.Linear) else None


def _require_encoder(config: Any, tokenizer: Any, padding: int | None, where: str) -> None:
    """Pass when the model's own forward pass tells padding from text by itself.

    Raises:
        ModelError: it doesn't.
    """
    fault = ""
    if config.is_encoder_decoder:
        fault = "is an encoder-decoder, which needs one EOS in every text"
    elif padding is None or padding == tokenizer.eos_token_id:
        fault = "finds the end of a text by a padding token, and has none of its own"
    if fault:
        raise _unfit(fault, where)


def _require_cls(tokenizer: Any, where: str) -> None:
    """Pass when the template writes the token that an encoder's head reads.

    Raises:
        ModelError: it doesn't.
    """
    (ids,) = render(tokenizer, [[{"role": "user", "content": "Hi"}]])
    if tokenizer.cls_token_id not in {None, ids[0]}:
        raise _unfit(
            f"reads {tokenizer.cls_token!r}, which the chat template does not write first", where
        )


def _unfit(fault: str, where: str) -> ModelError:
    return ModelError(
        f"the model {fault}",
        expected="a decoder with a linear `score` head, or an encoder with its own tokens",
        where=where,
        remedy="use another model, or mend its tokenizer and chat template",
    )
