-- What did each filter of a run rule on each pair? A row per run, pair and filter.
-- The table decisions with the run, the split and which ruling came first.
--   run_id: the run
--   pair_id: the pair ruled on
--   split: train or heldout
--   position: the filter's place in the configured order, from 0
--   filter: the filter
--   kept: false: this filter drops the pair
--   reason: the defect, when dropped
--   value: what was measured
--   limit: what it was measured against
--   first_drop: it drops the pair and no earlier filter does
--   dropping_filters: how many filters drop the pair
CREATE VIEW rulings AS
WITH dropped AS (
    SELECT k.run_id, d.pair_id, min(d.position) AS first_position, count(*) AS filters
    FROM run_stages AS k
    INNER JOIN decisions AS d ON d.stage_key = k.filter_key
    WHERE NOT d.kept
    GROUP BY ALL
),
splits AS (
    SELECT k.run_id, pairs.pair_id, p.split
    FROM run_stages AS k
    INNER JOIN pairs ON pairs.stage_key = k.pair_key
    INNER JOIN prompts AS p ON p.stage_key = k.prompts_key AND p.prompt_id = pairs.prompt_id
)
SELECT
    k.run_id,
    d.pair_id,
    s.split,
    d.position,
    d.filter,
    d.kept,
    CASE WHEN NOT d.kept THEN coalesce(d.reason, d.filter) END AS reason,
    d.value,
    d."limit",
    NOT d.kept AND d.position = dropped.first_position AS first_drop,
    coalesce(dropped.filters, 0) AS dropping_filters
FROM run_stages AS k
INNER JOIN decisions AS d ON d.stage_key = k.filter_key
INNER JOIN splits AS s ON s.run_id = k.run_id AND s.pair_id = d.pair_id
LEFT JOIN dropped ON dropped.run_id = k.run_id AND dropped.pair_id = d.pair_id;
