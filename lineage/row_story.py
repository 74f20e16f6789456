"""The tree of a pair, candidate or prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lineage.story import add_round, known, line, number, shortened

if TYPE_CHECKING:
    from rich.tree import Tree

ROLE_STYLES = {"chosen": "green", "rejected": "red"}

NOISE = (
    "probability_wrong",
    "margin_standard_error",
    "order_disagreement",
    "scorers_for",
    "scorers_against",
    "people_vote",
)

REMOVED = ("its text was removed from this workspace", "yellow")


@dataclass(frozen=True)
class RowStory:
    """Adds one row's story to a tree: the id that was asked for, and whether texts are whole."""

    asked: str
    full: bool

    def add(self, tree: Tree, facts: dict[str, Any]) -> None:
        """Add the prompt, then its candidates and what every run made of them."""
        prompt = facts["prompt"]
        branch = tree.add(line(("prompt ", "bold"), (prompt["prompt_id"], "cyan")))
        for message in prompt["messages"]:
            branch.add(line((f"{message['role']}: ", "dim"), (self._text(message["content"]), "")))
        if prompt["removed"]:
            branch.add(line(REMOVED))
        for account in facts["accounts"]:
            self._add_account(tree, account)
        if not facts["accounts"]:
            tree.add(line(("no run that is on record uses it", "yellow")))

    def _text(self, text: str) -> str:
        return text if self.full else shortened(text)

    def _add_account(self, tree: Tree, account: dict[str, Any]) -> None:
        prompt = account["prompt"]
        placing = known(**{name: prompt[name] for name in ("source", "stratum", "split")})
        truth = prompt["ground_truth"]
        check = known(verifier=prompt["verifier"], truth=truth and self._text(truth))
        branch = tree.add(line(("candidates ", "bold"), (placing, ""), (f"  {check}", "dim")))
        roles = _roles(account["uses"])
        for candidate in account["candidates"]:
            self._add_candidate(branch, candidate, roles.get(candidate["candidate_id"], ""))
        for use in account["uses"]:
            _add_use(branch, use)

    def _add_candidate(self, branch: Tree, row: dict[str, Any], role: str) -> None:
        style = ROLE_STYLES.get(role, "")
        own = "bold cyan" if row["candidate_id"] == self.asked else "cyan"
        heading = line(("candidate ", "bold"), (row["candidate_id"], own), (f"  {role}", style))
        node = branch.add(heading)
        if row["removed"]:
            node.add(line(REMOVED))
        elif row["completion"] is None:
            node.add(line(("no completion: ", "bold red"), (self._text(str(row["error"])), "red")))
        else:
            node.add(line((self._text(row["completion"]), style)))
        if edit := row["edit"]:
            self._add_edit(node, edit)
        names = ("generator", "model", "system_prompt", "temperature", "seed", "logprob_sum")
        settings = known(
            sample=row["sample_index"],
            **{name: row[name] for name in names},
            finish=row["finish_reason"],
            tokens=row["completion_tokens"],
        )
        node.add(line((settings if self.full else shortened(settings), "dim")))
        for score in row["scores"]:
            value = "no parsed verdict" if score["score"] is None else number(score["score"])
            rest = known(spread=score["spread"], judgments=score["judgments"])
            by = (f"score by {score['scorer']}: ", "")
            node.add(line(by, (value, "bold"), (f"  ({rest})", "dim")))
        for verdict in row["judgments"]:
            self._add_verdict(node, verdict)

    def _add_edit(self, node: Tree, edit: dict[str, Any]) -> None:
        told = known(instruction=edit["instruction_hash"])
        node.add(
            line(("an edit of ", ""), (edit["edited_candidate_id"], "cyan"), (f"  {told}", "dim"))
        )
        if edit["unusable_text"]:
            node.add(line(("what came: ", "yellow"), (self._text(edit["unusable_text"]), "dim")))

    def _add_verdict(self, node: Tree, verdict: dict[str, Any]) -> None:
        missing = f"missing: {self._text(verdict['error'] or 'not parsed')}"
        score = missing if verdict["score"] is None else number(verdict["score"])
        model = f"({verdict['scorer_model']}) " if verdict["scorer_model"] else ""
        said_by = f"verdict of {verdict['scorer']} {model}"
        pieces: list[tuple[object, str]] = [(said_by, "dim"), (score, "")]
        if verdict["other_candidate_id"]:
            against = f"  {verdict['candidate_id']} (shown {verdict['order']}) against "
            pieces.append((against + verdict["other_candidate_id"], "dim"))
        if verdict["flag"]:
            pieces.append((f"  {verdict['flag']}", "yellow"))
        node.add(line(*pieces, ("  ", ""), (self._text(verdict["raw"]), "italic")))


