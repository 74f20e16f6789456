"""The prompt of a pair computed once for both completions, nothing padded, few positions scored.

TRL runs every pair as two padded rows, prompt + chosen and prompt + rejected, and on a CPU scores
every position. Here a micro-batch is one row without padding, a pair after the other:

    prompt less its last token | last, chosen less its last token | last, rejected less its last

The chosen's branch attends to the prompt and itself, as does the rejected's; a branch's positions
go on from the prompt's. What a completion's last token would predict is never asked for.
Log-probabilities are those of the two rows, up to rounding. Prior art of sharing the prompt in
preference training: Wang and Hegde 2024 (arXiv 2410.20305).

TRL's own loss is computed on them: only the model's forward is replaced, and it returns what TRL's
returns. Imports torch at once.
"""

from __future__ import annotations

import functools
import types
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ATTENTION = "prefmill_shared_prompt"

IGNORED = -100
"""The label of a token that is not scored."""

FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text")
"""The `model_type` of decoders whose attention goes through transformers' interface alone."""


@dataclass(frozen=True)
class Branches:
    """Where the pairs of a packed row lie, by position in it, and the branches' masks by window."""

    pairs: tuple[tuple[int, int, int, int], ...]
    """Per pair: start, end of the prompt, end of the chosen's branch, end of the rejected's."""
    scored: torch.Tensor
    """Positions whose next token is a completion's: all chosen ones, then all rejected ones."""
    masks: dict[int | None, list[tuple[torch.Tensor | None, torch.Tensor]]]

    def masks_of(self, window: int | None) -> list[tuple[torch.Tensor | None, torch.Tensor]]:
        """Return per pair the mask of prompt and chosen (None: causal) and of the rejected."""
        if window not in self.masks:
            self.masks[window] = [self._masks(pair, window) for pair in self.pairs]
        return self.masks[window]

    def _masks(
        self, pair: tuple[int, int, int, int], window: int | None
    ) -> tuple[torch.Tensor | None, torch.Tensor]:
        start, branch, second, end = pair
        prompt, chosen, rejected = branch - start, second - branch, end - second
        device = self.scored.device
        first = None
        if window is not None and prompt + chosen > window:
            first = _visible(prompt + chosen, 0, window, device)
        return first, _visible(prompt + rejected, prompt, window, device)


def _visible(length: int, first: int, window: int | None, device: torch.device) -> torch.Tensor:
    """Return which of ``length`` positions those from ``first`` on see, as (q, k) booleans."""
    keys = torch.arange(length, device=device)
    distance = keys[first:, None] - keys[None, :]
    seen = distance >= 0
    return seen if window is None else seen & (distance < window)


