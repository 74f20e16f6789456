"""Prompts: the same from every kind of file, sampled and split by content alone."""

import csv
import hashlib
import json
import random

import polars as pl
import pytest

from stages.errors import ConfigError, DataError, MissingFileError
from stages.prompt_sampling import (
    BundledSource,
    DatasetSource,
    FileSource,
    PromptSamplingConfig,
    read_rows,
    sample,
    source_fingerprint,
)
from stages.tables import PROMPTS

ROWS = [
    {"prompt": "Add 1 + 2.", "topic": "sum", "rule": "sum", "truth": '{"numbers":[1,2]}'},
    {"prompt": 'Zwölf "Boxer"\njagen, 🐕', "topic": "text", "rule": None, "truth": None},
    {"prompt": "Sort b, a.", "topic": "sort", "rule": "sort", "truth": '{"words":["a","b"]}'},
]


def sampled(*sources, seed=0):
    return sample(PromptSamplingConfig(sources=sources, seed=seed))


def file_source(path, name="mine", **rest):
    return FileSource(name=name, path=path, **rest)


def jsonl(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def numbered(path, count, strata=("all",)):
    topics = [strata[i % len(strata)] for i in range(count)]
    return jsonl(path, [{"prompt": f"Prompt {i}", "topic": t} for i, t in enumerate(topics)])


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
        "stratum_column": "topic",
        "verifier_column": "rule",
        "ground_truth_column": "truth",
        "heldout_share": 0.5,
    }
    files = ("rows.jsonl", "rows.parquet", "rows.csv")
    tables = [sampled(file_source(written / name, **columns)) for name in files]
    tables.append(sampled(DatasetSource(name="mine", path=str(written / "dataset"), **columns)))
    for prompts in tables:
        assert prompts.equals(tables[0])
    PROMPTS.to_arrow(tables[0])
    found = {row["messages"][0]["content"]: row for row in tables[0].iter_rows(named=True)}
    assert set(found) == {row["prompt"] for row in ROWS}
    for row in ROWS:
        prompt = found[row["prompt"]]
        asked = (row["topic"], row["rule"], row["truth"])
        assert (prompt["stratum"], prompt["verifier"], prompt["ground_truth"]) == asked
        assert prompt["messages"] == [{"role": "user", "content": row["prompt"]}]


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


def test_the_first_source_keeps_a_duplicate_and_only_exact_ones_are_duplicates(tmp_path):
    first = jsonl(tmp_path / "a.jsonl", [{"prompt": p} for p in ("x", "y", "x")])
    second = jsonl(tmp_path / "b.jsonl", [{"prompt": p} for p in ("y", "z", "x ", "X")])
    sources = file_source(first, "first"), file_source(second, "second")

    def owners(prompts):
        return {m[0]["content"]: s for m, s in prompts.select("messages", "source").iter_rows()}

    assert owners(sampled(*sources)) == {
        "x": "first",
        "y": "first",
        "z": "second",
        "x ": "second",
        "X": "second",
    }
    assert owners(sampled(*reversed(sources)))["y"] == "second"


@pytest.mark.parametrize(
    ("maximum", "expected"),
    [
        # strata of 10, 2 and 1 rows are drawn from in turns
        (3, {"a": 1, "b": 1, "c": 1}),
        (6, {"a": 3, "b": 2, "c": 1}),
        (7, {"a": 4, "b": 2, "c": 1}),
        (13, {"a": 10, "b": 2, "c": 1}),
        (100, {"a": 10, "b": 2, "c": 1}),
    ],
)
def test_strata_share_equally_as_far_as_they_last(tmp_path, maximum, expected):
    topics = "a" * 10 + "bb" + "c"
    rows = [{"prompt": f"Prompt {i}", "topic": t} for i, t in enumerate(topics)]
    path = jsonl(tmp_path / "a.jsonl", rows)
    prompts = sampled(file_source(path, stratum_column="topic", maximum_rows=maximum))
    assert dict(prompts.group_by("stratum").len().iter_rows()) == expected


