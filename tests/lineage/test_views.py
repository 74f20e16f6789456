from dataclasses import replace

import polars as pl

from lineage.database import publish
from lineage.ddl import SQL_FOLDER, VIEWS, view_file
from lineage.query import connect, query
from lineage.records import write_run
from lineage.workspace import Workspace
from stages.tables import ALL_TABLES, ROW_TABLES
from tests.lineage.small_workspace import (
    CANDIDATES,
    JUDGMENTS,
    PAIRS,
    PROMPTS,
    RUN_A,
    RUN_B,
    frame,
    write_run_a,
    write_small_workspace,
    write_stage,
    write_stages_of_run,
)


def rows(workspace, sql, *values):
    return query(workspace, sql, values).rows()


def test_funnel_counts_every_step(published):
    found = rows(
        published,
        "SELECT split, position, step, rows FROM funnel WHERE run_id = ? ORDER BY split, position",
        "refresh_a1",
    )
    assert found == [
        ("heldout", 0, "prompts", 1),
        ("heldout", 1, "candidates", 2),
        ("heldout", 2, "judgments", 2),
        ("heldout", 3, "candidates scored", 2),
        ("heldout", 4, "pairs", 1),
        ("heldout", 5, "kept", 0),
        ("heldout", 7, "dropped: length_ratio_above_maximum", 1),
        ("train", 0, "prompts", 3),
        ("train", 1, "candidates", 6),
        ("train", 2, "judgments", 7),
        ("train", 3, "candidates scored", 5),
        ("train", 4, "pairs", 2),
        ("train", 5, "kept", 1),
        ("train", 6, "dropped: margin_below_minimum", 1),
    ]


def test_funnel_adds_up_in_every_run_and_split(published):
    found = rows(
        published,
        "SELECT sum(rows) FILTER (step = 'pairs'), "
        "sum(rows) FILTER (step = 'kept' OR starts_with(step, 'dropped: ')) "
        "FROM funnel GROUP BY run_id, split",
    )
    assert len(found) == 4
    assert all(pairs == accounted for pairs, accounted in found)


def test_evaluation_candidates_are_not_in_the_funnel(published):
    # The candidate that evaluate_after_sampled made is none of the two of the generate stage.
    found = rows(
        published,
        "SELECT rows FROM funnel WHERE run_id = 'dpo_round_b2' AND split = 'heldout' "
        "AND step = 'candidates'",
    )
    assert found == [(2,)]


def test_every_scorers_judgments_are_counted(empty_workspace):
    """Each scorer has an output of its own; a run may use two of three, in any order."""
    halves = {"b": JUDGMENTS[:4], "a": JUDGMENTS[4:], "c": JUDGMENTS[:2]}
    write_stage(empty_workspace, "prompts", "k0", {"prompts": PROMPTS})
    write_stage(empty_workspace, "generate", "k1", {"candidates": CANDIDATES})
    for name, judgments in halves.items():
        write_stage(empty_workspace, "judge", f"j_{name}", {"judgments": judgments})
    both = {"judge:two": "j_b", "judge:one": "j_a"}
    for run, judges in ((RUN_A, both), (RUN_B, {"judge:one": "j_c"})):
        write_run(empty_workspace, run)
        write_stages_of_run(empty_workspace, run, {"prompts": "k0", "generate": "k1", **judges})
    publish(empty_workspace)
    assert rows(empty_workspace, "SELECT run_id, judge_keys FROM run_stages ORDER BY run_id") == [
        ("dpo_round_b2", ["j_c"]),
        ("refresh_a1", ["j_a", "j_b"]),
    ]
    found = rows(
        empty_workspace,
        "SELECT run_id, split, rows FROM funnel WHERE step = 'judgments' ORDER BY run_id, split",
    )
    assert found == [
        ("dpo_round_b2", "heldout", 0),
        ("dpo_round_b2", "train", 2),
        ("refresh_a1", "heldout", 2),
        ("refresh_a1", "train", 7),
    ]


