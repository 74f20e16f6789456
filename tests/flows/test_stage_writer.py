"""What a stage wrote and validation refused is taken away, so that it can be made anew."""

from __future__ import annotations

import polars as pl
import pytest

from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from lineage.workspace import Workspace, write_part
from stages.errors import ValidationError
from stages.tables import table
from tests.validators.good_rows import good_rows

SPEC = StageSpec("score", 1, {}, (), ("scores",))
GOOD = good_rows(table("scores"), 30)
PARTS = [GOOD[:10], GOOD[10:20], GOOD[20:]]


def broken(frame):
    return frame.with_columns(score=pl.lit(float("inf")))


@pytest.fixture
def context(tmp_path):
    context = RunContext(Workspace(tmp_path), "run")
    context.workspace.require_writable()
    return context


def files(context):
    return [path.name for path in sorted(context.workspace.store.rglob("scores/*/part-*.parquet"))]


def writing(parts, made):
    """Return what makes these parts, and notes which ones it had to make."""

    def make(writer: StageWriter) -> None:
        for index, part in enumerate(parts):
            if writer.existing("scores", index) is None:
                made.append(index)
                writer.write("scores", part, index)

    return make


def test_a_refused_first_part_is_taken_away_and_made_anew(context):
    made = []
    with pytest.raises(ValidationError, match="score"):
        run_stage(context, "score", SPEC, writing([broken(PARTS[0]), *PARTS[1:]], made))
    assert made == [0], "nothing is made after it"
    assert files(context) == []
    record = run_stage(context, "score", SPEC, writing(PARTS, made))
    assert made == [0, 0, 1, 2]
    assert record.output("scores").read(context.workspace).equals(GOOD)


def test_a_later_part_is_refused_and_those_before_it_are_kept(context):
    made = []
    with pytest.raises(ValidationError):
        run_stage(context, "score", SPEC, writing([*PARTS[:2], broken(PARTS[2])], made))
    assert files(context) == ["part-00000.parquet", "part-00001.parquet"]
    record = run_stage(context, "score", SPEC, writing(PARTS, made))
    assert made == [0, 1, 2, 2]
    assert record.output("scores").read(context.workspace).equals(GOOD)


def test_parts_of_a_killed_attempt_are_validated_too(context):
    """It died between a part and its validation: the part is found, refused and taken away."""
    for index, part in enumerate([PARTS[0], broken(PARTS[1])]):
        write_part(context.workspace, table("scores"), SPEC.key, index, part, {})
    made = []
    with pytest.raises(ValidationError):
        run_stage(context, "score", SPEC, writing(PARTS, made))
    assert files(context) == ["part-00000.parquet"]
    run_stage(context, "score", SPEC, writing(PARTS, made))
    assert made == [1, 2]


@pytest.mark.parametrize("name", ["scores", "validations"])
def test_what_a_killed_attempt_had_half_written_is_taken_away(context, name):
    leftover = context.workspace.parts_folder(name, SPEC.key) / ".part-00000.parquet.1.tmp"
    leftover.parent.mkdir(parents=True)
    leftover.write_bytes(b"half a part")
    run_stage(context, "score", SPEC, writing(PARTS, []))
    assert not leftover.exists()


def test_a_record_that_a_killed_attempt_had_half_written_is_taken_away(context):
    stages = context.workspace.store / "stages"
    leftover, others = stages / f".{SPEC.key}.json.1.tmp", stages / ".other.json.1.tmp"
    stages.mkdir(parents=True)
    leftover.write_bytes(b"{")
    others.write_bytes(b"{")
    run_stage(context, "score", SPEC, writing(PARTS, []))
    assert not leftover.exists()
    assert others.exists(), "another output's, which somebody may be writing now"


def test_a_stage_without_a_record_is_not_taken_for_finished(context):
    made = []
    with pytest.raises(ValidationError):
        run_stage(context, "score", SPEC, writing([broken(GOOD)], made))
    assert not list(context.workspace.runs.rglob("score.json"))
    run_stage(context, "score", SPEC, writing(PARTS, made))
    run_stage(context, "score", SPEC, writing(PARTS, made))
    assert made == [0, 0, 1, 2]


def test_the_journal_outlives_a_refusal(context):
    """What was paid for is not asked for again because of one refused row."""
    asked = []

    def make(writer: StageWriter) -> None:
        with writer.journal("00000") as journal:
            if journal.get("a") is None:
                asked.append("a")
                journal.put({"a": 1})
            writer.write("scores", broken(GOOD))
            journal.remove()

    with pytest.raises(ValidationError):
        run_stage(context, "score", SPEC, make)
    with pytest.raises(ValidationError):
        run_stage(context, "score", SPEC, make)
    assert asked == ["a"]


def test_each_scorer_is_a_stage_of_its_own_in_one_place(context):
    from lineage.records import read_stage_runs

    for name in ("zeta", "alpha"):
        spec = StageSpec("judge", 1, {"name": name}, (), ("scores",))
        run_stage(context, f"judge:{name}", spec, writing(PARTS, []))
    run_stage(context, "score", SPEC, writing(PARTS, []))
    runs = read_stage_runs(context.workspace, "run")
    assert [run.stage for run in runs] == ["judge:alpha", "judge:zeta", "score"]
    assert runs[0].position == runs[1].position < runs[2].position
    assert len({run.stage_key for run in runs}) == 3


def test_a_part_that_was_cut_short_is_made_anew_and_no_other(context):
    made = []
    record = run_stage(context, "score", SPEC, writing(PARTS, made))
    paths = [context.workspace.root / part.path for part in record.output("scores").parts]
    whole = paths[1].read_bytes()
    paths[1].write_bytes(whole[: len(whole) // 2])
    run_stage(context, "score", SPEC, writing(PARTS, made))
    assert made == [0, 1, 2, 1]
    assert paths[1].read_bytes() == whole
