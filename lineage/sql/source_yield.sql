-- Which prompts are worth sampling: how many kept pairs does each source and stratum give?
-- A row per run, source, stratum and split.
--   run_id: the run
--   source: where the prompts came from, as named in the configuration
--   stratum: the group within the source
--   split: train, heldout or gold (planted, never paired)
--   prompts: how many were sampled
--   candidates: completions asked for
--   completion_tokens: tokens that these have
--   pairs: proposed
--   kept: those that no filter drops; null while the run has not filtered
--   prompts_with_kept_pair: prompts that have one
--   kept_per_100_prompts: 100 * kept / prompts
--   completion_tokens_per_kept_pair: what a kept pair takes
--   mean_margin: of the kept pairs, in the scorer's unit
--   mean_length_gap: of the kept pairs, chosen - rejected, in tokens
CREATE VIEW source_yield AS
WITH asked AS (
    SELECT k.run_id, p.prompt_id, p.source, p.stratum, p.split, k.filter_key IS NOT NULL AS filtered
    FROM run_stages AS k
    INNER JOIN prompts AS p ON p.stage_key = k.prompts_key
),

sampled AS (
    SELECT
        k.run_id,
        c.prompt_id,
        count(*) AS candidates,
        sum(c.completion_tokens) AS completion_tokens
    FROM run_stages AS k
    INNER JOIN candidates AS c ON c.stage_key = k.generate_key
    GROUP BY ALL
),

paired AS (
    SELECT
        run_id,
        prompt_id,
        count(*) AS pairs,
        count(*) FILTER (WHERE kept) AS kept_pairs,
        sum(margin) FILTER (WHERE kept) AS margin,
        sum(length_gap) FILTER (WHERE kept) AS length_gap
    FROM pair_quality
    GROUP BY ALL
)

SELECT
    a.run_id,
    a.source,
    a.stratum,
    a.split,
    count(*) AS prompts,
    coalesce(sum(s.candidates), 0)::BIGINT AS candidates,
    coalesce(sum(s.completion_tokens), 0)::BIGINT AS completion_tokens,
    coalesce(sum(p.pairs), 0)::BIGINT AS pairs,
    CASE WHEN any_value(a.filtered) THEN coalesce(sum(p.kept_pairs), 0)::BIGINT END AS kept,
    count(*) FILTER (WHERE p.kept_pairs > 0) AS prompts_with_kept_pair,
    100 * kept / count(*) AS kept_per_100_prompts,
    sum(s.completion_tokens) / nullif(kept, 0) AS completion_tokens_per_kept_pair,
    sum(p.margin) / nullif(kept, 0) AS mean_margin,
    sum(p.length_gap) / nullif(kept, 0) AS mean_length_gap
FROM asked AS a
LEFT JOIN sampled AS s ON s.run_id = a.run_id AND s.prompt_id = a.prompt_id
LEFT JOIN paired AS p ON p.run_id = a.run_id AND p.prompt_id = a.prompt_id
GROUP BY a.run_id, a.source, a.stratum, a.split
ORDER BY a.run_id, a.source, a.stratum, a.split;
