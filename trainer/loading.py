"""What a training loads: a language model in fp32, and a tokenizer that knows how to chat."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stages.errors import ModelError
from stages.model_loading import context_in, load_tokenizer, load_weights
from trainer.adapters import load_in_4_bits

if TYPE_CHECKING:
    from pathlib import Path

    from trainer.adapters import AdapterConfig


def load_language_model(folder: Path) -> Any:
    """Return the causal language model in ``folder``, in fp32.

    Raises:
        ModelError: it can't be loaded, or not whole.
    """
    import torch

    return load_weights(folder, "AutoModelForCausalLM", torch.float32)


def load_policy(folder: Path, adapter: AdapterConfig | None) -> Any:
    """Return the policy to train in ``folder``, in 4 bits where its adapters want that.

    Raises:
        ModelError: it can't be loaded, or not whole.
    """
    if adapter is None or adapter.kind == "lora":
        return load_language_model(folder)
    import accelerate

    return load_in_4_bits(folder, accelerate.PartialState().device)


def load_chat_tokenizer(folder: Path) -> Any:
    """Return the tokenizer in ``folder``.

    Raises:
        ModelError: it can't be loaded, or has no chat template.
    """
    tokenizer = load_tokenizer(folder)
    if not tokenizer.chat_template:
        raise ModelError(
            "the tokenizer has no chat template",
            where=str(folder),
            remedy="choose an instruction-tuned model, or add chat_template.jinja",
        )
    return tokenizer


def longest_sequence(folder: Path, limit: int) -> int:
    """Return ``limit``, or the context of the folder's model where that is less, in tokens."""
    return min(limit, context_in(folder) or limit)
