"""A small workspace with two runs, made through the store's own writers.

`refresh_a`: 3 train prompts and 1 held-out one, 2 candidates each (8), 9 judgments, 7 scored,
3 pairs (2 train, 1 held-out) of which 1 is kept and exported; 2 filters.
`dpo_b`: shares everything up to the pairs with `refresh_a`, filters otherwise (keeps all 3),
trains one round on its own export and evaluates.
"""

import json
from dataclasses import replace

import polars as pl
import pyarrow as pa

from lineage.records import RunRecord, StageRunRecord, write_run, write_stage_run
from lineage.workspace import Dataset, StageRecord, write_part, write_stage_record
from stages.tables import table

NASTY = "[red]bold[/red] \x1b[31mred\x1b[0m \u202eevil\r2"

RUN_A = RunRecord(
    run_id="refresh_a1",
    flow="refresh",
    name="small",
    round_index=0,
    config={"seed": 1, "name": "it's"},
    code_version="0.1.0",
    status="completed",
    started_at="2026-11-01T10:00:00+00:00",
    ended_at="2026-11-01T10:05:00+00:00",
)
RUN_B = replace(
    RUN_A,
    run_id="dpo_round_b2",
    flow="dpo_round",
    name="small round",
    round_index=1,
    started_at="2026-11-02T10:00:00.5Z",
    ended_at=None,
    status="failed",
)


def frame(name, *rows):
    """Rows of a table: tuples in column order."""
    schema = table(name)
    columns = {c: [row[i] for row in rows] for i, c in enumerate(schema.column_names)}
    return pl.from_arrow(pa.table(columns, schema=schema.arrow_schema))


def candidate(name, prompt, index, completion, tokens, weights="w0"):
    return (
        f"candidate_{name}", f"prompt_{prompt}", index, "policy", "g0", "tiny", weights, 1.0, 1.0,
        32, None, 7, completion, "stop", None, 5, tokens, -1.5, None, None, "t0",
    )  # fmt: skip


def judgment(name, candidate_name, score, raw):
    error = None if score is not None else raw
    return (
        f"judgment_{name}", f"candidate_{candidate_name}", None, None, "rule", "1", None, None,
        score, error, None, raw, None, None, None, None,
    )  # fmt: skip


def score(candidate_name, prompt, value, count=1):
    missing = 0.0 if value is not None else 1.0
    return (f"candidate_{candidate_name}", f"prompt_{prompt}", "rule", value, None, count, missing)


def pair(name, prompt, chosen, rejected, *, scores, lengths):
    return (
        f"pair_{name}", f"prompt_{prompt}", f"candidate_{chosen}", f"candidate_{rejected}",
        "best_vs_worst", "rule", *scores, scores[0] - scores[1], *lengths,
    )  # fmt: skip


def prompt(name, split, text, stratum="add"):
    return (f"prompt_{name}", [{"role": "user", "content": text}], "bundled", stratum, split,
            "rule", "{}", None, None)  # fmt: skip


