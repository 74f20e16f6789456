import shutil

import pytest

from lineage.database import publish
from lineage.workspace import Workspace
from tests.lineage.small_workspace import write_small_workspace
from tests.lineage.written_workspace import config_of, refresh, small_shards, train


@pytest.fixture
def workspace(tmp_path):
    """The small workspace, published, in a folder whose name needs quoting."""
    made = Workspace(tmp_path / "it's a [workspace]* a=3")
    write_small_workspace(made)
    publish(made)
    return made


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    """The same, shared by the tests that only read it."""
    made = Workspace(tmp_path_factory.mktemp("published") / "it's a [workspace]* a=3")
    write_small_workspace(made)
    publish(made)
    return made


@pytest.fixture
def empty_workspace(tmp_path):
    made = Workspace(tmp_path / "empty")
    made.require_writable()
    return made


@pytest.fixture(scope="session")
def sources(tmp_path_factory):
    """The folder of the prompts' files: part of what names a stage's output."""
    return tmp_path_factory.mktemp("sources")


@pytest.fixture(scope="session")
def written_once(tmp_path_factory, sources):
    """`run-a` of the real stages on texts about a zebra, and a round trained on it."""
    made = Workspace(tmp_path_factory.mktemp("written"))
    made.require_writable()
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
        exports = refresh(made, config_of(sources, "zebra"), "run-a", "zebra")
        train(made, "run-a", exports)
    return made


@pytest.fixture(scope="session")
def two_written_once(tmp_path_factory, sources, written_once):
    """The same and a newer `run-b` about a lion."""
    made = copy_of(written_once, tmp_path_factory.mktemp("two") / "w [1]*")
    with pytest.MonkeyPatch.context() as patch:
        small_shards(patch)
        refresh(made, config_of(sources, "lion"), "run-b", "lion", day=2)
    return made


def copy_of(workspace, root):
    copy = Workspace(root)
    shutil.copytree(workspace.root, root)
    publish(copy)
    return copy


@pytest.fixture
def written(written_once, tmp_path, monkeypatch):
    """A copy of `written_once` that a test may change."""
    small_shards(monkeypatch)
    return copy_of(written_once, tmp_path / "written")


@pytest.fixture
def two_written(two_written_once, tmp_path, monkeypatch):
    """A copy of `two_written_once` that a test may change."""
    small_shards(monkeypatch)
    return copy_of(two_written_once, tmp_path / "two")
