"""What a command says at the end: verdict, funnel, two pairs with reasons, where things are."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.report_data import examples
from flows.report_facts import headline_metric
from flows.run_outputs import read_output
from flows.spending import BudgetConfig, budget_of
from flows.stage_runner import RunContext
from lineage.query import query
from lineage.records import require_run
from lineage.story import visible

if TYPE_CHECKING:
    from collections.abc import Iterator

    import polars as pl
    from rich.console import Group
    from rich.table import Table

    from lineage.workspace import Workspace

MAX_TEXT = 160


def summarise(workspace: Workspace, run_ids: list[str]) -> dict[str, Any]:
    """Return what the runs made, ready for JSON."""
    return {
        "workspace": str(workspace.root),
        "lineage": str(workspace.lineage_database),
        "runs": [_run_summary(workspace, run_id) for run_id in run_ids],
    }


def _run_summary(workspace: Workspace, run_id: str) -> dict[str, Any]:
    """Return one run's verdict, evaluations, funnel, examples and files."""
    rounds = read_output(workspace, run_id, "gate", "rounds").to_dicts()
    pairs = query(workspace, "FROM pair_quality WHERE run_id = ? AND split = 'train'", [run_id])
    funnel = query(workspace, "FROM funnel WHERE run_id = ? ORDER BY position, split", [run_id])
    shown = examples(workspace, run_id, pairs)
    exports = read_output(workspace, run_id, "export", "exports", ["path", "rows"])
    record = require_run(workspace, run_id)
    limits = BudgetConfig.model_validate(record.config.get("budget", {}))
    budget = budget_of(RunContext(workspace, run_id), limits)
    return {
        "run_id": run_id,
        "status": record.status,
        "round": rounds[0] if rounds else None,
        "evaluations": read_output(workspace, run_id, "gate", "evaluations").to_dicts(),
        "gates": read_output(workspace, run_id, "gate", "gates").to_dicts(),
        "funnel": funnel.drop("run_id").to_dicts(),
        "label_noise": query(
            workspace, "SELECT * EXCLUDE run_id FROM run_noise WHERE run_id = ?", [run_id]
        ).to_dicts(),
        "length_bias": query(
            workspace, "SELECT * EXCLUDE run_id FROM length_bias WHERE run_id = ?", [run_id]
        ).to_dicts(),
        "kept_example": _example(workspace, run_id, shown, "best kept"),
        "dropped_example": _example(workspace, run_id, shown, "dropped"),
        "spent": {"tokens": budget.tokens, "cost": budget.cost, **limits.model_dump()},
        "exports": [str(workspace.root / path) for path in exports["path"]],
        "report": str(workspace.runs / run_id / "report.html"),
    }


def _example(
    workspace: Workspace, run_id: str, shown: pl.DataFrame, kind: str
) -> dict[str, Any] | None:
    """Return the first pair whose kind begins so, with every filter's decision on it."""
    for pair in shown.filter(shown["kind"].str.starts_with(kind)).head(1).to_dicts():
        decisions = read_output(workspace, run_id, "filter", "decisions")
        rulings = decisions.filter(pair_id=pair["pair_id"]).sort("position").to_dicts()
        return {**pair, "decisions": rulings}
    return None


def describe(summary: dict[str, Any]) -> Group:
    """Return the summary for a terminal. Texts of data are shown literally."""
    from rich.console import Group
    from rich.text import Text

    *earlier, last = summary["runs"]
    parts: list[Any] = [_rounds([*earlier, last])] if earlier else []
    parts += [Text(f"\n{last['run_id']}", style="bold"), *_verdict(last), _funnel(last)]
    parts += [Text(line) for line in (*_noise(last), *_lengths(last), *_spending(last))]
    parts += [*_examples(last), *_places(summary, last)]
    return Group(*parts)


