"""The capability card: what policies can do besides what they were trained on, and what they lost.

Every capability is measured item by item (a prompt, a text, a question), the same items for every
policy; so each policy is compared with the first one on paired items.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Self

import numpy as np
import polars as pl
import pydantic

from stages.configuration import NOT_EMPTY, OPERATIONAL, Config
from stages.tables import CAPABILITIES, CAPABILITY_ITEMS
from trainer.bootstrap import interval, resampled_means
from trainer.evaluation import EVEN, EVERY_STRATUM, LENGTH_CONTROLLED
from trainer.win_rate import length_controlled

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray

INSTRUCTIONS = "instruction_following"
TASKS = "tasks"
TEXTS = "texts"
LM_EVAL = "lm_eval"
"""The capability `lm_eval/TASK` is one task of lm-eval."""

Z95 = 1.959963984540054
"""Of the standard normal distribution, two-sided at 95 %."""

NAMED = Annotated[str, pydantic.Field(pattern=r"^[a-z0-9][a-z0-9_-]{0,40}$")]


class JudgedPromptsConfig(Config):
    """Your own prompts, answered by every policy and rated by a scorer of `scoring.scorers`."""

    name: NAMED
    """What the card calls it."""
    path: Path
    """A JSONL, Parquet or CSV file: `prompt`, `messages` or `turns` (MT-Bench: one or two).

    `reference` (a text, or one for each turn) is shown to judges whose rubric has a place for it.
    """
    scorer: str
    """One that rates answers (MT-Bench) or a pairwise judge (AlpacaEval)."""


class LmEvalConfig(Config):
    """Tasks of lm-eval (Gao et al., EleutherAI's evaluation harness), run in this process.

    Needs the extra `lm-eval`. A task's data are downloaded by it, unless the task says otherwise.
    """

    tasks: Annotated[tuple[str, ...], NOT_EMPTY]
    """Names such as `ifeval`, `mmlu`, `arc_challenge`; a group's tasks are all run."""
    include_path: Path | None = None
    """A folder with task files (YAML) of your own."""
    limit: pydantic.PositiveInt | None = None
    """Only so many items of each task."""
    few_shot: pydantic.NonNegativeInt | None = None
    """Examples before each question; null is the task's own number."""
    chat_template: bool = True
    """Ask through the policy's chat template."""
    batch_size: Annotated[pydantic.PositiveInt, OPERATIONAL] = 8
    """Questions at once."""


class CardConfig(Config):
    """What is on a capability card; every answer is greedy, one a prompt."""

    instructions: Path | None = None
    """Prompts with instructions that rules check (`prompt`, `truth`); null is the bundled file,
    `data/instructions.jsonl`."""
    tasks_per_family: pydantic.NonNegativeInt = 40
    """Held-out prompts of each bundled task family; 0: none."""
    judged: tuple[JudgedPromptsConfig, ...] = ()
    """Prompts that a scorer rates."""
    lm_eval: LmEvalConfig | None = None
    """Tasks of lm-eval."""

    @pydantic.model_validator(mode="after")
    def _distinct_names(self) -> Self:
        names = [INSTRUCTIONS, TASKS, TEXTS, *(judged.name for judged in self.judged)]
        if len(set(names)) < len(names):
            raise ValueError(f"two capabilities have the same name: {', '.join(names)}")
        return self

    def named(self, *, texts: bool) -> list[str]:
        """Return the capabilities of the card; ``texts``: with a file of texts to read."""
        given = [name for name, there in ((TASKS, self.tasks_per_family), (TEXTS, texts)) if there]
        own = [judged.name for judged in self.judged]
        tasks = self.lm_eval.tasks if self.lm_eval else ()
        return [INSTRUCTIONS, *given, *own, *(f"{LM_EVAL}/{task}" for task in tasks)]


def as_items(rows: pl.DataFrame, **same: Any) -> pl.DataFrame:
    """Return ``rows`` as CAPABILITY_ITEMS; ``same`` are the columns with one value."""
    filled = {"stratum": EVERY_STRATUM, "weight": 1.0, "higher_is_better": True, **same}
    absent = {name: pl.lit(value) for name, value in filled.items() if name not in rows.columns}
    return rows.with_columns(**absent).select(
        pl.col(name).cast(kind) for name, kind in CAPABILITY_ITEMS.empty().schema.items()
    )


def capabilities(
    items: pl.DataFrame, tolerances: Mapping[str, float], seed: int, resamples: int
) -> pl.DataFrame:
    """Return the CAPABILITIES rows of policies, each compared with the one that comes first.

    A mean is weighted by `weight`. Its interval is Wilson's score interval (1927) where every
    value is 0 or 1, else the percentile bootstrap's over items; the difference's is the paired
    bootstrap's. Strata have rows of their own where a measure has several.

    Args:
        items: rows of CAPABILITY_ITEMS; a policy's name is its own.
        tolerances: by capability, how much worse a policy may be; without one 0.
        seed: of the resampling.
        resamples: bootstrap draws.
    """
    keys = ["capability", "metric", "stratum"]
    several = pl.col("stratum").n_unique().over("capability", "metric") > 1
    whole = items.with_columns(stratum=pl.lit(EVERY_STRATUM))
    strata = pl.concat([whole, items.filter(several & (pl.col("stratum") != EVERY_STRATUM))])
    named = list(dict.fromkeys(items["capability"]))
    groups = strata.partition_by(keys, as_dict=True, maintain_order=True).items()
    rows: list[dict[str, Any]] = []
    for key, group in sorted(groups, key=lambda item: named.index(item[0][0])):
        tolerance = tolerances.get(str(key[0]), 0.0)
        facts = dict(zip(keys, key, strict=True)) | {"tolerance": tolerance}
        rows += [facts | row for row in _compared(group, items, tolerance, (seed, resamples))]
    return pl.DataFrame(rows, schema=CAPABILITIES.empty().schema)


def _compared(
    group: pl.DataFrame, items: pl.DataFrame, tolerance: float, drawn: tuple[int, int]
) -> Iterator[dict[str, Any]]:
    """Yield one measure of every policy that has it, in the order of ``items``."""
    policies = items.select("policy", "weights_hash").unique(maintain_order=True).rows()
    first_name, first_hash = policies[0]
    first = group.filter(policy=first_name)
    for policy, weights in policies:
        own = group.filter(policy=policy)
        if own.is_empty():
            continue
        low, high = value_interval(own["value"].to_numpy(), own["weight"].to_numpy(), *drawn)
        better = bool(own["higher_is_better"][0])
        row = {
            "policy": policy,
            "weights_hash": weights,
            "first_weights_hash": first_hash,
            "items": own.height,
            "value": float(np.average(own["value"].to_numpy(), weights=own["weight"].to_numpy())),
            "value_low": low,
            "value_high": high,
            "higher_is_better": better,
            "regressed": False,
        }
        if policy != first_name:
            row |= _difference(own, first, drawn)
            if row.get("paired"):
                worse = row["high"] < -tolerance if better else row["low"] > tolerance
                row["regressed"] = bool(worse)
        yield row


def _difference(own: pl.DataFrame, first: pl.DataFrame, drawn: tuple[int, int]) -> dict[str, Any]:
    """Return how two policies differ on the items that both have; nothing where there are none."""
    pairs = own.join(first.select("item", former="value"), on="item").sort("item")
    if pairs.is_empty():
        return {"paired": 0}
    gaps, weights = (pairs["value"] - pairs["former"]).to_numpy(), pairs["weight"].to_numpy()
    low, high = interval(_resampled(gaps, weights, *drawn))
    mean = float(np.average(gaps, weights=weights))
    return {"paired": pairs.height, "difference": mean, "low": low, "high": high}


def controlled_row(
    met: pl.DataFrame,
    facts: Mapping[str, str],
    tolerances: Mapping[str, float],
    seed: int,
    resamples: int,
) -> pl.DataFrame:
    """Return the CAPABILITIES row of a policy's win rate at equal lengths against the first one.

    Args:
        met: prompt_id, win, length_gap: one duel a prompt, as `win_rate.length_controlled` takes.
        facts: policy, weights_hash, first_weights_hash and capability.
        tolerances: by capability, how much less than 0.5 it may be.
        seed: of the resampling.
        resamples: bootstrap draws.
    """
    if met.is_empty():
        return CAPABILITIES.empty()
    rate, (low, high) = length_controlled(met, seed, resamples)
    tolerance = tolerances.get(facts["capability"], 0.0)
    row = {
        "metric": LENGTH_CONTROLLED,
        "stratum": EVERY_STRATUM,
        "items": met.height,
        "value": rate,
        "value_low": low,
        "value_high": high,
        "paired": met.height,
        "difference": rate - EVEN,
        "low": low - EVEN,
        "high": high - EVEN,
        "higher_is_better": True,
        "tolerance": tolerance,
        "regressed": high - EVEN < -tolerance,
    }
    return pl.DataFrame([{**facts, **row}], schema=CAPABILITIES.empty().schema)


def value_interval(
    values: NDArray[np.float64], weights: NDArray[np.float64], seed: int, resamples: int
) -> tuple[float, float]:
    """Return the ends of a mean's 95 % interval: Wilson's of a share, else the bootstrap's."""
    if np.isin(values, (0, 1)).all() and (weights == 1).all():
        return wilson(int(values.sum()), len(values))
    return interval(_resampled(values, weights, seed, resamples))


def wilson(met: int, count: int) -> tuple[float, float]:
    """Return the ends of the 95 % score interval of a share (Wilson 1927, JASA 22, 209)."""
    share, square = met / count, Z95 * Z95
    centre = (share + square / (2 * count)) / (1 + square / count)
    variance = share * (1 - share) / count + square / (4 * count * count)
    half = Z95 * variance**0.5 / (1 + square / count)
    return max(0.0, centre - half), min(1.0, centre + half)


def _resampled(
    values: NDArray[np.float64], weights: NDArray[np.float64], seed: int, resamples: int
) -> NDArray[np.float64]:
    """Return weighted means of ``values``, items redrawn."""
    means = resampled_means(np.column_stack([values * weights, weights]), seed, resamples)
    return means[:, 0] / means[:, 1]
