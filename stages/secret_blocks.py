"""A key from a Secret block of Prefect's: read when it is needed, kept nowhere."""

from __future__ import annotations

import os

from stages.errors import ConfigError

EMBEDDED_SERVER = "PREFMILL_EMBEDDED_SERVER"
"""In the environment: the address of the Prefect server that a command brought for itself alone."""


def read_secret(name: str) -> str:
    """Return what the Secret block ``name`` holds.

    Raises:
        ConfigError: no Prefect server is up for this process, or it has no such block.
    """
    if os.environ.get("PREFECT_API_URL", "") in {"", os.environ.get(EMBEDDED_SERVER)}:
        raise ConfigError(
            f"the Secret block {name!r} can't be read: no Prefect server is up",
            expected="one, by `prefmill up` or PREFECT_API_URL",
            where="api_key_secret",
            remedy="start it, or name an environment variable in `api_key_variable` instead",
        )
    from prefect.blocks.system import Secret

    try:
        key = str(Secret.load(name, _sync=True).get()).strip()
    except ValueError:  # its text may hold what the block holds
        key = ""
    if key:
        return key
    raise ConfigError(
        f"Prefect's server has no Secret block {name!r}, or it is empty",
        expected="the key of the endpoint in it",
        where=f"api_key_secret, server {os.environ['PREFECT_API_URL']}",
        remedy="make it in the UI: Blocks, +, Secret",
    )
