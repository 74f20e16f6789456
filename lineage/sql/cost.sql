-- What did a run's pairs take: tokens, money, time and GPU time, in all and per thousand kept?
-- A row per run and stage. Every figure is of the output's making, whichever run made it, and
-- adds up over the stages; `WHERE NOT reused` is what this run itself spent.
--   run_id: the run
--   position: the stage's place in the run, from 0
--   stage: the stage's name within the run
--   reused: whether an earlier run had made its output
--   prompt_tokens: read by generators, a prompt once for all its samples, and by judges
--   completion_tokens: written by both
--   trained_tokens: read by training, over all epochs
--   cost: of the requests, at the configured prices; null: no price is configured
--   seconds: wall time of making the output, in the attempt that finished it
--   gpu_seconds: seconds * GPUs of this machine that were held; an endpoint's own are not known
--   kept_pairs: the run's pairs that no filter dropped; null while it has not filtered
--   tokens_per_1000_kept: all three kinds
--   cost_per_1000_kept: money
--   seconds_per_1000_kept: wall time
--   gpu_seconds_per_1000_kept: GPU time
CREATE VIEW cost AS
WITH
prompts_read AS (
    SELECT
        stage_key,
        max(prompt_tokens) AS prompt_tokens,
        sum(completion_tokens) AS completion_tokens,
        sum(cost) AS cost
    FROM candidates
    GROUP BY stage_key, prompt_id, generator_hash
),
used AS (
    SELECT stage_key, prompt_tokens, completion_tokens, NULL AS trained_tokens, cost
    FROM prompts_read
    UNION ALL
    SELECT stage_key, prompt_tokens, completion_tokens, NULL, cost FROM judgments
    UNION ALL
    SELECT stage_key, NULL, NULL, max(value), NULL
    FROM training_metrics
    WHERE metric = 'num_tokens'
    GROUP BY stage_key
),
of_output AS (
    SELECT
        stage_key,
        sum(prompt_tokens)::BIGINT AS prompt_tokens,
        sum(completion_tokens)::BIGINT AS completion_tokens,
        sum(trained_tokens)::BIGINT AS trained_tokens,
        sum(cost) AS cost
    FROM used
    GROUP BY stage_key
),
kept AS (
    SELECT run_id, count(*) FILTER (WHERE kept) AS pairs
    FROM pair_quality
    WHERE kept IS NOT NULL
    GROUP BY run_id
)
SELECT
    s.run_id,
    s.position,
    s.stage,
    s.status = 'reused' AS reused,
    u.prompt_tokens,
    u.completion_tokens,
    u.trained_tokens,
    u.cost,
    o.seconds,
    o.seconds * o.gpus AS gpu_seconds,
    kept.pairs AS kept_pairs,
    1000 * (
        coalesce(u.prompt_tokens, 0) + coalesce(u.completion_tokens, 0)
        + coalesce(u.trained_tokens, 0)
    ) / nullif(kept.pairs, 0) AS tokens_per_1000_kept,
    1000 * u.cost / nullif(kept.pairs, 0) AS cost_per_1000_kept,
    1000 * o.seconds / nullif(kept.pairs, 0) AS seconds_per_1000_kept,
    1000 * o.seconds * o.gpus / nullif(kept.pairs, 0) AS gpu_seconds_per_1000_kept
FROM stage_runs AS s
LEFT JOIN stage_outputs AS o ON o.stage_key = s.stage_key
LEFT JOIN of_output AS u ON u.stage_key = s.stage_key
LEFT JOIN kept ON kept.run_id = s.run_id
ORDER BY s.run_id, s.position, s.stage;
