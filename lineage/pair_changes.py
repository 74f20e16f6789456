"""Which kept pairs came and went between two runs, and why."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lineage.row_reader import Row, RowReader

KEYS = ("score_key", "pair_key", "filter_key")


def pair_changes(reader: RowReader, before: str, after: str) -> Row:
    """Return how many kept pairs each run has and both have, and those that went and came.

    A pair is its two answers, which is the chosen and which the rejected: the same under another
    strategy or scorer is the same pair. `gone` and `came` are rows of cause, filter, reason,
    pairs (how many) and examples (up to three pair ids, of the run that keeps them). A cause says
    what the *other* run has in the pair's place; the first that fits:

    * `dropped`: the same pair, dropped, first by this filter for this reason.
    * `not_filtered`: the same pair, before any filter.
    * `label_flipped`: its two answers, the other way round.
    * `prompt_not_there`: no scored answer to the prompt.
    * `answers_not_there`: other answers to the prompt.
    * `other_choice`: both answers; the prompt's pair is of others.
    * `no_pair`: both answers; no pair was made of the prompt.
    * `not_paired`: nothing, as the run did not come to pairing.
    """
    found = reader.rows(_KEYS_OF_RUNS, [before, after])
    keys = {row["run_id"]: [row[name] for name in KEYS] for row in found}
    of_before, of_after = (keys.get(run_id, [None] * len(KEYS)) for run_id in (before, after))
    gone, came = _missing(reader, of_before, of_after), _missing(reader, of_after, of_before)
    counts = [_kept(reader, key) for key in (of_before, of_after)]
    return {
        "before": counts[0],
        "after": counts[1],
        "in_both": counts[0] - sum(row["pairs"] for row in gone),
        "gone": gone,
        "came": came,
    }


def _kept(reader: RowReader, keys: list[str | None]) -> int:
    values = dict(zip(("score", "pair", "filter"), keys, strict=True))
    rows = reader.named_rows(_COUNT, {name: values[name] for name in ("pair", "filter")})
    return int(rows[0]["pairs"])


def _missing(reader: RowReader, here: list[str | None], there: list[str | None]) -> list[Row]:
    """Return why kept pairs of ``here`` are no kept pairs of ``there``, by cause."""
    return reader.named_rows(
        _MISSING,
        {
            "pair_here": here[1],
            "filter_here": here[2],
            "score_there": there[0],
            "pair_there": there[1],
            "filter_there": there[2],
        },
    )


_KEYS_OF_RUNS = "SELECT * FROM run_stages WHERE list_contains(?::VARCHAR[], run_id)"

_COUNT = """
    SELECT count(*) AS pairs FROM pairs
    ANTI JOIN (SELECT pair_id FROM dropped_pairs WHERE stage_key = $filter) AS d
        ON d.pair_id = pairs.pair_id
    WHERE pairs.stage_key = $pair AND $filter IS NOT NULL"""

# Scores, not candidates: they stay when texts are removed, and hold every candidate's id.
_MISSING = """
    WITH kept AS (
        SELECT pairs.* FROM pairs
        ANTI JOIN (SELECT pair_id FROM dropped_pairs WHERE stage_key = $filter_here) AS d
            ON d.pair_id = pairs.pair_id
        WHERE pairs.stage_key = $pair_here AND $filter_here IS NOT NULL
    ),
    other AS (
        SELECT pairs.*, d.pair_id IS NOT NULL AS dropped, d.filter, d.reason
        FROM pairs
        LEFT JOIN (SELECT * FROM dropped_pairs WHERE stage_key = $filter_there) AS d
            ON d.pair_id = pairs.pair_id
        WHERE pairs.stage_key = $pair_there
    ),
    missing AS (
        SELECT
            kept.*,
            same.pair_id IS NOT NULL AS is_there,
            same.dropped,
            same.filter,
            same.reason
        FROM kept
        LEFT JOIN other AS same
            ON same.chosen_candidate_id = kept.chosen_candidate_id
            AND same.rejected_candidate_id = kept.rejected_candidate_id
        WHERE same.pair_id IS NULL OR same.dropped OR $filter_there IS NULL
    ),
    flipped AS (
        SELECT missing.pair_id FROM missing
        SEMI JOIN other
            ON other.chosen_candidate_id = missing.rejected_candidate_id
            AND other.rejected_candidate_id = missing.chosen_candidate_id
    ),
    answers AS (
        SELECT s.candidate_id, s.prompt_id FROM scores AS s
        SEMI JOIN missing ON missing.prompt_id = s.prompt_id AND NOT missing.is_there
        WHERE s.stage_key = $score_there
    ),
    causes AS (
        SELECT
            pair_id,
            filter,
            reason,
            CASE
                WHEN $pair_there IS NULL THEN 'not_paired'
                WHEN is_there AND dropped THEN 'dropped'
                WHEN is_there THEN 'not_filtered'
                WHEN pair_id IN (FROM flipped) THEN 'label_flipped'
                WHEN prompt_id NOT IN (SELECT prompt_id FROM answers) THEN 'prompt_not_there'
                WHEN chosen_candidate_id NOT IN (SELECT candidate_id FROM answers)
                    OR rejected_candidate_id NOT IN (SELECT candidate_id FROM answers)
                    THEN 'answers_not_there'
                WHEN prompt_id IN (SELECT prompt_id FROM other) THEN 'other_choice'
                ELSE 'no_pair'
            END AS cause
        FROM missing
    )
    SELECT cause, filter, reason, count(*) AS pairs, min(pair_id, 3) AS examples
    FROM causes GROUP BY ALL ORDER BY pairs DESC, cause, reason"""