def _rounds(runs: list[dict[str, Any]]) -> Table:
    """Return the course of a series: success over all strata, round by round."""
    from rich.table import Table

    table = Table(title="Rounds: held-out success, before and after", title_justify="left")
    for name in ("run", "pairs", "sampled", "greedy", "gate"):
        table.add_column(name)
    for run in runs:
        course = {
            row["decoding"]: f"{row['before']:.3f} -> {row['after']:.3f} ({row['difference']:+.3f})"
            for row in run["evaluations"]
            if row["metric"] == "success" and row["stratum"] == "all"
        }
        word = "promoted" if run["round"]["promoted"] else "held"
        pairs = f"{run['round']['pairs']:,}"
        table.add_row(
            run["run_id"], pairs, course.get("sampled", ""), course.get("greedy", ""), word
        )
    return table


def _verdict(run: dict[str, Any]) -> list[Any]:
    """Return the gate's verdict and the table of evaluations per stratum."""
    from rich.text import Text

    if run["round"] is None:
        return []
    word = "promoted" if run["round"]["promoted"] else "held"
    if run["round"]["promoted"] and not all(gate["passed"] for gate in run["gates"]):
        word = "promoted by force"
    criteria = [
        f"  {'passed' if gate['passed'] else 'failed'}  {visible(gate['criterion'])} "
        f"{gate['value']:.3f} (limit {gate['limit']:g})"
        for gate in run["gates"]
    ]
    lines = [f"Gate: {word}", *criteria]
    return [Text("\n".join(lines)), _evaluations(run["evaluations"])]


def _evaluations(rows: list[dict[str, Any]]) -> Table:
    """Return success, else the score or win rate, before and after, per stratum and decoding."""
    from rich.table import Table
    from rich.text import Text

    metric = headline_metric({row["metric"] for row in rows}) or "score"
    shown = metric.replace("_", " ")
    table = Table(
        title=f"Held-out {shown}, before and after (paired 95 % bootstrap interval)",
        title_justify="left",
    )
    for name in ("stratum", "decoding", "prompts", "before", "after", "difference", "interval"):
        table.add_column(name, justify="left" if name in ("stratum", "decoding") else "right")
    chosen = [row for row in rows if row["metric"] == metric]
    ordered = sorted(
        chosen, key=lambda r: (r["decoding"] != "sampled", r["stratum"] != "all", r["stratum"])
    )
    for row in ordered:
        table.add_row(
            visible(row["stratum"]),
            row["decoding"],
            str(row["prompts"]),
            f"{row['before']:.3f}",
            f"{row['after']:.3f}",
            f"{row['difference']:+.3f}",
            Text(f"[{row['low']:+.3f}, {row['high']:+.3f}]", no_wrap=True),
            style="bold" if row["stratum"] == "all" else None,
        )
    return table


def _funnel(run: dict[str, Any]) -> Table:
    """Return the funnel, train and held-out side by side."""
    from rich.table import Table

    table = Table(title="Funnel", title_justify="left")
    for name in ("step", "train", "heldout"):
        table.add_column(name, justify="left" if name == "step" else "right")
    steps: dict[str, dict[str, int]] = {}
    for row in run["funnel"]:
        steps.setdefault(row["step"], {})[row["split"]] = row["rows"]
    for step, counts in steps.items():
        table.add_row(visible(step), *[f"{counts.get(s, 0):,}" for s in ("train", "heldout")])
    return table


def _noise(run: dict[str, Any]) -> Iterator[str]:
    """Yield how many labels are wrong, or why nobody knows, where it was asked about."""
    for row in run["label_noise"]:
        if row["rate"] is None:
            yield f"Labels: {row['note']}"
            continue
        kept = "" if row["rate_kept"] is None else f"; of the kept {row['rate_kept']:.1%}"
        yield (
            f"Labels: {row['rate']:.1%} wrong [{row['low']:.1%}, {row['high']:.1%}], "
            f"{row['method']}{kept}"
        )


def _lengths(run: dict[str, Any]) -> Iterator[str]:
    """Yield how often the longer answer is the chosen, of the proposed and of the kept pairs."""
    told = [row for row in run["length_bias"] if row["longer_wins"] is not None]
    if told:
        named = {"weighted": "kept by weight"}
        each = [
            f"{row['longer_wins']:.1%} of the {named.get(row['pairs_of'], row['pairs_of'])} "
            f"(bias {row['bias']:.2f})"
            for row in told
        ]
        yield f"Lengths: the longer answer is chosen in {', '.join(each)}"


