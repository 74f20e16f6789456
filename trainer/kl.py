"""How far a policy is from its reference on answers of its own. Imports torch at once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import torch
from transformers import GenerationConfig

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from trainer.dpo_settings import DPOTrainingConfig


def kl_of_tokens(policy: torch.Tensor, reference: torch.Tensor) -> float:
    """Return the estimate of KL(policy || reference) of one response in nats, never below 0.

    Both are log-probabilities (tokens,) of a response sampled from the policy. Each token adds
    r - 1 - log r with r = reference / policy, whose expectation under the policy is the KL of the
    next token (Schulman 2020, "Approximating KL divergence", k3).
    """
    log_ratio = reference.double() - policy.double()
    return (torch.expm1(log_ratio) - log_ratio).sum().item()


class KLEstimator:
    """Estimates KL(policy || reference) on responses to a fixed sample of prompts.

    A copy of the policy samples, at temperature 1; the training model is not touched. One model is
    held beside it at a time.
    """

    def __init__(
        self,
        trainer: Any,
        loaders: tuple[Callable[[Any], Any], Callable[[Any], Any]],
        config: DPOTrainingConfig,
        limit: int,
    ) -> None:
        """Choose prompts of ``trainer``.

        Given the model in training, ``loaders`` return a copy of the policy and the reference.
        ``limit`` is of a prompt and its response, in tokens.
        """
        self.limit = limit
        prompts = trainer.train_dataset["prompt_ids"]
        self.prompts = _chosen(prompts, config.stopping.kl_samples, config.seed)
        self.loaders = loaders
        self.config = config
        self.pad = trainer.data_collator.pad_token_id

    def estimate(self, model: Any, step: int) -> float:
        """Return the mean over the responses in nats; the same for the same weights and step."""
        copy_policy, load_reference = self.loaders
        policy = copy_policy(model).to(model.device).eval()
        # A model's own generation settings, such as a repetition penalty, would not sample from it.
        ends = policy.generation_config.eos_token_id
        policy.generation_config = GenerationConfig(eos_token_id=ends, pad_token_id=self.pad)
        with torch.random.fork_rng():
            torch.manual_seed(self.config.seed + step)
            responses = self._responses(policy)
        ours = [_log_probs(policy, *response) for response in responses]
        del policy
        reference = load_reference(model).to(model.device).eval()
        theirs = [_log_probs(reference, *response) for response in responses]
        estimates = [kl_of_tokens(*pair) for pair in zip(ours, theirs, strict=True)]
        return sum(estimates) / len(estimates)

    def _responses(self, policy: Any) -> list[tuple[torch.Tensor, int]]:
        """Return each prompt with a response, (1, tokens), and the prompt's length."""
        longest = max(len(prompt) for prompt in self.prompts)
        # The next token is predicted from the right end, so prompts are padded on the left.
        padding = [longest - len(prompt) for prompt in self.prompts]
        ids = [[self.pad] * pad + prompt for pad, prompt in zip(padding, self.prompts, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        room = max(self.limit - longest, 1)
        with torch.no_grad():
            rows = policy.generate(
                torch.tensor(ids, device=policy.device),
                attention_mask=torch.tensor(mask, device=policy.device),
                do_sample=True,
                temperature=1.0,
                top_k=0,
                top_p=1.0,
                max_new_tokens=min(self.config.stopping.kl_max_new_tokens, room),
                # A broken policy's estimate is NaN, which ends the training with a good message.
                remove_invalid_values=True,
                use_cache=True,
            )
        ends = policy.generation_config.eos_token_id
        sampled = (_until_end(row[longest:], ends) for row in rows)
        return [
            (torch.cat([row[pad:longest], response])[None], longest - pad)
            for row, pad, response in zip(rows, padding, sampled, strict=True)
        ]


def _until_end(tokens: torch.Tensor, ends: int | list[int] | None) -> torch.Tensor:
    """Return ``tokens`` up to the first that ends a response, with it."""
    if ends is None:
        return tokens
    found = torch.isin(tokens, torch.tensor(ends, device=tokens.device)).nonzero()
    return tokens if len(found) == 0 else tokens[: int(found[0]) + 1]


def _chosen(prompts: Iterable[list[int]], count: int, seed: int) -> list[list[int]]:
    """Return up to ``count`` different prompts, decided by their tokens and the seed alone."""

    def digest(prompt: list[int]) -> bytes:
        return hashlib.sha256(f"{seed}:{prompt}".encode()).digest()

    different = {tuple(prompt): prompt for prompt in prompts}
    return sorted(different.values(), key=digest)[:count]


def _log_probs(model: Any, row: torch.Tensor, prompt: int) -> torch.Tensor:
    """Return log p of the tokens after the prompt, (tokens,)."""
    with torch.no_grad():
        logits: torch.Tensor = model(row[:, :-1]).logits[0, prompt - 1 :].float()
    return logits.log_softmax(-1).gather(1, row[0, prompt:, None])[:, 0].cpu()
