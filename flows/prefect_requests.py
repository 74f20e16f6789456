"""Requests to a Prefect server's API, for what its client has no command for."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

from stages.errors import EndpointError

ANSWER_SECONDS = 60.0
CONFLICT, BUSY = 409, 503
"""What is to be made is there already; the server's database is locked by another request."""
BUSY_WAITS_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0)


def asked(
    api_url: str,
    path: str,
    body: dict[str, Any] | None = None,
    method: str | None = None,
    *,
    may_exist: bool = False,
) -> Any:
    """Return the server's answer to a request; one with a body is a POST unless ``method`` says.

    A server that is busy is asked again for a quarter of a minute. What ``may_exist`` and is not to
    be made twice is answered by None.

    Raises:
        EndpointError: the server refuses.
    """
    request = urllib.request.Request(  # noqa: S310 - the server that we use
        f"{api_url}/{path}",
        None if body is None else json.dumps(body).encode(),
        {"Content-Type": "application/json"},
        method=method,
    )
    waits = iter(BUSY_WAITS_SECONDS)
    while True:
        try:
            with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310
                content = answer.read()
            return json.loads(content) if content else None
        except urllib.error.HTTPError as error:
            if error.code == CONFLICT and may_exist:
                return None
            wait = next(waits, None) if error.code == BUSY else None
            if wait is None:
                # Its body repeats what was sent, and that may be the webhook's address.
                raise EndpointError(
                    f"Prefect's server refused with HTTP {error.code}", where=f"{api_url}/{path}"
                ) from None
            time.sleep(wait)
