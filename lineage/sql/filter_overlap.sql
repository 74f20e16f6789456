-- Which filters drop the same pairs? A row per run and two filters, the earlier one first.
--   run_id: the run
--   filter: the one that comes earlier in the configured order
--   other: the later one
--   pairs: those that both drop
--   share_of_filter: these / pairs that the earlier one drops
--   share_of_other: these / pairs that the later one drops; 1: the earlier one leaves it nothing
CREATE VIEW filter_overlap AS
WITH
-- In one pass and by run_id: a question about one run reads that run's rulings alone.
of_pair AS (
    SELECT k.run_id, d.pair_id, list({'position': d.position, 'filter': d.filter}) AS filters
    FROM run_stages AS k
    INNER JOIN decisions AS d ON d.stage_key = k.filter_key
    WHERE NOT d.kept
    GROUP BY k.run_id, d.pair_id
),
earlier AS (
    SELECT run_id, filters, unnest(filters) AS a FROM of_pair
),
both_drop AS (
    SELECT run_id, a, unnest(filters) AS b FROM earlier
),
-- A filter with itself: all pairs that it drops.
counted AS (
    SELECT
        run_id,
        a.filter AS filter,
        b.filter AS other,
        any_value(a.position) AS first_position,
        any_value(b.position) AS other_position,
        count(*) AS pairs
    FROM both_drop
    WHERE b.position >= a.position
    GROUP BY run_id, a.filter, b.filter
),
shares AS (
    SELECT
        *,
        pairs / max(pairs) FILTER (WHERE filter = other) OVER (
            PARTITION BY run_id, filter
        ) AS share_of_filter,
        pairs / max(pairs) FILTER (WHERE filter = other) OVER (
            PARTITION BY run_id, other
        ) AS share_of_other
    FROM counted
)
SELECT run_id, filter, other, pairs, share_of_filter, share_of_other
FROM shares
WHERE filter <> other
ORDER BY run_id, first_position, other_position;
