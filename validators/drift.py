"""How a run's numbers lie: within bands, and against those of the accepted run before it.

Two measures of drift. The population stability index over the ten deciles of the run before,
``sum((now - before) * ln(now / before))`` of the bins' shares (Siddiqi, Credit Risk Scorecards,
2006): by convention below 0.1 nothing has changed, and above 0.25 much has. And for numbers the
two-sample Kolmogorov-Smirnov distance, the largest gap between the two cumulated shares.

Small runs differ by chance alone. With n and m independent values the index is about
``(1/n + 1/m) * chi2(bins - 1)`` without any drift (Yurdakul and Naranjo, Journal of Risk Model
Validation 14/4, 2020), so no limit is set below what chance exceeds once in a hundred times. A
prompt's answers resemble each other: prompts are what counts as independent.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

import polars as pl
import pydantic

from stages.configuration import Config
from stages.errors import ValidationError, nearest
from stages.tables import DRIFT, GOLD_SPLIT

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

VERSION = 1

PROMPTS_SAMPLED = 50_000
"""Distributions are those of this many prompts at most, whole with their answers and pairs."""

CHANCE = 0.01
"""How often chance alone may exceed a limit."""

BINS = 10

COLUMNS = {
    "prompts": ["prompt_id", "source", "stratum", "split"],
    "candidates": ["prompt_id", "completion_tokens"],
    "scores": ["prompt_id", "scorer", "score"],
    "pairs": ["pair_id", "prompt_id", "margin", "chosen_score", "rejected_score",
              "chosen_tokens", "rejected_tokens"],
    "decisions": ["pair_id", "kept"],
}  # fmt: skip
"""What is read of each table."""

NUMBERS = (
    "completion_tokens",
    "margin",
    "chosen_score",
    "rejected_score",
    "chosen_tokens",
    "rejected_tokens",
)
"""Numeric measures besides `score:SCORER`; all but the first are of kept pairs."""

Limit = Annotated[float, pydantic.Field(ge=0)]


class DriftConfig(Config):
    """How far a run may be from the accepted run before it. Null: measured, no limit."""

    maximum_psi: Limit | None = 0.25
    """Population stability index of any measure."""
    maximum_ks: Limit | None = 0.2
    """Kolmogorov-Smirnov distance of any numeric measure, 0 to 1."""


class Band(Config):
    """Between what a statistic of one measure must lie."""

    measure: str
    """`completion_tokens`, `score:SCORER`, or of kept pairs `margin`, `chosen_score`,
    `rejected_score`, `chosen_tokens`, `rejected_tokens`."""
    statistic: Literal["mean", "sd"] = "mean"
    """The mean or the standard deviation."""
    minimum: float | None = None
    """In the measure's unit."""
    maximum: float | None = None
    """In the measure's unit."""

    @pydantic.model_validator(mode="after")
    def _names_a_measure(self) -> Self:
        if self.measure not in NUMBERS and not self.measure.startswith("score:"):
            known = [*NUMBERS, "score:SCORER"]
            near = nearest(self.measure, known) or f"; known: {', '.join(known)}"
            raise ValueError(f"unknown measure {self.measure!r}{near}")
        if self.minimum is None and self.maximum is None:
            raise ValueError(f"the band of {self.measure!r} has neither a minimum nor a maximum")
        return self


class ValidationConfig(Config):
    """What is expected of a run's numbers as a whole."""

    drift: DriftConfig = DriftConfig()
    bands: tuple[Band, ...] = ()
    """Bands that means and standard deviations must lie in."""
    severity: Literal["must", "should"] = "should"
    """What a limit broken means: `should` warns, `must` stops the run before export."""


