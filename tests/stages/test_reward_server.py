"""Rewards over HTTP: the numbers of the model in this process, each with its conversation."""

import contextlib
import json
import re
import shutil
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

from stages.endpoint_settings import EndpointConfig
from stages.endpoints import EndpointPool
from stages.errors import ConfigError, EndpointError, ModelError
from stages.reward_model import RewardModel
from stages.reward_server import RewardServer

pytestmark = pytest.mark.usefixtures("on_the_cpu")

BUNDLED = Path(__file__).parents[2] / "data" / "tiny-model"
CONVERSATIONS = [
    [{"role": "user", "content": f"Count to {n}."}, {"role": "assistant", "content": "1 " * n}]
    for n in (3, 0, 12, 7, 50)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random reward model with two outputs."""
    folder = tmp_path_factory.mktemp("reward")
    config = LlamaConfig(
        vocab_size=1017,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        max_position_embeddings=256,
        initializer_range=0.5,
        id2label={0: "helpful", 1: "terse"},
    )
    torch.manual_seed(0)
    LlamaForSequenceClassification(config).save_pretrained(folder)
    AutoTokenizer.from_pretrained(BUNDLED).save_pretrained(folder)
    return folder


@contextlib.contextmanager
def serving(answer):
    """Serve the model "rm" as vLLM does; ``answer`` gives status and body for a request's body."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self.reply(200, {"data": [{"id": "rm", "object": "model", "max_model_len": 100}]})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            asked.append((self.path, body))
            self.reply(*answer(body))

        def reply(self, status, body):
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_):
            """Quiet."""

    asked = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    try:
        with EndpointPool(EndpointConfig(base_urls=(url,), attempts=1)) as pool:
            yield pool, asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def pooled(*values):
    return {"data": [{"index": 0, "object": "pooling", "data": list(values)}]}


def test_the_numbers_are_those_of_the_model_in_this_process(folder):
    model = RewardModel(folder, output="terse")
    expected = model.score(CONVERSATIONS)

    def answer(body):
        with torch.inference_mode():
            return 200, pooled(*model.model(torch.tensor(body["input"])).logits[0].tolist())

    with serving(answer) as (pool, asked):
        server = RewardServer(pool, "rm", folder, output="terse")
        outcomes = server.score(CONVERSATIONS)
    assert server.max_length_tokens == 100, "the server's limit is the smaller one"
    assert [outcome.score for outcome in outcomes[:4]] == pytest.approx(
        [outcome.score for outcome in expected[:4]], abs=1e-5
    )
    assert [outcome.tokens for outcome in outcomes] == [outcome.tokens for outcome in expected]
    long = outcomes[4]
    assert (long.score, long.error) == (
        None,
        f"too_long: {long.tokens} tokens, at most 100 are read",
    )
    assert {path for path, _ in asked} == {"/pooling"}
    assert len(asked) == 4, "nothing is asked for what is too long"
    assert all(body["use_activation"] is False and body["model"] == "rm" for _, body in asked)
    assert server.template_fingerprint == model.template_fingerprint
    assert (server.model_name, server.weights_hash) == ("rm", model.weights_hash)


@pytest.mark.parametrize(
    ("response", "error"),
    [
        ((500, {}), "http_500"),
        ((400, {"error": {"message": "too long", "code": 400}}), "rejected: too long"),
        ((200, pooled(1.0, None)), "not_finite: the model gave nan"),
        ((200, pooled(1.0, float("inf"))), "broken_json"),
    ],
)
def test_a_failed_request_leaves_its_score_missing(folder, response, error):
    """And only its own."""

    def answer(body):
        return response if len(body["input"][0]) == longest else (200, pooled(1.0, 2.0))

    tokens = [
        outcome.tokens for outcome in RewardModel(folder, output="terse").score(CONVERSATIONS)
    ]
    longest = tokens[2]
    with serving(answer) as (pool, _):
        server = RewardServer(pool, "rm", folder, output="terse")
        server.score(CONVERSATIONS[:2])
        one, other, last = server.score([CONVERSATIONS[0], CONVERSATIONS[2], CONVERSATIONS[3]])
    assert (one.score, other.score, last.score) == (2.0, None, 2.0)
    assert other.error.startswith(error)


@pytest.mark.parametrize(
    ("body", "given"),
    [
        (pooled(0.5), "1 outputs"),
        (pooled(*[0.5] * 32), "32 outputs"),  # a hidden state: served without the head
        (pooled("yes", 1.0), "no list of numbers"),
        ({"data": []}, "no list of numbers"),
        ({"object": "list"}, "no list of numbers"),
    ],
)
def test_a_server_with_another_head_stops_the_run(folder, body, given):
    with serving(lambda _: (200, body)) as (pool, _):
        server = RewardServer(pool, "rm", folder, output="terse")
        with pytest.raises(ModelError, match=f"gives {given} where 'rm' has 2"):
            server.score(CONVERSATIONS[:1])


def test_a_model_that_is_not_served_is_found_before_any_request(folder):
    with serving(lambda _: (500, {})) as (pool, asked):
        with pytest.raises(EndpointError, match="does not serve 'other'"):
            RewardServer(pool, "other", folder, output="terse")
        with pytest.raises(ConfigError, match="no output is named of the model's 2"):
            RewardServer(pool, "rm", folder)
    assert asked == []


def broken(folder, how):
    if how == "template":
        (folder / "chat_template.jinja").write_text("{{ raise_exception('never') }}")
    elif how == "weights":
        (folder / "model.safetensors").unlink()
    else:
        config = json.loads((folder / "config.json").read_text())
        architectures = ["LlamaForCausalLM"] if how == "head" else None
        (folder / "config.json").write_text(json.dumps({**config, "architectures": architectures}))
    return folder


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("template", "refuses a conversation: never"),
        ("weights", "the model cannot be loaded"),
        ("head", "the model's architecture is LlamaForCausalLM"),
        ("no architecture", "the model's architecture is not given"),
    ],
)
def test_a_folder_that_cannot_be_meant_is_refused(folder, tmp_path, how, said):
    copy = broken(Path(shutil.copytree(folder, tmp_path / "model")), how)
    with (
        serving(lambda _: (200, pooled(1.0, 2.0))) as (pool, asked),
        pytest.raises(ModelError, match=re.escape(said)),
    ):
        RewardServer(pool, "rm", copy, output="terse")
    assert asked == []