SAID = [{"role": "user", "content": "6*7?"}]
PROMPTS = frame(
    "prompts",
    prompt("p1", "train", "1+1?"),
    prompt("p2", "train", "2+2?"),
    prompt("p3", "train", "3+3?", "sub"),
    prompt("h1", "heldout", "9+9?"),
)
DROPPED_PROMPTS = frame(
    "dropped_prompts",
    ("prompt_d1", SAID, "web", "near_duplicate", "prompt_p1", None, None),
    ("prompt_d2", SAID, "web", "near_duplicate", "prompt_p2", None, None),
    ("prompt_d3", SAID, "web", "contaminated", None, "school", "6 7"),
)
CANDIDATES = frame(
    "candidates",
    candidate("p1a", "p1", 0, NASTY, 4),
    candidate("p1b", "p1", 1, "3", 6),
    candidate("p2a", "p2", 0, "4", 2),
    candidate("p2b", "p2", 1, "5", 2),
    candidate("p3a", "p3", 0, "6", 2),
    candidate("p3b", "p3", 1, "?", 2),
    candidate("h1a", "h1", 0, "18", 3),
    candidate("h1b", "h1", 1, "19", 9),
)
JUDGMENTS = frame(
    "judgments",
    judgment("1", "p1a", 1.0, "right"),
    judgment("2", "p1a", 1.0, "right \x1b]0;owned\x07again"),
    judgment("3", "p1b", 0.0, "wrong"),
    judgment("4", "p2a", 1.0, "right"),
    judgment("5", "p2b", 0.75, "near"),
    judgment("6", "p3a", 1.0, "right"),
    judgment("7", "p3b", None, "cannot read it"),
    judgment("8", "h1a", 1.0, "right"),
    judgment("9", "h1b", 0.5, "half"),
)
SCORES = frame(
    "scores",
    score("p1a", "p1", 1.0, 2),
    score("p1b", "p1", 0.0),
    score("p2a", "p2", 1.0),
    score("p2b", "p2", 0.75),
    score("p3a", "p3", 1.0),
    score("p3b", "p3", None),
    score("h1a", "h1", 1.0),
    score("h1b", "h1", 0.5),
)
PAIRS = frame(
    "pairs",
    pair("11", "p1", "p1a", "p1b", scores=(1.0, 0.0), lengths=(4, 6)),
    pair("22", "p2", "p2a", "p2b", scores=(1.0, 0.75), lengths=(2, 2)),
    pair("33", "h1", "h1a", "h1b", scores=(1.0, 0.5), lengths=(3, 9)),
)
# pair_22 is dropped by both filters, listed with the later one first; pair_33 by the second only.
DECISIONS_A = frame(
    "decisions",
    ("pair_22", "length_ratio", 1, False, "length_ratio_above_maximum", 1.0, 0.9),
    ("pair_22", "margin", 0, False, "margin_below_minimum", 0.25, 0.4),
    ("pair_11", "margin", 0, True, None, 1.0, 0.4),
    ("pair_11", "length_ratio", 1, True, None, 0.6, 0.9),
    ("pair_33", "margin", 0, True, None, 0.5, 0.4),
    ("pair_33", "length_ratio", 1, False, "length_ratio_above_maximum", 3.0, 0.9),
)
DECISIONS_B = frame(
    "decisions",
    *(
        (f"pair_{n}", "margin", 0, True, None, m, 0.1)
        for n, m in (("11", 1), ("22", 0.25), ("33", 0.5))
    ),
)
VALIDATIONS = frame(
    "validations",
    ("pairs", "expect_column_values_to_be_unique", "pair_id", "must", True, 3, 0, "[]"),
)


def write_stage(workspace, stage, key, outputs, inputs=(), run=RUN_A, *, gpus=0):
    """Commit one stage output; ``outputs`` are frames, or lists of frames for several parts."""
    datasets = []
    for name, frames in outputs.items():
        listed = frames if isinstance(frames, list) else [frames]
        parts = tuple(
            write_part(workspace, table(name), key, i, part, {"run": run.run_id, "stage": stage})
            for i, part in enumerate(listed)
        )
        datasets.append(Dataset(name, key, parts))
    record = StageRecord(
        stage=stage, stage_key=key, made_by=run.run_id, config={}, inputs=tuple(inputs),
        outputs=tuple(datasets), started_at=run.started_at, ended_at=run.started_at, seconds=1.0,
        gpus=gpus,
    )  # fmt: skip
    write_stage_record(workspace, record)
    return datasets


def write_stages_of_run(workspace, run, stages, made_here=()):
    """Commit the run's stage records; ``stages`` maps names to keys, in order."""
    for position, (stage, key) in enumerate(stages.items()):
        status = "made" if stage in made_here or run is RUN_A else "reused"
        write_stage_run(
            workspace,
            StageRunRecord(run.run_id, stage, position, key, status, run.run_id, 1.5,
                           "2026-11-01T10:01:00+00:00"),
        )  # fmt: skip


SHARED = {"prompts": "k0", "generate": "k1", "judge:rule": "j1", "score": "k2", "pair": "k3"}


