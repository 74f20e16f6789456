"""The tasks of one round: train on what curation exported, evaluate, judge, promote."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.curation import Curated, score_part, scoring_settings, stage_task
from flows.models import Policy, policy_in
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from lineage.workspace import Dataset, Workspace, commit_json
from stages import generation
from stages.errors import DataError
from stages.tables import ROUNDS

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig

TRAINING_VERSION = 1
ANSWERS_VERSION = 1
GATE_VERSION = 1

GREEDY = {"temperature": 0.0, "heldout_samples_per_prompt": 1}


@dataclass(frozen=True)
class Trained:
    """What training made: the new policy and the facts of its round."""

    policy: Policy
    metrics: Dataset
    facts: dict[str, Any]
    """The columns of ROUNDS but `promoted`."""

    @property
    def round_id(self) -> str:
        """The round's id."""
        return str(self.facts["round_id"])


@dataclass(frozen=True)
class Answers:
    """A policy's scored answers."""

    candidates: Dataset
    scores: Dataset

    @property
    def datasets(self) -> tuple[Dataset, Dataset]:
        """Both references."""
        return self.candidates, self.scores


@stage_task(name="train")
def train_policy(
    context: RunContext,
    config: PipelineConfig,
    policy: Policy,
    reference: Policy,
    curated: Curated,
    round_index: int,
) -> Trained:
    """Train the policy on the exported train pairs."""
    workspace = context.workspace
    export = training_export(curated.exports.read(workspace))
    settings = config.training.model_dump(mode="json")
    settings = {**settings, "policy": policy.fingerprint, "reference": reference.fingerprint}
    inputs = (curated.exports, curated.prompts)
    spec = StageSpec("train", TRAINING_VERSION, settings, inputs, ("training_metrics",))
    round_id = f"round_{spec.key}"
    output = workspace.models / round_id

    def make(writer: StageWriter) -> None:
        import polars as pl

        from trainer.data_checks import prompt_keys
        from trainer.dpo import train_dpo

        heldout = writer.read(curated.prompts).filter(split="heldout")
        result = train_dpo(
            training_rows(workspace.root / export["path"]),
            policy.folder,
            reference.folder,
            config.training,
            output,
            workspace.checkpoints,
            writer.advance,
            frozenset(prompt_keys(heldout["messages"])),
        )
        metrics = result.metrics.with_columns(round_id=pl.lit(round_id))
        writer.write("training_metrics", metrics)

    manifest_path = output / "manifest.json"
    metrics = run_stage(context, "train", spec, make, [manifest_path]).output("training_metrics")
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    result = policy_in(output, round_id)
    facts = {
        "round_id": round_id,
        "round_index": round_index,
        "export_id": export["export_id"],
        "base_weights_hash": policy.weights_hash,
        "reference_weights_hash": reference.weights_hash,
        "result_weights_hash": result.weights_hash,
        "result_path": workspace.relative(output),
        "pairs": manifest["pairs"],
        "steps": manifest["steps"],
    }
    return Trained(result, metrics, facts)


def training_export(exports: pl.DataFrame) -> dict[str, str]:
    """Return the `exports` row to train on: the train split's JSONL, else its Parquet.

    Raises:
        DataError: no file with train pairs was written.
    """
    files = exports.filter((exports["split"] == "train") & (exports["rows"] > 0)).sort("format")
    if files.is_empty():
        raise DataError(
            "no exported file with train pairs",
            expected="an export of split train with at least one pair",
            where="stage export",
            remedy="sample prompts for split train, or loosen the filters",
        )
    return files.row(0, named=True)


def training_rows(path: Path) -> pl.DataFrame:
    """Return an exported file as the trainer takes it: pair_id, prompt, chosen, rejected."""
    import polars as pl

    rows = pl.read_ndjson(path) if path.suffix == ".jsonl" else pl.read_parquet(path)
    texts = [
        pl.col(role).list.first().struct.field("content").alias(role)
        for role in ("chosen", "rejected")
    ]
    return rows.select("pair_id", "prompt", *texts)


