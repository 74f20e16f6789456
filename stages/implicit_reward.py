"""The implicit reward of a policy against its reference model, in this process."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.chat_template import check_template, template_fingerprint
from stages.content_ids import content_hash
from stages.errors import ModelError
from stages.log_probability import answer_tokens, completion_logprobs, end_tokens
from stages.model_loading import context_limit, load_model
from stages.progress import Tell, say_nothing
from stages.reward_model import RewardOutcome, score_in_batches

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from stages.chat_template import Conversation


class ImplicitReward:
    """beta * (log pi(y|x) - log pi_ref(y|x)), summed over the answer's tokens and its end of turn.

    By Rafailov et al. 2023 (arXiv 2305.18290), eq. 5, it is the reward under which pi is optimal,
    up to beta * log Z(x): a term of the prompt alone, which the two answers of a pair share. So
    rewards compare answers to one prompt, not prompts.
    """

    def __init__(
        self,
        policy_folder: Path,
        reference_folder: Path,
        beta: float,
        batch_tokens: int = 4096,
        name: str | None = None,
    ) -> None:
        """Load both models; ``batch_tokens`` counts padding, and bounds the logits in memory.

        Raises:
            ModelError: a folder holds no language model, a template can't be used, or the two
                turn conversations into different tokens.
        """
        self.model_name, self.beta, self.batch_tokens = (
            name or policy_folder.name,
            beta,
            batch_tokens,
        )
        self.policy = load_model(policy_folder, "AutoModelForCausalLM")
        self.reference = load_model(reference_folder, "AutoModelForCausalLM")
        self.tokenizer = self.policy.tokenizer
        self.end_tokens = end_tokens(self.policy)
        check_template(self.tokenizer, str(policy_folder), self.end_tokens)
        self.template_fingerprint = template_fingerprint(self.tokenizer)
        theirs = template_fingerprint(self.reference.tokenizer)
        if theirs != self.template_fingerprint:
            raise ModelError(
                "policy and reference turn conversations into different tokens (template "
                f"fingerprints {self.template_fingerprint} and {theirs})",
                expected="two models with the same tokenizer and chat template",
                where=f"{policy_folder}, {reference_folder}",
                remedy="name the reference that the policy was trained against",
            )
        self.weights_hash = content_hash([self.policy.weights_hash, self.reference.weights_hash])
        self.max_length_tokens = min(
            context_limit(loaded.model.config, loaded.tokenizer)
            for loaded in (self.policy, self.reference)
        )

    def score(
        self, conversations: Sequence[Conversation], tell: Tell = say_nothing
    ) -> list[RewardOutcome]:
        """Return the implicit reward of each conversation's last turn, the assistant's.

        It doesn't depend on the other conversations: in fp32, to a millionth of beta times the
        log-probability. One that is too long for either model has none.
        """
        sequences, starts = answer_tokens(self.tokenizer, conversations, self.end_tokens)

        def rewards(indices: list[int], rows: list[list[int]]) -> list[float]:
            places = [starts[index] for index in indices]
            ours = completion_logprobs(self.policy, rows, places)
            theirs = completion_logprobs(self.reference, rows, places)
            return [self.beta * (a - b) for a, b in zip(ours, theirs, strict=True)]

        return score_in_batches(sequences, self.max_length_tokens, self.batch_tokens, rewards, tell)
