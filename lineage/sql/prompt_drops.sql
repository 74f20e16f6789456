-- Which prompts did a run's sampling pass over, and why? A row per run, source and reason.
--   run_id: the run
--   source: the source that lost them, as named in the configuration
--   reason: contaminated or near_duplicate
--   evaluation_set: of contaminated ones, the set that they overlap with
--   prompts: how many; the dropped_prompts table has each with its text
CREATE VIEW prompt_drops AS
SELECT k.run_id, d.source, d.reason, d.evaluation_set, count(*) AS prompts
FROM run_stages AS k
INNER JOIN dropped_prompts AS d ON d.stage_key = k.prompts_key
GROUP BY ALL
ORDER BY ALL;