def test_the_seed_decides_the_sample(tmp_path):
    source = file_source(numbered(tmp_path / "a.jsonl", 100), maximum_rows=20)
    ids = [frozenset(sampled(source, seed=seed)["prompt_id"]) for seed in (1, 1, 2)]
    assert ids[0] == ids[1]
    assert ids[0] != ids[2]


def test_the_order_of_the_file_does_not_change_the_sample(tmp_path):
    path = numbered(tmp_path / "a.jsonl", 60, strata=("a", "b", "b"))
    source = file_source(path, stratum_column="topic", maximum_rows=31)
    before, lines = sampled(source), path.read_text().splitlines(keepends=True)
    for seed in range(5):
        random.Random(seed).shuffle(lines)
        path.write_text("".join(lines))
        assert sampled(source).equals(before)


def test_adding_rows_never_moves_a_prompt_to_the_other_split(tmp_path):
    def splits(count, name="mine", **rest):
        path = numbered(tmp_path / f"{count}.jsonl", count)
        prompts = sampled(file_source(path, name, heldout_share=0.25, **rest))
        return dict(prompts.select("prompt_id", "split").iter_rows())

    many = splits(2000)
    # 4 standard deviations of a share of 0.25 over 2000 prompts: 0.039
    assert sum(s == "heldout" for s in many.values()) / 2000 == pytest.approx(0.25, abs=0.039)
    for fewer in (splits(10), splits(500), splits(500, "other", maximum_rows=100)):
        assert fewer.items() <= many.items()


def test_a_larger_held_out_share_only_adds_to_the_held_out_prompts(tmp_path):
    path = numbered(tmp_path / "a.jsonl", 300)
    heldout = []
    for share in (0.0, 0.1, 0.5):
        prompts = sampled(file_source(path, heldout_share=share))
        heldout.append(set(prompts.filter(pl.col("split") == "heldout")["prompt_id"]))
    assert not heldout[0]
    assert heldout[0] < heldout[1] < heldout[2]


def test_prompts_are_sorted_by_split_and_id(tmp_path):
    prompts = sampled(file_source(numbered(tmp_path / "a.jsonl", 50), heldout_share=0.5))
    keys = list(prompts.select("split", "prompt_id").iter_rows())
    assert keys == sorted(keys, key=lambda key: (key[0] == "heldout", key[1]))
    assert {split for split, _ in keys} == {"train", "heldout"}


# --- bad input


def refused(path, **rest):
    with pytest.raises(DataError) as caught:
        sampled(file_source(path, **rest))
    return str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    source = file_source(tmp_path / "nowhere.jsonl")
    for ask in (sampled, source_fingerprint):
        with pytest.raises(MissingFileError, match=r"nowhere\.jsonl"):
            ask(source)


@pytest.mark.parametrize(
    ("line", "where", "what"),
    [
        ('{"prompt": "b",,}', "line 3, column 16", "property name"),
        ('{"prompt": "b"', "line 3, column 15", "delimiter"),
        ("[1, 2]", "line 3, column 1", "a list instead of an object"),
        ('"b"', "line 3, column 1", "a str instead of an object"),
        ('{"prompt": "\\ud800"}', "line 3, column 1", "surrogates"),
        (f'{{"prompt": {"1" * 5000}}}', "line 3, column 1", "digits"),
        ("[" * 100_000, "line 3, column 1", "recursion"),
    ],
)
def test_a_broken_jsonl_line_is_named(tmp_path, line, where, what):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a"}\n\n' + line + "\n")
    message = refused(path)
    assert f"{path}, {where}." in message
    assert what in message


