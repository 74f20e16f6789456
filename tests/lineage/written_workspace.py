"""Runs of the real stages on texts that are written here instead of generated.

Prompt i of 6 is "ANIMAL i walks ..." and has the candidates `good` and `bad`; every pair is
kept and exported in every format. Candidates lie in two parts; a shard has 4 of them.
"""

import json
from dataclasses import replace

import polars as pl
import yaml

from flows.configuration import resolve
from flows.curation import choose_pairs, score_candidates
from flows.exporting import export_pairs, read_beside
from flows.prompt_choice import content_of
from flows.sampling import sample_prompts
from flows.stage_runner import RunContext, StageSpec, run_stage
from lineage.database import publish
from lineage.records import RunRecord, write_run
from stages.export_formats import FORMATS
from stages.tables import CANDIDATES, JUDGMENTS, ROUNDS
from tests.stages.rows import table_of
from tests.validators.good_rows import good_rows

PROMPTS = 6


def said(animal, number, how):
    """A completion: unlike every other, and with characters that files escape."""
    return f'The {how} answer <b>{number}</b> on a "{animal}":\nit is wälking on & on.'


def asked(animal, number):
    return f'{animal} {number} walks to the "river" & asks:\nwhich way are the wëlls?'


def small_shards(monkeypatch):
    monkeypatch.setattr("flows.shards.CANDIDATES_JUDGED_TOGETHER", 4)
    monkeypatch.setattr("flows.shards.CANDIDATES_PER_SHARD", 4)


def source(folder, animal):
    path = folder / f"{animal}.jsonl"
    lines = [json.dumps({"prompt": asked(animal, n)}) + "\n" for n in range(PROMPTS)]
    path.write_text("".join(lines))
    return path


def config_of(folder, animal, **sections):
    where = {"kind": "file", "name": "mine", "path": str(source(folder, animal))}
    unpaired = {"desirable_minimum_score": 0.5, "undesirable_maximum_score": 0.4}
    values = {
        "name": "written",
        "prompts": {"sources": [{**where, "heldout_share": 0}]},
        "filters": {},
        "export": {"formats": list(FORMATS), "unpaired": unpaired},
        **sections,
    }
    return resolve(values, "here")


def start(workspace, config, run_id, day):
    record = RunRecord(
        run_id, "refresh", config.name, 0, config.model_dump(mode="json"), "1", "running",
        f"2026-11-{day:02d}T10:00:00+00:00",
    )  # fmt: skip
    write_run(workspace, record)
    text = yaml.safe_dump(record.config, sort_keys=False, allow_unicode=True)
    (workspace.runs / run_id / "config.yaml").write_text(text)
    return record


def generate(context, prompts, animal):
    spec = StageSpec("generate", 1, {"animal": animal}, (prompts,), ("candidates",))

    def make(writer):
        rows = writer.read(prompts).select("prompt_id", "messages").rows()
        texts = [(i, messages[0]["content"]) for i, messages in rows]
        made = [
            {"candidate_id": f"candidate_{how}_{i[7:]}", "prompt_id": i, "finish_reason": "stop",
             "completion": said(*text.split(" ")[:2], how)}
            for i, text in texts
            for how in ("good", "bad")
        ]  # fmt: skip
        for index, part in enumerate((made[:4], made[4:])):
            writer.write("candidates", table_of(CANDIDATES, part), index)

    return run_stage(context, "generate", spec, make).output("candidates")


def judge(context, candidates):
    spec = StageSpec("judge", 1, {}, (candidates,), ("judgments",))

    def make(writer):
        for index, group in enumerate(candidates.grouped(context.workspace, 4, "prompt_id")):
            rows = group.frame.collect().select("candidate_id", "completion").rows()
            writer.write("judgments", table_of(JUDGMENTS, [verdict(*row) for row in rows]), index)

    return run_stage(context, "judge:rules", spec, make).output("judgments")


def verdict(candidate, completion):
    score = 1.0 if "_good_" in candidate else 0.0
    score, error = (None, "no answer") if completion is None else (score, None)
    return {
        "judgment_id": f"judgment_{candidate}", "candidate_id": candidate, "scorer": "rules",
        "score": score, "error": error, "raw": f"I read: {completion}",
    }  # fmt: skip


def refresh(workspace, config, run_id, animal, day=1):
    """Run the stages up to the export, record the run and publish; return the exports."""
    record, context = start(workspace, config, run_id, day), RunContext(workspace, run_id)
    assert content_of(workspace, config)
    prompts = sample_prompts(context, config)
    candidates = generate(context, prompts, animal)
    judgments = {"rules": judge(context, candidates)}
    scores = score_candidates(context, config, candidates, judgments)
    scored = (prompts, candidates, scores)
    pairs, noise, decisions = choose_pairs(context, config, scored, judgments)
    of_noise = noise.pairs if noise else None
    beside = read_beside(config.export, scores, None, of_noise)
    exports = export_pairs(context, config, prompts, candidates, pairs, decisions, *beside)
    write_run(workspace, replace(record, status="completed", ended_at=record.started_at))
    publish(workspace)
    return exports


def train(workspace, run_id, exports):
    """Record a round that trained on the run's export; its model's folder is written."""
    context = RunContext(workspace, run_id)
    spec = StageSpec("train", 1, {}, (exports,), ("training_metrics",))
    run_stage(context, "train", spec, lambda writer: writer.dataset("training_metrics"))
    round_id = f"round_{spec.key}"
    (workspace.models / round_id).mkdir()
    (workspace.models / round_id / "model.safetensors").write_bytes(b"weights" * 100)
    export = exports.read(workspace).filter(format="trl_jsonl", split="train")
    row = {
        "round_id": round_id, "round_index": 1, "export_id": export["export_id"][0],
        "base_weights_hash": "w0", "reference_weights_hash": "w0", "promoted": False,
        "result_weights_hash": f"w-{spec.key}", "result_path": f"models/{round_id}",
    }  # fmt: skip
    gate = StageSpec("gate", 1, row, (exports,), ("rounds",))
    rows = good_rows(ROUNDS, 1).with_columns(pl.lit(value).alias(n) for n, value in row.items())
    rows = rows.with_columns(round_index=pl.lit(1, pl.Int64))
    run_stage(context, "gate", gate, lambda writer: writer.write("rounds", rows))
    publish(workspace)
    return round_id


def files_that_hold(workspace, texts):
    """Return every file below the workspace that holds one of the texts, tables decoded."""
    found = set()
    for path in workspace.root.rglob("*"):
        if not path.is_file():
            continue
        content = path.read_bytes().decode(errors="replace")
        if path.suffix == ".parquet":
            content = str(pl.read_parquet(path, hive_partitioning=False).to_dicts())
        escaped = [json.dumps(text)[1:-1] for text in texts] + [repr(text)[1:-1] for text in texts]
        if any(text in content for text in [*texts, *escaped]):
            found.add(workspace.relative(path))
    return found
