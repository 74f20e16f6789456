-- Which pairs did a round train on that mixed earlier rounds' pairs in, and whose are they?
-- A row per round and pair; rounds that trained on their own pairs alone have none.
--   round_id: the round
--   pair_id: the pair
--   line: its row in the file trained on, from 1
--   export_id: the file trained on
--   stage_key: the mix stage's output
--   from_run_id: the run that made the pair
--   mixed_in: it is an earlier round's
CREATE VIEW mixed_pairs AS
WITH
-- What the mix stage read: the pairs of each round, by stage key.
read AS (
    SELECT DISTINCT stage_key, from_stage_key FROM edges WHERE stage = 'mix' AND from_name = 'pairs'
),
made AS (
    SELECT pair_key, arg_min(run_id, started_at) AS run_id
    FROM run_stages
    INNER JOIN runs USING (run_id)
    WHERE round_index > 0
    GROUP BY pair_key
)
SELECT DISTINCT
    trained.round_id,
    lines.pair_id,
    lines.line,
    lines.export_id,
    lines.stage_key,
    made.run_id AS from_run_id,
    pairs.stage_key IS DISTINCT FROM own.pair_key AS mixed_in
FROM stage_runs AS mix
INNER JOIN run_stages AS own ON own.run_id = mix.run_id
INNER JOIN export_rows AS lines ON lines.stage_key = mix.stage_key
INNER JOIN store.rounds AS trained ON trained.export_id = lines.export_id
INNER JOIN read ON read.stage_key = mix.stage_key
INNER JOIN pairs ON pairs.stage_key = read.from_stage_key AND pairs.pair_id = lines.pair_id
LEFT JOIN made ON made.pair_key = pairs.stage_key
WHERE mix.stage = 'mix';
