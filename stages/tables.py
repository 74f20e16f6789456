"""The schema of every table, declared once.

The Parquet schema, the DuckDB views, the Great Expectations suites and ``docs/tables.md`` derive
from these declarations or are tested against them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, cast

import pyarrow as pa

from stages.errors import DataError, nearest

if TYPE_CHECKING:
    import polars as pl

MESSAGES = pa.list_(
    pa.struct(
        [
            pa.field("role", pa.string(), nullable=False),
            pa.field("content", pa.string(), nullable=False),
        ]
    )
)


@dataclass(frozen=True)
class Column:
    """One column: what a value means, and which values are allowed."""

    name: str
    type: pa.DataType
    meaning: str
    nullable: bool = False
    unit: str = ""
    allowed: tuple[str, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    words: bool = False
    """Holds what a person or a model wrote: what removing texts takes away."""


@dataclass(frozen=True)
class Table:
    """One table: what a row is, its columns, its key and the tables its ids point to."""

    name: str
    row: str
    key: tuple[str, ...]
    columns: tuple[Column, ...]
    references: dict[str, str] = field(default_factory=dict)
    """Column name to ``table.column`` that must hold its value."""

    @property
    def arrow_schema(self) -> pa.Schema:
        """The Arrow schema, with nullability."""
        return pa.schema([pa.field(c.name, c.type, nullable=c.nullable) for c in self.columns])

    @property
    def column_names(self) -> list[str]:
        """The names in declared order."""
        return [column.name for column in self.columns]

    def column(self, name: str) -> Column:
        """Return the column called ``name``; raises ``KeyError``."""
        return next(c for c in self.columns if c.name == name)

    def empty(self) -> pl.DataFrame:
        """Return a frame of this table with no rows."""
        return self._empty.clone()

    @functools.cached_property
    def _empty(self) -> pl.DataFrame:
        import polars as pl

        # Stages ask for it part by part, and this takes a millisecond.
        return cast("pl.DataFrame", pl.from_arrow(self.arrow_schema.empty_table()))

    def to_arrow(self, frame: pl.DataFrame) -> pa.Table:
        """Return ``frame`` with exactly this table's columns, order and types.

        Raises:
            DataError: a column is missing or unknown, a type does not convert without loss, or a
                column that must not be null holds nulls.
        """
        missing = [name for name in self.column_names if name not in frame.columns]
        unknown = [name for name in frame.columns if name not in self.column_names]
        if missing or unknown:
            raise DataError(
                f"table {self.name!r}: missing columns {missing}, unknown columns {unknown}",
                expected=f"exactly {self.column_names}",
                where=f"a frame with columns {frame.columns}",
            )
        arrow = frame.select(self.column_names).to_arrow()
        for column in self.columns:
            nulls = arrow.column(column.name).null_count
            if nulls and not column.nullable:
                raise DataError(
                    f"table {self.name!r}: {nulls} nulls in {column.name!r}",
                    expected="no nulls",
                    where=f"rows with key {self.key}",
                )
        try:
            return arrow.cast(self.arrow_schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise DataError(
                f"table {self.name!r}: {error}",
                expected=f"the types {self.arrow_schema}".replace("\n", ", "),
            ) from None


def _text(name: str, meaning: str, **rest: object) -> Column:
    return Column(name, pa.string(), meaning, **rest)  # type: ignore[arg-type]


def _count(name: str, meaning: str, unit: str = "", **rest: object) -> Column:
    return Column(name, pa.int64(), meaning, unit=unit, minimum=0, **rest)  # type: ignore[arg-type]


def _number(name: str, meaning: str, **rest: object) -> Column:
    return Column(name, pa.float64(), meaning, **rest)  # type: ignore[arg-type]


def _flag(name: str, meaning: str, **rest: object) -> Column:
    return Column(name, pa.bool_(), meaning, **rest)  # type: ignore[arg-type]


def _time(name: str, meaning: str, **rest: object) -> Column:
    return Column(name, pa.timestamp("us", tz="UTC"), meaning, **rest)  # type: ignore[arg-type]


SPLITS = ("train", "heldout")
"""What pairs are for."""

GOLD_SPLIT = "gold"
"""Prompts with a known good and a damaged answer: they measure scorers and are never exported."""

EDITED = "edited"
"""In `weights_hash`: an editor made the answer of another one."""

EDITED_STRATEGY = "edited_over_chosen_over_rejected"
"""The one pairing strategy by which a chosen answer may score below the rejected one."""

PROMPTS = Table(
    "prompts",
    "one conversation to be answered",
    ("prompt_id",),
    (
        _text("prompt_id", "hash of the messages"),
        Column(
            "messages",
            MESSAGES,
            "the conversation: role and content, last turn by the user",
            words=True,
        ),
        _text("source", "where the prompt came from, as named in the configuration"),
        _text("stratum", "the group within the source that sampling balances"),
        _text(
            "split",
            "used for training pairs, kept for evaluation, or planted to measure scorers",
            allowed=(*SPLITS, GOLD_SPLIT),
        ),
        _text("verifier", "the rule that can check an answer", nullable=True),
        _text(
            "ground_truth", "what the verifier needs to know, as JSON", nullable=True, words=True
        ),
        _text(
            "gold",
            "of split gold: the good and the damaged answer, as JSON",
            nullable=True,
            words=True,
        ),
        _text(
            "reference",
            "a known good answer by people, if the source has one",
            nullable=True,
            words=True,
        ),
    ),
)

DROPPED_PROMPTS = Table(
    "dropped_prompts",
    "one prompt of a source that sampling passed over, and why",
    ("prompt_id",),
    (
        _text("prompt_id", "hash of the messages"),
        Column("messages", MESSAGES, "the conversation", words=True),
        _text("source", "where the prompt came from, as named in the configuration"),
        _text(
            "reason",
            "it overlaps with an evaluation set, or is nearly the same as another prompt",
            allowed=("contaminated", "near_duplicate"),
        ),
        _text("kept_prompt_id", "of a near-duplicate: the prompt kept in its place", nullable=True),
        _text("evaluation_set", "of a contaminated one: the set's name", nullable=True),
        _text(
            "matched_text",
            "the words that it shares with that set, normalised",
            nullable=True,
            words=True,
        ),
    ),
)

CANDIDATES = Table(
    "candidates",
    "one sampled completion",
    ("candidate_id",),
    (
        _text("candidate_id", "hash of prompt, generator, sample index and completion"),
        _text("prompt_id", "the prompt it answers"),
        _count("sample_index", "which of the N samples of its prompt and generator, from 0"),
        _text("generator", "the generator's name in the configuration, else its model's"),
        _text("generator_hash", "hash of weights, sampling settings and system prompt"),
        _text("model", "the model's name"),
        _text(
            "weights_hash", "hash of the model's weights and configuration; of its name if served"
        ),
        _number("temperature", "sampling temperature; 0 is greedy", minimum=0),
        _number("top_p", "nucleus sampling mass", minimum=0, maximum=1),
        _count("max_completion_tokens", "the limit asked for", "tokens"),
        _text("system_prompt", "put before the conversation by the generator", nullable=True),
        Column("seed", pa.int64(), "the seed of this prompt's samples"),
        _text(
            "completion",
            "the text, without special tokens; null: see error",
            nullable=True,
            words=True,
        ),
        _text(
            "finish_reason",
            "stop (end of turn), length (cut at the limit) or error",
            allowed=("stop", "length", "error"),
        ),
        _text("error", "why there is no completion, or an empty one", nullable=True),
        _count(
            "prompt_tokens",
            "the rendered prompt's length; null: not known",
            "tokens",
            nullable=True,
        ),
        _count("completion_tokens", "including the end-of-turn token", "tokens"),
        _number(
            "logprob_sum",
            "log-probability of the completion at temperature 1",
            unit="nats",
            nullable=True,
            maximum=0,
        ),
        _number("latency_seconds", "of the request", unit="s", nullable=True, minimum=0),
        _number(
            "cost", "at the configured prices, its share of its request", nullable=True, minimum=0
        ),
        _text(
            "template_fingerprint",
            "hash of chat template and tokenizer; null: the server keeps it to itself",
            nullable=True,
        ),
    ),
    references={"prompt_id": "prompts.prompt_id"},
)

EDITS = Table(
    "edits",
    "one answer that was to be edited, and what came of it",
    ("candidate_id",),
    (
        _text("candidate_id", "the edited answer; `candidates` says who edited it"),
        _text("prompt_id", "the prompt that both answer"),
        _text("edited_candidate_id", "the answer that was edited"),
        _text("rejected_candidate_id", "the prompt's worst answer, by the scores at that time"),
        _text("instruction_hash", "hash of what the editor was told; null: people", nullable=True),
        _text(
            "reason",
            "why it cannot be used, and has no completion; null: it can",
            nullable=True,
            allowed=("edit_missing", "edit_empty", "edit_truncated", "edit_unchanged"),
        ),
        _text("unusable_text", "what came instead of an edit", nullable=True, words=True),
    ),
    references={
        "prompt_id": "prompts.prompt_id",
        "candidate_id": "candidates.candidate_id",
        "edited_candidate_id": "candidates.candidate_id",
        "rejected_candidate_id": "candidates.candidate_id",
    },
)

JUDGMENTS = Table(
    "judgments",
    "one raw verdict: a reward, a judge's answer in one order, a rule's result, a vote",
    ("judgment_id",),
    (
        _text("judgment_id", "hash of candidate(s), order, scorer and raw verdict"),
        _text("candidate_id", "the candidate judged"),
        _text("other_candidate_id", "the other one, for pairwise verdicts", nullable=True),
        _text(
            "order",
            "for pairwise verdicts: was candidate_id shown first or second",
            nullable=True,
            allowed=("first", "second"),
        ),
        _text("scorer", "the scorer's name"),
        _text("scorer_version", "the scorer's version or weights hash"),
        _text("scorer_model", "the judge's or reward model's name", nullable=True),
        _text("scorer_prompt_hash", "hash of the judge's prompt", nullable=True),
        _number("score", "null when it could not be parsed: never a low score", nullable=True),
        _text("error", "why the score is missing", nullable=True),
        _text(
            "flag",
            "order_disagreement: the judge's two orders disagree, both count as a tie",
            nullable=True,
            allowed=("order_disagreement",),
        ),
        _text("raw", "what the scorer said, word for word", words=True),
        _count("prompt_tokens", "read by the judge", "tokens", nullable=True),
        _count("completion_tokens", "written by the judge", "tokens", nullable=True),
        _number("latency_seconds", "of the call", unit="s", nullable=True, minimum=0),
        _number("cost", "of the call, at the configured prices", nullable=True, minimum=0),
    ),
    references={
        "candidate_id": "candidates.candidate_id",
        "other_candidate_id": "candidates.candidate_id",
    },
)

SCORES = Table(
    "scores",
    "a candidate's score by one scorer, aggregated over its judgments",
    ("candidate_id", "scorer"),
    (
        _text("candidate_id", "the candidate"),
        _text("prompt_id", "its prompt"),
        _text("scorer", "the scorer's name"),
        _number("score", "mean over the parsed judgments; null when none", nullable=True),
        _number("spread", "standard deviation over them; null below two", nullable=True, minimum=0),
        _count("judgments", "how many judgments, parsed or not", "judgments"),
        _number("missing_share", "share that could not be parsed", minimum=0, maximum=1),
    ),
    references={"candidate_id": "candidates.candidate_id", "prompt_id": "prompts.prompt_id"},
)

SCORER_HEALTH = Table(
    "scorer_health",
    "one measure of one scorer on one run's judgments",
    ("scorer", "measure"),
    (
        _text("scorer", "the scorer's name"),
        _text(
            "measure",
            "missing_rate, tie_rate, flip_rate, longer_wins_rate, self_preference, gold_accuracy, "
            "cost, tokens, agreement_alpha:OTHER or agreement_kappa:OTHER",
        ),
        _number("value", "what was measured; null: nothing to measure it on", nullable=True),
        _count("count", "how many judgments, pairs or candidates it was measured on"),
        _number("limit", "what it may be at most or must be at least", nullable=True),
        _flag("passed", "whether it keeps to the limit; null without one", nullable=True),
    ),
)

PAIRS = Table(
    "pairs",
    "a proposed (chosen, rejected)",
    ("pair_id",),
    (
        _text("pair_id", "hash of both candidates, strategy and scorer"),
        _text("prompt_id", "the prompt both answer"),
        _text("chosen_candidate_id", "the preferred candidate"),
        _text("rejected_candidate_id", "the other one"),
        _text("strategy", "the pairing strategy"),
        _text("scorer", "whose scores decided"),
        _number("chosen_score", "in the scorer's unit"),
        _number("rejected_score", "in the scorer's unit"),
        _number(
            "margin",
            "chosen_score - rejected_score; below 0 only where an editor chose against the scores",
        ),
        _count("chosen_tokens", "length of the chosen completion", "tokens"),
        _count("rejected_tokens", "length of the rejected completion", "tokens"),
    ),
    references={
        "prompt_id": "prompts.prompt_id",
        "chosen_candidate_id": "candidates.candidate_id",
        "rejected_candidate_id": "candidates.candidate_id",
    },
)

LABEL_NOISE = Table(
    "label_noise",
    "what bears on one pair's label, and how probably it is wrong",
    ("pair_id",),
    (
        _text("pair_id", "the pair"),
        _number(
            "probability_wrong",
            "that the rejected is the better one; null: no estimate",
            nullable=True,
            minimum=0,
            maximum=1,
        ),
        _number(
            "margin_standard_error",
            "of the margin, from the spread of repeated judgments",
            nullable=True,
            minimum=0,
        ),
        _number(
            "order_disagreement",
            "share of the judge's double readings of this pair whose two orders differ",
            nullable=True,
            minimum=0,
            maximum=1,
        ),
        _count("scorers_for", "other scorers, or a jury's members, that score the chosen higher"),
        _count("scorers_against", "those that score the rejected higher"),
        _number(
            "people_vote",
            "people's majority: 1 the chosen, -1 the rejected, 0 neither; null: nobody voted",
            nullable=True,
            minimum=-1,
            maximum=1,
        ),
    ),
    references={"pair_id": "pairs.pair_id"},
)

NOISE_RATES = Table(
    "noise_rates",
    "the share of wrong labels among the pairs of one scorer",
    ("scorer",),
    (
        _text("scorer", "whose scores made the labels"),
        _text(
            "method",
            "how it was estimated (docs/noise.md); null: it could not be",
            nullable=True,
            allowed=("calibrated", "agreement", "swaps"),
        ),
        _number("rate", "share of wrong labels", nullable=True, minimum=0, maximum=1),
        _number("low", "lower end of its 95 % interval", nullable=True, minimum=0, maximum=1),
        _number("high", "upper end", nullable=True, minimum=0, maximum=1),
        _count("pairs", "proposed", "pairs"),
        _count("calibration_pairs", "whose better answer is known", "pairs"),
        _text("note", "on what the estimate rests, or what is missing for one"),
    ),
)

DECISIONS = Table(
    "decisions",
    "one ruling on one pair by one filter",
    ("pair_id", "filter"),
    (
        _text("pair_id", "the pair ruled on"),
        _text("filter", "the filter's name"),
        _count("position", "the filter's place in the configured order, from 0"),
        _flag("kept", "false: this filter drops the pair"),
        _text("reason", "the defect, when dropped", nullable=True),
        _number("value", "what was measured", nullable=True),
        _number("limit", "what it was measured against", nullable=True),
    ),
    references={"pair_id": "pairs.pair_id"},
)

PAIR_MEASURES = Table(
    "pair_measures",
    "one measure of one dataset of train pairs, for comparing strategies",
    ("measure",),
    (
        _text(
            "measure",
            "proposed, kept, prompts, mean_margin, median_margin, mean_length_gap, "
            "longer_chosen_rate, gold_accuracy, distinct_chosen_rate, distinct_bigram_rate or "
            "agreement:SCORER (docs/pairing.md)",
        ),
        _number("value", "what was measured; null: nothing to measure it on", nullable=True),
        _count("count", "how many pairs, prompts or bigrams it was measured on"),
    ),
)

DRIFT = Table(
    "drift",
    "one statistic of one measure of a run, within its limits or not",
    ("measure", "statistic"),
    (
        _text(
            "measure",
            "completion_tokens, score:SCORER; of kept pairs margin, chosen_score, rejected_score, "
            "chosen_tokens, rejected_tokens; of prompts source, stratum, prompt_with_pair",
        ),
        _text(
            "statistic",
            "mean, sd (standard deviation); against the accepted run before: psi (population "
            "stability index), ks (Kolmogorov-Smirnov distance)",
            allowed=("mean", "sd", "psi", "ks"),
        ),
        _number("value", "what was measured; null: nothing to measure it on", nullable=True),
        _number("minimum", "what it must be at least", nullable=True),
        _number("maximum", "what it may be at most", nullable=True),
        _flag("passed", "whether it keeps to its limits; null without any", nullable=True),
        _count("rows", "values of this run looked at"),
        _count("rows_before", "values of the run before looked at", nullable=True),
        _text("run_before", "the accepted run of the same name before this one", nullable=True),
    ),
)

PAIR_SIGNATURES = Table(
    "pair_signatures",
    "a kept pair's MinHash signature, where near-duplicate pairs are looked for",
    ("pair_id",),
    (
        _text("pair_id", "the pair"),
        Column("signature", pa.list_(pa.uint8()), "of its prompt and both completions, together"),
    ),
    references={"pair_id": "pairs.pair_id"},
)

EXPORT_FORMATS = (
    "trl_jsonl",
    "trl_parquet",
    "trl_unpaired_jsonl",
    "openai_jsonl",
    "llama_factory_json",
    "llama_factory_info",
    "axolotl_jsonl",
    "argilla_json",
    "argilla_settings",
    "hf_dataset",
    "hf_dataset_card",
)

EXPORTS = Table(
    "exports",
    "one file written for a trainer",
    ("export_id",),
    (
        _text("export_id", "hash of the file's bytes, format and split"),
        _text("format", "the target's format", allowed=EXPORT_FORMATS),
        _text("split", "train or heldout", allowed=SPLITS),
        _text("path", "relative to the workspace"),
        _count("rows", "pairs in the file", "pairs"),
        _text("sha256", "of the file's bytes"),
    ),
)

EXPORT_ROWS = Table(
    "export_rows",
    "one pair in one export",
    ("export_id", "pair_id"),
    (
        _text("export_id", "the export"),
        _text("pair_id", "the pair"),
        Column("line", pa.int64(), "its line or row in the file, from 1", minimum=1),
    ),
    references={"export_id": "exports.export_id", "pair_id": "pairs.pair_id"},
)

ROUNDS = Table(
    "rounds",
    "one training of a policy on one export, with its verdict",
    ("round_id",),
    (
        _text("round_id", "hash of the base weights, the export and the training settings"),
        _count("round_index", "place in its series, from 1"),
        _text("export_id", "the file trained on"),
        _text("base_weights_hash", "the policy before"),
        _text("reference_weights_hash", "the frozen reference model"),
        _text(
            "reference",
            "which model that is: the policy before, the series' first, or a moving average",
            allowed=("policy", "initial", "moving_average"),
        ),
        _text("result_weights_hash", "the policy after"),
        _text("result_path", "the new model's folder, relative to the workspace"),
        _count("pairs", "trained on", "pairs"),
        _count("steps", "optimizer steps", "steps"),
        _flag("promoted", "the gate's verdict"),
    ),
    references={"export_id": "exports.export_id"},
)

TRAININGS = Table(
    "trainings",
    "one training on a file, by `sft`, `reward-model` or `train-file`: no part of a round",
    ("training_id",),
    (
        _text("training_id", "hash of base model, file, settings and the result's place"),
        _text(
            "objective",
            "what for: to give the answers, to tell chosen from rejected, or a preference loss",
            allowed=("sft", "reward_model", "preferences"),
        ),
        _text("data_path", "the file trained on, relative to the workspace if it is in there"),
        _text("data_sha256", "of that file's bytes; an export's where it is a copy of one"),
        _text("base_weights_hash", "the model before"),
        _text(
            "reference_weights_hash",
            "the frozen reference model; null: the objective has none",
            nullable=True,
        ),
        _text("result_weights_hash", "the model after"),
        _text("result_path", "its folder, relative to the workspace if it is in there"),
        _count("rows", "trained on: pairs, answers or conversations", "rows"),
        _count("heldout_rows", "kept aside", "rows"),
        _count("steps", "optimizer steps", "steps"),
    ),
)

TRAINING_METRICS = Table(
    "training_metrics",
    "one metric at one step",
    ("round_id", "step", "metric"),
    (
        _text("round_id", "the round, or the training on a file: `round_` or `training_`"),
        _count("step", "optimizer step, from 1; 0: before any", "steps"),
        _text(
            "metric",
            "TRL's name (loss, rewards/margins, logps/chosen ...) or ours: docs/training.md",
        ),
        _number("value", "in the metric's unit", nullable=True),
    ),
)

EVALUATIONS = Table(
    "evaluations",
    "one measure of the policy before and after a round, on the held-out prompts",
    ("round_id", "metric", "decoding", "stratum"),
    (
        _text("round_id", "the round"),
        _text("metric", "success, score, win_rate ... (docs/evaluation.md)"),
        _text(
            "decoding",
            "sampled, greedy, or read: texts that were given",
            allowed=("sampled", "greedy", "read"),
        ),
        _text("stratum", "all, or one stratum"),
        _count("prompts", "held-out prompts compared", "prompts"),
        _number("before", "mean over prompts"),
        _number("after", "mean over prompts"),
        _number("difference", "after - before"),
        _number("low", "lower end of the paired 95 % bootstrap interval of the difference"),
        _number("high", "upper end"),
    ),
    references={"round_id": "rounds.round_id"},
)

GATES = Table(
    "gates",
    "one criterion of one round's promotion gate",
    ("round_id", "criterion"),
    (
        _text("round_id", "the round"),
        _text("criterion", "what was asked"),
        _number("value", "what was measured"),
        _number("limit", "what it had to reach"),
        _flag("passed", "whether it did"),
    ),
    references={"round_id": "rounds.round_id"},
)

CAPABILITY_ITEMS = Table(
    "capability_items",
    "how a policy did at one item of a capability card: a prompt, a text, a question",
    ("policy", "weights_hash", "capability", "metric", "item"),
    (
        _text("policy", "the policy's name"),
        _text("weights_hash", "its weights"),
        _text("capability", "instruction_following, tasks, texts, lm_eval/TASK, or a file's name"),
        _text("metric", "what was measured (docs/evaluation.md)"),
        _text("stratum", "the kind of item"),
        _text("item", "the same for every policy"),
        _number("value", "the measure"),
        _number("weight", "what it counts in a mean", minimum=0),
        _flag("higher_is_better", "whether a larger value is the better one"),
    ),
)

CAPABILITIES = Table(
    "capabilities",
    "one measure on a capability card: a policy, and how it differs from the card's first one",
    ("policy", "weights_hash", "first_weights_hash", "capability", "metric", "stratum"),
    (
        _text("policy", "the policy's name"),
        _text("weights_hash", "its weights"),
        _text("first_weights_hash", "the weights of the policy that it is compared with"),
        _text("capability", "instruction_following, tasks, texts, lm_eval/TASK, or a file's name"),
        _text("metric", "what was measured (docs/evaluation.md)"),
        _text("stratum", "all, or one kind of item"),
        _count("items", "items measured", "items"),
        _number("value", "mean over items"),
        _number("value_low", "lower end of its 95 % interval"),
        _number("value_high", "upper end"),
        _count(
            "paired", "items that the first policy has too; null: it is the first", nullable=True
        ),
        _number("difference", "mean of value - the first policy's, over those", nullable=True),
        _number("low", "lower end of its paired 95 % bootstrap interval", nullable=True),
        _number("high", "upper end", nullable=True),
        _flag("higher_is_better", "whether a larger value is the better one"),
        _number("tolerance", "how much worse it may be", minimum=0),
        _flag("regressed", "whether the whole interval is worse than the tolerance allows"),
    ),
)

VALIDATIONS = Table(
    "validations",
    "one expectation checked on one table of one stage",
    ("table", "expectation", "column"),
    (
        _text("table", "the table checked"),
        _text("expectation", "the Great Expectations name"),
        _text("column", "the column, or * for the whole table"),
        _text("severity", "must stops the run, should warns", allowed=("must", "should")),
        _flag("passed", "whether it held"),
        _count("rows", "rows checked", "rows"),
        _count("unexpected", "rows that broke it", "rows"),
        _text("examples", "up to 10 ids of such rows, as JSON"),
    ),
)

RUNS = Table(
    "runs",
    "one run of a flow",
    ("run_id",),
    (
        _text("run_id", "the flow's name and a hash of the resolved configuration and inputs"),
        _text(
            "flow",
            "refresh, dpo_round, sweep: pairs of another run's judgments, export: its pairs in "
            "other formats, card: capabilities, or the command of a training on a file",
            allowed=(
                "refresh",
                "dpo_round",
                "sweep",
                "export",
                "card",
                "sft",
                "reward-model",
                "train-file",
            ),
        ),
        _text("name", "from the configuration"),
        _count("round_index", "place in its series, from 1; 0 for a refresh"),
        _text("config", "the resolved configuration, as JSON"),
        _text("code_version", "prefmill's version and, in a checkout, its commit"),
        _text(
            "status",
            "how it stands; dead: its process is gone, without a word",
            allowed=("running", "completed", "failed", "dead"),
        ),
        _time("started_at", "first start"),
        _time("ended_at", "last end", nullable=True),
        _count("attempts", "how often it was started", "starts"),
        _text("error", "the last error", nullable=True),
    ),
)

STAGE_RUNS = Table(
    "stage_runs",
    "one stage in one run",
    ("run_id", "stage"),
    (
        _text("run_id", "the run"),
        _text("stage", "the stage's name within the run"),
        _count("position", "its place in the run, from 0"),
        _text("stage_key", "hash of the stage, its settings and its inputs: names its output"),
        _text("status", "made here, or reused from an earlier run", allowed=("made", "reused")),
        _text("made_by", "the run that made the output"),
        _number("seconds", "wall time in this run", unit="s", minimum=0),
        _time("ended_at", "when it was done"),
    ),
    references={"run_id": "runs.run_id"},
)

STAGE_OUTPUTS = Table(
    "stage_outputs",
    "one finished output of a stage; runs share it",
    ("stage_key",),
    (
        _text("stage_key", "hash of the stage, its settings and its inputs"),
        _text("stage", "the stage"),
        _text("made_by", "the run that made it"),
        _text("config", "what decides its rows besides its inputs, as JSON"),
        _time("started_at", "when making it began"),
        _time("ended_at", "when it was finished"),
        _number("seconds", "wall time of making it", unit="s", minimum=0),
        _count("gpus", "of this machine, held meanwhile; null: not noted", "GPUs", nullable=True),
        _time(
            "removed_at", "when `gc` removed its texts or files; null: all is there", nullable=True
        ),
    ),
)

STAGE_ERRORS = Table(
    "stage_errors",
    "one time that a stage of a run failed, also where a later attempt went well",
    ("run_id", "stage", "failed_at"),
    (
        _text("run_id", "the run"),
        _text("stage", "the stage's name within the run"),
        _time("failed_at", "when"),
        _text("stage_key", "the output that it was making"),
        _number("seconds", "wall time until then", unit="s", minimum=0),
        _text("error", "the error's class and what it says"),
    ),
    references={"run_id": "runs.run_id"},
)

ARTIFACTS = Table(
    "artifacts",
    "one file that a stage read or wrote, or one page about a run",
    ("stage_key", "role", "path"),
    (
        _text("stage_key", "the stage's output that it belongs to; of a page its run's id"),
        _text("stage", "the stage that read or wrote it; of a page `report`"),
        _text("made_by", "the run that read or wrote it first, or that the page is about"),
        _text("role", "input or output", allowed=("input", "output")),
        _text(
            "kind",
            "rows of a table, a file for trainers, a trained policy's folder, or a page",
            allowed=("part", "export", "model", "page"),
        ),
        _text("table", "of a part, the table of its rows", nullable=True),
        _text("path", "relative to the workspace"),
        _count("rows", "rows in it; of an export, pairs; null: it has none", "rows", nullable=True),
        _text(
            "sha256",
            "of the file's bytes; of a model its weights hash; null: drawn again at will",
            nullable=True,
        ),
        _time("removed_at", "when `gc` removed it or its texts; null: it is there", nullable=True),
    ),
)

EDGES = Table(
    "edges",
    "one thing that a stage made, with one thing that it made it from",
    ("stage_key", "from_name", "from_hash", "to_name"),
    (
        _text("stage_key", "the stage's output"),
        _text("stage", "the stage"),
        _text(
            "from_kind",
            "what it read; a file is one from elsewhere",
            allowed=("table", "export", "model", "file"),
        ),
        _text("from_name", "the table, or the file's or model's path; a model's hash if outside"),
        _text("from_hash", "of its content: see to_hash"),
        _text("from_stage_key", "the output that holds it; null: not made here", nullable=True),
        _text("to_kind", "what it made", allowed=("table", "export", "model")),
        _text("to_name", "the table, or the path relative to the workspace"),
        _text("to_hash", "SHA-256 of a file, weights hash of a model, over its parts' of a table"),
    ),
)

ERASURES = Table(
    "erasures",
    "one prompt that was erased on request, with all that was made of it",
    ("erasure_id",),
    (
        _text("erasure_id", "SHA-256 of the prompt's id"),
        _time("erased_at", "when it was done"),
        _text("erased_by", "the user who ran the command"),
        _text("reason", "as given with the command; empty: none"),
        _count("rows", "rows rewritten or removed", "rows"),
        _text("files", "files rewritten or removed, as a JSON list of paths"),
        _text(
            "trained_in",
            "rounds and trainings on files whose models were trained on it, as a JSON list of ids",
        ),
        _text("left_in", "files that still hold its words, as a JSON list of paths"),
    ),
)

ROW_TABLES: tuple[Table, ...] = (
    PROMPTS,
    DROPPED_PROMPTS,
    CANDIDATES,
    EDITS,
    JUDGMENTS,
    SCORES,
    SCORER_HEALTH,
    PAIRS,
    LABEL_NOISE,
    NOISE_RATES,
    DECISIONS,
    PAIR_SIGNATURES,
    DRIFT,
    PAIR_MEASURES,
    EXPORTS,
    EXPORT_ROWS,
    ROUNDS,
    TRAININGS,
    TRAINING_METRICS,
    EVALUATIONS,
    CAPABILITY_ITEMS,
    CAPABILITIES,
    GATES,
    VALIDATIONS,
)
"""Tables kept as part-files, one folder per stage output."""

RECORD_TABLES: tuple[Table, ...] = (
    RUNS,
    STAGE_RUNS,
    STAGE_OUTPUTS,
    STAGE_ERRORS,
    ARTIFACTS,
    EDGES,
    ERASURES,
)
"""Tables read from the JSON records of runs and stages."""

ALL_TABLES: dict[str, Table] = {t.name: t for t in (*ROW_TABLES, *RECORD_TABLES)}


def table(name: str) -> Table:
    """Return the table called ``name``.

    Raises:
        DataError: there is none; names the nearest.
    """
    if name not in ALL_TABLES:
        raise DataError(f"unknown table {name!r}{nearest(name, list(ALL_TABLES))}")
    return ALL_TABLES[name]
