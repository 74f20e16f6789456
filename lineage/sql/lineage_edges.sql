-- What was made from what, in each run? A row per run and pair of a thing made and a thing read.
-- Things are tables, exported files and models; equal hashes are equal content.
--   run_id: the run
--   position: the stage's place in the run, from 0
--   stage: the stage's name within the run
--   status: made here, or reused from an earlier run
--   stage_key: the stage's output
--   from_kind: what it read: table, export or model
--   from_name: the table, or the file's or model's path; a model's hash if it lies elsewhere
--   from_hash: of its content
--   from_stage_key: the output that holds it; null: not made in this workspace
--   to_kind: what it made
--   to_name: the table, or the path
--   to_hash: of its content
CREATE VIEW lineage_edges AS
SELECT
    s.run_id,
    s.position,
    s.stage,
    s.status,
    e.stage_key,
    e.from_kind,
    e.from_name,
    e.from_hash,
    e.from_stage_key,
    e.to_kind,
    e.to_name,
    e.to_hash
FROM stage_runs AS s
INNER JOIN edges AS e ON e.stage_key = s.stage_key
ORDER BY s.run_id, s.position, s.stage, e.to_kind, e.to_name, e.from_kind, e.from_name;
