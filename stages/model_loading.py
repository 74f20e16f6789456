"""Models and tokenizers from a folder: whole, without remote code, or not at all."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from stages.content_ids import weights_hash
from stages.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import torch

Kind = Literal["AutoModelForCausalLM", "AutoModelForSequenceClassification"]

UNUSED_HEADS = ("lm_head.", "model.lm_head.")
"""Weights of a language model's own head: a model trained on from there may still hold them."""


class LoadedModel(NamedTuple):
    """A model in evaluation mode on its device: fp32 on a CPU, bf16 on a GPU."""

    model: Any
    tokenizer: Any
    weights_hash: str
    device: str


def load_model(folder: Path, kind: Kind) -> LoadedModel:
    """Return the model in ``folder`` as the transformers class ``kind``.

    Raises:
        ModelError: it can't be loaded, or not whole (see `load_weights`).
    """
    import torch
    import transformers

    transformers.utils.logging.disable_progress_bar()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    with readable("model", folder):
        name = weights_hash(folder)
    tokenizer = load_tokenizer(folder)
    model = load_weights(folder, kind, dtype)
    return LoadedModel(model.to(device).eval(), tokenizer, name, device)


def load_weights(folder: Path, kind: Kind, dtype: torch.dtype) -> Any:
    """Return the model in ``folder`` as the transformers class ``kind``, on the CPU.

    Raises:
        ModelError: it can't be loaded, lacks weights (transformers would fill them with random
            numbers), or has some that this class would leave out (another head).
    """
    import transformers

    with readable("model", folder):
        model, loading = getattr(transformers, kind).from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    _require_whole(loading, type(model).__name__, str(folder))
    return model


def load_tokenizer(folder: Path | str) -> Any:
    """Return the tokenizer in a folder, or of a hub id.

    Raises:
        ModelError: it can't be loaded.
    """
    from transformers import AutoTokenizer

    with readable("tokenizer", folder):
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False)


@contextlib.contextmanager
def readable(what: str, folder: Path | str) -> Iterator[None]:
    """Name the folder in whatever reading from it raises.

    Raises:
        ModelError: anything was raised.
    """
    try:
        yield
    except Exception as error:  # noqa: BLE001 - safetensors and tokenizers raise bare ones
        raise ModelError(
            f"the {what} cannot be loaded: {error}",
            expected="a Hugging Face folder with config, safetensors and tokenizer",
            where=str(folder),
        ) from None


def _require_whole(loading: dict[str, Any], architecture: str, where: str) -> None:
    lacking = sorted(loading["missing_keys"])
    unused = sorted(k for k in loading["unexpected_keys"] if not k.startswith(UNUSED_HEADS))
    if lacking or unused:
        said = "lack" if lacking else f"hold what {architecture} does not use:"
        raise ModelError(
            f"the weights {said} {', '.join((lacking or unused)[:3])}",
            expected=f"exactly the weights of {architecture}, its head among them",
            where=where,
            remedy="name a model that was saved with the head it is used with",
        )


def context_of(config: Any) -> int | None:
    """Return a model's context in tokens; None: its configuration doesn't say.

    By the configuration's own map of names (GPT-2 calls it n_positions), also within a nested one.
    """
    context: int | None = getattr(config.get_text_config(), "max_position_embeddings", None)
    return context


def context_in(folder: Path) -> int | None:
    """Return the context in tokens of the model in ``folder``; None: it doesn't say."""
    from transformers import AutoConfig

    return context_of(AutoConfig.from_pretrained(folder, trust_remote_code=False))


def context_limit(config: Any, tokenizer: Any) -> int:
    """Return how many tokens the model takes at most, by its configuration and tokenizer."""
    longest: int = tokenizer.model_max_length
    return min(longest, context_of(config) or longest)
