"""What a capability card asks policies: the bundled checks' prompts, and those of your files."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import polars as pl
import pydantic

from stages import scoring
from stages.errors import ConfigError, DataError
from stages.judges import JudgeScorer
from stages.prompt_records import PromptRecord, conversation_json, conversation_of, prompt_frame
from stages.prompt_sources import BundledSource, FileSource, read_source
from stages.row_files import read_rows, require_file
from stages.text_classifier import TextClassifierScorer
from trainer.capabilities import INSTRUCTIONS, TASKS

if TYPE_CHECKING:
    from flows.configuration import PipelineConfig
    from stages.row_files import Row
    from stages.scoring import Scorer
    from trainer.capabilities import CardConfig, JudgedPromptsConfig

BUNDLED_INSTRUCTIONS = Path(__file__).parent.parent / "data" / "instructions.jsonl"

MOST_TURNS = 2

RATERS = JudgeScorer | scoring.RewardModelScorer | TextClassifierScorer
"""Scorers that need nothing but a conversation."""

_TURNS = pydantic.TypeAdapter(list[str])
_REFERENCES = pydantic.TypeAdapter(list[str | None])


class SecondTurn(NamedTuple):
    """What is said after a policy's answer."""

    said: str
    reference: str | None = None
    """What a judge of the answer to it is shown."""


class Asked(NamedTuple):
    """The prompts of one capability, and who says how good an answer is."""

    capability: str
    prompts: pl.DataFrame
    """Rows of `prompts`."""
    second_turns: dict[str, SecondTurn]
    """By prompt id: what is said after the answer to it."""
    scorer: Scorer | None = None
    """None: rules."""


def asked_of(config: PipelineConfig, card: CardConfig) -> list[Asked]:
    """Return the prompts of every capability that answers show.

    Raises:
        MissingFileError: a file is not there.
        DataError: a row cannot be used, or a ground truth cannot be read.
        ConfigError: a scorer is unknown or can't rate a policy's only answer.
    """
    asked = [Asked(INSTRUCTIONS, _instructions(card.instructions or BUNDLED_INSTRUCTIONS), {})]
    if card.tasks_per_family:
        source = BundledSource(name=TASKS, train=0)
        heldout = card.tasks_per_family * len(source.families)
        drawn, _ = read_source(source.model_copy(update={"heldout": heldout}), config.seed)
        asked.append(Asked(TASKS, drawn, {}))
    for one in asked:
        scoring.read_checks(one.prompts, scoring.RulesScorer())
    return asked + [_judged(judged, config) for judged in card.judged]


def _instructions(path: Path) -> pl.DataFrame:
    source = FileSource(
        name=INSTRUCTIONS, path=path, verifier_column="verifier", ground_truth_column="truth"
    )
    prompts, _ = read_source(source, 0)
    others = prompts.filter(pl.col("verifier").ne_missing(pl.lit("instructions")))
    if prompts.is_empty() or others.height:
        raise DataError(
            f"{others.height} of {prompts.height} prompts have another verifier than instructions",
            expected="rows with `prompt`, `verifier: instructions` and `truth`",
            where=str(path),
            remedy="write the rows as data/instructions.jsonl does; docs/verifiers.md lists the "
            "kinds of instructions",
        )
    return prompts.with_columns(split=pl.lit("heldout")).unique("prompt_id", maintain_order=True)


def _judged(judged: JudgedPromptsConfig, config: PipelineConfig) -> Asked:
    known = {scorer.name: scorer for scorer in config.scoring.scorers}
    where = f"evaluation.card.judged, {judged.name!r}"
    scorer = known.get(judged.scorer)
    if not isinstance(scorer, RATERS):
        raise ConfigError(
            f"scorer {judged.scorer!r} cannot rate answers to prompts without a ground truth",
            expected=f"a judge or a reward model of `scoring.scorers` ({', '.join(known)})",
            where=where,
        )
    path = require_file(judged.path, "prompts", f"correct `path` of {where}")
    found: dict[str, tuple[PromptRecord, SecondTurn | None]] = {}
    for row in read_rows(path):
        first, *second = _turns(row, path)
        category = row.values.get("category")
        stratum = category if isinstance(category, str) and category != "all" else "other"
        reference, *of_both = _references(row, path, 1 + len(second))
        record = PromptRecord(first, judged.name, stratum, "heldout", reference=reference)
        found[first] = record, SecondTurn(second[0], of_both[0]) if second else None
    if not found:
        raise DataError("no prompts", expected="a row or more", where=str(path))
    prompts = prompt_frame(record for record, _ in found.values())
    later = zip(prompts["prompt_id"], (second for _, second in found.values()), strict=True)
    return Asked(judged.name, prompts, {i: turn for i, turn in later if turn is not None}, scorer)


def _turns(row: Row, path: Path) -> tuple[str, ...]:
    """Return a row's conversation as canonical JSON, and what is said after its answer, if any."""
    if "turns" in row.values:
        try:
            turns = _TURNS.validate_python(row.values["turns"])
        except pydantic.ValidationError:
            turns = []
        first = conversation_of(turns[0], None) if 0 < len(turns) <= MOST_TURNS else None
        if first and all(turn.strip() for turn in turns):
            return (first, *turns[1:])
    else:
        first = conversation_of(row.values.get("prompt", row.values.get("messages")), None)
        if first:
            return (first,)
    raise DataError(
        "a row that asks nothing",
        expected="`prompt` (text), `messages` that end with the user's turn, or one or two `turns`",
        where=f"{path}, row {row.number}",
    )


def _references(row: Row, path: Path, turns: int) -> list[str | None]:
    """Return what a judge of each of a row's ``turns`` is shown: known good answers up to there."""
    value = row.values.get("reference")
    known: list[str | None] | None = None
    with contextlib.suppress(pydantic.ValidationError):
        known = _REFERENCES.validate_python([value] if isinstance(value, str) else value or [])
    if known is None or len(known) > turns:
        raise DataError(
            "a row whose `reference` is no answer to each of its turns",
            expected=f"a text, or a list of at most {turns}: one for each turn",
            where=f"{path}, row {row.number}",
        )
    first, second = (text if text and text.strip() else None for text in (*known, None, None)[:2])
    named = (("To the first user turn", first), ("To the last user turn", second))
    both = "\n\n".join(f"{name}:\n{text}" for name, text in named if text)
    return [first, both or None][:turns]


def after_answers(asked: Asked, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return the prompts of the second turns: first turn, the policy's answer, what follows.

    A prompt that has no answer has no second turn.
    """
    records = []
    facts = asked.prompts.select("prompt_id", "messages", "stratum").join(
        candidates.select("prompt_id", "completion").drop_nulls(), on="prompt_id"
    )
    for prompt_id, messages, stratum, answer in facts.sort("prompt_id").iter_rows():
        if (turn := asked.second_turns.get(prompt_id)) is not None:
            said = {"role": "user", "content": turn.said}
            conversation = conversation_json(
                [*messages, {"role": "assistant", "content": answer}, said]
            )
            place = (asked.capability, stratum, "heldout")
            records.append(PromptRecord(conversation, *place, reference=turn.reference))
    return prompt_frame(records)
