"""A dataset with rows of a later stage: read, cut and grouped as if they were one."""

import polars as pl

from lineage.extended import extended
from lineage.workspace import Dataset, write_part
from stages.tables import SCORES, table
from tests.lineage.small_workspace import frame

KEY = "prompt_id"


def dataset(workspace, key, parts):
    """Return a dataset of parts, each given by the prompts of its rows."""
    made = []
    for index, prompts in enumerate(parts):
        rows = [(f"{key}-{index}-{n}", p, "s", 1.0, None, 1, 0.0) for n, p in enumerate(prompts)]
        part = frame("scores", *rows) if rows else SCORES.empty()
        made.append(write_part(workspace, table("scores"), key, index, part, {}))
    return Dataset("scores", key, tuple(made))


def prompts(rows):
    return rows[KEY].to_list()


def test_each_group_has_what_was_added_to_it(empty_workspace):
    # Prompt p1 stands in two parts, so they are one group; p2 makes another.
    base = dataset(empty_workspace, "base", [["p1"], ["p1", "p1"], ["p2", "p2"]])
    assert len(base.grouped(empty_workspace, 2, KEY)) == 2
    whole = extended(base, dataset(empty_workspace, "more", [["p1"], []]))
    groups = whole.grouped(empty_workspace, 2, KEY)
    assert [group.rows for group in groups] == [4, 2]
    assert [prompts(group.frame.collect()) for group in groups] == [["p1"] * 4, ["p2"] * 2]
    assert whole.rows == whole.read(empty_workspace).height == 6
    assert whole.scan(empty_workspace).select(pl.len()).collect().item() == 6
    assert whole.sources == (base, whole.added)


def test_parts_are_cut_with_what_was_added_to_each(empty_workspace):
    base = dataset(empty_workspace, "base", [["p1"], ["p2"], ["p3"]])
    whole = extended(base, dataset(empty_workspace, "more", [["p1"], ["p2"], []]))
    assert prompts(whole.slice(1, 3).read(empty_workspace, [KEY])) == ["p2", "p3", "p2"]
    assert prompts(whole.part(0).read(empty_workspace)) == ["p1", "p1"]
