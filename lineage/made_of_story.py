"""The tree of an export, run, round or model."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from lineage.story import add_round, add_training, known, line, number

if TYPE_CHECKING:
    from collections.abc import Callable

    from rich.tree import Tree

Facts = dict[str, Any]


def _add_export(tree: Tree, facts: Facts) -> None:
    _add_known(tree, facts["export"], "format", "split", "path", "rows", "sha256")
    for run in facts["runs"]:
        tree.add(
            line(("run ", "bold"), (run["run_id"], "green"), (f"  {run['name'] or ''}", "dim"))
        )
    branch = tree.add(line(("holds", "bold")))
    for row in facts["composition"]:
        parts = known(**{name: value for name, value in row.items() if name != "pairs"})
        branch.add(line((known(pairs=row["pairs"]), "bold"), (" of ", ""), (parts, "")))
    for training in facts["rounds"]:
        add_round(tree, training)


def _add_run(tree: Tree, facts: Facts) -> None:
    run = facts["run"]
    _add_known(tree, run, "flow", "name", "status", "started_at", "ended_at", "attempts")
    _add_known(tree, run, "code_version")
    if run["error"]:
        tree.add(line(("error: ", "bold red"), (run["error"], "red")))
    _add_rows(tree, "prompts", facts["prompts"])
    _add_rows(tree, "models that answered", facts["models"])
    stages = tree.add(line(("stages", "bold")))
    for row in facts["stages"]:
        rows = ", ".join(f"{o['rows']} {o['table']}" for o in row["outputs"] or [] if o["rows"])
        by = "" if row["status"] == "made" else f" from {row['made_by']}"
        note = f"  {row['status']}{by}, {number(row['seconds'])} s, key {row['stage_key']}"
        removed = f"  texts removed {row['removed_at']}" if row["removed_at"] else ""
        pieces = ((f"  {rows}", ""), (note, "dim"), (removed, "yellow"))
        stages.add(line((row["stage"], "cyan"), *pieces))
    _add_rows(tree, "pairs", facts["pairs"])
    _add_rows(tree, "exports", facts["exports"])
    for training in facts["rounds"]:
        add_round(tree, training)
    for training in facts["trainings"]:
        add_training(tree, training)
    config = tree.add(line(("configuration", "bold")))
    for section, value in facts["config"].items():
        config.add(line((f"{section}: ", ""), (json.dumps(value, ensure_ascii=False), "dim")))


def _add_round(tree: Tree, facts: Facts) -> None:
    for row in facts["rounds"]:
        add_round(tree, row)
        _add_known(tree, row, "pairs", "steps", "base_weights_hash", "reference_weights_hash")
        _add_known(tree, row, "result_weights_hash", "result_path")
    _add_rows(tree, "trained on", facts["exports"])
    _add_rows(tree, "gate", facts["gates"])
    _add_rows(tree, "held-out prompts, before and after", facts["evaluations"])
    _add_rows(tree, "metrics at their last step", facts["metrics"])
    _add_next(tree, facts)


def _add_training(tree: Tree, facts: Facts) -> None:
    for row in facts["trainings"]:
        add_training(tree, row)
        _add_known(tree, row, "rows", "heldout_rows", "steps")
        _add_known(tree, row, "data_path", "data_sha256", "export_id")
        _add_known(tree, row, "base_weights_hash", "reference_weights_hash")
        _add_known(tree, row, "result_weights_hash", "result_path")
    _add_rows(tree, "metrics at their last step", facts["metrics"])
    _add_next(tree, facts)


def _add_model(tree: Tree, facts: Facts) -> None:
    for row in facts["made_by"]:
        add_round(tree, row)
        _add_known(tree, row, "base_weights_hash", "result_path")
    for row in facts["trainings"]:
        add_training(tree, row)
        _add_known(tree, row, "data_path", "base_weights_hash", "result_path")
    if not facts["made_by"] and not facts["trainings"]:
        tree.add(line(("nothing on record made it: it came from outside", "yellow")))
    _add_rows(tree, "answers that it gave", facts["answers"])
    _add_next(tree, facts)


def _add_next(tree: Tree, facts: Facts) -> None:
    if facts["next_rounds"] or facts["next_trainings"]:
        branch = tree.add(line(("trained on from here", "bold")))
        for row in facts["next_rounds"]:
            add_round(branch, row)
        for row in facts["next_trainings"]:
            add_training(branch, row)


def _add_known(tree: Tree, row: Facts, *names: str) -> None:
    tree.add(line((known(**{name: row[name] for name in names}), "")))


def _add_rows(tree: Tree, title: str, rows: list[Facts]) -> None:
    if rows:
        branch = tree.add(line((title, "bold")))
        for row in rows:
            branch.add(line((known(**row), "")))


ADD: dict[str, Callable[[Tree, Facts], None]] = {
    "export": _add_export,
    "run": _add_run,
    "round": _add_round,
    "training": _add_training,
    "model": _add_model,
}
"""By kind: what adds its facts to the tree."""
