import json
import re
import shutil
from pathlib import Path

import duckdb
import polars as pl
import pytest
from click.testing import CliRunner

from lineage.database import publish, rebuild
from lineage.query import query
from lineage.workspace import Workspace
from stages.errors import DataError, MissingFileError, PrefmillError, WorkspaceError
from tests.lineage.small_workspace import write_small_workspace


def test_returns_a_frame_and_binds_values(published):
    found = query(published, "SELECT pair_id, margin FROM pairs WHERE pair_id = ?", ["pair_11"])
    assert found.equals(pl.DataFrame({"pair_id": ["pair_11"], "margin": [1.0]}))
    nasty = "' OR true --"
    assert query(published, "FROM pairs WHERE pair_id = $id", {"id": nasty}).is_empty()


def test_sums_of_integers_are_integers(published):
    assert query(published, "SELECT sum(rows) AS n FROM exports").schema == {"n": pl.Int64}
    big = query(published, "SELECT sum(9223372036854775807) AS n FROM range(3)")
    assert int(big.item()) == 3 * 9223372036854775807


@pytest.mark.parametrize(
    "sql",
    [
        "FROM pairs",
        "  select 1; ",
        "-- a comment\nSELECT 1",
        "WITH x AS (SELECT 1 AS a) FROM x",
        "WITH RECURSIVE r AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM r WHERE a < 3) FROM r",
        "VALUES (1)",
        "SELECT 1 UNION ALL SELECT 2",
        "SHOW TABLES",
        "DESCRIBE pairs",
        "SUMMARIZE pairs",
        "EXPLAIN SELECT 1",
        "EXPLAIN ANALYZE SELECT 1",
        "explain (format json) FROM pairs",
        "FROM (PIVOT pairs ON strategy IN ('best_vs_worst') USING count(*))",
    ],
)
def test_reading_statements_work(published, sql):
    assert query(published, sql).height > 0


def test_files_of_the_workspace_can_be_read(published):
    file = published.root / "exports" / "k7" / "train.jsonl"
    sql = "SELECT count(*) FROM read_json(?)"
    assert query(published, sql, [str(file)]).item() == 2


COPYING_CTE = "WITH x AS (COPY (SELECT 1) TO '{target}') FROM x"


def serialized(target):
    sql = COPYING_CTE.format(target=target)
    found = duckdb.connect().execute("SELECT json_serialize_sql(?::VARCHAR)", [sql]).fetchall()
    return json.loads(found[0][0])


@pytest.mark.parametrize(
    "sql",
    [
        "INSERT INTO runs SELECT * FROM runs",
        "DELETE FROM runs",
        "UPDATE runs SET name = 'x'",
        "DROP VIEW pairs",
        "CREATE TABLE x AS SELECT 1",
        "CREATE TABLE memory.x (a INT)",
        "CREATE TEMP TABLE x AS SELECT 1",
        "COPY (SELECT 1) TO '{target}'",
        COPYING_CTE,
        "EXPLAIN ANALYZE COPY (SELECT 1) TO '{target}'",
        "EXPLAIN ANALYZE " + COPYING_CTE,
        "/* x */ EXPLAIN ANALYZE " + COPYING_CTE,
        "EXPLAIN (ANALYZE) " + COPYING_CTE,
        "EXPLAIN (ANALYZE /*) SELECT 1 --*/) COPY (SELECT 1) TO '{target}'",
        "EXPLAIN (ANALYZE /*) SELECT 1 --*/) " + COPYING_CTE,
        "WITH x AS (DELETE FROM runs RETURNING 1) FROM x",
        "SELECT (" + COPYING_CTE + ")",
        "EXPORT DATABASE '{target}'",
        "ATTACH '{target}'",
        "FROM query('SELECT 1')",
        "FROM \"query\"('SELECT 1')",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY (SELECT 1) TO '{target}'",
        "",
        "SET enable_external_access = true",
        "RESET lock_configuration",
        "PRAGMA table_info('runs')",
        "INSTALL httpfs",
        "LOAD httpfs",
        "CALL pragma_version()",
        "CHECKPOINT",
        "PREPARE x AS SELECT 1",
        "USE memory",
        "DETACH lineage",
        "PIVOT pairs ON strategy",
    ],
)
def test_writing_statements_are_refused(published, sql):
    target = published.root / "target.csv"
    before = published.lineage_database.read_bytes()
    with pytest.raises(DataError):
        query(published, sql.replace("{target}", str(target).replace("'", "''")))
    assert not target.exists()
    assert published.lineage_database.read_bytes() == before


