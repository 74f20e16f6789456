"""Which filters rule on pairs, and their limits: docs/filters.md."""

from __future__ import annotations

from typing import Annotated, Literal, Self

import pydantic
import pydantic_core

from stages.configuration import NOT_EMPTY, Config
from stages.near_duplicates import NearDuplicateConfig
from stages.score_limits import ScoreLimits
from stages.sensitive_text import PersonalData

Share = Annotated[float, pydantic.Field(ge=0, le=1)]
Cap = Annotated[int, pydantic.Field(ge=1)]
LanguageCode = Annotated[str, pydantic.Field(pattern="^[a-z]{2,3}$")]


def _listed(value: object) -> object:
    return (value,) if isinstance(value, str) else value


class NearDuplicatePairsConfig(NearDuplicateConfig):
    """Which pairs are nearly the same, and among which pairs to look."""

    earlier_runs: bool = False
    """Also drop what is nearly the same as a pair kept by an earlier completed run of this name."""


class FilteringConfig(Config):
    """Which filters rule on the pairs, and their limits. A limit of null turns a filter off."""

    identical: bool = True
    """Drop a pair whose two completions are the same text."""
    empty: bool = True
    """Drop a pair with a completion that is empty or only white space."""
    truncated: bool = True
    """Drop a pair with a completion that did not end by itself."""
    edit_scored_worse: bool | None = None
    """Drop a pair whose edited answer is scored below the one it stands over; null: yes, with the
    strategy `edited_over_chosen_over_rejected`."""
    minimum_margin: Annotated[float, pydantic.Field(ge=0)] | None = 0.1
    """In the scorer's unit."""
    maximum_length_ratio: Annotated[float, pydantic.Field(ge=1)] | None = 3.0
    """Longer over shorter completion, in tokens."""
    maximum_similarity: Annotated[float, pydantic.Field(gt=0, le=1)] | None = 0.98
    """Normalised indel similarity of the two texts (1 is identical); drops near-identical pairs."""
    minimum_normalised_margin: Annotated[float, pydantic.Field(ge=0)] | None = None
    """In standard deviations of the scorer's scores over the proposed pairs' answers."""
    maximum_length_gap_tokens: Annotated[int, pydantic.Field(ge=0)] | None = None
    """Between the two completions, whichever is longer."""
    minimum_prompt_success: Share | None = None
    """Share of the prompt's scored candidates that succeed; drops prompts that are too hard."""
    maximum_prompt_success: Share | None = None
    """The same share; drops prompts that are too easy."""
    success_score: float = 1.0
    """A candidate that the pair's scorer gives so much succeeds."""
    maximum_label_noise: Share | None = None
    """Probability that the label is wrong; docs/noise.md says when it is known."""
    refusal: Literal["chosen", "both"] | None = None
    """Drop a pair whose chosen refuses, or only one of which both do; English openings."""
    maximum_repetition: Share | None = None
    """Share of the chosen's word 4-grams that repeat an earlier one (seq-rep-4)."""
    language: (
        Annotated[tuple[LanguageCode, ...], NOT_EMPTY, pydantic.BeforeValidator(_listed)] | None
    ) = None
    """ISO 639 code or codes; drops a pair whose chosen is surely in another language."""
    score_limits: ScoreLimits = ()
    """What any scorers' scores must keep to, such as toxicity or plausibility (docs/filters.md)."""
    personal_data: Annotated[tuple[PersonalData, ...], NOT_EMPTY] | None = None
    """Kinds that neither completion may hold, known by their shape and checksum."""
    secrets: bool = False
    """Drop a pair with an API key, a token or a private key of a known shape in a completion."""
    near_duplicates: NearDuplicatePairsConfig | None = None
    """Of pairs nearly alike in prompt and completions, keep the widest margin; off by default."""
    maximum_pairs_per_prompt: Cap | None = None
    """Keeps the widest margins of those that the filters above keep; equal ones by pair id."""
    maximum_pairs_per_source: Cap | None = None
    """The same, per source and split, after the cap per prompt."""
    maximum_length_bias: Share | None = None
    """Surplus of right guesses of the chosen by length alone, over all that is kept till then."""
    length_bias: Literal["drop", "reweight"] = "drop"
    """What brings it under the limit: drop pairs, or give them the weights `length_weight`, which
    `training.weight_by` reads."""

    @pydantic.model_validator(mode="after")
    def _band_is_not_empty(self) -> Self:
        low, high = self.minimum_prompt_success, self.maximum_prompt_success
        if low is not None and high is not None and low > high:
            raise pydantic_core.PydanticCustomError(
                "band", "minimum_prompt_success is above maximum_prompt_success"
            )
        return self

    @pydantic.model_validator(mode="after")
    def _balances_to_a_limit(self) -> Self:
        if self.length_bias == "reweight" and self.maximum_length_bias is None:
            raise pydantic_core.PydanticCustomError(
                "balance", "length_bias: reweight is not read without maximum_length_bias"
            )
        return self

    @property
    def needs_sources(self) -> bool:
        """Whether a filter asks where a pair's prompt came from."""
        return self.maximum_pairs_per_source is not None

    @property
    def prompt_columns(self) -> list[str]:
        """What the filters ask of the prompts; empty: nothing."""
        columns = ["source", "split"] if self.needs_sources else []
        columns += ["messages"] if self.near_duplicates else []
        return ["prompt_id", *columns] if columns else []

    @property
    def needs_noise(self) -> bool:
        """Whether a filter asks for `probability_wrong` beside each pair."""
        return self.maximum_label_noise is not None

    @property
    def needs_scores(self) -> bool:
        """Whether a filter asks for scores that are not in the pairs."""
        return self.needs_success or bool(self.score_limits)

    @property
    def needs_success(self) -> bool:
        """Whether a filter asks for the scores of the candidates that no pair holds."""
        return (self.minimum_prompt_success, self.maximum_prompt_success) != (None, None)
