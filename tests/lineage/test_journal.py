"""The journal of finished requests: what was put is there again, however its writer ended."""

import json
import os
import signal
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lineage.journal import Journal


@pytest.fixture
def path(tmp_path):
    return tmp_path / "journals" / "key" / "00000.jsonl"


def held(path):
    """Return everything that the journal holds when it is opened again."""
    with Journal(path) as journal:
        return dict(journal._held)


def test_what_was_put_is_there_when_it_is_opened_again(path):
    with Journal(path) as journal:
        assert journal.get("a") is None
        journal.put({"a": [1, "ä\n\u2028", None]})
        journal.put({"b": {"x": 0.5}})
        journal.put({"a": "later"})
        assert journal.get("a") == "later"
    assert held(path) == {"a": "later", "b": {"x": 0.5}}
    with Journal(path) as journal:
        journal.put({"c": 3})
    assert held(path) == {"a": "later", "b": {"x": 0.5}, "c": 3}


# A lone low surrogate after a lone high one would be read as the character that they make.
texts = st.text(st.characters(exclude_categories=("Cs",)))
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)


@given(st.lists(st.tuples(texts, values), max_size=8), st.integers(0, 8))
def test_any_json_comes_back_as_it_was(tmp_path_factory, entries, reopened_at):
    path = tmp_path_factory.mktemp("journal") / "a.jsonl"
    for of_one in (entries[:reopened_at], entries[reopened_at:]):
        with Journal(path) as journal:
            for key, value in of_one:
                journal.put({key: value})
    assert held(path) == dict(entries)


@pytest.mark.parametrize("text", ["\ud800", "a\udfffb", "\\ud800", "\ud800\\"])
def test_half_characters_survive(path, text):
    with Journal(path) as journal:
        journal.put({text: [text]})
        journal.put({"next": 1})
    assert held(path) == {text: [text], "next": 1}


def test_a_line_cut_short_anywhere_costs_that_line_only(path):
    with Journal(path) as journal:
        journal.put({"a": "one"})
        journal.put({"b": "zwölf"})
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for end in range(first, len(whole)):
        path.write_bytes(whole[:end])
        with Journal(path) as journal:
            assert journal.get("a") == "one"
            assert journal.get("b") is None
            journal.put({"c": 3})
        assert held(path) == {"a": "one", "c": 3}, f"cut after {end} bytes"


def test_what_was_put_together_is_there_whole_or_not_at_all(path):
    with Journal(path) as journal:
        journal.put({"a": 1})
        journal.put({})
        journal.put({"b": [2, "zwei"], "c": "drei", "a": 4})
    whole = path.read_bytes()
    assert held(path) == {"a": 4, "b": [2, "zwei"], "c": "drei"}
    for end in range(whole.index(b"\n") + 1, len(whole)):
        path.write_bytes(whole[:end])
        assert held(path) == {"a": 1}, f"cut after {end} bytes"


@pytest.mark.parametrize(
    "junk",
    [b"\0" * 40, b"\xff\xfe", b"", b"[]", b"{}", b"3", b"null", b'"ab"', b'["a"]', b'[["k"],1]'],
)
def test_after_a_power_cut_what_stands_before_the_junk_is_kept(path, junk):
    with Journal(path) as journal:
        journal.put({"a": 1})
    whole = path.read_bytes()
    path.write_bytes(whole + junk + b'\n["z",9]\n')
    assert held(path) == {"a": 1}
    assert path.read_bytes() == whole


WRITER = """
import sys
from pathlib import Path
from lineage.journal import Journal

journal = Journal(Path(sys.argv[1]))
for number in range(10**9):
    journal.put({f"k{number}": "x" * (number % 5000)})
    print(number, flush=True)
"""


def test_a_killed_writer_loses_nothing_that_it_had_put(path):
    """The writer says a number once it is put; all that it said is there."""
    writer = subprocess.Popen([sys.executable, "-c", WRITER, path], stdout=subprocess.PIPE)
    for _ in range(300):
        writer.stdout.readline()
    os.kill(writer.pid, signal.SIGKILL)
    said = [int(line) for line in writer.stdout.read().split() if line.isdigit()]
    assert writer.wait() == -signal.SIGKILL
    found = held(path)
    assert len(found) >= 300 + len(said) - 1  # the last number may be cut short itself
    assert found == {f"k{n}": "x" * (n % 5000) for n in range(len(found))}


def test_forgetting_frees_memory_and_keeps_the_file(path):
    with Journal(path) as journal:
        for key in "abc":
            journal.put({key: key * 3})
        journal.forget(["a", "c", "never put"])
        assert [journal.get(key) for key in "abc"] == [None, "bbb", None]
    assert set(held(path)) == {"a", "b", "c"}
    assert len([json.loads(line) for line in path.read_text().splitlines()]) == 3


def test_removing_takes_the_file_and_a_folder_that_is_empty_then(path):
    with Journal(path) as journal, Journal(path.with_name("00001.jsonl")) as other:
        journal.put({"a": 1})
        journal.remove()
        assert [p.name for p in path.parent.iterdir()] == ["00001.jsonl"]
        other.remove()
    assert not path.parent.exists()
    assert held(path) == {}
