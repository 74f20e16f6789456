"""Runs of made-up rows, as large as asked for, written as the stages would write them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

sys.path.insert(0, str(Path(__file__).parent.parent))
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import numpy as np
    import polars as pl

    from lineage.workspace import Dataset, Part, Workspace

PAIRS_PER_PART, PAIRS_PER_PROMPT = 200_000, 2
SOURCES, STRATA = 4, 12
SHARE_HELDOUT, SHARE_DROPPED = 0.05, 0.15
EXPORT_ID, ROUND_ID = "export_" + "e" * 20, "round_" + "a" * 20
STAGES = {
    "prompts": "prompts",
    "generate": "candidates",
    "judge:rules": "judgments",
    "score": "scores",
    "pair": "pairs",
    "noise": "label_noise",
    "filter": "decisions",
    "export": "export_rows",
    "gate": "rounds",
}
"""A run's stages, each with the table it makes."""
FILTERS = ("margin", "length_ratio", "near_duplicate")


def write_run_of(
    workspace: Workspace, pairs: int, run_id: str, *, answers: bool = False
) -> dict[str, Dataset]:
    """Write a finished run as its stages would, and return its outputs by table."""
    from lineage.workspace import Dataset, write_part
    from stages.content_ids import content_hash
    from stages.tables import table

    parts: dict[str, list[Part]] = {}
    for index, frames in enumerate(synthetic_parts(pairs, answers=answers)):
        for name, frame in frames.items():
            key = content_hash([name, run_id])
            part = write_part(workspace, table(name), key, index, frame, {})
            parts.setdefault(name, []).append(part)
    outputs = {
        name: Dataset(name, content_hash([name, run_id]), tuple(of)) for name, of in parts.items()
    }
    record_run(workspace, run_id, outputs)
    return outputs


def record_run(workspace: Workspace, run_id: str, outputs: dict[str, Dataset]) -> None:
    """Write the records of a finished run; that of the run itself comes last."""
    from lineage.records import RunRecord, StageRunRecord, write_run, write_stage_run
    from lineage.workspace import StageRecord, write_stage_record

    now = "2026-01-01T00:00:00+00:00"
    made = {stage: outputs[name] for stage, name in STAGES.items() if name in outputs}
    for position, (stage, output) in enumerate(made.items()):
        key = output.stage_key
        record = StageRecord(stage, key, run_id, {}, (), (output,), now, now, 1.0)
        write_stage_record(workspace, record)
        stage_run = StageRunRecord(run_id, stage, position, key, "made", run_id, 1.0, now)
        write_stage_run(workspace, stage_run)
    config = {"pairing": {"strategy": "best_vs_worst"}}
    write_run(
        workspace,
        RunRecord(run_id, "refresh", "benchmark", 0, config, "0", "completed", now, now),
    )


def outputs_of(workspace: Workspace, run_id: str) -> dict[str, Dataset]:
    """Return the outputs of a run that an earlier benchmark wrote; nothing if it did not."""
    from lineage.records import read_run, read_stage_runs
    from lineage.workspace import read_stage_record

    if read_run(workspace, run_id) is None:
        return {}
    keys = [stage.stage_key for stage in read_stage_runs(workspace, run_id)]
    records = [record for key in keys if (record := read_stage_record(workspace, key))]
    return {output.table: output for record in records for output in record.outputs}


def synthetic_parts(pairs: int, *, answers: bool) -> Iterator[dict[str, pl.DataFrame]]:
    """Yield one part of each table at a time; the round comes with the first."""
    import numpy as np

    random = np.random.default_rng(pairs)
    for first in range(0, pairs, PAIRS_PER_PART):
        count = min(PAIRS_PER_PART, pairs - first)
        frames = synthetic_part(random, first, count)
        if answers:
            frames |= synthetic_answers(frames["pairs"])
        yield frames | ({"rounds": synthetic_round()} if first == 0 else {})


