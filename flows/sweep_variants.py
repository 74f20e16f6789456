"""What a sweep compares: every strategy by every scorer under every set of filters."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import yaml

from flows.configuration import PipelineConfig, read_yaml
from stages.errors import ConfigError
from stages.filter_settings import FilteringConfig
from stages.pairing import STRATEGIES_WITH, PairingConfig
from stages.tables import EDITED_STRATEGY

if TYPE_CHECKING:
    from collections.abc import Sequence

STRATEGIES = (
    "best_vs_worst",
    "best_vs_random",
    "best_vs_quantile",
    "best_vs_mean_minus_2_sigma",
    "max_margin_k",
    "all_pairs_above_margin",
)
"""Compared when none is named: those that any scorer's scores make pairs by."""

AS_IN_RUN = "run"
"""Names the run's own filters."""


class Variant(NamedTuple):
    """One dataset to make: what it is called, and its whole configuration."""

    strategy: str
    scorer: str
    filters: str
    config: PipelineConfig


def variants(
    config: PipelineConfig,
    strategies: Sequence[str] = (),
    scorers: Sequence[str] = (),
    filters: Sequence[str] = (),
) -> list[Variant]:
    """Return all combinations; what is not named is as in ``config``, but for the strategies.

    Args:
        config: the run's own.
        strategies: `NAME` or `NAME:KEY=VALUE:KEY=VALUE` with the strategy's parameters.
        scorers: `NAME`, or a mix `NAME*WEIGHT+NAME*WEIGHT`.
        filters: `run` for the run's own, or a YAML file that has a section `filters` or maps names
            to such sections.

    Raises:
        ConfigError: one of them is unknown or cannot be meant.
        MissingFileError: a file is not there.
    """
    sections = [(name, _pairing(config.pairing, name)) for name in strategies or STRATEGIES]
    by = [(name, _scorer(name)) for name in scorers] or [(config.pairing.scorer_name, {})]
    kept_by = [each for name in filters or (AS_IN_RUN,) for each in _filters(config, name)]
    plain = config.model_dump(mode="json")
    return [
        Variant(
            strategy,
            scorer,
            named,
            PipelineConfig.checked(
                {
                    **plain,
                    "pairing": _by(pairing, decides),
                    "filters": filtering,
                    # Read with one strategy, and refused with the others.
                    "edits": plain["edits"] if pairing["strategy"] == EDITED_STRATEGY else None,
                },
                f"sweep, {strategy} by {scorer}",
            ),
        )
        for (strategy, pairing), (scorer, decides), (named, filtering) in product(
            sections, by, kept_by
        )
    ]


def _pairing(run: PairingConfig, written: str) -> dict[str, Any]:
    """Return the section `pairing`: the run's, with this strategy and its parameters."""
    name, *pairs = written.split(":")
    parameters = dict(pair.partition("=")[::2] for pair in pairs)
    kept = {
        key: value
        for key, value in run.model_dump(mode="json").items()
        if name in STRATEGIES_WITH.get(key, (name,))
    }
    read = {key: _value(value, written) for key, value in parameters.items()}
    return {**kept, "strategy": name, **read}


def _scorer(written: str) -> dict[str, Any]:
    """Return the keys of `pairing` that say who decides."""
    if "*" not in written:
        return {"scorer": written, "weights": {}}
    parts = [part.rpartition("*") for part in written.split("+")]
    return {"weights": {name: _value(weight, written) for name, _, weight in parts}}


def _value(text: str, written: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        raise ConfigError(
            f"{text!r} is no value",
            expected="NAME or NAME:KEY=VALUE of a strategy, NAME*WEIGHT of a scorer",
            where=f"{written!r} of the sweep",
            remedy="commas are between strategies or scorers: they can't be in a value",
        ) from None


def _by(pairing: dict[str, Any], decides: dict[str, Any]) -> dict[str, Any]:
    """Return ``pairing`` by other scorers, of which none is asked to agree with itself."""
    both = {**pairing, **decides}
    deciding = set(both["weights"]) or {both["scorer"]}
    agreeing = [name for name in both["agreeing_scorers"] if name not in deciding]
    return {**both, "agreeing_scorers": agreeing}


def _filters(config: PipelineConfig, written: str) -> list[tuple[str, dict[str, Any]]]:
    """Return the named sets of filters that ``written`` stands for."""
    if written == AS_IN_RUN:
        return [(written, config.filters.model_dump(mode="json"))]
    path = Path(written)
    if path.suffix not in {".yaml", ".yml"}:
        raise ConfigError(
            f"unknown filters {written!r}",
            expected=f"{AS_IN_RUN!r} or a YAML file",
            where="--filters",
        )
    values = read_yaml(path)
    sets = {path.stem: values["filters"]} if "filters" in values else values
    checked = [
        (name, FilteringConfig.checked(section or {}, f"{written}, {name}"))
        for name, section in sets.items()
    ]
    return [(str(name), section.model_dump(mode="json")) for name, section in checked]