def _roles(uses: list[dict[str, Any]]) -> dict[str, str]:
    """Return what each candidate became in any of the runs."""
    roles: dict[str, set[str]] = {}
    for use in uses:
        for pair in use["pairs"]:
            for role in ROLE_STYLES:
                roles.setdefault(pair[f"{role}_candidate_id"], set()).add(role)
    return {candidate: " and ".join(sorted(names)) for candidate, names in roles.items()}


def _add_use(branch: Tree, use: dict[str, Any]) -> None:
    pieces: list[tuple[object, str]] = []
    for run in use["runs"]:
        name = ("\nrun " if pieces else "run ", "bold")
        pieces += [name, (run["run_id"], "green"), (_run_note(run), "dim")]
    node = branch.add(line(*pieces))
    for pair in use["pairs"]:
        _add_pair(node, pair)
    if not use["pairs"] and use["runs"][0]["stage"] == "generate":
        node.add(line(("no pair was made of it", "yellow")))
    if use["choices"]:
        _add_choices(node.add(line(("why these", "bold"))), use["choices"])


def _run_note(run: dict[str, Any]) -> str:
    return f"  {run['name'] or ''} ({run['flow'] or 'no record of the run'}, stage {run['stage']})"


def _add_choices(node: Tree, choices: list[dict[str, Any]]) -> None:
    order = {"chosen": 0, "both": 1, "rejected": 2}
    for row in sorted(choices, key=lambda row: order.get(row["role"], len(order))):
        role = row["role"] or "not in a pair"
        score = "" if row["score"] is None else f"{number(row['score'])}, "
        style = ROLE_STYLES.get(role, "")
        node.add(
            line(
                (f"{role} ", style),
                (row["candidate_id"], "cyan"),
                (f": {score}{row['reason']}", ""),
            )
        )


def _add_pair(branch: Tree, row: dict[str, Any]) -> None:
    fate = {
        True: ("kept", "bold green"),
        False: ("dropped", "bold red"),
        None: ("not filtered yet", "yellow"),
    }[row["kept"]]
    node = branch.add(line(("pair ", "bold"), (row["pair_id"], "cyan"), ("  ", ""), fate))
    node.add(
        line(
            (f"{row['strategy']} on {row['scorer']}: chose ", ""),
            (row["chosen_candidate_id"], "green"),
            (" over ", ""),
            (row["rejected_candidate_id"], "red"),
        )
    )
    facts = known(
        scores=f"{number(row['chosen_score'])} against {number(row['rejected_score'])}",
        margin=row["margin"],
        tokens=f"{row['chosen_tokens']} against {row['rejected_tokens']}",
    )
    node.add(line((facts, "")))
    if noise := row["label_noise"]:
        facts = known(**{name: noise[name] for name in NOISE})
        node.add(line((f"label noise: {facts}", "")))
    for decision in row["decisions"]:
        _add_decision(node, decision)
    for export in row["exports"]:
        place = f"{export['path']}:{export['line']}"
        node.add(line(("exported to ", ""), (place, "bold"), (f"  {export['export_id']}", "dim")))
    for training in row["rounds"]:
        add_round(node, training)


def _add_decision(node: Tree, decision: dict[str, Any]) -> None:
    ruling = ("keeps", "green") if decision["kept"] else ("drops", "red")
    measured = known(value=decision["value"], limit=decision["limit"])
    reason = (f"  {decision['reason'] or ''}  ", "bold")
    node.add(line((f"filter {decision['filter']} ", ""), ruling, reason, (measured, "dim")))
