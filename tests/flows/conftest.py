"""A Prefect server for the session, and small configurations of the real pipeline."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

import pytest
import yaml
from click.testing import CliRunner

from flows.configuration import BUNDLED_MODEL
from flows.server_guard import free_port
from tests.flows.small import SMALL

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory):
    """The URL of a real Prefect server on loopback, with a scheduler that looks every 2 s."""
    home, port = tmp_path_factory.mktemp("prefect"), free_port()
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
    }
    environment.pop("PREFECT_API_URL", None)
    command = [sys.executable, "-m", "prefect", "server", "start", "--port", str(port)]
    log = (home / "server.log").open("wb")
    server = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}/api"
    try:
        for _ in range(240):
            try:
                urllib.request.urlopen(f"{url}/health", timeout=2)
                break
            except (urllib.error.URLError, OSError):
                assert server.poll() is None, (home / "server.log").read_text()
                time.sleep(0.5)
        yield url
    finally:
        server.terminate()
        server.wait(30)


@pytest.fixture
def run_cli(prefect_server, monkeypatch):
    """Run the real command in this process against the session's Prefect server."""
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
    from prefect.settings import PREFECT_API_URL, temporary_settings

    def run(*arguments: object):
        from flows.cli import main

        runner = CliRunner()
        with (
            temporary_settings({PREFECT_API_URL: prefect_server}),
            runner.isolation() as (out, err, _),
            monkeypatch.context() as patch,
        ):
            patch.setattr(sys, "argv", ["prefmill", *map(str, arguments)])
            code = 0
            try:
                main()
            except SystemExit as stop:
                code = stop.code or 0
            return code, out.getvalue().decode(), err.getvalue().decode()

    return run


@pytest.fixture(scope="session")
def other_model(tmp_path_factory):
    """The bundled model with noise on its weights: its answers are other ones."""
    import torch
    from safetensors.torch import load_file, save_file

    folder = tmp_path_factory.mktemp("models") / "other"
    shutil.copytree(BUNDLED_MODEL, folder)
    file, generator = folder / "model.safetensors", torch.Generator().manual_seed(0)
    weights = load_file(file)
    for name, value in weights.items():
        noise = torch.randn(value.shape, generator=generator) * value.float().std() * 0.12
        weights[name] = (value + noise).to(value.dtype) if value.dim() > 1 else value
    save_file(weights, file, {"format": "pt"})
    return folder


@pytest.fixture
def small_config(tmp_path: Path):
    """Write the small configuration, with sections laid over it, and return its path."""

    def write(name: str = "small.yaml", **sections: object) -> Path:
        values = {**SMALL}
        for key, value in sections.items():
            below = values.get(key)
            values[key] = {**below, **value} if isinstance(below, dict) else value
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values))
        return path

    return write
