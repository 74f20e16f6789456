"""What can be wrong with deployments is said before a server starts; what forms may change."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
from dataclasses import asdict

import pytest
import yaml
from click.testing import CliRunner
from prefect.logging import disable_run_logger
from pydantic import ValidationError

from flows import deployments, rounds, service
from flows.changes import PipelineChanges, as_overrides
from flows.cli import cli
from flows.commands import training
from flows.configuration import load_config
from flows.deployments import FLOWS
from flows.service import POOL, check_deployments, running, start, stop
from flows.settings import configure_prefect
from flows.tracked_run import recorded, run_record
from lineage.workspace import Workspace
from stages.errors import ConfigError, MissingFileError
from tests.flows.test_deployment import ROOT

NIGHTLY = {
    "name": "nightly",
    "work_pool": {"name": POOL},
    "schedules": [{"cron": "0 2 * * *", "timezone": "UTC"}],
}


def test_every_deployed_flow_is_shipped_and_its_schedule_can_be_read():
    names = check_deployments(ROOT / "prefect.yaml")
    assert names == [flow.name for flow in FLOWS]
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    for deployment, flow in zip(deployments, FLOWS, strict=True):
        assert deployment["entrypoint"] == f"flows.deployments.{flow.fn.__name__}"
        flow.validate_parameters(
            {"config_file": "a.yaml"} | (deployment.get("parameters") or {})
            if "config_file" in flow.parameters.properties
            else deployment.get("parameters") or {}
        )


@pytest.mark.parametrize(
    ("changed", "found"),
    [
        ({"work_pool": {"name": "elsewhere"}}, "work pool 'elsewhere'"),
        ({"work_pool": None}, "work pool None"),
        ({"work_pool": POOL}, "a bare name"),
        ({"name": None}, "a deployment without a name"),
        ({"schedules": [{"cron": "0 25 * * *"}]}, "the schedule {'cron': '0 25 * * *'}"),
        ({"schedules": [{"cron": "0 2 * * *", "timezone": "Mars/Base"}]}, "Mars/Base"),
    ],
)
def test_a_deployment_that_would_never_run_is_refused(tmp_path, changed, found):
    path = tmp_path / "prefect.yaml"
    path.write_text(yaml.safe_dump({"deployments": [{**NIGHTLY, **changed}]}))
    with pytest.raises(ConfigError, match="deployment") as error:
        check_deployments(path)
    assert found in str(error.value)
    assert "name" in changed or "deployment 'nightly'" in str(error.value)


def test_a_file_without_deployments_is_refused(tmp_path):
    with pytest.raises(MissingFileError, match=r"prefect\.yaml"):
        check_deployments(tmp_path / "prefect.yaml")
    path = tmp_path / "prefect.yaml"
    path.write_text("name: prefmill\n")
    with pytest.raises(ConfigError, match="no deployments"):
        check_deployments(path)


def test_a_port_that_is_taken_is_said_before_anything_starts(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} is taken"):
            start(Workspace(tmp_path), ROOT / "prefect.yaml", port)
    assert not stop(Workspace(tmp_path))


def noted(workspace, url):
    """Record a service whose processes are this one."""
    service.home(workspace).mkdir()
    record = service.Service(url, os.getpid(), os.getpid())
    (service.home(workspace) / "service.json").write_text(json.dumps(asdict(record)))


@pytest.fixture
def lock(tmp_path):
    """Hold the lock of a server or worker, as a process of its own would."""
    with contextlib.ExitStack() as held:

        def hold(name):
            path = service._lock_path(Workspace(tmp_path), name)
            file = held.enter_context(path.open("wb"))
            fcntl.flock(file, fcntl.LOCK_EX)

        yield hold


def test_a_record_of_dead_processes_is_no_running_service(tmp_path):
    workspace = Workspace(tmp_path)
    noted(workspace, "http://127.0.0.1:1/api")  # with pids that others got since
    assert running(workspace) is None
    assert not stop(workspace)
    assert running(workspace) is None


def test_a_process_that_is_on_no_record_is_named(tmp_path, lock):
    (tmp_path / "prefect-server").mkdir()
    lock("worker")
    with pytest.raises(ConfigError, match=r"a worker of this .* `fuser .*/worker\.lock` names"):
        start(Workspace(tmp_path), ROOT / "prefect.yaml", 1)


def test_commands_use_the_server_that_is_up(tmp_path, monkeypatch, lock):
    workspace = Workspace(tmp_path)
    noted(workspace, "http://127.0.0.1:9/api")
    monkeypatch.setenv("PREFECT_API_URL", "")
    monkeypatch.delenv("PREFECT_API_URL")
    lock("server")
    assert running(workspace) is None, "its worker is gone"
    lock("worker")
    configure_prefect(workspace)
    assert os.environ["PREFECT_API_URL"] == "http://127.0.0.1:9/api"


def test_changes_are_laid_over_the_file(small_config):
    changes = PipelineChanges(rounds=3, training={"beta": 0.2, "stopping": {"kl_samples": 4}})
    overrides = as_overrides(changes)
    assert overrides == {"rounds": 3, "training": {"beta": 0.2, "stopping": {"kl_samples": 4}}}
    config = load_config(small_config(training={"beta": 1.0, "batch_size": 4}), overrides)
    assert (config.rounds, config.training.beta, config.training.batch_size) == (3, 0.2, 4)
    assert as_overrides(PipelineChanges()) == as_overrides(None) == {}


@pytest.mark.parametrize(
    ("changes", "flag", "forced"),
    [
        ({}, [], False),
        ({"gate": {"maximum_kl_nats": 3.0}}, [], False),
        ({"gate": {"force": True}}, ["--force"], True),
    ],
)
def test_a_round_is_not_forced_since_the_run_that_it_takes_up_was(
    tmp_path, small_config, monkeypatch, changes, flag, forced
):
    workspace, asked = Workspace(tmp_path / "w"), []
    config = load_config(small_config(gate={"force": True}))
    with recorded(workspace, run_record(workspace, "small-1", "refresh", config), shown=False):
        pass

    def noting(config_file, overrides):
        asked.append(load_config(config_file, overrides).gate.force)
        return ["small-round1"]

    monkeypatch.setattr(rounds, "run_rounds", lambda file, _root, given: noting(file, given))
    with disable_run_logger():
        deployments.dpo_round.fn("latest", workspace.root, PipelineChanges(**changes))
    monkeypatch.setattr(training, "run_rounds", lambda _root, file, given: noting(file, given))
    monkeypatch.setattr(training, "print_summary", lambda *_: None)
    file = tmp_path / "other.yaml"
    file.write_text(yaml.safe_dump({"name": "other", **changes}))
    command = ["train", "-w", str(workspace.root), "-c", str(file), *flag]
    CliRunner().invoke(cli, command, catch_exceptions=False)
    assert asked == [forced, forced]


def test_changes_keep_the_bounds_and_the_descriptions():
    with pytest.raises(ValidationError, match="greater than 0"):
        PipelineChanges(training={"beta": -1})
    with pytest.raises(ValidationError, match="Extra inputs"):
        PipelineChanges(training={"betta": 1})
    schema = PipelineChanges.model_json_schema()["$defs"]["DPOTrainingConfigChanges"]
    assert "pull towards the reference" in schema["properties"]["beta"]["description"]
