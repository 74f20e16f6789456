-- How good is every pair, why was it kept or dropped, and what was it used for?
-- A row per run and pair.
--   run_id: the run
--   pair_id: the pair
--   prompt_id: the prompt both completions answer
--   source: where the prompt came from
--   stratum: the prompt's group within its source
--   split: train or heldout
--   scorer: whose scores decided
--   strategy: the pairing strategy
--   chosen_score: in the scorer's unit
--   rejected_score: in the scorer's unit
--   margin: chosen_score - rejected_score
--   confidence: probability that the label is right (label_noise), where known
--   chosen_tokens: length of the chosen completion
--   rejected_tokens: length of the rejected completion
--   length_gap: chosen_tokens - rejected_tokens
--   kept: no filter dropped it; null while the run has not filtered
--   reasons: why it was dropped, in the filters' order; empty for a kept pair
--   exported_to: ids of this run's exports that hold it
--   trained_in: ids of the rounds that trained on one of them
CREATE VIEW pair_quality AS
SELECT
    k.run_id,
    pairs.pair_id,
    pairs.prompt_id,
    prompts.source,
    prompts.stratum,
    prompts.split,
    pairs.scorer,
    pairs.strategy,
    pairs.chosen_score,
    pairs.rejected_score,
    pairs.margin,
    1 - noise.probability_wrong AS confidence,
    pairs.chosen_tokens,
    pairs.rejected_tokens,
    pairs.chosen_tokens - pairs.rejected_tokens AS length_gap,
    CASE WHEN k.filter_key IS NOT NULL THEN d.pair_id IS NULL END AS kept,
    coalesce(d.reasons, []) AS reasons,
    coalesce(e.exported_to, []) AS exported_to,
    coalesce(e.trained_in, []) AS trained_in
FROM run_stages AS k
INNER JOIN pairs ON pairs.stage_key = k.pair_key
LEFT JOIN prompts
    ON prompts.stage_key = k.prompts_key AND prompts.prompt_id = pairs.prompt_id
LEFT JOIN label_noise AS noise
    ON noise.stage_key = k.noise_key AND noise.pair_id = pairs.pair_id
LEFT JOIN dropped_pairs AS d ON d.stage_key = k.filter_key AND d.pair_id = pairs.pair_id
LEFT JOIN exported_pairs AS e ON e.stage_key = k.export_key AND e.pair_id = pairs.pair_id;
