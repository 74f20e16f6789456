"""The card of a dataset folder for the Hugging Face hub: what is in it and where it came from."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import polars as pl
import yaml

from stages.tables import SPLITS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

COLUMNS = {
    "prompt": "the conversation, a list of messages with `role` and `content`",
    "chosen": "the preferred answer, one assistant message",
    "rejected": "the other one",
    "pair_id": "the pair's name in prefmill's lineage",
    "chosen_score": "in the scorer's unit",
    "rejected_score": "in the scorer's unit",
    "margin": "`chosen_score - rejected_score`",
    "confidence": "probability that the label is right, where known",
    "length_weight": "what it counts so that length does not tell the chosen, where weighed",
}

INTRODUCTION = (
    "For DPO, in TRL's conversational format with an explicit prompt. Made by prefmill, whose "
    "lineage says of every pair why it is here."
)

SIZES = ((10**3, "n<1K"), (10**4, "1K<n<10K"), (10**5, "10K<n<100K"), (10**6, "100K<n<1M"))
"""The hub's `size_categories` up to a million rows."""

LONGEST_NAME = 80

HUB_SPLITS = {"train": "train", "heldout": "test"}
"""The hub's names of the splits."""


@dataclass(frozen=True)
class DatasetFacts:
    """What a card says. The names in it come from data and are written as text."""

    steps: pl.DataFrame
    """`step`, then the rows that it left, a column a split; the last step is the kept pairs."""
    origins: pl.DataFrame
    """`source`, `strategy`, `scorer`, then the kept pairs, a column a split."""
    drops: pl.DataFrame
    """`filter`, `reason`, `pairs`; a pair counts for the first filter that drops it."""
    health: pl.DataFrame
    """`scorer_health` rows."""
    license: str | None


def dataset_facts(tables: Mapping[str, pl.LazyFrame], licence: str | None) -> DatasetFacts:
    """Return the facts of prompts, candidates, pairs, decisions and scorer_health."""
    prompts = tables["prompts"].filter(pl.col("split").is_in(SPLITS))
    prompts = prompts.select("prompt_id", "source", "split")
    drops = tables["decisions"].filter(~pl.col("kept")).group_by("pair_id")
    first = drops.agg(pl.col("filter", "reason").sort_by("position").first())
    kept = tables["pairs"].join(first, on="pair_id", how="anti")
    steps = {"prompts": prompts, "candidates": tables["candidates"], "pairs": tables["pairs"]}
    origin = ["source", "strategy", "scorer"]
    by_reason = first.group_by("filter", "reason").agg(pairs=pl.len()).collect()
    return DatasetFacts(
        steps=pl.concat(
            _by_split(frame.select("prompt_id", step=pl.lit(step)), prompts, ["step"])
            for step, frame in (*steps.items(), ("kept pairs", kept))
        ),
        origins=_by_split(kept, prompts, origin),
        drops=by_reason.sort("pairs", "filter", "reason", descending=[True, False, False]),
        health=tables["scorer_health"].sort("scorer", "measure").collect(),
        license=licence,
    )


def _by_split(rows: pl.LazyFrame, prompts: pl.LazyFrame, by: list[str]) -> pl.DataFrame:
    """Return how many rows each value of ``by`` has, a column a split; sorted."""
    counts = [
        (pl.col("split") == split).sum().cast(pl.Int64).alias(name)
        for split, name in HUB_SPLITS.items()
    ]
    with_splits = rows.join(prompts, on="prompt_id", how="inner")
    return with_splits.group_by(by).agg(counts).sort(by).collect(engine="streaming")


def dataset_card(facts: DatasetFacts) -> bytes:
    """Return README.md: a YAML header that `datasets.load_dataset` reads, then the card."""
    parts = [
        f"---\n{_header(facts)}---",
        "# Preference pairs",
        INTRODUCTION,
        "## Columns",
        _table(("column", "meaning"), ((f"`{name}`", text) for name, text in COLUMNS.items())),
        "## Sources",
        "Kept pairs of each source, made by these strategies from the scores of these scorers:",
        _frame(facts.origins),
        "## Curation",
        "What each step left:",
        _frame(facts.steps),
        "Pairs that filters dropped, each counted for the first filter that drops it:",
        _frame(facts.drops),
        "## Scorers",
        "What was measured on them, and the limits that they had to keep:",
        _frame(facts.health.select("scorer", "measure", "value", "count", "limit", "passed")),
        "## Licence",
        f"{facts.license}, as stated by who made the dataset."
        if facts.license
        else "None is stated. What the sources and the models' makers allow holds.",
    ]
    return ("\n\n".join(parts) + "\n").encode()


def escaped(text: str) -> str:
    r"""Return ``text`` as Markdown that shows it: no markup, link or end of line in it has effect.

    A backslash before any ASCII punctuation makes it plain (CommonMark 0.31, 2.4). Longer texts
    are cut.
    """
    cut = text if len(text) <= LONGEST_NAME else text[: LONGEST_NAME - 1] + "…"
    printable = "".join(c if c.isprintable() else " " for c in cut)
    return re.sub(f"([{re.escape(string.punctuation)}])", r"\\\1", printable)


def _header(facts: DatasetFacts) -> str:
    kept = facts.steps.filter(step="kept pairs").select(HUB_SPLITS.values())
    # `load_dataset` fails on a split without rows, so such a one is not named.
    splits = {name: rows for row in kept.to_dicts() for name, rows in row.items() if rows}
    total = sum(splits.values())
    size = next((name for limit, name in SIZES if total < limit), "n>1M")
    header: dict[str, Any] = {
        **({"license": facts.license} if facts.license else {}),
        "task_categories": ["text-generation"],
        "tags": ["dpo", "preference", "prefmill", "trl"],
        "size_categories": [size],
        "configs": [
            {
                "config_name": "default",
                "data_files": [
                    {"split": split, "path": f"data/{split}-*.parquet"} for split in splits
                ],
            }
        ],
        "dataset_info": {
            "config_name": "default",
            "features": [_feature(name) for name in COLUMNS],
        },
    }
    return yaml.safe_dump(header, sort_keys=False, allow_unicode=True)


def _feature(name: str) -> dict[str, Any]:
    """Return a column's type in the words of the `datasets` library."""
    if name in {"prompt", "chosen", "rejected"}:
        # Made anew each time: YAML would write one list, and references that the hub can't read.
        turn = [{"name": part, "dtype": "string"} for part in ("role", "content")]
        return {"name": name, "list": turn}
    return {"name": name, "dtype": "string" if name == "pair_id" else "float64"}


def _frame(frame: pl.DataFrame) -> str:
    cells = ([_cell(value) for value in row] for row in frame.iter_rows())
    return _table(frame.columns, cells) if frame.height else "None."


def _cell(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.4g}" if isinstance(value, float) else escaped(str(value))


def _table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)
