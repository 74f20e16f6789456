import pytest

from flows.commands.flow_runs import stored_config
from lineage.records import write_run
from lineage.workspace import Workspace
from stages.errors import ConfigError
from tests.lineage.small_workspace import RUN_A


@pytest.fixture
def root(tmp_path):
    workspace = Workspace(tmp_path / "workspace")
    write_run(workspace, RUN_A)
    workspace.stored_config(RUN_A.run_id).write_text("name: small\n")
    return workspace.root


def laid_over(root, text):
    (root / "other.yaml").write_text(text)
    return stored_config(root, "latest", root / "other.yaml", ("filters", "pairing"))[1]


def test_another_file_may_hold_the_sections_alone(root):
    filters = {"filters": {"minimum_margin": 0.5}}
    laid = {"prompts": {"of_run": RUN_A.run_id}, **filters}
    assert laid_over(root, "filters: {minimum_margin: 0.5}") == laid
    assert laid_over(root, "name: else\nseed: 7\nfilters: {minimum_margin: 0.5}") == laid


def test_another_file_is_checked(root):
    with pytest.raises(ConfigError, match="minimum_margn"):
        laid_over(root, "filters: {minimum_margn: 0.5}")
