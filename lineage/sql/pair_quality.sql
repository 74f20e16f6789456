-- How good is every pair, why was it kept or dropped, and what was it used for?
-- A row per run and pair.
--   run_id: the run
--   pair_id: the pair
--   prompt_id: the prompt both completions answer
--   source: where the prompt came from
--   stratum: the prompt's group within its source
--   split: train or heldout
--   scorer: whose scores decided
--   strategy: the pairing strategy
--   chosen_score: in the scorer's unit
--   rejected_score: in the scorer's unit
--   margin: chosen_score - rejected_score
--   confidence: probability that the label is right (label_noise), where known
--   length_weight: what it counts in training against length bias, where that is reweighted
--   chosen_tokens: length of the chosen completion
--   rejected_tokens: length of the rejected completion
--   length_gap: chosen_tokens - rejected_tokens
--   kept: no filter dropped it; null while the run has not filtered
--   reasons: why it was dropped, in the filters' order; empty for a kept pair
--   exported_to: ids of this run's exports that hold it
--   trained_in: ids of the rounds that trained on one of them, or mixed the pair in later
CREATE VIEW pair_quality AS
WITH
-- Everything is joined by run_id, not by stage_key: a question about one run then reads that run's
-- files alone. What is joined is grouped by what it is joined on, so that DuckDB leaves out the last
-- join where no column of it is asked for.
asked AS (
    SELECT
        k.run_id,
        p.prompt_id,
        any_value(p.source) AS source,
        any_value(p.stratum) AS stratum,
        any_value(p.split) AS split
    FROM run_stages AS k
    INNER JOIN prompts AS p ON p.stage_key = k.prompts_key
    GROUP BY k.run_id, p.prompt_id
),
dropped AS (
    SELECT
        k.run_id,
        d.pair_id,
        list((d.position, coalesce(d.reason, d.filter))) AS reasons
    FROM run_stages AS k
    INNER JOIN decisions AS d ON d.stage_key = k.filter_key
    WHERE NOT d.kept
    GROUP BY k.run_id, d.pair_id
),
exported AS (
    SELECT k.run_id, e.pair_id, e.export_id, e.export_id AS own
    FROM run_stages AS k
    INNER JOIN export_rows AS e ON e.stage_key = k.export_key
    UNION ALL
    -- A round that also trains on earlier rounds' pairs has an export of all of them.
    SELECT k.run_id, e.pair_id, e.export_id, NULL
    FROM stage_runs AS mix
    INNER JOIN export_rows AS e ON e.stage_key = mix.stage_key
    INNER JOIN pairs ON pairs.pair_id = e.pair_id
    INNER JOIN run_stages AS k ON k.pair_key = pairs.stage_key
    WHERE mix.stage = 'mix'
),
facts AS (
    SELECT
        k.run_id,
        noise.pair_id,
        noise.probability_wrong,
        NULL AS length_weight,
        NULL AS export_id,
        NULL AS round_id
    FROM run_stages AS k
    INNER JOIN label_noise AS noise ON noise.stage_key = k.noise_key
    UNION ALL
    SELECT k.run_id, d.pair_id, NULL, d.value, NULL, NULL
    FROM run_stages AS k
    INNER JOIN decisions AS d ON d.stage_key = k.filter_key
    WHERE d.kept AND d.filter = 'length_weight'
    UNION ALL
    SELECT exported.run_id, exported.pair_id, NULL, NULL, exported.own, trained.round_id
    FROM exported
    LEFT JOIN (SELECT DISTINCT export_id, round_id FROM store.rounds) AS trained
        ON trained.export_id = exported.export_id
),
found AS (
    SELECT
        run_id,
        pair_id,
        max(probability_wrong) AS probability_wrong,
        max(length_weight) AS length_weight,
        list(export_id) FILTER (WHERE export_id IS NOT NULL) AS exported_to,
        list(round_id) FILTER (WHERE round_id IS NOT NULL) AS trained_in
    FROM facts
    GROUP BY run_id, pair_id
)
SELECT
    k.run_id,
    pairs.pair_id,
    pairs.prompt_id,
    asked.source,
    asked.stratum,
    asked.split,
    pairs.scorer,
    pairs.strategy,
    pairs.chosen_score,
    pairs.rejected_score,
    pairs.margin,
    1 - found.probability_wrong AS confidence,
    found.length_weight,
    pairs.chosen_tokens,
    pairs.rejected_tokens,
    pairs.chosen_tokens - pairs.rejected_tokens AS length_gap,
    CASE WHEN k.filter_key IS NOT NULL THEN dropped.pair_id IS NULL END AS kept,
    coalesce(list_transform(list_sort(dropped.reasons), lambda ruling: ruling[2]), []) AS reasons,
    coalesce(list_sort(list_distinct(found.exported_to)), []) AS exported_to,
    coalesce(list_sort(list_distinct(found.trained_in)), []) AS trained_in
FROM run_stages AS k
INNER JOIN pairs ON pairs.stage_key = k.pair_key
LEFT JOIN asked ON asked.run_id = k.run_id AND asked.prompt_id = pairs.prompt_id
LEFT JOIN dropped ON dropped.run_id = k.run_id AND dropped.pair_id = pairs.pair_id
LEFT JOIN found ON found.run_id = k.run_id AND found.pair_id = pairs.pair_id;
