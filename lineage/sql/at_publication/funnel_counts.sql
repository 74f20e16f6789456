-- The rows of the view `funnel` for the runs in temp.asked. The other tables of schema temp are
-- those runs' part-files alone.
WITH
-- Edited answers have outputs of their own: candidates and judgments are of several.
asked AS (
    SELECT
        *,
        [generate_key, edit_key] AS answer_keys,
        CASE WHEN generate_key IS NOT NULL THEN answer_keys::VARCHAR END AS answered,
        CASE WHEN judge_keys <> [] THEN concat(answered, judge_keys::VARCHAR) END AS judged
    FROM temp.asked
),
-- Runs share outputs: each output is counted once, then the number is handed to its runs.
prompt_counts AS (
    SELECT stage_key, split, count(*) AS n FROM temp.prompts GROUP BY ALL
),
answers AS (
    SELECT k.answered, c.candidate_id, p.split
    FROM (
        SELECT DISTINCT
            prompts_key, answer_keys::VARCHAR AS answered, unnest(answer_keys) AS answer_key
        FROM asked
    ) AS k
    INNER JOIN temp.candidates AS c ON c.stage_key = k.answer_key
    INNER JOIN temp.prompts AS p ON p.stage_key = k.prompts_key AND p.prompt_id = c.prompt_id
),
dropped AS (
    SELECT
        stage_key,
        pair_id,
        min(position) AS place,
        arg_min(coalesce(reason, filter), position) AS reason
    FROM temp.decisions
    WHERE NOT kept
    GROUP BY stage_key, pair_id
),
fates AS (
    SELECT k.pair_key, k.filter_key, p.split, d.reason, min(d.place) AS place, count(*) AS n
    FROM (SELECT DISTINCT prompts_key, pair_key, filter_key FROM asked) AS k
    INNER JOIN temp.pairs ON pairs.stage_key = k.pair_key
    INNER JOIN temp.prompts AS p ON p.stage_key = k.prompts_key AND p.prompt_id = pairs.prompt_id
    LEFT JOIN dropped AS d ON d.stage_key = k.filter_key AND d.pair_id = pairs.pair_id
    GROUP BY ALL
),
counts AS (
    SELECT 'prompts' AS step, stage_key, split, n FROM prompt_counts
    UNION ALL
    SELECT 'candidates', answered, split, count(*) FROM answers GROUP BY ALL
    UNION ALL
    SELECT 'judgments', k.judged, a.split, count(*)
    FROM (
        SELECT DISTINCT answered, judged, unnest(judge_keys) AS judge_key FROM asked
    ) AS k
    INNER JOIN temp.judgments AS j ON j.stage_key = k.judge_key
    INNER JOIN answers AS a
        ON a.answered = k.answered AND a.candidate_id = j.candidate_id
    GROUP BY ALL
    UNION ALL
    SELECT 'candidates scored', k.score_key, p.split, count(DISTINCT s.candidate_id)
    FROM (SELECT DISTINCT prompts_key, score_key FROM asked) AS k
    INNER JOIN temp.scores AS s ON s.stage_key = k.score_key AND s.score IS NOT NULL
    INNER JOIN temp.prompts AS p ON p.stage_key = k.prompts_key AND p.prompt_id = s.prompt_id
    GROUP BY ALL
    UNION ALL
    SELECT DISTINCT 'pairs', pair_key, split, sum(n)
    FROM fates
    GROUP BY pair_key, filter_key, split
    UNION ALL
    SELECT 'kept', filter_key, split, n FROM fates WHERE reason IS NULL
),
reached AS (
    SELECT k.run_id, k.prompts_key, steps.*
    FROM asked AS k,
        LATERAL (
            VALUES (0, 'prompts', k.prompts_key), (1, 'candidates', k.answered),
                (2, 'judgments', k.judged), (3, 'candidates scored', k.score_key),
                (4, 'pairs', k.pair_key), (5, 'kept', k.filter_key)
        ) AS steps (position, step, stage_key)
    WHERE steps.stage_key IS NOT NULL
)
SELECT
    reached.run_id,
    prompt_counts.split,
    reached.position,
    reached.step,
    coalesce(counts.n, 0)::BIGINT AS rows
FROM reached
INNER JOIN prompt_counts ON prompt_counts.stage_key = reached.prompts_key
LEFT JOIN counts
    ON counts.stage_key = reached.stage_key
    AND counts.step = reached.step
    AND counts.split = prompt_counts.split
UNION ALL
SELECT
    k.run_id,
    fates.split,
    5 + dense_rank() OVER (PARTITION BY k.run_id ORDER BY fates.place, fates.reason),
    'dropped: ' || fates.reason,
    fates.n
FROM asked AS k
INNER JOIN fates
    ON fates.filter_key = k.filter_key AND fates.pair_key = k.pair_key AND fates.reason IS NOT NULL;