@dataclass(frozen=True)
class Profile:
    """The distributions of one run, of a sample of its prompts."""

    run_id: str
    prompts: int
    """In the sample."""
    numbers: Mapping[str, np.ndarray[Any, Any]]
    """Measure to its values, none of them null."""
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Measure to how often each of its categories is there."""


def profile(run_id: str, tables: Mapping[str, pl.LazyFrame]) -> Profile:
    """Return the distributions of a run; ``tables`` holds those of ``COLUMNS`` by name.

    At most 50,000 prompts are looked at (chosen by the hash of their id), so that what is held in
    memory does not grow with the run.
    """
    real = tables["prompts"].filter(pl.col("split") != GOLD_SPLIT)
    step = real.select(pl.len()).collect().item() // PROMPTS_SAMPLED + 1
    prompts = real.filter(pl.col("prompt_id").hash() % step == 0).collect(engine="streaming")
    sampled = {
        name: _of_prompts(tables[name].select(COLUMNS[name]), prompts)
        for name in ("candidates", "scores", "pairs")
    }
    proposed = sampled["pairs"]["pair_id"].implode()
    dropped = tables["decisions"].filter(~pl.col("kept"), pl.col("pair_id").is_in(proposed))
    left = dropped.select("pair_id").collect(engine="streaming")
    kept = sampled["pairs"].join(left, on="pair_id", how="anti")
    numbers = {"completion_tokens": sampled["candidates"]["completion_tokens"]}
    numbers |= {name: kept[name] for name in NUMBERS[1:]}
    for (scorer,), rows in sampled["scores"].sort("scorer").group_by("scorer", maintain_order=True):
        numbers[f"score:{scorer}"] = rows["score"]
    with_pair = prompts["prompt_id"].is_in(kept["prompt_id"].implode())
    named = prompts.with_columns(
        prompt_with_pair=pl.when(with_pair).then(pl.lit("yes")).otherwise(pl.lit("no"))
    )
    counts = {
        name: dict(named[name].value_counts().iter_rows())
        for name in ("source", "stratum", "prompt_with_pair")
    }
    # Sorted: a sum must not depend on the order in which threads found its terms.
    values = {name: series.drop_nulls().sort().to_numpy() for name, series in numbers.items()}
    return Profile(run_id, prompts.height, values, counts)


def _of_prompts(rows: pl.LazyFrame, prompts: pl.DataFrame) -> pl.DataFrame:
    ids = prompts.lazy().select("prompt_id")
    return rows.join(ids, on="prompt_id", how="semi").collect(engine="streaming")


def drift(now: Profile, before: Profile | None, config: ValidationConfig) -> pl.DataFrame:
    """Return the `drift` table: mean, standard deviation, index and distance of every measure.

    Without a run ``before`` there are no index and no distance, and only bands are judged.
    """
    bands = {(band.measure, band.statistic): band for band in config.bands}
    rows = []
    for measure, values in now.numbers.items():
        for statistic in ("mean", "sd"):
            band = bands.pop((measure, statistic), None)
            value = _moment(values, statistic)
            limits = (band.minimum, band.maximum) if band else (None, None)
            rows.append(_row(measure, statistic, value, limits, len(values)))
    # A band on what was not measured at all is broken, not forgotten.
    rows += [_row(m, s, None, (b.minimum, b.maximum), 0) for (m, s), b in bands.items()]
    if before is not None:
        rows += _against(now, before, config.drift)
    return pl.DataFrame(rows, schema=DRIFT.empty().schema)


def require_within(rows: pl.DataFrame, config: ValidationConfig) -> None:
    """Return unless a limit is broken and the configuration makes that a ``must``.

    Raises:
        ValidationError: names each measure, its value and its limits.
    """
    broken = rows.filter(~pl.col("passed"))
    if config.severity == "should" or broken.is_empty():
        return
    raise ValidationError(
        "; ".join(
            f"{row['statistic']} of {row['measure']} is "
            f"{'not measured' if row['value'] is None else format(row['value'], '.4g')} "
            f"(limits {_shown(row['minimum'])} to {_shown(row['maximum'])}"
            f"{', run before: ' + row['run_before'] if row['run_before'] else ''})"
            for row in broken.iter_rows(named=True)
        ),
        expected="every measure within `validation.bands` and `validation.drift`",
        where="stage drift, before export",
        remedy="find what changed with `FROM drift`; if it is meant, widen the limit or set "
        "`validation.severity: should`",
    )


def _shown(limit: float | None) -> str:
    return "any" if limit is None else format(limit, ".4g")


def _against(now: Profile, before: Profile, config: DriftConfig) -> list[dict[str, object]]:
    """Return the rows that compare what both runs measured."""
    rows = []
    for measure, new in now.numbers.items():
        old = before.numbers.get(measure)
        if old is None or not len(old) or not len(new):
            continue
        compared = _Compared(now, before, measure, (len(new), len(old)))
        index, bins = psi(*binned(new, old))
        by_chance = _psi_by_chance(compared.values, bins)
        rows.append(compared.row("psi", index, config.maximum_psi, by_chance))
        by_chance = _ks_by_chance(compared.values)
        rows.append(compared.row("ks", ks_distance(new, old), config.maximum_ks, by_chance))
    for measure, counted in now.counts.items():
        earlier = before.counts.get(measure, {})
        names = sorted({*counted, *earlier})
        counts = [[of.get(name, 0) for name in names] for of in (counted, earlier)]
        compared = _Compared(now, before, measure, (sum(counts[0]), sum(counts[1])))
        index, bins = psi(*counts)
        by_chance = _psi_by_chance(compared.values, bins)
        rows.append(compared.row("psi", index, config.maximum_psi, by_chance))
    return rows


@dataclass(frozen=True)
class _Compared:
    """One measure of two runs."""

    now: Profile
    before: Profile
    measure: str
    sizes: tuple[int, int]
    """Values of this run and of the one before."""

    @property
    def values(self) -> float:
        """1/n + 1/m of the independent values: not more than there are prompts."""
        prompts = self.now.prompts, self.before.prompts
        return sum(1 / max(min(pair), 1) for pair in zip(self.sizes, prompts, strict=True))

    def row(
        self, statistic: str, value: float, limit: float | None, by_chance: float
    ) -> dict[str, object]:
        """Return a row of DRIFT; its limit is not below what comes by chance."""
        maximum = None if limit is None else max(limit, by_chance)
        return {
            **_row(self.measure, statistic, value, (None, maximum), self.sizes[0]),
            "rows_before": self.sizes[1],
            "run_before": self.before.run_id,
        }


def binned(new: np.ndarray[Any, Any], old: np.ndarray[Any, Any]) -> tuple[list[int], list[int]]:
    """Return how many of ``new`` and of ``old`` lie between the deciles of ``old``.

    Its least and greatest value are bounds too: a rule's rare 1 among zeros is a bin of its own.
    """
    import numpy as np

    edges = np.unique(np.quantile(old, np.arange(BINS + 1) / BINS, method="inverted_cdf"))
    places = (np.searchsorted(edges, values, side="right") for values in (new, old))
    counts = [np.bincount(place, minlength=len(edges) + 1).tolist() for place in places]
    return counts[0], counts[1]


def psi(new: list[int], old: list[int]) -> tuple[float, int]:
    """Return the population stability index of counts per bin, and how many bins are not empty.

    Half a row is added to each bin, so that one that is empty on one side does not give infinity.
    """
    import numpy as np

    counts = np.array([new, old], dtype=float)
    counts = counts[:, counts.sum(axis=0) > 0]
    shares = (counts + 0.5) / (counts + 0.5).sum(axis=1, keepdims=True)
    now, before = shares
    return float(((now - before) * np.log(now / before)).sum()), counts.shape[1]


def ks_distance(new: np.ndarray[Any, Any], old: np.ndarray[Any, Any]) -> float:
    """Return the largest gap between the two cumulated distributions, 0 to 1."""
    import numpy as np
    from scipy.stats import ks_2samp

    with np.errstate(divide="ignore"):  # its probability, not used here, of one value each
        return float(ks_2samp(new, old, method="asymp").statistic)


def _psi_by_chance(values: float, bins: int) -> float:
    """Return what the index exceeds by chance once in a hundred; ``values`` is 1/n + 1/m."""
    from scipy.stats import chi2

    return values * float(chi2.isf(CHANCE, bins - 1)) if bins > 1 else 0.0


def _ks_by_chance(values: float) -> float:
    """Return what the distance exceeds by chance once in a hundred; ``values`` is 1/n + 1/m."""
    from scipy.stats import kstwobign

    return float(kstwobign.isf(CHANCE) * values**0.5)


def _moment(values: np.ndarray[Any, Any], statistic: str) -> float | None:
    if statistic == "mean":
        return float(values.mean()) if len(values) else None
    return float(values.std(ddof=1)) if len(values) > 1 else None


def _row(
    measure: str,
    statistic: str,
    value: float | None,
    limits: tuple[float | None, float | None],
    rows: int = 0,
) -> dict[str, object]:
    """Return one row of DRIFT; what has a limit and no value has not passed."""
    low, high = limits
    within = value is not None and (low is None or value >= low) and (high is None or value <= high)
    return {
        "measure": measure,
        "statistic": statistic,
        "value": value,
        "minimum": low,
        "maximum": high,
        "passed": None if low is None and high is None else within,
        "rows": rows,
        "rows_before": None,
        "run_before": None,
    }
