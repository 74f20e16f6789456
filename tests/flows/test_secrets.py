"""A key is where it must be, in the environment and the requests' headers, and nowhere else."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3

import duckdb
import polars as pl
import pytest

from flows.configuration import resolve
from lineage.records import list_runs
from lineage.workspace import Workspace
from stages.endpoint_settings import EndpointConfig
from stages.endpoints import EndpointPool
from stages.errors import ConfigError, EndpointError
from stages.secret_blocks import EMBEDDED_SERVER, read_secret
from stages.secret_values import refuse_secrets, without_secrets
from tests.flows.small import SMALL
from tests.stub_server import Stub

KEY = "planted-5ecret-4711"
"""Of no known form: what hides it knows it, and does not guess."""


CRITERIA = ("instruction_following", "correctness", "completeness", "clarity")


class EchoStub(Stub):
    """A server that repeats the header with the key in everything it says."""

    header = ""

    async def _answer(self, request):
        self.header = request.headers["Authorization"]
        return await super()._answer(request)

    def _denied(self, request):
        self.header = request.headers["Authorization"]
        return super()._denied(request)

    def _error(self, status, message, **headers):
        return super()._error(status, f"{message}: {self.header}", **headers)


def answers(stub):
    """Return what plays both the generator and the judge, and names the key as both."""

    def respond(body):
        asked = json.dumps(body["messages"])
        score = 1 + int(hashlib.sha256(asked.encode()).hexdigest(), 16) % 5
        scores = dict.fromkeys(CRITERIA, score)
        return json.dumps({"reasoning": stub.header, "scores": scores})

    return respond


@pytest.fixture
def stub():
    with EchoStub() as server:
        server.respond = answers(server)
        yield server


def sections(stub, **endpoint):
    """Return sections with a generator and a judge at the stub, beside the policy and the rules."""
    endpoint = {"base_urls": [stub.url], "api_key_variable": "PLANTED", **endpoint}
    served = {"model": stub.model, "endpoint": endpoint}
    own, other = {"engine": "transformers", "threads": 1}, {"engine": "openai", **served}
    judge = {"kind": "judge", "name": "judge", "rubric": "helpfulness", **served}
    return {
        "prompts": {"sources": [{"kind": "bundled", "train": 6, "heldout": 6}]},
        "generation": {"generators": [own, other]},
        "scoring": {"scorers": [{"kind": "rules"}, judge]},
    }


def whole_text(folder):
    """Return the files of a folder as they are, and decoded where they are compressed."""
    texts = {}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        texts[str(path)] = path.read_bytes()
        if path.suffix == ".parquet":
            frame = pl.read_parquet(path, hive_partitioning=False)
            texts[f"{path}, decoded"] = frame.write_ndjson().encode()
            texts[f"{path}, metadata"] = repr(pl.read_parquet_metadata(path)).encode()
        if path.suffix == ".duckdb":
            with duckdb.connect(str(path), read_only=True) as database:
                for (name,) in database.sql("SHOW TABLES").fetchall():
                    rows = database.sql(f'FROM "{name}"').fetchall()
                    texts[f"{path}, {name}"] = repr(rows).encode()
        if path.suffix == ".db":
            with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as database:
                texts[f"{path}, decoded"] = "\n".join(database.iterdump()).encode()
    return texts


def holding(texts, secret=KEY):
    """Return where the secret stands."""
    return sorted(name for name, text in texts.items() if secret.encode() in text)


@pytest.fixture
def planted(monkeypatch):
    for name in ("PLANTED", "HF_TOKEN", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, KEY)


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize("command", ["refresh", pytest.param("rounds", marks=pytest.mark.slow)])
def test_a_planted_key_is_in_nothing_that_a_run_writes(
    command, run_cli, small_config, stub, tmp_path, tmp_path_factory
):
    workspace = tmp_path / "workspace"
    ran = run_cli(command, "-c", small_config(**sections(stub)), "-w", workspace)
    assert ran[0] == 0, ran[2]
    assert stub.header == f"Bearer {KEY}", "it was sent"
    said = pl.read_parquet(workspace / "store/judgments/**/*.parquet", hive_partitioning=False)
    assert said.filter(pl.col("raw").str.contains("Bearer ***", literal=True)).height > 20

    stub.api_key = "another"  # from now on it refuses, and repeats the key
    failed = run_cli("refresh", "-c", small_config(**sections(stub), seed=1), "-w", workspace)
    assert failed[0] == 3
    assert "the key is refused" in failed[2] or "the list of models is refused" in failed[2]
    assert {run.status for run in list_runs(Workspace(workspace))} == {"completed", "failed"}

    with_password = sections(stub, base_urls=[f"http://me:{KEY}@127.0.0.1:{stub.port}/v1"])
    refused = run_cli("refresh", "-c", small_config(**with_password), "-w", workspace)
    assert refused[0] == 3
    assert "holds what looks like a key or a password" in refused[2]

    (tmp_path / "small.yaml").unlink()  # the file with the password is the user's own
    texts = whole_text(tmp_path)
    for server in tmp_path_factory.getbasetemp().glob("prefect*"):
        texts |= whole_text(server)
    assert any(name.endswith("prefect.db, decoded") for name in texts), "Prefect's database, too"
    texts |= {f"output {i}": repr(each).encode() for i, each in enumerate((ran, failed, refused))}
    assert len(texts) > 100
    assert holding(texts | {"control": KEY.encode()}) == ["control"]


@pytest.mark.parametrize("cut", [0, 290])
def test_a_key_that_an_error_repeats_is_hidden_before_the_error_is_cut(planted, stub, cut):
    stub.api_key, stub.header = "another", ""
    config = EndpointConfig(
        base_urls=(stub.url,), api_key_variable="PLANTED", attempts=1, give_up_after_seconds=0.2
    )
    stub._error = lambda status, message, **headers: Stub._error(
        stub, status, "x" * cut + KEY, **headers
    )

    async def ask(_):
        return await pool.post("/chat/completions", {"model": "m", "messages": []})

    with EndpointPool(config) as pool:
        for failing in (lambda: pool.check("stub-model"), lambda: list(pool.map(ask, [1]))):
            with pytest.raises(EndpointError) as caught:
                failing()
            assert KEY[:6] not in str(caught.value)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"policy": "hf_" + "a1B2" * 8}, "policy"),
        (
            {"generation": {"system_prompt": "sk-proj-" + "a1B2" * 8}},
            "generation.system_prompt",
        ),
        (
            {"scoring": {"scorers": [{"kind": "rules", "api_key": "x"}]}},
            "scoring.scorers[0].api_key",
        ),
        ({"export": {"note": "https://me:pass@host/x"}}, "export.note"),
    ],
)
def test_a_configuration_with_what_looks_like_a_key_is_refused(values, named):
    with pytest.raises(ConfigError) as caught:
        resolve({"name": "t", **values}, "here.yaml")
    assert str(caught.value).startswith(f"{named} holds what looks like a key")
    assert "a1B2" not in str(caught.value)
    assert "pass" not in str(caught.value).replace("password", "")


def test_what_only_resembles_a_key_is_none():
    refuse_secrets(
        {
            "policy": "models/risk-classification-large-v2",
            "template": "task-specific-instructions-for-it",
            "endpoint": {"api_key_variable": "OPENAI_API_KEY", "api_key_secret": "openai"},
            "base_urls": ["http://127.0.0.1:8000/v1", "https://api.example.org/v1/a:b@c"],
        },
        "here",
    )
    assert resolve(SMALL, "here").name == "small"
    assert without_secrets("see http://me:pa55@host and sk-" + "a" * 20) == (
        "see http://***@host and ***"
    )


def test_a_key_from_a_secret_block(prefect_server, monkeypatch):
    from prefect.blocks.system import Secret
    from prefect.settings import PREFECT_API_URL, temporary_settings

    config = EndpointConfig(base_urls=("http://127.0.0.1:9/v1",), api_key_secret="stub-key")
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(ConfigError, match="no Prefect server is up"):
        config.api_key()
    monkeypatch.setenv("PREFECT_API_URL", prefect_server)
    monkeypatch.setenv(EMBEDDED_SERVER, prefect_server)
    with pytest.raises(ConfigError, match="no Prefect server is up"):
        config.api_key()
    monkeypatch.delenv(EMBEDDED_SERVER)
    with temporary_settings({PREFECT_API_URL: prefect_server}):
        Secret(value=KEY).save("stub-key", overwrite=True, _sync=True)
        assert config.api_key() == KEY
        with pytest.raises(ConfigError, match="no Secret block 'other'"):
            read_secret("other")
    assert KEY not in config.model_dump_json() + repr(config) + json.dumps(dict(os.environ))
    with pytest.raises(ConfigError, match="are two keys"):
        EndpointConfig.checked({"api_key_secret": "a", "api_key_variable": "B"})
