-- How many of a run's labels are wrong, by its own estimate? A row per run that could be asked.
--   run_id: the run
--   scorer: whose scores made the labels
--   method: calibrated, agreement or swaps (docs/noise.md); null: it could not be estimated
--   rate: share of wrong labels among the proposed pairs
--   low: lower end of its 95 % interval
--   high: upper end
--   rate_kept: mean probability_wrong of the pairs that no filter dropped
--   pairs: proposed pairs
--   calibration_pairs: pairs whose better answer is known
--   note: on what the estimate rests, or what is missing for one
CREATE VIEW run_noise AS
WITH
dropped AS (
    SELECT DISTINCT k.run_id, d.pair_id
    FROM run_stages AS k
    INNER JOIN decisions AS d ON d.stage_key = k.filter_key
    WHERE NOT d.kept
),
kept AS (
    SELECT k.run_id, avg(noise.probability_wrong) AS rate
    FROM run_stages AS k
    INNER JOIN label_noise AS noise ON noise.stage_key = k.noise_key
    -- By run_id, so that a question about one run reads that run's rulings alone.
    LEFT JOIN dropped ON dropped.run_id = k.run_id AND dropped.pair_id = noise.pair_id
    WHERE k.filter_key IS NOT NULL AND dropped.pair_id IS NULL
    GROUP BY k.run_id
)
SELECT
    k.run_id,
    r.scorer,
    r.method,
    r.rate,
    r.low,
    r.high,
    kept.rate AS rate_kept,
    r.pairs,
    r.calibration_pairs,
    r.note
FROM run_stages AS k
INNER JOIN noise_rates AS r ON r.stage_key = k.noise_key
LEFT JOIN kept ON kept.run_id = k.run_id
ORDER BY k.run_id, r.scorer;
