-- How many rows are left after each step of a run, and why were pairs dropped?
-- A row per run, split and step, then one per drop reason. A dropped pair counts for the first
-- filter that drops it, so that pairs = kept + the sum of the dropped rows. A step that left
-- nothing has a row with 0; a step that the run has not reached has none. Counted when published.
--   run_id: the run
--   split: train or heldout
--   position: the step's place, from 0
--   step: prompts, candidates, judgments, candidates scored, pairs, kept, then dropped: REASON
--   rows: how many
CREATE VIEW funnel AS
SELECT run_id, split, position, step, rows
FROM store.funnel_counts
ORDER BY ALL;