def attend(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention within the branches, (1, tokens, heads, head dimension).

    Takes and gives what transformers' attention functions do; `branches` comes with the call.
    """
    assert attention_mask is None, "a packed row needs no mask"
    branches: Branches = rest.pop("branches")
    window = rest.pop("sliding_window", None)
    one = _softcapped if rest.get("softcap") is not None else sdpa_attention_forward
    pieces: list[torch.Tensor] = []
    for (start, branch, second, end), masks in zip(
        branches.pairs, branches.masks_of(window), strict=True
    ):
        first = slice(start, second)
        of_first = query[:, :, first], key[:, :, first], value[:, :, first]
        pieces.append(_called(one, module, of_first, masks[0], rest))
        keys, values = (
            torch.cat((states[:, :, start:branch], states[:, :, second:end]), dim=2)
            for states in (key, value)
        )
        of_second = query[:, :, second:end], keys, values
        pieces.append(_called(one, module, of_second, masks[1], rest))
    return torch.cat(pieces, dim=1), None


def _called(
    one: Callable[..., Any],
    module: torch.nn.Module,
    states: tuple[torch.Tensor, ...],
    mask: torch.Tensor | None,
    rest: dict[str, Any],
) -> torch.Tensor:
    mask = None if mask is None else mask[None, None]
    output: torch.Tensor = one(module, *states, mask, **{**rest, "is_causal": mask is None})[0]
    return output


def _softcapped(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    **rest: Any,
) -> tuple[torch.Tensor, None]:
    """Return attention whose logits are capped at tanh (Gemma 2; Riviere et al. 2024, eq. 1)."""
    groups = query.shape[1] // key.shape[1]
    key, value = repeat_kv(key, groups), repeat_kv(value, groups)
    cap = rest["softcap"]
    logits = torch.tanh(query @ key.transpose(2, 3) * rest["scaling"] / cap) * cap
    if mask is None:
        mask = _visible(key.shape[2], 0, None, query.device)[None, None]
    weights = logits.masked_fill(~mask, float("-inf")).softmax(-1, dtype=torch.float32)
    assert not (module.training and rest.get("dropout")), "TRL trains without dropout"
    return (weights.to(value.dtype) @ value).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)


def unsupported(model: Any) -> str | None:
    """Return why the prompts of ``model``'s pairs cannot be shared, or None if they can."""
    kind = model.config.model_type
    if kind not in FAMILIES:
        return f"model type {kind!r} is none of {', '.join(FAMILIES)}"
    if not hasattr(model, "base_model") or model.get_output_embeddings() is None:
        return f"{type(model).__name__} has no language model head"
    return None


def share_prompts(model: Any) -> Callable[[], None]:
    """Make ``model(..., labels=..., fused_lm_head=True)`` share prompts; return what undoes it.

    ``model`` holds TRL's fused head already (`trl.trainer.utils.add_fused_lm_head`), whose
    arguments and outputs stay as they are: (2 pairs, tokens) in, chosen rows first, and
    (2 pairs, tokens - 1) out. Until it is undone the model can be called in no other way.
    """
    of_trl, attention = model.forward, model.config._attn_implementation  # noqa: SLF001

    @functools.wraps(of_trl)
    def forward(self: Any, *, fused_lm_head: bool = False, **inputs: Any) -> Any:
        del self
        assert fused_lm_head, "a model with shared prompts is for training only"
        ids, mask, labels = (inputs.pop(n) for n in ("input_ids", "attention_mask", "labels"))
        packed = pack(ids, mask, labels)
        output = of_trl(
            input_ids=packed.ids,
            position_ids=packed.positions,
            shift_labels=packed.labels,
            branches=packed.branches,
            fused_lm_head=True,
            **inputs,
        )
        return _unpacked(output, labels[:, 1:] != IGNORED)

    def only_scored(_: Any, __: Any, inputs: dict[str, Any], output: Any) -> Any:
        output.last_hidden_state = output.last_hidden_state[:, inputs["branches"].scored]
        return output

    hook = model.base_model.register_forward_hook(only_scored, with_kwargs=True)
    model.forward = types.MethodType(forward, model)
    model.config._attn_implementation = ATTENTION  # noqa: SLF001

    def undo() -> None:
        hook.remove()
        model.forward = of_trl
        model.config._attn_implementation = attention  # noqa: SLF001

    return undo


def _unpacked(output: Any, places: torch.Tensor) -> Any:
    """Return TRL's output with each value at its place in the two rows, zero elsewhere."""
    for name in ("log_probs", "entropy", "log_sum_sq_probs", "mean_logits", "is_top1"):
        values = getattr(output, name)
        if values is not None:
            rows = values.new_zeros(places.shape).masked_scatter(places, values)
            setattr(output, name, rows)
    output.label_mask = places
    return output


@dataclass(frozen=True)
class Packed:
    """A micro-batch as one row: ids and positions (1, tokens), labels of the scored positions."""

    ids: torch.Tensor
    positions: torch.Tensor
    labels: torch.Tensor
    branches: Branches


def pack(ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> Packed:
    """Return the pairs in one row; the arguments are (2 pairs, tokens), padded on the right.

    ``labels`` are -100 but at the completions' tokens, as TRL gives them.
    """
    tokens = ids.shape[1]
    completions = (labels != IGNORED).sum(1).tolist()
    prompts = (mask.sum(1) - (labels != IGNORED).sum(1)).tolist()
    count = ids.shape[0] // 2
    assert prompts[:count] == prompts[count:], "the rows of a pair have the same prompt"
    sources: list[torch.Tensor] = []
    pairs: list[tuple[int, int, int, int]] = []
    end = 0
    for pair, (prompt, chosen, rejected) in enumerate(
        zip(prompts[:count], completions[:count], completions[count:], strict=True)
    ):
        first, second = pair * tokens, (pair + count) * tokens
        # Flat positions in ``ids``; a branch begins with the prompt's last token.
        sources.append(torch.arange(first, first + prompt - 1 + chosen))
        sources.append(torch.arange(second + prompt - 1, second + prompt - 1 + rejected))
        start, branch = end, end + prompt - 1
        end = branch + chosen + rejected
        pairs.append((start, branch, branch + chosen, end))
    source = torch.cat(sources).to(ids.device)
    scored = torch.cat([torch.arange(*place) for place in _scored(pairs)]).to(ids.device)
    return Packed(
        ids=ids.reshape(-1)[source][None],
        positions=(source % tokens)[None],
        labels=ids.reshape(-1)[source[scored] + 1][None],
        branches=Branches(tuple(pairs), scored, {}),
    )


def _scored(pairs: list[tuple[int, int, int, int]]) -> Iterator[tuple[int, int]]:
    yield from ((branch, second) for _, branch, second, _ in pairs)
    yield from ((second, end) for _, _, second, end in pairs)
