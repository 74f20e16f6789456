"""A whole refresh on real vLLM: generate, lose the server, judge on it, reward on another."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
import yaml

from flows.configuration import BUNDLED_MODEL
from lineage.query import query
from lineage.workspace import Workspace
from tests.vllm.conftest import EAGER

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

# The bundled model's 256 tokens don't hold a judge's prompt; its answers are no better for it.
SERVER = {
    "options": {
        **EAGER,
        "max_model_len": 4096,
        "hf_overrides": json.dumps({"max_position_embeddings": 4096}),
    }
}
RUBRIC = {
    "mode": "pointwise",
    "criteria": [{"name": "right", "description": "it is right", "weight": 1}],
    "scale": {"low": 1, "high": 5},
    "instructions": "Judge the response.",
    "template": "{conversation}\n{response}\n{criteria}\n{answer_format}\n",
}
"""Short: the shipped ones take over a thousand tokens of so small a vocabulary."""
CONFIG = {
    "name": "on-vllm",
    "prompts": {"sources": [{"kind": "bundled", "train": 64, "heldout": 5}]},
    "generation": {
        "generators": [
            {
                "engine": "vllm",
                "server": SERVER,
                "endpoint": {"maximum_in_flight": 2},
                "logprobs": True,
            }
        ],
        "samples_per_prompt": 8,
        "heldout_samples_per_prompt": 2,
        "max_completion_tokens": 48,
    },
    "scoring": {
        "scorers": [
            {
                "kind": "judge",
                "name": "judge",
                "engine": "vllm",
                "server": SERVER,
                "model": "bundled",
                "max_completion_tokens": 24,
            },
            {
                "kind": "reward_model",
                "name": "served",
                "engine": "vllm",
                "server": {"options": EAGER},
            },
            {"kind": "reward_model", "name": "in_process"},
            {"kind": "rules"},
        ],
        "health": {"maximum_missing_rate": 1},  # so small a judge may never be readable
    },
}


@pytest.fixture(scope="module")
def reward_model(tmp_path_factory):
    """A reward model: the bundled model's body with a head drawn at random."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForSequenceClassification

    folder = tmp_path_factory.mktemp("reward") / "model"
    body = AutoModelForCausalLM.from_pretrained(BUNDLED_MODEL)
    body.config.num_labels = 1
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(body.config)
    model.model.load_state_dict(body.model.state_dict())
    torch.nn.init.normal_(model.score.weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUNDLED_MODEL).save_pretrained(folder)
    return folder


def server_of(process):
    """Return the process of the API server that a run has started, if it is there."""
    for child in psutil.Process(process.pid).children(recursive=True):
        try:
            line = child.cmdline()
        except psutil.Error:
            continue
        is_guard = "server_guard" in " ".join(line[:4])
        if "vllm.entrypoints.openai.api_server" in line and not is_guard:
            return child
    return None


def journaled(root):
    return sum(path.read_bytes().count(b"\n") for path in root.glob("store/journals/*/00000.jsonl"))


@pytest.fixture(scope="module")
def refreshed(vllm_config, reward_model, tmp_path_factory):
    """The workspace of a refresh whose server was killed in the middle of generation."""
    folder = tmp_path_factory.mktemp("pipeline")
    root, config = folder / "workspace", json.loads(json.dumps(CONFIG))
    (folder / "rubric.yaml").write_text(yaml.safe_dump(RUBRIC))
    config["scoring"]["scorers"][0]["rubric"] = str(folder / "rubric.yaml")
    for scorer in config["scoring"]["scorers"][1:3]:
        scorer["model"] = str(reward_model)
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    command = [sys.executable, "-m", "flows.cli", "refresh", "-c", str(folder / "config.yaml")]
    with (folder / "log").open("wb") as log:
        run = subprocess.Popen(
            [*command, "-w", str(root)], stdout=log, stderr=log, env={**os.environ}
        )
        while journaled(root) < 10:
            assert run.poll() is None, (folder / "log").read_text()
            time.sleep(0.02)
        server = server_of(run)
        assert server is not None
        server.kill()
        assert journaled(root) < 64, "the server was killed too late to matter"
        assert run.wait(800) == 0, (folder / "log").read_text()
    return Workspace(root)


def test_every_prompt_has_its_eight_answers_though_the_server_was_killed(refreshed):
    counts = query(
        refreshed,
        "SELECT p.split, count(*) AS n, count(c.completion) AS there, "
        "count(DISTINCT c.prompt_id) AS prompts, count(c.logprob_sum) AS sums "
        "FROM candidates AS c JOIN prompts AS p USING (prompt_id) GROUP BY ALL ORDER BY ALL",
    )
    assert counts.rows() == [("heldout", 10, 10, 5, 10), ("train", 512, 512, 64, 512)]


def test_rewards_of_the_server_are_those_in_process(refreshed):
    both = query(
        refreshed,
        "SELECT a.score AS served, b.score AS in_process FROM scores AS a "
        "JOIN scores AS b USING (candidate_id) "
        "WHERE a.scorer = 'served' AND b.scorer = 'in_process'",
    )
    assert both.height == 522
    assert both["served"].to_list() == pytest.approx(both["in_process"].to_list(), abs=1e-3)
    assert both["served"].n_unique() > 100


def test_the_judge_on_the_same_server_gives_each_candidate_a_verdict_or_a_reason(refreshed):
    verdicts = query(
        refreshed,
        "SELECT candidate_id, score, error, raw, prompt_tokens FROM judgments "
        "WHERE scorer = 'judge'",
    )
    assert verdicts["candidate_id"].n_unique() == verdicts.height == 522
    for _, score, error, raw, prompt_tokens in verdicts.iter_rows():
        assert (score is None) == (error is not None)
        assert score is None or 1 <= score <= 5
        assert raw
        assert prompt_tokens > 100


def test_nothing_of_vllm_is_left(refreshed):
    left = [
        process
        for process in psutil.process_iter()
        if str(refreshed.root) in " ".join(process.cmdline())
    ]
    assert not left
