"""How policies did, item by item: from their answers, texts they read, and tasks of lm-eval."""

from __future__ import annotations

import json
import logging
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.capability_texts import read_texts
from flows.vllm_server import make_room
from stages import scoring
from stages.errors import DataError, ModelError
from stages.instruction_checks import Instructions
from stages.instruction_following import followed
from stages.prompt_records import conversation_json
from trainer.capabilities import LM_EVAL, as_items

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from flows.models import Policy
    from trainer.capabilities import LmEvalConfig


def instruction_items(prompts: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return item, metric, value, weight: prompts and single instructions, strictly and loosely.

    An instruction-level value is the share of a prompt's instructions, and weighs their number. An
    answer that is missing follows none.
    """
    rows: list[dict[str, Any]] = []
    answers = prompts.select("prompt_id", "ground_truth").join(
        candidates.select("prompt_id", "completion"), on="prompt_id"
    )
    for prompt_id, truth, answer in answers.sort("prompt_id").iter_rows():
        instructions = Instructions.model_validate(json.loads(truth)).instructions
        for kind, loose in (("strict", False), ("loose", True)):
            met = followed(instructions, answer or "", loose=loose)
            share = sum(met) / len(met)
            rows += [
                {"metric": f"prompt_{kind}", "value": float(all(met)), "weight": 1.0},
                {"metric": f"instruction_{kind}", "value": share, "weight": float(len(met))},
            ]
            rows[-2]["item"] = rows[-1]["item"] = prompt_id
    return pl.DataFrame(rows)


def success_items(prompts: pl.DataFrame, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return item, stratum, metric, value: 1 where a prompt's verifier is met in full, else 0."""
    verdicts = scoring.judge_by_rules(candidates, prompts, scoring.RulesScorer())
    answers = candidates.select("candidate_id", "prompt_id")
    scored = verdicts.select("candidate_id", "score").join(answers, on="candidate_id")
    met = (pl.col("score") >= 1).fill_null(value=False).cast(pl.Float64)
    return scored.join(prompts, on="prompt_id").select(
        "stratum", item="prompt_id", metric=pl.lit("success"), value=met
    )


def rated_items(
    asked: pl.DataFrame, prompts: pl.DataFrame, candidates: pl.DataFrame, judgments: pl.DataFrame
) -> pl.DataFrame:
    """Return item, stratum, metric, value: how the answers to each of ``asked`` were rated.

    ``prompts`` also hold second turns. Where there are some, `score_turn_1` and `score_turn_2` tell
    them apart; `score` is the mean of a prompt's turns, and missing when one has no rating.
    """
    first = dict(
        zip(map(conversation_json, asked["messages"].to_list()), asked["prompt_id"], strict=True)
    )
    known = set(asked["prompt_id"])
    turns = [
        (prompt_id, prompt_id, 1)
        if prompt_id in known
        else (prompt_id, first[conversation_json(messages[:-2])], 2)
        for prompt_id, messages in prompts.select("prompt_id", "messages").iter_rows()
    ]
    rated = (
        judgments.group_by("candidate_id")
        .agg(value=pl.col("score").mean())
        .join(candidates.select("candidate_id", "prompt_id"), on="candidate_id")
        .join(pl.DataFrame(turns, ["prompt_id", "item", "turn"], orient="row"), on="prompt_id")
        .join(asked.select("stratum", item="prompt_id"), on="item")
    )
    by_turn = rated.with_columns(metric=pl.format("score_turn_{}", "turn")).drop_nulls("value")
    whole = rated.group_by("item", "stratum").agg(
        value=pl.when(pl.col("value").is_not_null().all()).then(pl.col("value").mean())
    )
    means = whole.drop_nulls("value").with_columns(metric=pl.lit("score"))
    columns = ["item", "stratum", "metric", "value"]
    both = prompts.height > asked.height
    return pl.concat([means.select(columns), *([by_turn.select(columns)] if both else [])]).sort(
        "metric", "item"
    )


def text_items(path: Path, policy: Policy) -> pl.DataFrame:
    """Return item, metric, value: the loss per token of each text's last turn, in nats.

    A text that is too long for the model is left out.

    Raises:
        DataError: the file is broken, or no text fits into the model.
    """
    from stages.log_probability import LogProbability

    make_room()  # a server holds the memory that the model needs
    outcomes = LogProbability(policy.folder).score(read_texts(path))
    rows = [
        (str(number), "nats_per_token", -outcome.score)
        for number, outcome in enumerate(outcomes, start=1)
        if outcome.score is not None
    ]
    if not rows:
        raise DataError(f"no text fits into {policy.name!r}", where=str(path))
    return pl.DataFrame(rows, ["item", "metric", "value"], orient="row")


def lm_eval_version() -> str:
    """Return the version of lm-eval.

    Raises:
        ModelError: it is not installed.
    """
    try:
        return version("lm_eval")
    except PackageNotFoundError:
        raise ModelError(
            "lm-eval is not installed",
            expected="the extra `lm-eval`",
            where="evaluation.card.lm_eval",
            remedy="pip install -c constraints.txt -e '.[lm-eval]'",
        ) from None


def lm_eval_items(settings: LmEvalConfig, policy: Policy) -> pl.DataFrame:
    """Return capability, stratum, item, metric, value, weight: what lm-eval's tasks measure.

    A task's own metrics, where they are means over items; a list of verdicts on one item (IFEval's
    instructions) is its share and weighs their number.

    Raises:
        DataError: a task is unknown, has no data here, or no metric that is a mean over items.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from stages.model_loading import load_model
    from trainer.isolation import isolated_torch

    make_room()
    loaded = load_model(policy.folder, "AutoModelForCausalLM")
    model = HFLM(loaded.model, tokenizer=loaded.tokenizer, batch_size=settings.batch_size)
    tasks = TaskManager(include_path=settings.include_path)
    frames = []
    for task in settings.tasks:
        try:
            with isolated_torch(None):  # it seeds the process
                found = simple_evaluate(
                    model,
                    tasks=[task],
                    num_fewshot=settings.few_shot,
                    limit=settings.limit,
                    apply_chat_template=settings.chat_template,
                    bootstrap_iters=0,
                    task_manager=tasks,
                )
        except Exception as error:  # whatever a task and its data raise
            raise DataError(
                f"lm-eval cannot run {task!r}: {type(error).__name__}: {error}",
                where="evaluation.card.lm_eval",
                remedy="`lm-eval ls tasks` lists the names; a task's data must be reachable",
            ) from error
        rows = list(_samples(found["samples"], found["higher_is_better"]))
        if not rows:
            raise DataError(
                f"{task!r} has no metric that is a mean over items",
                where="evaluation.card.lm_eval.tasks",
                remedy="take it off the card, and run it with lm-eval itself",
            )
        frames.append(as_items(pl.DataFrame(rows), capability=f"{LM_EVAL}/{task}", **of(policy)))
    return pl.concat(frames)


def _samples(
    samples: dict[str, list[dict[str, Any]]], better: dict[str, dict[str, bool]]
) -> Iterator[dict[str, Any]]:
    """Yield one row per item and metric of every task that was run."""
    for task, of_task in samples.items():
        for sample in of_task:
            for metric in sample["metrics"]:
                value = sample[metric]
                values = list(value) if isinstance(value, list) else [value]
                if not values or not all(_is_number(one) for one in values):
                    continue
                label = metric if sample["filter"] == "none" else f"{metric} {sample['filter']}"
                yield {
                    "stratum": task,
                    "item": f"{task} {sample['doc_id']}",
                    "metric": label,
                    "value": sum(map(float, values)) / len(values),
                    "weight": float(len(values)),
                    "higher_is_better": better.get(task, {}).get(metric, True),
                }


def _is_number(value: Any) -> bool:
    import numpy as np

    return isinstance(value, bool | int | float | np.number | np.bool_) and bool(np.isfinite(value))


def of(policy: Policy) -> dict[str, str]:
    """Return the columns of CAPABILITY_ITEMS that name a policy."""
    return {"policy": policy.name, "weights_hash": policy.weights_hash}
