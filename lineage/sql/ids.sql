-- Which rows can `prefmill why` be asked about? A row per id and stage output that holds it.
--   kind: prompt, candidate, pair or export
--   id: its id
CREATE VIEW ids AS
SELECT 'prompt' AS kind, prompt_id AS id FROM prompts
UNION ALL
SELECT 'candidate', candidate_id FROM candidates
UNION ALL
SELECT 'pair', pair_id FROM pairs
UNION ALL
SELECT 'export', export_id FROM exports;
