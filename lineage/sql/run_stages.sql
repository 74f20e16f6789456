-- Which stage output does each run use for each step of curation? A row per run.
-- Outputs are shared: two runs with the same settings and inputs have the same key.
--   run_id: the run
--   prompts_key: stage_key of its prompts
--   generate_key: stage_key of its candidates
--   edit_key: stage_key of the answers that were edited, and of `edits`; null where none were
--   judge_keys: stage_keys of its judgments, one per scorer, and of those of edited answers; empty
--   before the first
--   score_key: stage_key of its scores
--   pair_key: stage_key of its pairs
--   noise_key: stage_key of its label noise; null where nothing could tell of it
--   filter_key: stage_key of its decisions
--   export_key: stage_key of its exports
CREATE VIEW run_stages AS
SELECT
    run_id,
    max(stage_key) FILTER (WHERE stage = 'prompts') AS prompts_key,
    max(stage_key) FILTER (WHERE stage = 'generate') AS generate_key,
    max(stage_key) FILTER (WHERE stage = 'edit') AS edit_key,
    coalesce(
        list(stage_key ORDER BY stage_key) FILTER (WHERE stage SIMILAR TO 'judge(_edits)?:.*'), []
    ) AS judge_keys,
    max(stage_key) FILTER (WHERE stage = 'score') AS score_key,
    max(stage_key) FILTER (WHERE stage = 'pair') AS pair_key,
    max(stage_key) FILTER (WHERE stage = 'noise') AS noise_key,
    max(stage_key) FILTER (WHERE stage = 'filter') AS filter_key,
    max(stage_key) FILTER (WHERE stage = 'export') AS export_key
FROM stage_runs
GROUP BY run_id;
