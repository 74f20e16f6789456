"""How long the validation of 1M pairs takes, and how much memory; of 10M with --full.

Run from a clean checkout after `make test`: .venv/bin/python benchmarks/validation.py
The pairs lie in parts of 250,000 and refer to as many candidates and an eighth as many prompts. A
process of its own reads and measures them part by part, checks keys and references over all, and
has Great Expectations judge what was counted: what a stage does around its own work. Seconds are
without importing Great Expectations, which is named beside them; the peak is of everything.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import polars as pl

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.machine import last_line  # noqa: E402
from stages.tables import PAIRS  # noqa: E402

PART_ROWS = 250_000
AT_MOST = {"peak_gb_1m": 2.0, "peak_gb_10m": 2.0}


def main() -> None:
    """Measure the sizes and print a table and the JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true", help="also 10 million pairs")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        print(json.dumps(validate(asked.child)))
        return
    figures = {}
    print(f"{'pairs':>12} {'seconds':>8} {'CPU s':>8} {'import s':>9} {'peak GB':>8}")
    for name, rows in (("1m", 1_000_000), ("10m", 10_000_000))[: 1 + asked.full]:
        with tempfile.TemporaryDirectory() as folder:
            write_tables(Path(folder), rows)
            child = [sys.executable, __file__, "--child", folder]
            said = subprocess.run(child, capture_output=True, text=True, check=True).stdout
        found = json.loads(said)
        print(
            f"{rows:>12,} {found['seconds']:>8.2f} {found['cpu']:>8.2f} "
            f"{found['import']:>9.2f} {found['peak_gb']:>8.2f}"
        )
        figures |= {f"seconds_{name}": found["seconds"], f"peak_gb_{name}": found["peak_gb"]}
    print(last_line("validation", figures, at_most=AT_MOST))


def write_tables(folder: Path, rows: int) -> None:
    """Write pairs, and the ids of the candidates and prompts that they refer to."""
    for name in ("pairs", "candidates", "prompts"):
        (folder / name).mkdir()
    for part, start in enumerate(range(0, rows, PART_ROWS)):
        place = pl.int_range(start, min(start + PART_ROWS, rows), eager=True).alias("place")
        name = f"part-{part:05}.parquet"
        pairs_at(place, rows).write_parquet(folder / "pairs" / name)
        own = place.to_frame()
        own.select(candidate_id=content_id("candidate", pl.col("place"))).write_parquet(
            folder / "candidates" / name
        )
        own.filter(pl.col("place") % 8 == 0).select(
            prompt_id=content_id("prompt", pl.col("place") // 8)
        ).write_parquet(folder / "prompts" / name)


def pairs_at(places: pl.Series, rows: int) -> pl.DataFrame:
    """Return the pairs of these places among ``rows``: each of its candidate and the next."""
    place = pl.col("place")
    chosen, rejected = place * 7919 % 1000 / 100 + 1, place * 104_729 % 900 / 1000
    known = {
        "pair_id": content_id("pair", place),
        "prompt_id": content_id("prompt", place // 8),
        "chosen_candidate_id": content_id("candidate", place),
        "rejected_candidate_id": content_id("candidate", (place + 1) % rows),
        "strategy": pl.lit("all_pairs"),
        "scorer": pl.lit("quality"),
        "chosen_score": chosen,
        "rejected_score": rejected,
        "margin": chosen - rejected,
        "chosen_tokens": place % 200,
        "rejected_tokens": place % 150,
    }
    return places.to_frame().select(**known).select(PAIRS.column_names)


def content_id(kind: str, place: pl.Expr) -> pl.Expr:
    """Return ids as long as those of content hashes."""
    return pl.lit(f"{kind}_") + place.hash(seed=7).cast(pl.String).str.zfill(20)


def validate(folder: Path) -> dict[str, float]:
    """Validate the pairs in ``folder`` and return what that took."""
    started = time.perf_counter()
    import great_expectations  # noqa: F401

    from validators import added, judge, measure_rows, measure_table, require_valid

    imported, cpu = time.perf_counter(), time.process_time()
    paths = {name: sorted((folder / name).iterdir()) for name in ("pairs", "candidates", "prompts")}
    measured = added(measure_rows(PAIRS, pl.read_parquet(path)) for path in paths["pairs"])
    verdicts = judge(PAIRS, [*measured, *measure_table(PAIRS, paths["pairs"], paths)])
    require_valid([verdicts], "benchmark")
    return {
        "seconds": time.perf_counter() - imported,
        "cpu": time.process_time() - cpu,
        "import": imported - started,
        "peak_gb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


if __name__ == "__main__":
    main()
