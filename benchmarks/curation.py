"""Curation from scores to exports against the floor of reading and writing.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/curation.py
The floor is Polars reading the same part-files and writing the same rows to the same formats.
Sizes are 100k and 1M candidates, eight a prompt, about 450 characters each; with --full also 10M
candidates (20 minutes, 15 GB of disk). Against distilabel 1.5.3 on 100k candidates, with --full
also on 1M: combining, formatting for DPO and MinHash deduplication.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from machine import last_line
from peers import install_distilabel

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
if TYPE_CHECKING:
    import polars as pl

    from flows.configuration import PipelineConfig
    from flows.stage_runner import RunContext
    from lineage.workspace import Dataset, Workspace

GOALS_AT_MOST = {"ratio_to_floor": 3.0, "peak_gb": 2.0, "time_10x": 11.0, "memory_10x": 1.5}
GOALS_AT_LEAST = {"speedup_over_distilabel": 20.0}
SAMPLES = 8
PROMPTS_PER_PART = 512
SENTENCES, SENTENCES_PER_TEXT = 50_000, 8
SHARE_REPEATED, SHARE_CUT = 0.02, 0.02
SMALL, LARGE, HUGE = 100_000, 1_000_000, 10_000_000


def main() -> None:
    """Measure, print a table and the line of JSON."""
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--full", action="store_true", help="also 10M candidates")
    arguments.add_argument("--repeats", type=int, default=3)
    arguments.add_argument("--plot", type=Path, help="write time against size as an SVG here")
    arguments.add_argument("--job", choices=("input", "curate", "floor"), help=argparse.SUPPRESS)
    arguments.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments.add_argument("--candidates", type=int, default=LARGE, help=argparse.SUPPRESS)
    asked = arguments.parse_args()
    if asked.job:
        run_job(asked.job, asked.folder, asked.candidates)
        return
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        sizes = [SMALL, LARGE, *([HUGE] if asked.full else [])]
        measured = {size: compare(Path(folder), size, asked.repeats) for size in sizes}
        large = measured[LARGE]
        figures["ratio_to_floor"] = large["ratio"]
        figures["peak_gb"] = large["peak_gb"]
        if asked.full:
            figures["time_10x"] = measured[HUGE]["seconds"] / large["seconds"]
            figures["memory_10x"] = measured[HUGE]["peak_gb"] / large["peak_gb"]
        if asked.plot:
            plot(measured, asked.plot)
        for size in sizes[: 2 if asked.full else 1]:
            peer = distilabel_seconds(Path(folder) / str(size))
            speedup = peer / measured[size]["seconds"]
            name = "speedup_over_distilabel" + ("" if size == SMALL else "_1m")
            figures[name] = speedup
            print(f"distilabel, {size:,} candidates: {peer:.1f} s, {speedup:.1f} times as long")
    print(last_line("curation", figures, at_most=GOALS_AT_MOST, at_least=GOALS_AT_LEAST))


def plot(measured: dict[int, dict[str, float]], path: Path) -> None:
    """Write seconds against candidates, both logarithmic, for curation and floor."""
    import altair as alt
    import polars as pl

    rows = pl.DataFrame(
        [
            {"candidates": size, "seconds": figures[key], "what": what}
            for size, figures in measured.items()
            for key, what in (("seconds", "prefmill"), ("floor", "read and write only"))
        ]
    )
    chart = alt.Chart(rows).mark_line(point=True).encode(
        alt.X("candidates:Q", title="candidates").scale(type="log"),
        alt.Y("seconds:Q", title="seconds").scale(type="log"),
        alt.Color("what:N", title=None),
    )  # fmt: skip
    chart.properties(width=480, height=280, background="white").save(path)


def compare(folder: Path, candidates: int, repeats: int) -> dict[str, float]:
    """Return medians over interleaved runs of curation and floor, each in its own process."""
    of_size = folder / str(candidates)
    start_job("input", of_size, candidates)
    repeats = repeats if candidates <= LARGE else 1
    curated, floors = [], []
    for _ in range(repeats):
        curated.append(start_job("curate", of_size, candidates))
        floors.append(start_job("floor", of_size, candidates))
    ratios = [c["seconds"] / f["seconds"] for c, f in zip(curated, floors, strict=True)]
    result = {
        "seconds": statistics.median(c["seconds"] for c in curated),
        "cpu_seconds": statistics.median(c["cpu_seconds"] for c in curated),
        "floor": statistics.median(f["seconds"] for f in floors),
        "ratio": statistics.median(ratios),
        "peak_gb": max(c["peak_gb"] for c in curated),
    }
    last = curated[-1]
    stages = ", ".join(f"{name} {seconds:.1f}" for name, seconds in last["stages"].items())
    print(
        f"{candidates:>12,} candidates: {result['seconds']:.2f} s ({result['cpu_seconds']:.2f} s "
        f"CPU; {stages}), floor {result['floor']:.2f} s, ratio {result['ratio']:.2f} "
        f"({min(ratios):.2f} to {max(ratios):.2f}), peak {result['peak_gb']:.2f} GB, "
        f"{last['pairs']:,} pairs, {last['kept']:,} kept",
        flush=True,
    )
    return result


def start_job(job: str, folder: Path, candidates: int) -> dict[str, Any]:
    """Return what a job in a process of its own says on its last line."""
    command = [sys.executable, __file__, "--job", job, "--folder", str(folder)]
    done = subprocess.run(
        [*command, "--candidates", str(candidates)], check=True, capture_output=True, text=True
    )
    return json.loads(done.stdout.strip().splitlines()[-1])


def run_job(job: str, folder: Path, candidates: int) -> None:
    """Run one job and print its figures."""
    said: dict[str, Any] = {}
    if job == "input":
        make_input(folder, candidates)
    else:
        prepared = prepare(folder) if job == "floor" else None
        warm_up()
        wall, cpu = time.monotonic(), time.process_time()
        said = curate(folder) if prepared is None else floor(folder, prepared)
        said["seconds"] = time.monotonic() - wall - said.pop("aside", 0.0)
        said["cpu_seconds"] = time.process_time() - cpu
    said["peak_gb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(json.dumps(said))


def make_input(folder: Path, candidates: int) -> None:
    """Write prompts, candidates and scores as a run's stages would, and where they are."""
    import dataclasses

    import numpy as np
    import polars as pl

    from flows.shards import shards
    from lineage.workspace import Dataset, Workspace, write_part
    from stages.tables import CANDIDATES, PROMPTS, SCORES

    workspace = Workspace(folder)
    random = np.random.default_rng(0)
    sentences = make_sentences(random)
    of_prompts, of_candidates = [], []
    count = candidates // SAMPLES
    for index, first in enumerate(range(0, count, PROMPTS_PER_PART)):
        rows = min(PROMPTS_PER_PART, count - first)
        prompts = make_prompts(random, sentences, first, rows)
        of_prompts.append(prompts)
        answers = make_candidates(random, sentences, prompts)
        of_candidates.append(write_part(workspace, CANDIDATES, "input", index, answers, {}))
    whole = write_part(workspace, PROMPTS, "input", 0, pl.concat(of_prompts), {})
    datasets = {
        "prompts": Dataset("prompts", "input", (whole,)),
        "candidates": Dataset("candidates", "input", tuple(of_candidates)),
    }
    of_scores = []
    for shard in shards(workspace, datasets["candidates"]):
        facts = shard.read(["candidate_id", "prompt_id"])
        scores = make_scores(random, facts)
        of_scores.append(write_part(workspace, SCORES, "input", shard.index, scores, {}))
    datasets["scores"] = Dataset("scores", "input", tuple(of_scores))
    plain = {name: dataclasses.asdict(dataset) for name, dataset in datasets.items()}
    (folder / "input.json").write_text(json.dumps(plain))


