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
filters AS (
    SELECT
        s.filter_key,
        s.split,
        d.position,
        d.filter,
        max(d.reason) AS reason,
        max(d."limit") AS "limit",
        count(*) AS pairs,
        count(*) FILTER (WHERE NOT d.kept AND d.position = dropped.position) AS first_drops,
        count(*) FILTER (WHERE NOT d.kept) AS rulings,
        count(*) FILTER (WHERE NOT d.kept AND len(dropped.reasons) = 1) AS only_drops,
        count(*) - count(d.value) AS unmeasured
    FROM decisions AS d
    INNER JOIN pair_splits AS s ON s.filter_key = d.stage_key AND s.pair_id = d.pair_id
    LEFT JOIN dropped_pairs AS dropped
        ON dropped.stage_key = d.stage_key AND dropped.pair_id = d.pair_id
    GROUP BY ALL
),
left_over AS (
    SELECT
        *,
        pairs - sum(first_drops) OVER (
            PARTITION BY filter_key, split ORDER BY position
        )::BIGINT AS pairs_out
    FROM filters
)
SELECT
    k.run_id,
    f.split,
    f.position,
    f.filter,
    f.reason,
    f."limit",
    f.pairs_out + f.first_drops AS pairs_in,
    f.first_drops,
    f.pairs_out,
    f.rulings,
    f.only_drops,
    f.unmeasured
FROM run_stages AS k
INNER JOIN left_over AS f ON f.filter_key = k.filter_key
ORDER BY k.run_id, f.split, f.position;
