"""What the managed server promises, checked on real vLLM."""

from __future__ import annotations

import json
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path

import psutil
import pytest

from flows.configuration import BUNDLED_MODEL
from flows.server_guard import session_members
from flows.vllm_server import ManagedServer, ServerSpec
from stages.errors import ModelError
from stages.generation import Request
from stages.generation_settings import Sampling
from stages.transformers_engine import TransformersEngine
from stages.vllm_settings import VllmServerConfig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
QUESTIONS = [f"What is {a} + {b}?" for a in range(3, 35, 4) for b in range(5, 69, 8)]


def wait_until(true, seconds=300):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def models(server):
    with urllib.request.urlopen(f"{server.base_url}/models", timeout=30) as answer:
        return json.load(answer)["data"]


def answers(post, server, **sampling):
    """Each question's choices, as (text, finish reason, tokens, sum of log-probabilities)."""

    def ask(numbered):
        seed, question = numbered
        body = {
            "model": "tiny",
            "messages": [{"role": "user", "content": question}],
            "max_tokens": 48,
            "logprobs": True,
            "seed": seed,
            **sampling,
        }
        choices = post(server, "/v1/chat/completions", body)["choices"]
        tokens = [choice["logprobs"]["content"] for choice in choices]
        return [
            (c["message"]["content"], c["finish_reason"], len(t), sum(x["logprob"] for x in t))
            for c, t in zip(choices, tokens, strict=True)
        ]

    with ThreadPoolExecutor(16) as threads:
        return list(threads.map(ask, enumerate(QUESTIONS)))


def test_it_serves_the_model_under_its_name_with_its_context(generator_server):
    (model,) = models(generator_server)
    assert (model["id"], model["max_model_len"]) == ("tiny", 256)


def test_greedy_answers_equal_those_of_the_in_process_engine(generator_server, post):
    served = answers(post, generator_server, temperature=0)
    engine = TransformersEngine(BUNDLED_MODEL, threads=1)
    requests = [
        Request(str(i), [{"role": "user", "content": question}], i, 1)
        for i, question in enumerate(QUESTIONS)
    ]
    given = chain.from_iterable(engine.answers([requests], Sampling(1, 1, 0, 1, 48, None, 0)))
    local = {answer.prompt_id: answer for answer in given}
    for index, [(text, finish_reason, tokens, logprob_sum)] in enumerate(served):
        (expected,) = local[str(index)].samples
        assert (text, finish_reason, tokens) == expected[:3]
        assert logprob_sum == pytest.approx(expected.logprob_sum, abs=1e-3)


def test_a_killed_server_comes_back_and_gives_the_same_samples(generator_server, post):
    before = answers(post, generator_server, n=8, temperature=1.0)
    assert len(before) == 64
    assert all(len(choices) == 8 for choices in before)
    assert sum(len({text for text, *_ in choices}) > 1 for choices in before) > 32
    members = session_members(generator_server._guard.pid)
    main = next(pid for pid in members if psutil.Process(pid).ppid() not in members)
    psutil.Process(main).kill()
    wait_until(lambda: generator_server.restarts == 1)

    def back():
        try:
            return models(generator_server)
        except OSError:
            return False

    wait_until(back)
    assert not set(members) & set(session_members(generator_server._guard.pid))
    after = answers(post, generator_server, n=8, temperature=1.0)
    assert [[c[:3] for c in choices] for choices in after] == [
        [c[:3] for c in choices] for choices in before
    ]


PARENT = """
import sys
from pathlib import Path
from flows.vllm_server import ServerSpec, running_server
from stages.vllm_settings import VllmServerConfig
from tests.vllm.conftest import OPTIONS
spec = ServerSpec(sys.argv[1], "orphan", VllmServerConfig(options=OPTIONS))
running_server(spec, Path(sys.argv[2]))
"""


@pytest.mark.usefixtures("vllm_config")
def test_killing_prefmill_leaves_no_process_and_no_temporary_file(tmp_path):
    log = tmp_path / "server.log"
    with subprocess.Popen([sys.executable, "-c", PARENT, BUNDLED_MODEL, log], cwd=ROOT) as parent:
        # Guard, API server, engine and worker: that it serves then is for other tests to say.
        wait_until(lambda: len(members_of(parent)) >= 4 or parent.poll() is not None)
        assert parent.poll() is None, log.read_text()
        (guard,) = psutil.Process(parent.pid).children()
        (server,) = guard.children()
        scratch = Path(server.environ()["TMPDIR"])
        wait_until(lambda: list(scratch.iterdir()))
        parent.kill()
        wait_until(lambda: not session_members(guard.pid), 20)
    wait_until(lambda: not scratch.exists(), 5)


def members_of(parent):
    """Return the processes of the server that another one has started."""
    guards = psutil.Process(parent.pid).children() if parent.poll() is None else []
    return [member for guard in guards for member in session_members(guard.pid)]


@pytest.mark.usefixtures("vllm_config")
def test_a_context_that_the_model_does_not_have_is_named_as_the_cause(tmp_path):
    config = VllmServerConfig(options={"max_model_len": 4096})
    server = ManagedServer(ServerSpec(str(BUNDLED_MODEL), "m", config), tmp_path / "server.log")
    with pytest.raises(ModelError, match=r"max_model_len \(4096\) is greater than"):
        server.start()
