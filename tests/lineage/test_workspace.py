"""Where a workspace may lie."""

import pytest

from lineage.workspace import Workspace
from stages.errors import WorkspaceError


@pytest.mark.parametrize("name", ["run[1]", "what?", "a*b"])
def test_a_path_that_reads_as_a_pattern_is_refused_before_anything_is_made(tmp_path, name):
    with pytest.raises(WorkspaceError, match="read as a pattern"):
        Workspace(tmp_path / name / "workspace").require_writable()
    assert not list(tmp_path.iterdir())


def test_spaces_quotes_and_letters_of_any_script_are_no_pattern(tmp_path):
    place = Workspace(tmp_path / 'it\'s a "día" {1} №')
    place.require_writable()
    assert place.store.is_dir()
