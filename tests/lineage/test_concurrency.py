"""The benchmark's crowd, smaller: six processes run, four read in a loop and one never closes."""

import importlib.util
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "lineage.py"


@pytest.mark.slow
def test_nobody_is_in_anyones_way():
    spec = importlib.util.spec_from_file_location("benchmark_lineage", BENCHMARK)
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    assert benchmark.crowded(runs_each=1) == {"lost_rows": 0, "failed_reads": 0, "failed_runs": 0}