def synthetic_part(random: np.random.Generator, first: int, count: int) -> dict[str, pl.DataFrame]:
    """Return a shard's prompts, pairs, label noise, decisions and export rows."""
    import polars as pl

    asked = synthetic_prompts(random, -(-count // PAIRS_PER_PROMPT))
    scores = random.normal(0.0, 1.0, (2, count))
    paired = pl.DataFrame(
        {
            "pair_id": ids(random, "pair", count),
            "prompt_id": asked["prompt_id"].gather(
                pl.int_range(count, eager=True) // PAIRS_PER_PROMPT
            ),
            "chosen_candidate_id": ids(random, "candidate", count),
            "rejected_candidate_id": ids(random, "candidate", count),
            "strategy": pl.repeat("best_vs_worst", count, eager=True),
            "scorer": pl.repeat("rules", count, eager=True),
            "chosen_score": scores.max(0),
            "rejected_score": scores.min(0),
            "margin": scores.max(0) - scores.min(0),
            "chosen_tokens": random.integers(10, 300, count),
            "rejected_tokens": random.integers(10, 300, count),
        }
    )
    drops = pl.DataFrame(random.random((count, len(FILTERS))) < SHARE_DROPPED, schema=FILTERS)
    kept = paired.filter(~drops.select(pl.any_horizontal(pl.all())).to_series())
    noise = {
        "pair_id": paired["pair_id"],
        "probability_wrong": pl.Series(random.random(count)),
        "scorers_for": pl.lit(1),
        "scorers_against": pl.lit(0),
    }
    exported = {
        "export_id": pl.lit(EXPORT_ID),
        "pair_id": kept["pair_id"],
        "line": pl.int_range(first + 1, first + kept.height + 1),
    }
    return {
        "prompts": rows_of("prompts", asked),
        "pairs": rows_of("pairs", paired.sort("pair_id").to_dict()),
        "label_noise": rows_of("label_noise", noise),
        "decisions": synthetic_decisions(paired, drops),
        "export_rows": rows_of("export_rows", exported),
    }


def synthetic_prompts(random: np.random.Generator, count: int) -> dict[str, Any]:
    """Return the columns of a shard's prompts."""
    import polars as pl

    source, stratum = (pl.Series(random.integers(0, n, count)) for n in (SOURCES, STRATA))
    heldout = pl.Series(random.random(count) < SHARE_HELDOUT)
    number = pl.int_range(count).cast(pl.String)
    turn = pl.struct(role=pl.lit("user"), content=pl.format("What is {} plus {}?", number, number))
    return {
        "prompt_id": ids(random, "prompt", count),
        "messages": pl.concat_list(turn),
        "source": pl.format("source {}", pl.lit(source)),
        "stratum": pl.format("stratum {}", pl.lit(stratum)),
        "split": pl.when(pl.lit(heldout)).then(pl.lit("heldout")).otherwise(pl.lit("train")),
    }


def synthetic_decisions(pairs: pl.DataFrame, drops: pl.DataFrame) -> pl.DataFrame:
    """Return every filter's ruling on every pair; ``drops`` has a column a filter."""
    import polars as pl

    ruled = [
        {
            "pair_id": pairs["pair_id"],
            "filter": pl.lit(name),
            "position": pl.lit(position),
            "kept": ~drops[name],
            "reason": pl.when(drops[name]).then(pl.lit(f"{name}_out_of_limits")),
            "value": pairs["margin"],
            "limit": pl.lit(0.1),
        }
        for position, name in enumerate(FILTERS)
    ]
    return pl.concat(rows_of("decisions", columns) for columns in ruled)


def synthetic_answers(pairs: pl.DataFrame) -> dict[str, pl.DataFrame]:
    """Return the candidates of a shard's pairs with a verdict and a score each."""
    import polars as pl

    sides = [
        pairs.select(
            "prompt_id",
            candidate_id=f"{side}_candidate_id",
            completion_tokens=f"{side}_tokens",
            score=f"{side}_score",
        )
        for side in ("chosen", "rejected")
    ]
    answers = pl.concat(sides).sort("prompt_id")
    judgment = pl.format("judgment_{}", answers["candidate_id"].str.slice(10))
    made = {
        **answers.drop("score").to_dict(),
        "completion": pl.format("The answer is {}.", answers["candidate_id"].str.slice(10, 6)),
        **{name: pl.lit("g") for name in ("generator", "generator_hash", "model", "weights_hash")},
        **{name: pl.lit(1) for name in ("sample_index", "temperature", "top_p", "seed")},
        "max_completion_tokens": pl.lit(300),
        "finish_reason": pl.lit("stop"),
        "template_fingerprint": pl.lit("t"),
    }
    judged = {
        **answers.select("candidate_id", "score").to_dict(),
        "judgment_id": judgment,
        "scorer": pl.lit("rules"),
        "scorer_version": pl.lit("1"),
        "raw": pl.format("reward {}", answers["score"].round(3)),
    }
    scored = {
        **answers.select("candidate_id", "prompt_id", "score").to_dict(),
        "scorer": pl.lit("rules"),
        "judgments": pl.lit(1),
        "missing_share": pl.lit(0.0),
    }
    return {
        "candidates": rows_of("candidates", made),
        "judgments": rows_of("judgments", judged),
        "scores": rows_of("scores", scored),
    }


def synthetic_round() -> pl.DataFrame:
    """Return the round that trained on the export."""
    import polars as pl

    weights = ("base_weights_hash", "reference_weights_hash", "result_weights_hash")
    facts = {
        "round_id": pl.Series([ROUND_ID]), "round_index": pl.lit(1), "export_id": pl.lit(EXPORT_ID),
        **{name: pl.lit("w") for name in weights}, "reference": pl.lit("policy"),
        "result_path": pl.lit("models/m"),
        "pairs": pl.lit(1), "steps": pl.lit(1), "promoted": pl.lit(value=True),
    }  # fmt: skip
    return rows_of("rounds", facts)


def rows_of(name: str, columns: Mapping[str, Any]) -> pl.DataFrame:
    """Return rows of a table; columns that are not given are null."""
    import polars as pl

    from stages.tables import table

    schema = table(name).empty().schema
    missing = {column: pl.lit(None) for column in schema if column not in columns}
    given = pl.DataFrame({n: v for n, v in columns.items() if isinstance(v, pl.Series)})
    return given.with_columns(**{**columns, **missing}).select(list(schema)).cast(dict(schema))


def ids(random: np.random.Generator, kind: str, count: int) -> pl.Series:
    """Return ids as content gives them: a kind and 20 hex digits."""
    import polars as pl

    digits = random.bytes(10 * count).hex()
    return pl.Series([f"{kind}_{digits[n : n + 20]}" for n in range(0, 20 * count, 20)])