def test_a_line_separator_within_a_text_is_no_end_of_line(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text('{"prompt": "a\u2028b\u0085c"}\n', encoding="utf-8")
    assert read_rows(path) == [{"prompt": "a\u2028b\u0085c"}]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_byte_order_mark_is_passed_over(tmp_path, name):
    text = '{"prompt": "a"}' if name == "a.jsonl" else "prompt\na"
    (tmp_path / name).write_text(text + "\n", encoding="utf-8-sig")
    assert read_rows(tmp_path / name) == [{"prompt": "a"}]


@pytest.mark.parametrize(
    ("name", "content", "what"),
    [
        ("a.jsonl", b"", "no prompts to sample"),
        ("a.jsonl", b"\n \n", "no prompts to sample"),
        ("a.csv", b"", "no prompts to sample"),
        ("a.csv", b"prompt\n", "no prompts to sample"),
        ("a.parquet", b"", "cannot read"),
        ("a.parquet", b"PAR1 and then nothing PAR1", "cannot read"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', "utf-8"),
        ("a.csv", b"prompt\n\xff\n", "utf-8"),
        ("a.txt", b"Hello?", "cannot tell the format"),
        ("a", b"Hello?", "cannot tell the format"),
    ],
)
def test_a_file_without_usable_rows_is_refused(tmp_path, name, content, what):
    path = tmp_path / name
    path.write_bytes(content)
    message = refused(path)
    assert what in message
    assert "'mine'" in message if what.startswith("no prompts") else str(path) in message


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
        {"role": "user", "content": "Hello?"},
    ],
    ids=str,
)
def test_a_row_without_a_usable_prompt_is_named(tmp_path, prompt):
    message = refused(jsonl(tmp_path / "a.jsonl", [{"prompt": "a"}, {"prompt": prompt, "n": 1}]))
    assert "column 'prompt'" in message
    assert f"{tmp_path / 'a.jsonl'}, row 2; columns there: prompt, n." in message


def test_a_wrong_prompt_column_names_those_there(tmp_path):
    path = jsonl(tmp_path / "a.jsonl", [{"question": "a", "n": 1}])
    assert "columns there: question, n." in refused(path)
    assert sampled(file_source(path, prompt_column="question")).height == 1


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
    before = [source_fingerprint(source) for source in sources]
    assert [source_fingerprint(source) for source in sources] == before
    for path in (written / "rows.jsonl", written / "dataset" / "train.jsonl"):
        path.write_text(path.read_text().replace("1 + 2", "1 + 3"))
    after = [source_fingerprint(source) for source in sources]
    assert not set(before) & set(after)


# --- the bundled families


def bundled(split, train=20, heldout=10, skip=0, seed=0, **rest):
    prompts = sampled(BundledSource(train=train, heldout=heldout, skip=skip, **rest), seed=seed)
    return prompts.filter(pl.col("split") == split)


def test_bundled_prompts_come_in_equal_shares_and_the_remainder_goes_to_the_first():
    counts = dict(bundled("train", train=12).group_by("stratum").len().iter_rows())
    assert counts == {"sum": 3, "sort": 3, "words": 2, "support": 2, "extract": 2}


@pytest.mark.parametrize("skip", [5, 7, 20])
def test_skip_gives_the_next_train_prompts_and_the_same_held_out_ones(skip):
    first, fresh = bundled("train", train=skip), bundled("train", train=18, skip=skip)
    assert (first.height, fresh.height) == (skip, 18)
    for column in ("prompt_id", "ground_truth"):
        assert not set(first[column]) & set(fresh[column])
    assert set(first["prompt_id"]) | set(fresh["prompt_id"]) == set(
        bundled("train", train=18 + skip)["prompt_id"]
    )
    assert bundled("heldout", skip=skip).equals(bundled("heldout"))


def test_another_seed_gives_other_prompts_whose_content_stays_in_its_split():
    train = [set(bundled("train", seed=seed)["ground_truth"]) for seed in (1, 2)]
    heldout = [set(bundled("heldout", seed=seed)["ground_truth"]) for seed in (1, 2)]
    assert train[0] != train[1]
    assert not (train[0] | train[1]) & (heldout[0] | heldout[1])


def test_an_unknown_family_is_refused():
    with pytest.raises(ConfigError, match=r"'summ'; known: sum, .*prompt source 'bundled'"):
        sampled(BundledSource(families=("summ",)))


def test_more_bundled_prompts_than_there_are_is_refused(monkeypatch):
    monkeypatch.setattr("stages.task_families.MAX_STALE_DRAWS", 100)
    with pytest.raises(ConfigError, match=r"ask for at most \d+"):
        sampled(BundledSource(families=("support",), train=10**6))


def test_no_bundled_prompts_is_refused():
    with pytest.raises(DataError, match="no prompts to sample"):
        sampled(BundledSource(train=0, heldout=0))