def test_edited_answers_and_their_judgments_are_counted_too(empty_workspace):
    """Of two runs with the same candidates only one has them edited."""
    edited = CANDIDATES[:1].with_columns(candidate_id=pl.lit("candidate_p1e"))
    of_edited = JUDGMENTS[:1].with_columns(candidate_id=pl.lit("candidate_p1e"))
    write_stage(empty_workspace, "prompts", "k0", {"prompts": PROMPTS})
    write_stage(empty_workspace, "generate", "k1", {"candidates": CANDIDATES})
    write_stage(empty_workspace, "edit", "ke", {"candidates": edited})
    write_stage(empty_workspace, "judge", "j1", {"judgments": JUDGMENTS})
    write_stage(empty_workspace, "judge", "je", {"judgments": of_edited})
    stages = {"prompts": "k0", "generate": "k1", "judge:rule": "j1"}
    write_stages_of_run(empty_workspace, RUN_A, stages)
    write_stages_of_run(empty_workspace, RUN_B, {**stages, "edit": "ke", "judge_edits:rule": "je"})
    publish(empty_workspace)
    found = rows(
        empty_workspace,
        "SELECT run_id, step, rows FROM funnel WHERE split = 'train' AND position IN (1, 2) "
        "ORDER BY run_id, position",
    )
    assert found == [
        ("dpo_round_b2", "candidates", 7),
        ("dpo_round_b2", "judgments", 8),
        ("refresh_a1", "candidates", 6),
        ("refresh_a1", "judgments", 7),
    ]


def test_a_run_that_has_not_judged_has_no_judge_keys(empty_workspace):
    write_stages_of_run(empty_workspace, RUN_A, {"prompts": "k0", "generate": "k1"})
    publish(empty_workspace)
    assert rows(empty_workspace, "SELECT judge_keys, score_key FROM run_stages") == [([], None)]


def test_a_run_that_has_not_filtered_shows_the_steps_it_reached(empty_workspace):
    write_run(empty_workspace, RUN_A)
    write_stage(empty_workspace, "prompts", "k0", {"prompts": PROMPTS})
    write_stage(empty_workspace, "generate", "k1", {"candidates": CANDIDATES})
    write_stage(empty_workspace, "pair", "k3", {"pairs": PAIRS})
    write_stages_of_run(empty_workspace, RUN_A, {"prompts": "k0", "generate": "k1", "pair": "k3"})
    publish(empty_workspace)
    steps = rows(empty_workspace, "SELECT step FROM funnel WHERE split = 'train' ORDER BY position")
    assert steps == [("prompts",), ("candidates",), ("pairs",)]
    assert rows(empty_workspace, "SELECT DISTINCT kept, reasons FROM pair_quality") == [(None, [])]


def test_without_filters_every_pair_is_kept(empty_workspace):
    write_run(empty_workspace, RUN_A)
    write_stage(empty_workspace, "prompts", "k0", {"prompts": PROMPTS})
    write_stage(empty_workspace, "pair", "k3", {"pairs": PAIRS})
    write_stage(empty_workspace, "filter", "k4", {"decisions": frame("decisions")})
    write_stages_of_run(empty_workspace, RUN_A, {"prompts": "k0", "pair": "k3", "filter": "k4"})
    publish(empty_workspace)
    found = rows(empty_workspace, "SELECT split, rows FROM funnel WHERE step = 'kept' ORDER BY ALL")
    assert found == [("heldout", 1), ("train", 2)]


def test_a_drop_is_attributed_to_the_first_filter_in_order(published):
    found = rows(
        published,
        "SELECT split, position, filter, reason, rulings, first_drops, share_of_pairs, mean_value, "
        '"limit" FROM drops WHERE run_id = ? ORDER BY split, position',
        "refresh_a1",
    )
    assert found == [
        ("heldout", 1, "length_ratio", "length_ratio_above_maximum", 1, 1, 1.0, 3.0, 0.9),
        ("train", 0, "margin", "margin_below_minimum", 1, 1, 0.5, 0.25, 0.4),
        ("train", 1, "length_ratio", "length_ratio_above_maximum", 1, 0, 0.5, 1.0, 0.9),
    ]


def test_prompts_passed_over_are_counted_by_source_and_reason(published):
    found = rows(published, "FROM prompt_drops WHERE run_id = ?", RUN_A.run_id)
    assert found == [
        (RUN_A.run_id, "web", "contaminated", "school", 1),
        (RUN_A.run_id, "web", "near_duplicate", None, 2),
    ]


def test_the_filter_funnel_has_every_filter_and_adds_up(published):
    found = rows(
        published,
        'SELECT split, filter, reason, "limit", pairs_in, first_drops, pairs_out, rulings, '
        "only_drops, unmeasured FROM filter_funnel WHERE run_id = ? ORDER BY split, position",
        "refresh_a1",
    )
    margin, ratio = "margin_below_minimum", "length_ratio_above_maximum"
    assert found == [
        ("heldout", "margin", None, 0.4, 1, 0, 1, 0, 0, 0),
        ("heldout", "length_ratio", ratio, 0.9, 1, 1, 0, 1, 1, 0),
        ("train", "margin", margin, 0.4, 2, 1, 1, 1, 0, 0),
        ("train", "length_ratio", ratio, 0.9, 1, 0, 1, 1, 0, 0),
    ]
    kept = rows(
        published,
        "SELECT run_id, split, arg_max(pairs_out, position) FROM filter_funnel GROUP BY ALL",
    )
    funnel = rows(published, "SELECT run_id, split, rows FROM funnel WHERE step = 'kept'")
    assert sorted(kept) == sorted(funnel)


