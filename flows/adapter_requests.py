"""Adapters of a running vLLM server: which it has, and loading others."""

from __future__ import annotations

import http.client
import json
import time
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

LOOK_SECONDS = 0.25


class Adapter(NamedTuple):
    """Adapters in a folder as PEFT writes it, and what requests call the model with them."""

    name: str
    folder: Path

    @property
    def as_option(self) -> str:
        """The server's option to have it from its start."""
        described = {"name": self.name, "path": str(self.folder.resolve())}
        return f"--lora-modules={json.dumps(described)}"


def refusal(port: int, adapter: Adapter, alive: Callable[[], bool], timeout_seconds: float) -> str:
    """Return ``""`` once the server on a loopback port has the adapter, else why it has not.

    One that does not answer is asked again for as long as it is ``alive``.
    """
    deadline = time.monotonic() + timeout_seconds
    while True:
        try:
            return _refusal(port, adapter, timeout_seconds)
        except (OSError, http.client.HTTPException) as error:
            if not alive() or time.monotonic() > deadline:
                return f"it does not answer ({error})"
        time.sleep(LOOK_SECONDS)


def _refusal(port: int, adapter: Adapter, timeout_seconds: float) -> str:
    _, served = _asked(port, "GET", "/v1/models", None, timeout_seconds)
    if any(model.get("id") == adapter.name for model in served.get("data", [])):
        return ""
    body = {"lora_name": adapter.name, "lora_path": str(adapter.folder.resolve())}
    status, answer = _asked(port, "POST", "/v1/load_lora_adapter", body, timeout_seconds)
    if status == http.HTTPStatus.OK:
        return ""
    told = answer.get("error", answer)
    return str(told.get("message", told) if isinstance(told, dict) else told)


def _asked(
    port: int, method: str, path: str, body: dict[str, str] | None, timeout_seconds: float
) -> tuple[int, dict[str, Any]]:
    """Return the status and the JSON object of an answer, ``{}`` where it is none."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=timeout_seconds)
    try:
        sent = None if body is None else json.dumps(body)
        connection.request(method, path, sent, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
    finally:
        connection.close()
    try:
        answer = json.loads(text)
    except ValueError:
        answer = {}
    return response.status, answer if isinstance(answer, dict) else {}
