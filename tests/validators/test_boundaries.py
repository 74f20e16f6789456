from __future__ import annotations

import json

import polars as pl
import pyarrow as pa
import pytest

from stages.errors import DataError, ValidationError
from stages.tables import (
    CANDIDATES,
    DECISIONS,
    EDITED_STRATEGY,
    EVALUATIONS,
    JUDGMENTS,
    PAIRS,
    PROMPTS,
    ROUNDS,
    ROW_TABLES,
    SCORES,
    TRAINING_METRICS,
    VALIDATIONS,
    Column,
    Table,
)
from tests.validators.good_rows import good_rows
from tests.validators.pandas_engine import judged_by_pandas
from validators import added, judge, measure_rows, require_valid, validate_part, validate_table
from validators.expectations import row_expectations

HOSTILE = '"; DROP TABLE pairs; --<script>alert(1)</script>{{7*7}}\x00\u202e'
BROKEN_ROW = 17
HIGHER = "margin >= 0 where no editor chose"


def break_row(frame, values, row=BROKEN_ROW):
    """Return ``frame`` with the columns of one row set to ``values``."""
    return frame.with_columns(
        pl.when(pl.int_range(pl.len()) == row)
        .then(pl.lit(value, dtype=frame.schema[name]))
        .otherwise(pl.col(name))
        .alias(name)
        for name, value in values.items()
    )


def broken(result):
    """Return {(expectation, column): (severity, unexpected, ids)} of what did not hold."""
    return {
        (r["expectation"], r["column"]): (
            r["severity"],
            r["unexpected"],
            json.loads(r["examples"]),
        )
        for r in result.filter(~pl.col("passed")).iter_rows(named=True)
    }


def row_id(schema, frame, row=BROKEN_ROW):
    return "/".join("null" if (v := frame[k][row]) is None else str(v) for k in schema.key)


def single_column_faults(schema):
    """Return column, GX's name and a value that breaks it, for each declared constraint."""
    for e in row_expectations(schema):
        column = dict(e.arguments).get("column")
        if column not in schema.column_names or e.name:
            continue
        if e.kind == "ExpectColumnValuesToNotBeNull":
            yield column, "expect_column_values_to_not_be_null", None
        elif e.kind == "ExpectColumnValuesToBeInSet":
            yield column, "expect_column_values_to_be_in_set", HOSTILE
        elif e.kind == "ExpectColumnValueLengthsToBeBetween":
            yield column, "expect_column_value_lengths_to_be_between", ""
        else:
            for value in values_out_of_range(schema.column(column)):
                yield column, "expect_column_values_to_be_between", value


def values_out_of_range(column):
    if pa.types.is_list(column.type):
        return [[]]
    ends = [column.minimum, column.maximum]
    beyond = [end + step for end, step in zip(ends, (-1, 1), strict=True) if end is not None]
    if pa.types.is_floating(column.type):
        beyond += [float("nan"), float("inf"), float("-inf")]
    return beyond


@pytest.mark.parametrize("schema", ROW_TABLES, ids=lambda s: s.name)
def test_every_declared_constraint_is_found_with_its_row(schema):
    frame, expected = good_rows(schema, 80), {}
    faults = list(single_column_faults(schema))
    for row, (column, _, value) in enumerate(faults):
        frame = break_row(frame, {column: value}, row)
    for row, (column, expectation, _) in enumerate(faults):
        expected.setdefault((expectation, column), []).append(row_id(schema, frame, row))
    result = validate_part(schema, frame)
    found = broken(result)
    for place, ids in expected.items():
        assert found[place] == ("must", len(ids), ids)
    columns = schema.column_names
    declared = [e for e in row_expectations(schema) if e.column in columns and not e.name]
    assert len(expected) == len(declared)
    with pytest.raises(ValidationError, match="of 80 rows break"):
        require_valid([result], where="a test")


