"""Prompts from any source: deduplicated, split into train and held-out, mixed by exact quotas."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Annotated, NamedTuple, Self

import polars as pl
import pydantic

from stages.configuration import NOT_EMPTY, OPERATIONAL, Config
from stages.content_ids import content_ids, file_sha256
from stages.errors import DataError
from stages.gold import GoldConfig, gold_prompts
from stages.prompt_cleaning import (
    EvaluationSet,
    NearDuplicatePromptsConfig,
    in_one_split,
    without_contaminated,
    without_near_duplicates,
)
from stages.prompt_records import ID_START, SPLIT_DIGITS
from stages.prompt_sources import (
    BundledSource,
    ColumnsSource,
    PromptSource,
    SampledSource,
    Source,
    fingerprint,
    read_source,
)
from stages.row_files import BadRow, require_file
from stages.tables import PROMPTS

if TYPE_CHECKING:
    from collections.abc import Sequence

VERSION = 4
"""Raised when the same configuration would give other rows: stored outputs are then made again."""


class PromptSamplingConfig(Config):
    """Which prompts, how many, from where."""

    sources: Annotated[tuple[Source, ...], NOT_EMPTY] = (BundledSource(),)
    """Where prompts come from; the first to bring a conversation keeps it."""
    maximum_prompts: pydantic.PositiveInt | None = None
    """Of all sources together, by their weights; what one falls short of goes to the others."""
    near_duplicates: NearDuplicatePromptsConfig | None = None
    """Of prompts that are nearly the same, in all sources, keep one; null: keep all."""
    decontaminate: tuple[EvaluationSet, ...] = ()
    """Evaluation sets; prompts that share a passage with one are passed over."""
    only_new: Annotated[bool, OPERATIONAL] = False
    """`prefmill refresh` takes only prompts that no completed run of this `name` has had."""
    seen_in_runs: Annotated[tuple[str, ...], OPERATIONAL] = ()
    """Runs whose prompts are passed over; `only_new` fills it in when a run starts."""
    of_run: Annotated[str | None, OPERATIONAL] = None
    """Take a run's prompts as they are stored, whatever has become of their sources.

    `prefmill train`, `curate`, `export` and `resume` fill it in."""
    gold: GoldConfig | None = None
    """Planted pairs with a known better answer, to measure scorers; null: none."""
    seed: int = 0
    """Decides which rows are sampled."""

    @pydantic.model_validator(mode="after")
    def _weights_are_read(self) -> Self:
        weighted = [source.name for source in self.sources if source.weight != 1]
        if weighted and self.maximum_prompts is None:
            raise ValueError(f"`weight` of {weighted} is read only with `prompts.maximum_prompts`")
        return self


class NoNewPromptsError(DataError):
    """The sources hold prompts, and earlier runs have had all of them."""


class Sampled(NamedTuple):
    """What sampling gave, and what it set aside."""

    prompts: pl.DataFrame
    """The `prompts` table, sorted by split and id."""
    dropped: pl.DataFrame
    """The `dropped_prompts` table, sorted by id: near-duplicates and contaminated ones."""
    bad_rows: list[BadRow]
    """Rows of sources with `skip_bad_rows` that cannot be used."""


def fingerprints(config: PromptSamplingConfig) -> list[str]:
    """Return what identifies the content of every source, evaluation set and of the gold file.

    Raises:
        MissingFileError: a file that is named is not there.
        DataError: a source's query cannot be run.
    """
    read = (*config.sources, *config.decontaminate)
    return [*map(fingerprint, read), gold_fingerprint(config)]


def gold_fingerprint(config: PromptSamplingConfig) -> str:
    """Return what identifies the content of the gold file, if there is one."""
    path = config.gold.path if config.gold else None
    remedy = "correct `prompts.gold.path` in the configuration"
    return file_sha256(require_file(path, "gold", remedy)) if path else ""


def sample(config: PromptSamplingConfig, seen: pl.DataFrame | None = None) -> Sampled:
    """Return the prompts that ``config`` asks for, without those whose id is among ``seen``.

    ``seen`` has prompt_id and split of prompts that were sampled before.

    A conversation is held out or trained on by its own text, and drawn by its text and the seed:
    neither other rows nor the order of a file moves a prompt from one split to the other.

    Raises:
        MissingFileError: a source's file is not there.
        ConfigError: a bundled family is unknown or has fewer prompts than asked for.
        DataError: a source cannot be read (names file, line and column) or has no prompt.
        NoNewPromptsError: all prompts are among ``seen``.
    """
    read = [read_source(source, config.seed) for source in config.sources]
    bad_rows = [row for _, rows in read for row in rows]
    prompts = without_duplicates([frame for frame, _ in read])
    _require_prompts(prompts, config, bad_rows)
    clean, contaminated = without_contaminated(prompts, config.decontaminate)
    unlike, alike = without_near_duplicates(clean, seen, config.near_duplicates)
    prompts = in_one_split(split(unlike, config.sources), seen)
    drawn = mix(_new(prompts, seen), config)
    if config.gold:
        planted = gold_prompts(config.gold, drawn.filter(split="train").height, config.seed)
        # A prompt that a source has is never gold as well: it would be in two splits.
        planted = planted.join(prompts, "prompt_id", how="anti")
        drawn = pl.concat([drawn, planted.unique("prompt_id", keep="first", maintain_order=True)])
    dropped = pl.concat([contaminated, alike]).sort("prompt_id")
    return Sampled(drawn.sort("split", "prompt_id", descending=[True, False]), dropped, bad_rows)


def without_duplicates(frames: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """Return the sources' prompts, each once, with the `position` of the source that keeps it.

    The first source keeps a conversation. Within a source rows of one conversation may differ in
    the other columns: the smallest values win, as the order of the rows must have no say.
    """
    numbered = [
        frame.with_columns(position=pl.lit(position, dtype=pl.UInt16))
        for position, frame in enumerate(frames)
    ]
    facts = ["stratum", "verifier", "ground_truth", "reference"]
    ordered = pl.concat(numbered).sort("prompt_id", "position", *facts, nulls_last=True)
    return ordered.unique("prompt_id", keep="first", maintain_order=True)


def split(prompts: pl.DataFrame, sources: Sequence[PromptSource]) -> pl.DataFrame:
    """Return ``prompts`` with every split decided: by the id, against the source's share.

    A larger share only adds to the held-out prompts. A split that a source brings stays.
    """
    shares = [
        source.heldout_share if isinstance(source, SampledSource) else 0.0 for source in sources
    ]
    share = pl.col("position").replace_strict(range(len(shares)), shares, return_dtype=pl.Float64)
    digits = pl.col("prompt_id").str.slice(ID_START, SPLIT_DIGITS)
    drawn = digits.str.to_integer(base=16, dtype=pl.Int64) / 16**SPLIT_DIGITS
    decided = pl.when(drawn < share).then(pl.lit("heldout")).otherwise(pl.lit("train"))
    return prompts.with_columns(pl.col("split").fill_null(decided))


def mix(prompts: pl.DataFrame, config: PromptSamplingConfig) -> pl.DataFrame:
    """Return each source's quota of ``prompts``, drawn by stratum."""
    of_source = [prompts.filter(position=place) for place in range(len(config.sources))]
    limits = [
        min(frame.height, _limit(source, frame.height))
        for frame, source in zip(of_source, config.sources, strict=True)
    ]
    total = sum(limits) if config.maximum_prompts is None else config.maximum_prompts
    asked = quotas(total, [source.weight for source in config.sources], limits)
    drawn = [
        _drawn(frame, quota, source, config.seed)
        for frame, quota, source in zip(of_source, asked, config.sources, strict=True)
    ]
    return pl.concat(drawn).select(PROMPTS.column_names)


