"""Sources: the same prompts from every kind, each column in its place, each bad row named."""

import csv
import hashlib
import json

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.content_ids import canonical_json
from stages.errors import ConfigError, DataError, MissingFileError
from stages.prompt_records import conversation_json
from stages.prompt_sampling import PromptSamplingConfig, sample
from stages.prompt_sources import (
    DatasetSource,
    ListSource,
    QuerySource,
    fingerprint,
    read_source,
)
from stages.tables import PROMPTS
from tests.stages.prompt_files import file_source, jsonl, sampled

ROWS = [
    {
        "prompt": "Add 1 + 2.",
        "system": "Be brief.",
        "topic": "sum",
        "rule": "sum",
        "truth": '{"numbers":[1,2]}',
        "good": "3",
    },
    {
        "prompt": 'Zwölf "Boxer"\njagen, 🐕',
        "system": None,
        "topic": "text",
        "rule": None,
        "truth": None,
        "good": None,
    },
    {
        "prompt": "Sort b, a.",
        "system": None,
        "topic": "sort",
        "rule": "sort",
        "truth": '{"words":["a","b"]}',
        "good": "a, b",
    },
]


@pytest.fixture
def written(tmp_path, monkeypatch):
    """ROWS as a file of every kind, and as a local Hugging Face dataset."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    jsonl(tmp_path / "rows.jsonl", ROWS)
    pl.DataFrame(ROWS).write_parquet(tmp_path / "rows.parquet")
    with (tmp_path / "rows.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ROWS[0])
        writer.writeheader()
        writer.writerows(ROWS)
    (tmp_path / "dataset").mkdir()
    jsonl(tmp_path / "dataset" / "train.jsonl", ROWS)
    return tmp_path


def test_every_kind_of_source_gives_the_same_prompts(written):
    columns = {
        "system_column": "system",
        "stratum_column": "topic",
        "verifier_column": "rule",
        "ground_truth_column": "truth",
        "reference_column": "good",
        "heldout_share": 0.5,
    }
    files = ("rows.jsonl", "rows.parquet", "rows.csv")
    tables = [sampled(file_source(written / name, **columns)) for name in files]
    tables.append(sampled(DatasetSource(name="mine", path=str(written / "dataset"), **columns)))
    sql = f"SELECT * FROM '{written / 'rows.parquet'}'"
    tables.append(sampled(QuerySource(name="mine", sql=sql, **columns)))
    for prompts in tables:
        assert prompts.equals(tables[0])
    PROMPTS.to_arrow(tables[0])
    facts = ["stratum", "verifier", "ground_truth", "reference"]
    found = {row["messages"][-1]["content"]: row for row in tables[0].iter_rows(named=True)}
    assert set(found) == {row["prompt"] for row in ROWS}
    for row in ROWS:
        prompt = found[row["prompt"]]
        assert [prompt[name] for name in facts] == [
            row[k] for k in ("topic", "rule", "truth", "good")
        ]
        system = [{"role": "system", "content": row["system"]}] if row["system"] else []
        assert prompt["messages"] == [*system, {"role": "user", "content": row["prompt"]}]


def test_an_id_is_the_hash_of_the_canonical_messages(tmp_path):
    prompts = sampled(file_source(jsonl(tmp_path / "a.jsonl", [{"prompt": "é"}])))
    text = '[{"content":"é","role":"user"}]'
    digits = hashlib.sha256(f"{len(text.encode())}:{text}".encode()).hexdigest()[:20]
    assert prompts["prompt_id"].to_list() == [f"prompt_{digits}"]


CONVERSATION = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hello?"},
    {"role": "assistant", "content": "Hi."},
    {"role": "user", "content": "And you?"},
]


@pytest.mark.parametrize("column", ["prompt", "messages"])
@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
def test_a_conversation_is_kept_turn_by_turn(tmp_path, column, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "jsonl":
        jsonl(path, [{column: CONVERSATION}])
    else:
        pl.DataFrame({column: [CONVERSATION]}).write_parquet(path)
    assert sampled(file_source(path))["messages"].to_list() == [CONVERSATION]


def test_keys_beside_role_and_content_are_left_out(tmp_path):
    turn = {"content": "Hello?", "role": "user", "name": "Ada"}
    one = sampled(file_source(jsonl(tmp_path / "a.jsonl", [{"prompt": [turn]}])))
    two = sampled(file_source(jsonl(tmp_path / "b.jsonl", [{"prompt": "Hello?"}])))
    assert one.equals(two)


def test_ground_truth_that_is_no_text_becomes_canonical_json(tmp_path):
    row = {"prompt": "a", "truth": {"b": [1, 2], "a": "é"}}
    path = jsonl(tmp_path / "a.jsonl", [row])
    prompts = sampled(file_source(path, ground_truth_column="truth"))
    assert prompts["ground_truth"].to_list() == ['{"a":"é","b":[1,2]}']


@given(st.lists(st.tuples(st.sampled_from(["user", "system"]), st.text()), max_size=3))
def test_the_fast_json_of_a_conversation_is_the_canonical_one(turns):
    """Else every prompt would get another id."""
    messages = [{"role": role, "content": content} for role, content in turns]
    assert conversation_json(messages) == canonical_json(messages)


@pytest.mark.parametrize("frame", [{"prompt": [1]}, {"prompt": ["a", None, "b"]}])
def test_a_query_is_closed_when_what_it_finds_cannot_be_used(monkeypatch, frame):
    """Although the error, while somebody holds it, keeps what was read from."""
    closed = []

    def result_frames(*_):
        try:
            yield pl.DataFrame(frame)
        finally:
            closed.append(True)

    monkeypatch.setattr("stages.duckdb_rows.result_frames", result_frames)
    with pytest.raises(DataError) as held:
        read_source(QuerySource(name="q", sql="SELECT 1"), seed=0)
    assert held.value.where.startswith("query of prompt source 'q'")
    assert closed == [True]


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
def test_a_ground_truth_that_is_no_finite_number_is_refused(tmp_path, value):
    path = tmp_path / "a.parquet"
    pl.DataFrame({"prompt": ["a", "b"], "truth": [1.5, value]}).write_parquet(path)
    with pytest.raises(DataError, match="no JSON") as raised:
        sampled(file_source(path, ground_truth_column="truth"))
    assert "row 2" in raised.value.where


def test_integers_beyond_64_bits_stay_exact(tmp_path):
    number = 2**64 + 1
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "truth": {"answer": number}}])
    prompts = sampled(file_source(path, ground_truth_column="truth"))
    assert prompts["ground_truth"].to_list() == [f'{{"answer":{number}}}']


# --- lists and queries


def test_prompts_in_the_configuration_are_texts_or_conversations():
    values = {"kind": "list", "prompts": ["Hello?", CONVERSATION], "heldout_share": 0.0}
    prompts = sample(PromptSamplingConfig.checked({"sources": [values]})).prompts
    texts = {len(messages): messages for messages in prompts["messages"].to_list()}
    assert texts == {1: [{"role": "user", "content": "Hello?"}], 4: CONVERSATION}
    assert set(prompts["source"]) == {"list"}


@pytest.mark.parametrize(
    "wrong",
    [
        " ",
        [{"role": "user", "content": " "}],
        [{"role": "system", "content": "Be brief."}],
        [],
    ],
)
def test_an_unusable_prompt_of_a_list_is_named(wrong):
    with pytest.raises(ConfigError, match=r"no usable prompt.*`prompts`, number 2"):
        sampled(ListSource(prompts=("a", wrong)))


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """A DuckDB file with a table of prompts, closed."""
    import duckdb

    path = tmp_path_factory.mktemp("duckdb") / "prompts.duckdb"
    with duckdb.connect(str(path)) as connection:
        connection.execute("CREATE TABLE asked (question VARCHAR, votes INTEGER)")
        connection.execute("INSERT INTO asked VALUES ('Hello?', 5), ('Bye?', 1), (NULL, 9)")
    return path


def test_a_query_reads_the_tables_of_a_database(database):
    sql = "WITH liked AS (FROM asked WHERE votes > 2) SELECT question, votes FROM liked; -- liked"
    asked = {"prompt_column": "question", "stratum_column": "votes", "skip_bad_rows": True}
    found = sample(
        PromptSamplingConfig(
            sources=(QuerySource(name="mine", sql=sql, database=database, **asked),)
        )
    )
    assert found.prompts["stratum"].to_list() == ["5"]
    ((source, number, reason, text),) = found.bad_rows
    assert (source, number) == ("query of prompt source 'mine'", 2)
    assert "no usable prompt" in reason
    assert json.loads(text) == {"question": None, "votes": 9}


@pytest.mark.parametrize(
    ("sql", "what"),
    [
        ("DELETE FROM asked", "a statement of type DELETE"),
        ("COPY asked TO 'x.csv'", "a statement of type COPY"),
        ("SELECT 1 AS prompt; SELECT 2 AS prompt", "2 SQL statements"),
        ("", "0 SQL statements"),
        ("WITH x AS (COPY asked TO 'x.csv') FROM x", "statement of type"),
        ("FROM query('SELECT 1')", "the function 'query'"),
        ("SELEC 1", "the query cannot be run"),
        ("FROM nowhere", "nowhere does not exist"),
        ("FROM 'nowhere.parquet'", "No files found"),
        ("SELECT error(question) AS prompt FROM asked", "Hello"),
    ],
)
def test_a_query_that_is_no_usable_select_is_refused(database, tmp_path, monkeypatch, sql, what):
    monkeypatch.chdir(tmp_path)
    source = QuerySource(name="mine", sql=sql, database=database)
    for ask in (sampled, fingerprint):
        with pytest.raises(DataError, match=what):
            ask(source)
    assert not (tmp_path / "x.csv").exists()


def test_a_database_that_is_not_there_is_named(tmp_path):
    source = QuerySource(name="mine", sql="FROM asked", database=tmp_path / "no.duckdb")
    for ask in (sampled, fingerprint):
        with pytest.raises(MissingFileError, match=r"no\.duckdb"):
            ask(source)
    assert not (tmp_path / "no.duckdb").exists()


def test_the_fingerprint_of_a_query_is_of_its_rows_in_any_order(database):
    def of(sql):
        return fingerprint(QuerySource(name="mine", sql=sql, database=database))

    one = of("FROM asked ORDER BY votes")
    assert one == of("FROM asked ORDER BY votes DESC")
    assert len({one, of("FROM asked WHERE votes > 1"), of("FROM asked WHERE votes > 9")}) == 3


# --- bad input


def refused(path, **rest):
    with pytest.raises(DataError) as caught:
        sampled(file_source(path, **rest))
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    source = file_source(tmp_path / "nowhere.jsonl")
    for ask in (sampled, fingerprint):
        with pytest.raises(MissingFileError, match=r"nowhere\.jsonl"):
            ask(source)


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        "",
        " \n",
        7,
        [],
        ["Hello?"],
        [{"role": "user"}],
        [{"content": "Hello?"}],
        [{"role": "user", "content": None}],
        [{"role": "user", "content": [{"type": "text", "text": "Hello?"}]}],
        [{"role": "robot", "content": "Hello?"}, {"role": "user", "content": "Hello?"}],
        [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hi."}],
        [{"role": "system", "content": "Be brief."}],
        [
            {"role": "user", "content": "Weather?"},
            {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "sky"}}]},
            {"role": "tool", "content": "Sunny."},
            {"role": "user", "content": "And now?"},
        ],
        {"role": "user", "content": "Hello?"},
    ],
    ids=str,
)
def test_a_row_without_a_usable_prompt_is_named(tmp_path, prompt):
    message = refused(jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": prompt, "n": 1}]))
    assert "column 'prompt'" in message
    assert f"{tmp_path / 'a.jsonl'}, line 2; columns there: prompt, n." in message


def test_a_wrong_prompt_column_names_those_there(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"question": "a", "n": 1}])
    assert "columns there: question, n." in refused(path)
    assert sampled(file_source(path, prompt_column="question")).height == 1


@pytest.mark.parametrize(
    ("name", "asked", "what"),
    [
        ("rows.parquet", {"prompt_column": "question"}, r"missing columns \['question'\]"),
        (
            "rows.parquet",
            {"stratum_column": "topc", "reference_column": "goood"},
            r"missing columns \['topc', 'goood'\].*columns there: prompt, system, topic, rule, tru",
        ),
        (
            "rows.csv",
            {"verifier_column": "rul"},
            r"missing columns \['rul'\].*columns there: prompt",
        ),
        (
            "rows.jsonl",
            {"verifier_column": "rul"},
            r"missing columns \['rul'\].*columns there: pro",
        ),
        (
            "dataset",
            {"verifier_column": "rul"},
            r"missing columns \['rul'\].*columns there: prompt",
        ),
    ],
)
def test_missing_columns_are_listed_and_then_those_there(written, name, asked, what):
    of_files = file_source(written / name, **asked)
    of_folder = DatasetSource(name="mine", path=str(written / name), **asked)
    with pytest.raises(DataError, match=what):
        sampled(of_folder if name == "dataset" else of_files)


@pytest.mark.parametrize(
    "prompts", [[1, 2], [["a"], ["b"]], [{"role": "user", "content": "a"}], [b"a", b"b"]], ids=str
)
def test_a_prompt_column_of_another_type_is_refused_before_its_rows_are_read(tmp_path, prompts):
    pl.DataFrame({"prompt": prompts}).write_parquet(tmp_path / "a.parquet")
    message = refused(tmp_path / "a.parquet", skip_bad_rows=True)
    assert "column 'prompt' is of type" in message


def test_a_system_text_beside_a_system_turn_is_refused(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": CONVERSATION, "how": "Be kind."}])
    assert "no system turn" in refused(path, system_column="how")


@pytest.mark.parametrize("column", ["system_column", "reference_column"])
def test_what_must_be_text_and_is_not_is_named(tmp_path, column):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": "a", "x": None}, {"prompt": "b", "x": 7}])
    message = refused(path, **{column: "x"})
    assert "no text in column 'x': found '7'" in message
    assert "line 2" in message


def test_bad_rows_are_set_aside_word_for_word_and_the_others_taken(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'{"prompt": "a"}',
        b'{"prompt": ',
        b'{"prompt":  7}',
        b'{"prompt": "\xff"}',
        b'{"prompt": "b"}',
    ]
    path.write_bytes(b"\n".join(lines))
    found = sample(PromptSamplingConfig(sources=(file_source(path, skip_bad_rows=True),)))
    assert {m[0]["content"] for m in found.prompts["messages"]} == {"a", "b"}
    assert [(row.number, row.text) for row in found.bad_rows] == [
        (2, '{"prompt":'),
        (3, '{"prompt":  7}'),
        (4, '{"prompt": "\\xff"}'),
    ]
    assert {row.source for row in found.bad_rows} == {str(path)}
    assert "no usable prompt" in found.bad_rows[1].reason


def test_only_bad_rows_leave_no_prompts_and_say_so(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"prompt": 7}, {"prompt": ""}])
    message = refused(path, skip_bad_rows=True)
    assert "no prompts to sample (2 rows cannot be used: no usable prompt" in message


def test_an_empty_field_of_a_csv_file_is_a_missing_value(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text("prompt,topic,rule\na,,\nb,t,sum\n")
    prompts = sampled(file_source(path, stratum_column="topic", verifier_column="rule"))
    facts = {m[0]["content"]: r for m, *r in prompts["messages", "stratum", "verifier"].iter_rows()}
    assert facts == {"a": ["none", None], "b": ["t", "sum"]}


@pytest.mark.parametrize(
    ("files", "asked", "what"),
    [
        ({}, {}, "doesn't contain any data files"),
        ({"train.jsonl": ""}, {}, "cannot be loaded: "),
        ({"train.jsonl": '{"prompt": "a"}\n{"prompt": '}, {}, "JSON parse error"),
        ({"train.jsonl": '{"prompt": "a"}\n'}, {"split": "tset"}, 'Unknown split "tset"'),
        ({"train.jsonl": '{"prompt": "a"}\n'}, {"subset": "zzz"}, "'zzz' not found"),
    ],
)
def test_a_dataset_that_cannot_be_loaded_is_named(written, files, asked, what):
    folder = written / "broken"
    folder.mkdir()
    for name, text in files.items():
        (folder / name).write_text(text)
    with pytest.raises(DataError) as caught:
        sampled(DatasetSource(name="mine", path=str(folder), **asked))
    assert what in str(caught.value)
    assert f"dataset {str(folder)!r} cannot be loaded: ." not in str(caught.value)


def test_a_row_of_a_dataset_is_named(written):
    jsonl(written / "dataset" / "train.jsonl", [{"prompt": "a"}, {"prompt": " "}])
    with pytest.raises(DataError, match=r"dataset .*dataset, row 2; columns there: prompt"):
        sampled(DatasetSource(name="mine", path=str(written / "dataset")))


def test_the_fingerprint_changes_with_the_content_only(written):
    sources = [
        file_source(written / "rows.jsonl"),
        DatasetSource(name="mine", path=str(written / "dataset")),
    ]
    before = [fingerprint(source) for source in sources]
    assert [fingerprint(source) for source in sources] == before
    for path in (written / "rows.jsonl", written / "dataset" / "train.jsonl"):
        path.write_text(path.read_text().replace("1 + 2", "1 + 3"))
    after = [fingerprint(source) for source in sources]
    assert not set(before) & set(after)
