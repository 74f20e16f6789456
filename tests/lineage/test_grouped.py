"""Datasets in groups that hold whole keys, whichever way the rows lie in the part-files."""

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lineage.workspace import Dataset, Workspace, write_part
from stages.tables import SCORES


def dataset(workspace: Workspace, parts: list[list[str]]) -> Dataset:
    """Return scores whose prompts are ``parts``, the n-th row of all being of candidate n."""
    written, count = [], 0
    for index, prompts in enumerate(parts):
        rows = pl.DataFrame(
            {
                "candidate_id": [f"c{count + row}" for row in range(len(prompts))],
                "prompt_id": prompts,
                "scorer": "rules",
                "score": 1.0,
                "spread": None,
                "judgments": 1,
                "missing_share": 0.0,
            },
            schema=SCORES.empty().schema,
        )
        count += len(prompts)
        written.append(write_part(workspace, SCORES, "key", index, rows, {}))
    return Dataset("scores", "key", tuple(written))


def groups(workspace, parts, rows):
    found = dataset(workspace, parts).grouped(workspace, rows, "prompt_id")
    collected = [group.frame.collect()["prompt_id"].to_list() for group in found]
    assert [group.rows for group in found] == [len(prompts) for prompts in collected]
    return collected


@pytest.mark.parametrize(
    ("parts", "rows", "expected"),
    [
        ([], 2, []),
        ([["a", "a"], ["b"], ["c"]], 2, [["a", "a"], ["b", "c"]]),
        ([["a", "b"], ["a", "b"], ["c"]], 9, [["a", "b", "a", "b", "c"]]),
        # Two generators' parts: the first of each share their prompts, and so do the second
        ([["a", "b"], ["c", "d"], ["a", "b"], ["c", "d"]], 4, [["a", "b"] * 2, ["c", "d"] * 2]),
        # A part of more than 16 times the rows is cut where the prompt changes
        ([["a"] * 17], 1, [["a"] * 17]),
        ([["a"] * 9 + ["b"] * 8], 1, [["a"] * 9, ["b"] * 8]),
        ([["a"] * 16], 1, [["a"] * 16]),
        ([["a", "b"] * 9], 1, [["a"] * 9, ["b"] * 9]),
    ],
)
def test_groups_hold_whole_prompts(empty_workspace, parts, rows, expected):
    assert groups(empty_workspace, parts, rows) == expected


@settings(max_examples=25, deadline=None)
@given(
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=6), max_size=5),
    st.integers(1, 8),
    st.sampled_from([1, 16]),
)
def test_every_row_is_in_one_group_and_every_prompt_too(tmp_path_factory, parts, rows, large):
    workspace = Workspace(tmp_path_factory.mktemp("grouped"))
    of_dataset = dataset(workspace, parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lineage.workspace.LARGE_GROUP", large)
        frames = [g.frame.collect() for g in of_dataset.grouped(workspace, rows, "prompt_id")]
    candidates = [c for frame in frames for c in frame["candidate_id"]]
    assert sorted(candidates) == sorted(f"c{row}" for row in range(of_dataset.rows))
    prompts = [prompt for frame in frames for prompt in frame["prompt_id"].unique()]
    assert len(prompts) == len(set(prompts))
