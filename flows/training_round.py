"""The tasks of one round: train on what curation exported, evaluate, judge, promote."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING, Any

from flows import scorers
from flows.answering import answer_prompts
from flows.capability_card import require_askable
from flows.capability_texts import read_texts, text_evaluations
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
from stages.errors import ConfigError, DataError
from stages.export_formats import UNPAIRED
from stages.generation import conversation
from stages.judge_prompts import load_rubric
from stages.judges import JudgeScorer
from stages.scorer_health import require_every_candidate
from stages.tables import JUDGMENTS, ROUNDS
from trainer.model_folder import noteworthy

if TYPE_CHECKING:
    from pathlib import Path

    import polars as pl

    from flows.configuration import PipelineConfig
    from lineage.workspace import Dataset

TRAINING_VERSION = 1
ANSWERS_VERSION = 2
KL_VERSION = 1
GATE_VERSION = 2


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

    from trainer.rows import answers_of_pairs

    rows = pl.read_ndjson(path) if path.suffix == ".jsonl" else pl.read_parquet(path)
    answers = [name for name in ("chosen", "rejected", "completion") if name in rows.columns]
    texts = [pl.col(name).list.first().struct.field("content").alias(name) for name in answers]
    if "completion" in answers:
        return rows.select(pl.col("candidate_id").alias("answer_id"), "prompt", *texts, "label")
    weights = cs.by_name("confidence", "length_weight", require_all=False)
    rows = rows.select("pair_id", "prompt", *texts, weights)
    return answers_of_pairs(rows) if unpaired else rows


@stage_task(name="evaluate")
def answer_heldout(
    context: RunContext, config: PipelineConfig, policy: Policy, prompts: Dataset, stage: str
) -> Answers:
    """Answer the held-out prompts and score the answers, greedily if the stage's name says so."""
    generator = policy_generator(config, policy)
    needed = config.scoring.needed_for(config.evaluating_scorer)
    if stage.endswith("_greedy"):
        sampling = generator.sampling._replace(temperature=0.0, heldout_samples=1)
        generator = dataclasses.replace(generator, sampling=sampling)
    settings = {
        "prompts_per_part": config.generation.prompts_per_part,
        "control_tokens": config.generation.control_tokens,
        "generator": generator.deciding(),
        "scorers": [scorers.deciding(scorer, policy) for scorer in needed.scorers],
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


def require_comparable(config: PipelineConfig) -> None:
    """Return if two policies can be compared as the configuration says.

    Raises:
        ConfigError: a judge of the scorer only says which of one policy's answers is better.
        MissingFileError: the file of `evaluation.texts` is not there.
        DataError: a row of it is no conversation that the assistant ends.
        PrefmillError: the capability card asks for what cannot be.
    """
    if config.evaluation.texts:
        read_texts(config.evaluation.texts)
    if config.evaluation.card:
        require_askable(config, config.evaluation.card)
    for judge in config.scoring.needed_for(config.evaluating_scorer).judges:
        if isinstance(judge, JudgeScorer) and load_rubric(judge.rubric).mode == "pairwise":
            raise ConfigError(
                f"scorer {judge.name!r} compares answers of one policy with each other: its scores "
                "don't tell whether another policy's answers are better",
                expected="a scorer that rates single answers",
                where="evaluation.scorer, or pairing.scorer where that is not set",
                remedy="name rules, a reward model or a pointwise judge in `evaluation.scorer`",
            )


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
    compared: list[tuple[Answers, Answers]],
    beside: tuple[Dataset | None, Dataset | None],
) -> Dataset:
    """Compare before and after, judge the gate and record the round.

    ``beside`` are the KL divergence's judgments and the capability card, where there are any.
    """
    log_ratios, card = beside
    answers = [dataset for pair in compared for side in pair for dataset in side.datasets]
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
        before, after = (
            pl.concat(_samples(writer, config, heldout, pair[side]) for pair in compared)
            for side in (0, 1)
        )
        ratios = writer.read(log_ratios) if log_ratios else JUDGMENTS.empty()
        settings = config.evaluation
        measured = evaluations(before, after, ratios, settings.seed, settings.resamples)
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
    from trainer.evaluation import scored_samples

    columns = ["candidate_id", "prompt_id", "generator", "temperature"]
    columns += ["completion", "completion_tokens", "finish_reason"]
    candidates = writer.read(answers.candidates, columns).filter(generator=answers.generator)
    candidates = candidates.join(heldout.select("prompt_id"), on="prompt_id", how="semi")
    scores = writer.read(answers.scores).filter(scorer=config.evaluating_scorer)
    return scored_samples(candidates, scores, heldout)
