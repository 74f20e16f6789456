"""Adapters loaded into a running vLLM server answer as the merged weights do."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from itertools import chain

import pytest
import yaml

from flows import vllm_server
from flows.configuration import BUNDLED_MODEL, resolve
from flows.generators import policy_generator
from flows.models import find_policy, policy_in
from flows.vllm_server import stop_all
from lineage.query import query
from lineage.workspace import Workspace
from stages.budget import Budget
from stages.generation import Request
from stages.transformers_engine import TransformersEngine
from tests.trainer.made_adapters import make_adapted
from tests.vllm.conftest import OPTIONS
from trainer.adapters import AdapterConfig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

QUESTIONS = [f"What is {a} + {b}?" for a in range(3, 35, 4) for b in range(5, 69, 8)]
LOADING = {**OPTIONS, "enable_lora": True, "max_lora_rank": 16}


@pytest.fixture(scope="module")
def policies(tmp_path_factory):
    """The bundled model, and two trained one after the other from there."""
    models = tmp_path_factory.mktemp("rounds") / "models"
    models.mkdir()
    attention = AdapterConfig(rank=4, alpha=8, target_modules=("q_proj", "o_proj"))
    first = make_adapted(BUNDLED_MODEL, models / "round_1", attention, 1, 0.05)
    second = make_adapted(first, models / "round_2", AdapterConfig(rank=8, alpha=8), 2, 0.05)
    return [find_policy("bundled"), *(policy_in(each, each.name) for each in (first, second))]


def asked(engine, sampling):
    requests = [
        Request(str(number), [{"role": "user", "content": question}], number, 1)
        for number, question in enumerate(QUESTIONS)
    ]
    answers = chain.from_iterable(engine.answers([requests], sampling))
    return {answer.prompt_id: answer.samples[0] for answer in answers}


@pytest.mark.usefixtures("vllm_config")
def test_each_policy_in_turn_answers_on_one_server_as_its_merged_weights_do(policies, tmp_path):
    generator = {"engine": "vllm", "server": {"options": LOADING}, "logprobs": True}
    generation = {"generators": [generator], "temperature": 0.0, "max_completion_tokens": 48}
    config = resolve({"name": "swapped", "generation": generation}, "test")
    servers, found = [], []
    try:
        for policy in (*policies, policies[1]):
            ready = policy_generator(config, policy)
            with ready.engine(Workspace(tmp_path), Budget()) as engine:
                assert engine.context_tokens == OPTIONS["max_model_len"]
                assert engine.weights_hash == policy.weights_hash
                found.append(asked(engine, ready.sampling))
            servers.append(vllm_server._server._guard.pid)
    finally:
        stop_all()
    assert len(set(servers)) == 1
    assert ready.deciding()["adapters"] == {
        "base_weights_hash": policies[0].weights_hash,
        "ranks": [4],
    }
    for policy, served in zip((*policies, policies[1]), found, strict=True):
        merged = asked(TransformersEngine(policy.folder, threads=1), ready.sampling)
        for number, sample in served.items():
            assert sample[:3] == merged[number][:3], policy.name
            assert sample.logprob_sum == pytest.approx(merged[number].logprob_sum, abs=5e-4)
    for one, other in ((0, 1), (1, 2)):
        apart = [found[one][n].logprob_sum - found[other][n].logprob_sum for n in found[0]]
        assert max(map(abs, apart)) > 0.1, "the adapters change the policy"


SERIES = {
    "name": "series",
    "rounds": 2,
    "training_devices": [0],
    "prompts": {"sources": [{"kind": "bundled", "train": 20, "heldout": 10}]},
    "generation": {
        "generators": [
            {"engine": "vllm", "server": {"options": LOADING, "devices": [1]}},
        ],
        "samples_per_prompt": 4,
        "heldout_samples_per_prompt": 2,
        "max_completion_tokens": 48,
    },
    "training": {
        "adapter": {"rank": 8},
        "learning_rate": 1e-3,
        "batch_size": 4,
        "max_length_tokens": 256,
        "threads": 1,
    },
    "evaluation": {"resamples": 200},
    "gate": {"force": True},
}
"""The devices are numbers to a CPU: they say that server and training share nothing."""


@pytest.mark.usefixtures("vllm_config")
def test_a_series_has_one_server_and_records_what_answered_as_adapters(tmp_path):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(SERIES))
    command = [sys.executable, "-m", "flows.cli", "rounds", "-c", str(tmp_path / "config.yaml")]
    ran = subprocess.run(
        [*command, "-w", str(tmp_path / "w")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert len(re.findall(r"^ *vLLM server ", ran.stdout, re.MULTILINE)) == 1
    outputs = query(Workspace(tmp_path / "w"), "SELECT config FROM stage_outputs")
    ranks = [found for config in outputs["config"] for found in ranks_in(json.loads(config))]
    # Round 1 is trained to rank 8; round 2 answers with it, and is trained to 8 + 8.
    assert {tuple(found) for found in ranks} == {(8,), (8, 8)}
    rounds = sorted((tmp_path / "w/models").glob("round_*"))
    combined = [folder for folder in rounds if list(folder.glob("adapter_over_*"))]
    assert (len(rounds), len(combined)) == (2, 1)


def ranks_in(settings):
    """The ranks in each `adapters` of a stage's settings, at any depth."""
    if isinstance(settings, list):
        return [found for each in settings for found in ranks_in(each)]
    if not isinstance(settings, dict):
        return []
    own = [settings["adapters"]["ranks"]] if "adapters" in settings else []
    return own + ranks_in(list(settings.values()))
