-- Which files did a pair go into, and what was trained on them? A row per exported pair and
-- stage output.
--   stage_key: the export stage's output (run_stages.export_key)
--   pair_id: the pair
--   exported_to: ids of the exports that hold it
--   trained_in: ids of the rounds that trained on one of them, in any run
CREATE VIEW exported_pairs AS
WITH trained AS (
    SELECT export_id, list(DISTINCT round_id) AS rounds FROM store.rounds GROUP BY export_id
)
SELECT
    export_rows.stage_key,
    export_rows.pair_id,
    list(export_rows.export_id ORDER BY export_rows.export_id) AS exported_to,
    list_sort(list_distinct(flatten(list(coalesce(trained.rounds, []))))) AS trained_in
FROM export_rows
LEFT JOIN trained ON trained.export_id = export_rows.export_id
GROUP BY export_rows.stage_key, export_rows.pair_id;
