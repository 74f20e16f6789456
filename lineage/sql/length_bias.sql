-- Does length tell the chosen answer, before filtering and after? Two rows per run, or three.
-- A stratum holds the pairs whose token gap lies between two powers of two.
--   run_id: the run
--   pairs_of: proposed; kept by every filter; weighted: those kept by their length_weight, if any
--   pairs: how many
--   bias: right less wrong guesses of the chosen by its stratum's majority, as a share of the pairs
--   longer_wins: of the pairs whose lengths differ, the share whose chosen is the longer
--   correlation: point-biserial, of the signed gap with being chosen, over both answers of each
CREATE VIEW length_bias AS
WITH measured AS (
    SELECT run_id, 'proposed' AS pairs_of, length_gap, 1.0::DOUBLE AS weight FROM pair_quality
    UNION ALL
    SELECT run_id, 'kept', length_gap, 1.0 FROM pair_quality WHERE kept
    UNION ALL
    SELECT run_id, 'weighted', length_gap, length_weight
    FROM pair_quality
    WHERE kept AND length_weight IS NOT NULL
),

strata AS (
    SELECT
        run_id,
        pairs_of,
        count(*) AS pairs,
        sum(weight) AS weights,
        abs(sum(weight * sign(length_gap))) AS surplus,
        coalesce(sum(weight) FILTER (WHERE length_gap > 0), 0) AS longer,
        coalesce(sum(weight) FILTER (WHERE length_gap <> 0), 0) AS differing,
        sum(weight * length_gap) AS gaps,
        sum(weight * length_gap::DOUBLE ^ 2) AS squares
    FROM measured
    GROUP BY run_id, pairs_of, length(format('{:b}', abs(length_gap)))
)

SELECT
    run_id,
    pairs_of,
    sum(pairs)::BIGINT AS pairs,
    sum(surplus) / sum(weights) AS bias,
    sum(longer) / nullif(sum(differing), 0) AS longer_wins,
    sum(gaps) / nullif(sqrt(sum(differing) * sum(squares)), 0) AS correlation
FROM strata
GROUP BY run_id, pairs_of
ORDER BY run_id, list_position(['proposed', 'kept', 'weighted'], pairs_of);