def test_rulings_say_which_filter_dropped_a_pair_first(published):
    found = rows(
        published,
        "SELECT pair_id, split, filter, kept, reason, first_drop, dropping_filters FROM rulings "
        "WHERE run_id = ? ORDER BY pair_id, position",
        "refresh_a1",
    )
    margin, ratio = "margin_below_minimum", "length_ratio_above_maximum"
    assert found == [
        ("pair_11", "train", "margin", True, None, False, 0),
        ("pair_11", "train", "length_ratio", True, None, False, 0),
        ("pair_22", "train", "margin", False, margin, True, 2),
        ("pair_22", "train", "length_ratio", False, ratio, False, 2),
        ("pair_33", "heldout", "margin", True, None, False, 1),
        ("pair_33", "heldout", "length_ratio", False, ratio, True, 1),
    ]


def test_filters_overlap_where_both_drop(published):
    overlaps = "SELECT run_id, filter, other, pairs, share_of_filter, share_of_other FROM "
    found = rows(published, overlaps + "filter_overlap")
    assert found == [("refresh_a1", "margin", "length_ratio", 1, 1.0, 0.5)]


def test_pair_quality_has_a_row_per_run_and_pair(published):
    found = rows(
        published,
        "SELECT run_id, pair_id, stratum, split, margin, length_gap, kept, reasons, exported_to, "
        "trained_in FROM pair_quality ORDER BY run_id DESC, pair_id",
    )
    both = ["margin_below_minimum", "length_ratio_above_maximum"]
    a, b = "refresh_a1", "dpo_round_b2"
    assert found == [
        (a, "pair_11", "add", "train", 1.0, -2, True, [], ["export_a"], []),
        (a, "pair_22", "add", "train", 0.25, 0, False, both, [], []),
        (a, "pair_33", "add", "heldout", 0.5, -6, False, both[1:], [], []),
        (b, "pair_11", "add", "train", 1.0, -2, True, [], ["export_b"], ["round_r1"]),
        (b, "pair_22", "add", "train", 0.25, 0, True, [], ["export_b"], ["round_r1"]),
        (b, "pair_33", "add", "heldout", 0.5, -6, True, [], [], []),
    ]


def test_a_file_that_two_rounds_trained_on_is_named_once(tmp_path):
    workspace = Workspace(tmp_path)
    write_small_workspace(workspace)
    again = frame(
        "rounds", ("round_r0", 2, "export_b", "w0", "w0", "policy", "w2", "models/w2", 2, 4, True)
    )
    write_stage(workspace, "gate", "k11", {"rounds": again}, run=RUN_B)
    publish(workspace)
    expected = [(["export_b"], ["round_r0", "round_r1"])]
    of_pair = "WHERE pair_id = 'pair_11' AND len(trained_in) > 0"
    for view in ("pair_quality", "exported_pairs"):
        found = rows(workspace, f"SELECT exported_to, trained_in FROM {view} {of_pair}")
        assert found == expected, view
    untrained = rows(workspace, "SELECT trained_in FROM exported_pairs WHERE stage_key = 'k5'")
    assert untrained == [([],)]


def test_source_yield_counts_by_stratum_and_split(published):
    found = rows(
        published,
        "SELECT stratum, split, prompts, candidates, completion_tokens, pairs, kept, "
        "prompts_with_kept_pair, kept_per_100_prompts, completion_tokens_per_kept_pair, "
        "mean_margin, mean_length_gap FROM source_yield WHERE run_id = ? AND source = 'bundled'",
        "refresh_a1",
    )
    # p1 and p2: 4 + 6 + 2 + 2 tokens; of their two pairs pair_11 is kept, margin 1, gap 4 - 6.
    assert found == [
        ("add", "heldout", 1, 2, 12, 1, 0, 0, 0.0, None, None, None),
        ("add", "train", 2, 4, 14, 2, 1, 1, 50.0, 14.0, 1.0, -2.0),
        ("sub", "train", 1, 2, 4, 0, 0, 0, 0.0, None, None, None),
    ]


