-- What did each filter find, and what was left after it?
-- A row per run, split and filter that ruled, also for one that dropped nothing. Filters rule on
-- every pair; in the funnel a pair goes at the first that drops it: pairs_in - first_drops =
-- pairs_out, which is the pairs_in of the next filter.
--   run_id: the run
--   split: train or heldout
--   position: the filter's place in the configured order, from 0
--   filter: the filter
--   reason: the defect it states; null where it dropped nothing
--   limit: what it measured against; null for a yes or no
--   pairs_in: pairs that no earlier filter drops
--   first_drops: those of them that this filter drops
--   pairs_out: the rest
--   rulings: pairs that this filter drops, of all pairs
--   only_drops: those that no other filter drops: without it they would be kept
--   unmeasured: pairs on which there was nothing to measure; they are kept
CREATE VIEW filter_funnel AS
WITH filters AS (
    SELECT
        run_id,
        split,
        position,
        filter,
        max(reason) AS reason,
        max("limit") AS "limit",
        count(*) AS pairs,
        count(*) FILTER (WHERE first_drop) AS first_drops,
        count(*) FILTER (WHERE NOT kept) AS rulings,
        count(*) FILTER (WHERE NOT kept AND dropping_filters = 1) AS only_drops,
        count(*) - count(value) AS unmeasured
    FROM rulings
    GROUP BY ALL
),
left_over AS (
    SELECT
        *,
        pairs - sum(first_drops) OVER (
            PARTITION BY run_id, split ORDER BY position
        )::BIGINT AS pairs_out
    FROM filters
)
SELECT
    run_id,
    split,
    position,
    filter,
    reason,
    "limit",
    pairs_out + first_drops AS pairs_in,
    first_drops,
    pairs_out,
    rulings,
    only_drops,
    unmeasured
FROM left_over
ORDER BY run_id, split, position;
