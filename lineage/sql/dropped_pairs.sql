-- Which pairs were dropped, and by which filter first? A row per dropped pair and stage output.
--   stage_key: the filter stage's output (run_stages.filter_key)
--   pair_id: the pair
--   position: the first dropping filter's place in the configured order, from 0
--   filter: the first dropping filter: the drop is attributed to it
--   reason: its reason
--   reasons: the reasons of all filters that would drop the pair, in configured order
CREATE VIEW dropped_pairs AS
SELECT
    stage_key,
    pair_id,
    min(position) AS position,
    arg_min(filter, position) AS filter,
    arg_min(coalesce(reason, filter), position) AS reason,
    list(coalesce(reason, filter) ORDER BY position) AS reasons
FROM decisions
WHERE NOT kept
GROUP BY stage_key, pair_id;
