"""A file is committed whole or not at all."""

from __future__ import annotations

import pytest

from lineage import workspace
from lineage.workspace import commit_bytes


@pytest.mark.parametrize("stop", [KeyboardInterrupt, RuntimeError])
def test_an_interrupted_commit_leaves_nothing(monkeypatch, tmp_path, stop):
    path = tmp_path / "record.json"
    commit_bytes(path, b"before")

    def interrupted(_):
        raise stop

    monkeypatch.setattr(workspace.os, "fsync", interrupted)
    with pytest.raises(stop):
        commit_bytes(path, b"after")
    assert [file.name for file in tmp_path.iterdir()] == ["record.json"]
    assert path.read_bytes() == b"before"