def test_training_curves_have_a_row_a_step(published):
    found = rows(
        published,
        "SELECT run_id, name, round_id, round_index, step, loss, kl, metrics['loss'] "
        "FROM training_curves",
    )
    told = ("dpo_round_b2", "small round", "round_r1", 1)
    assert found == [(*told, 1, 0.69, None, 0.69), (*told, 2, 0.5, None, 0.5)]


def test_cost_is_of_the_making_and_per_thousand_kept_pairs(empty_workspace):
    paid = JUDGMENTS[:3].with_columns(prompt_tokens=100, completion_tokens=7, cost=0.5)
    metrics = frame(
        "training_metrics",
        ("round_r1", 1, "num_tokens", 60.0),
        ("round_r1", 2, "num_tokens", 120.0),
    )
    write_run_a(empty_workspace)
    write_stage(empty_workspace, "judge", "j2", {"judgments": paid})
    write_stage(empty_workspace, "train", "t1", {"training_metrics": metrics}, gpus=2)
    write_stages_of_run(empty_workspace, RUN_A, {"judge:paid": "j2", "train": "t1"})
    publish(empty_workspace)
    figures = "prompt_tokens, completion_tokens, trained_tokens, cost, seconds, gpu_seconds"
    found = rows(
        empty_workspace,
        f"SELECT stage, {figures}, tokens_per_1000_kept, cost_per_1000_kept, "
        "gpu_seconds_per_1000_kept FROM cost WHERE kept_pairs = 1 AND NOT reused "
        "AND stage IN ('generate', 'judge:paid', 'train') ORDER BY stage",
    )
    # Four prompts of 5 tokens, each read once for its two samples, which have 30 tokens together.
    assert found == [
        ("generate", 20, 30, None, None, 1.0, 0.0, 50_000.0, None, 0.0),
        ("judge:paid", 300, 21, None, 1.5, 1.0, 0.0, 321_000.0, 1500.0, 0.0),
        ("train", None, None, 120, None, 1.0, 2.0, 120_000.0, None, 2000.0),
    ]


def test_edges_of_a_run_lead_from_prompts_to_decisions(published):
    found = query(published, "FROM lineage_edges WHERE run_id = 'refresh_a1'")
    read = [(row["from_name"], row["to_name"]) for row in found.iter_rows(named=True)]
    assert read == [
        ("prompts", "candidates"),
        ("candidates", "judgments"),
        ("candidates", "scores"),
        ("judgments", "scores"),
        ("scores", "pairs"),
        ("pairs", "decisions"),
    ]
    made = dict(zip(found["to_name"], found["to_hash"], strict=True))
    for row in found.filter(pl.col("from_name") != "prompts").iter_rows(named=True):
        assert made[row["from_name"]] == row["from_hash"]


def write_run_with_export(workspace, run, export_key):
    """A run that exports straight from its prompts, `k0`."""
    write_run(workspace, run)
    prompts = write_stage(workspace, "prompts", "k0", {"prompts": PROMPTS})
    export = (f"export_{export_key}", "trl_jsonl", "train", f"exports/{export_key}", 1, "00")
    write_stage(workspace, "export", export_key, {"exports": frame("exports", export)}, prompts)
    write_stages_of_run(workspace, run, {"prompts": "k0", "export": export_key})


def stale(workspace):
    publish(workspace)
    return rows(workspace, "SELECT run_id, export_id, reason, stage, about FROM stale")


def test_an_export_is_stale_when_what_it_was_made_from_changed(empty_workspace):
    part = "store/prompts/stage_key=k0/part-00000.parquet"
    write_run_with_export(empty_workspace, RUN_A, "k5")
    assert stale(empty_workspace) == []
    write_stage(empty_workspace, "prompts", "k0", {"prompts": PROMPTS[:3]})
    changed = [(RUN_A.run_id, "export_k5", "input_changed", "export", part)]
    assert stale(empty_workspace) == changed
    (empty_workspace.root / part).unlink()
    missing = [(RUN_A.run_id, "export_k5", "input_missing", "export", part)]
    assert stale(empty_workspace) == missing
    (empty_workspace.store / "stages" / "k0.json").unlink()
    assert stale(empty_workspace) == missing


def test_an_export_is_stale_when_a_newer_run_has_another(empty_workspace):
    later = replace(RUN_A, run_id="refresh_a9", started_at="2026-11-09T10:00:00+00:00")
    failed = replace(later, run_id="refresh_b9", status="failed")
    other = replace(later, run_id="refresh_c9", name="other")
    for run, key in ((RUN_A, "k5"), (later, "k9"), (failed, "kb"), (other, "kc")):
        write_run_with_export(empty_workspace, run, key)
    assert stale(empty_workspace) == [
        (RUN_A.run_id, "export_k5", "newer_run", "export", later.run_id)
    ]
    write_stages_of_run(empty_workspace, later, {"export": "k5"})
    assert stale(empty_workspace) == []