def _limit(source: PromptSource, there: int) -> int:
    maximum = source.maximum_rows if isinstance(source, SampledSource) else None
    return there if maximum is None else maximum


def quotas(total: int, weights: Sequence[float], limits: Sequence[int]) -> list[int]:
    """Return whole shares of ``total`` by ``weights``, each at most its limit.

    Their sum is ``total``, or the sum of the limits if that is less. What a share cannot take the
    others get, by their weights; fractions are rounded by the largest remainder (Hamilton's
    method), the first share winning ties.
    """
    left, weight_left = total, sum(map(Fraction, weights), Fraction(0))
    order = sorted(range(len(limits)), key=lambda i: limits[i] / Fraction(weights[i]))
    while order and limits[order[0]] * weight_left <= left * Fraction(weights[order[0]]):
        full = order.pop(0)
        left -= limits[full]
        weight_left -= Fraction(weights[full])
    exact = {i: left * Fraction(weights[i]) / weight_left for i in sorted(order)}
    given = [int(exact[i]) if i in exact else limit for i, limit in enumerate(limits)]
    by_remainder = sorted(exact, key=lambda i: given[i] - exact[i])
    for i in by_remainder[: left - sum(given[i] for i in exact)]:
        given[i] += 1
    return given


def _drawn(prompts: pl.DataFrame, quota: int, source: PromptSource, seed: int) -> pl.DataFrame:
    """Return ``quota`` of one source's prompts, each stratum's share of them."""
    if quota == prompts.height:
        return prompts
    draw = content_ids(prompts.with_columns(seed=pl.lit(str(seed))), "draw", ["seed", "prompt_id"])
    prompts = prompts.with_columns(draw)
    # Strata stand in the order of a draw, too: when rows are few, which ones get any is chance.
    strata = prompts.group_by("stratum").agg(pl.len(), pl.col("draw_id").min()).sort("draw_id")
    sizes = strata["len"].to_list()
    by_size = isinstance(source, ColumnsSource) and source.strata == "proportional"
    shares = quotas(quota, sizes if by_size else [1] * len(sizes), sizes)
    quota_of = strata.select("stratum", quota=pl.Series(shares, dtype=pl.Int64))
    ranked = prompts.join(quota_of, "stratum").with_columns(
        rank=pl.col("draw_id").rank("ordinal").over("stratum")
    )
    return ranked.filter(pl.col("rank") <= pl.col("quota")).drop("draw_id", "quota", "rank")


def _new(prompts: pl.DataFrame, seen: pl.DataFrame | None) -> pl.DataFrame:
    """Return the prompts that are not among ``seen``."""
    if seen is None or seen.is_empty():
        return prompts
    new = prompts.join(seen, "prompt_id", how="anti")
    if new.is_empty():
        raise NoNewPromptsError(
            f"no new prompts: earlier runs have had all {prompts.height}",
            expected="at least one prompt that no run before had",
            remedy="add prompts to the sources, or take all again with `--all-prompts`",
        )
    return new


def _require_prompts(
    prompts: pl.DataFrame, config: PromptSamplingConfig, bad_rows: list[BadRow]
) -> None:
    if prompts.is_empty():
        names = ", ".join(repr(source.name) for source in config.sources)
        bad = f" ({len(bad_rows)} rows cannot be used: {bad_rows[0].reason})" if bad_rows else ""
        raise DataError(
            f"no prompts to sample{bad}",
            expected="at least one prompt",
            where=f"sources {names}",
            remedy="check that the sources' files have rows and their limits are above zero",
        )
