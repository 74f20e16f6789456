"""Reference answers in the `candidates` table, where pairing is about them."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stages.errors import DataError
from stages.model_loading import load_tokenizer
from stages.references import reference_candidates

if TYPE_CHECKING:
    from collections.abc import Callable

    import polars as pl

    from flows.models import Policy
    from flows.stage_runner import StageWriter


def require_references(prompts: pl.DataFrame) -> None:
    """Return if a prompt has a reference answer; asked before anything is generated.

    Raises:
        DataError: none has one.
    """
    if prompts["reference"].is_null().all():
        raise DataError(
            f"none of {prompts.height} prompts has a reference answer",
            expected="answers by people in a column of a source",
            where="`prompts.sources`, for pairing.strategy reference_over_sampled",
            remedy="name the column in the source's `reference_column`",
        )


def write_references(
    writer: StageWriter, prompts: pl.DataFrame, policy: Policy, answered: range, first: int
) -> None:
    """Write the references of each part in ``answered`` as a part of their own, from ``first`` on.

    Prompts that stand in one part stand in one part here too, so candidates are still read in
    groups of few parts.
    """
    count_tokens = token_counter(policy)
    generated = writer.dataset("candidates")
    for place, index in enumerate(answered):
        ids = writer.read(generated.part(index), ["prompt_id"]).unique()
        of_part = prompts.join(ids, on="prompt_id", how="semi", maintain_order="left")
        rows = reference_candidates(of_part, count_tokens)
        if rows.height:
            writer.write("candidates", rows, first + place)


def token_counter(policy: Policy) -> Callable[[list[str]], list[int]]:
    """Return a function from answers to their lengths in the policy's tokens."""
    tokenizer = load_tokenizer(policy.folder)

    def count_tokens(texts: list[str]) -> list[int]:
        # The sampled ones' lengths count the end-of-turn token.
        encoded = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
        return [len(ids) + 1 for ids in encoded]

    return count_tokens
