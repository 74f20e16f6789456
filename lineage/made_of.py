"""What an export, run, round or model was made of, and what was made of it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from lineage.row_reader import Row, RowReader


def rounds_of_exports(reader: RowReader, export_ids: Iterable[str]) -> list[Row]:
    """Return the rounds that trained on any of the exports, with their verdicts."""
    trained = f"{_ROUNDS} WHERE list_contains(?::VARCHAR[], export_id)"
    return reader.rows(trained, sorted(export_ids))


def _export(reader: RowReader, export_id: str) -> Row:
    return {
        "export": reader.rows("SELECT * FROM exports WHERE export_id = ?", export_id)[0],
        "runs": reader.rows(_RUNS_OF_EXPORT, export_id),
        "rounds": rounds_of_exports(reader, [export_id]),
        "composition": reader.rows(_COMPOSITION, export_id),
    }


def _run(reader: RowReader, run_id: str) -> Row:
    record = reader.rows("SELECT * FROM runs WHERE run_id = ?", run_id)[0]
    config = json.loads(record.pop("config"))
    return {
        "run": record,
        "stages": reader.rows(_STAGES, run_id),
        "prompts": reader.rows(_PROMPTS_OF_RUN, run_id),
        "models": reader.rows(_MODELS_OF_RUN, run_id),
        "pairs": reader.rows(_FATES_OF_RUN, run_id),
        "exports": reader.rows(_EXPORTS_OF_RUN, run_id),
        "rounds": reader.rows(f"{_ROUNDS} WHERE run_id = ?", run_id),
        "trainings": reader.rows(f"{_TRAININGS} WHERE run_id = ?", run_id),
        "config": config,
    }


def _round(reader: RowReader, round_id: str) -> Row:
    rounds = reader.rows(f"{_ROUNDS} WHERE round_id = ?", round_id)
    export_ids = [row["export_id"] for row in rounds]
    results = [row["result_weights_hash"] for row in rounds]
    return {
        "rounds": rounds,
        "exports": reader.rows(_EXPORTS_NAMED, export_ids),
        "evaluations": reader.rows(_EVALUATIONS, round_id),
        "gates": reader.rows(_GATES, round_id),
        "metrics": reader.rows(_LAST_METRICS, round_id),
        "next_trainings": _trainings_upon(reader, results),
        "next_rounds": _rounds_upon(reader, results),
    }


def _training(reader: RowReader, training_id: str) -> Row:
    trainings = reader.rows(f"{_TRAININGS} WHERE training_id = ?", training_id)
    results = [row["result_weights_hash"] for row in trainings]
    return {
        "trainings": trainings,
        "metrics": reader.rows(_LAST_METRICS, training_id),
        "next_trainings": _trainings_upon(reader, results),
        "next_rounds": _rounds_upon(reader, results),
    }


def _model(reader: RowReader, weights_hash: str) -> Row:
    return {
        "made_by": reader.rows(f"{_ROUNDS} WHERE result_weights_hash = ?", weights_hash),
        "trainings": reader.rows(f"{_TRAININGS} WHERE result_weights_hash = ?", weights_hash),
        "next_trainings": _trainings_upon(reader, [weights_hash]),
        "next_rounds": _rounds_upon(reader, [weights_hash]),
        "answers": reader.rows(_ANSWERS, weights_hash),
    }


def _rounds_upon(reader: RowReader, weights: list[str]) -> list[Row]:
    return reader.rows(f"{_ROUNDS} WHERE list_contains(?::VARCHAR[], base_weights_hash)", weights)


def _trainings_upon(reader: RowReader, weights: list[str]) -> list[Row]:
    upon = f"{_TRAININGS} WHERE list_contains(?::VARCHAR[], base_weights_hash)"
    return reader.rows(upon, weights)


MADE_OF: dict[str, Callable[[RowReader, str], Row]] = {
    "export": _export,
    "run": _run,
    "round": _round,
    "training": _training,
    "model": _model,
}
"""By kind: the facts of one id."""

_ROUNDS = """
    FROM (
        SELECT DISTINCT round_id, round_index, run_id, name, promoted, export_id,
            base_weights_hash, reference_weights_hash, result_weights_hash, result_path, pairs,
            steps, sampled_difference, sampled_low, sampled_high
        FROM rounds ORDER BY run_id, round_id
    )"""

_TRAININGS = """
    FROM (
        SELECT DISTINCT t.training_id, t.objective, s.run_id, t.data_path, t.data_sha256,
            e.export_id, t.base_weights_hash, t.reference_weights_hash, t.result_weights_hash,
            t.result_path, t.rows, t.heldout_rows, t.steps
        FROM store.trainings AS t
        JOIN stage_runs AS s ON s.stage_key = t.stage_key
        LEFT JOIN exports AS e ON e.sha256 = t.data_sha256
        ORDER BY s.run_id, t.training_id, e.export_id
    )"""

_RUNS_OF_EXPORT = """
    SELECT DISTINCT run_id, name, flow, started_at FROM candidate_outputs
    WHERE export_key IN (SELECT stage_key FROM exports WHERE export_id = ?)
    ORDER BY started_at, run_id"""

# By stage keys: `pair_quality` would first find the exports of every pair of every run.
_COMPOSITION = """
    WITH k AS (
        SELECT * FROM run_stages
        WHERE export_key IN (SELECT stage_key FROM exports WHERE export_id = $1)
        ORDER BY run_id LIMIT 1
    )
    SELECT prompts.source, prompts.stratum, pairs.strategy, pairs.scorer, count(*) AS pairs,
        avg(pairs.margin) AS mean_margin,
        avg(pairs.chosen_tokens - pairs.rejected_tokens) AS mean_length_gap
    FROM k
    JOIN export_rows AS r ON r.stage_key = k.export_key AND r.export_id = $1
    JOIN pairs ON pairs.stage_key = k.pair_key AND pairs.pair_id = r.pair_id
    LEFT JOIN prompts
        ON prompts.stage_key = k.prompts_key AND prompts.prompt_id = pairs.prompt_id
    GROUP BY ALL ORDER BY ALL"""

_STAGES = """
    SELECT s.stage, s.stage_key, s.status, s.made_by, s.seconds, s.ended_at, of_key.removed_at,
        o.outputs
    FROM stage_runs AS s
    LEFT JOIN stage_outputs AS of_key ON of_key.stage_key = s.stage_key
    LEFT JOIN (
        SELECT stage_key, list({'table': name, 'rows': rows} ORDER BY name) AS outputs
        FROM (
            SELECT stage_key, "table" AS name, sum(rows)::BIGINT AS rows
            FROM artifacts WHERE role = 'output' AND "table" IS NOT NULL GROUP BY ALL
        ) GROUP BY stage_key
    ) AS o ON o.stage_key = s.stage_key
    WHERE s.run_id = ? ORDER BY s.position, s.stage"""

_PROMPTS_OF_RUN = """
    SELECT p.source, p.split, count(*) AS prompts
    FROM run_stages AS k JOIN prompts AS p ON p.stage_key = k.prompts_key
    WHERE k.run_id = ? GROUP BY ALL ORDER BY ALL"""

_MODELS_OF_RUN = """
    SELECT o.stage, c.generator, c.model, c.weights_hash, count(*) AS candidates
    FROM candidate_outputs AS o JOIN candidates AS c ON c.stage_key = o.candidates_key
    WHERE o.run_id = ? GROUP BY ALL ORDER BY ALL"""

# Not `funnel`: it also counts candidates and judgments by split, which takes seconds for millions.
_FATES_OF_RUN = """
    SELECT
        CASE WHEN k.filter_key IS NULL THEN 'proposed' WHEN d.pair_id IS NULL THEN 'kept'
            ELSE 'dropped' END AS fate,
        d.filter, d.reason, count(*) AS pairs
    FROM run_stages AS k
    JOIN pairs ON pairs.stage_key = k.pair_key
    LEFT JOIN dropped_pairs AS d ON d.stage_key = k.filter_key AND d.pair_id = pairs.pair_id
    WHERE k.run_id = ? GROUP BY 1, 2, 3 ORDER BY min(d.position) NULLS FIRST, d.reason"""

_EXPORTS_OF_RUN = """
    SELECT e.export_id, e.format, e.split, e.path, e.rows
    FROM run_stages AS k JOIN exports AS e ON e.stage_key = k.export_key
    WHERE k.run_id = ? ORDER BY e.split DESC, e.format"""

_EXPORTS_NAMED = """
    SELECT DISTINCT export_id, format, split, path, rows FROM exports
    WHERE list_contains(?::VARCHAR[], export_id) ORDER BY path"""

_EVALUATIONS = """
    SELECT DISTINCT metric, decoding, stratum, prompts, before, "after", difference, low, high
    FROM evaluations WHERE round_id = ? ORDER BY metric, decoding DESC, stratum"""

_GATES = """
    SELECT DISTINCT criterion, "value", "limit", passed FROM gates
    WHERE round_id = ? ORDER BY criterion"""

_LAST_METRICS = """
    SELECT metric, max(step) AS step, arg_max("value", step) AS "value"
    FROM training_metrics WHERE round_id = ? GROUP BY metric ORDER BY metric"""

_ANSWERS = """
    SELECT o.run_id, o.stage, c.generator, c.model, count(*) AS candidates
    FROM candidate_outputs AS o JOIN candidates AS c ON c.stage_key = o.candidates_key
    WHERE c.weights_hash = ? GROUP BY ALL ORDER BY ALL"""
