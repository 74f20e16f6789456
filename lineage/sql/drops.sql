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
WITH
keys AS (
    SELECT DISTINCT prompts_key, pair_key, filter_key FROM run_stages WHERE filter_key IS NOT NULL
),
pair_splits AS (
    SELECT k.filter_key, pairs.pair_id, p.split
    FROM keys AS k
    INNER JOIN pairs ON pairs.stage_key = k.pair_key
    INNER JOIN prompts AS p ON p.stage_key = k.prompts_key AND p.prompt_id = pairs.prompt_id
),
totals AS (
    SELECT filter_key, split, count(*) AS pairs FROM pair_splits GROUP BY ALL
),
rulings AS (
    SELECT
        s.filter_key,
        s.split,
        d.position,
        d.filter,
        coalesce(d.reason, d.filter) AS reason,
        count(*) AS rulings,
        count(*) FILTER (WHERE d.position = dropped.position) AS first_drops,
        avg(d.value) AS mean_value,
        max(d."limit") AS "limit"
    FROM decisions AS d
    INNER JOIN pair_splits AS s ON s.filter_key = d.stage_key AND s.pair_id = d.pair_id
    INNER JOIN dropped_pairs AS dropped
        ON dropped.stage_key = d.stage_key AND dropped.pair_id = d.pair_id
    WHERE NOT d.kept
    GROUP BY ALL
)
SELECT
    k.run_id,
    r.split,
    r.position,
    r.filter,
    r.reason,
    r.rulings,
    r.first_drops,
    r.rulings / totals.pairs AS share_of_pairs,
    r.mean_value,
    r."limit"
FROM run_stages AS k
INNER JOIN rulings AS r ON r.filter_key = k.filter_key
INNER JOIN totals ON totals.filter_key = r.filter_key AND totals.split = r.split
ORDER BY k.run_id, r.split, r.position, r.reason;
