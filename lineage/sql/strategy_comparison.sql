-- Which way of pairing makes the better dataset of the same judgments? A row per dataset that a
-- sweep made; those with the same candidates_key are of the same candidates. Train pairs only.
--   run_id: the dataset's run
--   candidates_key: stage_key of the candidates
--   started_at: when it was first made
--   strategy: the pairing strategy
--   scorer: whose scores decided; null without pairs
--   pairing: the pairing's configuration, as JSON
--   filters: the filters' configuration, as JSON
--   proposed: pairs that the strategy makes
--   kept: those that no filter drops
--   prompts: prompts with a kept pair
--   prompts_share: of all train prompts
--   mean_margin: of the kept pairs, in the scorer's unit
--   median_margin: of the kept pairs, in the scorer's unit
--   mean_length_gap: chosen - rejected, in tokens
--   longer_chosen_rate: of the pairs of unequal length, in how many the chosen is the longer one
--   gold_accuracy: of planted pairs that the strategy would make, in how many the good one wins
--   gold_pairs: how many these are
--   agreement: scorer to share: of the kept pairs it tells apart, in how many it scores the chosen higher
--   distinct_chosen_rate: different chosen texts / kept pairs
--   distinct_bigram_rate: different / all pairs of neighbouring words in up to 1000 chosen texts
CREATE VIEW strategy_comparison AS
WITH scorers AS (
    SELECT stage_key, any_value(scorer) AS scorer FROM pairs GROUP BY stage_key
),
measures AS (
    SELECT
        stage_key,
        map_from_entries(list((measure, value))) AS values,
        map_from_entries(list((measure, count))) AS counts,
        map_from_entries(
            list((substr(measure, 11), value) ORDER BY measure)
            FILTER (WHERE starts_with(measure, 'agreement:'))
        ) AS agreement
    FROM pair_measures
    GROUP BY stage_key
)
SELECT
    runs.run_id,
    k.generate_key AS candidates_key,
    runs.started_at,
    runs.config ->> '$.pairing.strategy' AS strategy,
    scorers.scorer,
    runs.config -> '$.pairing' AS pairing,
    runs.config -> '$.filters' AS filters,
    m.values['proposed']::BIGINT AS proposed,
    m.values['kept']::BIGINT AS kept,
    m.values['prompts']::BIGINT AS prompts,
    m.values['prompts'] / m.counts['prompts'] AS prompts_share,
    m.values['mean_margin'] AS mean_margin,
    m.values['median_margin'] AS median_margin,
    m.values['mean_length_gap'] AS mean_length_gap,
    m.values['longer_chosen_rate'] AS longer_chosen_rate,
    m.values['gold_accuracy'] AS gold_accuracy,
    m.counts['gold_accuracy'] AS gold_pairs,
    m.agreement,
    m.values['distinct_chosen_rate'] AS distinct_chosen_rate,
    m.values['distinct_bigram_rate'] AS distinct_bigram_rate
FROM stage_runs AS s
INNER JOIN measures AS m ON m.stage_key = s.stage_key
INNER JOIN runs ON runs.run_id = s.run_id
INNER JOIN run_stages AS k ON k.run_id = s.run_id
LEFT JOIN scorers ON scorers.stage_key = k.pair_key
WHERE s.stage = 'compare'
ORDER BY candidates_key, runs.started_at, runs.run_id;