@stage_task(name="evaluate")
def answer_heldout(
    context: RunContext, config: PipelineConfig, policy: Policy, prompts: Dataset, stage: str
) -> Answers:
    """Answer the held-out prompts and score the answers, greedily if the stage's name says so."""
    generating = config.generation
    if stage.endswith("_greedy"):
        generating = generating.model_copy(update=GREEDY)
    settings = {
        **generating.model_dump(mode="json"),
        "model": policy.identity,
        "scoring": scoring_settings(config),
    }
    outputs = ("candidates", "judgments", "scores")
    spec = StageSpec("answer_heldout", ANSWERS_VERSION, settings, (prompts,), outputs)

    def make(writer: StageWriter) -> None:
        heldout = writer.read(prompts).filter(split="heldout")
        engine = policy.engine()
        parts = generation.plan_parts(heldout, engine, generating)
        writer.advance(0, len(parts))
        for index, part in enumerate(parts):
            answers = writer.existing("candidates", index)
            if answers is None:
                made = generation.generate(part, engine, generating)
                answers = writer.write("candidates", made, index)
            score_part(writer, config, heldout, answers, index)
            writer.advance(index + 1, len(parts))

    record = run_stage(context, stage, spec, make)
    return Answers(record.output("candidates"), record.output("scores"))


def evaluate(
    context: RunContext, config: PipelineConfig, curated: Curated, base: Policy, trained: Policy
) -> list[tuple[Answers, Answers]]:
    """Return (before, after) answers to the held-out prompts: sampled, then greedy if asked.

    The sampled answers before training are the ones that generation made already.
    """
    prompts = curated.prompts
    sampled = answer_heldout(context, config, trained, prompts, "evaluate_after_sampled")
    compared = [(Answers(curated.candidates, curated.scores), sampled)]
    if config.evaluation.greedy:
        before = answer_heldout(context, config, base, prompts, "evaluate_before_greedy")
        after = answer_heldout(context, config, trained, prompts, "evaluate_after_greedy")
        compared.append((before, after))
    return compared


@stage_task(name="gate")
def judge_round(
    context: RunContext,
    config: PipelineConfig,
    prompts: Dataset,
    trained: Trained,
    compared: list[tuple[Answers, Answers]],
) -> Dataset:
    """Compare before and after, judge the gate and record the round."""
    answers = [dataset for pair in compared for side in pair for dataset in side.datasets]
    settings = {
        "evaluation": config.evaluation.model_dump(mode="json"),
        "gate": config.gate.model_dump(mode="json"),
        "scorer": config.pairing.scorer,
        "round": trained.facts,
    }
    inputs = (prompts, trained.metrics, *answers)
    spec = StageSpec("gate", GATE_VERSION, settings, inputs, ("rounds", "evaluations", "gates"))

    def make(writer: StageWriter) -> None:
        import polars as pl

        from trainer.evaluation import compare
        from trainer.gate import judge_gate

        heldout = writer.read(prompts).filter(split="heldout")
        before, after = (
            pl.concat(_measures(writer, config, heldout, pair[side]) for pair in compared)
            for side in (0, 1)
        )
        settings = config.evaluation
        evaluations = compare(before, after, settings.seed, settings.resamples)
        gates, promoted = judge_gate(evaluations, config.gate)
        row = {**trained.facts, "promoted": promoted}
        writer.write("rounds", pl.DataFrame([row], schema=ROUNDS.empty().schema))
        round_id = pl.lit(trained.round_id).alias("round_id")
        writer.write("evaluations", evaluations.with_columns(round_id))
        writer.write("gates", gates.with_columns(round_id))

    return run_stage(context, "gate", spec, make).output("rounds")


def _measures(
    writer: StageWriter, config: PipelineConfig, heldout: pl.DataFrame, answers: Answers
) -> pl.DataFrame:
    """Return the metrics per held-out prompt of one side of the comparison."""
    from trainer.evaluation import per_prompt_metrics

    columns = ["candidate_id", "prompt_id", "temperature", "completion_tokens"]
    candidates = writer.read(answers.candidates, columns)
    candidates = candidates.join(heldout.select("prompt_id"), on="prompt_id", how="semi")
    scores = writer.read(answers.scores).filter(scorer=config.pairing.scorer)
    return per_prompt_metrics(candidates, scores, heldout)


def promote(workspace: Workspace, name: str, trained: Trained) -> None:
    """Point the configuration's promoted policy at the round's model."""
    path = workspace.relative(trained.policy.folder)
    pointer = {"round_id": trained.round_id, "weights_hash": trained.policy.weights_hash}
    commit_json(workspace.models / f"{name}.promoted.json", {**pointer, "path": path})
