"""One page of headless Chromium, by its DevTools protocol."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest
from websockets.sync.client import connect

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SECONDS = 240
LOOK_SECONDS = 0.2


def chromium() -> str:
    """Return where Chromium is; without it the test is skipped."""
    found = shutil.which("chromium") or shutil.which("google-chrome")
    return found or pytest.skip("Chromium is not installed")


class Page:
    """What a person would look at."""

    def __init__(self, socket: Any) -> None:
        self._socket, self._asked = socket, 0

    def show(self, url: str, *texts: str) -> str:
        """Open ``url`` and return the text in sight once all of ``texts`` are in it."""
        self._ask("Page.navigate", url=url)
        deadline, seen = time.monotonic() + SECONDS, ""
        while time.monotonic() < deadline:
            seen = self._text()
            if all(text in seen for text in texts):
                return seen
            time.sleep(LOOK_SECONDS)
        missing = [text for text in texts if text not in seen]
        raise AssertionError(f"{missing} never came into sight at {url}, but:\n{seen[:2000]}")

    def _text(self) -> str:
        script = "document.body ? document.body.innerText : ''"
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True)
        return str(answer.get("result", {}).get("value", ""))  # none between two documents

    def _ask(self, method: str, **parameters: object) -> dict[str, Any]:
        self._asked += 1
        self._socket.send(json.dumps({"id": self._asked, "method": method, "params": parameters}))
        while True:  # answers to others and events pass by
            answer = json.loads(self._socket.recv(SECONDS))
            if answer.get("id") == self._asked:
                return answer.get("result", {})


@contextlib.contextmanager
def opened(folder: Path) -> Iterator[Page]:
    """Yield a page of a Chromium whose profile is in ``folder``."""
    command = [chromium(), *ARGUMENTS, "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    with (folder.parent / f"{folder.name}.log").open("wb") as log:
        process = subprocess.Popen(
            [*command, "about:blank"], stdout=log, stderr=log, start_new_session=True
        )
    try:
        with connect(_address(folder, process), max_size=None) as socket:
            yield Page(socket)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _address(folder: Path, process: subprocess.Popen[bytes]) -> str:
    """Return the WebSocket of the first page, once Chromium has said where it listens."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(OSError, IndexError):
            port = (folder / "DevToolsActivePort").read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=10) as found:
                pages = [target for target in json.load(found) if target["type"] == "page"]
            return str(pages[0]["webSocketDebuggerUrl"])
        assert process.poll() is None, (folder.parent / f"{folder.name}.log").read_text()
        time.sleep(LOOK_SECONDS)
    raise AssertionError("Chromium did not start")
