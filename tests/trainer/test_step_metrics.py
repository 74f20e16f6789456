import math

import pytest
import torch

from trainer.step_metrics import Pairs, Speed, pairs_of, step_metrics


def pairs(chosen_tokens, rejected_tokens, chosen_drift, rejected_drift):
    columns = (chosen_tokens, rejected_tokens, chosen_drift, rejected_drift)
    return Pairs(*(torch.tensor(column) for column in columns))


def batch():
    """Two pairs: answers of 1 and 3 tokens, and of 2 and 2, after one prompt token."""
    mask = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 0], [0, 1, 1, 1], [0, 1, 1, 0]])
    log_probs = torch.tensor([[-1.0, 0, 0], [-1, -2, 0], [-1, -2, -4], [-3, -1, 0]])
    reference = {
        "ref_chosen_logps": torch.tensor([-2.0, -2]),
        "ref_rejected_logps": torch.tensor([-5.0, -3]),
    }
    return log_probs, {"completion_mask": mask, **reference}


@pytest.mark.parametrize(
    ("ld_alpha", "rejected_drift"),
    # The first rejected's tail beyond one token, -2 and -4, counts in full, half or not at all.
    [(None, [-7 + 5, -4 + 3]), (0.5, [-4 + 5, -4 + 3]), (0.0, [-1 + 5, -4 + 3])],
)
def test_lengths_and_drifts_of_a_batch(ld_alpha, rejected_drift):
    found = pairs_of(*batch(), ld_alpha)
    assert found.chosen_tokens.tolist() == [1, 2]
    assert found.rejected_tokens.tolist() == [3, 2]
    assert found.chosen_drift.tolist() == [-1 + 2, -3 + 2]
    assert found.rejected_drift.tolist() == rejected_drift


def test_a_steps_metrics_are_over_the_pairs_of_all_its_batches():
    # Length differences 1, 2, 6; margins 3, 1, 2. Means 3 and 2, deviations (-2, -1, 3) and
    # (1, -1, 0): covariance -2 + 1 + 0 = -1, squares 14 and 2.
    found = step_metrics(
        [pairs([5, 4], [4, 2], [1.0, 0.0], [-2.0, -1.0]), pairs([9], [3], [2.0], [0.0])]
    )
    assert found == pytest.approx(
        {
            "completion_tokens/chosen": 6,
            "completion_tokens/rejected": 3,
            "drift/chosen": 1,
            "drift/rejected": -1,
            "length_margin_correlation": -1 / math.sqrt(28),
        }
    )


@pytest.mark.parametrize(
    "batches",
    [
        [pairs([5, 4], [4, 2], [1.0, 0.0], [0.0, 0.0])],  # two points
        [pairs([5, 4, 3], [4, 3, 2], [1.0, 0.0, 3.0], [0.0] * 3)],  # all longer by one
        [pairs([5, 4, 9], [4, 3, 2], [1e-6, 0.0, 3e-6], [0.0] * 3)],  # no margins yet
    ],
)
def test_a_correlation_without_meaning_is_missing(batches):
    assert "length_margin_correlation" not in step_metrics(batches)


def test_speed_is_of_the_step():
    times = iter([10.0, 12.0])
    speed = Speed(lambda: next(times))
    speed.start(tokens=1000)
    found = speed.metrics(tokens=1600, rows=8)
    assert (found["tokens_per_second"], found["pairs_per_second"]) == (300, 4)
    assert found["peak_memory_gib"] > 0.01