def make_sentences(random: Any) -> pl.Series:
    """Return sentences of about 56 characters."""
    import polars as pl

    syllables = ["ka", "lo", "mi", "ner", "tu", "sal", "ven", "or", "pi", "da", "rem", "sto"]
    words = ["".join(random.choice(syllables, random.integers(1, 5))) for _ in range(20_000)]
    drawn = random.choice(words, (SENTENCES, 9))
    return pl.Series([" ".join(row) + ". " for row in drawn])


def make_texts(random: Any, sentences: pl.Series, rows: int, per_text: int) -> pl.Series:
    """Return texts of so many sentences each."""
    import polars as pl

    drawn = random.integers(0, len(sentences), (rows, per_text))
    columns = [sentences.gather(drawn[:, place]).alias(str(place)) for place in range(per_text)]
    return pl.DataFrame(columns).select(pl.concat_str(pl.all())).to_series().str.strip_chars()


def make_prompts(random: Any, sentences: pl.Series, first: int, rows: int) -> pl.DataFrame:
    """Return rows of the `prompts` table."""
    import polars as pl

    from stages.tables import PROMPTS

    texts = pl.DataFrame({"text": make_texts(random, sentences, rows, 3)})
    number = pl.int_range(first, first + rows).cast(pl.String).str.zfill(20)
    heldout = pl.int_range(pl.len()) % 20 == 0
    known = {
        "prompt_id": pl.format("prompt_{}", number),
        "messages": pl.concat_list(pl.struct(role=pl.lit("user"), content="text")),
        "source": pl.lit("synthetic"),
        "stratum": pl.lit("all"),
        "split": pl.when(heldout).then(pl.lit("heldout")).otherwise(pl.lit("train")),
    }
    filled = texts.with_columns(**{name: pl.lit(None) for name in PROMPTS.column_names} | known)
    return filled.select(PROMPTS.column_names).cast(PROMPTS.empty().schema)


