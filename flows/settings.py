"""Quiet, private settings of the libraries we run on. Must be called before they are imported."""

from __future__ import annotations

import contextlib
import importlib
import os
import threading
import urllib.request
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from lineage.workspace import Workspace

LIBRARIES = {
    "DO_NOT_TRACK": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "WANDB_ERROR_REPORTING": "false",
}

HEARTBEAT = {"PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30"}
"""Seconds between a run's signs of life (`flows/alerts.py` reads them); Prefect allows no less."""

LOOPBACK = "127.0.0.1,localhost"

PRIVATE = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_CLI_PROMPT": "false"}

PREFECT = {
    **HEARTBEAT,
    **PRIVATE,
    # Errors reach the user once, as one sentence: not also as Prefect's traces.
    "PREFECT_LOGGING_LEVEL": "CRITICAL",
    "PREFECT_LOGGING_TO_API_ENABLED": "false",
}


def configure_libraries() -> None:
    """Set what the user's environment leaves unset: no telemetry, no progress bars of others.

    Servers on this machine are asked without the user's proxy, which can't reach them.
    """
    for name, value in LIBRARIES.items():
        os.environ.setdefault(name, value)
    if urllib.request.getproxies_environment().keys() - {"no"}:
        direct = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
        if direct != "*" and LOOPBACK not in direct:
            direct = ",".join(filter(None, (direct, LOOPBACK)))
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = direct


def import_in_background(*modules: str) -> None:
    """Import heavy modules in a thread, for use while this process waits for something else."""

    def load() -> None:
        for module in modules:
            with contextlib.suppress(ImportError):
                importlib.import_module(module)

    threading.Thread(target=load, daemon=True).start()


def configure_prefect(workspace: Workspace) -> None:
    """Keep Prefect's state inside the workspace, unless a Prefect server is up for it."""
    from flows.service import running

    configure_libraries()
    for name, value in PREFECT.items():
        os.environ.setdefault(name, value)
    if os.environ.get("PREFECT_API_URL"):
        return
    if service := running(workspace):
        os.environ["PREFECT_API_URL"] = service.url
        return
    for name, value in state_in(workspace.prefect_home.resolve()).items():
        os.environ.setdefault(name, value)


def state_in(home: Path) -> dict[str, str]:
    """Return what keeps all of Prefect's state in ``home``: it derives none of it by itself."""
    return {
        "PREFECT_HOME": str(home),
        "PREFECT_LOCAL_STORAGE_PATH": str(home / "storage"),
        "PREFECT_MEMO_STORE_PATH": str(home / "memo_store.toml"),
    }
