-- Which exports should be made again, as what they were made from has changed?
-- A row per run, export and reason with what it is about; an export without rows is up to date.
-- Files outside the workspace are not looked at: a run started again after its source changed is
-- another run, and makes the earlier one's exports stale.
--   run_id: the run
--   export_id: the export
--   path: the export's file, relative to the workspace
--   reason: input_changed: a part-file was made again, with other rows; input_missing: there is none, or it is broken; newer_run: a later completed run of this name has other exports
--   stage: the stage that read the part-file; export where a newer run is the reason
--   about: the part-file, or the newest such run
CREATE VIEW stale AS
WITH RECURSIVE
parts_read AS (
    SELECT stage_key, stage, path, sha256, split_part(split_part(path, 'stage_key=', 2), '/', 1) AS from_key
    FROM artifacts
    WHERE role = 'input' AND kind = 'part'
),
upstream AS (
    SELECT DISTINCT stage_key AS export_key, stage_key FROM exports
    UNION
    SELECT u.export_key, r.from_key
    FROM upstream AS u
    INNER JOIN parts_read AS r ON r.stage_key = u.stage_key
),
changed AS (
    SELECT
        u.export_key,
        CASE WHEN made.sha256 IS NULL OR broken.path IS NOT NULL THEN 'input_missing'
            ELSE 'input_changed' END AS reason,
        r.stage,
        r.path AS about
    FROM upstream AS u
    INNER JOIN parts_read AS r ON r.stage_key = u.stage_key
    LEFT JOIN artifacts AS made ON made.role = 'output' AND made.path = r.path
    LEFT JOIN store.problems AS broken ON broken.path = r.path
    WHERE made.sha256 IS DISTINCT FROM r.sha256 OR broken.path IS NOT NULL
),
newer AS (
    SELECT k.run_id, 'newer_run' AS reason, 'export' AS stage, arg_max(later.run_id, later.started_at) AS about
    FROM run_stages AS k
    INNER JOIN runs AS this ON this.run_id = k.run_id
    INNER JOIN runs AS later
        ON later.name = this.name
        AND later.flow = this.flow
        AND later.round_index = this.round_index
        AND later.started_at > this.started_at
        AND later.status = 'completed'
    INNER JOIN run_stages AS l ON l.run_id = later.run_id AND l.export_key <> k.export_key
    WHERE this.flow NOT IN ('sweep', 'export')
    GROUP BY k.run_id
),
reasons AS (
    SELECT k.run_id, changed.reason, changed.stage, changed.about
    FROM run_stages AS k
    INNER JOIN changed ON changed.export_key = k.export_key
    UNION ALL
    FROM newer
)
SELECT k.run_id, e.export_id, e.path, reasons.reason, reasons.stage, reasons.about
FROM run_stages AS k
INNER JOIN exports AS e ON e.stage_key = k.export_key
INNER JOIN reasons ON reasons.run_id = k.run_id
ORDER BY ALL;