def _spending(run: dict[str, Any]) -> Iterator[str]:
    """Yield what endpoints were asked for over all starts of the run, beside the limits."""
    spent = run["spent"]
    if not spent["tokens"]:
        return
    of_tokens = "" if spent["max_tokens"] is None else f" (limit {spent['max_tokens']:,})"
    told = f"Endpoints: {spent['tokens']:,} tokens{of_tokens}"
    if spent["cost"]:
        of_cost = "" if spent["max_cost"] is None else f" (limit {spent['max_cost']:.2f})"
        told += f", cost {spent['cost']:.2f}{of_cost}"
    yield told


def _examples(run: dict[str, Any]) -> list[Any]:
    """Return one kept and one dropped pair with the reason in full."""
    from rich.text import Text

    lines: list[Any] = []
    for title, pair in (("Kept", run["kept_example"]), ("Dropped", run["dropped_example"])):
        if pair is None:
            lines.append(Text(f"\n{title}: no pair"))
            continue
        reason = pair["kind"].partition(": ")[2] or "by every filter"
        lines.append(Text(f"\n{title}: {pair['pair_id']} ({reason})", style="bold"))
        lines.append(Text(f"  prompt    {_short(pair['prompt'])}"))
        lines.append(Text(f"  chosen    {pair['chosen_score']:.2f}  {_short(pair['chosen'])}"))
        lines.append(Text(f"  rejected  {pair['rejected_score']:.2f}  {_short(pair['rejected'])}"))
        lines.append(Text(f"  filters   {'; '.join(map(_ruling, pair['decisions']))}"))
    return lines


def _ruling(row: dict[str, Any]) -> str:
    """Return one decision in words: `margin 0.1 (limit 0.15): margin_below_minimum`."""
    value = "not measured" if row["value"] is None else f"{row['value']:.3g}"
    measured = "" if row["limit"] is None else f" {value} (limit {row['limit']:g})"
    return f"{row['filter']}{measured}: {row['reason'] or 'kept'}"


def _short(text: str) -> str:
    line = visible(text)
    return line if len(line) <= MAX_TEXT else f"{line[:MAX_TEXT]} ... ({len(text)} characters)"


def _places(summary: dict[str, Any], run: dict[str, Any]) -> list[Any]:
    """Return where everything is and what to try next."""
    from rich.text import Text

    places = [("report", run["report"]), *[("export", path) for path in run["exports"]]]
    if run["round"] is not None:
        places.append(("model", f"{summary['workspace']}/{run['round']['result_path']}"))
    places.append(("lineage", summary["lineage"]))
    where = "" if summary["workspace"] == "prefmill-workspace" else f" -w {quoted(summary)}"
    name = program()
    commands = [f'{name} sql{where} "FROM drops"']
    pair = run["dropped_example"] or run["kept_example"]
    if pair is not None:
        commands.append(f"{name} why{where} {pair['pair_id']}")
    if run["round"] is None:
        commands.append(f"{name} train{where} --run {run['run_id']}")
    elif run["run_id"].startswith("demo-"):
        commands.append(f"{name} demo{where} --rounds 3")
    else:
        commands.append(f"{name} diff{where}")
    lines = ["", *[f"{label:<8} {path}" for label, path in places], "", "Try next:"]
    lines += [f"  {command}" for command in commands]
    return [Text(line, no_wrap=True, overflow="ignore") for line in lines]


def program() -> str:
    """Return how to call this command from here: by its name if that is on the PATH."""
    called = Path(sys.argv[0])
    if called.name != "prefmill" or shutil.which("prefmill"):
        return "prefmill"
    return shlex.quote(os.path.relpath(called))


def quoted(summary: dict[str, Any]) -> str:
    """Return the workspace as a shell word."""
    return shlex.quote(summary["workspace"])
