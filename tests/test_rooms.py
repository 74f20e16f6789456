"""The rooms of the house: who may import whom, and that nobody else bears their names."""

import ast
import importlib
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SHARED = {
    "stages.tables",
    "stages.errors",
    "stages.content_ids",
    "stages.configuration",
    "stages.chat_template",
    "stages.model_loading",
    "stages.part_files",
    "stages.reading_sql",
}
MAY_IMPORT = {
    "stages": {"stages"},
    "validators": {"validators", *SHARED},
    "trainer": {"trainer", *SHARED},
    "lineage": {"lineage", *SHARED},
    "flows": {"flows", "stages", "validators", "trainer", "lineage"},
}
"""The "may import" column of the design; flows are imported by nobody else."""

HEAVY = ["torch", "polars", "prefect", "great_expectations", "transformers", "pydantic"]


def modules(room):
    return sorted((ROOT / room).rglob("*.py"))


def imported(source):
    """Return the modules that ``source`` imports, also within functions and TYPE_CHECKING.

    `from stages import tables` counts as `stages.tables`: each name may be a module. A relative
    import can't leave its room.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= names if node.module in MAY_IMPORT else {node.module}
    return found


def forbidden(room, source):
    """Return the imports of our own that ``room`` may not make."""
    allowed = MAY_IMPORT[room]
    ours = {name for name in imported(source) if name.split(".")[0] in MAY_IMPORT}
    return {
        name for name in ours if not any(name == a or name.startswith(a + ".") for a in allowed)
    }


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_imports_only_what_it_may(room):
    assert modules(room)
    wrong = {
        str(path.relative_to(ROOT)): names
        for path in modules(room)
        if (names := forbidden(room, path.read_text(encoding="utf-8")))
    }
    assert not wrong


@pytest.mark.parametrize(
    ("room", "source", "found"),
    [
        ("stages", "import flows.cli", {"flows.cli"}),
        ("stages", "from lineage import workspace as w", {"lineage.workspace"}),
        ("trainer", "from stages import tables, pairing", {"stages.pairing"}),
        ("trainer", "from stages.pairing import pair", {"stages.pairing"}),
        ("trainer", "import stages", {"stages"}),
        ("lineage", "def f():\n    from trainer.dpo import train", {"trainer.dpo"}),
        ("lineage", "if TYPE_CHECKING:\n    import validators.suites", {"validators.suites"}),
        ("validators", "from . import suites", set()),
        ("validators", "def f():\n    import flows", {"flows"}),
        ("validators", "from stages.tables import PAIRS\nimport stages_of_grief", set()),
        ("flows", "import trainer.dpo, stages.pairing", set()),
    ],
)
def test_the_rule_sees_every_way_to_import(room, source, found):
    assert forbidden(room, source) == found


def test_no_file_in_flows_bears_a_rooms_name():
    rooms = {*MAY_IMPORT, "data", "tests", "benchmarks", "docs", "configs"}
    assert not rooms & {path.stem for path in (ROOT / "flows").iterdir()}


def test_no_installed_distribution_ships_one_of_our_packages():
    owners = importlib.metadata.packages_distributions()
    others = {room: set(owners.get(room, ())) - {"prefmill"} for room in MAY_IMPORT}
    assert not {room: names for room, names in others.items() if names}


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_a_room_is_imported_from_this_checkout(room):
    found = importlib.import_module(room).__file__
    assert Path(found) == ROOT / room / "__init__.py"


def test_data_holds_no_code():
    assert not list((ROOT / "data").rglob("*.py"))


@pytest.mark.parametrize("room", MAY_IMPORT)
def test_every_module_says_what_it_is(room):
    silent = [p for p in modules(room) if not ast.get_docstring(ast.parse(p.read_text("utf-8")))]
    assert not silent


def test_the_command_starts_without_anything_heavy():
    code = "import json, sys, flows.cli; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True
    )
    loaded = set(json.loads(done.stdout))
    assert "flows.cli" in loaded
    assert not loaded & set(HEAVY)


def test_what_a_command_looks_at_first_leaves_prefect_alone():
    # Prefect reads its settings when it is imported: `prepare` makes them after these.
    code = "import sys, flows.prompt_choice, flows.series, flows.service, flows.models; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('prefect' in sys.modules)"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    )
    assert done.stdout.strip() == "False"
