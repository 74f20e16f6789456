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
    (row,) = found.rows()
    assert row[:10] == ("round_r1", 1, "export_b", "w0", "w0", "w1", "models/w1", 2, 4, True)
    assert row[10:12] == ("dpo_round_b2", "small round")
    assert row[12:17] == (0.25, 0.5, 0.25, 0.125, 0.375)
    assert row[17:22] == (0.5, 0.75, 0.25, 0.0, 0.5)
    assert row[22:] == ("k10",)


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
