"""What a training step says beyond TRL's metrics. Imports torch at once."""

from __future__ import annotations

import resource
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

if TYPE_CHECKING:
    from collections.abc import Callable

SPEEDS = ("tokens_per_second", "pairs_per_second", "answers_per_second", "peak_memory_gib")
"""The metrics that two equal trainings do not share."""

LEAST_PAIRS = 3
"""Of a correlation: two points always lie on a line."""


LEAST_SPREAD = 1e-4
"""Of the margins in nats, below which rounding decides a correlation."""


class Pairs(NamedTuple):
    """A micro-batch's answers: (pairs,) each, in tokens and in nats relative to the reference.

    Of a loss without a reference, in nats as the loss takes them.
    """

    chosen_tokens: torch.Tensor
    rejected_tokens: torch.Tensor
    chosen_drift: torch.Tensor
    rejected_drift: torch.Tensor


def pairs_of(log_probs: torch.Tensor, inputs: dict[str, Any], ld_alpha: float | None) -> Pairs:
    """Return lengths and drifts, log pi(y|x) - log pi_ref(y|x), of TRL's batch ``inputs``.

    Args:
        log_probs: (2 pairs, tokens - 1) of the completions' tokens, 0 elsewhere; chosen first.
        inputs: with `completion_mask` and the reference's log-probabilities.
        ld_alpha: the weight of tokens beyond the shorter answer's length (Liu et al. 2024, arXiv
            2409.06411).
    """
    mask = inputs["completion_mask"][:, 1:]
    tokens = mask.sum(1)
    if ld_alpha is not None:
        shorter = torch.minimum(*tokens.chunk(2)).repeat(2)
        log_probs = log_probs * torch.where(mask.cumsum(1) > shorter[:, None], ld_alpha, 1.0)
    chosen, rejected = log_probs.detach().sum(1).chunk(2)
    chosen_tokens, rejected_tokens = tokens.chunk(2)
    return Pairs(
        chosen_tokens=chosen_tokens,
        rejected_tokens=rejected_tokens,
        chosen_drift=chosen - inputs["ref_chosen_logps"],
        rejected_drift=rejected - inputs["ref_rejected_logps"],
    )


def step_metrics(batches: list[Pairs], *, with_reference: bool = True) -> dict[str, float]:
    """Return the means over a step's pairs, and the correlation of length with margin.

    Without a reference there is no drift.

    The correlation (Pearson) is between chosen less rejected in tokens and in drift: near 1 the
    policy learns that longer is better. It is missing where it has no meaning: below three pairs,
    or where all lengths differ by the same or the margins by nothing.
    """
    pairs = Pairs(*(torch.cat(parts).double() for parts in zip(*batches, strict=True)))
    found = {
        "completion_tokens/chosen": pairs.chosen_tokens.mean().item(),
        "completion_tokens/rejected": pairs.rejected_tokens.mean().item(),
    }
    if with_reference:
        found["drift/chosen"] = pairs.chosen_drift.mean().item()
        found["drift/rejected"] = pairs.rejected_drift.mean().item()
    longer = pairs.chosen_tokens - pairs.rejected_tokens
    margins = pairs.chosen_drift - pairs.rejected_drift
    if len(longer) >= LEAST_PAIRS and longer.std() > 0 and margins.std() > LEAST_SPREAD:
        both = torch.stack([longer, margins])
        found["length_margin_correlation"] = torch.corrcoef(both)[0, 1].item()
    return found


class Speed:
    """The speed of the step between `start` and `metrics`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started, self._tokens = 0.0, 0

    def start(self, tokens: int) -> None:
        """Begin a step; ``tokens`` were trained on before."""
        self._started, self._tokens = self._clock(), tokens

    def metrics(self, tokens: int, rows: int, unit: str = "pairs") -> dict[str, float]:
        """Return tokens and rows per second of the step, and the process's peak memory so far.

        Tokens are counted as TRL does: a prompt twice, padding not at all.
        """
        seconds = max(self._clock() - self._started, 1e-9)
        if torch.cuda.is_available():
            peak = torch.cuda.max_memory_allocated()
        else:
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "tokens_per_second": (tokens - self._tokens) / seconds,
            f"{unit}_per_second": rows / seconds,
            "peak_memory_gib": peak / 2**30,
        }