def test_sql_serialized_as_json_is_refused(published):
    target = published.root / "target.csv"
    tree = json.dumps(serialized(str(target).replace("'", "''")))
    with pytest.raises(DataError, match="refused"):
        query(published, "FROM json_execute_serialized_sql(?)", [tree])
    assert not target.exists()


@pytest.mark.parametrize(
    "sql",
    [
        "FROM '{outside}'",
        "FROM read_csv('{outside}')",
        "FROM read_text('{outside}')",
        "FROM read_text('/etc/passwd')",
        "FROM read_blob('/proc/self/environ')",
        "FROM read_text('~/.profile')",
        "FROM read_text('file:///etc/passwd')",
        "FROM read_text('s3://bucket/key')",
        "FROM sniff_csv('/etc/passwd')",
        "FROM parquet_metadata('/etc/*.parquet')",
        "FROM read_text('{root}/folder_link/outside.csv')",
        "FROM glob('{root}/folder_link/*')",
        "FROM glob('{root}/../*')",
        "FROM duckdb_secrets()",
        "SELECT getenv('HOME')",
        "FROM glob('/etc/*')",
        "FROM '{root}/../outside.csv'",
        "FROM '{root}/link.csv'",
        "FROM 'https://example.com/x.csv'",
        "EXPLAIN ANALYZE FROM '{outside}'",
    ],
)
def test_reading_outside_the_workspace_is_refused(published, sql):
    outside = published.root.parent / "outside.csv"
    outside.write_text("planted\n1\n")
    link = published.root / "link.csv"
    link.unlink(missing_ok=True)
    link.symlink_to(outside)
    folder_link = published.root / "folder_link"
    folder_link.unlink(missing_ok=True)
    folder_link.symlink_to(outside.parent)
    sql = sql.replace("{outside}", str(outside)).replace(
        "{root}", str(published.root).replace("'", "''")
    )
    with pytest.raises(DataError) as error:
        query(published, sql)
    assert "planted" not in str(error.value)


def test_variables_of_the_program_cannot_be_read(published):
    pairs_of_mine = pl.DataFrame({"a": [1]})
    with pytest.raises(DataError, match="no table or view"):
        query(published, "FROM pairs_of_mine")
    assert pairs_of_mine.height == 1


def test_intervals_are_named(published):
    with pytest.raises(DataError, match=r"the answer has intervals: took.*epoch"):
        query(published, "SELECT ended_at - started_at AS took FROM runs")
    assert query(published, "SELECT epoch(ended_at - started_at) FROM runs").height > 0


def test_an_unknown_table_names_the_nearest(published):
    with pytest.raises(DataError, match=r"'pair_qualty'; nearest known: pair_quality"):
        query(published, "SELECT * FROM pair_qualty")


def test_broken_sql_is_a_data_error_that_shows_where(published):
    with pytest.raises(DataError, match="syntax error"):
        query(published, "SELEC 1")
    with pytest.raises(DataError, match="margin"):
        query(published, "SELECT margni FROM pairs")


def asked(workspace, *arguments, **rest):
    from flows.cli import cli

    return CliRunner().invoke(cli, ["sql", "-w", str(workspace.root), *arguments], **rest)


ANSWER = {
    "pair_id": ["pair_22"],
    "reasons": [["margin_below_minimum", "length_ratio_above_maximum"]],
}
QUESTION = "SELECT pair_id, reasons FROM pair_quality WHERE pair_id = 'pair_22' AND NOT kept"


