"""The tasks of one round: train on what curation exported, evaluate, judge, promote."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from flows import scorers
from flows.answering import answer_prompts
from flows.curation import Curated, judge_in_parts
from flows.generators import policy_generator
from flows.models import Policy, policy_in
from flows.spending import budget_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from flows.vllm_server import stop_all
from lineage.workspace import Dataset, Workspace, commit_json
from stages import scoring
from stages.errors import DataError
from stages.scorer_health import require_every_candidate
from stages.tables import ROUNDS

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig

TRAINING_VERSION = 1
ANSWERS_VERSION = 2
GATE_VERSION = 1


@dataclasses.dataclass(frozen=True)
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


@dataclasses.dataclass(frozen=True)
class Answers:
    """A policy's scored answers: those of one generator among the candidates."""

    generator: str
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
    settings = config.training.deciding()
    settings = {**settings, "policy": policy.fingerprint, "reference": reference.fingerprint}
    inputs = (curated.exports, curated.prompts)
    spec = StageSpec("train", TRAINING_VERSION, settings, inputs, ("training_metrics",))
    round_id = f"round_{spec.key}"
    output = workspace.models / round_id

    def make(writer: StageWriter) -> None:
        import polars as pl

        from trainer.data_checks import prompt_keys
        from trainer.dpo import train_dpo

        stop_all()  # a server holds the memory that training needs
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
    """Return the `exports` row to train on: the train split's TRL JSONL, else its TRL Parquet.

    Raises:
        DataError: no file with train pairs was written.
    """
    loadable = exports["format"].is_in(["trl_jsonl", "trl_parquet"])
    wanted = loadable & (exports["split"] == "train") & (exports["rows"] > 0)
    files = exports.filter(wanted).sort("format")
    if files.is_empty():
        raise DataError(
            "no exported file with train pairs",
            expected="a trl_jsonl or trl_parquet export of split train with at least one pair",
            where="stage export",
            remedy="sample prompts for split train, loosen the filters, or add to export.formats",
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
    generator = policy_generator(config, policy)
    needed = config.scoring.needed_for(config.pairing.scorer)
    if stage.endswith("_greedy"):
        sampling = generator.sampling._replace(temperature=0.0, heldout_samples=1)
        generator = dataclasses.replace(generator, sampling=sampling)
    settings = {
        "prompts_per_part": config.generation.prompts_per_part,
        "control_tokens": config.generation.control_tokens,
        "generator": generator.deciding(),
        "scorers": [scorers.deciding(scorer) for scorer in needed.scorers],
    }
    outputs = ("candidates", "judgments", "scores")
    spec = StageSpec("answer_heldout", ANSWERS_VERSION, settings, (prompts,), outputs)

    def make(writer: StageWriter) -> None:
        heldout = writer.read(prompts).filter(split="heldout")
        answer_prompts(writer, heldout, generator, config)
        answers = writer.dataset("candidates")
        budget = budget_of(context, config.budget)
        index = 0
        for scorer in needed.judges:
            with scorers.opened(scorer, writer, policy, budget, answers) as judge:
                index = judge_in_parts(writer, judge, answers, heldout, index)
        facts = writer.read(answers, ["candidate_id", "prompt_id"])
        verdicts = writer.read(writer.dataset("judgments"))
        require_every_candidate(verdicts, facts, needed.asked)
        writer.write("scores", scoring.scores(verdicts, facts, needed))

    record = run_stage(context, stage, spec, make)
    return Answers(generator.name, record.output("candidates"), record.output("scores"))


def evaluate(
    context: RunContext, config: PipelineConfig, curated: Curated, base: Policy, trained: Policy
) -> list[tuple[Answers, Answers]]:
    """Return (before, after) answers to the held-out prompts: sampled, then greedy if asked.

    The sampled answers before training are the ones that generation made already.
    """
    prompts = curated.prompts
    sampled = answer_heldout(context, config, trained, prompts, "evaluate_after_sampled")
    generator = policy_generator(config, base).name
    compared = [(Answers(generator, curated.candidates, curated.scores), sampled)]
    if config.evaluation.greedy:
        # The trained policy first: where a server runs it, it is there already.
        after = answer_heldout(context, config, trained, prompts, "evaluate_after_greedy")
        before = answer_heldout(context, config, base, prompts, "evaluate_before_greedy")
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
        "evaluation": config.evaluation.deciding(),
        "gate": config.gate.deciding(),
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

    columns = ["candidate_id", "prompt_id", "generator", "temperature", "completion_tokens"]
    candidates = writer.read(answers.candidates, columns).filter(generator=answers.generator)
    candidates = candidates.join(heldout.select("prompt_id"), on="prompt_id", how="semi")
    scores = writer.read(answers.scores).filter(scorer=config.pairing.scorer)
    return per_prompt_metrics(candidates, scores, heldout)


def promote(workspace: Workspace, name: str, trained: Trained) -> None:
    """Point the configuration's promoted policy at the round's model."""
    path = workspace.relative(trained.policy.folder)
    pointer = {"round_id": trained.round_id, "weights_hash": trained.policy.weights_hash}
    commit_json(workspace.models / f"{name}.promoted.json", {**pointer, "path": path})
