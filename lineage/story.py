"""The story of one row, as JSON and as a tree that shows every character literally."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

INVISIBLE = {
    code: f"[U+{code:04X}]"
    for code in (
        *(code for code in range(0x20) if chr(code) not in "\t\n"),
        *range(0x7F, 0xA0), 0x61C, 0x200B, 0x200E, 0x200F, *range(0x2028, 0x202F),
        *range(0x2060, 0x206A), 0xFEFF, 0xFFFE, 0xFFFF,
    )
}  # fmt: skip
"""Control, direction and zero-width characters, and what a reader sees in their place."""


@dataclass(frozen=True)
class Story:
    """What led to one row. ``kind`` is pair, candidate, prompt or export."""

    kind: str
    id: str
    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """The story as values that ``json.dumps`` takes."""
        return {"kind": self.kind, "id": self.id, **self.facts}


def visible(text: str) -> str:
    """Return ``text`` with control and direction characters shown instead of obeyed."""
    return text.translate(INVISIBLE)


def render(story: Story) -> Tree:
    """Return the story as a tree for a terminal. Nothing in it is read as rich's markup."""
    from rich.tree import Tree

    tree = Tree(_line((f"{story.kind} ", "bold"), (story.id, "bold cyan")))
    if story.kind == "export":
        _add_export(tree, story.facts)
        return tree
    prompt = story.facts["prompt"]
    branch = tree.add(_line(("prompt ", "bold"), (prompt["prompt_id"], "cyan")))
    for message in prompt["messages"]:
        branch.add(_line((f"{message['role']}: ", "dim"), (message["content"], "")))
    for account in story.facts["accounts"]:
        _add_account(tree, account, story.id)
    if not story.facts["accounts"]:
        tree.add(_line(("no run that is on record uses it", "yellow")))
    return tree


def _line(*pieces: tuple[object, str]) -> Text:
    from rich.text import Text

    return Text.assemble(*((visible(str(text)), style) for text, style in pieces))


def _facts(**values: object) -> str:
    """``name value`` for each value that is known."""
    return ", ".join(
        f"{name.replace('_', ' ')} {_number(value)}"
        for name, value in values.items()
        if value is not None
    )


