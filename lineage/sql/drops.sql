-- Which filter drops how much, for what reason, and how far off are the dropped pairs?
-- A row per run, split, filter and reason. A pair may be dropped by several filters, so `rulings`
-- add up to more than the dropped pairs; `first_drops` add up to them exactly.
--   run_id: the run
--   split: train or heldout
--   position: the filter's place in the configured order, from 0
--   filter: the filter
--   reason: the defect it states
--   rulings: pairs that this filter drops for this reason
--   first_drops: those that no earlier filter drops
--   share_of_pairs: rulings / all pairs of the run and split
--   mean_value: mean of what was measured on the dropped pairs
--   limit: what it was measured against
CREATE VIEW drops AS
WITH counted AS (
    SELECT
        run_id,
        split,
        position,
        filter,
        reason,
        count(*) AS rulings,
        count(*) FILTER (WHERE first_drop) AS first_drops,
        avg(value) AS mean_value,
        max("limit") AS "limit"
    FROM rulings
    GROUP BY ALL
),
shares AS (
    -- A filter rules on every pair, on those it keeps without a reason.
    SELECT *, rulings / sum(rulings) OVER (
        PARTITION BY run_id, split, position
    ) AS share_of_pairs
    FROM counted
)
SELECT
    run_id,
    split,
    position,
    filter,
    reason,
    rulings,
    first_drops,
    share_of_pairs,
    mean_value,
    "limit"
FROM shares
WHERE reason IS NOT NULL
ORDER BY run_id, split, position, reason;
