"""The tasks of one round: train on what curation exported, measure, judge the gate."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from flows import scorers
from flows.capability_texts import text_evaluations
from flows.curation import Curated, judge_in_parts
from flows.generators import policy_generator
from flows.models import Policy, policy_in
from flows.noise import known_smoothing
from flows.progress import note, say
from flows.spending import budget_of
from flows.stage_runner import RunContext, StageSpec, StageWriter, run_stage
from flows.stage_task import stage_task
from flows.vllm_server import make_room
from stages import scoring
from stages.content_ids import file_sha256
from stages.errors import DataError
from stages.export_formats import UNPAIRED
from stages.generation import conversation
from stages.tables import JUDGMENTS, ROUNDS
from trainer.model_folder import noteworthy

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.evaluating import Compared
    from flows.policy_duels import Answers
    from lineage.workspace import Dataset

TRAINING_VERSION = 1
KL_VERSION = 1
GATE_VERSION = 3


@dataclasses.dataclass(frozen=True)
class Trained:
    """What training made: the new policy and the facts of its round."""

    policy: Policy
    former: Policy
    metrics: Dataset
    facts: dict[str, Any]
    """The columns of ROUNDS but `promoted`."""

    @property
    def round_id(self) -> str:
        """The round's id."""
        return str(self.facts["round_id"])


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
    unpaired = config.training.loss_type == "kto"
    export = training_export(curated.exports.read(workspace), unpaired=unpaired)
    rows = training_rows(workspace.root / export["path"], unpaired=unpaired)
    ids = rows.to_series().to_list()
    training = known_smoothing(workspace, config.training, curated.noise, ids)
    settings = training.deciding()
    settings = {**settings, "policy": policy.fingerprint, "reference": reference.fingerprint}
    inputs = (curated.exports, curated.prompts)
    spec = StageSpec("train", TRAINING_VERSION, settings, inputs, ("training_metrics",))
    round_id = f"round_{spec.key}"
    output = workspace.models / round_id

    def make(writer: StageWriter) -> None:
        import polars as pl

        from trainer.data_checks import prompt_keys
        from trainer.dpo import train_dpo

        make_room()  # a server holds the memory that training needs
        heldout = writer.read(curated.prompts).filter(split="heldout")
        result = train_dpo(
            rows,
            policy.folder,
            reference.folder,
            training,
            output,
            workspace.checkpoints,
            writer.advance,
            frozenset(prompt_keys(heldout["messages"])),
            note,
        )
        metrics = result.metrics.with_columns(round_id=pl.lit(round_id))
        writer.write("training_metrics", metrics)

    manifest_path = output / "manifest.json"
    metrics = run_stage(context, "train", spec, make, [manifest_path]).output("training_metrics")
    manifest = json.loads(manifest_path.read_text(encoding="utf-8"))
    for sentence in noteworthy(manifest):
        say(f"{'':<24} {sentence}")
    if config.filters.length_bias == "reweight" and training.weight_by != "length_weight":
        say(f"{'':<24} length weights are not used: set `training.weight_by: length_weight`")
    result = policy_in(output, round_id)
    facts = {
        "round_id": round_id,
        "round_index": round_index,
        "export_id": export["export_id"],
        "base_weights_hash": policy.weights_hash,
        # Of a loss without a reference: the policy, whatever else was chosen.
        "reference_weights_hash": manifest["reference_weights_hash"],
        "reference": "policy" if training.reference_free else config.reference,
        "result_weights_hash": result.weights_hash,
        "result_path": workspace.relative(output),
        "pairs": manifest["pairs"],
        "steps": manifest["steps"],
    }
    return Trained(result, policy, metrics, facts)


def training_export(exports: pl.DataFrame, *, unpaired: bool = False) -> dict[str, str]:
    """Return the `exports` row to train on: the train split's TRL JSONL, else its TRL Parquet.

    For single answers, where there is one, its unpaired file.

    Raises:
        DataError: no file with train pairs was written.
    """
    import polars as pl

    formats = ["trl_jsonl", "trl_parquet", *([UNPAIRED] if unpaired else [])]
    loadable = exports.filter(pl.col("format").is_in(formats), pl.col("rows") > 0, split="train")
    files = loadable.sort(pl.col("format") != UNPAIRED, "format")
    if files.is_empty():
        raise DataError(
            "no exported file with train pairs",
            expected="a trl_jsonl or trl_parquet export of split train with at least one pair",
            where="stage export",
            remedy="sample prompts for split train, loosen the filters, or add to export.formats",
        )
    return files.row(0, named=True)


def training_rows(path: Path, *, unpaired: bool = False) -> pl.DataFrame:
    """Return an exported file as the trainer takes it, with the weights of pairs that it has.

    For ``unpaired`` training each row is an answer with its label, whichever file it is.
    """
    import polars as pl
    import polars.selectors as cs

    from stages.part_files import read_rows
    from trainer.rows import answers_of_pairs

    rows = read_rows(path)
    answers = [name for name in ("chosen", "rejected", "completion") if name in rows.columns]
    texts = [pl.col(name).list.first().struct.field("content").alias(name) for name in answers]
    if "completion" in answers:
        return rows.select(pl.col("candidate_id").alias("answer_id"), "prompt", *texts, "label")
    weights = cs.by_name("confidence", "length_weight", require_all=False)
    rows = rows.select("pair_id", "prompt", *texts, weights)
    return answers_of_pairs(rows) if unpaired else rows