def test_the_command_writes_every_format(published, tmp_path):
    paths = {ending: tmp_path / f"answer.{ending}" for ending in ("csv", "json", "parquet")}
    for path in paths.values():
        assert asked(published, QUESTION, "-o", str(path)).exit_code == 0
    (row,) = pl.DataFrame(ANSWER).to_dicts()
    assert json.loads(paths["json"].read_text()) == [row]
    assert pl.read_parquet(paths["parquet"]).to_dicts() == [row]
    (flat,) = pl.read_csv(paths["csv"]).to_dicts()
    assert flat | {"reasons": json.loads(flat["reasons"])} == row
    assert asked(published, QUESTION, "--format", "csv").stdout == paths["csv"].read_text()


def test_the_command_reads_a_query_from_a_file_or_stdin(published, tmp_path):
    file = tmp_path / "question.sql"
    file.write_text(QUESTION)
    for found in (
        asked(published, "--file", str(file), "--format", "json"),
        asked(published, "--file", "-", "--format", "json", input=QUESTION),
    ):
        assert json.loads(found.stdout)[0]["pair_id"] == "pair_22"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["SELECT 1", "--file", "-"],
        ["SELECT 1", "--format", "parquet"],
        ["SELECT 1", "-o", "answer.txt"],
        ["SELECT 1", "-o", "no/such/folder/answer.csv"],
        ["--file", "latin.sql"],
        ["SELECT 1", "-o", "no/such/folder/answer.parquet"],
    ],
)
def test_the_command_says_what_it_cannot_do(published, tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    Path("latin.sql").write_bytes(b"SELECT '\xe9'")
    found = asked(published, *arguments)
    assert found.exit_code != 0
    assert isinstance(found.exception, SystemExit | PrefmillError)


def test_an_unpublished_workspace(empty_workspace):
    with pytest.raises(MissingFileError, match="prefmill lineage rebuild"):
        query(empty_workspace, "SELECT 1")


def test_a_moved_workspace_is_named_and_mended_by_rebuild(workspace, tmp_path):
    moved = Workspace(tmp_path / "moved")
    shutil.move(workspace.root, moved.root)
    with pytest.raises(WorkspaceError, match=r"was published for.*lineage rebuild"):
        query(moved, "FROM pairs")
    rebuild(moved)
    assert query(moved, "FROM pairs").height == 3


@pytest.mark.parametrize("folder", ["seed=7", "split=a", "Stage_Key=x", "temperature=high"])
def test_a_folder_named_like_a_column_changes_no_answer(published, tmp_path, folder):
    moved = Workspace(tmp_path / folder / "w")
    write_small_workspace(moved)
    publish(moved)
    for table in ("candidates", "prompts", "pair_quality", "funnel"):
        sql = f"SELECT * FROM {table} ORDER BY ALL"
        assert query(moved, sql).equals(query(published, sql)), table


def test_a_broken_database_is_named_and_mended_by_rebuild(workspace):
    workspace.lineage_database.write_bytes(b"not a database")
    with pytest.raises(WorkspaceError, match="lineage rebuild"):
        query(workspace, "FROM pairs")
    rebuild(workspace)
    assert query(workspace, "FROM pairs").height == 3


def test_a_query_sees_the_newest_publication_while_a_connection_is_open(workspace):
    held = duckdb.connect(str(workspace.lineage_database), read_only=True)
    (workspace.runs / "refresh_a1" / "run.json").unlink()
    publish(workspace)
    assert query(workspace, "SELECT count(*) FROM runs").item() == 1
    assert held.sql("SELECT count(*) FROM runs").fetchall() == [(2,)]


def test_the_example_queries_of_the_documentation_run(published):
    from pathlib import Path

    from lineage.ddl import VIEWS

    text = (Path(__file__).parents[2] / "docs" / "analysts.md").read_text()
    blocks = re.findall(r"```sql\n(.*?)```", text, flags=re.DOTALL)
    assert len(blocks) >= len(VIEWS)
    for block in blocks:
        query(published, block)
    for view in VIEWS:
        assert any(re.search(rf"\b{view}\b", block) for block in blocks), view


def test_the_document_of_the_tables_is_generated():
    from lineage.document_tables import TABLES_DOCUMENT, tables_document

    assert TABLES_DOCUMENT.read_text() == tables_document(), "run python -m lineage.document_tables"
