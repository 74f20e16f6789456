"""What changed between two runs: configuration, counts, quality, pairs, exports and training."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from lineage.pair_changes import pair_changes
from lineage.query import REBUILD
from lineage.records import LATEST, list_runs, require_run
from lineage.row_reader import reading
from stages.errors import DataError, UnknownIdError

if TYPE_CHECKING:
    from lineage.row_reader import Row, RowReader
    from lineage.workspace import Workspace

NUMBERS = (int, float)


@dataclass(frozen=True)
class Section:
    """One kind of facts that both runs have: SQL, and the columns that name a fact.

    The SQL is bound ``$runs``; it returns `run_id`, the keys and one column a measure.
    """

    title: str
    sql: str
    keys: tuple[str, ...] = ()


@dataclass(frozen=True)
class Difference:
    """Two runs, and for every section the facts of both."""

    before: Row
    after: Row
    config: list[Row]
    pairs: Row
    sections: dict[str, list[Row]] = field(default_factory=dict)

    def to_json(self) -> Row:
        """The difference as values that ``json.dumps`` takes."""
        heads = {"before": self.before, "after": self.after}
        return {**heads, "config": self.config, "pairs": self.pairs, **self.sections}


def diff(workspace: Workspace, before: str, after: str) -> Difference:
    """Return what changed from the run ``before`` to ``after`` (ids, prefixes or ``latest``).

    Raises:
        UnknownIdError: there is no such run, or it is not in `lineage.duckdb` yet.
        DataError: both are one run.
        MissingFileError: nothing was published yet.
    """
    runs = [require_run(workspace, run_id).run_id for run_id in (before, after)]
    if runs[0] == runs[1]:
        raise DataError(f"both are the run {runs[0]}", expected="two runs")
    with reading(workspace) as reader:
        heads = [_head(reader, run_id) for run_id in runs]
        configs = [flat(json.loads(head.pop("config"))) for head in heads]
        return Difference(
            heads[0],
            heads[1],
            _changed_keys(*configs),
            pair_changes(reader, *runs),
            {name: _facts(reader, section, runs) for name, section in SECTIONS.items()},
        )


def previous(workspace: Workspace, run_id: str = LATEST) -> tuple[str, str]:
    """Return the ids of the run before ``run_id`` of its name and flow, and of ``run_id`` itself.

    Raises:
        UnknownIdError: there is no such run, or none before it.
    """
    run = require_run(workspace, run_id)
    runs = list_runs(workspace)
    earlier = runs[runs.index(run) + 1 :]
    alike = [r.run_id for r in earlier if (r.name, r.flow) == (run.name, run.flow)]
    if not alike:
        raise UnknownIdError(
            f"no {run.flow} named {run.name!r} was started before {run.run_id}",
            expected="two runs to compare",
            remedy="name both: `prefmill diff RUN_A RUN_B`; `prefmill runs` lists them",
        )
    return alike[0], run.run_id


def _head(reader: RowReader, run_id: str) -> Row:
    rows = reader.rows("SELECT * FROM runs WHERE run_id = ?", run_id)
    if not rows:
        raise UnknownIdError(f"run {run_id} is not in lineage.duckdb yet", remedy=REBUILD)
    return rows[0]


def flat(value: Any, key: str = "") -> Row:
    """Return a configuration as dotted keys and their values.

    Items of a list that have a name are told by it: ``scoring.scorers[rules].verifier``.
    """
    if isinstance(value, dict) and value:
        items = [(f"{key}.{name}" if key else name, part) for name, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, dict) for part in value):
        named = [
            part.get("name", place) if isinstance(part, dict) else place
            for place, part in enumerate(value)
        ]
        items = [(f"{key}[{name}]", part) for name, part in zip(named, value, strict=True)]
    else:
        return {key: value}
    return {name: leaf for path, part in items for name, leaf in flat(part, path).items()}


def _changed_keys(before: Row, after: Row) -> list[Row]:
    keys = sorted({*before, *after})
    rows = [{"key": key, "before": before.get(key), "after": after.get(key)} for key in keys]
    return [row for row in rows if row["before"] != row["after"]]


def _facts(reader: RowReader, section: Section, runs: list[str]) -> list[Row]:
    """Return a row per key and measure: before, after and, of numbers, change."""
    values: dict[tuple[Any, ...], dict[str, Any]] = {}
    measures: list[str] = []
    for row in reader.named_rows(section.sql, {"runs": runs}):
        measures = [name for name in row if name not in ("run_id", *section.keys)]
        own = tuple(row[key] for key in section.keys)
        for measure in measures:
            values.setdefault((*own, measure), {})[row["run_id"]] = _rounded(row[measure])
    names = [*section.keys, "measure"]
    rows = []
    for key, by_run in values.items():
        before, after = (by_run.get(run_id) for run_id in runs)
        fact = {**dict(zip(names, key, strict=True)), "before": before, "after": after}
        if len(measures) == 1:
            del fact["measure"]
        rows.append({**fact, "change": _change(before, after)})
    return rows


def _rounded(value: Any) -> Any:
    """Return a mean without its last digits, which depend on the order its threads added in."""
    return float(f"{value:.12g}") if isinstance(value, float) else value


def _change(before: Any, after: Any) -> Any:
    both = [before, after]
    if any(isinstance(v, bool) or not isinstance(v, NUMBERS) for v in both):
        return None
    return after - before


SECTIONS = {
    "stages": Section(
        "Stages: which output each run used",
        """SELECT run_id, stage, stage_key FROM stage_runs
        WHERE list_contains($runs::VARCHAR[], run_id) ORDER BY position, stage""",
        ("stage",),
    ),
    "steps": Section(
        "Rows left after each step",
        """SELECT run_id, split, step, rows FROM funnel
        WHERE list_contains($runs::VARCHAR[], run_id) AND NOT starts_with(step, 'dropped: ')
        ORDER BY split DESC, position""",
        ("split", "step"),
    ),
    "drops": Section(
        "Pairs dropped: by this filter first, and by this one or others as well",
        """SELECT run_id, split, filter,
            max(reason) OVER (PARTITION BY filter) AS reason, "limit", first_drops, rulings
        FROM filter_funnel WHERE list_contains($runs::VARCHAR[], run_id)
        ORDER BY split DESC, position""",
        ("split", "filter", "reason"),
    ),
    "quality": Section(
        "Kept pairs",
        """SELECT run_id, split, count(*) AS pairs, avg(margin) AS mean_margin,
            median(margin) AS median_margin, avg(chosen_score) AS mean_chosen_score,
            avg(rejected_score) AS mean_rejected_score, avg(chosen_tokens) AS mean_chosen_tokens,
            avg(rejected_tokens) AS mean_rejected_tokens, avg(length_gap) AS mean_length_gap,
            avg((length_gap > 0)::INTEGER) FILTER (WHERE length_gap <> 0) AS longer_chosen_rate,
            avg(confidence) AS mean_confidence
        FROM pair_quality WHERE list_contains($runs::VARCHAR[], run_id) AND kept
        GROUP BY run_id, split ORDER BY split DESC""",
        ("split",),
    ),
    "scores": Section(
        "Scores of all candidates",
        """SELECT k.run_id, s.scorer, count(*) AS candidates, avg(s.score) AS mean,
            stddev_pop(s.score) AS sd, 1 - count(s.score) / count(*) AS missing_rate
        FROM run_stages AS k JOIN scores AS s ON s.stage_key = k.score_key
        WHERE list_contains($runs::VARCHAR[], k.run_id)
        GROUP BY k.run_id, s.scorer ORDER BY s.scorer""",
        ("scorer",),
    ),
    "judge_health": Section(
        "Health of the scorers",
        """SELECT run_id, scorer, measure AS health, "value", passed FROM judge_health
        WHERE list_contains($runs::VARCHAR[], run_id) ORDER BY scorer, health""",
        ("scorer", "health"),
    ),
    "noise": Section(
        "Wrong labels, estimated",
        """SELECT k.run_id, r.scorer, r.method, r.rate, r.low, r.high
        FROM run_stages AS k JOIN noise_rates AS r ON r.stage_key = k.noise_key
        WHERE list_contains($runs::VARCHAR[], k.run_id) ORDER BY r.scorer""",
        ("scorer",),
    ),
    "drift": Section(
        "Drift, each against the accepted run before it",
        """SELECT run_id, measure AS drift_of, statistic, "value" FROM drift
        WHERE list_contains($runs::VARCHAR[], run_id) ORDER BY drift_of, statistic""",
        ("drift_of", "statistic"),
    ),
    "exports": Section(
        "Exported files",
        """SELECT k.run_id, e.split, e.format, e.rows AS pairs, e.path, e.export_id
        FROM run_stages AS k JOIN exports AS e ON e.stage_key = k.export_key
        WHERE list_contains($runs::VARCHAR[], k.run_id) ORDER BY e.split DESC, e.format""",
        ("split", "format"),
    ),
    "training": Section(
        "Training",
        """SELECT run_id, round_id, round_index, pairs, steps, base_weights_hash,
            result_weights_hash, promoted
        FROM rounds WHERE list_contains($runs::VARCHAR[], run_id) ORDER BY round_index""",
    ),
    "training_metrics": Section(
        "Training metrics at their last step",
        """SELECT s.run_id, m.metric, arg_max(m."value", m.step) AS "value"
        FROM stage_runs AS s JOIN training_metrics AS m ON m.stage_key = s.stage_key
        WHERE list_contains($runs::VARCHAR[], s.run_id)
        GROUP BY s.run_id, m.metric ORDER BY m.metric""",
        ("metric",),
    ),
    "evaluations": Section(
        "Held-out prompts, before and after training",
        """SELECT s.run_id, e.metric, e.decoding, e.stratum, e.before AS before_training,
            e."after" AS after_training, e.difference, e.low, e.high
        FROM stage_runs AS s JOIN evaluations AS e ON e.stage_key = s.stage_key
        WHERE list_contains($runs::VARCHAR[], s.run_id)
        ORDER BY e.metric, e.decoding DESC, e.stratum""",
        ("metric", "decoding", "stratum"),
    ),
    "gates": Section(
        "Promotion gate",
        """SELECT s.run_id, g.criterion, g."value", g."limit", g.passed
        FROM stage_runs AS s JOIN gates AS g ON g.stage_key = s.stage_key
        WHERE list_contains($runs::VARCHAR[], s.run_id) ORDER BY g.criterion""",
        ("criterion",),
    ),
}
"""In the order of the printed page; the names are the JSON's keys."""
