import pytest

from lineage.database import publish
from lineage.workspace import Workspace
from tests.lineage.small_workspace import write_small_workspace


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
