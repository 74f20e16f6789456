"""Prefect's UI as `prefmill up` starts it, in a real browser: runs and artifacts are in sight."""

from __future__ import annotations

import re

import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.artifacts import show_run
from flows.prefect_requests import asked
from flows.server_guard import free_port
from flows.service import start, stop
from lineage.database import publish
from lineage.workspace import Workspace
from tests.flows.chromium import chromium, opened
from tests.flows.test_deployment import ROOT
from tests.lineage.small_workspace import RUN_B, write_small_workspace

pytestmark = [pytest.mark.browser, pytest.mark.timeout(900)]


@pytest.fixture
def service(tmp_path):
    chromium()
    workspace = Workspace(tmp_path / "w")
    try:
        yield start(workspace, ROOT / "prefect.yaml", free_port())
    finally:
        stop(workspace)


def test_a_run_and_its_artifacts_are_in_sight(service, tmp_path):
    workspace = Workspace(tmp_path / "w")
    write_small_workspace(workspace)
    publish(workspace)
    shows = flow(show_run, name="shows", flow_run_name="our-round", validate_parameters=False)
    with temporary_settings({PREFECT_API_URL: service.url}):
        shows(workspace, RUN_B.run_id)
    (run,) = asked(service.url, "flow_runs/filter", {"flows": {"name": {"any_": ["shows"]}}})
    of_run = {"flow_runs": {"id": {"any_": [run["id"]]}}}
    made = {found["key"]: found["id"] for found in asked(service.url, "artifacts/filter", of_run)}
    keys = ["small-round-funnel", "small-round-report", "small-round-summary"]
    assert sorted(made) == keys

    with opened(tmp_path / "profile") as page:
        page.show(f"{service.ui}/runs/flow-run/{run['id']}", "our-round", "Completed")
        page.show(f"{service.ui}/artifacts", *keys)
        funnel, _, summary = (f"{service.ui}/artifacts/artifact/{made[key]}" for key in keys)
        seen = page.show(funnel, RUN_B.run_id, "candidates scored")
        assert re.search(r"candidates scored\s+5\s+83\.3\s% of candidates", seen), "of 6"
        page.show(summary, "This run failed.", f"Run: {RUN_B.run_id}")