def make_candidates(random: Any, sentences: pl.Series, prompts: pl.DataFrame) -> pl.DataFrame:
    """Return eight candidates a prompt."""
    import polars as pl

    from stages.content_ids import content_ids
    from stages.tables import CANDIDATES

    ids = prompts["prompt_id"].gather([i for i in range(prompts.height) for _ in range(SAMPLES)])
    rows = pl.DataFrame({"prompt_id": ids, "sample_index": list(range(SAMPLES)) * prompts.height})
    texts = make_texts(random, sentences, rows.height, SENTENCES_PER_TEXT)
    # One in fifty answers repeats another's text, as a policy's do.
    again = pl.Series(random.random(rows.height) < SHARE_REPEATED)
    texts = texts.shift(1, fill_value="").zip_with(again, texts)
    cut = pl.Series(random.random(rows.height) < SHARE_CUT)
    constants: dict[str, object] = {
        "generator": "policy", "generator_hash": "g" * 20, "model": "m", "weights_hash": "w" * 20,
        "temperature": 1.0, "top_p": 1.0, "max_completion_tokens": 512, "system_prompt": None,
        "seed": 0, "error": None, "prompt_tokens": 40, "logprob_sum": -80.0,
        "latency_seconds": 0.5, "cost": None, "template_fingerprint": "t" * 20,
    }  # fmt: skip
    rows = rows.with_columns(
        completion=texts,
        finish_reason=pl.when(cut).then(pl.lit("length")).otherwise(pl.lit("stop")),
        completion_tokens=pl.Series(random.integers(60, 200, rows.height)),
        **{name: pl.lit(value) for name, value in constants.items()},
    )
    identity = ["prompt_id", "sample_index", "completion"]
    rows = rows.with_columns(content_ids(rows, "candidate", identity))
    return rows.select(CANDIDATES.column_names).cast(CANDIDATES.empty().schema)


def make_scores(random: Any, candidates: pl.DataFrame) -> pl.DataFrame:
    """Return a score of one scorer for each candidate."""
    import polars as pl

    from stages.tables import SCORES

    rows = candidates.with_columns(
        scorer=pl.lit("rules"),
        score=pl.Series(random.normal(0.0, 1.0, candidates.height)),
        spread=pl.lit(None),
        judgments=pl.lit(1),
        missing_share=pl.lit(0.0),
    )
    return rows.select(SCORES.column_names).cast(SCORES.empty().schema)


def read_input(folder: Path) -> dict[str, Dataset]:
    """Return the datasets that `make_input` wrote."""
    from lineage.workspace import Dataset, Part

    plain = json.loads((folder / "input.json").read_text())
    return {
        name: Dataset(d["table"], d["stage_key"], tuple(Part(**part) for part in d["parts"]))
        for name, d in plain.items()
    }


