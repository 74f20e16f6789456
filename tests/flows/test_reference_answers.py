"""Reference answers become candidates where pairing is about them."""

from __future__ import annotations

import json

import polars as pl
import pytest

from flows.curation import generate_candidates, generation_spec
from flows.models import find_policy
from flows.sampling import sample_prompts
from flows.stage_runner import RunContext
from lineage.workspace import Workspace
from stages.errors import DataError
from stages.generation import count_parts
from stages.pairing import PairingConfig
from tests.flows.test_answering import Fake, Scripted, config_of

REFERENCES = [f"It is {n}." if n % 3 else None for n in range(12)]


def asked(tmp_path, references):
    """Return the run, its configuration and its prompts, which come from a file."""
    rows = [{"prompt": f"Say {n}", "answer": text} for n, text in enumerate(references)]
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = {"kind": "file", "name": "people", "path": str(path), "reference_column": "answer"}
    config = config_of({"sources": [source]})
    config = config.model_copy(update={"pairing": PairingConfig(strategy="reference_over_sampled")})
    context = RunContext(Workspace(tmp_path / "w"), "run")
    return context, config, sample_prompts(context, config)


def fakes():
    made = [Fake(Scripted(), name) for name in ("one", "two")]
    for fake in made:
        fake.policy = find_policy("bundled")
    return made


def test_each_reference_is_a_candidate_and_parts_share_no_more_prompts(tmp_path, monkeypatch):
    monkeypatch.setattr("flows.curation.require_usable", lambda *_: None)
    context, config, prompts = asked(tmp_path, REFERENCES)
    candidates = generate_candidates(context, config, fakes(), prompts)
    made = candidates.read(context.workspace)
    references = made.filter(weights_hash="reference")
    assert sorted(references["completion"]) == sorted(filter(None, REFERENCES))
    assert references["completion_tokens"].min() > 3
    of_parts = [
        set(pl.read_parquet(context.workspace.root / part.path)["prompt_id"])
        for part in candidates.parts
    ]
    parts = count_parts(prompts.read(context.workspace), config.generation)
    first, second, rest = of_parts[:parts], of_parts[parts : 2 * parts], of_parts[2 * parts :]
    assert first == second
    assert len(first) > 1
    assert all(any(ids <= of_part for of_part in first) for ids in rest)


def test_other_strategies_have_other_candidates(tmp_path):
    _, config, prompts = asked(tmp_path, REFERENCES)
    plain = config.model_copy(update={"pairing": PairingConfig()})
    keys = {generation_spec(each, fakes(), prompts).key for each in (config, plain)}
    assert len(keys) == 2


def test_without_any_reference_nothing_is_asked(tmp_path):
    context, config, prompts = asked(tmp_path, [None] * 12)
    generators = fakes()
    with pytest.raises(DataError, match="none of 12 prompts has a reference answer"):
        generate_candidates(context, config, generators, prompts)
    assert generators[0].scripted.asked == []
