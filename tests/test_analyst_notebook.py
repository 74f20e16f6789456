"""The analysts' notebook opens on any workspace."""

import importlib.util
from pathlib import Path

import pytest

from lineage.database import publish
from lineage.workspace import Workspace
from tests.lineage.small_workspace import write_small_workspace

NOTEBOOK = Path(__file__).parents[1] / "docs" / "analyst_notebook.py"


@pytest.fixture
def run_notebook(tmp_path, monkeypatch):
    workspace = Workspace(tmp_path / "it's a <b>workspace</b>")
    monkeypatch.setenv("PREFMILL_WORKSPACE", str(workspace.root))
    spec = importlib.util.spec_from_file_location("analyst_notebook", NOTEBOOK)

    def run():
        notebook = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(notebook)
        outputs, values = notebook.app.run()
        return "\n".join(o.text for o in outputs if hasattr(o, "text")), values

    return workspace, run


def test_every_question_is_answered(run_notebook):
    workspace, run = run_notebook
    write_small_workspace(workspace)
    publish(workspace)
    page, values = run()
    assert values["chosen"].value == "dpo_round_b2"
    frames = ("funnel", "filters", "margins", "quality", "sources", "bias", "cost", "curves")
    for name in (*frames, "rounds", "edges"):
        assert not values[name].is_empty(), name
    assert values["margins"]["pairs"].sum() == 3
    assert "What did it take?" in page
    assert "<b>workspace" not in page


@pytest.mark.parametrize("published", [False, True], ids=["no workspace", "no run"])
def test_an_empty_workspace_gets_a_note(run_notebook, published):
    workspace, run = run_notebook
    if published:
        workspace.require_writable()
        publish(workspace)
    page, values = run()
    assert "Nothing to show yet" in page
    assert "chosen" not in values
