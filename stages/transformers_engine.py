"""The in-process engine: a Hugging Face causal language model through transformers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.chat_template import check_template, control_tokens, render, template_fingerprint
from stages.generation import Answer, Request, SampledCompletion
from stages.model_loading import context_of, load_model

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from pathlib import Path

    import torch

    from stages.generation_settings import Sampling


class TransformersEngine:
    """A model folder loaded for generation: fp32 on a CPU, bf16 on a GPU.

    Sampling is by inverse CDF with random numbers drawn per prompt and sample from the prompt's
    own seed (Philox), so that a completion doesn't depend on the other prompts asked with it.
    """

    def __init__(
        self,
        folder: Path,
        name: str | None = None,
        threads: int | None = None,
        prompts_per_batch: int = 32,
    ) -> None:
        """Load the model and tokenizer; ``threads`` are torch's, null its own choice.

        Raises:
            ModelError: the folder holds no loadable model, or its chat template can't be used.
        """
        loaded = load_model(folder, "AutoModelForCausalLM")
        self.model_name, self.threads = name or folder.name, threads
        self.prompts_per_batch = prompts_per_batch
        self.model, self.tokenizer = loaded.model, loaded.tokenizer
        self.weights_hash, self.device = loaded.weights_hash, loaded.device
        self.context_tokens = context_of(self.model.config) or 2**31
        ends = self.model.generation_config.eos_token_id
        self.end_tokens: list[int] = ends if isinstance(ends, list) else [ends]
        if self.end_tokens == [None]:
            self.end_tokens = [self.tokenizer.eos_token_id]
        check_template(self.tokenizer, str(folder), self.end_tokens)
        self.template_fingerprint = template_fingerprint(self.tokenizer)
        self.control_tokens = control_tokens(self.tokenizer)
        # A model folder may ask for a repetition penalty or the like: only what is recorded with
        # the candidates may decide them.
        self.model.generation_config = type(self.model.generation_config)()

    def count_prompt_tokens(self, conversations: Sequence[list[dict[str, str]]]) -> list[int]:
        """Return each conversation's length in tokens, rendered for generation."""
        return [len(ids) for ids in render(self.tokenizer, conversations)]

    def answers(
        self, batches: Iterable[Sequence[Request]], sampling: Sampling
    ) -> Iterator[list[Answer]]:
        """Yield the answers; ``prompts_per_batch`` at a time are one padded batch."""
        for batch in batches:
            for first in range(0, len(batch), self.prompts_per_batch):
                yield self._answer(batch[first : first + self.prompts_per_batch], sampling)

    def _answer(self, batch: Sequence[Request], sampling: Sampling) -> list[Answer]:
        import torch

        prompts = render(self.tokenizer, [request.messages for request in batch])
        samples, steps = batch[0].samples, sampling.max_completion_tokens
        width = max(len(ids) for ids in prompts)
        pad = self.tokenizer.pad_token_id
        pad = self.end_tokens[0] if pad is None else pad
        tokens = torch.tensor([[pad] * (width - len(ids)) + ids for ids in prompts])
        mask = torch.tensor([[0] * (width - len(ids)) + [1] * len(ids) for ids in prompts])
        draws = _uniform_draws([request.seed for request in batch], samples, steps)
        sampler = SeededSampling(
            draws.to(self.device), sampling.temperature, sampling.top_p, self.end_tokens
        )
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        with torch.inference_mode():
            sequences = self.model.generate(
                input_ids=tokens.repeat_interleave(samples, dim=0).to(self.device),
                attention_mask=mask.repeat_interleave(samples, dim=0).to(self.device),
                max_new_tokens=steps,
                do_sample=False,
                num_beams=1,
                pad_token_id=pad,
                eos_token_id=self.end_tokens,
                logits_processor=[sampler],
            )
        completions = self._completions(sequences[:, width:].tolist(), sampler, samples)
        return [
            Answer(request.prompt_id, of_prompt, prompt_tokens=len(ids))
            for request, ids, of_prompt in zip(batch, prompts, completions, strict=True)
        ]

    def _completions(
        self, sequences: list[list[int]], sampler: SeededSampling, samples: int
    ) -> list[list[SampledCompletion]]:
        """Cut each sequence after its end token and decode it."""
        cut: list[list[int]] = []
        for sequence in sequences:
            end = next((i for i, t in enumerate(sequence) if t in self.end_tokens), None)
            cut.append(sequence if end is None else sequence[: end + 1])
        texts = self.tokenizer.batch_decode(cut, skip_special_tokens=True)
        logprobs = sampler.logprob_sum.tolist()
        flat = [
            SampledCompletion(
                text, "stop" if ids[-1] in self.end_tokens else "length", len(ids), min(logp, 0.0)
            )
            for text, ids, logp in zip(texts, cut, logprobs, strict=True)
        ]
        return [flat[start : start + samples] for start in range(0, len(flat), samples)]


def _uniform_draws(seeds: Sequence[int], samples: int, steps: int) -> torch.Tensor:
    """Return uniform numbers in [0, 1) of shape (len(seeds) * samples, steps), double."""
    import numpy as np
    import torch

    rows = [
        np.random.Generator(np.random.Philox(key=seed)).random((samples, steps)) for seed in seeds
    ]
    return torch.from_numpy(np.concatenate(rows))


class SeededSampling:
    """A transformers logits processor that makes each row's choice itself.

    It leaves only the chosen token possible, so that greedy decoding takes it, and adds up the
    log-probability of the choices at temperature 1 in `logprob_sum`, shape (rows,).
    """

    def __init__(
        self, draws: torch.Tensor, temperature: float, top_p: float, end_tokens: list[int]
    ) -> None:
        """Take ``draws`` of shape (rows, steps), one uniform number per choice."""
        import torch

        self.draws, self.temperature, self.top_p = draws, temperature, top_p
        self.end_tokens = torch.tensor(end_tokens, device=draws.device)
        self.logprob_sum = torch.zeros(len(draws), dtype=torch.float64, device=draws.device)
        self.running = torch.ones(len(draws), dtype=torch.bool, device=draws.device)
        self.step = 0

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        """Return ``scores`` (rows, vocabulary) with everything but the choice at -inf."""
        import torch

        logprobs = torch.log_softmax(scores.double(), dim=-1)
        choice = logprobs.argmax(dim=-1) if self.temperature == 0 else self._sampled(logprobs)
        chosen = logprobs.gather(1, choice[:, None])[:, 0]
        self.logprob_sum += torch.where(self.running, chosen, 0.0)
        self.running &= ~torch.isin(choice, self.end_tokens)
        self.step += 1
        return torch.full_like(scores, -torch.inf).scatter(1, choice[:, None], 0.0)

    def _sampled(self, logprobs: torch.Tensor) -> torch.Tensor:
        """Return one token per row by inverse CDF, within the nucleus when top_p < 1."""
        import torch

        probabilities = torch.softmax(logprobs / self.temperature, dim=-1)
        if self.top_p < 1:
            ordered, order = probabilities.sort(dim=-1, descending=True)
            ordered[ordered.cumsum(-1) - ordered >= self.top_p] = 0.0
            probabilities = torch.zeros_like(probabilities).scatter(1, order, ordered)
        cumulative = probabilities.cumsum(-1)
        target = self.draws[:, self.step, None] * cumulative[:, -1:]
        # right=True: a target equal to a step's upper edge belongs to the next token, so that a
        # token of probability zero is never chosen.
        choice = torch.searchsorted(cumulative, target, right=True)[:, 0]
        return choice.clamp(max=probabilities.shape[-1] - 1)
