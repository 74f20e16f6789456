-- How do a run's numbers lie, against their bands and the accepted run before? A row per run,
-- measure and statistic; the means of one measure over the runs of a name are its history.
--   run_id: the run
--   name: the run's name
--   started_at: when the run was first started
--   measure: what was measured: completion_tokens, score:SCORER, margin ... (docs/validation.md)
--   statistic: mean or sd; psi or ks against the run before
--   value: what came out; null: nothing to measure it on
--   minimum: what it must be at least; null: no limit
--   maximum: what it may be at most; null: no limit
--   passed: whether it keeps to its limits; null without any
--   rows: values of this run looked at
--   rows_before: values of the run before looked at
--   run_before: the accepted run that psi and ks compare with
--   stage_key: the drift stage's output
CREATE VIEW drift AS
SELECT
    s.run_id,
    runs.name,
    runs.started_at,
    d.measure,
    d.statistic,
    d."value",
    d.minimum,
    d.maximum,
    d.passed,
    d."rows",
    d.rows_before,
    d.run_before,
    d.stage_key
FROM stage_runs AS s
INNER JOIN store.drift AS d ON d.stage_key = s.stage_key
LEFT JOIN runs ON runs.run_id = s.run_id
WHERE s.stage = 'drift'
ORDER BY runs.started_at, s.run_id, d.measure, d.statistic;
