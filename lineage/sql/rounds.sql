-- Did training make the model better, and was it promoted? A row per round and run that holds it.
-- Success is the share of held-out prompts answered rightly, over all strata.
--   run_id: the run
--   name: the run's name
--   sampled_before: success with sampled decoding, before the round
--   sampled_after: the same after the round
--   sampled_difference: after - before
--   sampled_low: lower end of the paired 95 % bootstrap interval of the difference
--   sampled_high: its upper end
--   greedy_before: success with greedy decoding, before the round
--   greedy_after: the same after the round
--   greedy_difference: after - before
--   greedy_low: lower end of the paired 95 % bootstrap interval of the difference
--   greedy_high: its upper end
--   stage_key: the gate stage's output
CREATE VIEW rounds AS
WITH success AS (
    SELECT stage_key, round_id, decoding, before, "after", difference, low, high
    FROM evaluations
    WHERE metric = 'success' AND stratum = 'all'
)
SELECT
    rounds.* EXCLUDE (stage_key),
    stage_runs.run_id,
    runs.name,
    sampled.before AS sampled_before,
    sampled."after" AS sampled_after,
    sampled.difference AS sampled_difference,
    sampled.low AS sampled_low,
    sampled.high AS sampled_high,
    greedy.before AS greedy_before,
    greedy."after" AS greedy_after,
    greedy.difference AS greedy_difference,
    greedy.low AS greedy_low,
    greedy.high AS greedy_high,
    rounds.stage_key
FROM store.rounds AS rounds
INNER JOIN stage_runs ON stage_runs.stage_key = rounds.stage_key AND stage_runs.stage = 'gate'
LEFT JOIN runs ON runs.run_id = stage_runs.run_id
LEFT JOIN success AS sampled
    ON sampled.stage_key = rounds.stage_key
    AND sampled.round_id = rounds.round_id
    AND sampled.decoding = 'sampled'
LEFT JOIN success AS greedy
    ON greedy.stage_key = rounds.stage_key
    AND greedy.round_id = rounds.round_id
    AND greedy.decoding = 'greedy';
