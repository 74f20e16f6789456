"""YAML files of users: what the usual loader takes in silence, or fails on, is an error of ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from stages.errors import ConfigError
from stages.yaml_files import read_yaml_file

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("filters:\n  empty: true\n  'empty': false\n", "the key 'empty' twice"),
        ("- {a: 1, b: 2, a: 3}\n", "the key 'a' twice"),
        ("name: 2020-06-31\n", "day is out of range"),
        ("a: &a [*a]\n", "recursive"),
        ("a: " + "[" * 3000, "recursion"),
        ("name: caf\xe9\n".encode("latin-1"), "utf-8"),
        ('name: "a \\ud83d"\n', "half a character"),
    ],
    ids=["twice", "twice in a row", "no date", "within itself", "deep", "not UTF-8", "half"],
)
def test_what_is_no_usable_yaml_is_an_error_that_names_the_file(
    tmp_path: Path, text: str | bytes, found: str
) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ConfigError, match=found) as raised:
        read_yaml_file(path, "see the docs")
    assert raised.value.where == str(path)
    assert raised.value.remedy == "see the docs"


def test_characters_of_two_escapes_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text('- "\\ud83d\\ude00"\n- a\U0001f600b\n')
    assert read_yaml_file(path) == ["\U0001f600", "a\U0001f600b"]


def test_merged_keys_may_be_overridden_and_equal_keys_of_two_mappings_stay(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("a: &a {x: 1, y: 2}\nb: {<<: *a, x: 3}\nc: {1: one, '1': text}\n")
    assert read_yaml_file(path) == {
        "a": {"x": 1, "y": 2},
        "b": {"x": 3, "y": 2},
        "c": {1: "one", "1": "text"},
    }
