-- Which filters drop the same pairs? A row per run and two filters, the earlier one first.
--   run_id: the run
--   filter: the one that comes earlier in the configured order
--   other: the later one
--   pairs: those that both drop
--   share_of_filter: these / pairs that the earlier one drops
--   share_of_other: these / pairs that the later one drops; 1: the earlier one leaves it nothing
CREATE VIEW filter_overlap AS
WITH
dropping AS (
    SELECT stage_key, pair_id, position, filter FROM decisions WHERE NOT kept
),
alone AS (
    SELECT stage_key, filter, count(*) AS pairs FROM dropping GROUP BY ALL
),
shared AS (
    SELECT
        a.stage_key,
        a.filter,
        b.filter AS other,
        count(*) AS pairs,
        any_value(a.position) AS first_position,
        any_value(b.position) AS other_position
    FROM dropping AS a
    INNER JOIN dropping AS b
        ON b.stage_key = a.stage_key AND b.pair_id = a.pair_id AND b.position > a.position
    GROUP BY ALL
)
SELECT
    k.run_id,
    o.filter,
    o.other,
    o.pairs,
    o.pairs / earlier.pairs AS share_of_filter,
    o.pairs / later.pairs AS share_of_other
FROM run_stages AS k
INNER JOIN shared AS o ON o.stage_key = k.filter_key
INNER JOIN alone AS earlier ON earlier.stage_key = o.stage_key AND earlier.filter = o.filter
INNER JOIN alone AS later ON later.stage_key = o.stage_key AND later.filter = o.other
ORDER BY k.run_id, o.first_position, o.other_position;