def _number(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _add_account(tree: Tree, account: dict[str, Any], asked: str) -> None:
    placing = _facts(**{name: account["prompt"][name] for name in ("source", "stratum", "split")})
    check = _facts(verifier=account["prompt"]["verifier"], truth=account["prompt"]["ground_truth"])
    branch = tree.add(_line(("candidates ", "bold"), (placing, ""), (f"  {check}", "dim")))
    roles = _roles([pair for use in account["uses"] for pair in use["pairs"]])
    for candidate in account["candidates"]:
        _add_candidate(branch, candidate, roles.get(candidate["candidate_id"], ""), asked)
    for use in account["uses"]:
        _add_use(branch, use)


def _add_use(branch: Tree, use: dict[str, Any]) -> None:
    pieces: list[tuple[object, str]] = []
    for run in use["runs"]:
        name = ("\nrun " if pieces else "run ", "bold")
        pieces += [name, (run["run_id"], "green"), (_run_note(run), "dim")]
    node = branch.add(_line(*pieces))
    for pair in use["pairs"]:
        _add_pair(node, pair)
    if not use["pairs"] and use["runs"][0]["stage"] == "generate":
        node.add(_line(("no pair was made of it", "yellow")))


def _run_note(run: dict[str, Any]) -> str:
    return f"  {run['name'] or ''} ({run['flow'] or 'no record of the run'}, stage {run['stage']})"


def _roles(pairs: list[dict[str, Any]]) -> dict[str, str]:
    roles: dict[str, set[str]] = {}
    for pair in pairs:
        for role in ("chosen", "rejected"):
            roles.setdefault(pair[f"{role}_candidate_id"], set()).add(role)
    return {candidate: " and ".join(sorted(names)) for candidate, names in roles.items()}


def _add_candidate(branch: Tree, row: dict[str, Any], role: str, asked: str) -> None:
    style = {"chosen": "green", "rejected": "red"}.get(role, "")
    own = "bold cyan" if row["candidate_id"] == asked else "cyan"
    heading = _line(("candidate ", "bold"), (row["candidate_id"], own), (f"  {role}", style))
    node = branch.add(heading)
    if row["completion"] is None:
        node.add(_line(("no completion: ", "bold red"), (row["error"], "red")))
    else:
        node.add(_line((row["completion"], style)))
    settings = _facts(
        sample=row["sample_index"],
        generator=row["generator"],
        model=row["model"],
        system_prompt=row["system_prompt"],
        temperature=row["temperature"],
        seed=row["seed"],
        finish=row["finish_reason"],
        tokens=row["completion_tokens"],
        logprob_sum=row["logprob_sum"],
    )
    node.add(_line((settings, "dim")))
    for score in row["scores"]:
        value = "no parsed verdict" if score["score"] is None else _number(score["score"])
        node.add(
            _line(
                (f"score by {score['scorer']}: ", ""),
                (value, "bold"),
                (f"  ({_facts(spread=score['spread'], judgments=score['judgments'])})", "dim"),
            )
        )
    for verdict in row["judgments"]:
        _add_verdict(node, verdict)


def _add_verdict(node: Tree, verdict: dict[str, Any]) -> None:
    missing = f"missing: {verdict['error'] or 'not parsed'}"
    score = missing if verdict["score"] is None else _number(verdict["score"])
    model = f"({verdict['scorer_model']}) " if verdict["scorer_model"] else ""
    said_by = f"verdict of {verdict['scorer']} {model}"
    pieces: list[tuple[object, str]] = [(said_by, "dim"), (score, "")]
    if verdict["other_candidate_id"]:
        against = f"  {verdict['candidate_id']} (shown {verdict['order']}) against "
        pieces.append((against + verdict["other_candidate_id"], "dim"))
    if verdict["flag"]:
        pieces.append((f"  {verdict['flag']}", "yellow"))
    node.add(_line(*pieces, ("  ", ""), (verdict["raw"], "italic")))


def _add_pair(branch: Tree, row: dict[str, Any]) -> None:
    fate = {
        True: ("kept", "bold green"),
        False: ("dropped", "bold red"),
        None: ("not filtered yet", "yellow"),
    }[row["kept"]]
    node = branch.add(_line(("pair ", "bold"), (row["pair_id"], "cyan"), ("  ", ""), fate))
    node.add(
        _line(
            (f"{row['strategy']} on {row['scorer']}: chose ", ""),
            (row["chosen_candidate_id"], "green"),
            (" over ", ""),
            (row["rejected_candidate_id"], "red"),
        )
    )
    node.add(
        _line(
            (
                _facts(
                    scores=f"{_number(row['chosen_score'])} against "
                    f"{_number(row['rejected_score'])}",
                    margin=row["margin"],
                    probability_wrong=(row["label_noise"] or {}).get("probability_wrong"),
                    tokens=f"{row['chosen_tokens']} against {row['rejected_tokens']}",
                ),
                "",
            )
        )
    )
    for decision in row["decisions"]:
        ruling = ("keeps", "green") if decision["kept"] else ("drops", "red")
        measured = _facts(value=decision["value"], limit=decision["limit"])
        node.add(
            _line(
                (f"filter {decision['filter']} ", ""),
                ruling,
                (f"  {decision['reason'] or ''}  ", "bold"),
                (measured, "dim"),
            )
        )
    for export in row["exports"]:
        place = f"{export['path']}:{export['line']}"
        node.add(_line(("exported to ", ""), (place, "bold"), (f"  {export['export_id']}", "dim")))
    for training in row["rounds"]:
        _add_round(node, training)


def _add_round(node: Tree, row: dict[str, Any]) -> None:
    verdict = ("promoted", "green") if row["promoted"] else ("not promoted", "yellow")
    gain = _facts(
        sampled_success=row["sampled_difference"], low=row["sampled_low"], high=row["sampled_high"]
    )
    node.add(
        _line(
            (f"trained in round {row['round_index']} ", ""),
            (row["round_id"], "cyan"),
            (f" of run {row['run_id']}: ", ""),
            verdict,
            (f"  {gain}", "dim"),
        )
    )


def _add_export(tree: Tree, facts: dict[str, Any]) -> None:
    export = facts["export"]
    names = ("format", "split", "path", "rows", "sha256")
    tree.add(_line((_facts(**{name: export[name] for name in names}), "")))
    for run in facts["runs"]:
        tree.add(
            _line(("run ", "bold"), (run["run_id"], "green"), (f"  {run['name'] or ''}", "dim"))
        )
    branch = tree.add(_line(("holds", "bold")))
    for row in facts["composition"]:
        branch.add(
            _line(
                (_facts(pairs=row["pairs"]), "bold"),
                (" of ", ""),
                (_facts(**{k: v for k, v in row.items() if k != "pairs"}), ""),
            )
        )
    for training in facts["rounds"]:
        _add_round(tree, training)
