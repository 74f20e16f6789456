"""A push to a made-up hub on loopback: what it sends, and what it must not."""

from __future__ import annotations

import base64
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from flows.hub_upload import push_dataset
from stages.errors import ConfigError, DataError, EndpointError

SECRET = "hf_secret-of-the-test"


class Hub(ThreadingHTTPServer):
    """Keeps a dataset's visibility and the files committed to it."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.dataset = f"{self.url}/datasets/me/pairs"
        self.private, self.files, self.tokens, self.refuses = None, {}, set(), 0

    def answer(self, path, body):
        """Return a status and JSON for one request to the hub's API."""
        if self.refuses:
            return self.refuses, {"error": "no"}
        if path == "repos/create":
            there = self.private is not None
            self.private = self.private if there else json.loads(body)["visibility"] == "private"
            return 409 if there else 200, {"url": self.dataset}
        if path == "datasets/me/pairs":
            return 200, {"id": "me/pairs", "private": self.private, "tags": [], "sha": "0"}
        if path == "validate-yaml":
            return 200, {"errors": [], "warnings": []}
        if "/preupload/" in path:
            plain = {"uploadMode": "regular", "shouldIgnore": False, "oid": None}
            return 200, {"files": [{**plain, "path": f["path"]} for f in json.loads(body)["files"]]}
        for line in body.splitlines():
            item = json.loads(line)
            if item["key"] == "file":
                content = base64.b64decode(item["value"]["content"])
                self.files[item["value"]["path"]] = content
        return 200, {"commitUrl": f"{self.dataset}/commit/1", "commitOid": "1", "success": True}


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        hub = self.server
        hub.tokens.add(self.headers.get("Authorization"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, value = hub.answer(self.path.partition("?")[0].removeprefix("/api/"), body)
        content = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST  # noqa: N815 - http.server's name

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    import huggingface_hub.constants

    server = Hub()
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", server.url)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", SECRET)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train-00000-of-00001.parquet").write_bytes(b"PAR1\0rows")
    (tmp_path / "README.md").write_text("---\nlicense: mit\n---\n\n# Pairs\n")
    return tmp_path


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@pytest.mark.parametrize("private", [True, False])
def test_a_new_dataset_is_made_as_asked_and_gets_every_byte(hub, folder, private):
    url = push_dataset(folder, "me/pairs", private=private)
    assert url == hub.dataset
    assert hub.private is private
    assert hub.files == contents(folder)
    assert hub.tokens == {f"Bearer {SECRET}"}


def test_a_second_push_updates_a_private_dataset(hub, folder):
    push_dataset(folder, "me/pairs", private=True)
    (folder / "README.md").write_text("---\nlicense: mit\n---\n\n# Other pairs\n")
    push_dataset(folder, "me/pairs", private=True)
    assert hub.files == contents(folder)


def test_nothing_goes_to_a_public_dataset_unless_asked(hub, folder):
    hub.private = False
    with pytest.raises(DataError, match="is public"):
        push_dataset(folder, "me/pairs", private=True)
    assert hub.files == {}
    push_dataset(folder, "me/pairs", private=False)
    assert hub.files == contents(folder)


def test_without_a_token_in_the_environment_nothing_is_asked(hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(ConfigError, match="no HF_TOKEN"):
        push_dataset(folder, "me/pairs", private=True)
    assert hub.tokens == set()


@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_is_told_without_the_token(hub, folder, status):
    hub.refuses = status
    with pytest.raises(EndpointError, match=f"{status}.*HF_TOKEN may write") as caught:
        push_dataset(folder, "me/pairs", private=True)
    assert SECRET not in str(caught.value)


def test_a_bad_name_and_a_hub_that_is_away_are_told(hub, folder, monkeypatch):
    import huggingface_hub.constants

    with pytest.raises(ConfigError, match="OWNER/NAME"):
        push_dataset(folder, "me/../pairs", private=True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(EndpointError, match="offline mode"):
        push_dataset(folder, "me/pairs", private=True)
