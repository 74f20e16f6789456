-- Which runs used which set of candidates, and what did they make of it? A row per run and stage
-- that samples candidates: generate, and the evaluations before and after a round.
--   run_id: the run
--   name: the run's name
--   flow: the run's flow
--   started_at: the run's first start
--   stage: the stage
--   candidates_key: stage_key of the candidates
--   edit_key: stage_key of the edited answers among them; null where none were edited
--   prompts_key: stage_key of the run's prompts
--   judge_keys: stage_keys of these candidates' judgments, one per scorer, and of a pairwise judge's
--   on the answers before and after a round
--   score_key: stage_key of their scores
--   pair_key: stage_key of the pairs made of them; null for an evaluation
--   noise_key: stage_key of those pairs' label noise
--   filter_key: stage_key of the decisions on those pairs
--   export_key: stage_key of their exports
CREATE VIEW candidate_outputs AS
WITH
duels AS (
    SELECT run_id, list(stage_key ORDER BY stage_key) AS judge_keys
    FROM stage_runs
    WHERE stage SIMILAR TO 'evaluate_[^:]*:.*'
    GROUP BY run_id
)
SELECT
    k.run_id,
    runs.name,
    runs.flow,
    runs.started_at,
    s.stage,
    s.stage_key AS candidates_key,
    CASE WHEN s.stage = 'generate' THEN k.edit_key END AS edit_key,
    k.prompts_key,
    -- An evaluation keeps candidates, judgments and scores in one output.
    list_concat(
        CASE WHEN s.stage = 'generate' THEN k.judge_keys ELSE [s.stage_key] END,
        coalesce(duels.judge_keys, [])
    ) AS judge_keys,
    CASE WHEN s.stage = 'generate' THEN k.score_key ELSE s.stage_key END AS score_key,
    CASE WHEN s.stage = 'generate' THEN k.pair_key END AS pair_key,
    CASE WHEN s.stage = 'generate' THEN k.noise_key END AS noise_key,
    CASE WHEN s.stage = 'generate' THEN k.filter_key END AS filter_key,
    CASE WHEN s.stage = 'generate' THEN k.export_key END AS export_key
FROM stage_runs AS s
INNER JOIN run_stages AS k ON k.run_id = s.run_id
LEFT JOIN runs ON runs.run_id = s.run_id
LEFT JOIN duels ON duels.run_id = s.run_id
WHERE s.stage SIMILAR TO 'generate|evaluate_[^:]*';
