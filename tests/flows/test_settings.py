"""What the environment of a user may hold, and what we run on must cope with."""

from __future__ import annotations

import os
import urllib.request

import pytest

from flows.settings import configure_libraries, configure_prefect
from lineage.workspace import Workspace


@pytest.fixture
def environment(monkeypatch):
    """An environment of its own, without a proxy and without Prefect's settings."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    kept = {k: v for k, v in kept.items() if not k.startswith("PREFECT_")}
    monkeypatch.setattr(os, "environ", kept)
    return kept


@pytest.mark.parametrize(
    ("given", "direct"),
    [
        ({}, "127.0.0.1,localhost"),
        ({"NO_PROXY": ".corp"}, ".corp,127.0.0.1,localhost"),
        ({"no_proxy": ".low", "NO_PROXY": ".up"}, ".low,127.0.0.1,localhost"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_a_proxy_is_not_asked_for_servers_on_this_machine(environment, given, direct):
    environment |= {"https_proxy": "http://proxy.corp:3128", **given}
    for _ in range(2):
        configure_libraries()
    assert (environment["no_proxy"], environment["NO_PROXY"]) == (direct, direct)
    assert urllib.request.proxy_bypass_environment("127.0.0.1:4200")
    assert urllib.request.proxy_bypass_environment("api.openai.com") == (direct == "*")


def test_without_a_proxy_nothing_is_set(environment):
    environment["no_proxy"] = ".corp"
    configure_libraries()
    assert "NO_PROXY" not in environment
    assert environment["no_proxy"] == ".corp"


def test_an_empty_server_address_is_none(environment, tmp_path):
    environment["PREFECT_API_URL"] = ""
    configure_prefect(Workspace(tmp_path))
    assert environment["PREFECT_HOME"] == str((tmp_path / "prefect").resolve())
