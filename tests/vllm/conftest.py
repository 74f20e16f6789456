"""The real server on the bundled model, started once; without vLLM this tier says why it skips."""

from __future__ import annotations

import json
import urllib.request

import pytest

from flows.configuration import BUNDLED_MODEL
from flows.vllm_server import DEFAULT_PYTHON, ManagedServer, ServerSpec
from stages.vllm_settings import VllmServerConfig

EAGER = {"enforce_eager": True}
"""Compiling takes most of a start, and these tests start many."""
OPTIONS = {"max_model_len": 256, **EAGER}


@pytest.fixture(scope="session")
def vllm_config():
    if not DEFAULT_PYTHON.exists():
        pytest.skip(f"no vLLM at {DEFAULT_PYTHON}: run `make vllm`")
    return VllmServerConfig(options=OPTIONS)


@pytest.fixture(scope="session")
def generator_server(vllm_config, tmp_path_factory):
    """A started server of the bundled model, named `tiny`."""
    log = tmp_path_factory.mktemp("vllm") / "server.log"
    server = ManagedServer(ServerSpec(str(BUNDLED_MODEL), "tiny", vllm_config), log)
    server.start()
    yield server
    server.stop()


@pytest.fixture(scope="session")
def post():
    """Post JSON below a server's root and return the JSON that comes back."""

    def send(server, path, body):
        request = urllib.request.Request(
            server.base_url.removesuffix("/v1") + path,
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=120) as answer:
            return json.load(answer)

    return send