def test_rounds_shows_success_before_and_after(published):
    found = query(published, "FROM rounds")
    declared = ALL_TABLES["rounds"].column_names
    figures = ["before", "after", "difference", "low", "high"]
    assert found.columns == [
        *declared,
        "run_id",
        "name",
        *(f"sampled_{figure}" for figure in figures),
        *(f"greedy_{figure}" for figure in figures),
        "stage_key",
    ]
    (row,) = found.rows(named=True)
    made = ("round_id", "export_id", "result_path", "promoted", "run_id", "name", "stage_key")
    assert [row[name] for name in made] == [
        "round_r1", "export_b", "models/w1", True, "dpo_round_b2", "small round", "k10",
    ]  # fmt: skip
    measured = {"sampled": (0.25, 0.5, 0.25, 0.125, 0.375), "greedy": (0.5, 0.75, 0.25, 0.0, 0.5)}
    for decoding, expected in measured.items():
        assert tuple(row[f"{decoding}_{figure}"] for figure in figures) == expected


def test_row_tables_have_the_declared_columns_then_the_stage_key(published):
    for schema in ROW_TABLES:
        if schema.name not in VIEWS:
            found = query(published, f'FROM "{schema.name}"')
            assert found.columns == [*schema.column_names, "stage_key"]


def test_unfinished_stages_are_not_shown(published):
    assert rows(published, "SELECT DISTINCT stage_key FROM pairs") == [("k3",)]


def test_record_tables(published):
    assert rows(published, "SELECT run_id, config->>'name', error FROM runs ORDER BY run_id") == [
        ("dpo_round_b2", "it's", None),
        ("refresh_a1", "it's", None),
    ]
    found = rows(published, "SELECT started_at::VARCHAR FROM runs WHERE run_id = 'dpo_round_b2'")
    assert found[0][0].startswith("2026-11-02 10:00:00.5")
    assert rows(
        published,
        'SELECT role, "table", path, rows FROM artifacts WHERE stage_key = ? ORDER BY role, path',
        "k1",
    ) == [
        ("input", "prompts", "store/prompts/stage_key=k0/part-00000.parquet", 4),
        ("output", "candidates", "store/candidates/stage_key=k1/part-00000.parquet", 5),
        ("output", "candidates", "store/candidates/stage_key=k1/part-00001.parquet", 3),
    ]


def test_an_empty_workspace_has_every_view_with_the_right_types(empty_workspace, published):
    publish(empty_workspace)
    with connect(empty_workspace) as empty, connect(published) as full:
        for name in {*ALL_TABLES, *VIEWS}:
            none, some = (connection.sql(f'FROM "{name}"') for connection in (empty, full))
            assert none.fetchall() == []
            assert (none.columns, none.types) == (some.columns, some.types), name


def test_every_view_file_is_listed_and_says_its_question_and_columns(published):
    assert sorted(VIEWS) == sorted(path.stem for path in SQL_FOLDER.glob("*.sql"))
    for name in VIEWS:
        view = view_file(name)
        assert "?" in view.question
        extra = set(query(published, f"FROM {name} LIMIT 0").columns) - set(view.columns)
        assert extra <= set(ALL_TABLES["rounds"].column_names), f"{name}: {extra} not explained"


def test_columns_are_commented(published):
    found = rows(
        published,
        "SELECT table_name, column_name FROM duckdb_columns() WHERE comment IS NULL "
        "AND schema_name = 'main' AND database_name = 'lineage' AND NOT internal",
    )
    declared = {("rounds", name) for name in ALL_TABLES["rounds"].column_names}
    assert set(found) <= declared
    assert rows(
        published,
        "SELECT comment FROM duckdb_columns() WHERE table_name = 'judgments' "
        "AND column_name = 'score' AND schema_name = 'main'",
    ) == [("null when it could not be parsed: never a low score",)]


def test_stage_runs_of_a_lost_run_still_show(tmp_path):
    workspace = Workspace(tmp_path / "w")
    workspace.require_writable()
    write_stages_of_run(workspace, RUN_A, {"prompts": "k0"})
    publish(workspace)
    assert rows(workspace, "SELECT run_id FROM run_stages") == [("refresh_a1",)]
