"""Runs of rounds, and what their page says of them."""

from __future__ import annotations

import re

import pytest

from flows.report_series import series_of, series_page, write_series
from lineage.records import RunRecord, write_run
from lineage.workspace import Workspace
from stages.errors import DataError
from stages.tables import EVALUATIONS, GATES, ROUNDS, VALIDATIONS
from tests.flows.report_samples import HOSTILE, table
from tests.lineage.small_workspace import write_stage, write_stages_of_run


def run(index, day, *, name="on-policy", status="completed", error=None, rounds=1):
    return RunRecord(
        run_id=f"{name}-{index}-{day}", flow="dpo_round" if index else "refresh", name=name,
        round_index=index, config={"rounds": rounds}, code_version="0.1.0", status=status,
        started_at=f"2026-11-{day:02}T10:00:00+00:00", error=error,
    )  # fmt: skip


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path)


def written(workspace, *records):
    for record in records:
        write_run(workspace, record)
    return records


def judge(workspace, record, before, after, *, promoted, by_pairs=False):
    """Give a round its gate: a rise by 0.1 of whatever, with an interval of +-0.05 around it.

    ``by_pairs``: by a pairwise judge, who gives no scores.
    """
    index = record.round_index
    whole = [
        (f"r{index}", metric, "sampled", "all", 500, old, new, new - old, low, high)
        for metric, old, new, low, high in (
            ("success", before, after, after - before - 0.05, after - before + 0.05),
            ("length_controlled_win_rate", 0.5, 0.6, 0.05, 0.15),
            ("kl_nats", 0.0, 1.25, 1.0, 1.5),
            ("completion_tokens", 10.0, 12.0, 1.0, 3.0),
        )[by_pairs:]
    ]
    weights = ("w0", "w0", "policy", f"w{index}")
    round_row = (f"r{index}", index, "e", *weights, "m", 400 + index, 9, promoted)
    outputs = {
        "rounds": table(ROUNDS, round_row),
        "evaluations": table(EVALUATIONS, *whole),
        "gates": table(GATES, (f"r{index}", "kl", 1.25, 1.0, False)),
        "validations": VALIDATIONS.empty(),
    }
    key = f"{index:020x}"
    write_stage(workspace, "gate", key, outputs, run=record)
    write_stages_of_run(workspace, record, {"gate": key}, made_here=["gate"])


def test_the_rounds_of_a_series_follow_each_other(workspace):
    old = written(workspace, run(1, 1), run(2, 2))
    new = written(workspace, run(1, 3), run(2, 4), run(3, 5))
    written(workspace, run(2, 4, name="another"), run(0, 4))
    assert [r.run_id for r in series_of(workspace, new[1].run_id)] == [r.run_id for r in new]
    assert [r.run_id for r in series_of(workspace, old[0].run_id)] == [r.run_id for r in old]
    assert series_page(workspace, new[2].run_id) == f"../{new[0].run_id}/series.html"


def test_a_run_that_is_alone_has_no_series_unless_more_are_asked_for(workspace):
    refresh, alone = written(workspace, run(0, 1), run(1, 1))
    (first,) = written(workspace, run(1, 2, name="asked", rounds=3))
    assert series_page(workspace, refresh.run_id) == series_page(workspace, alone.run_id) == ""
    assert series_page(workspace, first.run_id)
    with pytest.raises(DataError, match="is no round"):
        write_series(workspace, refresh.run_id)


def test_the_page_shows_every_round(workspace):
    records = written(workspace, run(1, 1), run(2, 2), run(3, 3))
    judge(workspace, records[0], 0.30, 0.40, promoted=True)
    judge(workspace, records[1], 0.40, 0.38, promoted=False)
    judge(workspace, records[2], 0.40, 0.55, promoted=True)
    page = write_series(workspace, records[2].run_id).read_text()
    assert "Held-out success rose from 30.0\u202f% to 55.0\u202f%." in page
    assert "3 rounds: 2 promoted, 1 held back." in page
    assert page.count("<svg ") == 4
    assert re.findall(r'href="\.\./([^"]+)/report.html"', page) == [r.run_id for r in records]
    cells = re.findall(r'data-l="(\w+)[^"]*">([^<]*)</td>', page.replace("\u202f", " "))
    assert cells[:8] == [
        ("Pairs", "401"), ("Before", "30.0 %"), ("After", "40.0 %"), ("Change", "5 to 15"),
        ("Greedy", ""), ("Win", "60.0 %"), ("KL", "1.25"), ("Length", "\u00d71.2"),
    ]  # fmt: skip
    assert "promoted by force" in page, "its criterion was not met"


def test_win_rates_of_a_pairwise_judge_are_not_put_one_after_the_other(workspace):
    records = written(workspace, run(1, 1), run(2, 2))
    for record in records:
        judge(workspace, record, 0.0, 0.0, promoted=True, by_pairs=True)
    page = write_series(workspace, records[1].run_id).read_text().replace("\u202f", " ")
    assert "The last promoted round wins 60.0 % against the policy before." in page
    assert page.count("<svg ") == 3, "one win rate, and none from round to round"


def test_rounds_that_failed_or_were_never_judged_are_told(workspace):
    (first, _) = written(workspace, run(1, 1), run(2, 2, status="failed", error=HOSTILE))
    page = write_series(workspace, first.run_id).read_text()
    assert "No round has been judged." in page
    assert "Round 2 failed: &lt;script&gt;" in page
    assert "<svg" not in page
    assert "<script" not in page