def write_run_a(workspace):
    write_run(workspace, RUN_A)
    prompts = write_stage(
        workspace,
        "prompts",
        "k0",
        {"prompts": PROMPTS, "dropped_prompts": DROPPED_PROMPTS, "validations": VALIDATIONS},
    )
    made = write_stage(
        workspace, "generate", "k1", {"candidates": [CANDIDATES[:5], CANDIDATES[5:]]}, prompts[:1]
    )
    judged = write_stage(workspace, "judge", "j1", {"judgments": JUDGMENTS}, made)
    scored = write_stage(workspace, "score", "k2", {"scores": SCORES}, [*made, *judged])
    paired = write_stage(workspace, "pair", "k3", {"pairs": PAIRS}, scored)
    write_stage(workspace, "filter", "k4", {"decisions": DECISIONS_A}, paired)
    write_export(workspace, "k5", "a", {"pair_11": 1}, RUN_A)
    write_stages_of_run(workspace, RUN_A, {**SHARED, "filter": "k4", "export": "k5"})


def write_export(workspace, key, name, lines, run):
    path = workspace.exports / key / "train.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps({"pair_id": p, "prompt": "x"}) + "\n" for p in lines))
    exports = frame(
        "exports",
        (f"export_{name}", "trl_jsonl", "train", workspace.relative(path), len(lines), "00"),
    )
    rows = frame("export_rows", *((f"export_{name}", p, line) for p, line in lines.items()))
    write_stage(workspace, "export", key, {"exports": exports, "export_rows": rows}, run=run)


def evaluation(metric, decoding, stratum, before, after, interval):
    return ("round_r1", metric, decoding, stratum, 1, before, after, after - before, *interval)


def write_run_b(workspace):
    write_run(workspace, RUN_B)
    write_stage(workspace, "filter", "k6", {"decisions": DECISIONS_B}, run=RUN_B)
    write_export(workspace, "k7", "b", {"pair_11": 1, "pair_22": 2}, RUN_B)
    metrics = frame("training_metrics", ("round_r1", 1, "loss", 0.69), ("round_r1", 2, "loss", 0.5))
    write_stage(workspace, "train", "k8", {"training_metrics": metrics}, run=RUN_B)
    sampled = {
        "candidates": frame("candidates", candidate("e1", "h1", 0, "18", 3, "w1")),
        "judgments": frame("judgments", judgment("10", "e1", 1.0, "right after training")),
        "scores": frame("scores", score("e1", "h1", 1.0)),
    }
    write_stage(workspace, "evaluate_after_sampled", "k9", sampled, run=RUN_B)
    gate = {
        "rounds": frame(
            "rounds",
            ("round_r1", 1, "export_b", "w0", "w0", "policy", "w1", "models/w1", 2, 4, True),
        ),
        "evaluations": frame(
            "evaluations",
            evaluation("success", "sampled", "all", 0.25, 0.5, (0.125, 0.375)),
            evaluation("success", "greedy", "all", 0.5, 0.75, (0.0, 0.5)),
            evaluation("success", "sampled", "add", 0.0, 1.0, (0.5, 1.0)),
            evaluation("score", "sampled", "all", 0.3, 0.6, (0.1, 0.4)),
        ),
        "gates": frame("gates", ("round_r1", "sampled_low", 0.125, 0.0, True)),
    }
    write_stage(workspace, "gate", "k10", gate, run=RUN_B)
    stages = {**SHARED, "filter": "k6", "export": "k7", "train": "k8",
              "evaluate_after_sampled": "k9", "gate": "k10"}  # fmt: skip
    write_stages_of_run(workspace, RUN_B, stages, ("filter", "export", "train", "gate"))


def write_unfinished_stage(workspace):
    """A part of a stage that was killed before it was finished."""
    write_part(workspace, table("pairs"), "k99", 0, PAIRS, {})


def write_small_workspace(workspace):
    workspace.require_writable()
    write_run_a(workspace)
    write_run_b(workspace)
    write_unfinished_stage(workspace)