@stage_task(name="kl")
def measure_kl(
    context: RunContext,
    config: PipelineConfig,
    prompts: Dataset,
    trained: Trained,
    answers: Answers,
) -> Dataset | None:
    """Judge the new policy's sampled ``answers`` by log pi(y|x) - log pi_former(y|x), in nats.

    None when no sample is to be judged. An answer cut at the token limit is left out: what the
    policies give its end is not known.
    """
    samples = config.evaluation.kl_samples_per_prompt
    if not samples:
        return None
    former, policy = trained.former, trained.policy
    scorer = scoring.ImplicitRewardScorer(
        name="kl", model=str(policy.folder), reference=str(former.folder), beta=1.0
    )
    settings = {"policy": policy.fingerprint, "former": former.fingerprint, "samples": samples}
    inputs = (prompts, answers.candidates)
    spec = StageSpec("kl", KL_VERSION, settings, inputs, ("judgments",))
    sampling = policy_generator(config, policy).sampling

    def make(writer: StageWriter) -> None:
        import polars as pl

        heldout = writer.read(prompts).filter(split="heldout")
        asked = [conversation(messages, sampling) for messages in heldout["messages"].to_list()]
        heldout = heldout.with_columns(pl.Series("messages", asked, heldout.schema["messages"]))
        whole = (pl.col("finish_reason") == "stop") & (pl.col("sample_index") < samples)
        budget = budget_of(context, config.budget)
        with scorers.opened(scorer, writer, policy, budget, answers.candidates) as judge:
            judge_in_parts(
                writer, lambda part, of: judge(part.filter(whole), of), answers.candidates, heldout
            )

    return run_stage(context, "kl", spec, make).output("judgments")


@stage_task(name="gate")
def judge_round(
    context: RunContext,
    config: PipelineConfig,
    prompts: Dataset,
    trained: Trained,
    compared: list[Compared],
    beside: tuple[Dataset | None, Dataset | None],
) -> Dataset:
    """Compare before and after, judge the gate and record the round.

    ``beside`` are the KL divergence's judgments and the capability card, where there are any.
    """
    log_ratios, card = beside
    answers = [dataset for pair in compared for dataset in pair.datasets]
    answers += [dataset for dataset in beside if dataset]
    settings = {
        "evaluation": config.evaluation.deciding(),
        "gate": config.gate.deciding(),
        "scorer": config.evaluating_scorer,
        "round": trained.facts,
        "texts": file_sha256(config.evaluation.texts) if config.evaluation.texts else None,
    }
    inputs = (prompts, trained.metrics, *answers)
    spec = StageSpec("gate", GATE_VERSION, settings, inputs, ("rounds", "evaluations", "gates"))

    def make(writer: StageWriter) -> None:
        import polars as pl

        from trainer.evaluation import evaluations
        from trainer.gate import judge_gate

        heldout = writer.read(prompts).filter(split="heldout")
        before = pl.concat(_samples(writer, config, heldout, pair.before) for pair in compared)
        after = pl.concat(_samples(writer, config, heldout, pair.after) for pair in compared)
        ratios = writer.read(log_ratios) if log_ratios else JUDGMENTS.empty()
        duels = [writer.read(pair.duels) for pair in compared if pair.duels]
        settings = config.evaluation
        drawn = (settings.seed, settings.resamples)
        measured = evaluations(before, after, ratios, *drawn, pl.concat(duels) if duels else None)
        texts = text_evaluations(settings, trained.former, trained.policy)
        measured = pl.concat([measured, texts])
        known = writer.read(card) if card else None
        gates, promoted = judge_gate(measured, config.gate, known)
        row = {**trained.facts, "promoted": promoted}
        writer.write("rounds", pl.DataFrame([row], schema=ROUNDS.empty().schema))
        round_id = pl.lit(trained.round_id).alias("round_id")
        writer.write("evaluations", measured.with_columns(round_id))
        writer.write("gates", gates.with_columns(round_id))

    return run_stage(context, "gate", spec, make).output("rounds")


def _samples(
    writer: StageWriter, config: PipelineConfig, heldout: pl.DataFrame, answers: Answers
) -> pl.DataFrame:
    """Return the scored answers to the held-out prompts of one side of the comparison."""
    import polars as pl

    from trainer.evaluation import scored_samples

    columns = ["candidate_id", "prompt_id", "generator", "temperature", "sample_index"]
    columns += ["completion", "completion_tokens", "finish_reason"]
    candidates = writer.read(answers.candidates, columns).filter(generator=answers.generator)
    candidates = candidates.join(heldout.select("prompt_id"), on="prompt_id", how="semi")
    if not config.tells_success:
        heldout = heldout.with_columns(verifier=pl.lit(None, pl.String))
    scores = None
    if answers.scores:
        scores = writer.read(answers.scores).filter(scorer=config.evaluating_scorer)
    return scored_samples(candidates, scores, heldout)
