-- Which files did a pair go into, and what was trained on them? A row per exported pair and
-- stage output.
--   stage_key: the export stage's output (run_stages.export_key)
--   pair_id: the pair
--   exported_to: ids of the exports that hold it
--   trained_in: ids of the rounds that trained on one of them, in any run
CREATE VIEW exported_pairs AS
SELECT
    export_rows.stage_key,
    export_rows.pair_id,
    list_sort(list_distinct(list(export_rows.export_id))) AS exported_to,
    coalesce(
        list_sort(list_distinct(
            list(trained.round_id) FILTER (WHERE trained.round_id IS NOT NULL)
        )),
        []
    ) AS trained_in
FROM export_rows
LEFT JOIN (SELECT DISTINCT export_id, round_id FROM store.rounds) AS trained
    ON trained.export_id = export_rows.export_id
GROUP BY export_rows.stage_key, export_rows.pair_id;