@pytest.mark.parametrize("schema", ROW_TABLES, ids=lambda s: s.name)
@pytest.mark.parametrize("rows", [0, 30])
def test_a_good_table_passes(schema, rows, tmp_path):
    frame = good_rows(schema).head(rows)
    frame.write_parquet(tmp_path / "part.parquet")
    others = {t.split(".")[0] for t in schema.references.values()}
    for name in others:
        targets = [t for t in schema.references.values() if t.startswith(f"{name}.")]
        sources = [c for c, t in schema.references.items() if t == targets[0]]
        ids = pl.concat([frame[c].alias(targets[0].split(".")[1]) for c in sources])
        ids.to_frame().write_parquet(tmp_path / f"{name}.parquet")
    whole = validate_table(
        schema, [tmp_path / "part.parquet"], {n: [tmp_path / f"{n}.parquet"] for n in others}
    )
    result = pl.concat([validate_part(schema, frame), whole])
    assert broken(result) == {}
    assert set(result["rows"]) == {rows}
    assert result.schema == VALIDATIONS.empty().schema
    assert not result.select(pl.struct(VALIDATIONS.key).is_duplicated().any()).item()
    VALIDATIONS.to_arrow(result)
    require_valid([result], where="a test")


@pytest.mark.parametrize(
    ("schema", "values", "column", "severity"),
    [
        (
            PAIRS,
            {"chosen_candidate_id": "same", "rejected_candidate_id": "same"},
            "chosen_candidate_id, rejected_candidate_id",
            "must",
        ),
        (PAIRS, {"margin": -0.25}, HIGHER, "must"),
        (PAIRS, {"margin": 1.25}, "margin = chosen_score - rejected_score", "must"),
        (DECISIONS, {"kept": False, "reason": None}, "reason where dropped", "must"),
        (JUDGMENTS, {"order": "first"}, "order where pairwise", "must"),
        (
            JUDGMENTS,
            {"order": "first", "other_candidate_id": f"candidate_id-{BROKEN_ROW}"},
            "candidate_id, other_candidate_id",
            "must",
        ),
        (
            PROMPTS,
            {"messages": [{"role": "assistant", "content": HOSTILE}]},
            "messages[-1].role",
            "must",
        ),
        (PROMPTS, {"split": "gold", "gold": None}, "gold where planted", "must"),
        (PROMPTS, {"split": "train", "gold": "{}"}, "gold where planted", "must"),
        (CANDIDATES, {"completion": None, "error": None}, "error where no completion", "must"),
        (JUDGMENTS, {"score": None, "error": None}, "error where no score", "must"),
        (
            ROUNDS,
            {"base_weights_hash": "w", "result_weights_hash": "w"},
            "base_weights_hash, result_weights_hash",
            "should",
        ),
        (
            CANDIDATES,
            {"completion_tokens": 7, "max_completion_tokens": 6},
            "max_completion_tokens, completion_tokens",
            "should",
        ),
        (EVALUATIONS, {"low": 3.0, "high": 2.0}, "high, low", "must"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_each_fact_about_a_row_is_found(schema, values, column, severity):
    frame = break_row(good_rows(schema), values)
    found = {c: rest for (_, c), rest in broken(validate_part(schema, frame)).items()}
    assert found[column] == (severity, 1, [row_id(schema, frame)])


def test_columns_compared_are_compared_by_value_not_by_length():
    frame = break_row(good_rows(ROUNDS), {"base_weights_hash": "v", "result_weights_hash": "w"})
    assert broken(validate_part(ROUNDS, frame)) == {}


def test_repeated_keys_are_found_across_parts(tmp_path):
    frame = good_rows(PAIRS, 4)
    frame.write_parquet(tmp_path / "part-0.parquet")
    frame.head(1).write_parquet(tmp_path / "part-1.parquet")
    parts = [tmp_path / "part-0.parquet", tmp_path / "part-1.parquet"]
    found = broken(validate_table(PAIRS, parts, {}))
    assert found == {("expect_column_values_to_be_unique", "pair_id"): ("must", 2, ["pair_id-0"])}


def test_repeated_compound_keys_are_found(tmp_path):
    metrics = good_rows(TRAINING_METRICS, 3)
    pl.concat([metrics, metrics.tail(1)]).write_parquet(tmp_path / "part.parquet")
    found = broken(validate_table(TRAINING_METRICS, [tmp_path / "part.parquet"], {}))
    assert found == {
        ("expect_compound_columns_to_be_unique", "round_id, step, metric"): (
            "must",
            2,
            ["round_id-2/1/metric-2"],
        )
    }


def test_ids_that_point_nowhere_are_found(tmp_path):
    candidates, prompts = tmp_path / "c [1]*?.parquet", tmp_path / "p.parquet"
    good_rows(CANDIDATES, 5).write_parquet(candidates)
    good_rows(PROMPTS, 4).write_parquet(prompts)
    found = broken(validate_table(CANDIDATES, [candidates], {"prompts": [prompts]}))
    assert found == {
        ("expect_column_values_to_be_in_prompts", "prompt_id"): ("must", 1, ["candidate_id-4"])
    }
    nothing_there = broken(validate_table(CANDIDATES, [candidates], {"prompts": []}))
    assert [r[1] for r in nothing_there.values()] == [5]
    assert broken(validate_table(CANDIDATES, [candidates], {})) == {}


@pytest.mark.parametrize(
    ("missing", "expected"), [(1, []), (2, ["judgment_id-0", "judgment_id-1"])]
)
def test_shares_warn_above_their_limit_only(missing, expected):
    """One of twenty is a share of 0.05, which is allowed; two are not."""
    few = pl.when(pl.int_range(pl.len()) >= missing).then(pl.col("score"))
    result = validate_part(JUDGMENTS, good_rows(JUDGMENTS, 20).with_columns(score=few))
    place = "expect_share_of_missing_to_be_at_most_0.05", "score"
    assert broken(result) == ({place: ("should", 2, expected)} if expected else {})
    require_valid([result], where="a test")


def test_the_same_counts_may_be_tolerated_by_one_expectation_and_not_by_another():
    result = validate_part(
        JUDGMENTS, break_row(good_rows(JUDGMENTS, 20), {"score": None, "error": None}, 3)
    )
    place = "expect_column_values_to_be_in_set", "error where no score"
    assert broken(result) == {place: ("must", 1, ["judgment_id-3"])}
    share = result.filter(pl.col("expectation").str.contains("share_of_missing")).row(0, named=True)
    assert (share["rows"], share["unexpected"], share["passed"]) == (20, 1, True)


def test_completions_cut_at_the_limit_warn_above_a_fifth():
    rows = good_rows(CANDIDATES, 10)
    for cut, expected in ((2, set()), (3, {"expect_share_of_cut_at_the_limit_to_be_at_most_0.2"})):
        frame = rows.with_columns(
            finish_reason=pl.when(pl.int_range(pl.len()) < cut)
            .then(pl.lit("length"))
            .otherwise(pl.lit("stop"))
        )
        assert {name for name, _ in broken(validate_part(CANDIDATES, frame))} == expected


def test_an_editor_may_choose_against_the_scores():
    edited = {"strategy": EDITED_STRATEGY, "chosen_score": 0.25, "margin": -0.25}
    assert not broken(validate_part(PAIRS, break_row(good_rows(PAIRS), edited)))


def test_parts_add_up_to_what_the_whole_gives():
    frame = good_rows(PAIRS, 57).with_columns(
        margin=pl.when(pl.int_range(pl.len()) % 4 == 0).then(-1.0).otherwise(1.5)
    )
    parts = [measure_rows(PAIRS, part) for part in (frame[:0], frame[:20], frame[20:])]
    assert judge(PAIRS, added(parts)).equals(validate_part(PAIRS, frame))
    found = broken(judge(PAIRS, added(parts)))["expect_column_values_to_be_in_set", HIGHER]
    assert found == ("must", 15, [f"pair_id-{i}" for i in range(0, 40, 4)])


@pytest.mark.parametrize(
    "schema", [CANDIDATES, JUDGMENTS, PAIRS, EVALUATIONS], ids=lambda s: s.name
)
def test_great_expectations_own_engine_agrees(schema):
    """On rows of which one in seven breaks something, by count and by id."""
    frame = good_rows(schema, 80)
    for row, (column, _, value) in enumerate(single_column_faults(schema)):
        frame = break_row(frame, {column: value}, row)
    for place, column in enumerate(schema.columns):
        if pa.types.is_floating(column.type) or pa.types.is_integer(column.type):
            values = pl.when(pl.int_range(pl.len()) % 7 == place % 7).then(pl.col(column.name) * -9)
            frame = frame.with_columns(values.otherwise(pl.col(column.name)).alias(column.name))
    ours = validate_part(schema, frame).select("passed", "unexpected", "examples").rows()
    assert [(p, n, json.loads(ids)) for p, n, ids in ours] == judged_by_pandas(schema, frame)
    assert not all(passed for passed, _, _ in ours)


@pytest.mark.parametrize("at_once", [10_000_000, 7])
def test_unique_keys_and_references_in_shares_are_those_of_the_whole(
    at_once, monkeypatch, tmp_path
):
    monkeypatch.setattr("validators.table_wide.IDS_AT_ONCE", at_once)
    pairs, candidates = tmp_path / "pairs.parquet", tmp_path / "candidates.parquet"
    frame = good_rows(PAIRS, 40)
    frame = pl.concat([frame, frame[3:5], frame[3:4]])
    frame.write_parquet(pairs)
    ids = frame["chosen_candidate_id"].unique()
    ids.filter(~ids.str.ends_with("-7")).alias("candidate_id").to_frame().write_parquet(candidates)
    assert broken(validate_table(PAIRS, [pairs], {"candidates": [candidates]})) == {
        ("expect_column_values_to_be_unique", "pair_id"): ("must", 5, ["pair_id-3", "pair_id-4"]),
        ("expect_column_values_to_be_in_candidates", "chosen_candidate_id"): (
            "must",
            1,
            ["pair_id-7"],
        ),
        ("expect_column_values_to_be_in_candidates", "rejected_candidate_id"): (
            "must",
            43,
            [f"pair_id-{i}" for i in range(10)],
        ),
    }


def test_keys_that_only_share_a_hash_are_not_repeated(monkeypatch, tmp_path):
    good_hash = pl.Expr.hash
    monkeypatch.setattr(pl.Expr, "hash", lambda e, seed=0: good_hash(e, seed) * min(seed, 1))
    frame = good_rows(SCORES, 3)
    frame.write_parquet(tmp_path / "part.parquet")
    assert broken(validate_table(SCORES, [tmp_path / "part.parquet"], {})) == {}


def test_hostile_texts_are_harmless(tmp_path):
    frame = break_row(good_rows(CANDIDATES), {"completion": HOSTILE * 1000, "generator": HOSTILE})
    frame.write_parquet(tmp_path / "part.parquet")
    parts = [tmp_path / "part.parquet"]
    result = [validate_part(CANDIDATES, frame), validate_table(CANDIDATES, parts, {})]
    assert broken(pl.concat(result)) == {}
    repeated = break_row(good_rows(CANDIDATES), {"candidate_id": HOSTILE})
    pl.concat([repeated, repeated]).write_parquet(parts[0])
    with pytest.raises(ValidationError, match="60 of 60 rows"):
        require_valid([validate_table(CANDIDATES, parts, {})], where="a test")


def test_the_suite_derives_from_the_declaration():
    columns = (
        Column("thing_id", pa.string(), "the key"),
        Column("colour", pa.string(), "its colour", nullable=True, allowed=("red", "blue")),
    )
    old = Table("things", "one thing", ("thing_id",), columns)
    new = Table(
        "things",
        "one thing",
        ("thing_id",),
        (*columns, Column("weight", pa.int64(), "how heavy", minimum=0, maximum=9)),
    )
    frame = pl.DataFrame({"thing_id": ["a", "b"], "colour": [None, "green"], "weight": [10, 0]})
    assert broken(validate_part(old, frame)) == {
        ("expect_column_values_to_be_in_set", "colour"): ("must", 1, ["b"])
    }
    assert broken(validate_part(new, frame)) == {
        ("expect_column_values_to_be_in_set", "colour"): ("must", 1, ["b"]),
        ("expect_column_values_to_be_between", "weight"): ("must", 1, ["a"]),
    }


def test_a_missing_column_is_named():
    with pytest.raises(DataError, match=r"lacks the columns \['margin'\]"):
        validate_part(PAIRS, good_rows(PAIRS).drop("margin"))


def test_the_error_names_each_broken_must_and_its_rows():
    frame = break_row(good_rows(PAIRS), {"margin": -1.0, "scorer": None})
    with pytest.raises(ValidationError) as error:
        require_valid([validate_part(PAIRS, frame)], where="the pairing stage")
    text = str(error.value)
    assert "pairs: 1 of 30 rows break expect_column_values_to_not_be_null on 'scorer'" in text
    assert f"pairs: 1 of 30 rows break expect_column_values_to_be_in_set on {HIGHER!r}" in text
    assert "(rows pair_id-17)" in text
    assert "Where: the pairing stage" in text


def test_nothing_is_printed(capfd):
    validate_part(PAIRS, break_row(good_rows(PAIRS), {"margin": -1.0}))
    assert capfd.readouterr() == ("", "")


def test_great_expectations_is_imported_only_when_needed():
    import subprocess
    import sys

    code = "import sys, validators; assert 'great_expectations' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