def configuration() -> PipelineConfig:
    """Return the default configuration, near-duplicate pairs looked for as well."""
    from flows.configuration import PipelineConfig
    from stages.filter_settings import FilteringConfig, NearDuplicatePairsConfig

    filters = FilteringConfig(near_duplicates=NearDuplicatePairsConfig())
    return PipelineConfig(name="benchmark", filters=filters)


def context_in(folder: Path) -> tuple[RunContext, Workspace]:
    """Return a run in the benchmark's workspace, with the outputs of an earlier one removed."""
    import shutil

    from flows.stage_runner import RunContext
    from lineage.workspace import Workspace

    workspace = Workspace(folder)
    for name in (
        "pairs",
        "decisions",
        "pair_signatures",
        "export_rows",
        "exports",
        "stages",
        "validations",
    ):
        shutil.rmtree(workspace.store / name, ignore_errors=True)
    shutil.rmtree(workspace.exports, ignore_errors=True)
    return RunContext(workspace, "benchmark"), workspace


def warm_up() -> None:
    """Load what the stages load when they are first used; distilabel's start is apart as well."""
    import polars as pl
    import rapidfuzz.process  # noqa: F401
    import scipy.sparse.csgraph  # noqa: F401

    import flows.curation  # noqa: F401
    from stages.near_duplicates import NearDuplicateConfig, signatures
    from stages.tables import SCORES
    from validators import validate_part

    validate_part(SCORES, SCORES.empty())
    signatures(pl.Series(["a text"]), NearDuplicateConfig())


def curate(folder: Path) -> dict[str, Any]:
    """Run the stages from scores to exports as a run does, without Prefect around them."""
    from flows.curation import filter_pairs, pair_candidates
    from flows.exporting import export_pairs

    context, _ = context_in(folder)
    inputs, config = read_input(folder), configuration()
    prompts, candidates, scores = (inputs[n] for n in ("prompts", "candidates", "scores"))
    times = [time.monotonic()]
    pairs = pair_candidates.fn(context, config, candidates, scores, {})
    times.append(time.monotonic())
    decisions = filter_pairs.fn(context, config, pairs, candidates, (prompts, scores, None))
    times.append(time.monotonic())
    exports = export_pairs.fn(context, config, prompts, candidates, pairs, decisions)
    times.append(time.monotonic())
    seconds = [end - start for start, end in itertools.pairwise(times)]
    kept = exports.read(context.workspace)["rows"].sum() // len(config.export.formats)
    stages = dict(zip(("pair", "filter", "export"), seconds, strict=True))
    return {"pairs": pairs.rows, "kept": kept, "stages": stages}


def prepare(folder: Path) -> dict[str, list[Path]]:
    """Return the files that the curation before it read, and those that it wrote."""
    inputs = read_input(folder)
    read = [folder / part.path for dataset in inputs.values() for part in dataset.parts]
    store = folder / "store"
    tables = ("pairs", "decisions", "pair_signatures", "export_rows")
    written = [path for name in tables for path in sorted((store / name).rglob("*.parquet"))]
    exported = sorted((folder / "exports").rglob("*.*"))
    return {"read": read, "written": written, "exported": exported}


def floor(folder: Path, files: dict[str, list[Path]]) -> dict[str, Any]:
    """Read every input once and write the same rows once; only that is timed.

    What is to be written is read as well, which the time of doing so is taken off for.
    """
    import polars as pl

    target = folder / "floor"
    target.mkdir(exist_ok=True)
    for path in files["read"]:
        pl.read_parquet(path, hive_partitioning=False)
    aside = 0.0
    for number, path in enumerate([*files["written"], *files["exported"]]):
        started = time.monotonic()
        lines = path.suffix == ".jsonl"
        rows = pl.read_ndjson(path) if lines else pl.read_parquet(path, hive_partitioning=False)
        aside += time.monotonic() - started
        if lines:
            rows.write_ndjson(target / f"{number}.jsonl")
        else:
            rows.write_parquet(target / f"{number}.parquet", compression="zstd")
    return {"aside": aside}


def distilabel_seconds(folder: Path) -> float:
    """Return the seconds of distilabel's steps on the same candidates."""
    script = Path(__file__).with_name("distilabel_curation.py")
    command = [str(install_distilabel()), str(script), str(folder)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return float(json.loads(done.stdout.strip().splitlines()[-1])["seconds"])


if __name__ == "__main__":
    main()
