-- How did training go, step by step? A row per run, round and step.
-- A measure that this training does not have, or not at this step, is null.
--   run_id: the run
--   name: the run's name
--   round_id: the round
--   round_index: its place in its series, from 1
--   step: optimizer step, from 1
--   loss: the training loss
--   reward_margin: implicit reward of the chosen less that of the rejected
--   reward_accuracy: share of pairs whose chosen has the higher implicit reward
--   chosen_reward: implicit reward of the chosen
--   rejected_reward: implicit reward of the rejected
--   chosen_logp: log-probability of the chosen, in nats
--   rejected_logp: log-probability of the rejected, in nats
--   kl: KL(policy || reference) of a response, at checks only, in nats
--   grad_norm: norm of the gradient before clipping
--   learning_rate: at this step
--   metrics: every metric of the step by name (docs/training.md)
CREATE VIEW training_curves AS
SELECT
    s.run_id,
    any_value(runs.name) AS name,
    m.round_id,
    any_value(runs.round_index) AS round_index,
    m.step,
    max(m.value) FILTER (WHERE m.metric = 'loss') AS loss,
    max(m.value) FILTER (WHERE m.metric = 'rewards/margins') AS reward_margin,
    max(m.value) FILTER (WHERE m.metric = 'rewards/accuracies') AS reward_accuracy,
    max(m.value) FILTER (WHERE m.metric = 'rewards/chosen') AS chosen_reward,
    max(m.value) FILTER (WHERE m.metric = 'rewards/rejected') AS rejected_reward,
    max(m.value) FILTER (WHERE m.metric = 'logps/chosen') AS chosen_logp,
    max(m.value) FILTER (WHERE m.metric = 'logps/rejected') AS rejected_logp,
    max(m.value) FILTER (WHERE m.metric = 'kl') AS kl,
    max(m.value) FILTER (WHERE m.metric = 'grad_norm') AS grad_norm,
    max(m.value) FILTER (WHERE m.metric = 'learning_rate') AS learning_rate,
    map_from_entries(list((m.metric, m.value) ORDER BY m.metric)) AS metrics
FROM stage_runs AS s
INNER JOIN training_metrics AS m ON m.stage_key = s.stage_key
LEFT JOIN runs ON runs.run_id = s.run_id
GROUP BY s.run_id, m.round_id, m.step
ORDER BY s.run_id, m.round_id, m.step;
